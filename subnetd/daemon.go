package main

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/cli"
	"subnetd/subnetd/config"
	"subnetd/subnetd/dns"
	"subnetd/subnetd/drop"
	"subnetd/subnetd/engine"
	"subnetd/subnetd/front"
	"subnetd/subnetd/host"
	"subnetd/subnetd/host/apply"
	hostdns "subnetd/subnetd/host/dns"
	"subnetd/subnetd/host/firewall"
	"subnetd/subnetd/host/route"
	"subnetd/subnetd/host/watch"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/peerapi"
	"subnetd/subnetd/plan"
	"subnetd/subnetd/state"
	"subnetd/subnetd/status"
	"subnetd/subnetd/systemd"
	"subnetd/subnetd/task"
	"subnetd/subnetd/underlay"
	"subnetd/subnetd/web"

	"go4.org/mem"
	"tailscale.com/types/key"
)

// version is set by the linker.
var version = "dev"

// daemon is every part of a running subnetd.
type daemon struct {
	opts   cli.RunOptions
	log    *slog.Logger
	clock  clock
	dir    *state.Dir
	engine *engine.Engine
	under  *underlay.Underlay
	// carrier is with the underlay; tasks are what else it needs to run.
	carrier carrier
	tasks   []task.Task
	cache   *netmapCache
	member  *member
	home    *home
	exits   *exits
	devices *devices
	issuer  *issuer
	watch   *watch.Watcher
	names   *dns.Server
	hook    *hostdns.Hand
	drop    *drop.Store
	// dropNews counts what is told of files.
	dropNews atomic.Uint64
	peers    *peerapi.Server
	page     *web.Server
	front    *front.Server
	ring     *web.Ring
	trial    *trial
	system   *system
	service  *service
	again    chan struct{} // one slot: begin anew
	// started is a trouble found before there was anybody to tell.
	started string

	wishes sync.Mutex // one change of the owner's wishes at a time

	mu   sync.Mutex // guards all below
	cfg  config.Config
	seen host.Facts
	// relays is kept for `netcheck` and for the names of regions.
	relays []mesh.RelayRegion
	link   underlay.State
	// paths are those to the peers when last looked.
	paths map[key.NodePublic]mesh.Path
}

// run is `subnetd run`: it builds the parts, then serves them until ctx ends.
//
// Whoever sends a signal does not know whether the daemon starts, serves or
// stops: SIGHUP is ours from here to the end of the process, so that it never
// ends it. One that comes before anybody follows it waits in the channel. Nor
// does the mesh end with whoever reads our log.
func run(ctx context.Context, opts cli.RunOptions) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	signal.Ignore(syscall.SIGPIPE)
	d, err := build(opts)
	if err != nil {
		return err
	}
	defer d.dir.Close()
	defer context.AfterFunc(ctx, func() {
		d.service.tell(systemd.Stopping)
		d.log.Info("stopping", "cause", context.Cause(ctx))
	})()
	d.restore()
	local := api.NewServer(opts.Socket, d.funcs(), d.logger("api"))
	err = task.Serve(ctx, d.log, append(d.tasks,
		task.Func("configuration", func(ctx context.Context) error { return d.followConfig(ctx, hup) }),
		d.engine,
		task.Func("underlay", d.under.Run),
		task.Func("watch", d.watch.Run),
		d.exits,
		task.Func("lan", d.devices.sense.Run),
		d.home,
		d.member,
		d.cache,
		d.names,
		d.peers,
		d.page,
		d.front,
		d.system,
		task.Func("next life", d.awaitAgain),
		local,
		task.Func("service", func(ctx context.Context) error { return d.tellManager(ctx, local.There()) }),
	)...)
	ended := errors.Join(d.hook.Stop(), d.carrier.Close())
	if errors.Is(err, errAgain) {
		return errors.Join(ended, d.service.given.PassOn(), beginAnew())
	}
	return errors.Join(err, ended)
}

func (d *daemon) logger(part string) *slog.Logger { return d.log.With("part", part) }

