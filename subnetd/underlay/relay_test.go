package underlay

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/mesh"
)

// relayed is two nodes that have a relay and no addresses of each other.
func relayed(t *testing.T) (a, b *node, r *testRelay) {
	t.Helper()
	r = startRelay(t)
	a, b = startNode(t, nil), startNode(t, nil)
	a.read()
	b.read()
	a.know([]mesh.RelayRegion{r.region(1)}, b.as(2, 1))
	b.know([]mesh.RelayRegion{r.region(1)}, a.as(1, 1))
	for _, n := range []*node{a, b} { // distances are measured by TCP: nobody answers STUN
		n.until("a home", func() bool { return n.State().HomeRelay == 1 })
		r.connected(n)
	}
	return a, b, r
}

func exchange(t *testing.T, a, b *node, what string) {
	t.Helper()
	for _, n := range []struct{ from, to *node }{{a, b}, {b, a}} {
		want := received{n.from.key.Public(), string(wireGuard(what))}
		if err := n.from.Send(n.to.key.Public(), [][]byte{[]byte(want.data)}); err != nil {
			t.Fatal(err)
		}
		if got := n.to.next(); got != want {
			t.Fatalf("got %q from %s, want %q from %s", got.data, got.from.ShortString(), want.data, want.from.ShortString())
		}
	}
}

func TestRelay(t *testing.T) {
	noLeak(t)
	a, b, _ := relayed(t)
	exchange(t, a, b, "over the relay")
	if p := a.pathTo(b); p.Kind != mesh.PathRelay || p.Relay != 1 || p.Reason == "" {
		t.Errorf("path %+v", p)
	}
	p, err := a.Ping(t.Context(), b.key.Public())
	if err != nil || p.Kind != mesh.PathRelay || p.Relay != 1 || p.RTT <= 0 {
		t.Errorf("ping: %+v, %v", p, err)
	}
	var batch [][]byte
	for i := range relayQueue / 2 { // more would push the first out of the queue
		batch = append(batch, wireGuard(fmt.Sprint(i, strings.Repeat("x", 1000))))
	}
	if err := a.Send(b.key.Public(), batch); err != nil {
		t.Fatal(err)
	}
	for i := range batch {
		if got := b.next(); got.data != string(batch[i]) {
			t.Fatalf("packet %d is %.12q", i, got.data)
		}
	}
}

// A relay that was restarted is connected to again, without being asked.
func TestRelayReconnects(t *testing.T) {
	noLeak(t)
	a, b, r := relayed(t)
	exchange(t, a, b, "before")
	for i := range 2 {
		r.kill()
		r.start()
		r.connected(a)
		r.connected(b)
		exchange(t, a, b, fmt.Sprint("after crash ", i))
	}
}

// The way from relayed to direct: a call over the relay tells the addresses,
// and nothing that is sent meanwhile is lost.
func TestRelayThenDirect(t *testing.T) {
	noLeak(t)
	a, b, r := relayed(t)
	exchange(t, a, b, "relayed")
	b.know([]mesh.RelayRegion{r.region(1)}, a.as(1, 1, a.loopback())) // now the coordinator knows a's address
	exchange(t, b, a, "kick")
	b.until("a direct path", func() bool { return b.pathTo(a).Kind == mesh.PathDirect })
	a.until("a direct path back", func() bool { return a.pathTo(b).Kind == mesh.PathDirect })
	exchange(t, a, b, "direct")
}

// The relay says that a peer is not there; the path says so too.
func TestRelayPeerGone(t *testing.T) {
	noLeak(t)
	a, b, _ := relayed(t)
	exchange(t, a, b, "there")
	b.end()
	// The relay speaks when something is sent to nobody, and may yet have to
	// notice that b has gone.
	for deadline := time.Now().Add(patience); !strings.Contains(a.pathTo(b).Reason, "relay 1 does not reach the peer"); {
		if err := a.Send(b.key.Public(), [][]byte{wireGuard("anybody?")}); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("path %+v", a.pathTo(b))
		}
		runtime.Gosched()
	}
}

// Relays know nodes by their keys; before the coordinator has told ours, and
// after it has left the map, no relay hears of us.
func TestRelayOnlyWhenKnown(t *testing.T) {
	noLeak(t)
	r := startRelay(t)
	n := startNode(t, nil)
	stranger := n.as(9, 1)
	n.SetNetmap(&mesh.Netmap{Self: mesh.Node{Key: startNode(t, nil).key.Public()}, Relays: []mesh.RelayRegion{r.region(1)},
		Peers: []mesh.Node{stranger}}, n.key)
	n.untilPeers([]mesh.Node{stranger})
	if len(*n.relays.Load()) != 0 {
		t.Fatal("a relay is used under a key that the coordinator does not know")
	}
	n.know([]mesh.RelayRegion{r.region(1)}, stranger)
	r.connected(n)
	other := startNode(t, nil).as(8, 1)
	n.know(nil, other)
	if len(*n.relays.Load()) != 0 {
		t.Fatal("a relay that has left the map is used")
	}
	n.until("no home", func() bool { return len(*n.relays.Load()) == 0 })
}

// fromAddr is a connection of a local address that notes its closing.
type fromAddr struct {
	net.Conn
	local  string
	closed bool
}

func (c *fromAddr) LocalAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.local))
}
func (c *fromAddr) Close() error { c.closed = true; return nil }

// With the local address gone, TCP would notice only after minutes.
func TestRelayLeave(t *testing.T) {
	ours := map[netip.Addr]bool{netip.MustParseAddr("192.0.2.1"): true, netip.MustParseAddr("fe80::1"): true}
	for local, want := range map[string]bool{
		"192.0.2.1:9": false, "[::ffff:192.0.2.1]:9": false, "[fe80::1%eth0]:9": false, "127.0.0.1:9": false, "[::1]:9": false,
		"192.0.2.2:9": true, "[2001:db8::1]:9": true,
	} {
		c := &fromAddr{local: local}
		r := &relay{}
		r.leave(ours) // not connected: nothing to do
		r.conn.Store(&gatherer{conn: c})
		if r.leave(ours); c.closed != want {
			t.Errorf("connection from %s closed: %t, want %t", local, c.closed, want)
		}
	}
}
