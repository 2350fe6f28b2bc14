package sense

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"subnetd/subnetd/lan"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	sizeNdmsg   = 12
	atOnce      = 64                    // messages of the kernel between two rests
	deafFor     = time.Second           // after the kernel had more to say than we could hear
	tick        = 10 * time.Millisecond // of the ages that the kernel tells: 1/USER_HZ s
	quietFor    = 30 * time.Second      // a neighbour that was heard since then is not asked
	maxProbes   = 256                   // neighbours that the kernel is made to ask in one round
	answersMask = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE | unix.NUD_PERMANENT
)

// dialTable subscribes to the neighbour table, and to the interfaces' coming and going.
// It is deaf to neighbours until filter says on which interfaces they are heard.
func dialTable() (*netlink.Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, err
	}
	err = filterTable(c, nil)
	for _, g := range []uint32{unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH} {
		if err == nil {
			err = c.JoinGroup(g)
		}
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// filterTable lets pass: news of interfaces, and of neighbours on those with the indices
// what matters. That a neighbour is about to be asked does not, nor do those of the
// internet, nor what a bridge learns: a router hears of these all the time.
func filterTable(c *netlink.Conn, indices []int) error {
	const (
		typeAt   = 4
		familyAt = unix.NLMSG_HDRLEN
		indexAt  = unix.NLMSG_HDRLEN + 4
		stateAt  = unix.NLMSG_HDRLEN + 8
		told     = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_PERMANENT | unix.NUD_FAILED
	)
	n := uint8(len(indices))
	prog := []unix.SockFilter{
		load16(typeAt),
		{Code: jumpEqual, K: order16(unix.RTM_NEWLINK), Jt: n + 11},
		{Code: jumpEqual, K: order16(unix.RTM_DELLINK), Jt: n + 10},
		load8(familyAt),
		{Code: jumpEqual, K: unix.AF_INET, Jt: 1},
		{Code: jumpEqual, K: unix.AF_INET6, Jf: n + 6},
		load32(indexAt),
	}
	for i, index := range indices {
		prog = append(prog, unix.SockFilter{Code: jumpEqual, K: order32(uint32(index)), Jt: n - uint8(i)})
	}
	prog = append(prog,
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: 4},
		load16(typeAt),
		unix.SockFilter{Code: jumpEqual, K: order16(unix.RTM_DELNEIGH), Jt: 3},
		load16(stateAt),
		unix.SockFilter{Code: jumpBits, K: order16(told), Jt: 1},
		unix.SockFilter{Code: unix.BPF_RET},
		unix.SockFilter{Code: unix.BPF_RET, K: 1 << 16},
	)
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return attach(raw, prog)
}

// order16 is a number in this machine's order of bytes as the filter, which reads in that
// of networks, sees it.
func order16(n uint16) uint32 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], n)
	return uint32(binary.BigEndian.Uint16(b[:]))
}

func order32(n uint32) uint32 {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], n)
	return binary.BigEndian.Uint32(b[:])
}

// followTable hears the kernel until ctx is done.
func (s *Sense) followTable(ctx context.Context, c *netlink.Conn) error {
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for told := 1; ; told++ {
		msgs, err := c.Receive()
		after := time.Duration(0) // the kernel tells of one at a time
		if told%atOnce == 0 {
			after = rest
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			after = deafFor
			s.mu.Lock()
			s.missed = true
			s.mu.Unlock()
		case err != nil:
			return fmt.Errorf("neighbours: %w", err)
		default:
			s.hear(msgs)
		}
		if after > 0 && !pause(ctx, after) {
			return nil
		}
		if err != nil {
			signal(s.plug) // whatever was missed: everything is looked at
		}
	}
}

// hear writes down what the kernel said.
func (s *Sense) hear(msgs []netlink.Message) {
	for _, m := range msgs {
		switch m.Header.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			signal(s.plug)
		case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
			s.hearNeighbour(m)
		}
	}
}

func (s *Sense) hearNeighbour(m netlink.Message) {
	e, err := parseEntry(m.Data)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.c.Now()
	n, ok := e.neighbour(s.links, now)
	switch {
	case m.Header.Type == unix.RTM_DELNEIGH:
		n = lan.Neighbour{Addr: e.addr, Interface: n.Interface, State: lan.Gone}
	case !ok:
		return
	case !n.Seen.IsZero():
		n.Seen = now // what is told only now happened now
	}
	changed := s.book.Neighbour(now, n)
	if n.State == lan.Silent && len(s.silent) < maxSilent && s.book.Owner(now, n.Addr) != "" {
		s.silent, changed = append(s.silent, silence{n.Addr, n.Interface}), true
	}
	if changed {
		signal(s.news)
	}
}

