package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"subnetd/subnetd/host"
	"subnetd/subnetd/host/tunnel"

	"github.com/google/go-cmp/cmp"
	"tailscale.com/types/key"
)

// fakeUnderlay tells addresses.
type fakeUnderlay struct {
	tunnel.Ways
	served map[key.NodePublic]uint16
	from   map[key.NodePublic][]netip.AddrPort
}

func (f *fakeUnderlay) Serve(ports map[key.NodePublic]uint16)  { f.served = ports }
func (f *fakeUnderlay) From(k key.NodePublic) []netip.AddrPort { return f.from[k] }

// What a life before left stays until the engine speaks; then doors follow engine
// and underlay, say nothing twice, and try again what failed.
func TestDoors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var told [][]host.ShareExit
		var fail error
		share := func(_ context.Context, outer uint16, all []host.ShareExit) error {
			if outer != 41001 {
				t.Errorf("outer port %d", outer)
			}
			mu.Lock()
			defer mu.Unlock()
			told = append(told, all)
			return fail
		}
		want := func(all ...[]host.ShareExit) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if d := cmp.Diff(all, told, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
				t.Error(d)
			}
			told = nil
		}
		a, b, c := key.NewNode().Public(), key.NewNode().Public(), key.NewNode().Public()
		x, y := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2")
		u := &fakeUnderlay{from: map[key.NodePublic][]netip.AddrPort{a: {x}}}
		d := newDoors(slog.New(slog.DiscardHandler), 41001, share, tunnel.Left{Exits: []tunnel.LeftExit{
			{Name: "mesh-1", Port: 9, Peer: b}, {Name: "mesh-2", Port: 7, Peer: a}, {Name: "mesh-3", Port: 8}, {Name: "mesh-4", Peer: c}}})
		if err := d.open(t.Context(), u); err != nil {
			t.Fatal(err)
		}
		want([]host.ShareExit{{Port: 7, From: []netip.AddrPort{x}}, {Port: 9}})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- d.Run(ctx) }()
		d.look()
		want()
		u.from[b] = []netip.AddrPort{y}
		d.look()
		now := []host.ShareExit{{Port: 7, From: []netip.AddrPort{x}}, {Port: 9, From: []netip.AddrPort{y}}}
		want(now)
		works := func(err error) {
			mu.Lock()
			defer mu.Unlock()
			fail = err
		}
		works(errors.New("out of order"))
		u.from[b] = nil
		d.look()
		now = []host.ShareExit{{Port: 7, From: []netip.AddrPort{x}}, {Port: 9}}
		want(now)
		time.Sleep(doorRetry)
		want(now)
		works(nil)
		time.Sleep(doorRetry)
		want(now)
		time.Sleep(time.Hour)
		want()
		if err := d.Served(t.Context(), map[key.NodePublic]uint16{b: 9}); err != nil {
			t.Error(err)
		}
		want([]host.ShareExit{{Port: 9}})
		if len(u.served) != 1 || u.served[b] != 9 {
			t.Errorf("served %v", u.served)
		}
		broken := errors.New("out of order")
		works(broken)
		if err := d.Served(t.Context(), nil); !errors.Is(err, broken) {
			t.Errorf("error %v", err)
		}
		want([]host.ShareExit{})
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
