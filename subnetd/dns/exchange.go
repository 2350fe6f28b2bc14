package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

const (
	resolverDatagram = 2048 // bytes; more than we say that we take
	mostStray        = 32   // datagrams that are no answer: somebody guesses
)

var (
	errRefused = errors.New("the resolver refuses")
	errStray   = errors.New("too many datagrams that are no answer")
)

// exchange asks one resolver once: by UDP, and by TCP what was cut. A resolver
// that does not know EDNS is asked without. The answer is checked and has no EDNS.
func (f *forwarder) exchange(ctx context.Context, to netip.AddrPort, q *query) ([]byte, error) {
	msg, err := f.udp(ctx, to, q, q.edns)
	if q.edns && (errors.Is(err, errRefused) || err == nil && (msg[3]&0xf == 1 || msg[3]&0xf == 4)) {
		msg, err = f.udp(ctx, to, q, false)
	}
	if err != nil || msg[2]&bitTruncated == 0 {
		return msg, err
	}
	if whole, err := f.tcp(ctx, to, q); err == nil {
		return whole, nil
	}
	return msg, nil // who asked by UDP may ask us by TCP
}

// request is the question under a new identity.
func (f *forwarder) request(q *query, edns bool) (id uint16, msg []byte, err error) {
	id = f.cfg.Random()
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{
		ID: id, RecursionDesired: true, CheckingDisabled: q.header.CheckingDisabled,
	})
	if err = b.StartQuestions(); err == nil {
		err = b.Question(q.question)
	}
	if err != nil {
		return 0, nil, err
	}
	msg, err = b.Finish()
	if edns {
		msg[11] = 1
		msg = appendOPT(msg, q.dnssec)
	}
	return id, msg, err
}

// udp asks from a socket of its own, so from a random port, that takes what comes
// from the resolver only.
func (f *forwarder) udp(ctx context.Context, to netip.AddrPort, q *query, edns bool) ([]byte, error) {
	id, req, err := f.request(q, edns)
	if err != nil {
		return nil, err
	}
	c, err := f.dial(ctx, "udp", to)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	if _, err := c.Write(req); err != nil {
		return nil, err
	}
	buf := make([]byte, resolverDatagram)
	for range mostStray {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if msg, err := checked(buf[:n], id, q.wire()); !errors.Is(err, errMessage) {
			return append([]byte(nil), msg...), err
		}
	}
	return nil, errStray
}

func (f *forwarder) tcp(ctx context.Context, to netip.AddrPort, q *query) ([]byte, error) {
	id, req, err := f.request(q, q.edns)
	if err != nil {
		return nil, err
	}
	c, err := f.dial(ctx, "tcp", to)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	if _, err := c.Write(framed(req)); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, msg); err != nil {
		return nil, err
	}
	return checked(msg, id, q.wire())
}

// framed is a message as TCP carries it: RFC 1035, 4.2.2.
func framed(msg []byte) []byte {
	return append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg))), msg...)
}

// checked is the answer to that question without EDNS. The error is errMessage if
// it is something else, and errRefused if the resolver speaks of nothing but that
// it will not.
func checked(msg []byte, id uint16, wire []byte) ([]byte, error) {
	if len(msg) < headerLen || binary.BigEndian.Uint16(msg) != id || msg[2]&(bitResponse|0x78) != bitResponse {
		return nil, errMessage
	}
	if len(msg) == headerLen && failed(msg) {
		return nil, errRefused // some leave the question out then
	}
	if !sameQuestion(msg, wire) {
		return nil, errMessage
	}
	msg, upper, err := stripped(msg, len(wire))
	if err != nil {
		return nil, errMessage
	}
	if upper != 0 { // BADVERS, BADCOOKIE: RFC 6891, 6.1.3
		return nil, errRefused
	}
	return msg, nil
}

// dial marks the socket, so that no rule of ours leads it into the mesh, but for
// resolvers that are in there.
func (f *forwarder) dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	f.mu.Lock()
	mark := f.cfg.Mark
	if f.set.Unmarked || contains(f.set.Through, to.Addr()) {
		mark = 0
	}
	f.mu.Unlock()
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		if mark == 0 {
			return nil
		}
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark) })
		return errors.Join(err, failed)
	}}
	return d.DialContext(ctx, network, to.String())
}
