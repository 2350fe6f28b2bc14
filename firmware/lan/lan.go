// Package lan is the home's side of the appliance.
//
//	lan       what there is to do, when, and in which order: this file
//	config    the owner's wishes, the home's own network of IPv6
//	answer    pure: DHCP; leases: who has which address; dhcp: the hand
//	ra        router advertisements: pure, and the hand
//	names     the forwarder of DNS
//	firewall  the table of nftables; openings: the ports in it that subnetd needs
//
// The firewall is first, so that nothing is open before it, and stays when this ends.
package lan

import (
	"context"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"syscall"
	"time"

	"subnetd/firmware/lan/firewall"
	"subnetd/firmware/lan/leases"
	"subnetd/firmware/lan/names"
	"subnetd/firmware/link"
	"subnetd/firmware/notice"
	"subnetd/firmware/ready"
	"subnetd/firmware/wan"

	"golang.org/x/sync/errgroup"
)

const (
	// Bridge is the interface of the home.
	Bridge = "br-lan"
	// NamesDir is where subnetd says, as to dnsmasq, whom to ask for the names of the mesh.
	NamesDir = "/run/appliance/dnsmasq.d"

	// SubnetdSocket is where the daemon's API answers.
	SubnetdSocket = "/run/subnetd/subnetd.sock"

	mesh = "mesh" // how subnetd's interfaces begin
)

// options are the flags.
type options struct {
	wan, lans string
	data      string // directory, on disk
	wanFile   string // of package wan
	names     string // directory of dnsmasq's files
	leases    string // file of leases that run, where subnetd looks for them
	subnetd   string // the socket of the daemon that says which ports it needs
}

// Main is `appliance lan`.
func Main(ctx context.Context, args []string, errs io.Writer) int {
	var o options
	fs := flag.NewFlagSet("lan", flag.ContinueOnError)
	fs.SetOutput(errs)
	fs.StringVar(&o.wan, "wan", "", "interface of the internet; none: the first")
	fs.StringVar(&o.lans, "lan", "", "interfaces of the home, with commas; none: all others")
	fs.StringVar(&o.data, "data", "/data/lan", "directory of settings and leases")
	fs.StringVar(&o.wanFile, "wan-file", wan.File, "what the uplink tells")
	fs.StringVar(&o.names, "names", NamesDir, "directory of dnsmasq's files")
	fs.StringVar(&o.leases, "leases", "/tmp/dhcp.leases", "file of the leases that run")
	fs.StringVar(&o.subnetd, "subnetd", SubnetdSocket, "subnetd's socket")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	log := slog.New(slog.NewTextHandler(errs, nil))
	if err := serve(ctx, o, log); err != nil {
		log.Error("the home's side ends", "err", err)
		return 1
	}
	return 0
}

// router is the state of the home's side; one goroutine owns it.
type router struct {
	options
	log     *slog.Logger
	notice  *notice.Log
	link    *link.Conn
	config  Config
	ula     netip.Prefix
	state   wan.State
	opened  chan openings
	wake    chan struct{}
	open    openings
	inForce firewall.Config
	told    home
	homes   chan home

	prefixes  []prefix
	before    []prefix // of before the machine went down, until the provider gives something
	forwarder *names.Forwarder
}

func serve(ctx context.Context, o options, log *slog.Logger) error {
	r := &router{options: o, log: log, notice: notice.New(log, time.Now), homes: make(chan home, 1), opened: make(chan openings), wake: make(chan struct{}, 1),
		forwarder: names.NewForwarder(time.Now)}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	var err error
	if r.config, err = ReadConfig(filepath.Join(o.data, "lan.toml")); err != nil {
		log.Error("the owner's wishes are not followed", "err", err)
	}
	if r.ula, err = ownNetwork(filepath.Join(o.data, "ula")); err != nil {
		log.Error("the home's network of IPv6 is another after the next boot", "err", err)
	}
	r.before = remembered(filepath.Join(o.data, "prefixes"), wan.Now())
	if r.link, err = link.Dial(); err != nil {
		return err
	}
	defer r.link.Close()
	changed, err := link.Watch(ctx)
	if err != nil {
		return err
	}
	if err := r.begin(); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	r.services(ctx, group)
	group.Go(func() error { return r.follow(ctx, hup, changed) })
	ready.Tell()
	return group.Wait()
}

// begin sets up what does not change any more.
func (r *router) begin() error {
	if err := r.link.Bridge(Bridge); err != nil {
		return err
	}
	if err := r.look(); err != nil {
		return err
	}
	if err := r.apply(); err != nil {
		return err
	}
	for _, s := range [][2]string{
		{"ipv6/conf/" + Bridge + "/accept_ra", "0"}, // this is the router
		{"ipv6/conf/all/forwarding", "1"},
		{"ipv4/ip_forward", "1"},
	} {
		if err := link.Sysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	return nil
}

// services start what answers the home.
func (r *router) services(ctx context.Context, group *errgroup.Group) {
	d := &dhcp{facts: facts{r.config.Router, r.config.Domain}, keep: filepath.Join(r.data, "leases"), tell: r.leases,
		log: r.log, notice: r.notice, now: time.Now}
	d.open(leases.Config{Router: r.config.Router, First: r.config.First, Last: r.config.Last, Static: r.config.Static})
	group.Go(func() error { return d.run(ctx, Bridge) })
	ra := &radv{notice: r.notice, now: wan.Now, homes: r.homes}
	group.Go(func() error { return ra.run(ctx, Bridge) })
	door := &doorman{socket: r.subnetd, wake: r.wake, tell: func(ctx context.Context, o openings) {
		select {
		case r.opened <- o:
		case <-ctx.Done():
		}
	}}
	group.Go(func() error { return door.run(ctx) })
	n := &names.Server{Forwarder: r.forwarder, Notice: r.notice, Control: onDevice(Bridge)}
	group.Go(func() error { return n.Run(ctx) })
}

// follow keeps up with the world: ports that come, what the uplink and subnetd write,
// and prefixes that run out.
func (r *router) follow(ctx context.Context, hup <-chan os.Signal, changed <-chan struct{}) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(r.nextEnd())
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			select {
			case r.wake <- struct{}{}:
			default:
			}
		case r.open = <-r.opened:
		case <-changed:
		case <-timer.C:
		}
		if err := errors.Join(r.look(), r.apply()); err != nil {
			r.notice.Warn("the home's side could not be brought up to date", "err", err)
		}
	}
}

