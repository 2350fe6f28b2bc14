package watch

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"subnetd/subnetd/host"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

var plain = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func run(t *testing.T, line string) {
	t.Helper()
	args := strings.Fields(line)
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
}

func build(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		for _, n := range []string{"br0", "wan0", "wan2"} {
			_ = exec.Command("ip", "link", "del", n).Run()
		}
	})
	for _, line := range []string{
		"ip link set lo up",
		"ip link add br0 type bridge",
		"ip addr add 192.168.1.1/24 dev br0",
		"ip link add wan0 type veth peer name wan1",
		"ip link set wan0 addrgenmode none up",
		"ip link set wan1 addrgenmode none up",
		"ip addr add 203.0.113.5/24 dev wan0",
		"ip addr add 2001:db8::5/64 dev wan0 nodad",
		"ip route add default via 203.0.113.1 metric 10",
		"ip route add default dev wan1 metric 5",
		"ip -6 route add default via 2001:db8::1",
		"ip route add default via 203.0.113.9 table 77",
		"ip link add wan2 type veth peer name wan3",
		"ip link set wan3 addrgenmode none up",
		"ip link set wan2 addrgenmode none up",
		"ip addr add 192.168.8.2/24 dev wan2",
		"ip route add default via 192.168.8.1 table 77 metric 9",
	} {
		run(t, line)
	}
	for _, n := range []string{"wan0", "wan1", "wan2", "wan3"} {
		awaitUp(t, n)
	}
	run(t, "ip link set lo up") // waits for the kernel's lock, and so for its word of that
}

// awaitUp waits until the kernel has seen that a link has a carrier, of which it tells up to a second later.
func awaitUp(t *testing.T, link string) {
	t.Helper()
	for begin := time.Now(); time.Since(begin) < 10*time.Second; time.Sleep(10 * time.Millisecond) {
		if out, err := exec.Command("ip", "-o", "link", "show", "dev", link).Output(); err == nil && strings.Contains(string(out), " state UP ") {
			return
		}
	}
	t.Fatalf("%s is not up", link)
}

func TestFacts(t *testing.T) {
	build(t)
	got, err := Facts(nil)
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]host.Interface{}
	for _, i := range got.Interfaces {
		i.Index = 0
		byName[i.Name] = i
	}
	p := netip.MustParsePrefix
	want := map[string]host.Interface{
		"lo":   {Name: "lo", Up: true, Addrs: []netip.Prefix{p("127.0.0.1/8"), p("::1/128")}},
		"br0":  {Name: "br0", Bridge: true, Addrs: []netip.Prefix{p("192.168.1.1/24")}},
		"wan0": {Name: "wan0", Up: true, Uplink: true, Addrs: []netip.Prefix{p("203.0.113.5/24"), p("2001:db8::5/64")}},
		"wan1": {Name: "wan1", Up: true, Uplink: true},
		"wan3": {Name: "wan3", Up: true},
		"wan2": {Name: "wan2", Up: true, Uplink: true, Addrs: []netip.Prefix{p("192.168.8.2/24")}},
	}
	if d := cmp.Diff(want, byName, plain); d != "" {
		t.Error(d)
	}
	defaults := []host.Default{
		{Interface: "wan1"},
		{Interface: "wan0", Gateway: netip.MustParseAddr("203.0.113.1")},
		{Interface: "wan0", Gateway: netip.MustParseAddr("2001:db8::1"), V6: true},
	}
	if d := cmp.Diff(defaults, got.Defaults, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Error(d)
	}
	if got.Hostname == "" {
		t.Error("no hostname")
	}
}

