package underlay

import (
	"context"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/path"

	"tailscale.com/types/key"
)

const (
	stunEvery   = 20 * time.Second // plus up to stunJitter, while packets flow
	stunJitter  = 6 * time.Second
	stunRetry   = 60 * time.Second // while UDP does not work
	stunFull    = 5 * time.Minute  // all regions are measured that often
	activeAfter = 45 * time.Second // a mesh without traffic for so long is idle
	peerAddrs   = 32               // addresses remembered per peer

	// Whoever hears of a path looks at all of them, of which a thousand may change one
	// by one: he rests for so many times as long as that took, but not for long.
	pathRest = 10
	mostRest = 250 * time.Millisecond
)

// loop is the state of Run's goroutine.
type loop struct {
	u      *Underlay
	ctx    context.Context
	relays sync.WaitGroup

	netmap *mesh.Netmap
	key    key.NodePrivate
	node   key.NodePublic // of key; zero: there is none
	facts  host.Facts
	disco  map[key.DiscoPublic]*key.DiscoShared // of peers; value nil: not yet computed

	measured  measurement
	measuring bool
	again     bool      // another round was asked for while measuring
	lastFull  time.Time // zero: never, or out of date
	nextSTUN  time.Time // zero: not planned
	active    time.Time // of the last traffic
	latency   map[int]time.Duration
	mapped    []netip.AddrPort

	probes    map[uint64]probe
	lastProbe uint64
}

// Run does everything until ctx ends; then it closes the sockets and relays
// and returns nil. It may be called once.
func (u *Underlay) Run(ctx context.Context) error {
	if u.started.Swap(true) {
		return net.ErrClosed
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &loop{u: u, ctx: ctx, disco: map[key.DiscoPublic]*key.DiscoShared{},
		latency: map[int]time.Duration{}, probes: map[uint64]probe{}}
	var helpers sync.WaitGroup
	helpers.Go(func() { u.measureLoop(ctx) })
	helpers.Go(func() { u.notifyLoop(ctx) })
	helpers.Go(func() { u.portMapLoop(ctx) })
	if u.conduit != nil {
		helpers.Go(u.carryLoop)
		helpers.Go(u.injectLoop)
		l.adopt()
	}
	u.startRunning()
	signal(u.stateSignal)

	l.run()
	l.leave()
	cancel()
	l.relays.Wait()
	close(u.done)
	u.stopRunning()
	u.closeSockets()
	helpers.Wait()
	return nil
}

// notifyLoop calls Config's functions, so that they may take their time.
func (u *Underlay) notifyLoop(ctx context.Context) {
	for {
		select {
		case <-u.stateSignal:
			if u.cfg.OnState != nil {
				u.cfg.OnState(u.State())
			}
		case <-u.pathSignal:
			if u.cfg.OnPath != nil {
				began := time.Now()
				u.cfg.OnPath()
				pause(ctx, min(pathRest*time.Since(began), mostRest))
			}
		case <-ctx.Done():
			return
		}
	}
}

func (l *loop) run() {
	u := l.u
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(l.wait())
		select {
		case <-l.ctx.Done():
			return
		case <-u.wake:
			l.look()
		case p := <-u.inbound:
			l.takeDisco(p)
			u.free(p)
		case e := <-u.hints:
			l.hint(e)
		case m := <-u.results:
			l.takeMeasurement(m)
		case l.mapped = <-u.mapped:
			l.publish()
		case p := <-u.probes:
			l.lastProbe++
			l.probes[l.lastProbe] = p
			l.step(path.Probe{Peer: p.peer, ID: l.lastProbe})
		case <-timer.C:
		}
		l.tick()
	}
}

// wait is the time until something is due; an hour if nothing is.
func (l *loop) wait() time.Duration {
	now := l.u.cfg.Now()
	wait := time.Hour
	l.u.machineMu.Lock()
	wake := l.u.machine.Wake()
	l.u.machineMu.Unlock()
	for _, t := range []time.Time{wake, l.nextSTUN} {
		if !t.IsZero() {
			wait = min(wait, max(t.Sub(now), 0))
		}
	}
	return wait
}

func (l *loop) tick() {
	now := l.u.cfg.Now()
	l.u.machineMu.Lock()
	wake := l.u.machine.Wake()
	l.u.machineMu.Unlock()
	if !wake.IsZero() && !now.Before(wake) {
		l.step(path.Tick{})
	}
	if !l.nextSTUN.IsZero() && !now.Before(l.nextSTUN) {
		l.nextSTUN = time.Time{}
		l.orderRound()
	}
}

