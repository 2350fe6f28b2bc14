// Package engine is the one loop of the daemon: it takes the latest inputs,
// compiles the plan, lets the hands apply it and publishes what came of it.
//
// Inputs are levels, not edges: whoever has news replaces its input and wakes
// the loop. News that come while a plan is applied are taken together next.
package engine

import (
	"context"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"

	"subnetd/subnetd/config"
	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/plan"
	"subnetd/subnetd/status"

	"tailscale.com/types/key"
)

const (
	retryFirst = time.Second      // after the first failed apply
	retryMost  = 30 * time.Second // between later ones
)

// Link is how the connection to the coordinator stands.
type Link struct {
	Phase       status.Phase
	Control     string
	LoginURL    string
	Error       string
	LastContact time.Time
}

// Config is what an Engine needs.
type Config struct {
	Version string
	Apply   func(context.Context, host.Config) error
	// Planned is called after a plan was made, before it is applied: what is
	// offered to the mesh goes to the coordinator from here.
	Planned func(plan.Plan)
	// Live adds to a snapshot what changes without a new plan: paths, counters.
	Live func(*status.Snapshot, *mesh.Netmap)
	Now  func() time.Time
	Log  *slog.Logger
}

// Engine owns the inputs, the plan and its result.
type Engine struct {
	cfg  Config
	wake chan struct{} // one slot: look again
	asks chan struct{} // no slot: taken by a loop that lives

	mu       sync.Mutex // guards all below; never held while applying
	in       plan.Inputs
	link     Link
	tunnel   [2]string // which engine moves the packets, and why that one
	extra    []status.Problem
	gen      uint64
	news     uint64 // counts the changes of in
	seen     uint64 // of news, what plan and applyErr are about
	plan     plan.Plan
	applyErr error
	touched  bool          // somebody was at the machine since the last look
	changed  chan struct{} // closed and replaced at each publication
}

// New gives an Engine that waits for its inputs.
func New(cfg Config) *Engine {
	return &Engine{cfg: cfg, wake: make(chan struct{}, 1), asks: make(chan struct{}), changed: make(chan struct{})}
}

func (e *Engine) String() string { return "engine" }

// Kick asks for a new look at the inputs, although none of them changed.
func (e *Engine) Kick() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Repair asks for a look at the machine itself: somebody was at it.
func (e *Engine) Repair() {
	e.mu.Lock()
	e.touched = true
	e.mu.Unlock()
	e.Kick()
}

// Refresh tells everybody who watches that what Live adds has changed.
func (e *Engine) Refresh() {
	e.mu.Lock()
	e.publish()
	e.mu.Unlock()
}

func (e *Engine) update(f func()) {
	e.mu.Lock()
	f()
	e.news++
	e.mu.Unlock()
	e.Kick()
}

// SetConfig replaces the owner's wishes.
func (e *Engine) SetConfig(c config.Config) { e.update(func() { e.in.Config = c; e.gen++ }) }

// SetFacts replaces what the machine is.
func (e *Engine) SetFacts(f host.Facts) { e.update(func() { e.in.Facts = f }) }

// SetNetmap replaces what the coordinator told; nil leaves the mesh.
func (e *Engine) SetNetmap(nm *mesh.Netmap, node key.NodePrivate) {
	e.update(func() { e.in.Netmap, e.in.Key = nm, node })
}

// SetDown says whether the owner wants nothing of ours on the machine.
func (e *Engine) SetDown(down bool) { e.update(func() { e.in.Down = down }) }

// SetDevices replaces the things on the LAN that have addresses in the mesh.
func (e *Engine) SetDevices(ds []mesh.Device) { e.update(func() { e.in.Devices = ds }) }

// SetPort says by which UDP port of this router the world reaches us.
func (e *Engine) SetPort(p uint16) { e.update(func() { e.in.Port = p }) }

// SetPeerAPI says on which TCP port of ours members ask this node itself.
func (e *Engine) SetPeerAPI(p uint16) { e.update(func() { e.in.PeerAPI = p }) }

// SetFront says on which TCP port of ours is what this router serves for itself and for
// devices.
func (e *Engine) SetFront(p uint16) { e.update(func() { e.in.Front = p }) }

// SetShare says whether that port is WireGuard's in the kernel, and where we are
// then; zero: it is ours alone.
func (e *Engine) SetShare(s host.PortShare) { e.update(func() { e.in.Share = s }) }

// SetShut says which of the plan's openings the firewalls of others shut.
func (e *Engine) SetShut(shut []host.Shut) {
	e.mu.Lock()
	same := slices.Equal(e.in.Shut, shut)
	e.mu.Unlock()
	if !same {
		e.update(func() { e.in.Shut = shut })
	}
}

// SetExits replaces what is known of exits beside the netmap.
func (e *Engine) SetExits(x map[key.NodePublic]plan.Exit) { e.update(func() { e.in.Exits = x }) }

