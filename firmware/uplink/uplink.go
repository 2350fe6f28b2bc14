// Package uplink is the internet's side of the appliance.
//
//	uplink   what there is to do, when: this file
//	v4, v6   pure: clients of DHCP and DHCPv6
//	rdnss    pure: resolvers that routers announce
//	sockets  how they hear and speak
//	clock    pure: what servers of NTP say; sntp: the hand
//
// Router advertisements are the kernel's, which leaves the resolvers in them to programs. What is known goes into a file that the home's
// side reads (package wan), and into resolv.conf. PPPoE is for later.
package uplink

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"subnetd/firmware/durable"
	"subnetd/firmware/link"
	"subnetd/firmware/notice"
	"subnetd/firmware/ready"
	"subnetd/firmware/wan"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"golang.org/x/sys/unix"
)

// options are the flags, and what main joins.
type options struct {
	wan     string
	wanFile string
	data    string // directory, on disk
	resolv  string
	ntp     []string
	changed func() // tells the home's side
	setTime clockHand
	built   time.Time // no clock is earlier
}

// Main is `appliance uplink`. changed is called when the file for the home's side is new;
// built is a time that is over.
func Main(ctx context.Context, args []string, errs io.Writer, changed func(), built time.Time) int {
	if built.Before(written()) { // it may not be known
		built = written()
	}
	o := options{changed: changed, setTime: kernelClock{}, built: built}
	fs := flag.NewFlagSet("uplink", flag.ContinueOnError)
	fs.SetOutput(errs)
	fs.StringVar(&o.wan, "wan", "", "interface of the internet; none: the first")
	fs.StringVar(&o.wanFile, "wan-file", wan.File, "what the home's side is told")
	fs.StringVar(&o.data, "data", "/data/uplink", "directory for what must last")
	fs.StringVar(&o.resolv, "resolv", "/run/resolv.conf", "resolv.conf of this machine's programs")
	ntp := fs.String("ntp", "0.pool.ntp.org,1.pool.ntp.org,2.pool.ntp.org,3.pool.ntp.org", "servers of NTP, with commas; none: those of DHCP only")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	o.ntp = strings.FieldsFunc(*ntp, func(r rune) bool { return r == ',' })
	log := slog.New(slog.NewTextHandler(errs, nil))
	if err := run(ctx, o, log); err != nil {
		log.Error("the internet's side ends", "err", err)
		return 1
	}
	return 0
}

// uplink is the state of the internet's side; one goroutine owns it.
type uplink struct {
	options
	log     *slog.Logger
	notice  *notice.Log
	link    *link.Conn
	at      link.Link // the interface; the zero Link: none
	sockets *sockets
	v4      *v4
	v6      *v6
	routers <-chan link.RouterOption
	by      []announced // resolvers, by routers
	told    wan.State
	servers chan servers // for the clock
}

func run(ctx context.Context, o options, log *slog.Logger) error {
	u := &uplink{options: o, log: log, notice: notice.New(log, time.Now), servers: make(chan servers, 1)}
	var err error
	if u.link, err = link.Dial(); err != nil {
		return err
	}
	defer u.link.Close()
	changed, err := link.Watch(ctx)
	if err != nil {
		return err
	}
	if u.routers, err = link.WatchRouters(ctx); err != nil {
		return err
	}
	go (&sntp{options: o, log: log, notice: u.notice, servers: u.servers}).run(ctx)
	defer func() {
		if u.sockets != nil {
			u.sockets.close()
		}
	}()
	if err := u.look(ctx); err != nil {
		return err
	}
	ready.Tell()
	return u.follow(ctx, changed)
}

// follow does what is due, and hears what comes, until ctx ends. The lease stays: this
// program may only be started anew.
func (u *uplink) follow(ctx context.Context, changed <-chan struct{}) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if err := u.apply(); err != nil {
			u.notice.Warn("the internet's side could not be brought up to date", "err", err)
		}
		timer.Reset(u.until())
		var heard4, heard6 <-chan []byte
		if u.sockets != nil {
			heard4, heard6 = u.sockets.heard4, u.sockets.heard6
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			if err := u.look(ctx); err != nil {
				u.notice.Warn("the interface of the internet cannot be used", "err", err)
			}
		case <-timer.C:
			u.tick()
		case b := <-heard4:
			u.hear4(b)
		case b := <-heard6:
			u.hear6(b)
		case o := <-u.routers:
			if u.sockets != nil && o.Index == u.at.Index && u.at.Carrier {
				u.by = hear(u.by, o.Bytes, u.at.Name, wan.Now())
			}
		}
	}
}

