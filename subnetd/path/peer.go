package path

import (
	"net/netip"
	"slices"
	"time"

	"subnetd/subnetd/mesh"

	"tailscale.com/types/key"
)

// The timing of stock clients, so that both sides agree when a path lives.
const (
	heartbeatEvery = 3 * time.Second         // ping of the direct path while in use
	sessionActive  = 45 * time.Second        // in use: data was sent within
	trustFor       = 6500 * time.Millisecond // after a pong
	pingTimeout    = 5 * time.Second
	pingEvery      = 5 * time.Second  // per candidate, while looking
	repingEvery    = 60 * time.Second // all candidates, for something better
	goodEnough     = 5 * time.Millisecond
	learnedFor     = 45 * time.Second // a candidate seen only at runtime
	freshFor       = 27 * time.Second // own endpoints worth telling
)

// Our own limits.
const (
	deadAfter     = 15 * time.Second // of unanswered pings: no longer a path
	restunWait    = 2 * time.Second  // then CallMeMaybe goes out with old endpoints
	callWait      = time.Second      // between CallMeMaybe of a peer that are obeyed
	maxCandidates = 32
	maxNetmap     = 16   // of those, from the coordinator
	maxStatic     = 24   // of those, from the coordinator or CallMeMaybe
	maxPings      = 64   // outstanding, per peer
	maxEarly      = 4096 // Roamed of peers that are not known yet
	maxProbes     = 8    // outstanding, per peer
	maxTries      = 4    // of what would be better if it were not slower
)

// peer is what is known of one peer.
type peer struct {
	key       key.NodePublic
	disco     key.DiscoPublic  // zero: relay only
	addrs     []netip.Prefix   // in the mesh: never candidates
	published []netip.AddrPort // endpoints, as the coordinator has them

	home      int  // relay region; 0: none
	homeGone  bool // that relay said it does not reach the peer
	lastRelay int  // region it was last heard on; 0: never

	cands      []*candidate // by address
	best       *candidate   // of cands; nil: no direct path
	trustUntil time.Time    // of best
	came       time.Time    // last data or pong from best
	unheard    time.Time    // first ping of best after that; zero: none
	deaf       time.Time    // since then the peer seems not to hear us there; zero: it does
	still      time.Time    // last data from best while that is doubted
	doubt      doubt        // why best is no longer trusted, though it could be

	roam    roam           // where WireGuard in the kernel has gone by itself
	moved   time.Time      // last time we followed it off a trusted path
	settled time.Time      // until then that is not left for a better one
	refused netip.AddrPort // where it was found not to answer
	retryAt time.Time      // when that may be tried again

	lastSent   time.Time
	discovered time.Time // last search for a direct path
	fullPing   time.Time // last ping of all candidates
	askedSince time.Time // first ping that no pong followed
	called     time.Time // last CallMeMaybe sent
	calledUs   time.Time // last CallMeMaybe obeyed
	obeyAt     time.Time // the next is obeyed then; zero: none came
	wantCall   bool      // CallMeMaybe waits for fresh endpoints, until callBy
	callBy     time.Time

	out    []TxID // outstanding pings, oldest first
	probes []probe
	said   bool // path is known
	again  bool // Use is to be said even if nothing changed
	path   mesh.Path

	wake  time.Time // meaningful when index >= 0
	index int       // in the queue; -1: not in it
}

// probe is an explicit ping that was asked for.
type probe struct {
	id uint64
	at time.Time
}

// candidate is an address the peer may be reached at.
type candidate struct {
	addr           netip.AddrPort
	netmap, called bool      // who named it
	heard          time.Time // last ping or pong from there
	pinged         time.Time
	back           time.Time     // last ping in answer to a ping
	asked          time.Time     // first ping since the last pong
	rtt            time.Duration // smoothed; 0: unknown
	again          bool          // rtt may be too long: the first packet also looks for the neighbour
	tries          int           // how often it was asked for that, with heartbeats
	lastTx         TxID          // of the last ping from there
}

// origin says who named a candidate.
type origin bool

const (
	fromNetmap origin = false
	fromCall   origin = true
)

func (s Source) relayed() bool { return !s.Addr.IsValid() && s.Region != 0 }

func (p *peer) active(now time.Time) bool {
	return !p.lastSent.IsZero() && now.Before(p.lastSent.Add(sessionActive))
}

func (p *peer) trusted(now time.Time) bool { return p.best != nil && now.Before(p.trustUntil) }

// region returns the relay region to reach the peer at; 0: none is known.
func (p *peer) region() int {
	if p.home == 0 || p.homeGone && p.lastRelay != 0 {
		return p.lastRelay
	}
	return p.home
}

// heardOver notes that something authentic of the peer came over a relay.
func (p *peer) heardOver(region int) {
	p.lastRelay = region
	if region == p.home {
		p.homeGone = false
	}
}

