package engine

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"subnetd/subnetd/mesh"
	"subnetd/subnetd/status"
)

const warnExpiry = 7 * 24 * time.Hour // before the node key expires

// Status is the state of this node now.
func (e *Engine) Status() status.Snapshot {
	e.mu.Lock()
	s := status.Snapshot{
		Version:      e.cfg.Version,
		Generation:   e.gen,
		Phase:        e.link.Phase,
		Control:      e.link.Control,
		LoginURL:     e.link.LoginURL,
		Error:        e.link.Error,
		LastContact:  e.link.LastContact,
		Engine:       e.tunnel[0],
		EngineReason: e.tunnel[1],
		LANs:         e.plan.LANs,
		Openings:     status.Openings{UDP: e.plan.Host.Firewall.Openings.UDP, TCP: e.plan.Host.Firewall.Openings.TCP},
		Exposed:      e.plan.Offer,
		Approved:     e.plan.Approved,
		Exits: status.Exits{
			Offer: e.in.Config.Exit.Offer, Approved: e.plan.Host.Firewall.Internet,
			Rows: append([]status.ExitRow{}, e.plan.Exits...), There: append([]string{}, e.plan.There...),
		},
		Peers:    []status.Peer{},
		Problems: slices.Concat([]status.Problem{}, e.extra, e.plan.Problems),
	}
	nm, err := e.in.Netmap, e.applyErr
	e.mu.Unlock()
	if err != nil {
		s.Problems = append(s.Problems, status.Problem{Code: "apply", Text: "The router is not as planned: " + err.Error()})
	}
	if nm != nil {
		describe(&s, nm, e.cfg.Now())
	}
	if e.cfg.Live != nil {
		e.cfg.Live(&s, nm)
	}
	return s
}

// describe adds what the netmap says.
func describe(s *status.Snapshot, nm *mesh.Netmap, now time.Time) {
	s.Name = strings.TrimSuffix(nm.Self.Name, ".")
	s.Domain = nm.Domain
	s.KeyExpiry = nm.Self.KeyExpiry
	s.Addresses = singles(nm.Self.Addresses)
	for _, h := range nm.Health {
		s.Problems = append(s.Problems, status.Problem{Code: "coordinator", Text: h})
	}
	if left := nm.Self.KeyExpiry.Sub(now.Add(nm.ClockSkew)); !nm.Self.KeyExpiry.IsZero() && left < warnExpiry {
		s.Problems = append(s.Problems, expiryProblem(left))
	}
	for i := range nm.Peers {
		n := &nm.Peers[i]
		p := status.Peer{
			Name:      strings.TrimSuffix(n.Name, "."),
			Addresses: singles(n.Addresses),
			Online:    n.Online != nil && *n.Online,
			OS:        n.OS,
			Path:      string(mesh.PathNone),
		}
		for _, a := range n.AllowedIPs {
			if !n.HasAddr(a.Addr()) {
				p.Routes = append(p.Routes, a)
			}
		}
		s.Peers = append(s.Peers, p)
	}
}

func expiryProblem(left time.Duration) status.Problem {
	fix := "Run `subnetd up` to log in again."
	if left <= 0 {
		return status.Problem{Code: "key-expired", Text: "This node's key has expired: the mesh no longer talks to it.", Fix: fix}
	}
	return status.Problem{Code: "key-expiry", Text: fmt.Sprintf("This node's key expires in %d days.", int(left.Hours()/24)), Fix: fix}
}

func singles(ps []netip.Prefix) []netip.Addr {
	out := make([]netip.Addr, 0, len(ps))
	for _, p := range ps {
		out = append(out, p.Addr())
	}
	return out
}
