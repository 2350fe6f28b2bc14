package path

import (
	"net/netip"
	"slices"
	"time"

	"subnetd/subnetd/mesh"

	"tailscale.com/types/key"
)

// Machine holds what is known of the ways to every peer. It is not safe for
// concurrent use: one goroutine steps it.
type Machine struct {
	cfg     Config
	now     time.Time // of the running Step; never goes back
	out     []Action  // of the running Step
	peers   map[key.NodePublic]*peer
	order   []*peer // by key, so that walks are deterministic
	byDisco map[key.DiscoPublic][]*peer
	pings   map[TxID]ping
	owner   map[netip.AddrPort]*peer // what was said by Map
	queue   queue
	early   map[key.NodePublic]netip.AddrPort // Roamed of peers that are not known yet

	local   SetLocal
	localAt time.Time // when local was learned; zero: never, or no longer valid
	asked   time.Time // last Restun
}

// ping is a ping that waits for its pong.
type ping struct {
	peer *peer
	to   Source
	at   time.Time
}

// New returns a machine that knows no peers. cfg.NewTxID must be set.
func New(cfg Config) *Machine {
	return &Machine{
		cfg:     cfg,
		peers:   map[key.NodePublic]*peer{},
		byDisco: map[key.DiscoPublic][]*peer{},
		pings:   map[TxID]ping{},
		owner:   map[netip.AddrPort]*peer{},
	}
}

// Step tells the machine what happened at now and returns what to do, in
// order. A now before that of an earlier Step counts as that earlier one.
func (m *Machine) Step(now time.Time, e Event) []Action {
	if m.now.Before(now) {
		m.now = now
	}
	m.out = nil
	switch e := e.(type) {
	case SetPeers:
		m.setPeers(e.Peers)
	case SetLocal:
		m.setLocal(e)
	case Sent:
		if p := m.peers[e.Peer]; p != nil {
			m.use(p)
			m.settle(p)
		}
	case Received:
		if p := m.peers[e.Peer]; p != nil {
			m.onReceived(p, e.From)
			m.settle(p)
		}
	case Roamed:
		m.onRoamed(e)
	case Stranger:
		m.onStranger(e)
	case Ping:
		m.onPing(e)
	case Pong:
		m.onPong(e)
	case CallMeMaybe:
		m.onCall(e)
	case RelayGone:
		m.onRelayGone(e)
	case Rebind:
		m.onRebind()
	case Probe:
		m.onProbe(e)
	case Tick:
		for p := m.queue.due(m.now); p != nil; p = m.queue.due(m.now) {
			m.settle(p)
		}
	}
	return m.out
}

// Wake returns when the next Tick is wanted; zero: not before another event.
func (m *Machine) Wake() time.Time {
	if len(m.queue) == 0 {
		return time.Time{}
	}
	return m.queue[0].wake
}

// Path returns the way to the peer as it was after the last Step.
func (m *Machine) Path(k key.NodePublic) mesh.Path {
	p := m.peers[k]
	if p == nil {
		return mesh.Path{Kind: mesh.PathNone, Reason: "no such peer"}
	}
	path := p.path
	if p.best != nil {
		path.RTT = p.best.rtt
	}
	return path
}

func (m *Machine) do(a Action) { m.out = append(m.out, a) }

// settle does for one peer what the time asks for, says the way if it changed,
// and notes when to look again. Every event about a peer ends here.
func (m *Machine) settle(p *peer) {
	m.expire(p)
	m.obey(p)
	m.pursue(p)
	m.listen(p)
	m.drive(p)
	m.choose(p)
	m.queue.set(p, m.deadline(p))
}

// expire drops what is over: a direct path that answers no more, and probes.
func (m *Machine) expire(p *peer) {
	if p.best != nil && !p.trusted(m.now) && !p.best.asked.IsZero() && !m.now.Before(p.deadAt()) {
		p.best = nil
	}
	if p.roam.open() && !m.now.Before(p.roam.until) {
		m.refuse(p)
	}
	for len(p.out) > 0 && !m.now.Before(m.pings[p.out[0]].at.Add(pingTimeout)) {
		m.forgetPing(p, 0)
	}
	for len(p.probes) > 0 && !m.now.Before(p.probes[0].at.Add(pingTimeout)) {
		m.do(Answered{ID: p.probes[0].id, Path: mesh.Path{Kind: mesh.PathNone, Reason: "no answer within 5 s"}})
		p.probes = p.probes[1:]
	}
	if p.wantCall && !m.now.Before(p.callBy) {
		m.sendCall(p)
	}
}

