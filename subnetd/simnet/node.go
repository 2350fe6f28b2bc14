package simnet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"subnetd/subnetd/mesh"
	"subnetd/subnetd/path"

	"tailscale.com/types/key"
)

const (
	stunWait   = 500 * time.Millisecond // then a round is over
	stunRetry  = 100 * time.Millisecond // between the requests of a round
	stunTries  = 3
	stunEvery  = 23 * time.Second // while there is traffic
	activeFor  = 45 * time.Second // after the last traffic
	keepalive  = 10 * time.Second // WireGuard's, after data that nobody answered
	netmapTime = 200 * time.Millisecond
	hintEvery  = time.Second // the machine is told of data so often, by peer and kind
)

// Node is a host with a path machine: what subnetd's underlay is in the world.
type Node struct {
	Name string
	Key  key.NodePublic
	Host *Host

	sim     *Sim
	machine *path.Machine
	disco   key.DiscoPublic
	number  uint32
	starts  uint32 // how often it was started
	txs     uint32
	home    *relay
	met     []*Node
	use     map[key.NodePublic]path.Use
	flows   map[key.NodePublic]*Flow
	kernel  *kernel // carries the data; nil: this process does
	hinted  map[hint]time.Time
	armed   time.Time // of the Tick that is on its way; zero: none
	actions int

	endpoints []netip.AddrPort // as last told to the machine
	round     int              // of STUN
	heard     []netip.AddrPort // what STUN said in this round
	measuring bool
	planned   bool // the next round is
	active    time.Time
}

// Flow is what a node saw of its data to a peer, which the peer sends back.
type Flow struct {
	Sent, Back int           // each packet counts once
	Direct     int           // of those back: not over a relay
	Gap        time.Duration // longest time without one back
	Moves      int           // changes of the way
	Uses       int           // how often the way was said

	last     time.Time
	kept     time.Time // last keepalive
	seen     map[uint64]bool
	transfer *transfer // nil: none was begun
}

// The messages of nodes to one another; sealed ones name the receiver's key.
type (
	ping struct {
		to, from key.DiscoPublic
		tx       path.TxID
		node     key.NodePublic
	}
	pong struct {
		to, from key.DiscoPublic
		tx       path.TxID
		src      netip.AddrPort
	}
	call struct {
		to, from  key.DiscoPublic
		endpoints []netip.AddrPort
	}
	data struct {
		from key.NodePublic
		n    uint64
		kind kind
	}
)

// kind is what data is for.
type kind int

const (
	question kind = iota // to be answered
	answer
	stream // nobody answers but WireGuard itself
	alive
	segment // of a transfer
	ack
)

// hint is what the machine is told of data: who, and which way.
type hint struct {
	peer key.NodePublic
	what string
}

// Node makes a node of the host, at home on that relay.
func (s *Sim) Node(name string, h *Host, region int) *Node {
	s.count++
	n := &Node{Name: name, Host: h, sim: s, number: uint32(s.count), home: s.relays[region], flows: map[key.NodePublic]*Flow{}}
	must(n.Key.UnmarshalText(fmt.Appendf(nil, "nodekey:%s", digits(n.number, 0))))
	h.Receive = func(p Packet) { n.take(path.Source{Addr: p.From}, p.Data) }
	n.home.clients[n.Key] = n
	n.Restart()
	return n
}

// Restart is what a restart of the daemon is: a new disco key, and nothing known.
func (n *Node) Restart() {
	n.starts++
	must(n.disco.UnmarshalText(fmt.Appendf(nil, "discokey:%s", digits(n.number, n.starts))))
	n.machine = path.New(path.Config{NewTxID: n.newTxID})
	n.use = map[key.NodePublic]path.Use{}
	n.hinted = map[hint]time.Time{}
	n.adopt()
	n.endpoints, n.armed, n.planned = nil, time.Time{}, false
	n.netmap()
	n.publish()
	n.measure()
}

// digits are the 32 bytes of a key, in hex.
func digits(a, b uint32) string { return strings.Repeat(fmt.Sprintf("%08x%08x", a, b+1), 4) }

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func (n *Node) newTxID() (tx path.TxID) {
	n.txs++
	binary.BigEndian.PutUint32(tx[4:], n.number)
	binary.BigEndian.PutUint32(tx[8:], n.txs)
	return tx
}

// Meet makes the two peers.
func (n *Node) Meet(o *Node) {
	n.met, o.met = append(n.met, o), append(o.met, n)
	n.netmap()
	o.netmap()
}

