package underlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"

	"tailscale.com/types/key"
)

// pair is two nodes on loopback of which only a knows where b is, once they
// have found a direct path both ways.
func pair(t testing.TB) (a, b *node) {
	t.Helper()
	a, b = startNode(t, nil), startNode(t, nil)
	a.read()
	b.read()
	b.know(nil, a.as(1, 0))
	a.know(nil, b.as(2, 0, b.loopback()))
	a.goDirect(b)
	b.until("a direct path back", func() bool { return b.pathTo(a).Kind == mesh.PathDirect })
	return a, b
}

// goDirect looks for a direct path to the peer.
func (n *node) goDirect(peer *node) {
	n.t.Helper()
	if _, err := n.Ping(n.t.Context(), peer.key.Public()); err != nil {
		n.t.Fatal(err)
	}
	n.until("a direct path", func() bool { return n.pathTo(peer).Kind == mesh.PathDirect })
}

// pathTo is the path that is in use: what the machine has just found the loop uses a moment later.
func (n *node) pathTo(peer *node) mesh.Path {
	k := peer.key.Public()
	found := n.Paths()[k]
	if p := (*n.peers.Load())[k]; found.Kind == mesh.PathDirect {
		if addr, _ := p.way(); !addr.IsValid() {
			return mesh.Path{}
		}
	}
	return found
}

func TestDirect(t *testing.T) {
	noLeak(t)
	a, b := pair(t)
	if got := a.pathTo(b).Addr; got != b.loopback() {
		t.Errorf("a reaches b at %s", got)
	}
	if got := b.pathTo(a).Addr; got != a.loopback() {
		t.Errorf("b reaches a at %s, which only the ping told", got)
	}
	for i, n := range []struct{ from, to *node }{{a, b}, {b, a}, {a, b}} {
		want := received{n.from.key.Public(), string(wireGuard(fmt.Sprint("packet ", i)))}
		if err := n.from.Send(n.to.key.Public(), [][]byte{[]byte(want.data)}); err != nil {
			t.Fatal(err)
		}
		if got := n.to.next(); got != want {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	}
}

// Data that cannot be sent yet is what makes the machine look for a path.
func TestSendFindsPath(t *testing.T) {
	noLeak(t)
	a, b := startNode(t, nil), startNode(t, nil)
	b.know(nil, a.as(1, 0))
	a.know(nil, b.as(2, 0, b.loopback()))
	if kind := a.pathTo(b).Kind; kind == mesh.PathDirect {
		t.Fatal("a direct path nobody asked for")
	}
	// On loopback the path may be found before Send looks for one.
	if err := a.Send(b.key.Public(), [][]byte{wireGuard("first")}); err != nil && !errors.Is(err, errNoPath) {
		t.Fatalf("the first packet: %v", err)
	}
	a.until("a direct path", func() bool { return a.pathTo(b).Kind == mesh.PathDirect })
}

// Batches arrive whole and in order, whatever the kernel joins and splits.
func TestDirectBatches(t *testing.T) {
	noLeak(t)
	a, b := pair(t)
	sizes := map[string][]int{
		"equal":            {1000, 1000, 1000, 1000},
		"last is shorter":  {1200, 1200, 300},
		"last is longer":   {300, 300, 1200},
		"mixed":            {64, 1400, 1400, 96, 32, 32, 32, 1},
		"one":              {1400},
		"more than joined": same(100, 500),
		"more than a call": same(300, 40),
		"large sum":        same(60, 1400),
	}
	for name, want := range sizes {
		t.Run(name, func(t *testing.T) {
			a.t, b.t = t, t
			var packets [][]byte
			for i, size := range want {
				p := make([]byte, size)
				p[0] = 4
				if size > 4 {
					p[4] = byte(i)
				}
				packets = append(packets, p)
			}
			if err := a.Send(b.key.Public(), packets); err != nil {
				t.Fatal(err)
			}
			for i, p := range packets {
				if got := b.next(); got.data != string(p) {
					t.Fatalf("packet %d: got %d bytes, want %d", i, len(got.data), len(p))
				}
			}
		})
	}
}

func same(n, size int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = size
	}
	return all
}

