package underlay

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

const (
	headerV4   = 20
	headerV6   = 40
	headerUDP  = 8
	hopLimit   = 64
	dontBlock  = unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
	relayBatch = batchSize // packets of one round of injectLoop at most
)

// forger gives packets to the kernel's WireGuard as if they came from an address
// of the peer's. WireGuard sends to where a peer was last heard; so a packet that
// a relay brought while the direct path works must not seem to come from
// elsewhere. It is owned by injectLoop.
type forger struct {
	u      *Underlay
	v4, v6 int // raw sockets; -1: not permitted, or no such family
	buf    []byte
	said   bool // that it does not work
}

func (u *Underlay) newForger() *forger {
	f := &forger{u: u, v4: -1, v6: -1, buf: make([]byte, 0, headerV6+headerUDP+packetSize)}
	f.v4 = f.open(unix.AF_INET)
	if u.v6 != nil {
		f.v6 = f.open(unix.AF_INET6)
	}
	return f
}

// open makes a socket that takes whole IP packets and receives none.
func (f *forger) open(family int) int {
	fd, err := unix.Socket(family, unix.SOCK_RAW|dontBlock, unix.IPPROTO_RAW)
	if err != nil {
		f.complain(err)
		return -1
	}
	if mark := f.u.cfg.Mark; mark != 0 {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark) // New has warned if that is not permitted
	}
	return fd
}

