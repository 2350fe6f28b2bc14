package main

import (
	"context"
	"maps"
	"net/netip"
	"reflect"
	"sync"
	"time"

	"subnetd/subnetd/exit"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/plan"

	"tailscale.com/types/key"
)

// exits finds out which of the exits in use are at hand: it steps the machine of
// package exit, asks whom that wants asked, and tells the engine.
//
// News are levels, but for the paths that moved: whoever has some leaves them here
// and wakes the loop.
type exits struct {
	ping     func(context.Context, key.NodePublic) bool
	received func(key.NodePublic) uint64 // bytes of data
	told     func(map[key.NodePublic]plan.Exit)
	now      func() time.Time

	wake    chan struct{}
	answers chan exit.Answered
	asks    chan chan struct{} // closed once all that was left here is told

	mu     sync.Mutex // guards all below
	uses   []exit.Use
	online map[key.NodePublic]bool
	moved  map[key.NodePublic]bool
	at     map[key.NodePublic]netip.Addr // of direct paths
}

func newExits(d *daemon) *exits {
	return &exits{
		ping: func(ctx context.Context, k key.NodePublic) bool {
			p, err := d.under.Ping(ctx, k)
			return err == nil && p.Kind != mesh.PathNone
		},
		received: func(k key.NodePublic) uint64 { return d.carrier.Stats()[k].Rx },
		told:     d.engine.SetExits,
		now:      d.clock.now,
		wake:     make(chan struct{}, 1),
		answers:  make(chan exit.Answered),
		asks:     make(chan chan struct{}),
		moved:    map[key.NodePublic]bool{},
	}
}

func (x *exits) String() string { return "exits" }

func (x *exits) update(f func()) {
	x.mu.Lock()
	f()
	x.mu.Unlock()
	poke(x.wake)
}

// setUses says which exits the plan uses.
func (x *exits) setUses(uses []exit.Use) { x.update(func() { x.uses = uses }) }

// setNetmap takes what the coordinator says now; of a netmap of before nothing is
// taken.
func (x *exits) setNetmap(nm *mesh.Netmap) {
	online := map[key.NodePublic]bool{}
	for i := range nm.Peers {
		if n := &nm.Peers[i]; n.Online != nil {
			online[n.Key] = *n.Online
		}
	}
	x.update(func() { x.online = online })
}

// pathsChanged takes the paths as they are now, and were.
func (x *exits) pathsChanged(paths, was map[key.NodePublic]mesh.Path) {
	x.update(func() {
		x.at = map[key.NodePublic]netip.Addr{}
		for k, p := range paths {
			if p.Kind == mesh.PathDirect {
				x.at[k] = p.Addr.Addr()
			}
			if old := was[k]; p.Kind != old.Kind || p.Addr != old.Addr { // that it is idle is no news
				x.moved[k] = true
			}
		}
	})
}

// settle waits until the engine knows of the exits that the last plan uses.
func (x *exits) settle(ctx context.Context) {
	done := make(chan struct{})
	select {
	case x.asks <- done:
		<-done
	case <-ctx.Done():
	}
}

// Run judges until ctx ends. Questions that are under way end with it, unheard.
func (x *exits) Run(ctx context.Context) error {
	l := exitLoop{exits: x, ctx: ctx, machine: exit.New(), silent: map[key.NodePublic]silence{}}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		var asked chan struct{}
		select {
		case <-ctx.Done():
			l.asking.Wait()
			return nil
		case asked = <-x.asks:
			l.look()
		case <-x.wake:
			l.look()
		case a := <-x.answers:
			l.step(a)
		case <-timer.C:
			l.step(exit.Tick{})
		}
		l.tell()
		if asked != nil {
			close(asked)
		}
		wait := time.Hour
		if next := l.machine.Wake(); !next.IsZero() {
			wait = max(next.Sub(x.now()), 0)
		}
		timer.Reset(wait)
	}
}

// exitLoop is what belongs to Run's goroutine.
type exitLoop struct {
	*exits
	ctx     context.Context
	asking  sync.WaitGroup
	machine *exit.Machine
	uses    []exit.Use // the machine knows
	online  map[key.NodePublic]bool
	places  map[key.NodePublic]netip.Addr
	known   map[key.NodePublic]plan.Exit // to the engine

	heard  sync.Mutex // guards silent
	silent map[key.NodePublic]silence
}

// silence is how much an exit had sent us when it did not answer the last time.
type silence struct {
	rx uint64
	at time.Time
}

// countFor is how long what an exit had sent says something about whether it goes
// on: until the next question, if that too is in vain, and a bit.
const countFor = 2 * exit.Patience

// look takes what is new.
func (l *exitLoop) look() {
	l.mu.Lock()
	uses, online, moved := l.exits.uses, l.exits.online, l.moved
	l.moved, l.places = map[key.NodePublic]bool{}, l.at
	l.mu.Unlock()
	if !maps.Equal(online, l.online) {
		l.online = online
		l.step(exit.SetOnline{Online: online})
	}
	if !reflect.DeepEqual(uses, l.uses) {
		l.uses = uses
		l.step(exit.SetUses{Uses: uses})
	}
	for k := range moved {
		l.step(exit.Moved{Exit: k})
	}
}

func (l *exitLoop) step(e exit.Event) {
	for _, k := range l.machine.Step(l.now(), e) {
		l.asking.Go(func() {
			a := exit.Answered{Exit: k, OK: l.ask(k)}
			select {
			case l.answers <- a:
			case <-l.ctx.Done():
			}
		})
	}
}

// ask asks one exit. A daemon that is away while its kernel goes on does not
// answer, but data comes.
func (l *exitLoop) ask(k key.NodePublic) bool {
	ctx, cancel := context.WithTimeout(l.ctx, exit.Patience)
	defer cancel()
	if l.ping(ctx, k) {
		return true
	}
	<-ctx.Done() // a refusal is no quicker
	now := silence{l.received(k), l.now()}
	l.heard.Lock()
	defer l.heard.Unlock()
	was := l.silent[k]
	l.silent[k] = now
	return now.at.Sub(was.at) <= countFor && now.rx > was.rx
}

// tell tells the engine what it does not know yet.
func (l *exitLoop) tell() {
	now := map[key.NodePublic]plan.Exit{}
	for k, h := range l.machine.Health() {
		now[k] = plan.Exit{Health: h, At: l.places[k]}
	}
	if !maps.Equal(now, l.known) {
		l.known = now
		l.told(now)
	}
}