// netmap tells the machine what the coordinator says now.
func (n *Node) netmap() {
	var peers []mesh.Node
	for _, o := range n.met {
		peers = append(peers, mesh.Node{ID: mesh.NodeID(o.number), Key: o.Key, Disco: o.disco, HomeRelay: o.home.region, Endpoints: o.endpoints})
	}
	n.step(path.SetPeers{Peers: peers})
}

// publish has the coordinator tell the peers of what is new here.
func (n *Node) publish() {
	if n.sim.Mute {
		return
	}
	n.sim.After(netmapTime, func() {
		for _, o := range n.met {
			o.netmap()
		}
	})
}

// Rebind says to the node that its address changed.
func (n *Node) Rebind() { n.step(path.Rebind{}) }

// Path returns the node's way to the peer.
func (n *Node) Path(o *Node) mesh.Path { return n.machine.Path(o.Key) }

// Direct reports whether data goes to the peer directly, and only so.
func (n *Node) Direct(o *Node) bool {
	p := n.Path(o)
	return p.Kind == mesh.PathDirect && p.Relay == 0
}

// Actions returns how much the machine has wanted to be done so far.
func (n *Node) Actions() int { return n.actions }

// Wake returns when the machine wants a Tick; zero: never.
func (n *Node) Wake() time.Time { return n.machine.Wake() }

// Flow returns what became of the data to the peer.
func (n *Node) Flow(o *Node) *Flow {
	f := n.flows[o.Key]
	if f == nil {
		f = &Flow{last: n.sim.now, seen: map[uint64]bool{}}
		n.flows[o.Key] = f
	}
	return f
}

// Talk sends data to the peer every so often, which is answered; the func
// returned ends that.
func (n *Node) Talk(o *Node, every time.Duration) (stop func()) {
	return n.repeat(o, every, question)
}

// Stream is Talk without answers. The flow of the peer counts what came.
func (n *Node) Stream(o *Node, every time.Duration) (stop func()) {
	o.Flow(n).last = n.sim.now
	return n.repeat(o, every, stream)
}

func (n *Node) repeat(o *Node, every time.Duration, k kind) (stop func()) {
	stopped := false
	n.Flow(o).last = n.sim.now
	var next func()
	next = func() {
		if stopped {
			return
		}
		f := n.Flow(o)
		f.Sent++
		n.sendData(o.Key, data{n.Key, uint64(f.Sent), k})
		n.sim.After(every, next)
	}
	n.sim.After(0, next)
	return func() { stopped = true }
}

func (n *Node) sendData(to key.NodePublic, d data) {
	n.busy()
	if n.kernel != nil && n.kernel.send(to, d) {
		return
	}
	n.hint("sent", to, path.Sent{Peer: to})
	use := n.use[to]
	if use.Addr.IsValid() {
		n.Host.Send(use.Addr, d)
	}
	if use.Region != 0 {
		n.sim.relays[use.Region].send(n, to, d)
	}
}

// hint tells the machine of data, if that was not told just now.
func (n *Node) hint(what string, peer key.NodePublic, e path.Event) {
	h := hint{peer, what}
	if last, told := n.hinted[h]; told && n.sim.now.Sub(last) < hintEvery {
		return
	}
	n.hinted[h] = n.sim.now
	n.step(e)
}

// step gives the machine an event, does what it answers, and sees to it that
// it is woken.
func (n *Node) step(e path.Event) {
	for _, a := range n.machine.Step(n.sim.now, e) {
		n.actions++
		n.do(a)
	}
	wake := n.machine.Wake()
	if wake.IsZero() || !n.armed.IsZero() && !n.armed.After(wake) {
		return
	}
	n.armed = wake
	n.sim.After(wake.Sub(n.sim.now), func() {
		if n.armed.Equal(wake) {
			n.armed = time.Time{}
			n.step(path.Tick{})
		}
	})
}

func (n *Node) do(a path.Action) {
	switch a := a.(type) {
	case path.SendPing:
		n.send(a.Peer, a.To, ping{a.Disco, n.disco, a.TxID, n.Key})
	case path.SendPong:
		n.send(a.Peer, a.To, pong{a.Disco, n.disco, a.TxID, a.Src})
	case path.SendCallMeMaybe:
		n.send(a.Peer, path.Source{Region: a.Region}, call{a.Disco, n.disco, a.Endpoints})
	case path.Use:
		if f := n.flows[a.Peer]; f != nil {
			f.Uses++
			if old := n.use[a.Peer]; old.Addr != a.Addr || old.Region != a.Region {
				f.Moves++
			}
		}
		n.use[a.Peer] = a
		if n.kernel != nil {
			n.kernel.pin(a)
		}
	case path.Restun:
		n.sim.After(0, n.measure)
	}
}

