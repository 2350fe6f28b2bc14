package tunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"subnetd/subnetd/host"

	"golang.org/x/sys/unix"
	"tailscale.com/types/key"
)

// TestRealKernel is the engine over the kernel of this machine, in network
// namespaces of its own. SUBNETD_TEST_KERNEL_WG says that the kernel must have
// WireGuard.
func TestRealKernel(t *testing.T) {
	if os.Getenv("SUBNETD_TEST_NETNS") == "" {
		inNamespace(t)
		return
	}
	if _, err := Find("mesh0"); err != nil {
		if os.Getenv("SUBNETD_TEST_KERNEL_WG") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	if all, err := net.Interfaces(); err != nil || len(all) != 1 {
		t.Errorf("trying left interfaces %v, %v", all, err)
	}
	ip(t, "link set lo up", "addr add 10.9.0.1/32 dev lo")
	t.Run("two peers", testRealPair)
	t.Run("errors", testRealErrors)
	t.Run("many", testRealMany)
	t.Run("exits", testRealExits)
}

// inNamespace runs the test again in a network namespace.
func inNamespace(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("this test needs root")
		}
		t.Skip("this test needs root")
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "SUBNETD_TEST_NETNS=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Fatalf("%v\n%s", err, out)
	case bytes.Contains(out, []byte("--- SKIP: "+t.Name())):
		t.Skipf("%s", out)
	}
	t.Logf("%s", out)
}

// ip runs lines of the ip command in this thread's namespace.
func ip(t *testing.T, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if out, err := exec.Command("ip", strings.Fields(l)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", l, err, out)
		}
	}
}

// space is a thread in a network namespace of its own.
type space struct{ calls chan func() }

func newSpace(t *testing.T) *space {
	s := &space{calls: make(chan func())}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with us
		failed <- unix.Unshare(unix.CLONE_NEWNET)
		for f := range s.calls {
			f()
		}
	}()
	t.Cleanup(func() { close(s.calls) })
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	return s
}

// do calls f in the namespace.
func (s *space) do(f func()) {
	done := make(chan struct{})
	s.calls <- func() { defer close(done); f() }
	<-done
}

// counted counts what is set.
type counted struct {
	*wgKernel
	sets int
}

func (c *counted) set(name string, s *wgSet) error {
	c.sets++
	return c.wgKernel.set(name, s)
}

// realSide is an engine with one peer.
type realSide struct {
	*Kernel
	wg   *counted
	ways *fakeWays
	want host.Tunnel
}

func newRealSide(name string, port uint16, k key.NodePrivate, peer key.NodePublic, addr string) *realSide {
	s := &realSide{wg: &counted{wgKernel: newWGKernel()}, ways: &fakeWays{}}
	s.Kernel = NewKernel(slog.New(slog.DiscardHandler), port, host.Mark, s.ways)
	s.Kernel.wg = s.wg
	s.want = host.Tunnel{Name: name, Key: k, Peers: []host.Peer{{Key: peer, Session: "1", AllowedIPs: []netip.Prefix{netip.MustParsePrefix(addr)}}}}
	return s
}

func (s *realSide) peer() key.NodePublic { return s.want.Peers[0].Key }

// at is where the kernel sends to the peer.
func (s *realSide) at(t *testing.T) (at netip.AddrPort) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.wg.dump(s.name, func(p *wgPeer) { at = p.endpoint }); err != nil {
		t.Fatal(err)
	}
	return at
}

// handshake is when the peers last shook hands, as the kernel has it now.
func (s *realSide) handshake(t *testing.T) (at time.Time) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.wg.dump(s.name, func(p *wgPeer) { at = p.stat.Handshake }); err != nil {
		t.Fatal(err)
	}
	return at
}

// until waits for what happens by itself.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	every := time.NewTicker(20 * time.Millisecond)
	defer every.Stop()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-every.C:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}

const realPort1, realPort2, realPort3, realPort4, realPort5 = 51821, 51822, 51823, 51824, 51825

