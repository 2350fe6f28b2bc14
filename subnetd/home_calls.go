package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/coord"
	"subnetd/subnetd/coord/policy"
	"subnetd/subnetd/plan"
	"subnetd/subnetd/status"
)

const lookupTimeout = 3 * time.Second

// calls is what the local API may ask of the home mesh.
func (h *home) calls() (api.Home, error) {
	if h.d.control() != homeControl {
		return api.Home{}, api.ErrNotHome
	}
	p, err := h.serving()
	if p == nil {
		if err == nil || errors.Is(err, errNotWanted) {
			err = errors.New("the coordinator in this router is not serving: `subnetd up` starts it")
		}
		return api.Home{}, err
	}
	c := p.coord
	return api.Home{
		Invite:    func(ctx context.Context, r status.InviteRequest) (status.Invite, error) { return h.invite(ctx, c, r) },
		Keys:      c.Keys,
		RevokeKey: func(ctx context.Context, id string) error { return inWords(c.RevokeKey(ctx, id)) },
		Nodes:     func() status.HomeNodes { return status.HomeNodes{Nodes: c.Nodes(), Pending: c.Pending()} },
		Approve: func(ctx context.Context, r status.NodeRequest) (status.HomeNode, error) {
			n, err := c.Approve(ctx, r.Code, r.User)
			return n, inWords(err)
		},
		Rename: func(ctx context.Context, r status.NodeRequest) (status.HomeNode, error) {
			n, err := c.Rename(ctx, r.Node, r.Name)
			return n, inWords(err)
		},
		Expire: func(ctx context.Context, r status.NodeRequest) (status.HomeNode, error) {
			n, err := c.Expire(ctx, r.Node, r.In)
			return n, inWords(err)
		},
		Remove: func(ctx context.Context, r status.NodeRequest) (status.HomeNode, error) {
			n, err := c.Remove(ctx, r.Node)
			return n, inWords(err)
		},
		Routes: func(ctx context.Context, r status.NodeRequest) (status.HomeNode, error) {
			n, err := c.ApproveRoutes(ctx, r.Node, r.Routes)
			return n, inWords(err)
		},
		Probe: func(ctx context.Context, r status.NodeRequest) (status.HomeNode, error) {
			took, err := c.Probe(ctx, r.Node)
			return status.HomeNode{Name: r.Node, Answer: float64(took) / float64(time.Millisecond)}, inWords(err)
		},
		Policy:      h.policyInForce,
		CheckPolicy: checkPolicy,
	}, nil
}

// inWords sorts the coordinator's errors for the API.
func inWords(err error) error {
	for is, as := range map[error]error{
		coord.ErrUnknownNode: api.ErrUnknownNode, coord.ErrUnknownCode: api.ErrUnknownCode, coord.ErrUnknownKey: api.ErrUnknownKey,
	} {
		if errors.Is(err, is) {
			return unknown{err, as}
		}
	}
	var bad coord.BadRequest
	if errors.As(err, &bad) {
		return api.BadRequest(err)
	}
	return err
}

// unknown is an error in the coordinator's words and of the API's kind.
type unknown struct {
	error
	kind error
}

func (u unknown) Is(target error) bool { return target == u.kind }

func (h *home) invite(ctx context.Context, c *coord.Coordinator, r status.InviteRequest) (status.Invite, error) {
	reach := h.reach(h.d.config())
	if reach.URL == "" {
		return status.Invite{}, errors.New(strings.Join(reach.Missing, " "))
	}
	k, info, err := c.Invite(ctx, r)
	if err != nil {
		return status.Invite{}, inWords(err)
	}
	missing := append(reach.Missing, h.unreachable(ctx, reach)...)
	return status.Invite{
		URL: reach.URL, Key: k, ID: info.ID, Expires: info.Expires,
		Line:    fmt.Sprintf("tailscale up --login-server=%s --auth-key=%s", reach.URL, k),
		Outside: reach.Outside && len(missing) == 0, Missing: missing,
	}, nil
}

// unreachable says what can be seen from here to stand between the name of the
// coordinator and this router.
func (h *home) unreachable(ctx context.Context, r plan.Reach) []string {
	var out []string
	if r.Name != "" {
		ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
		defer cancel()
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", r.Name)
		switch {
		case err != nil:
			out = append(out, fmt.Sprintf("The name %s of home.url is not found in the DNS: let it point to this router's public address.", r.Name))
		case !h.ours(addrs):
			out = append(out, fmt.Sprintf("The name %s points to %s, which is no address of this router as far as it knows.", r.Name, addrs[0].Unmap()))
		}
	}
	if p, err := h.serving(); err == nil && r.TLS {
		if err := p.certs.trouble(); err != nil {
			out = append(out, "There is no certificate for home.url: "+err.Error())
		}
	}
	return out
}

// ours reports whether one of the addresses is this router's, or is where the
// world sees it.
func (h *home) ours(addrs []netip.Addr) bool {
	known := plan.WANAddrs(h.d.facts(), nil)
	h.d.mu.Lock()
	for _, e := range h.d.link.Endpoints {
		known = append(known, e.Addr.Addr())
	}
	h.d.mu.Unlock()
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool { return slices.Contains(known, a.Unmap()) })
}

func checkPolicy(text string) status.PolicyVerdict {
	if _, err := policy.Parse([]byte(text)); err != nil {
		return status.PolicyVerdict{Error: err.Error()}
	}
	return status.PolicyVerdict{}
}
