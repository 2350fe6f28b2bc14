package underlay

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/path"

	"github.com/google/go-cmp/cmp"
	"go4.org/mem"
	"golang.org/x/sys/unix"
	"tailscale.com/disco"
	"tailscale.com/types/key"
)

// In these tests the namespace of the test is the router, another is the world:
//
//	world  198.51.100.2  -- wan0  198.51.100.1
//
// and the same with IPv6, 2001:db8::. UDP sockets on the public port stand for
// the kernel's WireGuard, the nft tool for our firewall.

const public = 41001 // the port the world knows

var (
	ourV4, ourV6     = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")
	worldV4, worldV6 = netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("2001:db8::2")
)

// kernel marks a test that needs root and a namespace.
func kernel(t testing.TB) {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("needs root, ip and nft")
	}
}

// outside makes the world.
func outside(t testing.TB) {
	t.Helper()
	kernel(t)
	for _, words := range []string{
		"ip netns add world", "ip -n world link set lo up",
		"ip link add wan0 type veth peer name e0 netns world",
		"ip link set wan0 up", "ip -n world link set e0 up",
		"ip address add 198.51.100.1/24 dev wan0", "ip address add 2001:db8::1/64 dev wan0 nodad",
		"ip -n world address add 198.51.100.2/24 dev e0", "ip -n world address add 2001:db8::2/64 dev e0 nodad",
	} {
		command(t, "", words)
	}
	t.Cleanup(func() {
		command(t, "", "ip link del wan0")
		command(t, "", "ip netns del world")
	})
	settled(t, ourV6, here)
	settled(t, worldV6, inWorld)
}

// settled waits until an IPv6 address that was just set is of use: the kernel
// makes its route a moment later.
func settled(t testing.TB, a netip.Addr, where func(testing.TB, func() (*net.UDPConn, error)) *net.UDPConn) {
	t.Helper()
	conn := where(t, func() (*net.UDPConn, error) { return listenOn(netip.AddrPortFrom(a, 0).String()) })
	defer conn.Close()
	us, b := conn.LocalAddr().(*net.UDPAddr).AddrPort(), make([]byte, 1)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		_, _ = conn.WriteToUDPAddrPort(b, us)
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if _, err := conn.Read(b); err == nil {
			return
		}
	}
	t.Fatalf("%s is not there", a)
}

// here is where the test is.
func here[T any](t testing.TB, f func() (T, error)) T {
	t.Helper()
	out, err := f()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// inWorld does something in the world.
func inWorld[T any](t testing.TB, f func() (T, error)) T {
	t.Helper()
	var out T
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread goes with this goroutine
		ns, err := os.Open("/run/netns/world")
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			out, err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("in the world: %v", err)
	}
	return out
}

// share loads the rules by which two ports are one to the world: those of
// dataplane.md, so that this test does not depend on package firewall.
func share(t testing.TB, outer, inner uint16) {
	t.Helper()
	rules := fmt.Sprintf(`table inet share {
		chain in {
			type filter hook input priority 200;
			@th,64,32 0x04000000 accept
			udp dport %[1]d @th,64,48 0x5453f09f92ac udp dport set %[2]d accept
			udp dport %[1]d @th,64,16 { 0x0101, 0x0111 } @th,96,32 0x2112a442 udp dport set %[2]d
		}
		chain out {
			type filter hook output priority -310;
			udp sport %[2]d oifname != "lo" udp sport set %[1]d
		}
	}`, outer, inner)
	command(t, rules, "nft -f -")
	t.Cleanup(func() { command(t, "", "nft delete table inet share") })
}

// arrival is a datagram that came to an ear.
type arrival struct {
	From netip.AddrPort
	To   netip.Addr
	Data string
}

// ear is a socket of a test, and what came to it.
type ear struct {
	t    testing.TB
	conn *net.UDPConn
	at   netip.AddrPort
	got  chan arrival
}

// listenHere opens an ear in the router, listenThere in the world.
func listenHere(t testing.TB, at string) *ear {
	t.Helper()
	return newEar(t, here(t, func() (*net.UDPConn, error) { return listenOn(at) }))
}

func listenThere(t testing.TB, at string) *ear {
	t.Helper()
	return newEar(t, inWorld(t, func() (*net.UDPConn, error) { return listenOn(at) }))
}

func listenOn(at string) (*net.UDPConn, error) {
	network := "udp4"
	if strings.HasPrefix(at, "[") {
		network = "udp6"
	}
	addr, err := net.ResolveUDPAddr(network, at)
	if err != nil {
		return nil, err
	}
	return net.ListenUDP(network, addr)
}

func newEar(t testing.TB, conn *net.UDPConn) *ear {
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { // one of them is for the other family
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	})
	e := &ear{t: t, conn: conn, at: conn.LocalAddr().(*net.UDPAddr).AddrPort(), got: make(chan arrival, 10000)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.listen()
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return e
}

func (e *ear) listen() {
	b, oob := make([]byte, 1<<16), make([]byte, 256)
	for {
		n, size, _, from, err := e.conn.ReadMsgUDPAddrPort(b, oob)
		if err != nil {
			return
		}
		a := arrival{From: unmap(from), Data: string(b[:n])}
		all, _ := unix.ParseSocketControlMessage(oob[:size])
		for _, m := range all {
			switch {
			case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO:
				a.To = netip.AddrFrom4([4]byte(m.Data[8:12]))
			case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO:
				a.To = netip.AddrFrom16([16]byte(m.Data[:16]))
			}
		}
		select {
		case e.got <- a:
		default: // a benchmark does not look
		}
	}
}