func local(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
}

func outside(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("10.9.0.1"), port)
}

// testRealPair has two interfaces in two namespaces exchange packets, whose
// WireGuard meets in the first one's.
func testRealPair(t *testing.T) {
	ka, kb := key.NewNode(), key.NewNode()
	a := newRealSide("mesh0", realPort1, ka, kb.Public(), "100.64.0.2/32")
	b := newRealSide("mesh1", realPort2, kb, ka.Public(), "100.64.0.1/32")
	a.ways.point(a.peer(), local(realPort2))
	b.ways.point(b.peer(), local(realPort1))
	mustSet(t, a.Kernel, a.want)
	ip(t, "addr add 100.64.0.1/32 dev mesh0", "route add 100.64.0.2/32 dev mesh0")

	second := newSpace(t)
	if err := newWGKernel().create("mesh1"); err != nil { // its sockets stay here
		t.Fatal(err)
	}
	var ns string
	second.do(func() { ns = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid()) })
	moveLink(t, "mesh1", ns)
	listen := func(addr string) net.PacketConn {
		c, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	var ca, cb net.PacketConn
	second.do(func() {
		mustSet(t, b.Kernel, b.want)
		ip(t, "addr add 100.64.0.2/32 dev mesh1", "route add 100.64.0.1/32 dev mesh1")
		cb = listen("100.64.0.2:7000")
	})
	ca = listen("100.64.0.1:7000")
	pass := func(from, to net.PacketConn) {
		t.Helper()
		if _, err := from.WriteTo([]byte("hello"), to.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		to.SetReadDeadline(time.Now().Add(20 * time.Second))
		if n, _, err := to.ReadFrom(buf); err != nil || string(buf[:n]) != "hello" {
			t.Fatalf("%q, %v", buf[:n], err)
		}
	}
	pass(ca, cb)
	pass(cb, ca)
	if st := a.Stats()[a.peer()]; st.Rx == 0 || st.Tx == 0 || time.Since(st.Handshake) > time.Minute {
		t.Errorf("stats %+v", st)
	}
	checkTool(t, "mesh0")

	// Nothing differs: nothing is done, by the next life neither.
	shook := a.handshake(t)
	next := newRealSide("mesh0", realPort1, ka, kb.Public(), "100.64.0.2/32")
	next.ways = a.ways
	next.Kernel.ways = a.ways
	next.wg.sets, a.wg.sets = 0, 0
	mustSet(t, a.Kernel, a.want)
	mustSet(t, next.Kernel, a.want)
	if a.wg.sets+next.wg.sets != 0 {
		t.Errorf("%d and %d messages though nothing differs", a.wg.sets, next.wg.sets)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a = next
	pass(ca, cb)
	if got := a.handshake(t); !got.Equal(shook) {
		t.Errorf("shaken hands at %v and again at %v", shook, got)
	}

	// The peer restarted.
	a.want.Peers = copyPeers(a.want.Peers)
	a.want.Peers[0].Session = "2"
	mustSet(t, a.Kernel, a.want)
	if got := a.handshake(t); a.wg.sets != 1 || !got.IsZero() {
		t.Errorf("%d messages, shaken hands at %v", a.wg.sets, got)
	}
	pass(ca, cb)
	pass(cb, ca)

	// Pins, and a peer whose NAT takes another port.
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- a.Run(ctx) }()
	defer func() { cancel(); <-done }()
	a.Pin(a.peer(), outside(realPort2))
	until(t, "the pin", func() bool { return a.at(t) == outside(realPort2) })
	pass(ca, cb)
	pass(cb, ca)
	moved := newRealSide("mesh1", realPort3, kb, ka.Public(), "100.64.0.1/32")
	second.do(func() { mustSet(t, moved.Kernel, moved.want) })
	if got, want := moved.ways.told(), "roamed "+ka.Public().ShortString()+" "+outside(realPort1).String(); got != want {
		t.Errorf("news of what was left: %q, want %q", got, want)
	}
	a.ways.told()
	pass(cb, ca)
	until(t, "news of the other port", func() bool {
		s := a.ways.told()
		return strings.Contains(s, "roamed "+kb.Public().ShortString()+" "+outside(realPort3).String()) &&
			strings.Contains(s, "carried "+kb.Public().ShortString())
	})
	pass(ca, cb)
	a.Pin(a.peer(), local(realPort3))
	until(t, "the pin", func() bool { return a.at(t) == local(realPort3) })
	pass(ca, cb)
	pass(cb, ca)

	// A handshake without packets, for a peer that has had none.
	a.ways.point(a.peer(), outside(realPort3))
	a.want.Peers = copyPeers(a.want.Peers)
	a.want.Peers[0].Session = "3"
	mustSet(t, a.Kernel, a.want)
	a.Kick(a.peer())
	until(t, "the handshake", func() bool { return !a.handshake(t).IsZero() })

	// A new key is a new life.
	a.want.Key = key.NewNode()
	mustSet(t, a.Kernel, a.want)
	if got := a.handshake(t); !got.IsZero() {
		t.Errorf("shaken hands at %v with a key of now", got)
	}
	mustSet(t, a.Kernel, host.Tunnel{})
	if _, err := net.InterfaceByName("mesh0"); err == nil {
		t.Error("the interface stayed")
	}
}

// moveLink moves an interface to another namespace; its sockets stay.
func moveLink(t *testing.T, name, ns string) {
	t.Helper()
	w := newWGKernel()
	defer w.close()
	l, err := w.link(name)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m := ifinfo(l.index, 0, 0)
	m.put32(unix.IFLA_NET_NS_FD, uint32(f.Fd()))
	if err := w.route.ask(unix.RTM_NEWLINK, 4, m, nothing); err != nil {
		t.Fatal(err)
	}
}

// checkTool asks WireGuard's own tool.
func checkTool(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath("wg"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Error(err)
		}
		return
	}
	out, err := exec.Command("wg", "show", name).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for _, want := range []string{
		`listening port: 51821`, `fwmark: 0x5000000`, `endpoint: 127\.0\.0\.1:51822`, `allowed ips: 100\.64\.0\.2/32`, `latest handshake: `,
	} {
		if !regexp.MustCompile(want).Match(out) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.Contains(string(out), "keepalive") {
		t.Errorf("keepalives:\n%s", out)
	}
}

func testRealErrors(t *testing.T) {
	taken, err := net.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(taken.LocalAddr().(*net.UDPAddr).Port)
	s := newRealSide("mesh5", port, key.NewNode(), key.NewNode().Public(), "100.64.0.9/32")
	if err := s.Set(t.Context(), s.want); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), fmt.Sprintf("UDP port %d is taken", port)) {
		t.Errorf("a taken port gives %v", err)
	}
	taken.Close()
	mustSet(t, s.Kernel, s.want)
	second := newRealSide("mesh6", port, key.NewNode(), key.NewNode().Public(), "100.64.0.9/32")
	if err := second.Set(t.Context(), second.want); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("two interfaces on a port: %v", err)
	}
	second.Kernel.port = port + 1
	mustSet(t, second.Kernel, second.want)
	second.Kernel.port = port
	if err := second.Set(t.Context(), second.want); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("an interface that shall move to a taken port: %v", err)
	}

	ip(t, "link add mesh7 type bridge")
	s.want.Name = "mesh7"
	if err := s.Set(t.Context(), s.want); err == nil || !strings.Contains(err.Error(), "somebody else's") {
		t.Errorf("a taken name gives %v", err)
	}
	for name, stays := range map[string]bool{"mesh6": false, "mesh7": true, "mesh8": false} {
		if err := RemoveKernel(name); err != nil {
			t.Errorf("removing %s: %v", name, err)
		}
		if _, err := net.InterfaceByName(name); (err == nil) != stays {
			t.Errorf("%s after its removal: %v", name, err)
		}
	}
	// A failure leaves a conversation that goes on.
	s.want.Name = "mesh8"
	mustSet(t, s.Kernel, s.want)
	if left, err := Find("mesh8"); err != nil || left.Name != "mesh8" || left.Port != port || len(left.Direct) != 0 {
		t.Errorf("left %+v, %v", left, err)
	}
	mustSet(t, s.Kernel, host.Tunnel{})
}

