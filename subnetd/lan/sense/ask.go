package sense

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"subnetd/subnetd/lan"

	"golang.org/x/sys/unix"
)

const (
	listens   = 3 * time.Second // for answers to one round of questions
	askAgain  = time.Hour       // before the same thing is asked once more
	maxAsked  = 32              // things that are asked in one round
	maxAnswer = 256             // that are read in one round
	delay     = time.Second     // a thing that is new has not yet started all that it offers
)

// asker asks by mDNS: all of an interface when that is new, and each thing that is new. One
// round at a time, in which sockets are open for answers; between two it sleeps.
type asker struct {
	s    *Sense
	wake chan struct{}

	mu     sync.Mutex // guards what follows
	queue  map[string][]netip.Addr
	things map[string]time.Time // when one was asked, by MAC
}

func newAsker(s *Sense) *asker {
	return &asker{s: s, wake: make(chan struct{}, 1), queue: map[string][]netip.Addr{}, things: map[string]time.Time{}}
}

// all will ask everybody on an interface.
func (a *asker) all(iface string) {
	a.mu.Lock()
	if q := a.queue[iface]; len(q) == 0 || q[0].IsValid() {
		a.queue[iface] = append([]netip.Addr{{}}, q...)
	}
	a.mu.Unlock()
	signal(a.wake)
}

// meet will ask those that came on line since the things were as they were told before.
func (a *asker) meet(before, now []lan.Thing) {
	online := make(map[string]bool, len(before))
	for _, t := range before {
		online[t.MAC] = t.Online
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	when := a.s.c.Now()
	for mac, t := range a.things {
		if since := when.Sub(t); since < 0 || since >= askAgain {
			delete(a.things, mac)
		}
	}
	for _, t := range now {
		if !t.Online || online[t.MAC] || !a.things[t.MAC].IsZero() {
			continue
		}
		for _, addr := range t.Addresses {
			if q := a.queue[addr.Interface]; addr.Known && len(q) < maxAsked {
				a.queue[addr.Interface] = append(q, addr.Addr)
				a.things[t.MAC] = when
				signal(a.wake)
				break
			}
		}
	}
}

// run asks until ctx is done.
func (a *asker) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.wake:
		}
		if !pause(ctx, delay) {
			return
		}
		a.mu.Lock()
		queue := a.queue
		a.queue = map[string][]netip.Addr{}
		a.mu.Unlock()
		var rounds sync.WaitGroup
		for iface, addrs := range queue {
			for _, v6 := range []bool{false, true} {
				rounds.Go(func() { a.round(ctx, iface, v6, addrs) })
			}
		}
		rounds.Wait()
	}
}

// round asks those of the addresses that are of the family, the zero address standing for
// everybody, and hears their answers.
func (a *asker) round(ctx context.Context, iface string, v6 bool, addrs []netip.Addr) {
	var to []netip.AddrPort
	for _, addr := range addrs {
		switch {
		case !addr.IsValid() && v6:
			to = append(to, netip.AddrPortFrom(groupV6.WithZone(iface), portMDNS))
		case !addr.IsValid():
			to = append(to, netip.AddrPortFrom(groupV4, portMDNS))
		case addr.Is6() == v6 && addr.IsLinkLocalUnicast() && v6:
			to = append(to, netip.AddrPortFrom(addr.WithZone(iface), portMDNS))
		case addr.Is6() == v6:
			to = append(to, netip.AddrPortFrom(addr, portMDNS))
		}
	}
	if len(to) == 0 {
		return
	}
	c, err := listenOn(ctx, iface, v6)
	if err != nil {
		a.s.c.Log.Debug("the LAN is not asked", "interface", iface, "err", err)
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	for _, p := range to {
		about := p.Addr().WithZone("")
		if about.IsMulticast() {
			about = netip.Addr{}
		}
		if _, err := c.WriteToUDPAddrPort(lan.AskMDNS(about), p); err != nil {
			a.s.c.Log.Debug("a question was not sent", "to", p, "err", err)
		}
	}
	if ctx.Err() == nil {
		_ = c.SetReadDeadline(time.Now().Add(listens))
		a.answers(c, iface)
	}
	stop()
	_ = c.Close()
}

// answers hears until the deadline.
func (a *asker) answers(c *net.UDPConn, iface string) {
	buf := make([]byte, maxPacket)
	for range maxAnswer {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil || from.Port() != portMDNS {
			continue // an ICMP error of one that has no mDNS, or a stranger
		}
		if said, ok := lan.ParseMDNS(buf[:n]); ok {
			a.s.hearSaid("", iface, from.Addr().Unmap().WithZone(""), said)
		}
	}
}

// listenOn opens a socket that sends and hears on one interface only.
func listenOn(ctx context.Context, iface string, v6 bool) (*net.UDPConn, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if e := raw.Control(func(fd uintptr) { err = bindTo(int(fd), iface, v6) }); e != nil {
			return e
		}
		return err
	}}
	network := "udp4"
	if v6 {
		network = "udp6"
	}
	c, err := config.ListenPacket(ctx, network, ":0")
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

func bindTo(fd int, iface string, v6 bool) error {
	if err := unix.BindToDevice(fd, iface); err != nil {
		return err
	}
	const hops = 255 // RFC 6762, section 11
	if v6 {
		return errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, hops),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 0))
	}
	return errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, hops),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 0))
}