func (n *Node) send(to key.NodePublic, way path.Source, message any) {
	if way.Addr.IsValid() {
		n.Host.Send(way.Addr, message)
	} else {
		n.sim.relays[way.Region].send(n, to, message)
	}
}

// take is given everything that comes. What was sealed for another key cannot
// be opened.
func (n *Node) take(from path.Source, message any) {
	switch m := message.(type) {
	case ping:
		if m.to == n.disco {
			n.step(path.Ping{From: from, Sender: m.from, TxID: m.tx, Node: m.node})
		}
	case pong:
		if m.to == n.disco {
			n.step(path.Pong{From: from, Sender: m.from, TxID: m.tx, Src: m.src})
		}
	case call:
		if m.to == n.disco {
			n.step(path.CallMeMaybe{From: from, Sender: m.from, Endpoints: m.endpoints})
		}
	case stunTell:
		n.takeSTUN(m)
	case data:
		n.takeData(from, m)
	}
}

func (n *Node) takeData(from path.Source, m data) {
	n.busy()
	switch e := (path.Received{Peer: m.from, From: from}); {
	case !from.Addr.IsValid():
		n.hint("relayed", m.from, e)
	case n.kernel == nil:
		n.hint("direct", m.from, e)
	}
	if n.kernel != nil {
		n.kernel.receive(m.from, from.Addr)
	}
	switch m.kind {
	case question:
		n.sendData(m.from, data{n.Key, m.n, answer})
	case answer:
		n.count(m, from)
	case stream:
		n.count(m, from)
		if f := n.flows[m.from]; n.sim.now.Sub(f.kept) >= keepalive {
			f.kept = n.sim.now
			n.sendData(m.from, data{n.Key, 0, alive})
		}
	case segment, ack:
		n.flows[m.from].transfer.take(m, from)
	}
}

// count notes data that came back, the first time it does.
func (n *Node) count(d data, from path.Source) {
	f := n.flows[d.from]
	if f == nil || f.seen[d.n] {
		return
	}
	f.seen[d.n] = true
	f.Back++
	if from.Addr.IsValid() {
		f.Direct++
	}
	f.Gap = max(f.Gap, n.sim.now.Sub(f.last))
	f.last = n.sim.now
}

// busy notes traffic: while there is some, STUN keeps the endpoints fresh.
func (n *Node) busy() {
	n.active = n.sim.now
	if !n.planned && !n.measuring {
		n.plan()
	}
}

func (n *Node) plan() {
	n.planned = true
	n.sim.After(stunEvery, func() {
		n.planned = false
		if n.sim.now.Sub(n.active) < activeFor {
			n.measure()
		}
	})
}

// measure starts a round of STUN.
func (n *Node) measure() {
	n.round++
	n.heard, n.measuring = nil, true
	round := n.round
	ask := func() {
		if round != n.round || !n.measuring {
			return
		}
		for _, a := range stunAddrs(n.home.region) {
			n.Host.Send(netip.AddrPortFrom(netip.MustParseAddr(a), Port), stunAsk{round})
		}
	}
	for i := range stunTries {
		n.sim.After(time.Duration(i)*stunRetry, ask)
	}
	n.sim.After(stunWait, func() {
		if round == n.round && n.measuring {
			n.measured()
		}
	})
}

// takeSTUN ends the round when every family has answered.
func (n *Node) takeSTUN(m stunTell) {
	if m.round != n.round || !n.measuring || slices.Contains(n.heard, m.addr.Addr) {
		return
	}
	n.heard = append(n.heard, m.addr.Addr)
	if len(n.heard) >= len(n.Host.addrs) {
		n.measured()
	}
}

func (n *Node) measured() {
	n.measuring = false
	own := slices.Clone(n.heard)
	slices.SortFunc(own, func(a, b netip.AddrPort) int { return a.Addr().Compare(b.Addr()) }) // IPv4 first
	for _, a := range n.Host.Addrs() {
		if !slices.Contains(own, a) {
			own = append(own, a)
		}
	}
	v6 := slices.ContainsFunc(n.heard, func(a netip.AddrPort) bool { return a.Addr().Is6() })
	n.step(path.SetLocal{Endpoints: own, UDP: len(n.heard) > 0, V6: v6})
	if !slices.Equal(own, n.endpoints) {
		n.endpoints = own
		n.publish()
	}
	if n.sim.now.Sub(n.active) < activeFor && !n.planned {
		n.plan()
	}
}