// testRealMany: more peers than fit into a message of the kernel's, and peers
// with more addresses than that.
func testRealMany(t *testing.T) {
	s := newRealSide("mesh4", realPort1, key.NewNode(), key.NewNode().Public(), "100.64.0.9/32")
	s.want.Peers = somePeers(100)
	for i := range s.want.Peers {
		if i%40 != 7 {
			continue
		}
		for j := range 2*maxAllowed + 1 {
			a := netip.AddrFrom16([16]byte{0x20, 1: byte(i), 2: byte(j / 256), 3: byte(j % 256)})
			s.want.Peers[i].AllowedIPs = append(s.want.Peers[i].AllowedIPs, netip.PrefixFrom(a, 64))
		}
	}
	s.ways.point(s.want.Peers[5].Key, direct2)
	start := time.Now()
	mustSet(t, s.Kernel, s.want)
	added := time.Since(start)
	for _, p := range s.want.Peers {
		if got, want := s.holds(t, p.Key), p.AllowedIPs; !slices.Equal(sorted(got), sorted(want)) {
			t.Errorf("a peer has %d addresses, want %d", len(got), len(want))
		}
	}
	s.wg.sets = 0
	start = time.Now()
	mustSet(t, s.Kernel, s.want)
	t.Logf("100 peers: added in %v, compared in %v", added.Round(time.Millisecond), time.Since(start).Round(time.Microsecond))
	if s.wg.sets != 0 {
		t.Errorf("%d messages though nothing differs", s.wg.sets)
	}
	if left, err := Find("mesh4"); err != nil || len(left.Direct) != 1 || left.Direct[s.want.Peers[5].Key] != direct2 {
		t.Errorf("left %+v, %v", left.Direct, err)
	}
	// An error that quotes a message larger than our buffer is still told.
	big := wgChange{key: s.peer(), allowed: slices.Repeat(s.want.Peers[7].AllowedIPs[:1], maxAllowed)}
	if err := s.wg.set("mesh99", &wgSet{peers: slices.Repeat([]wgChange{big}, batchPeers)}); !errors.Is(err, unix.ENODEV) {
		t.Errorf("an interface that is not there: %v", err)
	}
	// Addresses move in a ring.
	first := s.want.Peers[0].AllowedIPs
	for i := range s.want.Peers[1:] {
		s.want.Peers[i].AllowedIPs = s.want.Peers[i+1].AllowedIPs
	}
	s.want.Peers[len(s.want.Peers)-1].AllowedIPs = first
	mustSet(t, s.Kernel, s.want)
	s.wg.sets = 0
	mustSet(t, s.Kernel, s.want)
	if s.wg.sets != 0 {
		t.Errorf("%d messages after all addresses moved", s.wg.sets)
	}
	s.want.Peers = s.want.Peers[:3]
	mustSet(t, s.Kernel, s.want)
	if got := len(s.Stats()); got != 3 {
		t.Errorf("%d peers stayed", got)
	}
	mustSet(t, s.Kernel, host.Tunnel{})
}

// holds are the addresses of a peer.
func (s *realSide) holds(t *testing.T, k key.NodePublic) (all []netip.Prefix) {
	t.Helper()
	if _, err := s.wg.dump(s.want.Name, func(p *wgPeer) {
		if p.key == k {
			all = slices.Clone(p.allowed)
		}
	}); err != nil {
		t.Fatal(err)
	}
	return all
}
