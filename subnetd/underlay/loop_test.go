package underlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/path"

	"github.com/google/go-cmp/cmp"
	"tailscale.com/types/key"
)

// recorder stands where the path machine stands, notes what it is told, and
// answers what the test wants.
type recorder struct {
	mu      sync.Mutex
	events  []path.Event
	answers []path.Action
	told    chan struct{} // one slot
}

func record(u *Underlay) *recorder {
	r := &recorder{told: make(chan struct{}, 1)}
	u.machine = r
	return r
}

func (r *recorder) Step(_ time.Time, e path.Event) []path.Action {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	signal(r.told)
	answers := r.answers
	r.answers = nil
	return answers
}

// say is what the machine answers to the next event.
func (r *recorder) say(answers ...path.Action) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers = answers
}

func (r *recorder) Wake() time.Time               { return time.Time{} }
func (r *recorder) Path(key.NodePublic) mesh.Path { return mesh.Path{} }

// next are the kinds of the next count events.
func (r *recorder) next(t testing.TB, count int) []string {
	t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		r.mu.Lock()
		if len(r.events) >= count {
			var kinds []string
			for _, e := range r.events {
				kinds = append(kinds, fmt.Sprintf("%T", e))
			}
			r.events = nil
			r.mu.Unlock()
			return kinds
		}
		r.mu.Unlock()
		select {
		case <-r.told:
		case <-timeout.C:
			t.Fatalf("the machine was not told %d things", count)
		}
	}
}

// What facts mean to the machine: new endpoints always, doubt in all paths only
// when the way out changed.
func TestFactsEvents(t *testing.T) {
	noLeak(t)
	var r *recorder
	n := startNode(t, func(u *Underlay) { r = record(u) })
	facts := func(lan, wan, gateway string) host.Facts {
		return host.Facts{Interfaces: []host.Interface{iface("br-lan", true, lan), iface("wan", true, wan)},
			Defaults: []host.Default{{Interface: "wan", Gateway: netip.MustParseAddr(gateway)}}}
	}
	steps := []struct {
		name  string
		facts host.Facts
		want  []string
	}{
		{"first", facts("192.168.1.1/24", "203.0.113.7/24", "127.0.0.1"), []string{"path.SetLocal"}},
		{"LAN changes", facts("192.168.2.1/24", "203.0.113.7/24", "127.0.0.1"), []string{"path.SetLocal"}},
		{"WAN changes", facts("192.168.2.1/24", "203.0.113.8/24", "127.0.0.1"), []string{"path.SetLocal", "path.Rebind"}},
		{"gateway changes", facts("192.168.2.1/24", "203.0.113.8/24", "127.0.0.2"), []string{"path.Rebind"}},
		{"LAN and WAN change", facts("192.168.3.1/24", "203.0.113.9/24", "127.0.0.2"), []string{"path.SetLocal", "path.Rebind"}},
	}
	for _, s := range steps {
		n.SetFacts(s.facts)
		if diff := cmp.Diff(s.want, r.next(t, len(s.want))); diff != "" {
			t.Fatalf("%s: %s", s.name, diff)
		}
	}
}

// The data plane tells the machine of traffic once a second, not per packet.
func TestHintsAreFew(t *testing.T) {
	u := &Underlay{hints: make(chan path.Event, 10)}
	now := time.Unix(1000, 0)
	u.cfg.Now, u.start = func() time.Time { return now }, now
	p := &peer{key: key.NewNode().Public()}
	for range 5 {
		u.noteSent(p)
		u.noteReceived(p, path.Source{Region: 1})
	}
	if len(u.hints) != 2 {
		t.Fatalf("%d hints in the first instant, want 2", len(u.hints))
	}
	now = now.Add(999 * time.Millisecond)
	u.noteSent(p)
	if len(u.hints) != 2 {
		t.Fatalf("%d hints within a second, want 2", len(u.hints))
	}
	now = now.Add(time.Millisecond)
	u.noteSent(p)
	u.noteReceived(p, path.Source{Region: 1})
	if len(u.hints) != 4 {
		t.Fatalf("%d hints after a second, want 4", len(u.hints))
	}
	// A peer that sends both ways doubts the direct one: each is told by itself.
	u.noteReceived(p, path.Source{Addr: netip.MustParseAddrPort("203.0.113.7:700")})
	if len(u.hints) != 5 {
		t.Fatal("data over the relay hides direct data")
	}
}

// Nobody who brings packets may ever wait: what does not fit is dropped.
func TestQueueBounds(t *testing.T) {
	u, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	from := path.Source{Addr: netip.MustParseAddrPort("203.0.113.7:700")}
	for range cap(u.inbound) + 10 {
		u.takeDisco(from, discoBytes())
	}
	for range cap(u.stunIn) + 10 {
		u.takeSTUN(stunAnswer())
	}
	for range cap(u.hints) + 10 {
		u.hint(path.Rebind{})
	}
	sender := key.NewNode().Public()
	u.peers.Store(&map[key.NodePublic]*peer{sender: {key: sender}})
	r := u.newRelay(mesh.RelayRegion{ID: 1}, key.NewNode(), func() {})
	for range cap(u.relayIn) + 10 {
		r.received(sender, wireGuard("x"))
	}
	r.received(key.NewNode().Public(), wireGuard("from a stranger"))
	r.received(sender, make([]byte, packetSize+1))
	for i := range relayQueue + 10 {
		r.enqueue(sender, []byte{byte(i)})
	}
	r.enqueue(sender, make([]byte, packetSize+1))
	for name, c := range map[string][2]int{
		"inbound": {len(u.inbound), cap(u.inbound)}, "stunIn": {len(u.stunIn), cap(u.stunIn)},
		"hints": {len(u.hints), cap(u.hints)}, "relayIn": {len(u.relayIn), cap(u.relayIn)}, "relay": {len(r.queue), relayQueue},
	} {
		if c[0] != c[1] {
			t.Errorf("%s holds %d, has room for %d", name, c[0], c[1])
		}
	}
	for want := 10; len(r.queue) > 0; want++ { // what is fresh is worth more: the oldest went
		if p := <-r.queue; int(p.data[0]) != want || p.peer != sender {
			t.Fatalf("packet %d in the relay's queue, want %d", p.data[0], want)
		}
	}
}

