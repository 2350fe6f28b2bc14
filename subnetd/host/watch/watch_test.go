package watch

import (
	"context"
	"errors"
	"log/slog"
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
		for _, n := range []string{"br0", "wan0"} {
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
	} {
		run(t, line)
	}
}

func TestFacts(t *testing.T) {
	build(t)
	got, err := Facts()
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
		"wan0": {Name: "wan0", Up: true, Addrs: []netip.Prefix{p("203.0.113.5/24"), p("2001:db8::5/64")}},
		"wan1": {Name: "wan1", Up: true},
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
			look: func() (host.Facts, error) {
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
		go w.loop(ctx, events)
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

// What was touched is reported soon, without a change of the Facts too, but not more often than every few seconds.
func TestTouch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var touches atomic.Int32
		w := &Watcher{
			log:      slog.New(slog.DiscardHandler),
			onChange: func(host.Facts) {},
			onTouch:  func() { touches.Add(1) },
			look:     func() (host.Facts, error) { return host.Facts{Hostname: "a"}, nil },
		}
		events := make(chan struct{}, 1)
		go w.loop(ctx, events)
		check := func(want int32) {
			t.Helper()
			synctest.Wait()
			if got := touches.Load(); got != want {
				t.Errorf("%d touches reported, want %d", got, want)
			}
		}
		events <- struct{}{}
		check(0) // the first look is no touch
		events <- struct{}{}
		time.Sleep(quiet)
		check(1)
		events <- struct{}{}
		time.Sleep(2 * quiet)
		check(1) // too soon
		time.Sleep(touchPause)
		check(2) // but not forgotten
		time.Sleep(10 * touchPause)
		check(2)
		cancel()
		synctest.Wait()
	})
}

// Foreign hands in the packet filter and the rules are seen.
func TestRunTouch(t *testing.T) {
	build(t)
	ctx, cancel := context.WithCancel(t.Context())
	first, touched := make(chan struct{}, 16), make(chan struct{}, 16)
	ended := make(chan error, 1)
	go func() {
		ended <- New(slog.New(slog.DiscardHandler), func(host.Facts) { first <- struct{}{} }, func() { touched <- struct{}{} }).Run(ctx)
	}()
	<-first
	t.Cleanup(func() {
		_ = exec.Command("nft", "delete", "table", "inet", "stranger").Run()
		_ = exec.Command("ip", "rule", "del", "from", "192.0.2.1", "table", "77").Run()
	})
	run(t, "nft add table inet stranger")
	<-touched
	run(t, "ip rule add from 192.0.2.1 table 77")
	<-touched
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