// A packet from an address nobody has claimed is handed on without a name: the
// engine decides by its keys.
func TestUnknownSender(t *testing.T) {
	noLeak(t)
	n := startNode(t, nil)
	n.read()
	conn, err := net.Dial("udp4", n.loopback().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, b := range [][]byte{stunAnswer(), discoBytes(), confused(4, 64)} { // only the last is WireGuard's
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if got := n.next(); !got.from.IsZero() || got.data != string(confused(4, 64)) {
		t.Fatalf("got %q from %s", got.data, got.from)
	}
	if len(n.got) > 0 {
		t.Fatalf("%d packets too many", len(n.got))
	}
}

func TestSendWithoutPath(t *testing.T) {
	noLeak(t)
	n := startNode(t, nil)
	stranger := key.NewNode().Public()
	if err := n.Send(stranger, [][]byte{wireGuard("x")}); !errors.Is(err, errNoPath) {
		t.Errorf("to a stranger: %v", err)
	}
	silent := mesh.Node{ID: 1, Key: stranger, Disco: key.NewDisco().Public()}
	n.know(nil, silent)
	if err := n.Send(stranger, [][]byte{wireGuard("x")}); !errors.Is(err, errNoPath) {
		t.Errorf("to a peer without addresses: %v", err)
	}
	n.until("a reason", func() bool { return strings.Contains(n.Paths()[stranger].Reason, "no addresses") })
	n.SetNetmap(&mesh.Netmap{Self: mesh.Node{Key: n.key.Public()}}, n.key)
	_, err := n.Ping(t.Context(), stranger)
	for ; err == nil; _, err = n.Ping(t.Context(), stranger) { // until the loop has taken the netmap
	}
	if n.Paths()[stranger].Kind != "" {
		t.Error("a peer that is gone has a path")
	}
}

func TestPing(t *testing.T) {
	noLeak(t)
	a, b := startNode(t, nil), startNode(t, nil)
	b.know(nil, a.as(1, 0))
	a.know(nil, b.as(2, 0, b.loopback())) // nobody has opened them: our own pump reads
	got, err := a.Ping(t.Context(), b.key.Public())
	if err != nil || got.Kind != mesh.PathDirect || got.Addr != b.loopback() || got.RTT <= 0 {
		t.Fatalf("got %+v, %v", got, err)
	}
	if _, err := a.Ping(t.Context(), key.NewNode().Public()); err == nil {
		t.Error("a stranger was pinged")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Ping(ended, b.key.Public()); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	b.end() // from now on nobody answers
	waiting := make(chan error, 1)
	go func() {
		_, err := a.Ping(t.Context(), b.key.Public())
		waiting <- err
	}()
	a.end()
	if err := <-waiting; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the end of Run during a ping: %v", err)
	}
}

// A peer whose key has expired is not spoken to.
func TestExpiredPeer(t *testing.T) {
	noLeak(t)
	a, b := pair(t)
	expired := b.as(2, 0, b.loopback())
	expired.KeyExpiry = time.Now().Add(-time.Hour)
	a.SetNetmap(&mesh.Netmap{Self: mesh.Node{Key: a.key.Public()}, Peers: []mesh.Node{expired}}, a.key)
	for { // until the loop has taken the netmap
		if err := a.Send(b.key.Public(), [][]byte{wireGuard("x")}); errors.Is(err, errNoPath) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// A new WAN address means new mappings at every NAT: paths are doubted, and
// found again.
func TestRebind(t *testing.T) {
	noLeak(t)
	a, b := pair(t)
	facts := func(addr string) host.Facts {
		return host.Facts{Interfaces: []host.Interface{iface("wan", true, addr)},
			Defaults: []host.Default{{Interface: "wan", Gateway: netip.MustParseAddr("127.0.0.1")}}}
	}
	a.SetFacts(facts("203.0.113.7/24"))
	a.until("endpoints", func() bool { return len(a.State().Endpoints) == 1 })
	if p := a.pathTo(b); p.Kind != mesh.PathDirect || p.Reason != "" {
		t.Fatalf("the first facts are no change, but the path is %+v", p)
	}
	before := a.pathTo(b)
	a.SetFacts(facts("203.0.113.8/24"))
	a.until("other endpoints", func() bool {
		e := a.State().Endpoints
		return len(e) == 1 && e[0].Addr.Addr() == netip.MustParseAddr("203.0.113.8")
	})
	a.until("the path again", func() bool {
		p := a.pathTo(b)
		return p.Kind == mesh.PathDirect && p.Reason == "" && p.Addr == before.Addr
	})
	if err := a.Send(b.key.Public(), [][]byte{wireGuard("after")}); err != nil {
		t.Fatal(err)
	}
	if got := b.next(); got.data != string(wireGuard("after")) {
		t.Fatalf("got %q", got.data)
	}
}

// In the steady state neither sending nor receiving allocates.
func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool drop at random")
	}
	noLeak(t)
	a, b := startNode(t, nil), startNode(t, nil)
	b.know(nil, a.as(1, 0))
	a.know(nil, b.as(2, 0, b.loopback()))
	a.goDirect(b)
	funcs, _, err := b.Open()
	if err != nil {
		t.Fatal(err)
	}
	receive := funcs[0] // IPv4
	to, batch := b.key.Public(), [][]byte{wireGuard("one"), wireGuard("two"), wireGuard("and three")}
	packets, sizes, from := make([][]byte, batchSize), make([]int, batchSize), make([]key.NodePublic, batchSize)
	for i := range packets {
		packets[i] = make([]byte, 1600)
	}
	allocs := testing.AllocsPerRun(500, func() {
		if err := a.Send(to, batch); err != nil {
			t.Fatal(err)
		}
		for left := len(batch); left > 0; {
			n, err := receive(packets, sizes, from)
			if err != nil {
				t.Fatal(err)
			}
			left -= n
		}
	})
	if allocs > 0 { // AllocsPerRun rounds down, so that the heartbeat counts for nothing
		t.Fatalf("%v allocations a batch", allocs)
	}
}