// until is how long nothing is due.
func (u *uplink) until() time.Duration {
	if u.sockets == nil {
		return time.Hour
	}
	now := wan.Now()
	_, gone := lasting(u.by, now)
	return max(0, min(time.Hour, min(u.v4.wake, u.v6.wake, gone)-now))
}

// look finds the interface, and whether its link is there.
func (u *uplink) look(ctx context.Context) error {
	links, err := u.link.Links()
	if err != nil {
		return err
	}
	name := u.at.Name
	if name == "" {
		name, _ = link.Choose(links, u.wan, "")
	}
	l, ok := link.Find(links, name)
	if u.sockets != nil && (!ok || l.Index != u.at.Index) { // pulled out
		u.sockets.close()
		u.sockets, u.at, u.by = nil, link.Link{}, nil
	}
	if !ok {
		return nil
	}
	if u.sockets == nil {
		if err := u.begin(ctx, l); err != nil {
			return err
		}
	}
	if l.Carrier != u.at.Carrier {
		u.log.Info("link", "interface", l.Name, "up", l.Carrier)
		solicit(l.Index)
	}
	u.at = l
	if !l.Carrier {
		u.v4.down()
		u.v6.down()
		u.by = nil
		return u.sockets.setRaw(false)
	}
	u.v6.up(wan.Now())
	if u.v4.stage == off {
		if err := u.sockets.setRaw(true); err != nil {
			return err
		}
		u.do4(u.v4.up(wan.Now()))
	}
	return nil
}

// begin takes an interface that is new.
func (u *uplink) begin(ctx context.Context, l link.Link) error {
	for _, s := range [][2]string{{"accept_ra", "2"}, {"autoconf", "1"}, {"use_tempaddr", "0"}} { // 2: though this is a router
		if err := link.Sysctl("ipv6/conf/"+l.Name+"/"+s[0], s[1]); err != nil {
			u.notice.Warn("no router advertisements are heard", "err", err)
		}
	}
	if err := u.link.SetUp(l.Index); err != nil {
		return err
	}
	var err error
	if u.sockets, err = openSockets(ctx, l.Name); err != nil {
		return err
	}
	chance := func(d time.Duration) time.Duration { return rand.N(d) }
	u.v4, u.v6 = newV4(l.MAC, chance), newV6(l.MAC, chance)
	u.v6.hint = readPrefix(u.prefixFile())
	u.at = link.Link{Index: l.Index, Name: l.Name}
	return nil
}

func (u *uplink) tick() {
	if u.sockets == nil {
		return
	}
	now := wan.Now()
	u.do4(u.v4.tick(now))
	u.do6(u.v6.tick(now))
}

func (u *uplink) hear4(b []byte) {
	m, err := dhcpv4.FromBytes(b)
	if err != nil {
		u.notice.Warn("a message of DHCP that is none is passed over", "err", err)
		return
	}
	u.do4(u.v4.heard(m, wan.Now()))
}

func (u *uplink) hear6(b []byte) {
	m, err := dhcpv6.MessageFromBytes(b)
	if err != nil {
		u.notice.Warn("a message of DHCPv6 that is none is passed over", "err", err)
		return
	}
	u.do6(u.v6.heard(m, wan.Now()))
}

func (u *uplink) do4(say say4) {
	if say.trouble != "" {
		u.notice.Warn(say.trouble)
	}
	direct := u.v4.stage == bound || u.v4.stage == renewing
	err := u.sockets.setRaw(!direct && u.v4.stage != off)
	if err == nil && say.send != nil {
		err = u.sockets.send4(say.send, u.v4.lease.server, say.direct)
	}
	if err != nil { // it is sent again in any case
		u.notice.Warn("DHCP cannot ask", "err", err)
	}
}

func (u *uplink) do6(say say6) {
	if say.trouble != "" {
		u.notice.Warn(say.trouble)
	}
	if say.send == nil {
		return
	}
	// The address of the link may not be checked yet, and it is sent again in any case.
	if err := u.sockets.send6(say.send); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		u.notice.Warn("DHCPv6 cannot ask", "err", err)
	}
}