func build(opts cli.RunOptions) (*daemon, error) {
	d := &daemon{opts: opts, ring: web.NewRing(), again: make(chan struct{}, 1)}
	plain := slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: opts.LogLevel})
	d.log = slog.New(d.ring.Tee(systemd.Journal(plain, os.Stderr, os.Getenv)))
	d.service = newService(d.logger("service"))
	fw := firewall.New(d.logger("firewall"))
	if err := loadGuard(context.Background(), firewall.Guard{F: fw}, opts.State); err != nil {
		d.log.Error("the kill switch is not as it was", "err", err)
	}
	var err error
	if d.dir, err = state.Open(opts.State); err != nil {
		return nil, err
	}
	d.trial = &trial{file: opts.Config, dir: d.dir, log: d.logger("page"), over: d.trialOver}
	if err := errors.Join(putRestored(d.dir, opts.Config), d.trial.recover()); err != nil {
		return nil, err
	}
	if d.cfg, err = config.Load(opts.Config); err != nil {
		return nil, err
	}
	d.clock = newClock(opts.State)
	id, err := d.identity()
	if err != nil {
		return nil, err
	}
	chosen, err := d.openCarrier(&id, fw)
	if err != nil {
		return nil, err
	}
	d.hook = d.newHook()
	hands := apply.New(keptGuard{d.dir, firewall.Guard{F: fw}}, d.carrier, fw, route.New(d.logger("route")), d.hook)
	d.engine = engine.New(engine.Config{
		Version: version, Apply: d.apply(hands, fw), Planned: d.planned, Live: d.live,
		Now: d.clock.now, Log: d.logger("engine"),
	})
	d.engine.SetEngine(chosen.engine, chosen.why)
	d.engine.SetShare(chosen.share)
	d.engine.SetConfig(d.cfg)
	d.watch = watch.New(d.logger("watch"), d.setFacts, d.engine.Repair)
	d.tasks = append(d.tasks, watch.NewFilter(d.logger("watch"), d.restoreTables(fw), d.engine.Repair))
	d.watch.Follow(d.cfg.Exit.MACs())
	d.engine.SetProblem("identity", d.started, "Put a backup of the file back and restart, or go on as a new node.")
	d.cache = newNetmapCache(d.dir, d.logger("cache"), func(text string) {
		d.engine.SetProblem("disk", text, "Free some space: after a restart without the coordinator this node may not know the mesh.")
	})
	d.member = newMember(d, id)
	d.home = newHome(d)
	d.exits = newExits(d)
	d.devices = newDevices(d, fw.Reached)
	d.issuer = newIssuer(d)
	d.names = d.newNames()
	d.drop = d.newDrop()
	d.peers = d.newPeerAPI()
	d.system = d.newSystem()
	if d.page, err = d.newPage(); err != nil {
		return nil, err
	}
	d.front = d.newFront()
	d.drop.Set(dropSettings(d.cfg.Drop)) // who looks is told by the page
	return d, nil
}

// apply has the hands bring the machine to a plan, and looks whether the world gets in
// then.
func (d *daemon) apply(hands *apply.Applier, fw *firewall.Firewall) func(context.Context, host.Config) error {
	return func(ctx context.Context, c host.Config) error {
		err := hands.Set(ctx, c)
		if shut, looked := fw.Closed(ctx, c.Firewall.Openings); looked == nil {
			d.engine.SetShut(shut)
		} else {
			d.logger("firewall").Debug("whether the WAN is open is not known", "err", looked)
		}
		return err
	}
}

// restoreTables has what is gone of our tables brought back, without waiting for a plan.
func (d *daemon) restoreTables(fw *firewall.Firewall) func(context.Context) bool {
	return func(ctx context.Context) bool {
		others, err := fw.Restore(ctx)
		if err != nil && ctx.Err() == nil {
			d.logger("firewall").Warn("a table that is gone is not back yet", "err", err)
		}
		return others
	}
}

func (d *daemon) underlayConfig(id *state.Identity) underlay.Config {
	return underlay.Config{
		Disco: discoKey(id.Machine, d.clock), Mark: host.Mark, Now: d.clock.now,
		Log: d.logger("underlay"), OnState: d.setUnderlay, OnPath: d.pathChanged,
	}
}

// identity reads who we are, or makes it: keys are on disk before they are used.
func (d *daemon) identity() (state.Identity, error) {
	var id state.Identity
	found, err := d.dir.Load("identity", &id)
	var corrupt *state.CorruptError
	if errors.As(err, &corrupt) {
		d.log.Error(corrupt.Error())
		d.started = corrupt.Error()
	} else if err != nil {
		return id, err
	}
	if found && !id.Machine.IsZero() {
		return id, nil
	}
	id.Machine = key.NewMachine()
	id.Port = randomPort()
	if err := d.dir.Save("identity", id); err != nil {
		return id, fmt.Errorf("keeping this node's keys: %w", err)
	}
	return id, nil
}

