package engine

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"subnetd/subnetd/config"
	"subnetd/subnetd/exit"
	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/plan"
	"subnetd/subnetd/status"

	"tailscale.com/types/key"
)

// hands is a router that remembers what it was told.
type hands struct {
	mu   sync.Mutex // the loop and the test both look
	told []host.Config
	err  error
}

func (h *hands) set(_ context.Context, c host.Config) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.told = append(h.told, c)
	return h.err
}

func (h *hands) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err = err
}

func start(t *testing.T, h *hands) *Engine {
	t.Helper()
	e := New(Config{Apply: h.set, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return e
}

func netmap(expiry time.Time) *mesh.Netmap {
	return &mesh.Netmap{Self: mesh.Node{ID: 1, Name: "home.mesh.", KeyExpiry: expiry,
		Addresses: []netip.Prefix{netip.MustParsePrefix("100.64.0.1/32")}}}
}

func TestAppliesOnceAndAgainOnChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hands{}
		e := start(t, h)
		e.SetConfig(config.Config{})
		synctest.Wait()
		e.Kick()
		e.SetFacts(host.Facts{Hostname: "x"})
		synctest.Wait()
		if len(h.told) != 1 {
			t.Fatalf("applied %d times, want once: nothing changed for the router", len(h.told))
		}
		e.SetNetmap(netmap(time.Time{}), key.NewNode())
		synctest.Wait()
		if len(h.told) != 2 || h.told[1].Tunnel.Name != host.DefaultInterface {
			t.Fatalf("after joining: %+v", h.told)
		}
		e.SetNetmap(nil, key.NodePrivate{})
		synctest.Wait()
		if len(h.told) != 3 || h.told[2].Tunnel.Name != "" {
			t.Fatalf("after leaving: %+v", h.told)
		}
	})
}

// TestBegin: what is offered to the mesh is told before anything is applied, and applied once.
func TestBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hands{}
		var offered [][]netip.Prefix
		e := New(Config{Apply: h.set, Now: time.Now, Log: slog.New(slog.DiscardHandler),
			Planned: func(p plan.Plan) { offered = append(offered, p.Offer) }})
		lan := netip.MustParsePrefix("192.168.77.1/24")
		e.SetConfig(config.Config{LAN: config.LAN{Expose: config.ExposeAll}})
		e.SetFacts(host.Facts{Interfaces: []host.Interface{{Name: "br-lan", Bridge: true, Up: true, Addrs: []netip.Prefix{lan}}}})
		e.SetNetmap(netmap(time.Time{}), key.NewNode())
		e.Begin()
		if len(offered) != 1 || len(offered[0]) != 1 || offered[0][0] != lan.Masked() || len(e.Plan().LANs) != 1 || len(h.told) != 0 {
			t.Fatalf("offered %v, plan %+v, applied %d times", offered, e.Plan(), len(h.told))
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = e.Run(ctx) }()
		synctest.Wait()
		if h.mu.Lock(); len(h.told) != 1 {
			t.Errorf("applied %d times, want once", len(h.told))
		}
		h.mu.Unlock()
	})
}

func TestFailedApplyIsRetriedAndTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hands{err: errors.New("no such device")}
		e := start(t, h)
		e.Kick()
		synctest.Wait()
		if ps := e.Status().Problems; len(ps) != 1 || ps[0].Code != "apply" {
			t.Fatalf("problems = %+v", ps)
		}
		time.Sleep(retryFirst + 2*retryFirst)
		synctest.Wait()
		if len(h.told) != 3 {
			t.Fatalf("applied %d times, want 3 with growing pauses", len(h.told))
		}
		h.fail(nil)
		time.Sleep(retryMost)
		synctest.Wait()
		if n := len(e.Status().Problems); n != 0 {
			t.Fatalf("%d problems stay after success", n)
		}
	})
}

func TestOwnExpiryTakesTheTunnelDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hands{}
		e := start(t, h)
		e.SetNetmap(netmap(time.Now().Add(10*time.Minute)), key.NewNode())
		synctest.Wait()
		if ps := e.Status().Problems; len(ps) != 1 || ps[0].Code != "key-expiry" {
			t.Fatalf("no warning ahead: %+v", ps)
		}
		time.Sleep(11 * time.Minute)
		synctest.Wait()
		if last := h.told[len(h.told)-1]; last.Tunnel.Name != "" {
			t.Fatalf("the tunnel of an expired key stays: %+v", last)
		}
	})
}

func TestWatchGivesTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := start(t, &hands{})
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		w := e.Watch(ctx)
		<-w
		for _, p := range []status.Phase{status.PhaseConnecting, status.PhaseNeedsLogin, status.PhaseJoined} {
			e.SetLink(Link{Phase: p})
		}
		var last status.Phase
		for s := range w {
			if last = s.Phase; last == status.PhaseJoined {
				cancel()
			}
		}
		if last != status.PhaseJoined {
			t.Fatalf("last phase = %q", last)
		}
	})
}

// TestExpiryIsTold: from seven days ahead the owner is told that this node's key expires, by every status.
func TestExpiryIsTold(t *testing.T) {
	for _, tt := range []struct {
		left time.Duration
		want string
	}{
		{0, ""}, // it never expires
		{8 * 24 * time.Hour, ""},
		{6*24*time.Hour + time.Hour, "This node's key expires in 6 days."},
		{-time.Second, "This node's key has expired: the mesh no longer talks to it."},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			e := New(Config{Apply: (&hands{}).set, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
			go func() { _ = e.Run(ctx) }()
			var expiry time.Time
			if tt.left != 0 {
				expiry = time.Now().Add(tt.left)
			}
			e.SetNetmap(netmap(expiry), key.NewNode())
			synctest.Wait()
			got := ""
			for _, p := range e.Status().Problems {
				if p.Code == "key-expiry" || p.Code == "key-expired" {
					got = p.Text
				}
			}
			if got != tt.want {
				t.Errorf("%v before: %q, want %q", tt.left, got, tt.want)
			}
		})
	}
}

// TestRepair: the hands look at the machine again when somebody was at it, though the plan is the same.
func TestRepair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		h := &hands{}
		e := New(Config{Apply: h.set, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
		go func() { _ = e.Run(ctx) }()
		count := func() int {
			synctest.Wait()
			h.mu.Lock()
			defer h.mu.Unlock()
			return len(h.told)
		}
		e.SetNetmap(netmap(time.Time{}), key.NewNode())
		before := count()
		e.Kick()
		if n := count(); n != before {
			t.Errorf("an unchanged plan was applied %d times more", n-before)
		}
		e.Repair()
		if n := count(); n != before+1 {
			t.Errorf("after a repair: %d times, want once", n-before)
		}
	})
}

// TestDevices: a device is in the plan as soon as both it and its mesh address are known.
func TestDevices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hands{}
		e := start(t, h)
		lan, at := netip.MustParsePrefix("192.168.77.1/24"), netip.MustParseAddr("100.64.5.5")
		e.SetFacts(host.Facts{Interfaces: []host.Interface{{Name: "br-lan", Bridge: true, Up: true, Addrs: []netip.Prefix{lan}}}})
		nm := netmap(time.Time{})
		nm.Self.AllowedIPs = append(nm.Self.Addresses, netip.PrefixFrom(at, 32))
		e.SetNetmap(nm, key.NewNode())
		c := config.Default()
		c.LAN.Devices = []config.Device{{Name: "tv", Addr: lan.Addr().Next()}}
		e.SetConfig(c)
		synctest.Wait()
		e.SetDevices([]mesh.Device{{Name: "tv", LAN: []netip.Addr{lan.Addr().Next()}, Mesh: []netip.Addr{at}}})
		synctest.Wait()
		if got := h.told[len(h.told)-1].Firewall.Devices; len(got) != 1 || got[0].Mesh != at {
			t.Fatalf("devices = %+v", got)
		}
		e.SetDevices(nil)
		synctest.Wait()
		if got := h.told[len(h.told)-1].Firewall.Devices; len(got) != 0 {
			t.Fatalf("devices stay: %+v", got)
		}
	})
}