func (e *ear) send(to netip.AddrPort, b string) {
	e.t.Helper()
	if _, err := e.conn.WriteToUDPAddrPort([]byte(b), to); err != nil {
		e.t.Fatal(err)
	}
}

// next is what comes next.
func (e *ear) next() arrival {
	e.t.Helper()
	select {
	case a := <-e.got:
		return a
	case <-time.After(patience):
		e.t.Fatalf("nothing came to %s", e.at)
		panic("not reached")
	}
}

// want fails the test unless these come next.
func (e *ear) want(all ...arrival) {
	e.t.Helper()
	for _, want := range all {
		if diff := cmp.Diff(want, e.next(), addrsByValue); diff != "" {
			e.t.Fatal(diff)
		}
	}
}

var addrsByValue = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
}

// pinned is what the kernel was told.
type pinned struct {
	Peer key.NodePublic
	To   netip.AddrPort
}

// testClock is a time that the test moves.
type testClock struct {
	mu sync.Mutex
	t  time.Time
}

func newTestClock() *testClock { return &testClock{t: time.Unix(1000, 0)} }

func (c *testClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *testClock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// router is a node in kernel mode, with a machine that says what the test wants.
type router struct {
	*node
	machine *recorder
	pins    chan pinned
	active  chan struct{}
	wg4     *ear // the kernel's WireGuard
	wg6     *ear
}

func startRouter(t testing.TB, change func(*Config)) *router {
	t.Helper()
	r := &router{pins: make(chan pinned, 100), active: make(chan struct{}, 100)}
	c := Config{Public: public,
		OnUse:    func(k key.NodePublic, to netip.AddrPort) { r.pins <- pinned{k, to} },
		OnActive: func() { r.active <- struct{}{} },
	}
	if change != nil {
		change(&c)
	}
	r.wg4 = listenHere(t, fmt.Sprintf("0.0.0.0:%d", public))
	r.wg6 = listenHere(t, fmt.Sprintf("[::]:%d", public))
	r.node = startWith(t, c, func(u *Underlay) { r.machine = record(u) })
	return r
}

// meet gives the router peers that have nothing but keys.
func (r *router) meet(count int) []key.NodePublic {
	r.t.Helper()
	var keys []key.NodePublic
	var nodes []mesh.Node
	for i := range count {
		keys = append(keys, key.NewNode().Public())
		nodes = append(nodes, mesh.Node{ID: mesh.NodeID(i + 1), Key: keys[i]})
	}
	r.know(nil, nodes...)
	r.machine.next(r.t, 1)
	return keys
}

// use is what the machine wants from now on. It returns when that is done.
func (r *router) use(all ...path.Use) {
	r.t.Helper()
	var actions []path.Action
	for _, u := range all {
		actions = append(actions, u)
	}
	r.machine.say(actions...)
	r.hint(path.RelayGone{})
	r.flush()
}

// flush waits until the loop has done all it was told, and gives what that was.
// It takes a probe only after it has done all else.
func (r *router) flush() []string {
	r.t.Helper()
	for len(r.hints) > 0 {
		runtime.Gosched()
	}
	r.probes <- probe{answer: make(chan mesh.Path, 1)}
	var kinds []string
	for !slices.Contains(kinds, "path.Probe") {
		kinds = append(kinds, r.machine.next(r.t, 1)...)
	}
	return slices.DeleteFunc(kinds, func(k string) bool { return k == "path.Probe" })
}

// relayed is a packet that a relay brings.
func (r *router) relayed(from key.NodePublic, b string) {
	p := r.newPacket([]byte(b))
	p.from, p.peer = path.Source{Region: 1, Node: from}, from
	r.relayIn <- p
}

// loop is the peer's address on lo.
func (r *router) loop(k key.NodePublic) netip.AddrPort { return r.conduit.peer(k).loop }

func (r *router) wantPins(want ...pinned) {
	r.t.Helper()
	var got []pinned
	for len(r.pins) > 0 {
		got = append(got, <-r.pins)
	}
	if diff := cmp.Diff(want, got, addrsByValue, cmp.Comparer(func(a, b key.NodePublic) bool { return a == b })); diff != "" {
		r.t.Fatal(diff)
	}
}

// handshake is bytes that look like a handshake message of WireGuard.
func handshake(typ byte, mark string) string {
	size := map[byte]int{wireguardInitiation: initiationSize, wireguardResponse: 92}[typ]
	return string(append(append([]byte{typ, 0, 0, 0}, mark...), make([]byte, size-4-len(mark))...))
}

// The world speaks to one port. What is disco's or STUN's comes to us, all else
// to WireGuard, and what we send comes from that port.
func TestKernelPort(t *testing.T) {
	noLeak(t)
	outside(t)
	r := startRouter(t, nil)
	share(t, public, r.Inner())
	if r.Inner() == public || r.State().Port != public {
		t.Fatalf("inner port %d, outer %d", r.Inner(), r.State().Port)
	}
	peerDisco, peer := key.NewDisco(), key.NewNode().Public()
	r.know(nil, mesh.Node{ID: 1, Key: peer, Disco: peerDisco.Public()})
	r.machine.next(t, 1)
	for _, f := range []struct {
		listen string
		us     netip.Addr
		wg     *ear
	}{{"198.51.100.2:0", ourV4, r.wg4}, {"[2001:db8::2]:0", ourV6, r.wg6}} {
		world := listenThere(t, f.listen)
		us := netip.AddrPortFrom(f.us, public)
		ping := &disco.Ping{TxID: [12]byte{7}, NodeKey: peer}
		world.send(us, string(wireGuard("data")))
		world.send(us, handshake(wireguardInitiation, "x"))
		world.send(us, string(confused(4, 64)))
		world.send(us, string(seal(peerDisco, r.Disco(), ping.AppendMarshal(nil))))
		world.send(us, string(stunAnswer()))
		world.send(us, "the end")
		for _, want := range []string{string(wireGuard("data")), handshake(wireguardInitiation, "x"), string(confused(4, 64)), "the end"} {
			f.wg.want(arrival{world.at, f.us, want})
		}
		if got := r.nextEvent(); got != path.Event(path.Ping{From: path.Source{Addr: world.at}, Sender: peerDisco.Public(), TxID: path.TxID{7}, Node: peer}) {
			t.Fatalf("the machine was told %+v", got)
		}
		select {
		case <-r.active:
		case <-time.After(patience):
			t.Fatal("nobody was told that the peer is there")
		}
		select {
		case <-r.stunIn:
		case <-time.After(patience):
			t.Fatal("the STUN answer did not come")
		}
		batch := make([][]byte, 40) // of equal sizes: the kernel splits them behind the rules
		for i := range batch {
			batch[i] = bytes.Repeat([]byte{byte(i)}, 1000)
		}
		if err := r.sendUDP(world.at, batch); err != nil {
			t.Fatal(err)
		}
		for _, b := range batch {
			world.want(arrival{us, world.at.Addr(), string(b)})
		}
	}
	if len(r.wg4.got)+len(r.wg6.got) > 0 {
		t.Fatal("WireGuard got what is not for it")
	}
}

// nextEvent is what the machine is told next.
func (r *router) nextEvent() path.Event {
	r.t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		r.machine.mu.Lock()
		if all := r.machine.events; len(all) > 0 {
			e := all[0]
			r.machine.events = all[1:]
			r.machine.mu.Unlock()
			return e
		}
		r.machine.mu.Unlock()
		select {
		case <-r.machine.told:
		case <-timeout.C:
			r.t.Fatal("the machine was told nothing")
		}
	}
}

