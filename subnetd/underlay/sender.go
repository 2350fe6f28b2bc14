package underlay

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	sendBatch   = 128   // datagrams of one sendmmsg at most
	maxSegments = 64    // datagrams the kernel splits from one message (UDP_MAX_SEGMENTS of old kernels)
	maxJoined   = 65000 // bytes of one message; below the 65,507 of IPv4
)

// sender holds what one batch of datagrams needs, so that sending allocates
// nothing. Equal-sized consecutive datagrams go as one message of many pieces,
// which the kernel or the network card splits (UDP_SEGMENT).
type sender struct {
	msgs  [sendBatch]mmsghdr
	iovs  [sendBatch]unix.Iovec
	ctrl  [sendBatch][controlSize]byte
	first [sendBatch]int // index of the first datagram in the message
	name  unix.RawSockaddrInet6
	src   netip.Addr // IPv4, or invalid

	write func(fd uintptr) bool
	count int // messages to send
	sent  int // of them gone
	errno unix.Errno
}

func newSender() *sender {
	s := &sender{}
	s.write = s.send
	return s
}

// writeBatch sends the datagrams to one address, from one of ours or, if src is
// invalid, from that which the kernel chooses. When the kernel refuses a
// joined message, joining is given up on this socket and the rest goes singly.
func (s *sender) writeBatch(sock *socket, src netip.Addr, to netip.AddrPort, packets [][]byte) error {
	defer s.forget()
	s.src = src
	namelen := s.setName(sock.v6, to)
	for len(packets) > 0 {
		n := min(len(packets), sendBatch)
		gso := sock.gso.Load()
		s.build(packets[:n], namelen, gso)
		if err := sock.raw.Write(s.write); err != nil {
			return err
		}
		if s.errno != 0 {
			if !gso || !joinRefused(s.errno) {
				return s.errno
			}
			sock.gso.Store(false)
			n = s.first[s.sent]
		}
		packets = packets[n:]
	}
	return nil
}

// joinRefused are the errors by which kernels say that they cannot split.
func joinRefused(e unix.Errno) bool {
	return e == unix.EIO || e == unix.EINVAL || e == unix.EMSGSIZE || e == unix.EOPNOTSUPP
}

// build lays the datagrams out as messages.
func (s *sender) build(packets [][]byte, namelen uint32, gso bool) {
	s.count, s.sent, s.errno = 0, 0, 0
	for i := 0; i < len(packets); {
		n := 1
		if gso {
			n = joinable(packets[i:])
		}
		for j := i; j < i+n; j++ {
			s.iovs[j].Base = unsafe.SliceData(packets[j])
			s.iovs[j].SetLen(len(packets[j]))
		}
		h := &s.msgs[s.count].hdr
		*h = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&s.name)), Namelen: namelen, Iov: &s.iovs[i]}
		h.SetIovlen(n)
		s.setControl(h, n, len(packets[i]))
		s.first[s.count] = i
		s.count++
		i += n
	}
}

// joinable is how many of the first datagrams may go as one message: all of the
// first one's size, the last may be shorter.
func joinable(packets [][]byte) int {
	size := len(packets[0])
	total, n := size, 1
	for n < len(packets) && n < maxSegments && size > 0 {
		l := len(packets[n])
		if l == 0 || l > size || total+l > maxJoined {
			break
		}
		total += l
		n++
		if l < size {
			break
		}
	}
	return n
}

// setControl says beside the message that it is n datagrams of a size, and
// where it comes from; nothing if it is one from anywhere.
func (s *sender) setControl(h *unix.Msghdr, n, size int) {
	c := &s.ctrl[s.count]
	used := 0
	if n > 1 {
		data := control(c, &used, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2)
		binary.NativeEndian.PutUint16(data, uint16(size))
	}
	if s.src.IsValid() {
		data := control(c, &used, unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
		src := s.src.As4()
		clear(data) // any interface
		copy(data[4:], src[:])
	}
	if used > 0 {
		h.Control = &c[0]
		h.SetControllen(used)
	}
}

// control begins a control message behind the used bytes and returns its data.
func control(c *[controlSize]byte, used *int, level, typ int32, size int) []byte {
	cm := (*unix.Cmsghdr)(unsafe.Pointer(&c[*used]))
	cm.Level, cm.Type = level, typ
	cm.SetLen(unix.CmsgLen(size))
	data := c[*used+unix.CmsgLen(0):][:size]
	*used += unix.CmsgSpace(size)
	return data
}

func (s *sender) setName(v6 bool, to netip.AddrPort) uint32 {
	if v6 {
		s.name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: ntohs(to.Port()), Addr: to.Addr().As16()}
		return unix.SizeofSockaddrInet6
	}
	v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(&s.name))
	*v4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: ntohs(to.Port()), Addr: to.Addr().As4()}
	return unix.SizeofSockaddrInet4
}

func (s *sender) send(fd uintptr) bool {
	for s.sent < s.count {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&s.msgs[s.sent])),
			uintptr(s.count-s.sent), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			s.sent += int(n)
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			s.errno = errno
			return true
		}
	}
	return true
}

// forget drops the references to the caller's bytes.
func (s *sender) forget() {
	clear(s.iovs[:])
}