// drive pings what is due while the peer is in use.
func (m *Machine) drive(p *peer) {
	if !p.active(m.now) || p.disco.IsZero() {
		return
	}
	if !p.trusted(m.now) {
		if !m.now.Before(p.discovered.Add(pingEvery)) {
			m.discover(p)
		}
	} else if p.best.rtt > goodEnough && !m.now.Before(p.fullPing.Add(repingEvery)) {
		m.pingAll(p)
	} else {
		m.pingNew(p)
	}
	if c := p.best; c != nil && !m.now.Before(c.pinged.Add(heartbeatEvery)) {
		m.ping(p, c)
	}
	m.pingSlow(p)
}

// deadline returns when settle has something to do again; zero: never.
func (m *Machine) deadline(p *peer) time.Time {
	var next time.Time
	add := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	trusted := p.trusted(m.now)
	if trusted {
		add(p.trustUntil)
	}
	if p.active(m.now) && !p.disco.IsZero() {
		inSession := func(t time.Time) {
			if t.Before(p.lastSent.Add(sessionActive)) {
				add(t)
			}
		}
		if p.best != nil {
			inSession(p.best.pinged.Add(heartbeatEvery))
		}
		if trusted {
			for _, t := range []time.Time{p.askAt(), p.doubtAt()} {
				if !t.IsZero() {
					inSession(t)
				}
			}
		}
		switch {
		case !trusted:
			inSession(p.discovered.Add(pingEvery))
			if p.best != nil && !p.best.asked.IsZero() {
				inSession(p.deadAt())
			}
		case p.best.rtt > goodEnough:
			inSession(p.fullPing.Add(repingEvery))
		}
	}
	if p.roam.open() {
		add(p.roam.until)
		if c := p.candidate(p.roam.addr); c != nil {
			add(c.pinged.Add(pingEvery))
		}
	}
	if p.wantCall {
		add(p.callBy)
	}
	if !p.obeyAt.IsZero() {
		add(p.obeyAt)
	}
	if len(p.probes) > 0 {
		add(p.probes[0].at.Add(pingTimeout))
	}
	return next
}

// use notes that data goes to the peer. After a silence the last attempts say
// nothing about now, so they are forgotten.
func (m *Machine) use(p *peer) {
	if !p.active(m.now) {
		p.askedSince, p.unheard = time.Time{}, time.Time{}
		if p.best != nil {
			p.best.asked = time.Time{}
		}
	}
	p.lastSent = m.now
}

func (m *Machine) setPeers(nodes []mesh.Node) {
	old := m.peers
	m.peers = make(map[key.NodePublic]*peer, len(nodes))
	m.byDisco = make(map[key.DiscoPublic][]*peer, len(nodes))
	m.order = make([]*peer, 0, len(nodes))
	changed := map[*peer]bool{}
	for i := range nodes {
		n := &nodes[i]
		if n.Key.IsZero() || m.peers[n.Key] != nil {
			continue
		}
		p := old[n.Key]
		if p == nil {
			p = &peer{key: n.Key, index: -1}
			changed[p] = true
		}
		if m.follow(p, n) {
			changed[p] = true
		}
		if a, ok := m.early[n.Key]; ok {
			m.roamed(p, a)
			changed[p] = true
		}
		m.peers[n.Key] = p
		m.order = append(m.order, p)
	}
	m.early = nil
	slices.SortFunc(m.order, func(a, b *peer) int { return a.key.Compare(b.key) })
	for _, p := range m.order {
		if !p.disco.IsZero() {
			m.byDisco[p.disco] = append(m.byDisco[p.disco], p)
		}
	}
	m.removeGone(old)
	for _, p := range m.order {
		if changed[p] {
			m.settle(p)
		}
	}
}

