package path

import (
	"net/netip"
	"slices"
	"time"

	"subnetd/subnetd/mesh"
)

// discover looks for a direct path: everything is pinged, and the peer is
// asked over the relay to ping us, which opens the firewalls on both sides.
func (m *Machine) discover(p *peer) {
	m.prune(p)
	m.pingAll(p)
	p.discovered = m.now
	if p.askedSince.IsZero() {
		p.askedSince = m.now
	}
	m.call(p)
}

// pingAll pings every candidate that was not pinged lately.
func (m *Machine) pingAll(p *peer) {
	p.fullPing = m.now
	for _, c := range p.cands {
		if !m.now.Before(c.pinged.Add(pingEvery)) && m.reachable(c) {
			m.ping(p, c)
		}
	}
}

// pingSlow pings what would be better if it were not slower, which a busy moment
// may have made it: as often as the heartbeat goes, a few times.
func (m *Machine) pingSlow(p *peer) {
	for _, c := range p.cands {
		if c.again && c != p.best && c.tries < maxTries && !m.now.Before(c.pinged.Add(heartbeatEvery)) {
			c.tries++
			m.ping(p, c)
		}
	}
}

// pingNew pings what the coordinator has named since the path was found.
func (m *Machine) pingNew(p *peer) {
	for _, c := range p.cands {
		if c.netmap && c.pinged.IsZero() && m.reachable(c) {
			m.ping(p, c)
		}
	}
}

// reachable reports whether there is a socket that could reach c.
func (m *Machine) reachable(c *candidate) bool {
	return c.addr.Addr().Is4() || m.local.V6 || !c.heard.IsZero() ||
		slices.ContainsFunc(m.local.Endpoints, func(a netip.AddrPort) bool { return a.Addr().Unmap().Is6() })
}

func (m *Machine) ping(p *peer, c *candidate) {
	c.pinged = m.now
	if c.asked.IsZero() {
		c.asked = m.now
	}
	if c == p.best && p.unheard.IsZero() {
		p.unheard = m.now
	}
	m.sendPing(p, Source{Addr: c.addr})
}

func (m *Machine) sendPing(p *peer, to Source) {
	tx := m.cfg.NewTxID()
	if _, taken := m.pings[tx]; taken {
		return
	}
	if len(p.out) >= maxPings {
		m.forgetPing(p, 0)
	}
	m.pings[tx] = ping{p, to, m.now}
	p.out = append(p.out, tx)
	m.do(SendPing{Peer: p.key, Disco: p.disco, To: to, TxID: tx})
}

// call sends CallMeMaybe, or asks for fresh endpoints first.
func (m *Machine) call(p *peer) {
	if p.region() == 0 || m.now.Before(p.called.Add(pingEvery)) {
		return
	}
	if !m.localAt.IsZero() && m.now.Before(m.localAt.Add(freshFor)) {
		m.sendCall(p)
		return
	}
	if !p.wantCall {
		p.wantCall, p.callBy = true, m.now.Add(restunWait)
	}
	m.restun()
}

// restun asks for fresh endpoints, for whoever wants them, if that was not done
// just now.
func (m *Machine) restun() {
	if m.asked.IsZero() || !m.now.Before(m.asked.Add(pingTimeout)) {
		m.asked = m.now
		m.do(Restun{})
	}
}

func (m *Machine) sendCall(p *peer) {
	p.wantCall = false
	r := p.region()
	if r == 0 || len(m.local.Endpoints) == 0 {
		return
	}
	p.called = m.now
	m.do(SendCallMeMaybe{Peer: p.key, Disco: p.disco, Region: r, Endpoints: m.local.Endpoints})
}

// onPing answers, and takes the source as a candidate. The address a ping came
// from is never a path before a ping of ours was answered from there.
func (m *Machine) onPing(e Ping) {
	peers := m.byDisco[e.Sender]
	if e.From.relayed() {
		m.onRelayPing(e, peers)
		return
	}
	src := unmap(e.From.Addr)
	named := slices.IndexFunc(peers, func(p *peer) bool { return p.key == e.Node })
	if named >= 0 {
		peers = peers[named : named+1]
	}
	known := false // at least one of them may be there
	for _, p := range peers {
		if !p.usable(src) {
			continue
		}
		c := p.candidate(src)
		if c != nil && !c.heard.IsZero() && c.lastTx == e.TxID {
			return // seen: the same packet twice
		}
		if !known {
			known = true
			m.do(SendPong{Peer: p.key, Disco: e.Sender, To: Source{Addr: src}, TxID: e.TxID, Src: src})
		}
		m.learn(p, c, src, e.TxID, named >= 0)
		m.settle(p)
	}
}

// onStranger asks the peer that may be there. It sends to us on a path of which
// we know nothing since our restart, and would find out only by its next ping.
func (m *Machine) onStranger(e Stranger) {
	a := unmap(e.From)
	for _, p := range m.order {
		c := p.candidate(a)
		if c == nil || p.disco.IsZero() || m.now.Before(c.pinged.Add(heartbeatEvery)) {
			continue
		}
		m.ping(p, c)
		m.settle(p)
	}
}