// A peer that comes from ever new addresses does not fill the memory.
func TestMapAddr(t *testing.T) {
	a, b := key.NewNode().Public(), key.NewNode().Public()
	l := bareLoop(a, key.NewDisco().Public())
	pa, pb := &peer{key: a}, &peer{key: b}
	l.u.peers.Store(&map[key.NodePublic]*peer{a: pa, b: pb})
	at := func(port int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, 7}), uint16(port))
	}
	owner := func(port int) *peer { return (*l.u.addrs.Load())[at(port)] }
	for i := range 2 * peerAddrs {
		l.mapAddr(path.Map{Addr: at(1 + i), Peer: a})
	}
	if n := len(*l.u.addrs.Load()); n != peerAddrs || len(pa.addrs) != peerAddrs {
		t.Fatalf("%d addresses, of the peer %d; want %d", n, len(pa.addrs), peerAddrs)
	}
	if owner(1) != nil || owner(2*peerAddrs) != pa {
		t.Fatal("not the oldest was forgotten")
	}
	l.mapAddr(path.Map{Addr: at(2 * peerAddrs), Peer: b})
	if owner(2*peerAddrs) != pb || len(pa.addrs) != peerAddrs-1 || len(pb.addrs) != 1 {
		t.Fatalf("the address did not move: a has %d, b %d", len(pa.addrs), len(pb.addrs))
	}
	l.mapAddr(path.Map{Addr: at(2 * peerAddrs), Peer: key.NewNode().Public()}) // a peer that has just gone
	if owner(2*peerAddrs) != nil || len(pb.addrs) != 0 {
		t.Fatal("the address of nobody is still b's")
	}
}

func TestReceiverGenerations(t *testing.T) {
	noLeak(t)
	a, b := pairWithoutReaders(t)
	send := func(data string) {
		t.Helper()
		if err := a.Send(b.key.Public(), [][]byte{wireGuard(data)}); err != nil {
			t.Fatal(err)
		}
	}
	b.read()
	send("one")
	b.next()
	first, port, err := b.Open() // ends the receivers of read
	if err != nil || port != b.loopback().Port() {
		t.Fatalf("port %d, %v", port, err)
	}
	if err := b.CloseReceivers(); err != nil {
		t.Fatal(err)
	}
	if err := b.CloseReceivers(); err != nil { // WireGuard closes twice when it starts
		t.Fatal(err)
	}
	for i, f := range first {
		if _, err := f(make([][]byte, 1), make([]int, 1), make([]key.NodePublic, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed receiver %d: %v", i, err)
		}
	}
	if got, err := a.Ping(t.Context(), b.key.Public()); err != nil || got.Kind != mesh.PathDirect {
		t.Fatalf("nobody reads disco while the receivers are closed: %+v, %v", got, err)
	}
	b.read()
	send("two")
	if got := b.next(); got.data != string(wireGuard("two")) {
		t.Fatalf("got %q", got.data)
	}
	b.end()
	if _, _, err := b.Open(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Open after the end: %v", err)
	}
}

func pairWithoutReaders(t *testing.T) (a, b *node) {
	a, b = startNode(t, nil), startNode(t, nil)
	b.know(nil, a.as(1, 0))
	a.know(nil, b.as(2, 0, b.loopback()))
	a.goDirect(b)
	return a, b
}

// Opening and closing under load neither loses the sockets nor hangs.
func TestReceiversHammered(t *testing.T) {
	noLeak(t)
	a, b := pairWithoutReaders(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			_ = a.Send(b.key.Public(), [][]byte{wireGuard("x"), wireGuard("y")})
		}
	})
	for i := range 50 {
		b.read()
		if i%2 == 0 {
			if err := b.CloseReceivers(); err != nil {
				t.Error(err)
			}
		}
		for len(b.got) > 0 {
			<-b.got
		}
	}
	cancel()
	wg.Wait()
}

func TestClose(t *testing.T) {
	noLeak(t)
	u, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	port := u.State().Port
	if port == 0 || u.Disco().IsZero() {
		t.Fatalf("port %d, disco %v", port, u.Disco())
	}
	if other, err := New(Config{Port: port}); err == nil {
		other.Close()
		t.Error("two on one port")
	}
	if err := u.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := New(Config{Port: port})
	if err != nil {
		t.Fatalf("the port was not given back: %v", err)
	}
	again.Close()

	n := startNode(t, nil)
	n.read() // it is running now
	if _, err := n.Ping(t.Context(), n.key.Public()); err == nil {
		t.Error("ping of nobody")
	}
	n.until("start", func() bool { return n.started.Load() })
	if n.Close() == nil {
		t.Error("closed while running")
	}
	n.end()
	if err := n.Run(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a second Run: %v", err)
	}
	after, err := New(Config{Port: n.port})
	if err != nil {
		t.Fatalf("Run did not give its port back: %v", err)
	}
	after.Close()
}