// TestTunnelEngine: which engine is at work is told, and the shared port is planned.
func TestTunnelEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hands{}
		e := start(t, h)
		changed := e.Watch(t.Context())
		<-changed
		e.SetEngine("kernel", "")
		if s := <-changed; s.Engine != "kernel" || s.EngineReason != "" {
			t.Errorf("engine %q, reason %q", s.Engine, s.EngineReason)
		}
		e.SetEngine("userspace", "this kernel has no WireGuard")
		if s := <-changed; s.Engine != "userspace" || s.EngineReason != "this kernel has no WireGuard" {
			t.Errorf("engine %q, reason %q", s.Engine, s.EngineReason)
		}
		want := host.PortShare{Outer: 41001, Inner: 7001}
		e.SetShare(want)
		synctest.Wait()
		if got := h.told[len(h.told)-1].Firewall.Share; got != want {
			t.Errorf("planned %+v", got)
		}
	})
}

// TestExits: what is known of exits is planned at once, and told; lists of exits keep
// their numbers from plan to plan.
func TestExits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hands{}
		e := start(t, h)
		far := key.NewNode().Public()
		nm := netmap(time.Time{})
		nm.Peers = []mesh.Node{{ID: 2, Name: "far.mesh.", Key: far, Addresses: []netip.Prefix{netip.MustParsePrefix("100.64.0.2/32")},
			AllowedIPs: []netip.Prefix{netip.MustParsePrefix("100.64.0.2/32"), netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}}}
		e.SetNetmap(nm, key.NewNode())
		rows := []config.ExitRow{{Sources: config.Sources{Router: true}}, {Sources: config.Sources{LAN: true}, Exits: []string{"far"}}}
		e.SetConfig(config.Config{Exit: config.Exit{Rows: rows}})
		last := func() host.Config {
			synctest.Wait()
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.told[len(h.told)-1]
		}
		if c := last(); len(c.Tunnel.Exits) != 1 || c.Route.Ways[1].Interface != c.Tunnel.Exits[0].Name {
			t.Fatalf("%+v", c)
		}
		e.SetExits(map[key.NodePublic]plan.Exit{far: {Health: exit.Health{State: exit.Dead}}})
		if c := last(); len(c.Tunnel.Exits) != 1 || c.Route.Ways[1] != (host.Way{Block: true}) {
			t.Fatalf("of a dead exit: %+v", c)
		}
		s := e.Status().Exits
		if len(s.Rows) != 2 || s.Rows[1].Now != status.ExitBlocked || len(s.There) != 1 {
			t.Fatalf("%+v", s)
		}
		e.SetConfig(config.Config{Exit: config.Exit{Rows: rows[1:]}})
		if c := last(); c.Firewall.Sources[0].Way != 1 {
			t.Fatalf("the number of a way is another: %+v", c.Firewall.Sources)
		}
	})
}

// TestAnswer: a loop that hangs answers nobody, one that waits everybody, and a question
// changes nothing.
func TestAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hands{}
		hung := make(chan struct{})
		e := New(Config{Now: time.Now, Log: slog.New(slog.DiscardHandler), Apply: func(ctx context.Context, c host.Config) error {
			<-hung
			return h.set(ctx, c)
		}})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- e.Run(ctx) }()
		if err := e.Answer(ctx); err != nil {
			t.Errorf("a loop with nothing to do: %v", err)
		}
		e.SetConfig(config.Config{})
		synctest.Wait()
		soon, stop := context.WithTimeout(ctx, time.Hour)
		defer stop()
		if err := e.Answer(soon); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a loop that hangs: %v", err)
		}
		close(hung)
		for range 3 {
			if err := e.Answer(ctx); err != nil {
				t.Error(err)
			}
		}
		if len(h.told) != 1 {
			t.Errorf("applied %d times for one change", len(h.told))
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := e.Answer(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("a loop that has ended: %v", err)
		}
	})
}
