package underlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// receiveBuffer is what we ask the kernel to hold for us per socket, in bytes.
const receiveBuffer = 2 << 20

// socket is one family's UDP socket.
type socket struct {
	conn *net.UDPConn
	raw  syscall.RawConn
	v6   bool
	gro  bool        // the kernel joins datagrams for us
	gso  atomic.Bool // the kernel splits datagrams for us; false once it failed to
}

func (s *socket) port() uint16 { return s.conn.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

func (s *socket) close() {
	if s != nil {
		s.conn.Close()
	}
}

// listenPair opens both families on the same port, which is not the one to
// leave to others. A family that the machine does not have is nil; having
// neither is an error.
func listenPair(port, leave uint16, mark int, log *slog.Logger) (v4, v6 *socket, got uint16, err error) {
	if port != 0 && port == leave {
		return nil, nil, 0, errors.New("it is the public port, which is WireGuard's")
	}
	tries := 1
	if port == 0 {
		tries = 16 // the port that is free for one family may be taken in the other
	}
	for range tries {
		v4, v6, err = listenBoth(port, mark, log)
		if err != nil {
			continue
		}
		s := v4
		if s == nil {
			s = v6
		}
		if got = s.port(); got != leave {
			return v4, v6, got, nil
		}
		v4.close()
		v6.close()
		err = errors.New("no port is free but the public one")
	}
	return nil, nil, 0, err
}

func listenBoth(port uint16, mark int, log *slog.Logger) (v4, v6 *socket, err error) {
	v4, err4 := listen("udp4", port, mark, log)
	if err4 != nil && !missingFamily(err4) {
		return nil, nil, err4
	}
	if v4 != nil {
		port = v4.port()
	}
	v6, err6 := listen("udp6", port, mark, log)
	if err6 != nil && !missingFamily(err6) {
		v4.close()
		return nil, nil, err6
	}
	if v4 == nil && v6 == nil {
		return nil, nil, errors.Join(err4, err6)
	}
	return v4, v6, nil
}

// missingFamily tells a machine without IPv4 or IPv6 from other failures.
func missingFamily(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) ||
		errors.Is(err, unix.EPROTONOSUPPORT)
}

func listen(network string, port uint16, mark int, log *slog.Logger) (*socket, error) {
	s, err := open(net.ListenConfig{Control: markControl(mark, log)}, network, port)
	if err != nil {
		return nil, err
	}
	_ = s.raw.Control(s.join)
	return s, nil
}

// open makes a socket on all addresses of the family.
func open(lc net.ListenConfig, network string, port uint16) (*socket, error) {
	pc, err := lc.ListenPacket(context.Background(), network, ":"+strconv.Itoa(int(port)))
	if err != nil {
		return nil, err
	}
	conn := pc.(*net.UDPConn)
	raw, err := conn.SyscallConn()
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("raw access to UDP socket: %w", err)
	}
	s := &socket{conn: conn, raw: raw, v6: network == "udp6"}
	_ = raw.Control(s.tune)
	return s, nil
}

// join asks the kernel to join datagrams for us; it may not know how.
func (s *socket) join(fd uintptr) {
	s.gro = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
}

// tune asks for what the kernel may or may not have; failing is fine.
func (s *socket) tune(fd uintptr) {
	if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	_, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT)
	s.gso.Store(err == nil)
}

// markControl sets SO_MARK, which keeps our own packets out of the mesh. It
// needs a privilege; without it we say so and go on. Inlined it would be in the
// program seven times.
//
//go:noinline
func markControl(mark int, log *slog.Logger) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		if mark == 0 {
			return nil
		}
		var markErr error
		err := c.Control(func(fd uintptr) {
			markErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark)
		})
		if errors.Is(markErr, unix.EPERM) {
			log.Warn("cannot mark our packets: not privileged", "mark", mark)
			return nil
		}
		return errors.Join(err, markErr)
	}
}