// step gives the machine an event and does what it answers.
func (l *loop) step(e path.Event) {
	l.u.machineMu.Lock()
	actions := l.u.machine.Step(l.u.cfg.Now(), e)
	l.u.machineMu.Unlock()
	for _, a := range actions {
		l.do(a)
	}
}

func (l *loop) hint(e path.Event) {
	switch e.(type) {
	case path.Sent, path.Received:
		l.active = l.u.cfg.Now()
		if l.nextSTUN.IsZero() && !l.measuring {
			l.planSTUN()
		}
	}
	l.step(e)
}

// look takes the newest netmap and facts.
func (l *loop) look() {
	u := l.u
	u.mu.Lock()
	netmap, k, facts, roams := u.netmap, u.key, u.facts, u.roams
	u.facts, u.roams = nil, nil
	u.mu.Unlock()
	for k, to := range roams { // of new peers too: the machine wants to know before it meets them
		l.takeRoam(k, to)
	}
	if facts != nil {
		l.takeFacts(*facts)
	}
	if netmap != nil && (netmap != l.netmap || !k.Equal(l.key)) {
		l.takeNetmap(netmap, k)
	}
}

func (l *loop) takeFacts(f host.Facts) {
	first := len(l.facts.Interfaces) == 0
	moved := !first && !slices.Equal(wan(l.facts), wan(f))
	l.facts = f
	l.u.learned.Add(1)
	select { // only the newest gateway counts
	case <-l.u.gateway:
	default:
	}
	l.u.gateway <- gatewayOf(f)
	l.publish()
	if !moved {
		return
	}
	ours := map[netip.Addr]bool{}
	for _, i := range f.Interfaces {
		for _, p := range i.Addrs {
			ours[p.Addr()] = true
		}
	}
	for _, r := range *l.u.relays.Load() {
		r.leave(ours)
	}
	l.step(path.Rebind{})
	l.lastFull = time.Time{}
	l.orderRound()
}

func (l *loop) takeNetmap(m *mesh.Netmap, k key.NodePrivate) {
	old := l.netmap
	keyChanged := !k.Equal(l.key)
	l.netmap, l.key = m, k
	if keyChanged {
		l.node = key.NodePublic{}
		if !k.IsZero() {
			l.node = k.Public()
		}
	}
	l.setRelays(keyChanged)
	peers := l.setPeers()
	l.step(path.SetPeers{Peers: peers})
	if old == nil || keyChanged || !slices.EqualFunc(old.Relays, m.Relays, sameRegion) {
		l.lastFull = time.Time{}
		l.orderRound()
	}
}

func sameRegion(a, b mesh.RelayRegion) bool {
	return a.ID == b.ID && a.NoMeasure == b.NoMeasure && slices.Equal(a.Nodes, b.Nodes)
}

// setPeers makes the data plane's peers anew, keeping what is known of those
// that stay, and returns the peers that may be spoken to.
func (l *loop) setPeers() []mesh.Node {
	u := l.u
	old := *u.peers.Load()
	peers := make(map[key.NodePublic]*peer, len(l.netmap.Peers))
	disco := make(map[key.DiscoPublic]*key.DiscoShared, len(l.netmap.Peers))
	addrs := map[netip.AddrPort]*peer{}
	var valid []mesh.Node
	now := u.cfg.Now().Add(l.netmap.ClockSkew)
	for _, n := range l.netmap.Peers {
		if n.Key.IsZero() || n.ExpiredAt(now) {
			continue
		}
		valid = append(valid, n)
		p := old[n.Key]
		if p == nil {
			p = u.newPeer(n.Key)
		}
		p.home.Store(int32(n.HomeRelay))
		peers[n.Key] = p
		if !n.Disco.IsZero() {
			disco[n.Disco] = l.disco[n.Disco]
		}
		for _, a := range p.addrs {
			addrs[a] = p
		}
	}
	l.disco = disco
	u.peers.Store(&peers)
	u.addrs.Store(&addrs)
	if u.conduit != nil {
		u.conduit.keep(peers)
	}
	return valid
}

func (u *Underlay) newPeer(k key.NodePublic) *peer {
	if u.conduit != nil {
		return u.conduit.peer(k)
	}
	return &peer{key: k}
}

