// Package coord is the coordinator of a mesh, small enough for a router: it
// speaks ts2021, the protocol between Tailscale's clients and their server.
//
//	client ── HTTP upgrade, Noise ──► web.go ── HTTP/2 ──► register.go   who are you
//	                                                  └──► session.go    long poll of the map
//	register, session, admin, time ── change ──► registry.go: one writer
//	      draft of the next snapshot ─► disk, if it must last ─► publish ─► sessions wake
//
// The registry is an immutable snapshot behind one pointer. Whoever wants
// something else hands a function to the writer and hears when its snapshot is
// out; readers never wait. view.go makes of a snapshot what a client is shown.
package coord

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"subnetd/subnetd/coord/policy"

	"golang.org/x/sync/errgroup"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// The bounds of one mesh.
const (
	maxNodes   = 10000
	maxKeys    = 1000
	maxUsers   = 1000
	maxDevices = 1000  // behind the router itself
	maxAll     = 2000  // devices behind all nodes: each is four DNS records that every member has
	maxRemoved = 1000  // keys of nodes that are gone
	maxSpent   = 20000 // addresses of nodes and devices that are gone
)

// Times of the protocol and of this house.
const (
	offlineAfter   = 10 * time.Second // without a long poll
	returnWithin   = 30 * time.Second // after our start, those who were online before still count as it
	ephemeralAfter = time.Minute      // offline, an ephemeral node is removed
	pendingFor     = 15 * time.Minute
	inviteFor      = 24 * time.Hour
)

// Store keeps what must last: Load is false if nothing was saved by that name;
// Save returns when it is on the disk.
type Store interface {
	Load(name string, v any) (found bool, err error)
	Save(name string, v any) error
}

// Config is what a Coordinator needs.
type Config struct {
	Domain string // of the members' names, without dots at its ends
	Store  Store
	Policy *policy.Policy
	Now    func() time.Time
	Log    *slog.Logger
	// Changed is called after each change of what the admin calls show, Gone when
	// a node key is none of ours any more. They must not block.
	Changed func()
	Gone    func(key.NodePublic)
}

// Place is how the world reaches this coordinator.
type Place struct {
	URL    string           // base of login pages, where the client's own is not better; no slash at its end
	Relays *tailcfg.DERPMap // for everybody
	Inside *tailcfg.DERPMap // for the router's own node
}

// Names is what the mesh's DNS answers and asks besides the members' names.
type Names struct {
	Records []Record
	Split   map[string][]netip.AddrPort // domain -> resolvers
}

// Record is one extra name.
type Record struct {
	Name string // without a dot at its end; without any dot it is one of our domain
	Addr netip.Addr
}

// Coordinator is one mesh.
type Coordinator struct {
	cfg     Config
	noise   key.MachinePrivate
	changes chan *change
	snap    atomic.Pointer[snapshot]
	started time.Time
	stopped chan struct{} // closed when Run is over
	news    chan struct{} // one slot, for watchTime: there is another snapshot
	moves   chan struct{} // one slot, for keepHints: the same

	outer *http.Server // of the router's own node, in memory
	door  *pipeListener
	inner *http.Server // HTTP/2 inside Noise
	hall  *pipeListener
	crowd *crowd // all connections in the hall

	mu       sync.Mutex // guards all below
	sessions map[tailcfg.NodeID]*session
	pending  map[string]*visitor // by code
	probes   map[string]*probe   // by token
}

// What admin calls wrap when they are asked for what is not there.
var (
	ErrUnknownNode = errors.New("no node of this mesh is called that")
	ErrUnknownCode = errors.New("nobody waits with that code")
	ErrUnknownKey  = errors.New("there is no such key")
)

// BadRequest is an admin call's mistake in its asker's words.
type BadRequest string

func (b BadRequest) Error() string { return string(b) }

func badf(format string, a ...any) error { return BadRequest(fmt.Sprintf(format, a...)) }

var errStopped = errors.New("the coordinator is stopping")

// New reads what was kept, or begins a mesh. It serves nobody before Run.
func New(cfg Config) (*Coordinator, error) {
	c := &Coordinator{
		cfg: cfg, changes: make(chan *change), stopped: make(chan struct{}), started: cfg.Now(),
		news: make(chan struct{}, 1), moves: make(chan struct{}, 1),
		sessions: map[tailcfg.NodeID]*session{}, pending: map[string]*visitor{}, probes: map[string]*probe{},
	}
	if err := c.load(); err != nil {
		return nil, err
	}
	c.serveInside()
	return c, nil
}

func (c *Coordinator) String() string { return "coordinator" }

// Run serves until ctx ends.
func (c *Coordinator) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.write(ctx) })
	group.Go(func() error { return c.watchTime(ctx) })
	group.Go(func() error { return c.keepHints(ctx) })
	group.Go(func() error { return served(c.outer.Serve(c.door)) })
	group.Go(func() error { return served(c.inner.Serve(c.hall)) })
	group.Go(func() error {
		<-ctx.Done()
		close(c.stopped)
		return errors.Join(c.outer.Close(), c.inner.Close(), c.door.Close(), c.hall.Close())
	})
	return group.Wait()
}

func served(err error) error {
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("coordinator: %w", err)
}

// Admits reports whether the key is that of a member in good standing, for relays.
func (c *Coordinator) Admits(k key.NodePublic) bool {
	n := c.snap.Load().byKey[k]
	return n != nil && !n.expired(c.cfg.Now())
}

// SetPolicy puts a policy in force.
func (c *Coordinator) SetPolicy(ctx context.Context, p *policy.Policy) error {
	return c.update(ctx, func(d *draft) error {
		d.policy, d.around = p, true
		for id := range maps.Clone(d.nodes) {
			d.edit(id) // it may approve other routes
		}
		return nil
	})
}

// SetPlace says how the world reaches us now.
func (c *Coordinator) SetPlace(ctx context.Context, p Place) error {
	return c.update(ctx, func(d *draft) error {
		d.place, d.around = p, true
		return nil
	})
}

// SetNames replaces the extra names.
func (c *Coordinator) SetNames(ctx context.Context, n Names) error {
	return c.update(ctx, func(d *draft) error {
		d.names, d.around = n, true
		return nil
	})
}