// What the world must see is the public port, in whatever we say of ourselves.
func TestKernelEndpoints(t *testing.T) {
	noLeak(t)
	kernel(t)
	r := newMapRouter()
	at := r.listen(t)
	n := startWith(t, Config{Public: public}, func(u *Underlay) { u.mapPort = at.Port() })
	f := behind(at.Addr())
	f.Interfaces = append(f.Interfaces, iface("br-lan", true, "192.168.1.1/24"))
	n.SetFacts(f)
	n.until("a mapping", func() bool { return n.mappedAt().IsValid() })
	want := []Endpoint{{netip.MustParseAddrPort(granted), EndpointPortMap}, {netip.MustParseAddrPort(fmt.Sprintf("192.168.1.1:%d", public)), EndpointLocal}}
	if diff := cmp.Diff(want, n.State().Endpoints, addrsByValue); diff != "" {
		t.Error(diff)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.mapped[public] || len(r.mapped) != 1 {
		t.Errorf("mapped ports %v", r.mapped)
	}
	if _, _, err := n.Open(); err == nil {
		t.Error("Open gave receivers, for whom there is nothing")
	}
}

// What the kernel sends to a peer's address on lo goes the peer's way; all else
// that comes there goes nowhere.
func TestConduitOut(t *testing.T) {
	noLeak(t)
	outside(t)
	clock := newTestClock() // it stands: that something is sent is told once a second
	r := startRouter(t, func(c *Config) { c.Now = clock.now })
	share(t, public, r.Inner())
	world := listenThere(t, "198.51.100.2:0")
	other := listenThere(t, "[2001:db8::2]:0")
	us4, us6 := netip.AddrPortFrom(ourV4, public), netip.AddrPortFrom(ourV6, public)
	keys := r.meet(3)
	a, b, nowhere := r.loop(keys[0]), r.loop(keys[1]), r.loop(keys[2])
	r.use(path.Use{Peer: keys[0], Addr: world.at, Region: 1}, path.Use{Peer: keys[1], Addr: other.at, Region: 1})

	stranger := listenHere(t, "127.0.0.1:0") // not WireGuard
	stranger.send(a, string(wireGuard("from a stranger")))
	wan := listenHere(t, "198.51.100.1:0")
	wan.send(a, string(wireGuard("from a stranger")))
	free := netip.AddrPortFrom(netip.MustParseAddr("127.64.0.0"), a.Port())
	for r.conduit.byAddr[free] != nil {
		free = netip.AddrPortFrom(free.Addr().Next(), a.Port())
	}
	for _, nobody := range []netip.AddrPort{free, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), a.Port()),
		netip.AddrPortFrom(ourV4, a.Port()), nowhere} {
		r.wg4.send(nobody, string(wireGuard("to nobody")))
	}
	r.wg4.send(a, "")
	r.wg4.send(a, strings.Repeat("x", oneSlot+1)) // more than fits
	r.wg4.send(a, string(wireGuard("one")))
	r.wg4.send(b, string(wireGuard("two")))
	r.wg4.send(a, string(wireGuard("three")))
	world.want(arrival{us4, worldV4, string(wireGuard("one"))}, arrival{us4, worldV4, string(wireGuard("three"))})
	other.want(arrival{us6, worldV6, string(wireGuard("two"))})

	for i := range 500 { // more than the reader's slots
		r.wg4.send([]netip.AddrPort{a, b}[i/7%2], string(wireGuard(fmt.Sprint(i))))
	}
	for i := range 500 {
		ear, from := world, us4
		if i/7%2 == 1 {
			ear, from = other, us6
		}
		ear.want(arrival{from, ear.at.Addr(), string(wireGuard(fmt.Sprint(i)))})
	}
	if got := strings.Join(r.flush(), " "); got != "path.Sent path.Sent path.Sent" { // it wakes the path to a silent peer
		t.Errorf("the machine was told %s", got)
	}
}