// Real changes arrive; the Watcher ends with its context and leaks nothing.
func TestRun(t *testing.T) {
	build(t)
	ctx, cancel := context.WithCancel(t.Context())
	seen := make(chan host.Facts, 16)
	ended := make(chan error, 1)
	go func() {
		ended <- New(slog.New(slog.DiscardHandler), func(f host.Facts) { seen <- f }, func() {}).Run(ctx)
	}()
	<-seen
	until := func(what string, ok func(host.Facts) bool) {
		t.Helper()
		for f := range seen {
			if ok(f) {
				return
			}
		}
	}
	has := func(s string) func(host.Facts) bool {
		return func(f host.Facts) bool {
			for _, i := range f.Interfaces {
				for _, a := range i.Addrs {
					if a.String() == s {
						return true
					}
				}
			}
			return false
		}
	}
	run(t, "ip addr add 203.0.113.77/24 dev wan0")
	until("v4 address", has("203.0.113.77/24"))
	run(t, "ip addr add 2001:db8::77/64 dev wan0 nodad")
	until("v6 address", has("2001:db8::77/64"))
	run(t, "ip route del default dev wan1")
	until("route", func(f host.Facts) bool { return len(f.Defaults) == 2 })
	run(t, "ip link set br0 up")
	until("link", func(f host.Facts) bool {
		for _, i := range f.Interfaces {
			if i.Name == "br0" && i.Up {
				return true
			}
		}
		return false
	})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A burst is one look, equal Facts are no report, a failed look is repeated.
func TestLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var mu sync.Mutex // guards what follows: time alone orders nothing
		looks, reports := 0, []string(nil)
		now := host.Facts{Hostname: "a"}
		var fail error
		w := &Watcher{
			log: slog.New(slog.DiscardHandler),
			onChange: func(f host.Facts) {
				mu.Lock()
				defer mu.Unlock()
				reports = append(reports, f.Hostname)
			},
			onTouch: func() {},
			look: func([]string) (host.Facts, error) {
				mu.Lock()
				defer mu.Unlock()
				looks++
				return now, fail
			},
		}
		machine := func(name string, err error) {
			mu.Lock()
			defer mu.Unlock()
			now.Hostname, fail = name, err
		}
		events := make(chan struct{}, 1)
		go w.loop(ctx, events, nil)
		check := func(wantLooks int, want ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if d := cmp.Diff(want, reports); looks != wantLooks || d != "" {
				t.Errorf("%d looks, want %d; %s", looks, wantLooks, d)
			}
		}
		events <- struct{}{}
		check(1, "a")
		for range 5 { // a burst without effect
			events <- struct{}{}
			time.Sleep(quiet / 2)
		}
		time.Sleep(quiet)
		check(2, "a")
		machine("b", nil)
		for range 40 { // an endless burst does not put the look off for ever
			events <- struct{}{}
			time.Sleep(quiet / 2)
		}
		time.Sleep(quiet)
		check(4, "a", "b")
		machine("c", errors.New("busy"))
		events <- struct{}{}
		time.Sleep(quiet + 1)
		check(5, "a", "b")
		machine("c", nil)
		time.Sleep(pause)
		check(6, "a", "b", "c")
		cancel()
		synctest.Wait()
	})
}

// What was touched is reported soon, without a change of the Facts too, and so again after a quiet time; who touches all
// the time is reported once a second.
func TestTouch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var touches atomic.Int32
		w := &Watcher{
			log:      slog.New(slog.DiscardHandler),
			onChange: func(host.Facts) {},
			onTouch:  func() { touches.Add(1) },
			look:     func([]string) (host.Facts, error) { return host.Facts{Hostname: "a"}, nil },
		}
		events, moves := make(chan struct{}, 1), make(chan struct{}, 1)
		go w.loop(ctx, events, moves)
		check := func(want int32) {
			t.Helper()
			synctest.Wait()
			if got := touches.Load(); got != want {
				t.Errorf("%d touches reported, want %d", got, want)
			}
		}
		touch := func() { events <- struct{}{}; time.Sleep(2 * quiet) }
		events <- struct{}{}
		check(0) // the first look is no touch
		for range 10 {
			moves <- struct{}{}
			time.Sleep(2 * quiet)
			check(0) // nor is what becomes of neighbours
		}
		for i := range touchBurst {
			touch()
			check(int32(i) + 1)
		}
		touch()
		check(touchBurst) // too soon
		time.Sleep(touchPause)
		check(touchBurst + 1) // but not forgotten
		time.Sleep(10 * touchPause)
		check(touchBurst + 1)
		before := touches.Load()
		for begin := time.Now(); time.Since(begin) < 100*touchPause; {
			touch()
		}
		if n := touches.Load() - before; n < 99 || n > 100+touchBurst {
			t.Errorf("in a fight of 100 s %d touches were reported", n)
		}
		time.Sleep(touchBurst * touchPause)
		before = touches.Load()
		touch()
		check(before + 1) // at once, after a quiet time
		cancel()
		synctest.Wait()
	})
}

