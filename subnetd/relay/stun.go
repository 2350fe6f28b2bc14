package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"time"

	"tailscale.com/net/stun"
)

const (
	maxSTUN     = 512             // bytes of a request; more are garbage
	stunBackoff = 1 * time.Second // after an error of the socket
)

// ServeSTUN tells who asks, with a binding request, from which address the
// packet came (RFC 8489), until ctx ends; then it closes pc. The request must
// end in a fingerprint, as clients of the mesh send it, so that an answer is at
// most four bytes longer and the socket is of no use to harm others. Anything
// else is ignored. The answer leaves from the address that was asked, if pc is
// a *net.UDPConn.
func ServeSTUN(ctx context.Context, pc net.PacketConn, log *slog.Logger) error {
	stop := context.AfterFunc(ctx, func() { pc.Close() })
	defer pc.Close()
	defer stop()
	read, write := plainSTUN(pc)
	if udp, ok := pc.(*net.UDPConn); ok {
		read, write = localSTUN(udp)
	}
	b := make([]byte, maxSTUN)
	said := ""
	for {
		n, from, err := read(b)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("STUN: %w", err)
		case err != nil: // such as no memory: it passes
			if err.Error() != said {
				said = err.Error()
				log.Warn("STUN: cannot read", "err", err)
			}
			pause(ctx, stunBackoff)
			continue
		}
		if id, err := stun.ParseBindingRequest(b[:n]); err == nil {
			write(stun.Response(id, from)) // who is not reached asks again
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// plainSTUN reads from and answers over any socket. from is never an IPv4
// address in IPv6 clothes, which would be told as such.
func plainSTUN(pc net.PacketConn) (read func([]byte) (int, netip.AddrPort, error), write func([]byte)) {
	var peer net.Addr
	read = func(b []byte) (int, netip.AddrPort, error) {
		n, from, err := pc.ReadFrom(b)
		if err != nil {
			return 0, netip.AddrPort{}, err
		}
		peer = from
		a, err := netip.ParseAddrPort(from.String())
		if err != nil {
			return 0, a, nil // nobody we can tell anything: an empty packet is ignored
		}
		return n, unmap(a), nil
	}
	return read, func(b []byte) { pc.WriteTo(b, peer) }
}

// localSTUN does the same, and answers from the address that was asked, as the
// kernel says with each packet (ip(7), ipv6(7)). Otherwise a router with several
// addresses would answer from another one, and firewalls drop that.
func localSTUN(udp *net.UDPConn) (read func([]byte) (int, netip.AddrPort, error), write func([]byte)) {
	if raw, err := udp.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			// Either fails where the socket is not of the family.
			syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_PKTINFO, 1)
			syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_RECVPKTINFO, 1)
		})
	}
	oob := make([]byte, 128)
	var peer netip.AddrPort
	var where []byte
	read = func(b []byte) (int, netip.AddrPort, error) {
		n, m, _, from, err := udp.ReadMsgUDPAddrPort(b, oob)
		peer, where = from, oob[:m]
		return n, unmap(from), err
	}
	return read, func(b []byte) {
		sendBack(where)
		if _, _, err := udp.WriteMsgUDPAddrPort(b, where, peer); err != nil {
			udp.WriteToUDPAddrPort(b, peer)
		}
	}
}

// sendBack turns the control messages that say where a packet has come in to
// those that say whence the answer leaves. By which interface is for the routes
// to say.
func sendBack(oob []byte) {
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for _, m := range msgs { // their data is that of oob
		switch {
		case m.Header.Level == syscall.IPPROTO_IP && m.Header.Type == syscall.IP_PKTINFO && len(m.Data) >= 12:
			copy(m.Data[4:8], m.Data[8:12]) // in_pktinfo: interface, source of an answer as routes have it, destination
			clear(m.Data[:4])
		case m.Header.Level == syscall.IPPROTO_IPV6 && m.Header.Type == syscall.IPV6_PKTINFO && len(m.Data) >= 20:
			clear(m.Data[16:20]) // in6_pktinfo: address, interface
		}
	}
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