// What a relay brings comes to the kernel from where the kernel sends to the
// peer: its address on lo, or its direct one.
func TestConduitIn(t *testing.T) {
	noLeak(t)
	outside(t)
	r := startRouter(t, nil)
	keys := r.meet(2)
	home := netip.MustParseAddr("127.0.0.1")
	send := func(k key.NodePublic, all []string) {
		for _, b := range all {
			r.relayed(k, b)
		}
	}
	var batch []string // of sizes that the kernel joins, and such as it does not
	for i := range 100 {
		batch = append(batch, string(wireGuard(fmt.Sprintf("%03d%s", i, strings.Repeat("x", 1200-i%3*i)))))
	}
	want := func(ear *ear, from netip.AddrPort, to netip.Addr) {
		t.Helper()
		for _, b := range batch {
			ear.want(arrival{from, to, b})
		}
	}
	send(keys[0], batch)
	want(r.wg4, r.loop(keys[0]), home)

	v4, v6 := netip.MustParseAddrPort("203.0.113.7:700"), netip.MustParseAddrPort("[2001:db8:7::7]:700")
	command(t, "", "ip route add default via 198.51.100.2")
	command(t, "", "ip route add default via 2001:db8::2")
	r.use(path.Use{Peer: keys[0], Addr: v4}, path.Use{Peer: keys[1], Addr: v6})
	send(keys[0], batch)
	want(r.wg4, v4, home)
	send(keys[1], batch)
	want(r.wg6, v6, ourV6)

	// The address may change; ours towards the peer's is looked up again then.
	command(t, "", "ip address add 2001:db8::9/64 dev wan0 nodad")
	command(t, "", "ip address del 2001:db8::1/64 dev wan0")
	command(t, "", "ip route replace default via 2001:db8::2")
	settled(t, netip.MustParseAddr("2001:db8::9"), here)
	r.SetFacts(host.Facts{})
	for r.learned.Load() == 0 {
		runtime.Gosched()
	}
	send(keys[1], batch[:1])
	r.wg6.want(arrival{v6, netip.MustParseAddr("2001:db8::9"), batch[0]})

	// In doubt the kernel sends to us, and so hears from us.
	r.use(path.Use{Peer: keys[0], Addr: v4, Region: 1}, path.Use{Peer: keys[1], Region: 1})
	send(keys[0], batch)
	want(r.wg4, r.loop(keys[0]), home)
	send(keys[1], batch)
	want(r.wg4, r.loop(keys[1]), home)

	// Whom we do not know, and what is not WireGuard's, does not get there.
	r.relayed(key.NewNode().Public(), batch[0])
	for _, b := range []string{string(stunAnswer()), string(discoBytes()), "", "x", "\x04\x00\x00\x00", strings.Repeat("\x04", 100),
		string(wireGuard("short")), strings.Repeat("\x00", 100), "\x05\x00\x00\x00" + strings.Repeat("x", 100)} {
		r.relayed(keys[0], b)
	}
	send(keys[0], batch[:1])
	r.wg4.want(arrival{r.loop(keys[0]), home, batch[0]})
	if len(r.wg4.got)+len(r.wg6.got) > 0 {
		t.Fatal("WireGuard got too much")
	}
}

// Without a way to the peer over IPv6, and without the right to send whole
// packets, WireGuard still gets what relays bring.
func TestInjectFallsBack(t *testing.T) {
	noLeak(t)
	outside(t)
	r := startRouter(t, nil)
	keys := r.meet(2)
	data := string(wireGuard(strings.Repeat("x", 100)))
	r.use(path.Use{Peer: keys[0], Addr: netip.MustParseAddrPort("[2001:db8:7::7]:700")}) // no route there
	r.relayed(keys[0], data)
	r.wg4.want(arrival{r.loop(keys[0]), netip.MustParseAddr("127.0.0.1"), data})

	command(t, `table inet deny { chain out { type filter hook output priority 0; ip saddr 203.0.113.7 drop; }; }`, "nft -f -")
	defer command(t, "", "nft delete table inet deny")
	r.use(path.Use{Peer: keys[1], Addr: netip.MustParseAddrPort("203.0.113.7:700")})
	r.relayed(keys[1], data)
	r.wg4.want(arrival{r.loop(keys[1]), netip.MustParseAddr("127.0.0.1"), data})
}

