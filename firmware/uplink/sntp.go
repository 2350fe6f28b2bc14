package uplink

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"subnetd/firmware/notice"

	"golang.org/x/sys/unix"
)

const (
	ntpPort      = "123"
	ntpPatience  = 2 * time.Second
	firstNTP     = 4 * time.Second // until it is asked again, doubling
	mostNTP      = 17 * time.Minute
	calmNTP      = time.Hour // when the clock is right
	mostServers  = 6
	adjSingle    = 0x8001 // ADJ_OFFSET_SINGLESHOT, adjtimex(2)
	resolverPort = 53
)

// servers are whom to ask.
type servers struct {
	resolvers []netip.Addr
	clocks    []netip.Addr // that DHCP has named
}

// clockHand sets the machine's clock.
type clockHand interface {
	Step(to time.Time) error
	Slew(by time.Duration) error
}

type kernelClock struct{}

func (kernelClock) Step(to time.Time) error {
	t := unix.NsecToTimeval(to.UnixNano())
	return unix.Settimeofday(&t)
}

func (kernelClock) Slew(by time.Duration) error {
	var t unix.Timex
	t.Modes = adjSingle
	setWord(&t.Offset, by.Microseconds())
	_, err := unix.Adjtimex(&t)
	return err
}

// setWord: the kernel's words have the machine's size.
func setWord[W int32 | int64](to *W, value int64) { *to = W(value) }

// sntp keeps the clock right. It asks when the internet comes, then rarely.
type sntp struct {
	options
	log     *slog.Logger
	notice  *notice.Log
	servers <-chan servers
}

func (s *sntp) run(ctx context.Context) {
	var who servers
	wait := time.Duration(0)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case who = <-s.servers:
			wait = 0
		case <-timer.C:
		}
		if wait = s.once(ctx, who, wait); ctx.Err() != nil {
			return
		}
		timer.Reset(wait - wait/10 + rand.N(wait/5))
	}
}

// once asks all, sets the clock, and says when to ask again.
func (s *sntp) once(ctx context.Context, who servers, last time.Duration) time.Duration {
	addrs := s.addresses(ctx, who)
	offset, ok := judge(s.askAll(ctx, addrs))
	if !ok {
		if last > 0 && len(addrs) > 0 {
			s.notice.Warn("no two servers of NTP agree on the time")
		}
		return min(max(firstNTP, 2*min(last, mostNTP)), mostNTP)
	}
	if err := s.set(offset); err != nil {
		s.notice.Warn("the clock cannot be set", "err", err)
	}
	return calmNTP
}

func (s *sntp) set(offset time.Duration) error {
	if offset.Abs() < stepFrom {
		return s.setTime.Slew(offset)
	}
	to := time.Now().Add(offset)
	s.log.Info("the clock is set", "to", to.UTC().Format(time.RFC3339), "by", offset.Round(time.Millisecond))
	return s.setTime.Step(to)
}

// askAll asks the servers side by side.
func (s *sntp) askAll(ctx context.Context, addrs []netip.AddrPort) []answerOfClock {
	found := make(chan *answerOfClock, len(addrs))
	for _, a := range addrs {
		go func() { found <- s.ask(ctx, a) }()
	}
	var out []answerOfClock
	for range addrs {
		if a := <-found; a != nil {
			out = append(out, *a)
		}
	}
	return out
}

// addresses are one of each name, and those of DHCP.
func (s *sntp) addresses(ctx context.Context, who servers) []netip.AddrPort {
	ctx, cancel := context.WithTimeout(ctx, 4*ntpPatience)
	defer cancel()
	var out []netip.AddrPort
	add := func(a netip.Addr, port uint16) {
		if len(out) < mostServers {
			out = append(out, netip.AddrPortFrom(a.Unmap(), port))
		}
	}
	for _, a := range who.clocks {
		add(a, 123)
	}
	r := resolver(who.resolvers)
	for _, name := range s.ntp {
		host, port, err := net.SplitHostPort(name)
		if err != nil {
			host, port = name, ntpPort
		}
		n, err := r.LookupPort(ctx, "udp", port)
		if err != nil {
			continue
		}
		if found, err := r.LookupNetIP(ctx, "ip", host); err == nil && len(found) > 0 {
			add(found[rand.N(len(found))], uint16(n))
		}
	}
	return out
}

// resolver asks the provider's.
func resolver(addrs []netip.Addr) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if len(addrs) > 0 {
			address = netip.AddrPortFrom(addrs[rand.N(len(addrs))], resolverPort).String()
		}
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}}
}

// ask asks one server; nil: it says nothing that helps.
func (s *sntp) ask(ctx context.Context, to netip.AddrPort) *answerOfClock {
	var d net.Dialer
	c, err := d.DialContext(ctx, "udp", to.String())
	if err != nil {
		return nil
	}
	defer c.Close()
	nonce := rand.Uint64()
	sent := time.Now()
	_ = c.SetDeadline(sent.Add(ntpPatience)) // a new socket
	if _, err := c.Write(ntpRequest(nonce)); err != nil {
		return nil
	}
	b := make([]byte, 512)
	for {
		n, err := c.Read(b)
		if err != nil {
			return nil
		}
		a, err := ntpAnswer(b[:n], nonce, sent.Round(0), time.Since(sent), s.built)
		if err == nil {
			return &a
		}
		s.notice.Warn("a server of NTP is not believed", "err", err)
	}
}
