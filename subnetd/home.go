package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"reflect"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"subnetd/subnetd/config"
	"subnetd/subnetd/coord"
	"subnetd/subnetd/coord/policy"
	"subnetd/subnetd/ingress"
	"subnetd/subnetd/plan"
	"subnetd/subnetd/relay"

	"golang.org/x/sync/errgroup"
	"tailscale.com/types/key"
)

const (
	homeControl = "home"        // mesh.control for the coordinator in this router
	homeURL     = "http://home" // what its own client calls it; nobody resolves that
	homeRetry   = 5 * time.Second
	// maxStrangers connections at once: each may cost 200 KB before it is known.
	maxStrangers = 192
)

var errNotWanted = errors.New("this router is not the coordinator any more")

// home is the mesh in this router, for as long as mesh.control is "home":
// coordinator, relay, STUN, and the port on which the world reaches them.
type home struct {
	d    *daemon
	log  *slog.Logger
	kick chan struct{} // one slot: wishes, addresses or the own node changed
	news chan struct{} // one slot: the mesh changed

	mu      sync.Mutex // guards all below
	parts   *parts     // nil: not serving
	changed chan struct{}
	trouble error // why it is not serving
	policy  policyState
}

// parts are what serves; none of the fields changes.
type parts struct {
	coord *coord.Coordinator
	relay *relay.Server
	certs *certificates
	stun  bool // STUN is answered
}

func newHome(d *daemon) *home {
	return &home{d: d, log: d.logger("home"), kick: make(chan struct{}, 1), news: make(chan struct{}, 1), changed: make(chan struct{})}
}

func (h *home) String() string { return "home mesh" }

// look says that something changed that the home mesh depends on.
func (h *home) look() { poke(h.kick) }

func poke(slot chan struct{}) {
	select {
	case slot <- struct{}{}:
	default:
	}
}

func (h *home) wanted() bool { return h.d.control() == homeControl && !h.d.member.isDown() }

// Run serves while that is wanted, until ctx ends.
func (h *home) Run(ctx context.Context) error {
	served := false
	for ctx.Err() == nil {
		var retry <-chan time.Time
		if h.wanted() {
			served = true
			err := h.serve(ctx)
			if err != nil && !errors.Is(err, errNotWanted) && ctx.Err() == nil {
				h.log.Error("the home mesh is not served", "err", err)
				h.d.engine.SetProblem("home", "This router is not the coordinator it shall be: "+err.Error(), "It is tried again by itself.")
				h.set(nil, err)
				retry = time.After(homeRetry)
			}
			if retry == nil {
				continue
			}
		} else if served {
			served = false
			h.forget()
		}
		select {
		case <-ctx.Done():
		case <-h.kick:
		case <-retry:
		}
	}
	return nil
}

// set says what serves now, or why nothing does.
func (h *home) set(p *parts, trouble error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.parts, h.trouble = p, trouble
	close(h.changed)
	h.changed = make(chan struct{})
}

// serve opens all parts and runs them until ctx ends, one of them fails, or the
// owner wants no coordinator here.
func (h *home) serve(ctx context.Context) error {
	cfg := h.d.config()
	group, ctx := errgroup.WithContext(ctx)
	p, err := h.open(cfg)
	if err != nil {
		return err
	}
	defer p.relay.Close()
	mux := http.NewServeMux()
	mux.Handle("/derp", p.relay.Handler())
	mux.Handle("/derp/", p.relay.Handler())
	mux.Handle("/", p.coord.Handler())
	port := ingress.New(ingress.Config{
		Listen: cfg.Home.Listen, Handler: p.certs.challenges(mux), Certificate: p.certs.get, ACME: p.certs.acme != nil,
		Bounds: ingress.Bounds{Pending: maxStrangers}, Now: h.d.clock.now, Log: h.d.logger("ingress"),
	})
	if pc, err := net.ListenPacket("udp", cfg.Home.STUN); err != nil {
		h.d.engine.SetProblem("stun", fmt.Sprintf("STUN cannot be answered on %s: %v: members behind a NAT find each other less well.", cfg.Home.STUN, err),
			"Stop what uses that port, or set home.stun to another and restart.")
	} else {
		p.stun = true
		h.d.engine.SetProblem("stun", "", "")
		group.Go(func() error { return relay.ServeSTUN(ctx, pc, h.d.logger("stun")) })
	}
	group.Go(func() error { return p.coord.Run(ctx) })
	group.Go(func() error { return p.relay.Run(ctx) })
	group.Go(func() error { return port.Run(ctx) })
	group.Go(func() error { return p.certs.run(ctx) })
	group.Go(func() error { return h.tidy(ctx) })
	group.Go(func() error { return h.follow(ctx, cfg, p) })
	err = group.Wait()
	h.set(nil, errNotWanted)
	return err
}

// forget takes back what the owner was told, and the router given, of a home mesh.
func (h *home) forget() {
	h.d.devices.forget()
	for _, code := range []string{"home", "stun", "policy"} {
		h.d.engine.SetProblem(code, "", "")
	}
}