// What the kernel is told follows from what the machine wants, and nothing is
// told twice but what the kernel left by itself.
func TestPins(t *testing.T) {
	noLeak(t)
	kernel(t)
	r := startRouter(t, nil)
	keys := r.meet(2)
	k, lo := keys[0], r.loop(keys[0])
	x, y := netip.MustParseAddrPort("203.0.113.7:700"), netip.MustParseAddrPort("[2001:db8:7::7]:700")
	roamed := func(to netip.AddrPort, want path.Event) {
		t.Helper()
		r.Roamed(k, to)
		if want != nil {
			if got := r.nextEvent(); got != want {
				t.Fatalf("the machine was told %+v", got)
			}
		}
		r.flush()
	}
	at := func(want netip.AddrPort) {
		t.Helper()
		if got := r.Endpoint(k); got != want {
			t.Fatalf("the kernel is to send to %s, want %s", got, want)
		}
	}
	r.use(path.Use{Peer: k, Region: 1})
	r.wantPins() // the kernel begins there
	at(lo)
	r.use(path.Use{Peer: k, Addr: x})
	r.use(path.Use{Peer: k, Addr: x, Path: mesh.Path{Reason: "another"}})
	r.wantPins(pinned{k, x})
	at(x)
	r.use(path.Use{Peer: k, Addr: x, Region: 1})
	r.use(path.Use{Peer: k, Region: 1})
	r.use(path.Use{Peer: k})
	r.wantPins(pinned{k, lo})
	at(lo)
	r.use(path.Use{Peer: k, Addr: y}, path.Use{Peer: k, Addr: x}, path.Use{Peer: key.NewNode().Public(), Addr: x})
	r.wantPins(pinned{k, y}, pinned{k, x})

	// It stays where it went until the machine says where it shall be.
	roamed(y, path.Roamed{Peer: k, Addr: y})
	roamed(y, nil)
	r.wantPins()
	at(y)
	r.use(path.Use{Peer: k, Addr: x})
	r.wantPins(pinned{k, x})
	at(x)
	roamed(netip.AddrPortFrom(netip.AddrFrom16(netip.MustParseAddr("198.51.100.9").As16()), 9), path.Roamed{Peer: k, Addr: netip.MustParseAddrPort("198.51.100.9:9")})
	r.use(path.Use{Peer: k, Addr: x, Region: 1})
	r.wantPins(pinned{k, lo})
	roamed(x, path.Roamed{Peer: k, Addr: x})
	r.use(path.Use{Peer: k, Addr: x, Region: 1}) // best, but doubted
	r.wantPins(pinned{k, lo})
	at(lo)
	stale := netip.MustParseAddrPort("127.64.1.2:3") // of a run before
	roamed(stale, path.Roamed{Peer: k, Addr: stale})
	at(lo)
	r.use(path.Use{Peer: k, Addr: x, Region: 1})
	r.wantPins(pinned{k, lo})
	roamed(lo, nil) // the tunnel did not know that we want that
	r.wantPins(pinned{k, lo})

	// A peer that is new has an address before the loop has heard of it.
	fresh := key.NewNode().Public()
	want := r.Endpoint(fresh)
	r.know(nil, mesh.Node{ID: 9, Key: fresh})
	r.machine.next(t, 1)
	if got := r.Endpoint(fresh); got != want || !got.Addr().IsLoopback() || got.Port() != r.ConduitPort() {
		t.Fatalf("endpoint %s, before %s", got, want)
	}
	if n := len(r.conduit.byKey); n != 1 || len(r.conduit.byAddr) != n {
		t.Fatalf("%d peers are remembered of 1", n)
	}

}

// At the end the kernel gets the best that we know, for it is alone then.
func TestPinsAtTheEnd(t *testing.T) {
	for _, tt := range []struct {
		name string
		idle time.Duration
		last func(path.Use) path.Use
		want bool
	}{
		{"idle", leaveYoung - time.Second, func(u path.Use) path.Use { u.Region = 1; return u }, true},
		{"idle for long", leaveYoung, func(u path.Use) path.Use { u.Region = 1; return u }, false},
		{"no longer an address", 0, func(u path.Use) path.Use { return path.Use{Peer: u.Peer, Region: 1} }, false},
		{"in use", time.Hour, func(u path.Use) path.Use { return u }, false}, // it is there
		{"went by itself", 0, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			noLeak(t)
			kernel(t)
			clock := newTestClock()
			r := startRouter(t, func(c *Config) { c.Now = clock.now })
			keys := r.meet(2)
			clock.add(time.Second)
			x := path.Use{Peer: keys[0], Addr: netip.MustParseAddrPort("203.0.113.7:700")}
			r.use(path.Use{Peer: keys[1], Addr: x.Addr, Region: 1}) // never trusted
			if tt.last != nil {
				r.use(x)
				r.use(tt.last(x))
			} else {
				r.Roamed(x.Peer, x.Addr)
				r.machine.next(t, 1)
				r.use(path.Use{Peer: x.Peer, Addr: x.Addr, Region: 1})
			}
			for len(r.pins) > 0 {
				<-r.pins
			}
			clock.add(tt.idle)
			r.end()
			if tt.want {
				r.wantPins(pinned{x.Peer, x.Addr})
			} else {
				r.wantPins()
			}
		})
	}
}

// After a restart the kernel stays where it is until the machine knows better,
// and the machine hears of that before it meets the peers.
func TestAdopted(t *testing.T) {
	noLeak(t)
	kernel(t)
	k, x := key.NewNode().Public(), netip.MustParseAddrPort("203.0.113.7:700")
	r := startRouter(t, func(c *Config) { c.Adopted = map[key.NodePublic]netip.AddrPort{k: x} })
	r.know(nil, mesh.Node{ID: 1, Key: k})
	if got := r.machine.next(t, 2); got[0] != "path.Roamed" || got[1] != "path.SetPeers" {
		t.Fatalf("the machine was told %v", got)
	}
	if got := r.Endpoint(k); got != x {
		t.Fatalf("endpoint %s", got)
	}
	data := string(wireGuard(strings.Repeat("x", 100)))
	r.relayed(k, data)
	r.wg4.want(arrival{x, netip.MustParseAddr("127.0.0.1"), data})
	r.wantPins()
	r.use(path.Use{Peer: k, Region: 1})
	r.wantPins(pinned{k, r.loop(k)})
}