// SetEngine says which engine moves the packets, and why that one, in one sentence.
func (e *Engine) SetEngine(name, reason string) {
	e.mu.Lock()
	e.tunnel = [2]string{name, reason}
	e.publish()
	e.mu.Unlock()
}

// SetLink replaces the state of the connection to the coordinator.
func (e *Engine) SetLink(l Link) {
	e.mu.Lock()
	e.link = l
	e.publish()
	e.mu.Unlock()
}

// SetProblem tells the owner of a trouble outside of the plan; an empty text
// says that the one with that code is over.
func (e *Engine) SetProblem(code, text, fix string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	i := slices.IndexFunc(e.extra, func(p status.Problem) bool { return p.Code == code })
	switch {
	case i < 0 && text == "":
		return
	case text == "":
		e.extra = slices.Delete(e.extra, i, i+1)
	case i < 0:
		e.extra = append(e.extra, status.Problem{Code: code, Text: text, Fix: fix, Since: e.cfg.Now()})
	default:
		e.extra[i].Text, e.extra[i].Fix = text, fix
	}
	e.publish()
}

// Begin makes the first plan, before Run applies it: what follows from it is known
// when others start, so that the coordinator is not told of a router that offers
// nothing yet, and takes its routes away.
func (e *Engine) Begin() {
	p, _ := e.compile()
	e.mu.Lock()
	e.plan = p
	e.publish()
	e.mu.Unlock()
	if e.cfg.Planned != nil {
		e.cfg.Planned(p)
	}
}

// Run is the loop; it ends with ctx and leaves the router as it is.
func (e *Engine) Run(ctx context.Context) error {
	var (
		applied host.Config
		done    bool // applied is what the hands last did without an error
		wait    time.Duration
		timer   = time.NewTimer(time.Hour)
	)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.asks:
			continue
		case <-e.wake:
		case <-timer.C:
		}
		p, news := e.compile()
		if e.cfg.Planned != nil {
			e.cfg.Planned(p)
		}
		var err error
		if !done || e.wasTouched() || !reflect.DeepEqual(applied, p.Host) {
			err = e.cfg.Apply(ctx, p.Host)
			applied, done = p.Host, err == nil
		}
		if err != nil && ctx.Err() == nil {
			e.cfg.Log.Warn("the router is not as planned, trying again", "err", err)
		}
		wait = backoff(wait, err)
		timer.Reset(e.next(p, wait))
		e.mu.Lock()
		e.plan, e.applyErr, e.seen = p, err, news
		e.publish()
		e.mu.Unlock()
	}
}

func (e *Engine) wasTouched() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	was := e.touched
	e.touched = false
	return was
}

func (e *Engine) compile() (p plan.Plan, news uint64) {
	e.mu.Lock()
	in, news := e.in, e.news
	in.Ways = e.plan.Ways
	e.mu.Unlock()
	in.Now = e.cfg.Now()
	return plan.Compile(in), news
}

// Answer waits until the loop has taken a question, which it does whenever it is not at
// work: one that hangs never does. The error is ctx's.
func (e *Engine) Answer(ctx context.Context) error {
	select {
	case e.asks <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Settle waits until the router is what the inputs of this moment ask for. The
// error is what stood in the way, or ctx's.
func (e *Engine) Settle(ctx context.Context) error {
	e.mu.Lock()
	want := e.news
	for e.seen < want {
		changed := e.changed
		e.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
		e.mu.Lock()
	}
	defer e.mu.Unlock()
	return e.applyErr
}

func backoff(last time.Duration, err error) time.Duration {
	if err == nil {
		return 0
	}
	return min(max(2*last, retryFirst), retryMost)
}

// next is when to look again without being woken.
func (e *Engine) next(p plan.Plan, wait time.Duration) time.Duration {
	if wait > 0 {
		return wait
	}
	if p.Recheck.IsZero() {
		return time.Hour
	}
	return min(max(p.Recheck.Sub(e.cfg.Now()), time.Second), time.Hour)
}

// publish tells everybody who waits; e.mu is held.
func (e *Engine) publish() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// Plan gives the last plan made.
func (e *Engine) Plan() plan.Plan {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.plan
}

// Netmap gives the netmap in use, nil if there is none.
func (e *Engine) Netmap() *mesh.Netmap {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.in.Netmap
}

// Watch sends a snapshot now and after each change until ctx ends. A slow
// reader gets the newest one, not each.
func (e *Engine) Watch(ctx context.Context) <-chan status.Snapshot {
	out := make(chan status.Snapshot)
	go func() {
		defer close(out)
		for {
			e.mu.Lock()
			changed := e.changed
			e.mu.Unlock()
			select {
			case out <- e.Status():
			case <-ctx.Done():
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}
