package path

import (
	"net/netip"
	"time"

	"tailscale.com/types/key"
)

// WireGuard in the kernel sends to where authenticated data came from last. The
// peer may have moved, or its NAT; or it has two ways that both work, and we
// another taste. It is followed once to an address that answers, and after that
// stays there for a while: two good ways, or three, must not take turns.
const (
	roamWait    = 5 * time.Second  // for an answer from there
	followEvery = time.Minute      // off a path that is trusted
	refuseFor   = time.Minute      // an address that did not answer
	settledFor  = 10 * time.Minute // what the peer prefers, before our taste counts again
)

// roam is where the kernel has gone, and until when it may stay there.
type roam struct {
	addr  netip.AddrPort
	until time.Time // zero: it has not
}

func (r roam) open() bool { return !r.until.IsZero() }

// endRoam has Use said, so that the kernel does as it is told.
func (p *peer) endRoam() { p.roam, p.again = roam{}, true }

// onRoamed keeps what is said of peers that are not known yet: after a restart
// the kernel tells its endpoints before the coordinator tells the peers.
func (m *Machine) onRoamed(e Roamed) {
	p := m.peers[e.Peer]
	if p != nil {
		m.roamed(p, unmap(e.Addr))
		m.settle(p)
		return
	}
	if m.early == nil {
		m.early = map[key.NodePublic]netip.AddrPort{}
	}
	if _, known := m.early[e.Peer]; known || len(m.early) < maxEarly {
		m.early[e.Peer] = unmap(e.Addr)
	}
}

// roamed lets the kernel stay at a until it is known whether a answers, if it
// may be known at all.
func (m *Machine) roamed(p *peer, a netip.AddrPort) {
	c := m.roamTo(p, a)
	switch {
	case c == nil:
		p.endRoam()
	case c == p.best:
		if !p.trusted(m.now) {
			p.still = m.now
			if !m.now.Before(c.pinged.Add(pingEvery)) {
				m.ping(p, c)
			}
		}
		p.endRoam()
	case a == p.refused && m.now.Before(p.retryAt):
		if !p.trusted(m.now) && !m.now.Before(c.pinged.Add(pingEvery)) {
			m.ping(p, c)
		}
		p.endRoam()
	case p.roam.open():
		p.roam.addr = a
	default:
		p.roam = roam{a, m.now.Add(roamWait)}
	}
}

// roamTo returns the candidate for a, which the peer is at; nil: it cannot be.
func (m *Machine) roamTo(p *peer, a netip.AddrPort) *candidate {
	ip := a.Addr()
	if p.disco.IsZero() || !p.usable(a) || ip.IsLoopback() || ip.Is6() && ip.IsLinkLocalUnicast() {
		return nil
	}
	c := p.candidate(a)
	if c == nil {
		c = m.addCandidate(p, a)
	}
	if c != nil && c != p.best {
		if !m.now.Before(c.heard.Add(2 * repingEvery)) {
			c.rtt = 0
		}
		c.heard = m.now
	}
	return c
}

// pursue asks where the kernel has gone, and follows it there.
func (m *Machine) pursue(p *peer) {
	if !p.roam.open() {
		return
	}
	switch c := p.candidate(p.roam.addr); {
	case c == nil, c == p.best:
		p.endRoam()
	case m.answered(c) && !p.trusted(m.now):
		m.trust(p, c, c.pinged)
		p.endRoam()
	case m.answered(c) && !m.now.Before(p.moved.Add(followEvery)):
		m.trust(p, c, c.pinged)
		p.moved, p.settled = m.now, m.now.Add(settledFor)
		p.endRoam()
	case !m.now.Before(c.pinged.Add(pingEvery)):
		m.ping(p, c)
	}
}

// answered reports whether the last ping of c is young, and was answered.
func (m *Machine) answered(c *candidate) bool {
	return c.rtt > 0 && c.asked.IsZero() && m.now.Before(c.pinged.Add(pingEvery))
}

// refuse ends the kernel's stay at an address after its time.
func (m *Machine) refuse(p *peer) {
	if c := p.candidate(p.roam.addr); c != nil && (c.rtt == 0 || !c.asked.IsZero()) {
		p.refused, p.retryAt = c.addr, m.now.Add(refuseFor)
	}
	p.endRoam()
}