// What the tunnel tells of a peer's data: where it came from is said only if
// that is sure.
func TestCarried(t *testing.T) {
	noLeak(t)
	kernel(t)
	clock := newTestClock() // it stands: the tunnel looks more often than once a second
	r := startRouter(t, func(c *Config) { c.Now = clock.now })
	k := r.meet(1)[0]
	x := netip.MustParseAddrPort("203.0.113.7:700")
	told := func(sent, received bool, want ...path.Event) {
		t.Helper()
		r.Carried(k, sent, received)
		for _, w := range want {
			if got := r.nextEvent(); got != w {
				t.Fatalf("the machine was told %+v, want %+v", got, w)
			}
		}
		if more := r.flush(); len(more) > 0 {
			t.Fatalf("the machine was told %v as well", more)
		}
	}
	direct := path.Received{Peer: k, From: path.Source{Addr: x}}
	told(true, true) // that went through us
	r.use(path.Use{Peer: k, Addr: x})
	told(true, true, path.Sent{Peer: k}, direct)
	told(false, true, direct)
	told(false, false)
	data := string(wireGuard(strings.Repeat("x", 100)))
	r.relayed(k, data)
	r.wg4.want(arrival{x, netip.MustParseAddr("127.0.0.1"), data})
	told(true, true, path.Sent{Peer: k}) // that may have been the relay's
	told(false, true, direct)
	r.Roamed(k, netip.MustParseAddrPort("203.0.113.8:800"))
	r.machine.next(t, 1)
	told(false, true) // from the one or the other
	r.Carried(key.NewNode().Public(), true, true)
	if got := r.flush(); len(got) > 0 {
		t.Fatalf("the machine was told %v of nobody", got)
	}
}

// A handshake that led nowhere goes out again on a new way, while it is young
// and not answered.
func TestHandshakeResumed(t *testing.T) {
	noLeak(t)
	outside(t)
	clock := newTestClock()
	r := startRouter(t, func(c *Config) { c.Now = clock.now })
	share(t, public, r.Inner())
	world := listenThere(t, "198.51.100.2:0")
	us := netip.AddrPortFrom(ourV4, public)
	peers := r.meet(2)
	k, other := peers[0], peers[1]
	r.use(path.Use{Peer: other, Addr: world.at, Region: 9})
	begin := func(mark string) string {
		b := handshake(wireguardInitiation, mark)
		r.wg4.send(r.loop(k), b)
		for p := r.conduit.peer(k); ; runtime.Gosched() {
			if i := p.began.Load(); i != nil && string(i.data[:]) == b {
				return b
			}
		}
	}
	way, none := path.Use{Peer: k, Addr: world.at, Region: 7}, path.Use{Peer: k}
	first := begin("first") // there is no way yet
	r.wg4.send(r.loop(other), string(wireGuard("and that is known")))
	world.want(arrival{us, worldV4, string(wireGuard("and that is known"))})
	r.use(path.Use{Peer: k, Addr: world.at, Region: 6})
	world.want(arrival{us, worldV4, first})
	r.use(way) // another relay beside it
	world.want(arrival{us, worldV4, first})
	r.use(path.Use{Peer: k, Addr: world.at, Region: 7, Path: mesh.Path{Reason: "no other way"}})
	r.resumeOver(6)
	r.resumeOver(7)
	world.want(arrival{us, worldV4, first})
	second := begin("second")
	world.want(arrival{us, worldV4, second})
	r.use(none)
	clock.add(initiationFor)
	r.use(way) // WireGuard has given it up by now
	third := begin("third")
	world.want(arrival{us, worldV4, third})
	r.relayed(k, handshake(wireguardResponse, "yes"))
	r.wg4.next()
	r.use(none)
	r.use(way)
	r.wg4.send(r.loop(k), string(wireGuard("data")))
	world.want(arrival{us, worldV4, string(wireGuard("data"))})
}

// Most peers keep their addresses over a restart, none has another's, and they
// are those of peers only.
func TestLoopbackAddresses(t *testing.T) {
	c := &conduit{port: 7, byKey: map[key.NodePublic]*peer{}, byAddr: map[netip.AddrPort]*peer{}}
	inRange := netip.MustParsePrefix("127.64.0.0/10")
	var raw [32]byte
	seen := map[netip.AddrPort]bool{}
	for i := range 300 {
		raw[31] = byte(i) // all lead to one address
		raw[30] = byte(i >> 8)
		copy(raw[:], "\xff\xff\xff\xff")
		k := nodeKey(raw)
		a := c.peer(k).loop
		if seen[a] || !inRange.Contains(a.Addr()) || a.Port() != 7 || c.peer(k).loop != a {
			t.Fatalf("peer %d is at %s", i, a)
		}
		seen[a] = true
	}
	kept := map[key.NodePublic]*peer{}
	for k, p := range c.byKey {
		if len(kept) < 10 {
			kept[k] = p
		}
	}
	c.keep(kept)
	for k, p := range kept {
		if c.peer(k) != p || c.byAddr[p.loop] != p {
			t.Fatal("a peer that stays has become another")
		}
	}
	if len(c.byKey) != 10 || len(c.byAddr) != 10 {
		t.Fatalf("%d peers at %d addresses", len(c.byKey), len(c.byAddr))
	}
}

func nodeKey(raw [32]byte) key.NodePublic { return key.NodePublicFromRaw32(mem.B(raw[:])) }

// The port of the conduit is the one of the last run, or another if it must be.
func TestConduitPort(t *testing.T) {
	noLeak(t)
	a, err := New(Config{Public: public})
	if err != nil {
		t.Fatal(err)
	}
	port := a.ConduitPort()
	b, err := New(Config{Public: public, Conduit: port})
	if err != nil {
		t.Fatalf("the port is taken: %v", err)
	}
	if got := b.ConduitPort(); got == 0 || got == port {
		t.Errorf("both on port %d", got)
	}
	for _, u := range []*Underlay{a, b} {
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	}
	c, err := New(Config{Public: port + 1, Conduit: port})
	if err != nil {
		t.Fatal(err)
	}
	if c.ConduitPort() != port {
		t.Errorf("port %d was free", port)
	}
	c.Close()
	d, err := New(Config{Public: port, Conduit: port})
	if err != nil {
		t.Fatal(err)
	}
	if d.ConduitPort() == port || d.Inner() == port {
		t.Error("WireGuard's port was taken")
	}
	d.Close()
	if e, err := New(Config{Public: port, Port: port}); err == nil {
		e.Close()
		t.Error("the inner port is the outer one")
	}
}