// follow brings p up to what the coordinator says of it now, and reports
// whether that is something new.
func (m *Machine) follow(p *peer, n *mesh.Node) bool {
	changed := false
	if p.disco != n.Disco {
		m.forget(p) // restarted: whatever answered there no longer does
		p.disco = n.Disco
		changed = true
	}
	if p.home != n.HomeRelay {
		p.home, p.homeGone = n.HomeRelay, false
		changed = true
	}
	if !slices.Equal(p.addrs, n.Addresses) {
		p.addrs = slices.Clone(n.Addresses)
		m.drop(p, func(c *candidate) bool { return p.isMesh(c.addr.Addr()) })
		changed = true
	}
	if !slices.Equal(p.published, n.Endpoints) || changed {
		p.published = slices.Clone(n.Endpoints)
		m.setStatic(p, fromNetmap, n.Endpoints)
		p.discovered = time.Time{}
		changed = true
	}
	return changed
}

// removeGone forgets the peers of old that are peers no more.
func (m *Machine) removeGone(old map[key.NodePublic]*peer) {
	var gone []*peer
	for k, p := range old {
		if m.peers[k] == nil {
			gone = append(gone, p)
		}
	}
	slices.SortFunc(gone, func(a, b *peer) int { return a.key.Compare(b.key) })
	for _, p := range gone {
		m.forget(p)
		m.queue.set(p, time.Time{})
		for _, pr := range p.probes {
			m.do(Answered{ID: pr.id, Path: mesh.Path{Kind: mesh.PathNone, Reason: "no such peer"}})
		}
	}
}

func (m *Machine) setLocal(e SetLocal) {
	e.Endpoints = slices.Clone(e.Endpoints)
	moved := !slices.Equal(e.Endpoints, m.local.Endpoints)
	turned := m.local.UDP != e.UDP || m.local.V6 != e.V6 || m.localAt.IsZero()
	m.local, m.localAt = e, m.now
	for _, p := range m.order {
		looking := p.active(m.now) && !p.trusted(m.now)
		if moved && looking {
			p.called = time.Time{}
		}
		if p.wantCall {
			m.sendCall(p)
		}
		if (moved || turned) && looking {
			p.retry()
			m.settle(p)
		} else if turned || p.index >= 0 {
			m.settle(p)
		}
	}
}

// onRebind doubts every direct path and looks for new ones to peers in use.
func (m *Machine) onRebind() {
	m.localAt = time.Time{}
	m.asked = m.now
	m.do(Restun{})
	for _, p := range m.order {
		for len(p.out) > 0 {
			m.forgetPing(p, 0)
		}
		p.trustUntil = time.Time{}
		p.heardNow(m.now)
		p.called = time.Time{}
		if p.best != nil {
			p.best.asked = time.Time{}
		}
		p.retry()
		m.settle(p)
	}
}

func (m *Machine) onRelayGone(e RelayGone) {
	p := m.peers[e.Peer]
	if p == nil || e.Region == 0 {
		return
	}
	if e.Region == p.home {
		p.homeGone = true
	}
	if e.Region == p.lastRelay {
		p.lastRelay = 0
	}
	m.settle(p)
}

func (m *Machine) onProbe(e Probe) {
	p := m.peers[e.Peer]
	reason := ""
	switch {
	case p == nil:
		reason = "no such peer"
	case p.disco.IsZero():
		reason = "the peer has no disco key, so it cannot be asked"
	case len(p.probes) >= maxProbes:
		reason = "too many pings of this peer at once"
	}
	if reason != "" {
		m.do(Answered{ID: e.ID, Path: mesh.Path{Kind: mesh.PathNone, Reason: reason}})
		return
	}
	p.probes = append(p.probes, probe{e.ID, m.now})
	m.use(p)
	if p.best != nil {
		m.ping(p, p.best)
	}
	if r := p.region(); r != 0 && !p.trusted(m.now) {
		m.sendPing(p, Source{Region: r, Node: p.key})
	}
	m.settle(p)
}