// apply makes kernel, programs and the home's side know.
func (u *uplink) apply() error {
	s := u.state(wan.Now())
	if reflect.DeepEqual(s, u.told) {
		return nil
	}
	u.log.Info("internet", "interface", s.Interface, "addresses", s.Addresses, "resolvers", s.Resolvers, "delegated", delegated(s))
	var errs []error
	if u.sockets != nil {
		errs = append(errs, u.kernel(s))
	}
	if len(s.Delegated) > 0 { // asked for again after the next boot; written if it is another
		errs = append(errs, durable.Write(u.prefixFile(), []byte(s.Delegated[0].Prefix.String()+"\n"), 0o644))
	}
	errs = append(errs, durable.Write(u.resolv, resolvConf(s.Resolvers), 0o644), wan.Save(u.wanFile, s))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	u.told = s
	u.changed()
	u.tellClock(s)
	return nil
}

// kernel sets addresses and routes. Addresses by router advertisements are not ours.
func (u *uplink) kernel(s wan.State) error {
	want, gateway, source := s.Addresses, netip.Addr{}, netip.Addr{}
	if u.v4.holds() {
		gateway, source = u.v4.lease.gateway, u.v4.lease.addr.Addr()
	}
	if u.v6.holds() {
		for _, a := range valid(u.v6.lease.addrs, wan.Now()) {
			want = append(slices.Clone(want), a.net)
		}
	}
	ours := func(p netip.Prefix) bool { return p.Addr().Is4() || p.Bits() == 128 }
	var unused []netip.Prefix
	for _, d := range s.Delegated {
		unused = append(unused, d.Prefix)
	}
	return errors.Join(u.link.SetAddresses(u.at.Index, want, ours), u.link.SetDefault(u.at.Index, gateway, source), u.link.SetUnreachable(unused))
}

// state is what is known at a time.
func (u *uplink) state(now time.Duration) wan.State {
	if u.sockets == nil {
		return wan.State{}
	}
	s := wan.State{Interface: u.at.Name}
	if u.v4.holds() {
		s.Addresses = []netip.Prefix{u.v4.lease.addr}
		s.Resolvers = slices.Clone(u.v4.lease.resolvers)
	}
	if u.v6.holds() {
		s.Resolvers = append(s.Resolvers, u.v6.lease.resolvers...)
		for _, p := range valid(u.v6.lease.prefixes, now) {
			s.Delegated = append(s.Delegated, wan.Delegation{Prefix: p.net, Preferred: p.preferred, Valid: p.valid})
		}
	}
	by, _ := lasting(u.by, now)
	for _, a := range by {
		if !slices.Contains(s.Resolvers, a) {
			s.Resolvers = append(s.Resolvers, a)
		}
	}
	return s
}

func (u *uplink) prefixFile() string { return filepath.Join(u.data, "prefix") }

// readPrefix reads the prefix that was delegated before; none, if there is no such file.
func readPrefix(file string) netip.Prefix {
	text, _ := os.ReadFile(file)
	p, err := netip.ParsePrefix(strings.TrimSpace(string(text)))
	if err != nil || !p.Addr().Is6() || !p.Addr().IsGlobalUnicast() || p.Bits() > 64 {
		return netip.Prefix{}
	}
	return p.Masked()
}

func valid(all []given6, now time.Duration) []given6 {
	return slices.DeleteFunc(slices.Clone(all), func(g given6) bool { return g.valid <= now })
}

func delegated(s wan.State) (out []string) {
	for _, d := range s.Delegated {
		out = append(out, d.Prefix.String())
	}
	return out
}

// tellClock hands on whom to ask for the time; older news that nobody has taken is dropped.
func (u *uplink) tellClock(s wan.State) {
	n := servers{resolvers: s.Resolvers}
	if u.sockets != nil {
		n.clocks = slices.Concat(u.v4.lease.clocks, u.v6.lease.clocks)
	}
	select {
	case <-u.servers:
	default:
	}
	u.servers <- n
}

func resolvConf(resolvers []netip.Addr) []byte {
	text := "# Written by the appliance: the provider's resolvers.\n"
	for _, r := range resolvers[:min(3, len(resolvers))] { // resolv.conf(5): MAXNS
		text += fmt.Sprintf("nameserver %v\n", r)
	}
	return []byte(text)
}
