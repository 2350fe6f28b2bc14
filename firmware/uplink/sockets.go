package uplink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	client4, server4 = 68, 67
	client6, server6 = 546, 547
	mostMessage      = 1500
	mostWaiting      = 16 // messages; more are dropped, whoever sends them
)

var allServers = netip.MustParseAddr("ff02::1:2") // All_DHCP_Relay_Agents_and_Servers

// sockets are those of one interface. What they hear goes to one channel each.
type sockets struct {
	name   string
	index  int
	heard4 chan []byte
	heard6 chan []byte
	raw    net.PacketConn // hears and speaks without an address; nil: not open
	udp4   net.PacketConn
	udp6   net.PacketConn
}

func openSockets(ctx context.Context, name string) (*sockets, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	s := &sockets{name: name, index: ifi.Index, heard4: make(chan []byte, mostWaiting), heard6: make(chan []byte, mostWaiting)}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		control := c.Control(func(fd uintptr) {
			err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.BindToDevice(int(fd), name))
		})
		return errors.Join(control, err)
	}}
	var err4, err6 error
	s.udp4, err4 = lc.ListenPacket(ctx, "udp4", fmt.Sprintf("0.0.0.0:%d", client4))
	s.udp6, err6 = lc.ListenPacket(ctx, "udp6", fmt.Sprintf("[::]:%d", client6))
	if err := errors.Join(err4, err6); err != nil {
		s.close()
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	go read(s.udp4, s.heard4)
	go read(s.udp6, s.heard6)
	return s, nil
}

func (s *sockets) close() {
	for _, c := range []net.PacketConn{s.raw, s.udp4, s.udp6} {
		if c != nil {
			_ = c.Close()
		}
	}
}

// read hands on what is heard until the socket is closed. What the kernel says of earlier
// messages is no end.
func read(c net.PacketConn, to chan<- []byte) {
	for b := make([]byte, mostMessage); ; {
		n, _, err := c.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENXIO) {
			return
		}
		if err != nil {
			continue
		}
		select {
		case to <- append([]byte(nil), b[:n]...):
		default:
		}
	}
}

// setRaw opens or closes the raw socket. It is open only while there is no address to hear
// at: the kernel shows it every packet of the interface.
func (s *sockets) setRaw(want bool) error {
	switch {
	case want && s.raw == nil:
		ifi, err := net.InterfaceByName(s.name)
		if err != nil {
			return err
		}
		filter, err := bpf.Assemble(dhcpOnly)
		if err != nil {
			return err
		}
		c, err := packet.Listen(ifi, packet.Datagram, unix.ETH_P_IP, &packet.Config{Filter: filter})
		if err != nil {
			return fmt.Errorf("raw socket on %s: %w", s.name, err)
		}
		s.raw = nclient4.NewBroadcastUDPConn(c, &net.UDPAddr{Port: client4})
		go read(s.raw, s.heard4)
	case !want && s.raw != nil:
		_ = s.raw.Close()
		s.raw = nil
	}
	return nil
}

// dhcpOnly lets whole UDP packets to port 68 through.
var dhcpOnly = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 9, Size: 1}, // protocol
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 6},
	bpf.LoadAbsolute{Off: 6, Size: 2}, // fragment offset
	bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x1fff, SkipTrue: 4},
	bpf.LoadMemShift{Off: 0}, // length of the header
	bpf.LoadIndirect{Off: 2, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: client4, SkipTrue: 1},
	bpf.RetConstant{Val: mostMessage},
	bpf.RetConstant{Val: 0},
}

func (s *sockets) send4(m *dhcpv4.DHCPv4, server netip.Addr, direct bool) error {
	if direct {
		_, err := s.udp4.WriteTo(m.ToBytes(), net.UDPAddrFromAddrPort(netip.AddrPortFrom(server, server4)))
		return err
	}
	_, err := s.raw.WriteTo(m.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: server4})
	return err
}

func (s *sockets) send6(m *dhcpv6.Message) error {
	// By number: net remembers for a minute which number a name has, and an adapter that is put in
	// again has another.
	to := netip.AddrPortFrom(allServers.WithZone(strconv.Itoa(s.index)), server6)
	_ = s.udp6.SetWriteDeadline(time.Now().Add(time.Second)) // a socket that is closed fails below
	_, err := s.udp6.WriteTo(m.ToBytes(), net.UDPAddrFromAddrPort(to))
	return err
}
