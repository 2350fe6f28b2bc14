package underlay

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is the kernel's struct mmsghdr: one message of recvmmsg/sendmmsg.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32 // bytes of this message
}

const (
	controlSize = 64 // bytes; room for a UDP_GRO or UDP_SEGMENT message, and one of IP_PKTINFO

	groSlots = 4 // with GRO: a few large buffers
	groSlot  = 1<<16 - 1
	oneSlots = 32 // without: many small ones
	oneSlot  = 4096
)

// reader receives datagrams of one socket in batches, without allocating. Its
// buffers are its own, so that a caller's buffers need not hold what GRO joined.
type reader struct {
	sock  *socket
	msgs  []mmsghdr
	iovs  []unix.Iovec
	names []unix.RawSockaddrInet6 // an IPv4 address fits too
	ctrl  [][controlSize]byte
	bufs  [][]byte

	recv  func(fd uintptr) bool // made once: a closure per call would allocate
	errno unix.Errno

	got  int // messages received
	next int // message to hand on next
	off  int // bytes of it already handed on
	last int // message of the datagram handed on last
}

func newReader(s *socket) *reader {
	slots, size := oneSlots, oneSlot
	if s.gro {
		slots, size = groSlots, groSlot
	}
	r := &reader{
		sock: s, msgs: make([]mmsghdr, slots), iovs: make([]unix.Iovec, slots),
		names: make([]unix.RawSockaddrInet6, slots), ctrl: make([][controlSize]byte, slots),
		bufs: make([][]byte, slots),
	}
	for i := range r.msgs {
		r.bufs[i] = make([]byte, size)
		r.iovs[i].Base = &r.bufs[i][0]
		r.iovs[i].SetLen(size)
		h := &r.msgs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		h.Iov = &r.iovs[i]
		h.SetIovlen(1)
		h.Control = &r.ctrl[i][0]
	}
	r.recv = r.receive
	return r
}

// fill blocks until datagrams are there and takes them. The error is that of
// the socket: closed, deadline, or the kernel's.
func (r *reader) fill() error {
	for i := range r.msgs {
		h := &r.msgs[i].hdr
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(controlSize)
		h.Flags = 0
	}
	r.got, r.next, r.off, r.errno = 0, 0, 0, 0
	if err := r.sock.raw.Read(r.recv); err != nil {
		return err
	}
	if r.errno != 0 {
		return r.errno
	}
	return nil
}

func (r *reader) receive(fd uintptr) bool {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.msgs[0])),
			uintptr(len(r.msgs)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			r.got = int(n)
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			r.errno = errno
			return true
		}
	}
}

// take gives the next datagram and its source. The bytes are valid until the
// next fill. ok is false when all are taken.
func (r *reader) take() (data []byte, from netip.AddrPort, ok bool) {
	for r.next < r.got {
		m := &r.msgs[r.next]
		total := int(m.n)
		if r.off >= total || m.hdr.Flags&unix.MSG_TRUNC != 0 {
			r.next, r.off = r.next+1, 0
			continue
		}
		size := r.segment(r.next)
		if size <= 0 || size > total-r.off {
			size = total - r.off
		}
		data = r.bufs[r.next][r.off : r.off+size]
		from = sockaddr(&r.names[r.next])
		r.last = r.next
		r.off += size
		return data, from, true
	}
	return nil, netip.AddrPort{}, false
}

// to is where the datagram last taken was sent to, and the interface that it
// came by. It needs IP_PKTINFO; without it the address is invalid.
func (r *reader) to() (netip.Addr, uint32) {
	info := r.control(r.last, unix.IPPROTO_IP, unix.IP_PKTINFO)
	if len(info) < unix.SizeofInet4Pktinfo {
		return netip.Addr{}, 0
	}
	return netip.AddrFrom4([4]byte(info[8:12])), binary.NativeEndian.Uint32(info)
}

// segment is the size of the datagrams that GRO joined in message i; 0: not joined.
func (r *reader) segment(i int) int {
	switch data := r.control(i, unix.IPPROTO_UDP, unix.UDP_GRO); {
	case len(data) >= 4:
		return int(binary.NativeEndian.Uint32(data))
	case len(data) >= 2:
		return int(binary.NativeEndian.Uint16(data))
	}
	return 0
}

// control is what the kernel says beside message i; nil: nothing of that type.
func (r *reader) control(i int, level, typ int32) []byte {
	rest := r.ctrl[i][:min(int(r.msgs[i].hdr.Controllen), controlSize)]
	for len(rest) >= unix.SizeofCmsghdr {
		h, data, more, err := unix.ParseOneSocketControlMessage(rest)
		if err != nil {
			return nil
		}
		if h.Level == level && h.Type == typ {
			return data
		}
		rest = more
	}
	return nil
}

// sockaddr reads the kernel's form of an address; IPv4 is never mapped.
func sockaddr(sa *unix.RawSockaddrInet6) netip.AddrPort {
	switch sa.Family {
	case unix.AF_INET:
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), ntohs(v4.Port))
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), ntohs(sa.Port))
	}
	return netip.AddrPort{}
}

// ntohs turns a port between network and machine order, either way.
func ntohs(p uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(&p))
	return binary.BigEndian.Uint16(b[:])
}