// retry makes every candidate due for a ping now.
func (p *peer) retry() {
	p.discovered = time.Time{}
	for _, c := range p.cands {
		c.pinged, c.back = time.Time{}, time.Time{}
	}
}

func (p *peer) find(a netip.AddrPort) (int, bool) {
	return slices.BinarySearchFunc(p.cands, a, func(c *candidate, a netip.AddrPort) int { return c.addr.Compare(a) })
}

func (p *peer) candidate(a netip.AddrPort) *candidate {
	if i, ok := p.find(a); ok {
		return p.cands[i]
	}
	return nil
}

var meshULA = netip.MustParsePrefix("fd7a:115c:a1e0::/48")

// isMesh reports whether a lies inside the mesh: a tunnel must not run in itself.
func (p *peer) isMesh(a netip.Addr) bool {
	return meshULA.Contains(a) ||
		slices.ContainsFunc(p.addrs, func(x netip.Prefix) bool { return x.Contains(a) })
}

// relayMark is the address that stands for a relay in disco messages; the
// port is the region.
var relayMark = netip.AddrFrom4([4]byte{127, 3, 3, 40})

// usable reports whether packets can be meant to go to a at all.
func (p *peer) usable(a netip.AddrPort) bool {
	ip := a.Addr()
	return a.IsValid() && a.Port() != 0 && !ip.IsUnspecified() && !ip.IsMulticast() && ip != relayMark && !p.isMesh(ip)
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// setStatic replaces the candidates that o named.
func (m *Machine) setStatic(p *peer, o origin, addrs []netip.AddrPort) {
	for _, c := range p.cands {
		*c.by(o) = false
	}
	m.prune(p)
	n, limit := 0, maxNetmap
	if o == fromCall {
		limit = maxStatic
	}
	for _, c := range p.cands {
		if c.netmap || c.called {
			n++
		}
	}
	if o == fromNetmap { // what the coordinator says goes before what calls said
		n = 0
	}
	for _, a := range addrs {
		a = unmap(a)
		if !p.usable(a) || a.Addr().Is6() && a.Addr().IsLinkLocalUnicast() {
			continue
		}
		c := p.candidate(a)
		if c != nil && (c.netmap || c.called) {
			*c.by(o) = true
			continue
		}
		if n >= limit {
			break
		}
		if c == nil {
			c = m.addCandidate(p, a)
		}
		if c == nil {
			break
		}
		*c.by(o) = true
		n++
	}
}

func (c *candidate) by(o origin) *bool {
	if o == fromCall {
		return &c.called
	}
	return &c.netmap
}

// addCandidate adds a, for which another learned at runtime may have to go;
// nil: there is no room.
func (m *Machine) addCandidate(p *peer, a netip.AddrPort) *candidate {
	if len(p.cands) >= maxCandidates {
		m.prune(p)
	}
	if len(p.cands) >= maxCandidates {
		var oldest *candidate
		for _, c := range p.cands {
			if c != p.best && !c.netmap && !c.called && (oldest == nil || c.heard.Before(oldest.heard)) {
				oldest = c
			}
		}
		if oldest == nil {
			return nil
		}
		m.drop(p, func(c *candidate) bool { return c == oldest })
	}
	i, _ := p.find(a)
	c := &candidate{addr: a}
	p.cands = slices.Insert(p.cands, i, c)
	return c
}

// prune drops candidates nobody names and nothing was heard from lately.
func (m *Machine) prune(p *peer) {
	m.drop(p, func(c *candidate) bool {
		return c != p.best && !c.netmap && !c.called && !m.now.Before(c.heard.Add(learnedFor))
	})
}

func (m *Machine) drop(p *peer, which func(*candidate) bool) {
	p.cands = slices.DeleteFunc(p.cands, func(c *candidate) bool {
		if !which(c) {
			return false
		}
		if m.owner[c.addr] == p {
			delete(m.owner, c.addr)
		}
		if p.best == c {
			p.best = nil
		}
		return true
	})
}

// forget drops everything about direct paths to p; the relay stays.
func (m *Machine) forget(p *peer) {
	for len(p.out) > 0 {
		m.forgetPing(p, 0)
	}
	m.drop(p, func(*candidate) bool { return true })
	p.published = nil
	if p.roam.open() {
		p.endRoam()
	}
	p.trustUntil, p.discovered, p.fullPing = time.Time{}, time.Time{}, time.Time{}
	p.heardNow(time.Time{})
	p.askedSince, p.called, p.calledUs = time.Time{}, time.Time{}, time.Time{}
	p.obeyAt = time.Time{}
	p.wantCall = false
}

// forgetPing drops the i-th outstanding ping of p.
func (m *Machine) forgetPing(p *peer, i int) {
	delete(m.pings, p.out[i])
	p.out = slices.Delete(p.out, i, i+1)
}