// setRelays ends relays that are gone or changed and starts new ones. None is
// used before the netmap knows us by the key that relays will see.
func (l *loop) setRelays(keyChanged bool) {
	u := l.u
	old := *u.relays.Load()
	now := map[int]*relay{}
	if !l.key.IsZero() && l.netmap.Self.Key == l.node {
		for _, r := range l.netmap.Relays {
			if !hasRelay(r) || r.ID <= 0 {
				continue
			}
			if o := old[r.ID]; o != nil && !keyChanged && slices.Equal(o.region.Nodes, r.Nodes) {
				now[r.ID] = o
				continue
			}
			ctx, cancel := context.WithCancel(l.ctx)
			fresh := u.newRelay(r, l.key, cancel)
			fresh.home.Store(r.ID == u.State().HomeRelay)
			now[r.ID] = fresh
			l.relays.Go(func() { fresh.run(ctx) })
		}
	}
	u.relays.Store(&now)
	for id, r := range old {
		if now[id] != r {
			r.cancel()
		}
	}
}

// orderRound asks for a STUN round, or for another after the one under way.
func (l *loop) orderRound() {
	if l.netmap == nil || len(l.netmap.Relays) == 0 {
		return
	}
	if l.measuring {
		l.again = true
		return
	}
	full := l.lastFull.IsZero() || l.u.cfg.Now().Sub(l.lastFull) >= stunFull || !l.measured.udp
	regions := l.netmap.Relays
	if !full {
		regions = nearest(l.u.State().HomeRelay, regions, l.latency)
	}
	if full {
		l.lastFull = l.u.cfg.Now()
	}
	l.measuring, l.nextSTUN = true, time.Time{}
	l.u.measure <- measureOrder{regions: slices.Clone(regions), full: full} // one slot, and it is empty
}

func (l *loop) takeMeasurement(m measurement) {
	l.measuring = false
	if !m.full {
		m.varies = m.varies || (m.servers < 2 && l.measured.varies)
	} else {
		l.latency = map[int]time.Duration{}
	}
	l.measured = m
	maps.Copy(l.latency, m.latency)
	l.publish()
	l.planSTUN()
	if l.again {
		l.again = false
		l.orderRound()
	}
}

// planSTUN sets the next round: soon while packets flow or UDP fails, never
// while idle.
func (l *loop) planSTUN() {
	now := l.u.cfg.Now()
	switch {
	case l.measured.asked && !l.measured.udp:
		l.nextSTUN = now.Add(stunRetry/2 + rand.N(stunRetry/2))
	case !l.active.IsZero() && now.Sub(l.active) < activeAfter:
		l.nextSTUN = now.Add(stunEvery + rand.N(stunJitter))
	default:
		l.nextSTUN = time.Time{}
	}
}

// publish works out the state anew and tells whom it concerns.
func (l *loop) publish() {
	u := l.u
	old := u.State()
	s := State{
		Port: u.port, HomeRelay: old.HomeRelay, UDP: l.measured.udp || !l.measured.asked,
		V6: l.measured.v6.IsValid(), MappingVaries: l.measured.varies, Latency: maps.Clone(l.latency),
		Endpoints: endpoints(l.facts, l.netmap, l.measured, l.mapped, u.port, u.v4 != nil, u.v6 != nil),
	}
	if l.netmap != nil {
		s.HomeRelay = chooseHome(old.HomeRelay, l.netmap.Relays, l.latency)
	}
	u.notifyMu.Lock()
	u.state = s
	u.notifyMu.Unlock()
	for id, r := range *u.relays.Load() {
		r.setHome(id == s.HomeRelay)
	}
	if sameState(old, s) {
		return
	}
	local := path.SetLocal{UDP: s.UDP, V6: s.V6}
	for _, e := range s.Endpoints {
		local.Endpoints = append(local.Endpoints, e.Addr)
		local.V6 = local.V6 || e.Addr.Addr().Is6()
	}
	l.step(local)
	signal(u.stateSignal)
}

// sameState compares all but Latency, which changes with every round.
func sameState(a, b State) bool {
	return a.Port == b.Port && a.HomeRelay == b.HomeRelay && a.UDP == b.UDP && a.V6 == b.V6 &&
		a.MappingVaries == b.MappingVaries && slices.Equal(a.Endpoints, b.Endpoints)
}
