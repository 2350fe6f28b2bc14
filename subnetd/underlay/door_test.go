package underlay

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"subnetd/subnetd/mesh"
	"subnetd/subnetd/path"

	"github.com/google/go-cmp/cmp"
	"tailscale.com/types/key"
)

// What relays bring for a peer with a door comes there, from where the kernel sends
// to the peer; what WireGuard sends from there to a relayed peer goes on, be its port
// rewritten or not. Other peers notice nothing.
func TestDoor(t *testing.T) {
	noLeak(t)
	outside(t)
	r := startRouter(t, nil)
	share(t, public, r.Inner())
	const port = public + 1
	door4, door6 := listenHere(t, fmt.Sprintf("0.0.0.0:%d", port)), listenHere(t, fmt.Sprintf("[::]:%d", port))
	keys := r.meet(2)
	k, other := keys[0], keys[1]
	home, data := netip.MustParseAddr("127.0.0.1"), string(wireGuard(strings.Repeat("x", 100)))
	late := key.NewNode().Public()
	r.Serve(map[key.NodePublic]uint16{k: port, late: port})
	brought := func(to *ear, from netip.AddrPort, at netip.Addr) {
		t.Helper()
		r.relayed(k, data)
		to.want(arrival{from, at, data})
	}
	brought(door4, r.loop(k), home)
	r.relayed(other, data)
	r.wg4.want(arrival{r.loop(other), home, data})
	if got := r.listens(r.conduit.peer(late)); got != port {
		t.Errorf("a peer that comes later is served on %d", got)
	}

	v4, v6 := netip.MustParseAddrPort("203.0.113.7:700"), netip.MustParseAddrPort("[2001:db8:7::7]:700")
	command(t, "", "ip route add default via 198.51.100.2")
	command(t, "", "ip route add default via 2001:db8::2")
	r.use(path.Use{Peer: k, Addr: v4})
	brought(door4, v4, home)
	r.use(path.Use{Peer: k, Addr: v6})
	brought(door6, v6, ourV6)

	world := listenThere(t, "198.51.100.2:0")
	r.use(path.Use{Peer: k, Addr: world.at, Region: 1}, path.Use{Peer: other, Addr: world.at, Region: 1})
	us := netip.AddrPortFrom(ourV4, public)
	door4.send(r.loop(other), "not its peer")
	door4.send(r.loop(k), data+"door")
	r.wg4.send(r.loop(k), data+"rewritten")
	r.wg4.send(r.loop(other), data+"other")
	for _, b := range []string{"door", "rewritten", "other"} {
		world.want(arrival{us, worldV4, data + b})
	}

	r.Serve(nil)
	brought(r.wg4, r.loop(k), home)
	door4.send(r.loop(k), "not its peer any more")
	r.wg4.send(r.loop(k), data)
	world.want(arrival{us, worldV4, data})
}

// From is all addresses that may be the peer's, and a change of those is told of a
// peer with a door, and of no other.
func TestDoorFrom(t *testing.T) {
	noLeak(t)
	kernel(t)
	k, other := key.NewNode().Public(), key.NewNode().Public()
	at := func(n int) netip.AddrPort { return netip.MustParseAddrPort(fmt.Sprintf("203.0.113.7:%d", n)) }
	told := make(chan struct{}, 100)
	r := startRouter(t, func(c *Config) {
		c.OnDoor = func() { told <- struct{}{} }
		c.Adopted = map[key.NodePublic]netip.AddrPort{k: at(1), other: at(9)}
	})
	want := func(news bool, all ...netip.AddrPort) {
		t.Helper()
		r.flush()
		if d := cmp.Diff(all, r.From(k), addrsByValue); d != "" {
			t.Errorf("from: %s", d)
		}
		if got := len(told) > 0; got != news {
			t.Errorf("told: %v", got)
		}
		for len(told) > 0 {
			<-told
		}
	}
	r.Serve(map[key.NodePublic]uint16{k: 1})
	r.know(nil, mesh.Node{ID: 1, Key: k}, mesh.Node{ID: 2, Key: other})
	r.machine.next(t, 3)
	r.flush()
	for len(told) > 0 {
		<-told
	}
	want(false, at(1))
	say := func(a ...path.Action) {
		t.Helper()
		r.machine.say(a...)
		r.hint(path.RelayGone{})
	}
	say(path.Map{Addr: at(2), Peer: k})
	want(true, at(1), at(2))
	say(path.Map{Addr: at(2), Peer: k}, path.Map{Addr: at(3), Peer: other}, path.Use{Peer: other, Addr: at(3)})
	want(false, at(1), at(2))
	say(path.Map{Addr: at(3), Peer: k})
	want(true, at(1), at(2), at(3))
	say(path.Use{Peer: k, Addr: at(3)})
	want(true, at(2), at(3))
	say(path.Use{Peer: k, Addr: at(3), Region: 1})
	want(true, at(2), at(3))
	say(path.Map{Addr: at(2), Peer: other})
	want(true, at(3))
	r.Roamed(k, at(4))
	if got := r.nextEvent(); got != (path.Roamed{Peer: k, Addr: at(4)}) {
		t.Errorf("event %v", got)
	}
	want(true, at(3), at(4))
	if d := cmp.Diff([]netip.AddrPort{at(2), at(3)}, r.From(other), addrsByValue); d != "" {
		t.Errorf("another's: %s", d)
	}
}

// Before the loop knows what a run before left, From does.
func TestDoorAdopted(t *testing.T) {
	k, a := key.NewNode().Public(), netip.MustParseAddrPort("203.0.113.7:1")
	u, err := New(Config{Public: public, Adopted: map[key.NodePublic]netip.AddrPort{k: a}})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if d := cmp.Diff([]netip.AddrPort{a}, u.From(k), addrsByValue); d != "" {
		t.Error(d)
	}
}