// open makes the parts that need no running.
func (h *home) open(cfg config.Config) (*parts, error) {
	if aside := h.d.dir.Lost(coord.LedgerFile); aside != "" {
		return nil, fmt.Errorf("the file of the mesh's members was damaged and is kept as %s: put a backup back as %s, or remove the damaged copy to begin a new mesh",
			aside, coord.LedgerFile)
	}
	certs, err := h.newCertificates(cfg.Home, h.reach(cfg))
	if err != nil {
		return nil, err
	}
	p := &parts{certs: certs}
	p.coord, err = coord.New(coord.Config{
		Domain: cfg.Home.Domain, Store: h.d.dir, Policy: h.readPolicy(cfg.Home.PolicyFile), Now: h.d.clock.now, Log: h.d.logger("coord"),
		Changed: h.meshChanged, Gone: func(k key.NodePublic) { p.relay.Expel(k) },
	})
	if err != nil {
		return nil, err
	}
	p.relay = relay.New(relay.Config{Key: certs.own.Key, Admit: p.coord.Admits, Now: h.d.clock.now, Log: h.d.logger("relay")})
	return p, nil
}

// follow brings the coordinator in line with wishes and addresses, now and
// whenever they change. Some wishes need all of it anew.
func (h *home) follow(ctx context.Context, began config.Config, p *parts) error {
	var done wishes
	for {
		if !h.wanted() {
			return errNotWanted
		}
		cfg := h.d.config()
		if needsRestart(cfg.Home, began.Home) {
			return errNotWanted // Run begins again
		}
		if err := h.bring(ctx, cfg, p, &done); err != nil {
			return err
		}
		h.d.engine.SetProblem("home", "", "")
		select {
		case <-ctx.Done():
			return nil
		case <-h.kick:
		}
	}
}

// meshChanged is told of each change that the coordinator has made.
func (h *home) meshChanged() {
	h.d.engine.Refresh()
	poke(h.news)
}

const (
	crowdOf   = 20 // changes, each before tidyAfter has passed since the last
	tidyAfter = 10 * time.Second
)

// tidy gives memory back to the system when a crowd has come in: what that took
// for a moment the runtime would keep for long, and a router has better use for it.
func (h *home) tidy(ctx context.Context) error {
	changes := 0
	timer := time.NewTimer(tidyAfter)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.news:
			changes++
			timer.Reset(tidyAfter)
		case <-timer.C:
			if changes >= crowdOf {
				debug.FreeOSMemory()
			}
			changes = 0
		}
	}
}

// needsRestart reports whether the ports or certificates are to be others.
func needsRestart(a, b config.Home) bool {
	return a.Listen != b.Listen || a.Domain != b.Domain || a.STUN != b.STUN || a.URL != b.URL ||
		a.CertFile != b.CertFile || a.KeyFile != b.KeyFile || a.ACMEDirectory != b.ACMEDirectory
}

// wishes are those last fulfilled.
type wishes struct {
	reach   plan.Reach
	policy  *policy.Policy
	names   coord.Names
	devices []coord.Device
	node    key.NodePublic
	serving bool
}

func (h *home) bring(ctx context.Context, cfg config.Config, p *parts, done *wishes) error {
	if reach := h.reach(cfg); !done.serving || !reflect.DeepEqual(reach, done.reach) {
		if err := p.coord.SetPlace(ctx, placeOf(reach, p.certs.own.Certificate.Pin(), cfg.Home.STUN, p.stun)); err != nil {
			return err
		}
		done.reach = reach
	}
	names := namesOf(cfg.Home)
	names.Records = append(names.Records, serviceRecords(h.d.engine.Netmap())...)
	if !reflect.DeepEqual(names, done.names) {
		if err := p.coord.SetNames(ctx, names); err != nil {
			return err
		}
		done.names = names
	}
	if next := h.readPolicy(cfg.Home.PolicyFile); next != done.policy {
		if err := p.coord.SetPolicy(ctx, next); err != nil {
			return err
		}
		done.policy = next
	}
	if !done.serving {
		h.awaitWay(ctx, cfg)
		h.set(p, nil)
		done.serving = true
	}
	return h.bringDevices(ctx, p, done)
}

// awaitWay waits until what is sent to home.url is led to our port: nobody, this
// router's own node first, shall be told that the coordinator is there before.
func (h *home) awaitWay(ctx context.Context, cfg config.Config) {
	if cfg.Home.URL == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, homeRetry)
	defer cancel()
	if err := h.d.engine.Settle(ctx); err != nil {
		h.log.Warn("the way to home.url is not open yet", "err", err)
	}
}

// bringDevices has the coordinator give addresses to the things on our LAN.
func (h *home) bringDevices(ctx context.Context, p *parts, done *wishes) error {
	node, want := h.d.member.node(), wanted(h.d.devices.current())
	if node.IsZero() || h.d.engine.Netmap() == nil || done.node == node.Public() && slices.Equal(want, done.devices) {
		return nil
	}
	got, err := p.coord.SetDevices(ctx, node.Public(), want)
	if err != nil {
		h.log.Warn("the devices of the LAN have no addresses in the mesh yet", "err", err)
		return nil
	}
	done.node, done.devices = node.Public(), want
	h.d.devices.given(want, got)
	return nil
}

func (h *home) reach(cfg config.Config) plan.Reach {
	return plan.ReachOf(cfg.Home, h.d.facts(), h.d.engine.Plan().LANs)
}

// serving gives the parts, or why there are none.
func (h *home) serving() (*parts, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.parts == nil {
		return nil, h.trouble
	}
	return h.parts, nil
}

// dial connects this router's own node with the coordinator, once that serves.
func (h *home) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	for {
		h.mu.Lock()
		p, changed := h.parts, h.changed
		h.mu.Unlock()
		if p != nil {
			return p.coord.Dial(ctx)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