// look reads what others have written. What cannot be read stays as it was.
func (r *router) look() error {
	state, err := wan.Load(r.wanFile)
	if err == nil {
		r.state = state
	}
	domains, noNames := names.ReadDir(r.options.names)
	if noNames == nil {
		r.asked(domains)
	}
	return errors.Join(err, noNames)
}

// asked sets whom the forwarder asks, if that is another than before.
func (r *router) asked(domains map[string][]netip.AddrPort) {
	c := names.Config{Domains: domains}
	for _, a := range r.state.Resolvers {
		c.Resolvers = append(c.Resolvers, netip.AddrPortFrom(a, 53))
	}
	r.forwarder.Set(c)
}

// apply makes the kernel and the devices know. All of it may be done again.
func (r *router) apply() error {
	links, err := r.link.Links()
	if err != nil {
		return err
	}
	bridge, ok := link.Find(links, Bridge)
	if !ok {
		return errors.New("the bridge is gone")
	}
	for _, a := range r.state.Addresses {
		if a.Overlaps(r.config.Router) {
			r.notice.Warn("the network of the internet's side is the home's, too: give the home another address in lan.toml", "internet", a, "home", r.config.Router)
		}
	}
	wanName, ports := link.Choose(links, r.options.wan, r.lans)
	errs := []error{r.wall(wanName), r.join(links, bridge, ports)}
	errs = append(errs, r.renumber(wan.Now()))
	errs = append(errs, r.link.SetAddresses(bridge.Index, r.addresses(), func(netip.Prefix) bool { return true }))
	if !bridge.Up {
		errs = append(errs, r.link.SetUp(bridge.Index))
	}
	r.advertise(home{mac: bridge.MAC, ula: r.ula, resolver: first(r.ula).Addr(), internet: len(r.state.Delegated) > 0, prefixes: r.prefixes})
	return errors.Join(errs...)
}

// wall puts the firewall in force.
func (r *router) wall(wanName string) error {
	if r.state.Interface != "" {
		wanName = r.state.Interface
	}
	c := firewall.Config{WAN: wanName, LAN: Bridge, Mesh: mesh, Home: r.config.Router, UDP: r.open.UDP, TCP: r.open.TCP}
	if reflect.DeepEqual(c, r.inForce) {
		return nil
	}
	if err := firewall.Set(c); err != nil {
		return err
	}
	r.inForce = c
	return nil
}

// join makes the home's interfaces ports of the bridge.
func (r *router) join(links []link.Link, bridge link.Link, ports []string) error {
	var errs []error
	for _, name := range ports {
		l, ok := link.Find(links, name)
		if !ok {
			continue // it may come yet
		}
		if l.Bridge != bridge.Index {
			errs = append(errs, r.link.Join(l.Index, bridge.Index))
		}
		if !l.Up {
			errs = append(errs, r.link.SetUp(l.Index))
		}
	}
	return errors.Join(errs...)
}

// renumber follows what the provider gives.
func (r *router) renumber(now time.Duration) error {
	given := r.given(now)
	if len(given) == 0 {
		r.prefixes = follow(r.prefixes, nil, now)
		return nil
	}
	r.prefixes, r.before = follow(append(r.prefixes, r.before...), given, now), nil
	return remember(filepath.Join(r.data, "prefixes"), given)
}

// given are the home's networks of what the provider has delegated: the first of each.
func (r *router) given(now time.Duration) []prefix {
	var out []prefix
	for _, d := range r.state.Delegated {
		if d.Prefix.Bits() > 64 || !d.Prefix.Addr().Is6() {
			r.notice.Warn("a delegated prefix is too small for a network", "prefix", d.Prefix)
			continue
		}
		if d.Valid > now && len(out) < mostPrefixes {
			out = append(out, prefix{net: netip.PrefixFrom(d.Prefix.Masked().Addr(), 64), preferred: d.Preferred, valid: d.Valid})
		}
	}
	return out
}

// addresses are the router's own at home.
func (r *router) addresses() []netip.Prefix {
	out := []netip.Prefix{r.config.Router, first(r.ula)}
	for _, p := range r.prefixes {
		if p.gone == 0 {
			out = append(out, first(p.net))
		}
	}
	return out
}

// first is the first address of a network of IPv6.
func first(p netip.Prefix) netip.Prefix { return netip.PrefixFrom(p.Masked().Addr().Next(), p.Bits()) }

// nextEnd is how long until a prefix changes by itself.
func (r *router) nextEnd() time.Duration {
	now, next := wan.Now(), 24*time.Hour
	for _, p := range r.prefixes {
		for _, end := range []time.Duration{p.valid, p.gone + raGone} {
			if end > now {
				next = min(next, end-now)
			}
		}
	}
	return next + time.Second
}

// advertise hands on what is known now; older news that nobody has taken is dropped.
func (r *router) advertise(h home) {
	if reflect.DeepEqual(h, r.told) {
		return
	}
	r.told = h
	select {
	case <-r.homes:
	default:
	}
	r.homes <- h
}