// Foreign hands in the rules are seen.
func TestRunTouch(t *testing.T) {
	build(t)
	ctx, cancel := context.WithCancel(t.Context())
	first, touched := make(chan struct{}, 16), make(chan struct{}, 16)
	ended := make(chan error, 1)
	go func() {
		ended <- New(slog.New(slog.DiscardHandler), func(host.Facts) { first <- struct{}{} }, func() { touched <- struct{}{} }).Run(ctx)
	}()
	<-first
	t.Cleanup(func() { _ = exec.Command("ip", "rule", "del", "from", "192.0.2.1", "table", "77").Run() })
	run(t, "ip rule add from 192.0.2.1 table 77")
	<-touched
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestNeighbours: a followed device's addresses are told, of both families, and
// when they change hands; that a neighbour is still there is no news.
func TestNeighbours(t *testing.T) {
	build(t)
	const tv, pc = "02:00:00:00:00:01", "02:00:00:00:00:02"
	run(t, "ip neigh replace 203.0.113.50 lladdr "+tv+" dev wan0 nud reachable")
	ctx, cancel := context.WithCancel(t.Context())
	seen := make(chan host.Facts, 16)
	w := New(slog.New(slog.DiscardHandler), func(f host.Facts) { seen <- f }, func() {})
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	if f := <-seen; len(f.Neighbours) != 0 {
		t.Errorf("nobody was asked for: %v", f.Neighbours)
	}
	until := func(want ...string) {
		t.Helper()
		for f := range seen {
			var got []string
			for _, n := range f.Neighbours {
				got = append(got, n.Addr.String()+" "+n.MAC+" "+n.Interface)
			}
			if cmp.Equal(got, want) {
				return
			}
		}
	}
	w.Follow([]string{tv})
	until("203.0.113.50 " + tv + " wan0")
	run(t, "ip neigh replace 2001:db8::50 lladdr "+tv+" dev wan0 nud stale")
	run(t, "ip neigh replace fe80::50 lladdr "+tv+" dev wan0 nud stale")
	run(t, "ip neigh replace 203.0.113.51 lladdr "+pc+" dev wan0 nud reachable")
	until("203.0.113.50 "+tv+" wan0", "2001:db8::50 "+tv+" wan0")
	run(t, "ip neigh replace 203.0.113.50 lladdr "+pc+" dev wan0 nud reachable")
	until("2001:db8::50 " + tv + " wan0")
	run(t, "ip neigh del 2001:db8::50 dev wan0")
	until()
	w.Follow(nil)
	w.Follow([]string{pc})
	until("203.0.113.50 "+pc+" wan0", "203.0.113.51 "+pc+" wan0")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Of what the kernel tells of neighbours only another place is news, and what is
// remembered for that is bounded.
func TestMoved(t *testing.T) {
	msg := func(kind, link int, addr, mac string, state uint16) netlink.Message {
		b := make([]byte, 12)
		b[0] = unix.AF_INET
		binary.NativeEndian.PutUint32(b[4:], uint32(link))
		binary.NativeEndian.PutUint16(b[8:], state)
		ae := netlink.NewAttributeEncoder()
		ae.Bytes(unix.NDA_DST, netip.MustParseAddr(addr).AsSlice())
		if hw, err := net.ParseMAC(mac); err == nil {
			ae.Bytes(unix.NDA_LLADDR, hw)
		}
		attrs, err := ae.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind)}, Data: append(b, attrs...)}
	}
	const a, b = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
	k := knownNeighbours{}
	for i, tt := range []struct {
		m    netlink.Message
		news bool
	}{
		{msg(unix.RTM_NEWNEIGH, 1, "10.0.0.1", "", unix.NUD_INCOMPLETE), false},
		{msg(unix.RTM_NEWNEIGH, 1, "10.0.0.1", a, unix.NUD_REACHABLE), true},
		{msg(unix.RTM_NEWNEIGH, 1, "10.0.0.1", a, unix.NUD_STALE), false},
		{msg(unix.RTM_NEWNEIGH, 2, "10.0.0.1", a, unix.NUD_STALE), true},
		{msg(unix.RTM_NEWNEIGH, 1, "10.0.0.1", b, unix.NUD_REACHABLE), true},
		{msg(unix.RTM_NEWNEIGH, 1, "10.0.0.1", b, unix.NUD_FAILED), true},
		{msg(unix.RTM_NEWNEIGH, 1, "10.0.0.1", b, unix.NUD_FAILED), false},
		{msg(unix.RTM_DELNEIGH, 2, "10.0.0.1", a, unix.NUD_STALE), true},
		{msg(unix.RTM_DELNEIGH, 2, "10.0.0.1", a, unix.NUD_STALE), false},
		{netlink.Message{Data: []byte{1, 2, 3}}, false},
	} {
		if got := k.moved([]netlink.Message{tt.m}); got != tt.news {
			t.Errorf("%d: news %v, want %v", i, got, tt.news)
		}
	}
	for i := range 3 * maxKnown {
		addr := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}).String()
		k.moved([]netlink.Message{msg(unix.RTM_NEWNEIGH, 1, addr, a, unix.NUD_STALE)})
	}
	if len(k) > maxKnown {
		t.Errorf("%d are remembered", len(k))
	}
}

