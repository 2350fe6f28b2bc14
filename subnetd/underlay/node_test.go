package underlay

import (
	"context"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"subnetd/subnetd/mesh"

	"tailscale.com/types/key"
)

// patience is how long a test waits for what must come; only failures take it.
const patience = time.Minute

// node is an Underlay at work, with somebody who reads its packets.
type node struct {
	*Underlay
	t       testing.TB
	key     key.NodePrivate
	changed chan struct{} // one slot: state, path or facts changed
	got     chan received
	end     func() // ends Run, and returns when it has
}

type received struct {
	from key.NodePublic
	data string
}

// startNode makes an Underlay and runs it until the test ends.
func startNode(t testing.TB, change func(*Underlay)) *node {
	t.Helper()
	return startWith(t, Config{}, change)
}

func startWith(t testing.TB, c Config, change func(*Underlay)) *node {
	t.Helper()
	return startBy(t, New, c, change)
}

// startBy is startWith for an Underlay that must be made in a special place.
func startBy(t testing.TB, create func(Config) (*Underlay, error), c Config, change func(*Underlay)) *node {
	t.Helper()
	n := &node{t: t, key: key.NewNode(), changed: make(chan struct{}, 1), got: make(chan received, 1000)}
	c.OnState, c.OnPath = func(State) { signal(n.changed) }, func() { signal(n.changed) }
	u, err := create(c)
	if err != nil {
		t.Fatal(err)
	}
	n.Underlay = u
	u.ssdpGroup = netip.AddrPortFrom(loopback, ssdpPort) // no multicast from tests
	if change != nil {
		change(u)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := u.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	n.end = func() { cancel(); wg.Wait() }
	t.Cleanup(n.end)
	return n
}

// read opens the node and gathers what comes, until the receivers are closed.
func (n *node) read() {
	n.t.Helper()
	funcs, _, err := n.Open()
	if err != nil {
		n.t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, f := range funcs {
		wg.Go(func() { n.receive(f) })
	}
	n.t.Cleanup(func() { n.end(); wg.Wait() })
}

func (n *node) receive(f ReceiveFunc) {
	packets, sizes, from := make([][]byte, batchSize), make([]int, batchSize), make([]key.NodePublic, batchSize)
	for i := range packets {
		packets[i] = make([]byte, 1600)
	}
	for {
		count, err := f(packets, sizes, from)
		if err != nil {
			return
		}
		for i := range count {
			select {
			case n.got <- received{from[i], string(packets[i][:sizes[i]])}:
			default: // nobody looks any more
			}
		}
	}
}

// until waits for a condition, looking whenever something changed.
func (n *node) until(what string, ok func() bool) {
	n.t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for !ok() {
		select {
		case <-n.changed:
		case <-timeout.C:
			n.t.Fatalf("waited in vain: %s; state %+v, paths %+v", what, n.State(), n.Paths())
		}
	}
}

// next is the next packet that comes.
func (n *node) next() received {
	n.t.Helper()
	select {
	case r := <-n.got:
		return r
	case <-time.After(patience):
		n.t.Fatalf("no packet came; paths %+v", n.Paths())
		panic("not reached")
	}
}

// loopback is the address others reach the node at.
func (n *node) loopback() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), n.port)
}

// as is the node as the coordinator tells others of it.
func (n *node) as(id mesh.NodeID, home int, endpoints ...netip.AddrPort) mesh.Node {
	return mesh.Node{ID: id, Key: n.key.Public(), Disco: n.Disco(), Endpoints: endpoints, HomeRelay: home,
		Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, byte(id)}), 32)}}
}

// know gives the node its netmap.
func (n *node) know(relays []mesh.RelayRegion, peers ...mesh.Node) {
	n.SetNetmap(&mesh.Netmap{Self: mesh.Node{ID: 100, Key: n.key.Public()}, Relays: relays, Peers: peers}, n.key)
	n.untilPeers(peers)
}

// untilPeers waits until the loop has taken the netmap. Nothing tells that it
// has but that the peers are there.
func (n *node) untilPeers(peers []mesh.Node) {
	n.t.Helper()
	deadline := time.Now().Add(patience)
	for _, p := range peers {
		for (*n.peers.Load())[p.Key] == nil {
			if time.Now().After(deadline) {
				n.t.Fatal("the netmap was not taken")
			}
			runtime.Gosched()
		}
	}
}

// wireGuard is bytes that look like a WireGuard data packet.
func wireGuard(body string) []byte { return append([]byte{4, 0, 0, 0}, body...) }

// noLeak fails the test if goroutines of this package are left at its end. Call
// it first. A goroutine ends a moment after it said so, hence the patience.
func noLeak(t testing.TB) {
	t.Cleanup(func() {
		deadline := time.Now().Add(patience)
		for {
			left := ours()
			if left == "" {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("goroutines left:\n%s", left)
			}
			time.Sleep(time.Millisecond)
		}
	})
}

// ours are the goroutines at work in this package, but for tests themselves.
func ours() string {
	buf := make([]byte, 1<<20)
	var left []string
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, "subnetd/underlay.") && !strings.Contains(g, "testing.tRunner") &&
			!strings.Contains(g, "testing.(*M).Run") {
			left = append(left, g)
		}
	}
	return strings.Join(left, "\n\n")
}
