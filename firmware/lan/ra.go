package lan

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"subnetd/firmware/link"
	"subnetd/firmware/notice"

	"github.com/mdlayher/ndp"
	"golang.org/x/net/ipv6"
)

// Times of router advertisements: RFC 4861, 6.2.1 and 10; RFC 9096, 3.4 asks for shorter
// lifetimes than those of old, so that a prefix that is gone does not stay for weeks.
const (
	raApart    = 10 * time.Minute // MaxRtrAdvInterval
	raLeast    = raApart / 3      // MinRtrAdvInterval
	raLifetime = 30 * time.Minute // AdvDefaultLifetime, and that of the resolver (RFC 8106, 5.1: not less than raApart)
	raFirst    = 16 * time.Second // MAX_INITIAL_RTR_ADVERT_INTERVAL
	raFirsts   = 3                // MAX_INITIAL_RTR_ADVERTISEMENTS
	raFlood    = 3 * time.Second  // MIN_DELAY_BETWEEN_RAS
	raDelay    = 500 * time.Millisecond
	ndPrefLft  = 45 * time.Minute // RFC 9096, 3.4
	ndValidLft = 90 * time.Minute
	raGone     = 2 * time.Hour // a prefix is said to be gone that long (RFC 4862, 5.5.3 e)
)

// home is what is advertised.
type home struct {
	mac      net.HardwareAddr
	ula      netip.Prefix // /64 of the home's own (RFC 4193)
	resolver netip.Addr
	internet bool // there is a way out for IPv6
	prefixes []prefix
}

// prefix is one that the provider gave; times since the machine has started.
type prefix struct {
	net              netip.Prefix
	preferred, valid time.Duration // until
	gone             time.Duration // since; 0: it is not
}

// advertisement is what the home's devices are told at a time.
func advertisement(h home, now time.Duration) *ndp.RouterAdvertisement {
	ra := &ndp.RouterAdvertisement{CurrentHopLimit: 64, Options: []ndp.Option{
		&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: h.mac},
		prefixInfo(h.ula, ndPrefLft, ndValidLft),
	}}
	for _, p := range h.prefixes {
		if p.gone != 0 { // RFC 9096, 3.4: deprecated at once, valid for the two hours that devices count by themselves
			ra.Options = append(ra.Options, prefixInfo(p.net, 0, max(0, min(raGone, p.gone+raGone-now, p.valid-now))))
			continue
		}
		preferred := max(0, min(ndPrefLft, p.preferred-now))
		ra.Options = append(ra.Options, prefixInfo(p.net, preferred, max(0, min(ndValidLft, p.valid-now))))
		if h.internet && preferred > 0 {
			ra.RouterLifetime = raLifetime
		}
	}
	// Without a way out this router is none for the internet, but it is for the home's own
	// networks (RFC 7084, L-4 and G-4; RFC 4191).
	ra.Options = append(ra.Options,
		&ndp.RouteInformation{PrefixLength: 48, Prefix: netip.PrefixFrom(h.ula.Addr(), 48).Masked().Addr(), RouteLifetime: raLifetime},
		&ndp.RecursiveDNSServer{Lifetime: raLifetime, Servers: []netip.Addr{h.resolver}})
	return ra
}

// farewell tells that this router is none any more (RFC 4861, 6.2.5).
func farewell(h home, now time.Duration) *ndp.RouterAdvertisement {
	ra := advertisement(h, now)
	ra.RouterLifetime = 0
	for _, o := range ra.Options {
		switch o := o.(type) {
		case *ndp.RouteInformation:
			o.RouteLifetime = 0
		case *ndp.RecursiveDNSServer:
			o.Lifetime = 0
		}
	}
	return ra
}

func prefixInfo(p netip.Prefix, preferred, valid time.Duration) *ndp.PrefixInformation {
	return &ndp.PrefixInformation{PrefixLength: 64, OnLink: true, AutonomousAddressConfiguration: true, Prefix: p.Masked().Addr(),
		PreferredLifetime: min(preferred, valid).Truncate(time.Second), ValidLifetime: valid.Truncate(time.Second)}
}