// A device that makes up addresses gets no more than its share.
func TestChosen(t *testing.T) {
	var all []host.Neighbour
	for i := range 500 {
		all = append(all, host.Neighbour{Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), MAC: []string{"a", "b", "c"}[min(i%3, 1)]})
	}
	all = append(all, host.Neighbour{MAC: "c"})
	got := chosen(all, []string{"a", "c"})
	if len(got) != perMAC+1 || got[perMAC].MAC != "c" {
		t.Errorf("%d neighbours", len(got))
	}
}

// TestRules: policy rules of others are seen, of both families.
func TestRules(t *testing.T) {
	build(t)
	undo := []string{"ip rule del pref 2001", "ip -6 rule del pref 1500"}
	t.Cleanup(func() {
		for _, line := range undo {
			args := strings.Fields(line)
			_ = exec.Command(args[0], args[1:]...).Run()
		}
	})
	run(t, "ip rule add pref 2001 fwmark 0x100/0x3f00 lookup 1")
	run(t, "ip -6 rule add pref 1500 from 2001:db8::/64 lookup 8412")
	f, err := Facts(nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []host.PolicyRule{{Priority: 2001, Table: 1, Mark: 0x100, Mask: 0x3f00}, {V6: true, Priority: 1500, Table: 8412}}
	if d := cmp.Diff(want, f.Rules); d != "" {
		t.Error(d)
	}
}

// TestCounters: a datagram that one end of a wire sends is received by the other, and
// counted with all its headers.
func TestCounters(t *testing.T) {
	build(t)
	run(t, "ip link set wan0 arp off")
	run(t, "ip link set wan1 arp off")
	names := []string{"wan0", "wan1", "none"}
	before, err := Counters(names)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("udp4", "203.0.113.77:9")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const size, headers = 1000, 14 + 20 + 8
	for range 5 {
		if _, err := c.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
	}
	after, err := Counters(names)
	if err != nil {
		t.Fatal(err)
	}
	sent, came := after["wan0"].Tx-before["wan0"].Tx, after["wan1"].Rx-before["wan1"].Rx
	if want := uint64(5 * (size + headers)); len(after) != 2 || sent != want || came != want {
		t.Errorf("%d bytes sent, %d received, want %d of each; %v", sent, came, want, after)
	}
}