func (f *forger) close() {
	for _, fd := range []int{f.v4, f.v6} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func (f *forger) complain(err error) {
	if !f.said {
		f.said = true
		f.u.cfg.Log.Warn("relayed packets cannot be given to WireGuard under the peer's direct address: its path may change back and forth", "err", err)
	}
}

// give hands a packet to the kernel as if it came from the address; false: it
// could not be done.
func (f *forger) give(p *peer, from netip.AddrPort, b []byte) bool {
	var err error
	if from.Addr().Is4() {
		if f.v4 < 0 {
			return false
		}
		to := [4]byte{127, 0, 0, 1}
		f.buf = packetV4(f.buf[:0], from, netip.AddrPortFrom(netip.AddrFrom4(to), f.u.listens(p)), b)
		err = unix.Sendto(f.v4, f.buf, unix.MSG_DONTWAIT, &unix.SockaddrInet4{Addr: to})
	} else {
		to := f.ourAddr(p, from)
		if f.v6 < 0 || !to.IsValid() {
			return false
		}
		f.buf = packetV6(f.buf[:0], from, netip.AddrPortFrom(to, f.u.listens(p)), b)
		err = unix.Sendto(f.v6, f.buf, unix.MSG_DONTWAIT, &unix.SockaddrInet6{Addr: to.As16()})
	}
	if err != nil {
		f.complain(err)
	}
	return err == nil
}

// ourAddr is our address towards the peer's, as the kernel would choose it.
// WireGuard goes on to send from the address that a packet came to, in IPv6
// without a second look, so ::1 would not do. Invalid: there is no way there.
func (f *forger) ourAddr(p *peer, to netip.AddrPort) netip.Addr {
	if learned := f.u.learned.Load(); p.ourAddrTo != to || p.ourAddrAt != learned {
		p.ourAddr, p.ourAddrTo, p.ourAddrAt = netip.Addr{}, to, learned
		d := net.Dialer{Control: markControl(f.u.cfg.Mark, f.u.cfg.Log)}
		if conn, err := d.DialContext(context.Background(), "udp6", to.String()); err == nil { // UDP: nothing is sent
			p.ourAddr = localIP(conn)
			conn.Close()
		}
	}
	return p.ourAddr
}

// packetV4 appends an IPv4 packet to buf; the kernel fills in the header's
// checksum and number.
func packetV4(buf []byte, from, to netip.AddrPort, b []byte) []byte {
	src, dst := from.Addr().As4(), to.Addr().As4()
	buf = append(buf, 0x45, 0)
	buf = binary.BigEndian.AppendUint16(buf, uint16(headerV4+headerUDP+len(b)))
	buf = append(buf, 0, 0, 0, 0, hopLimit, unix.IPPROTO_UDP, 0, 0)
	buf = append(append(buf, src[:]...), dst[:]...)
	return appendUDP(buf, from.Port(), to.Port(), sum(sum(0, src[:]), dst[:]), b)
}

// packetV6 appends an IPv6 packet to buf.
func packetV6(buf []byte, from, to netip.AddrPort, b []byte) []byte {
	src, dst := from.Addr().As16(), to.Addr().As16()
	buf = append(buf, 0x60, 0, 0, 0)
	buf = binary.BigEndian.AppendUint16(buf, uint16(headerUDP+len(b)))
	buf = append(buf, unix.IPPROTO_UDP, hopLimit)
	buf = append(append(buf, src[:]...), dst[:]...)
	return appendUDP(buf, from.Port(), to.Port(), sum(sum(0, src[:]), dst[:]), b)
}

// appendUDP appends a UDP datagram; addrs is the sum of both IP addresses.
func appendUDP(buf []byte, from, to uint16, addrs uint32, b []byte) []byte {
	at, size := len(buf), uint16(headerUDP+len(b))
	buf = binary.BigEndian.AppendUint16(buf, from)
	buf = binary.BigEndian.AppendUint16(buf, to)
	buf = binary.BigEndian.AppendUint16(buf, size)
	buf = append(append(buf, 0, 0), b...)
	s := sum(addrs+unix.IPPROTO_UDP+uint32(size), buf[at:])
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	check := ^uint16(s)
	if check == 0 { // 0 says that there is none
		check = 0xffff
	}
	binary.BigEndian.PutUint16(buf[at+6:], check)
	return buf
}

// sum adds b to an internet checksum before it is folded. 64 KiB never overflow it.
func sum(s uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

// injectLoop brings the kernel what relays bring, until Run ends.
func (u *Underlay) injectLoop() {
	f := u.newForger()
	defer f.close()
	got := make([]*packet, 0, relayBatch)
	data := make([][]byte, 0, relayBatch)
	for {
		select {
		case p := <-u.relayIn:
			got = append(got, p)
		case <-u.done:
			return
		}
		for more := true; more && len(got) < cap(got); {
			select {
			case p := <-u.relayIn:
				got = append(got, p)
			default:
				more = false
			}
		}
		for i := 0; i < len(got); { // runs of one peer
			data = data[:0]
			k := got[i].peer
			for ; i < len(got) && got[i].peer == k; i++ {
				if isWireGuard(got[i].bytes()) {
					data = append(data, got[i].bytes())
				}
			}
			if p := (*u.peers.Load())[k]; p != nil && len(data) > 0 {
				u.inject(f, p, data)
			}
		}
		for _, p := range got {
			u.free(p)
		}
		clear(data)
		got = got[:0]
	}
}

// isWireGuard reports whether b may be a message of WireGuard: on its port the
// kernel would take others for what the world sent us.
func isWireGuard(b []byte) bool {
	return len(b) >= 32 && b[0] >= wireguardInitiation && b[0] <= wireguardData && b[1] == 0 && b[2] == 0 && b[3] == 0
}

// inject brings packets of the peer to the kernel, from where the kernel sends
// to it. That is never the relay's to say.
func (u *Underlay) inject(f *forger, p *peer, packets [][]byte) {
	for _, b := range packets {
		if b[0] == wireguardResponse {
			p.began.Store(nil)
		}
	}
	p.unclear.Store(true)
	if from := *p.pin.Load(); from != p.loop {
		for len(packets) > 0 && f.give(p, from, packets[0]) {
			packets = packets[1:]
		}
	}
	if len(packets) == 0 {
		return
	}
	s := u.senders.Get().(*sender)
	defer u.senders.Put(s)
	to := netip.AddrPortFrom(u.conduit.kernel.Addr(), u.listens(p))
	if err := s.writeBatch(u.conduit.sock, p.loop.Addr(), to, packets); err != nil {
		u.cfg.Log.Debug("a relayed packet does not reach WireGuard", "err", fmt.Errorf("send to %s: %w", to, err))
	}
}