// readTable reads the whole table into the book.
func (s *Sense) readTable() error {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	msgs, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETNEIGH, Flags: netlink.Request | netlink.Dump}, Data: make([]byte, sizeNdmsg),
	})
	if err = errors.Join(err, c.Close()); err != nil {
		return err
	}
	now := s.c.Now()
	var all []lan.Neighbour
	for _, m := range msgs {
		if e, err := parseEntry(m.Data); err == nil {
			if n, ok := e.neighbour(s.links, now); ok {
				all = append(all, n)
			}
		}
	}
	s.book.Neighbours(now, all)
	return nil
}

// entry is one of the kernel's neighbour table.
type entry struct {
	link  int
	state uint16
	addr  netip.Addr
	mac   string
	age   time.Duration // since it was last confirmed to be there
	dated bool
}

// parseEntry reads an ndmsg and the attributes behind it.
func parseEntry(b []byte) (entry, error) {
	if len(b) < sizeNdmsg {
		return entry{}, fmt.Errorf("neighbour of %d bytes", len(b))
	}
	e := entry{link: int(int32(binary.NativeEndian.Uint32(b[4:]))), state: binary.NativeEndian.Uint16(b[8:])}
	ad, err := netlink.NewAttributeDecoder(b[sizeNdmsg:])
	if err != nil {
		return entry{}, err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.NDA_DST:
			e.addr, _ = netip.AddrFromSlice(ad.Bytes())
		case unix.NDA_LLADDR:
			e.mac = lan.MAC(ad.Bytes())
		case unix.NDA_CACHEINFO:
			if c := ad.Bytes(); len(c) >= 4 {
				e.age, e.dated = time.Duration(binary.NativeEndian.Uint32(c))*tick, true
			}
		}
	}
	return e, ad.Err()
}

// neighbour is what the entry says to the book, if it says anything: nothing is said
// while the kernel asks for the first time.
func (e entry) neighbour(links map[int]string, now time.Time) (lan.Neighbour, bool) {
	iface, ok := links[e.link]
	n := lan.Neighbour{Addr: e.addr, MAC: e.mac, Interface: iface}
	switch {
	case !ok || !e.addr.IsValid():
		return n, false
	case e.state&unix.NUD_FAILED != 0:
		n.State, n.MAC = lan.Silent, ""
	case e.state&answersMask == 0 || e.mac == "":
		return n, false
	case e.state&unix.NUD_PERMANENT == 0 && e.dated:
		n.Seen = now.Add(-e.age)
	}
	return n, true
}

// probe makes the kernel ask for the addresses of things, but for those that were heard
// just now and those that did not answer the last time. What becomes of it is told as
// all that becomes of neighbours.
func (s *Sense) probe(now time.Time, things []lan.Thing) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		s.c.Log.Debug("neighbours cannot be asked for", "err", err)
		return
	}
	index := map[string]int{}
	for i, name := range s.up() {
		index[name] = i
	}
	n := 0
	for _, t := range things {
		for _, a := range t.Addresses {
			link := index[a.Interface]
			if link == 0 || a.Silent || now.Sub(a.Seen) < quietFor || n == maxProbes {
				continue
			}
			n++
			if _, err := c.Execute(probeMessage(link, a)); err != nil {
				s.c.Log.Debug("a neighbour cannot be asked for", "addr", a.Addr, "err", err)
			}
		}
	}
	if err := c.Close(); err != nil {
		s.c.Log.Debug("netlink", "err", err)
	}
}

// probeMessage sends an entry that the kernel has into the state in which it asks, or
// makes one as if a packet was to be sent there.
func probeMessage(link int, a lan.Address) netlink.Message {
	b := make([]byte, sizeNdmsg, sizeNdmsg+4+16)
	b[0] = unix.AF_INET
	if a.Addr.Is6() {
		b[0] = unix.AF_INET6
	}
	binary.NativeEndian.PutUint32(b[4:], uint32(link))
	flags := netlink.Request | netlink.Acknowledge | netlink.Replace
	if a.Known {
		binary.NativeEndian.PutUint16(b[8:], unix.NUD_PROBE)
	} else {
		b[10] = unix.NTF_USE
		flags |= netlink.Create
	}
	dst := a.Addr.AsSlice()
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(dst)))
	b = binary.NativeEndian.AppendUint16(b, unix.NDA_DST)
	return netlink.Message{Header: netlink.Header{Type: unix.RTM_NEWNEIGH, Flags: flags}, Data: append(b, dst...)}
}
