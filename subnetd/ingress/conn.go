package ingress

import (
	"container/list"
	"io"
	"net"
	"syscall"
	"time"
)

const (
	// A peer that acknowledges nothing for so long is gone (RFC 5482).
	userTimeout = 30 * time.Second
	// Bytes that the kernel takes though it cannot send them yet. More would only
	// grow old there; a handler can still drop what it has not written.
	notSent = 128 << 10
)

// conn is a connection that counts.
type conn struct {
	net.Conn
	gate *gate

	// What peek has read. The owner changes with the connection.
	first  byte
	peeked bool

	// The gate's.
	src   *source
	since time.Time
	room  int           // pending or established
	place *list.Element // in its room; nil: it has left
	timer *time.Timer   // ends a pending life
}

// Established says that the peer has proved who it is. A handler that has taken
// the connection over calls it, below a *tls.Conn, so that the connection may
// stay.
func (c *conn) Established() {
	tune(c.Conn)
	if victim := c.gate.establish(c); victim != nil {
		victim.hangUp()
	}
}

// tune prepares a connection for a long life. A kernel that cannot do it serves
// nevertheless. The numbers are those of linux/tcp.h; package syscall lacks them.
func tune(c net.Conn) {
	const tcpUserTimeout, tcpNotSentLowat = 18, 25
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(userTimeout.Milliseconds()))
		syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotSentLowat, notSent)
	})
}

// Close may be called more than once, by anybody.
func (c *conn) Close() error {
	c.gate.leave(c)
	return c.Conn.Close()
}

// hangUp closes without a word to the peer, who is not owed one, and leaves
// nothing behind in the kernel.
func (c *conn) hangUp() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.Conn.Close()
}

// peek reads one byte, which Read will give again.
func (c *conn) peek() (byte, error) {
	var b [1]byte
	if _, err := io.ReadFull(c.Conn, b[:]); err != nil {
		return 0, err
	}
	c.first, c.peeked = b[0], true
	return b[0], nil
}

func (c *conn) Read(b []byte) (int, error) {
	if c.peeked && len(b) > 0 {
		c.peeked = false
		b[0] = c.first
		return 1, nil
	}
	return c.Conn.Read(b)
}
