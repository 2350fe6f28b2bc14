package sense

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"subnetd/subnetd/lan"

	"golang.org/x/sys/unix"
)

const (
	portDHCP   = 67
	portMDNS   = 5353
	batch      = 64   // packets that are read before a rest
	maxPacket  = 9000 // bytes; no longer ones are sent by mDNS (RFC 6762, section 17)
	pktType    = 4    // of what the kernel knows of a packet: whom it is for (SKF_AD_PKTTYPE)
	answerFlag = 0x80 // of DNS
)

// The filters are the kernel's: they begin at the header of IP. Their first look leaves out
// all that is for one host, such as what the router forwards.

// filterV4 lets pass what is sent to all or many and is for DHCP's port or is an
// answer of mDNS.
func filterV4() []unix.SockFilter {
	return []unix.SockFilter{
		load8(ofPacket + pktType),
		{Code: jumpEqual, K: unix.PACKET_BROADCAST, Jt: 1},
		{Code: jumpEqual, K: unix.PACKET_MULTICAST, Jf: 12},
		load8(9),
		{Code: jumpEqual, K: unix.IPPROTO_UDP, Jf: 10},
		load16(6),
		{Code: jumpBits, K: 0x3fff, Jt: 8}, // a fragment
		{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH}, // length of the header
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: 2},
		{Code: jumpEqual, K: portDHCP, Jt: 4},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: 0},
		{Code: jumpEqual, K: portMDNS, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_IND, K: 10},
		{Code: jumpBits, K: answerFlag, Jf: 1},
		{Code: unix.BPF_RET, K: maxPacket},
		{Code: unix.BPF_RET},
	}
}

// filterV6 lets pass answers of mDNS that are sent to many.
func filterV6() []unix.SockFilter {
	return []unix.SockFilter{
		load8(ofPacket + pktType),
		{Code: jumpEqual, K: unix.PACKET_MULTICAST, Jf: 7},
		load8(6),
		{Code: jumpEqual, K: unix.IPPROTO_UDP, Jf: 5},
		load16(40),
		{Code: jumpEqual, K: portMDNS, Jf: 3},
		load8(50),
		{Code: jumpBits, K: answerFlag, Jf: 1},
		{Code: unix.BPF_RET, K: maxPacket},
		{Code: unix.BPF_RET},
	}
}

// packets hears those of one family on one interface.
type packets struct {
	f     *os.File // nil: it does not
	group int      // socket that is a member of the group of mDNS; -1: none
	done  sync.WaitGroup
}

// listenPackets hears with the filter from the first packet on. It is told neither what is
// sent nor, but for the filter's first look, what is forwarded.
func listenPackets(index int, family uint16, filter []unix.SockFilter) (*packets, error) {
	p := &packets{group: -1}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return p, fmt.Errorf("packet socket: %w", err)
	}
	if err = attachTo(fd, filter); err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(family), Ifindex: index})
	}
	if err != nil {
		return p, errors.Join(fmt.Errorf("packet socket: %w", err), unix.Close(fd))
	}
	p.f = os.NewFile(uintptr(fd), "packets")
	return p, nil
}

func networkOrder(n uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], n)
	return binary.NativeEndian.Uint16(b[:])
}

// run hears until it is closed or ctx is done.
func (p *packets) run(ctx context.Context, heard func(mac string, b []byte)) {
	if p.f == nil {
		return
	}
	p.done.Go(func() {
		buf := make([]byte, maxPacket)
		for n := 1; ; n++ {
			size, mac, err := p.read(buf)
			if errors.Is(err, unix.ENETDOWN) { // told once; it may come up again
				continue
			}
			if err != nil {
				return
			}
			heard(mac, buf[:size])
			if n%batch == 0 && !pause(ctx, rest) {
				return
			}
		}
	})
}

// read reads one packet, and from which MAC it came.
func (p *packets) read(buf []byte) (n int, mac string, err error) {
	c, err := p.f.SyscallConn()
	if err != nil {
		return 0, "", err
	}
	var from unix.Sockaddr
	closed := c.Read(func(fd uintptr) bool {
		n, from, err = unix.Recvfrom(int(fd), buf, 0)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	if closed != nil || err != nil {
		return 0, "", errors.Join(closed, err)
	}
	if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Hatype == unix.ARPHRD_ETHER {
		mac = lan.MAC(l.Addr[:min(l.Halen, 8)])
	}
	return n, mac, nil
}

// join makes the interface, and bridges and switches that listen in, let the group's
// packets through to here. The socket hears nothing itself.
func (p *packets) join(index, family int) {
	if p.f == nil {
		return
	}
	domain := unix.AF_INET
	if family == 6 {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	p.group = fd
	if family == 6 {
		_ = unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: groupV6.As16(), Interface: uint32(index)})
		return
	}
	_ = unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: groupV4.As4(), Ifindex: int32(index)})
}

// close returns when it no longer hears.
func (p *packets) close() {
	if p.group >= 0 {
		_ = unix.Close(p.group)
	}
	if p.f != nil {
		_ = p.f.Close()
	}
	p.done.Wait()
}

var (
	groupV4 = netip.AddrFrom4([4]byte{224, 0, 0, 251})
	groupV6 = netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 15: 0xfb})
)

// hearPacket writes down what a packet says of its sender, if it says anything.
func (s *Sense) hearPacket(mac, iface string, b []byte) {
	src, port, data, ok := datagram(b)
	if !ok {
		return
	}
	if port == portDHCP {
		if h, ok := lan.ParseDHCP(data); ok {
			h.Interface = iface
			s.write(func(now time.Time, b *lan.Book) bool { return b.Heard(now, h) })
		}
		return
	}
	if said, ok := lan.ParseMDNS(data); ok {
		s.hearSaid(mac, iface, src, said)
	}
}

// hearSaid writes down an answer of mDNS. It is the sender's own only if all addresses in it
// are: others were passed on by a repeater, or by who answers for one that sleeps.
func (s *Sense) hearSaid(mac, iface string, src netip.Addr, said lan.Said) {
	s.write(func(now time.Time, b *lan.Book) bool {
		if mac == "" {
			mac = b.Owner(now, src)
		}
		if b.Foreign(now, mac, append(said.Addrs, src)) {
			return false
		}
		return b.Heard(now, lan.Heard{
			MAC: mac, Interface: iface, Source: lan.MDNS, Name: said.Name, Model: said.Model, Services: said.Services, Ended: said.Ended,
		})
	})
}

// datagram reads the headers of IP and UDP: where from, DHCP's port or 0, and the data.
func datagram(b []byte) (src netip.Addr, port uint16, data []byte, ok bool) {
	header := 40
	switch {
	case len(b) >= 20 && b[0]>>4 == 4 && b[9] == unix.IPPROTO_UDP:
		header = int(b[0]&15) * 4
		src = netip.AddrFrom4([4]byte(b[12:16]))
	case len(b) >= 40 && b[0]>>4 == 6 && b[6] == unix.IPPROTO_UDP:
		src = netip.AddrFrom16([16]byte(b[8:24]))
	default:
		return src, 0, nil, false
	}
	if header < 20 || len(b) < header+8 {
		return src, 0, nil, false
	}
	udp := b[header:]
	size := int(binary.BigEndian.Uint16(udp[4:]))
	if size < 8 || size > len(udp) {
		return src, 0, nil, false
	}
	if binary.BigEndian.Uint16(udp[2:]) == portDHCP {
		port = portDHCP
	}
	return src, port, udp[8:size], true
}
