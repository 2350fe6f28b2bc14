package path

import (
	"fmt"
	"net/netip"
	"time"

	"subnetd/subnetd/mesh"
)

// switchAt is how many points, of which one is a percent of round-trip time,
// another address must be ahead before a working path is left for it.
const switchAt = 5

// quick is a round-trip time below which percents are noise: there, differences
// count as percents of it. A threshold instead would allow circles, in which
// each of three addresses is better than the one before.
const quick = 10 * time.Millisecond

// bonus returns the points an address has by what it is: the nearer, the more.
func bonus(a netip.Addr) int {
	n := 0
	switch {
	case a.IsLoopback():
		n = 50
	case a.IsLinkLocalUnicast():
		n = 30
	case a.IsPrivate():
		n = 20
	}
	if a.Is6() {
		n += 10
	}
	return n
}

// better reports whether a is so much better than b, which works, that the
// path should move. Not both of better(a, b) and better(b, a) hold.
func better(a, b *candidate) bool {
	points := bonus(a.addr.Addr()) - bonus(b.addr.Addr())
	points += int((b.rtt - a.rtt) * 100 / max(a.rtt, b.rtt, quick))
	return points >= switchAt
}

// choose says the way of data to p, if it is another than was said before, or
// if the kernel left it.
func (m *Machine) choose(p *peer) {
	u := Use{Peer: p.key}
	path := mesh.Path{Kind: mesh.PathNone}
	if p.best != nil {
		u.Addr = p.best.addr
		path.Kind, path.Addr, path.RTT = mesh.PathDirect, p.best.addr, p.best.rtt
	}
	if !p.trusted(m.now) {
		u.Region = p.region()
		path.Relay = u.Region
		path.Reason = m.reason(p)
		if p.best == nil && u.Region != 0 {
			path.Kind = mesh.PathRelay
		}
	}
	same := p.said && path.Kind == p.path.Kind && path.Addr == p.path.Addr && path.Relay == p.path.Relay
	path.Since = m.now
	if same {
		path.Since = p.path.Since
	}
	p.again = p.again || !same || path.Reason != p.path.Reason
	p.said, p.path = true, path
	if p.again && !p.roam.open() { // while it is, the kernel's choice stands
		p.again = false
		u.Path = path
		m.do(u)
	}
}

// reason says in plain words why data does not go directly, and only so.
func (m *Machine) reason(p *peer) string {
	why := m.whyNotDirect(p)
	switch r := p.region(); {
	case r == 0 && p.best == nil:
		return "the peer has no relay; " + why
	case r != 0 && r == p.home && p.homeGone:
		return fmt.Sprintf("relay %d does not reach the peer; %s", r, why)
	}
	return why
}

func (m *Machine) whyNotDirect(p *peer) string {
	usable := 0
	for _, c := range p.cands {
		if m.reachable(c) {
			usable++
		}
	}
	asked := !p.askedSince.IsZero()
	switch {
	case p.disco.IsZero():
		return "the peer has no disco key, so no direct path can be tried"
	case p.roam.open():
		return fmt.Sprintf("WireGuard took data from %v: it is asked whether it answers", p.roam.addr)
	case p.best != nil && !p.active(m.now):
		return "idle: no answer was needed since " + clock(p.best.heard)
	case p.best != nil && p.doubt == silent:
		return fmt.Sprintf("data goes to %v, but nothing came from there since %s: sent both ways", p.best.addr, clock(p.came))
	case p.best != nil && p.doubt == deaf:
		return fmt.Sprintf("the peer seems not to hear us at %v, and did not answer since %s: sent both ways", p.best.addr, clock(p.best.heard))
	case p.best != nil:
		return fmt.Sprintf("no answer from %v since %s: sent both ways", p.best.addr, clock(p.best.heard))
	case !m.localAt.IsZero() && !m.local.UDP:
		return "no UDP here: it is blocked, or no STUN server answers"
	case len(p.cands) == 0:
		return "peer has no addresses"
	case usable == 0:
		return "peer has only IPv6 addresses, and there is no IPv6 here"
	case !asked:
		return "not in use: no direct path was tried"
	case m.now.Before(p.askedSince.Add(pingTimeout)):
		return "waiting for first answer"
	}
	s := "es"
	if usable == 1 {
		s = ""
	}
	return fmt.Sprintf("peer did not answer on %d address%s since %s", usable, s, clock(p.askedSince))
}

func clock(t time.Time) string { return t.Format("15:04:05") }
