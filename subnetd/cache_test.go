package main

import (
	"context"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"subnetd/subnetd/mesh"
	"subnetd/subnetd/state"

	"tailscale.com/types/key"
)

// cacheRig is a netmap cache in a directory of its own, whose writes are counted.
type cacheRig struct {
	t      *testing.T
	c      *netmapCache
	writes atomic.Int32
	nm     mesh.Netmap
}

func newCacheRig(t *testing.T) *cacheRig {
	dir, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := &cacheRig{t: t}
	r.c = newNetmapCache(dir, slog.New(slog.DiscardHandler), func(trouble string) {
		if trouble != "" {
			t.Error(trouble)
		}
		r.writes.Add(1)
	})
	r.nm = mesh.Netmap{Domain: "mesh", Peers: []mesh.Node{{ID: 2, Key: key.NewNode().Public(), HomeRelay: 1}}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		if err := dir.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// put gives the cache the rig's netmap after a change.
func (r *cacheRig) put(change func(*mesh.Netmap)) {
	next := r.nm
	next.Peers = []mesh.Node{r.nm.Peers[0]}
	change(&next)
	r.nm = next
	r.c.put("c", &next)
}

func (r *cacheRig) moved(i int) {
	r.put(func(nm *mesh.Netmap) {
		nm.Peers[0].Endpoints = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{1, 2, 3, 4}), uint16(i))}
	})
}

func (r *cacheRig) judged(i int) {
	r.put(func(nm *mesh.Netmap) { nm.Filter = []mesh.Rule{{Protos: []uint8{uint8(i)}}} })
}

func (r *cacheRig) want(what string, writes int) {
	r.t.Helper()
	synctest.Wait()
	if n := r.writes.Swap(0); int(n) != writes {
		r.t.Errorf("%s: %d writes, want %d", what, n, writes)
	}
}

// A new policy is on disk at once, however often peers have moved before, since the
// next start begins with what is there; and yet the flash is spared from anybody.
func TestCacheWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newCacheRig(t)
		r.judged(1)
		r.want("the first netmap", 1)
		r.put(func(nm *mesh.Netmap) { nm.Peers[0].Online, nm.Health = new(bool), []string{"it rains"} })
		time.Sleep(time.Hour)
		r.want("who is online", 0)
		for i := range 1000 {
			r.moved(i)
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if n := r.writes.Swap(0); n > saveBurst+1000/60+1 || n < 10 {
			t.Errorf("a peer that moves: %d writes in 1,000 s", n)
		}
		r.judged(2)
		r.want("a policy after that", 1)
		if got := r.c.load("c"); len(got.Filter) != 1 || got.Filter[0].Protos[0] != 2 {
			t.Errorf("on disk is %+v", got)
		}
		r.put(func(nm *mesh.Netmap) { nm.Peers[0].Key = key.NewNode().Public() })
		r.want("another key", 0)
		time.Sleep(saveAfter)
		r.want("another key, a moment later", 1)
		for i := range 200 {
			r.judged(i + 3)
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if n := r.writes.Load(); n > decideBurst+200/20+1 || n < decideBurst {
			t.Errorf("a coordinator that cannot decide: %d writes in 200 s", n)
		}
		time.Sleep(decideEvery)
		synctest.Wait()
		if got := r.c.load("c"); got.Filter[0].Protos[0] != 202 {
			t.Errorf("its last word is not on disk: %+v", got.Filter)
		}
	})
}

// A restart with an unchanged mesh writes nothing.
func TestCacheOfBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newCacheRig(t)
		r.judged(1)
		r.want("the first netmap", 1)
		if r.c.load("c") == nil || r.c.load("other") != nil {
			t.Error("the cache of that coordinator, and of no other, is to be found")
		}
		again := newCacheRig(t)
		again.c.dir, again.nm = r.c.dir, r.nm
		again.c.load("c")
		again.put(func(*mesh.Netmap) {})
		time.Sleep(time.Hour)
		again.want("the same netmap after a restart", 0)
	})
}