// follow brings the prefixes up to date: what the provider has taken away, or lets run out,
// is said to be gone, as long as devices may still use it.
func follow(have []prefix, given []prefix, now time.Duration) []prefix {
	out := slices.Clone(given)
	for _, old := range have {
		if slices.ContainsFunc(given, func(g prefix) bool { return g.net == old.net }) {
			continue
		}
		if old.gone == 0 {
			old.gone = max(1, now)
		}
		if now < old.gone+raGone && now < old.valid && len(out) < mostPrefixes {
			out = append(out, old)
		}
	}
	slices.SortStableFunc(out, func(a, b prefix) int { return cmp.Compare(a.gone, b.gone) })
	return out
}

const mostPrefixes = 8 // given and gone

// radv is the hand that advertises.
type radv struct {
	notice *notice.Log
	now    func() time.Duration
	homes  <-chan home // news, each whole
}

// run advertises until ctx ends, and then that this router is gone.
func (r *radv) run(ctx context.Context, bridge string) error {
	var h home
	select { // nothing can be said before something is known
	case <-ctx.Done():
		return nil
	case h = <-r.homes:
	}
	ifi, err := net.InterfaceByName(bridge)
	if err != nil {
		return err
	}
	conn, err := listenND(ctx, ifi)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("advertise this router: %w", err)
	}
	defer conn.Close()
	asked := make(chan struct{}, 1)
	failed := make(chan error, 1)
	go func() { failed <- r.listen(conn, asked) }()
	err = r.advertise(ctx, conn, h, asked, failed)
	_ = conn.SetReadDeadline(time.Unix(1, 0)) // the reader ends
	return err
}

// advertise holds the schedule of RFC 4861, 6.2.4 and 6.2.6: at random times, sooner when
// somebody asks or something is new, but never more than one in three seconds.
func (r *radv) advertise(ctx context.Context, conn *ndp.Conn, h home, asked <-chan struct{}, failed <-chan error) error {
	sent, last := 0, -raFlood
	next := time.NewTimer(0)
	defer next.Stop()
	due := r.now()
	soon := func(wait time.Duration) {
		at := max(r.now()+wait, last+raFlood)
		if at < due {
			due = at
			next.Reset(at - r.now())
		}
	}
	for {
		select {
		case <-ctx.Done():
			return r.send(conn, farewell(h, r.now()))
		case err := <-failed:
			return err
		case h = <-r.homes:
			sent = 0
			soon(0)
		case <-asked:
			soon(rand.N(raDelay))
		case <-next.C:
			if err := r.send(conn, advertisement(h, r.now())); err != nil {
				r.notice.Warn("the router is not advertised", "err", err)
			}
			last = r.now()
			wait := raLeast + rand.N(raApart-raLeast)
			if sent++; sent < raFirsts {
				wait = min(wait, raFirst)
			}
			due = last + wait
			next.Reset(wait)
		}
	}
}

func (r *radv) send(conn *ndp.Conn, ra *ndp.RouterAdvertisement) error {
	return conn.WriteTo(ra, nil, netip.IPv6LinkLocalAllNodes())
}

// listen tells when a device asks (RFC 4861, 6.1.1 says which may). However many do, the
// answer is one, to all.
func (r *radv) listen(conn *ndp.Conn, asked chan<- struct{}) error {
	for {
		m, cm, from, err := conn.ReadFrom()
		if ne := net.Error(nil); errors.As(err, &ne) {
			return err
		}
		if err != nil {
			r.notice.Warn("a message of neighbour discovery that is none is passed over", "err", err)
			continue
		}
		if _, ok := m.(*ndp.RouterSolicitation); !ok || cm == nil || cm.HopLimit != ndp.HopLimit || !from.IsUnspecified() && !from.IsLinkLocalUnicast() {
			continue
		}
		select {
		case asked <- struct{}{}:
		default:
		}
	}
}

// listenND opens the socket. An address of the link that is still being checked cannot be
// used yet; the kernel says when it can.
func listenND(ctx context.Context, ifi *net.Interface) (*ndp.Conn, error) {
	changed, err := link.Watch(ctx)
	if err != nil {
		return nil, err
	}
	for {
		conn, _, err := ndp.Listen(ifi, ndp.LinkLocal)
		if err == nil {
			err = prepare(conn)
		}
		if err == nil || errors.Is(err, os.ErrPermission) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		}
	}
}

func prepare(conn *ndp.Conn) error {
	var f ipv6.ICMPFilter
	f.SetAll(true)
	f.Accept(ipv6.ICMPTypeRouterSolicitation)
	return errors.Join(conn.SetICMPFilter(&f), conn.SetControlMessage(ipv6.FlagHopLimit, true), conn.JoinGroup(netip.IPv6LinkLocalAllRouters()))
}