func (m *Machine) onRelayPing(e Ping, peers []*peer) {
	p := m.peers[e.From.Node]
	if p == nil || !slices.Contains(peers, p) {
		return
	}
	p.heardOver(e.From.Region)
	src := netip.AddrPortFrom(relayMark, uint16(e.From.Region))
	m.do(SendPong{Peer: p.key, Disco: e.Sender, To: e.From, TxID: e.TxID, Src: src})
	m.settle(p)
}

// learn notes a ping of p from src, whose candidate is c, if there is one. The
// way in is open, so while no path is trusted ours goes out at once: by then a
// ping of ours may have died at the firewall that the peer has just opened.
func (m *Machine) learn(p *peer, c *candidate, src netip.AddrPort, tx TxID, named bool) {
	if c == nil {
		if c = m.addCandidate(p, src); c == nil {
			return
		}
	}
	c.heard, c.lastTx = m.now, tx
	if named {
		m.claim(p, src)
	}
	if !p.trusted(m.now) && !m.now.Before(c.back.Add(pingEvery)) {
		c.back = m.now
		m.ping(p, c)
	}
}

// claim says once that data from a belongs to p.
func (m *Machine) claim(p *peer, a netip.AddrPort) {
	if m.owner[a] != p {
		m.owner[a] = p
		m.do(Map{Addr: a, Peer: p.key})
	}
}

func (m *Machine) onPong(e Pong) {
	pi, ok := m.pings[e.TxID]
	if !ok || pi.peer.disco != e.Sender || !m.now.Before(pi.at.Add(pingTimeout)) {
		return
	}
	p := pi.peer
	if e.From.relayed() != pi.to.relayed() || e.From.relayed() && e.From.Node != p.key {
		return
	}
	m.forgetPing(p, slices.Index(p.out, e.TxID))
	rtt := max(m.now.Sub(pi.at), time.Microsecond)
	if pi.to.relayed() {
		p.heardOver(e.From.Region)
		m.answer(p, pi.at, mesh.Path{Kind: mesh.PathRelay, Relay: pi.to.Region, RTT: rtt})
	} else if c := p.candidate(pi.to.Addr); c != nil {
		m.alive(p, c, rtt)
		m.answer(p, pi.at, mesh.Path{Kind: mesh.PathDirect, Addr: c.addr, RTT: rtt})
	}
	m.settle(p)
}

// answer ends the probes that a ping sent at sent is an answer to.
func (m *Machine) answer(p *peer, sent time.Time, path mesh.Path) {
	p.probes = slices.DeleteFunc(p.probes, func(pr probe) bool {
		if sent.Before(pr.at) {
			return false
		}
		m.do(Answered{ID: pr.id, Path: path})
		return true
	})
}

// alive notes a pong from c, and makes c the path if it is the better one.
func (m *Machine) alive(p *peer, c *candidate, rtt time.Duration) {
	first := c.rtt == 0
	late := c == p.best && p.doubt != sure && rtt > c.rtt // we were too impatient
	if first || late || c.again || !m.now.Before(c.heard.Add(2*repingEvery)) {
		c.rtt, c.again = rtt, false
	} else {
		c.rtt = (7*c.rtt + rtt) / 8
	}
	c.heard, c.asked = m.now, time.Time{}
	p.askedSince = time.Time{}
	trusted := p.trusted(m.now)
	if c != p.best && trusted && (m.now.Before(p.settled) || !better(c, p.best)) {
		nearer := bonus(c.addr.Addr()) > bonus(p.best.addr.Addr())
		if nearer && first {
			m.ping(p, c)
		}
		// Of a path that is good enough no other is asked later.
		c.again = nearer && (first || p.best.rtt <= goodEnough && c.tries < maxTries)
		return
	}
	if !trusted && p.roam.open() {
		p.endRoam()
	}
	m.trust(p, c, m.now)
}

// trust makes c the path, for an answer that was there at when.
func (m *Machine) trust(p *peer, c *candidate, when time.Time) {
	if c != p.best {
		p.settled = time.Time{}
	}
	p.best, p.trustUntil = c, when.Add(trustFor)
	p.heardNow(m.now)
	m.claim(p, c.addr)
}

// onCall obeys a peer that wants to be pinged: it has just pinged us, so its
// side is open.
func (m *Machine) onCall(e CallMeMaybe) {
	p := m.peers[e.From.Node]
	if !e.From.relayed() || p == nil || p.disco.IsZero() || p.disco != e.Sender {
		return
	}
	p.heardOver(e.From.Region)
	m.suspect(p)
	m.setStatic(p, fromCall, e.Endpoints)
	if p.obeyAt.IsZero() {
		p.obeyAt = p.calledUs.Add(callWait)
	}
	m.settle(p)
}

// obey pings everything for a peer that called. A peer that calls without end
// must not make us shout at whatever addresses it names.
func (m *Machine) obey(p *peer) {
	if p.obeyAt.IsZero() || m.now.Before(p.obeyAt) {
		return
	}
	p.obeyAt, p.calledUs = time.Time{}, m.now
	for _, c := range p.cands {
		c.pinged = time.Time{}
	}
	m.pingAll(p)
}