// discoKey is the same at every start: peers that cannot ask the coordinator
// find us again. While the clock runs behind it is another each time, by which
// peers notice the restart: they would take our handshakes for old ones.
func discoKey(machine key.MachinePrivate, c clock) key.DiscoPrivate {
	secret, err := machine.MarshalText()
	if err != nil || c.runsBehind() {
		return key.NewDisco()
	}
	seed, err := hkdf.Key(sha256.New, secret, nil, "subnetd disco key", 32)
	if err != nil {
		return key.NewDisco()
	}
	return key.DiscoPrivateFromRaw32(mem.B(seed))
}

// restore puts the netmap of the last session to work until the coordinator
// answers, so that the mesh outlives it.
func (d *daemon) restore() {
	if f, err := watch.Facts(d.cfg.Exit.MACs()); err == nil {
		d.setFacts(f)
	}
	d.member.wished()
	d.devices.restore()
	if !d.member.isDown() {
		if nm := d.cache.load(d.cfg.Mesh.Control); nm != nil {
			d.setNetmap(nm, d.member.node())
		}
	}
	d.engine.Begin()
}

func (d *daemon) setFacts(f host.Facts) {
	d.mu.Lock()
	was := d.seen
	d.seen = f
	d.mu.Unlock()
	d.engine.SetFacts(f)
	if !watch.Equal(network(was), network(f)) {
		d.under.SetFacts(f)
	}
	d.member.setHostname(f.Hostname)
	d.member.lines.leave(f)
	d.devices.look()
}

// network is what the paths to others depend on.
func network(f host.Facts) host.Facts {
	f.Neighbours, f.Rules = nil, nil
	return f
}

func (d *daemon) facts() host.Facts {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.seen
}

func (d *daemon) config() config.Config {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cfg
}

func (d *daemon) setNetmap(nm *mesh.Netmap, node key.NodePrivate) {
	d.mu.Lock()
	d.relays = nil
	if nm != nil {
		d.relays = nm.Relays
	}
	d.mu.Unlock()
	d.under.SetNetmap(nm, node)
	d.engine.SetNetmap(nm, node)
	d.devices.heard(nm)
	d.home.look()
}

func (d *daemon) setUnderlay(s underlay.State) {
	d.mu.Lock()
	d.link = s
	d.mu.Unlock()
	d.engine.SetPort(s.Port)
	d.member.setUnderlay(s)
}

// planned is told what follows from news of wishes and of the machine.
func (d *daemon) planned(p plan.Plan) {
	d.member.setRoutes(p.Offer)
	d.exits.setUses(p.Uses)
	d.devices.sense.SetInterfaces(p.LANs)
	d.tellNames(p)
	d.tellPage(p)
	d.tellFront(p)
	d.home.look()
}

// pathChanged has handshakes that led nowhere started over on the new paths:
// WireGuard's own retry would cost the first seconds of traffic.
func (d *daemon) pathChanged() {
	paths := d.under.Paths()
	d.mu.Lock()
	was := d.paths
	d.paths = paths
	d.mu.Unlock()
	for k, p := range paths {
		if old := was[k]; p.Kind != mesh.PathNone && (p.Kind != old.Kind || p.Addr != old.Addr || p.Relay != old.Relay) {
			d.carrier.Kick(k)
		}
	}
	d.exits.pathsChanged(paths, was)
	d.engine.Refresh()
}

// live adds paths and counters to a snapshot.
func (d *daemon) live(s *status.Snapshot, nm *mesh.Netmap) {
	d.mu.Lock()
	link, relays := d.link, d.relays
	d.mu.Unlock()
	s.Port, s.UDP = link.Port, link.UDP
	for _, e := range link.Endpoints {
		s.Endpoints = append(s.Endpoints, e.Addr)
	}
	s.HomeRelay = regionCode(relays, link.HomeRelay)
	s.Resolver = d.hook.Chosen()
	s.System = d.system.show()
	if nm == nil {
		return
	}
	paths, stats := d.under.Paths(), d.carrier.Stats()
	for i := range nm.Peers {
		p, st := paths[nm.Peers[i].Key], stats[nm.Peers[i].Key]
		out := &s.Peers[i]
		out.Path, out.Reason, out.RTT = string(p.Kind), p.Reason, float64(p.RTT)/float64(time.Millisecond)
		if p.Addr.IsValid() {
			out.Endpoint = p.Addr.String()
		}
		out.Relay = regionCode(relays, p.Relay)
		out.Rx, out.Tx, out.Handshake = st.Rx, st.Tx, st.Handshake
	}
}

func regionCode(relays []mesh.RelayRegion, id int) string {
	for _, r := range relays {
		if r.ID == id {
			return r.Code
		}
	}
	return ""
}