func TestSelfTest(t *testing.T) {
	noLeak(t)
	kernel(t)
	u, err := New(Config{Public: public, OnUse: func(key.NodePublic, netip.AddrPort) {}})
	if err != nil {
		t.Fatal(err)
	}
	u.ssdpGroup = netip.AddrPortFrom(loopback, ssdpPort)
	within := func(d time.Duration) error { // a busy machine is no reason to fail, and what does not come takes it all
		u.trial.mu.Lock()
		u.trial.wait = d
		u.trial.mu.Unlock()
		return u.SelfTest(t.Context())
	}
	fails := func(want ...string) {
		t.Helper()
		err := within(trialTime)
		for _, w := range want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Fatalf("without rules: %v", err)
			}
		}
	}
	works := func() {
		t.Helper()
		if err := within(patience); err != nil {
			t.Fatal(err)
		}
	}
	fails(fmt.Sprintf("127.0.0.1:%d", public), fmt.Sprintf("[::1]:%d", public))
	t.Run("with rules", func(t *testing.T) {
		share(t, public, u.Inner())
		works() // nobody has the public port
		wg := listenHere(t, fmt.Sprintf("0.0.0.0:%d", public))
		works()
		works()
		if len(wg.got) > 0 {
			t.Error("WireGuard got the test's packet")
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- u.Run(ctx) }()
	fails("127.0.0.1")
	share(t, public, u.Inner())
	command(t, "table inet deny { chain in { type filter hook input priority 0; ip6 nexthdr udp drop; }; }", "nft -f -")
	err = within(5 * time.Second)
	command(t, "", "nft delete table inet deny")
	if err == nil || strings.Contains(err.Error(), "127.0.0.1") || !strings.Contains(err.Error(), "[::1]") {
		t.Errorf("only IPv6 is blocked: %v", err)
	}
	works()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Whatever else comes while the test waits is not its packet.
func TestSelfTestStranger(t *testing.T) {
	tr := trial{came: make(chan struct{}, 1)}
	if tr.passes(discoBytes()) {
		t.Error("no test is under way")
	}
	want := discoBytes()
	want[len(want)-1] ^= 1
	tr.want.Store(&want)
	if tr.passes(discoBytes()) || tr.passes(nil) || len(tr.came) > 0 {
		t.Error("a peer's message passes for the test's")
	}
	if !tr.passes(bytes.Clone(want)) || len(tr.came) != 1 {
		t.Error("the test's own packet does not pass")
	}
}

// The whole way: the kernel's first packet to a silent peer wakes the machine,
// which finds a direct path, and the kernel is told; so it is after a restart,
// without anything in between.
func TestKernelDirect(t *testing.T) {
	noLeak(t)
	outside(t)
	b := startBy(t, func(c Config) (*Underlay, error) { return inWorld(t, func() (*Underlay, error) { return New(c) }), nil }, Config{}, nil)
	b.read()
	bAt, us := netip.AddrPortFrom(worldV4, b.port), netip.AddrPortFrom(ourV4, public)
	k := b.key.Public()
	wg := listenHere(t, fmt.Sprintf("0.0.0.0:%d", public))
	pins := make(chan pinned, 10)
	c := Config{Public: public, Disco: key.NewDisco(), OnUse: func(k key.NodePublic, to netip.AddrPort) { pins <- pinned{k, to} }}
	want := pinned{k, bAt}
	live := func(t *testing.T, first bool) {
		a := startWith(t, c, nil)
		share(t, public, a.Inner())
		b.know(nil, a.as(1, 0, us))
		a.know(nil, b.as(2, 0, bAt))
		began := handshake(wireguardInitiation, "hello")
		if first {
			wg.send(a.Endpoint(k), began)
		}
		select {
		case got := <-pins:
			if got != want {
				t.Fatalf("the kernel is to send to %s", got.To)
			}
		case <-time.After(patience):
			t.Fatalf("the kernel was not told; paths %+v", a.Paths())
		}
		if first {
			if got := b.next(); got.data != began {
				t.Fatalf("got %q", got.data)
			}
		}
		b.until("a path back", func() bool { return b.Paths()[a.key.Public()].Addr == us })
		if err := b.Send(a.key.Public(), [][]byte{wireGuard("back")}); err != nil {
			t.Fatal(err)
		}
		wg.want(arrival{bAt, ourV4, string(wireGuard("back"))})
		a.end()
		if len(pins) > 0 {
			t.Fatalf("then it was told to send to %s", (<-pins).To)
		}
	}
	t.Run("first", func(t *testing.T) { live(t, true) })
	c.Adopted = map[key.NodePublic]netip.AddrPort{k: bAt}
	t.Run("after a restart", func(t *testing.T) { live(t, false) })
}

// Both ends know each other by a relay only; on one of them WireGuard is in the
// kernel.
func TestKernelOverRelay(t *testing.T) {
	noLeak(t)
	kernel(t)
	relay := startRelay(t)
	b := startNode(t, nil)
	b.read()
	wg := listenHere(t, fmt.Sprintf("0.0.0.0:%d", public))
	a := startWith(t, Config{Public: public}, nil)
	a.know([]mesh.RelayRegion{relay.region(1)}, b.as(2, 1))
	b.know([]mesh.RelayRegion{relay.region(1)}, a.as(1, 1))
	for _, n := range []*node{a, b} {
		n.until("a home", func() bool { return n.State().HomeRelay == 1 })
		relay.connected(n)
	}
	loop := a.Endpoint(b.key.Public())
	for i := range 50 {
		out, back := wireGuard(fmt.Sprint("out ", i, strings.Repeat("x", 1000))), wireGuard(fmt.Sprint("back ", i, strings.Repeat("x", 1000)))
		wg.send(loop, string(out))
		if got := b.next(); got != (received{a.key.Public(), string(out)}) {
			t.Fatalf("%d: got %q", i, got.data)
		}
		if err := b.Send(a.key.Public(), [][]byte{back, back}); err != nil {
			t.Fatal(err)
		}
		want := arrival{loop, netip.MustParseAddr("127.0.0.1"), string(back)}
		wg.want(want, want)
	}
}

// warnings says that something was logged.
type warnings chan struct{}

func (w warnings) Write(b []byte) (int, error) {
	signal(w)
	return len(b), nil
}

// A relay that could not be reached takes what waited for it along. The
// handshake goes out when it can.
func TestHandshakeResumedOverRelay(t *testing.T) {
	noLeak(t)
	kernel(t)
	relay := startRelay(t)
	region := relay.region(1)
	b := startNode(t, nil)
	b.read()
	wg := listenHere(t, fmt.Sprintf("0.0.0.0:%d", public))
	warned := make(warnings, 1)
	a := startWith(t, Config{Public: public, Log: slog.New(slog.NewTextHandler(warned, &slog.HandlerOptions{Level: slog.LevelWarn}))}, nil)
	b.know([]mesh.RelayRegion{region}, a.as(1, 1))
	b.until("a home", func() bool { return b.State().HomeRelay == 1 })
	region.NoMeasure = true // not a's home: it is connected when needed
	a.know([]mesh.RelayRegion{region}, b.as(2, 1))
	relay.kill()
	began := handshake(wireguardInitiation, "hello")
	wg.send(a.Endpoint(b.key.Public()), began)
	deadline := time.Now().Add(patience)
	select {
	case <-warned:
	case <-time.After(patience):
		t.Fatal("the dead relay was not noticed")
	}
	for len((*a.relays.Load())[1].queue) > 0 {
		runtime.Gosched() // it is said, and what waits dropped, in a moment
	}
	relay.start()
	relay.connected(b)
	for again := time.NewTicker(50 * time.Millisecond); ; { // what waits is lost if a try to connect is just failing
		a.sendRelay(1, key.NewNode().Public(), wireGuard("somebody else's"))
		select {
		case got := <-b.got:
			if got != (received{a.key.Public(), began}) {
				t.Fatalf("got %q", got.data)
			}
			return
		case <-again.C:
		}
		if time.Now().After(deadline) {
			t.Fatal("the handshake did not come")
		}
	}
}

// counter reads a socket and tells how many datagrams came.
func counter(t testing.TB, e *socket) func() int {
	r := newReader(e)
	return func() int {
		if err := r.fill(); err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, _, ok := r.take(); ok; _, _, ok = r.take() {
			n++
		}
		return n
	}
}

// benchRouter is a router whose WireGuard is a bare socket, and a sink in the world.
func benchRouter(b *testing.B) (r *router, wg, sink *socket) {
	outside(b)
	r = &router{}
	r.node = startWith(b, Config{Public: public}, func(u *Underlay) { r.machine = record(u) })
	share(b, public, r.Inner())
	open := func(at string) (*socket, error) {
		conn, err := listenOn(at)
		if err != nil {
			return nil, err
		}
		b.Cleanup(func() { conn.Close() })
		s := &socket{conn: conn}
		s.raw, err = conn.SyscallConn()
		_ = s.raw.Control(s.tune)
		return s, err
	}
	wg, err := open(fmt.Sprintf("127.0.0.1:%d", public))
	if err != nil {
		b.Fatal(err)
	}
	return r, wg, inWorld(b, func() (*socket, error) { return open("198.51.100.2:0") })
}

const benchBatch = 64

// Packets of the kernel to a peer: read on lo, sent directly.
func BenchmarkConduitOut(b *testing.B) {
	r, wg, sink := benchRouter(b)
	k := r.meet(1)[0]
	r.use(path.Use{Peer: k, Addr: sink.conn.LocalAddr().(*net.UDPAddr).AddrPort(), Region: 1})
	s, come := newSender(), counter(b, sink)
	wg.gso.Store(false) // the kernel's WireGuard sends one by one
	packets := slices.Repeat([][]byte{wireGuard(strings.Repeat("x", 1248))}, benchBatch)
	for b.Loop() {
		if err := s.writeBatch(wg, netip.Addr{}, r.loop(k), packets); err != nil {
			b.Fatal(err)
		}
		for n := 0; n < benchBatch; n += come() {
		}
	}
	b.ReportMetric(float64(b.N*benchBatch)/b.Elapsed().Seconds(), "packets/s")
}

// Packets that a relay brought: given to the kernel from the peer's address on
// lo, and from its direct one.
func BenchmarkConduitIn(b *testing.B) {
	for _, f := range []struct {
		name string
		use  path.Use
	}{{"loopback", path.Use{Region: 1}}, {"direct", path.Use{Addr: netip.MustParseAddrPort("203.0.113.7:700")}}} {
		b.Run(f.name, func(b *testing.B) {
			r, wg, _ := benchRouter(b)
			k := r.meet(1)[0]
			f.use.Peer = k
			r.use(f.use)
			come, data := counter(b, wg), string(wireGuard(strings.Repeat("x", 1248)))
			for b.Loop() {
				for range benchBatch {
					r.relayed(k, data)
				}
				for n := 0; n < benchBatch; n += come() {
				}
			}
			b.ReportMetric(float64(b.N*benchBatch)/b.Elapsed().Seconds(), "packets/s")
		})
	}
}
