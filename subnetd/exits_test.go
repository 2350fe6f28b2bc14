package main

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"subnetd/subnetd/exit"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/plan"

	"tailscale.com/types/key"
)

// exitWorld is exits that answer or not, and what the engine was told of them.
type exitWorld struct {
	mu      sync.Mutex
	silent  map[key.NodePublic]bool
	sending map[key.NodePublic]bool // data, whether they answer or not
	bytes   uint64
	asked   int
	told    map[key.NodePublic]plan.Exit
}

func startExits(t *testing.T) (*exitWorld, *exits) {
	w := &exitWorld{silent: map[key.NodePublic]bool{}, sending: map[key.NodePublic]bool{}}
	x := &exits{
		ping: func(ctx context.Context, k key.NodePublic) bool {
			w.mu.Lock()
			w.asked++
			silent := w.silent[k]
			w.mu.Unlock()
			if silent {
				<-ctx.Done()
			}
			return !silent
		},
		received: func(k key.NodePublic) uint64 {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.sending[k] {
				w.bytes += 1000
			}
			return w.bytes
		},
		told: func(m map[key.NodePublic]plan.Exit) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.told = m
		},
		now: time.Now, wake: make(chan struct{}, 1), answers: make(chan exit.Answered), asks: make(chan chan struct{}), moved: map[key.NodePublic]bool{},
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- x.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return w, x
}

func (w *exitWorld) state(k key.NodePublic) exit.State {
	synctest.Wait()
	return w.toldNow(k)
}

// toldNow is what the engine knows already.
func (w *exitWorld) toldNow(k key.NodePublic) exit.State {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.told[k].State
}

// asks is how many questions there were since the last call.
func (w *exitWorld) asks() int {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.asked
	w.asked = 0
	return n
}

func (w *exitWorld) set(what map[key.NodePublic]bool, k key.NodePublic, to bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	what[k] = to
}

// TestExits: one that falls silent is dead within ten seconds, unless data of it comes,
// and back by itself; nothing is left running in the end.
func TestExits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, x := startExits(t)
		far, near := key.NewNode().Public(), key.NewNode().Public()
		x.setUses([]exit.Use{{Exits: []key.NodePublic{far, near}}})
		time.Sleep(time.Minute)
		if w.state(far) != exit.Alive || w.state(near) != exit.Unknown {
			t.Fatalf("%+v", w.told)
		}
		w.set(w.sending, far, true) // its daemon is away, its kernel goes on
		w.set(w.silent, far, true)
		time.Sleep(time.Minute)
		if w.state(far) != exit.Alive {
			t.Fatal("dead, although it sends")
		}
		w.set(w.sending, far, false)
		time.Sleep(10 * time.Second)
		if w.state(far) != exit.Dead || w.state(near) != exit.Alive {
			t.Fatalf("%+v", w.told)
		}
		w.set(w.silent, far, false)
		time.Sleep(time.Minute)
		if w.state(far) != exit.Alive {
			t.Fatalf("%+v", w.told)
		}
		x.setUses(nil)
		synctest.Wait()
		if len(w.told) != 0 {
			t.Errorf("of exits nobody uses is told: %+v", w.told)
		}
	})
}

// TestExitsNews: what the coordinator says, and a path that broke, have an exit asked
// that is asked nothing else; where it is reached directly is told.
func TestExitsNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, x := startExits(t)
		far, on, off := key.NewNode().Public(), true, false
		x.setNetmap(&mesh.Netmap{Peers: []mesh.Node{{Key: far, Online: &off}}})
		w.set(w.silent, far, true)
		x.setUses([]exit.Use{{Exits: []key.NodePublic{far}}})
		x.settle(t.Context())
		if s := w.toldNow(far); s != exit.Dead {
			t.Errorf("told: %v", s)
		}
		x.setUses(nil)
		x.settle(t.Context())
		w.set(w.silent, far, false)
		time.Sleep(time.Minute)
		w.asks()
		x.setNetmap(&mesh.Netmap{Peers: []mesh.Node{{Key: far, Online: &on}, {Key: key.NewNode().Public()}}})
		x.setUses([]exit.Use{{Exits: []key.NodePublic{far}}})
		at := netip.MustParseAddrPort("198.51.100.7:41641")
		direct := map[key.NodePublic]mesh.Path{far: {Kind: mesh.PathDirect, Addr: at}}
		time.Sleep(time.Hour)
		if n := w.asks(); n != 0 {
			t.Fatalf("asked %d times for nothing", n)
		}
		x.pathsChanged(direct, nil)
		if n := w.asks(); w.told[far].At != at.Addr() || n != 1 {
			t.Errorf("%+v, asked %d times", w.told, n)
		}
		idle := map[key.NodePublic]mesh.Path{far: {Kind: mesh.PathDirect, Addr: at, Relay: 1, Reason: "idle"}}
		x.pathsChanged(idle, direct)
		time.Sleep(time.Minute)
		if n := w.asks(); n != 0 {
			t.Errorf("asked %d times because it is idle", n)
		}
		w.set(w.silent, far, true)
		x.setNetmap(&mesh.Netmap{Peers: []mesh.Node{{Key: far, Online: &off}}})
		time.Sleep(10 * time.Second)
		if w.state(far) != exit.Dead {
			t.Error("offline and silent, and not dead")
		}
	})
}
