package main

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"subnetd/subnetd/host"

	"golang.org/x/sys/unix"
)

// lines are the connections to the coordinator. One from an address that this
// router has no more is dead, but TCP would take minutes to say so, and the
// coordinator would not hear of the new address for as long.
type lines struct {
	mu   sync.Mutex // guards open
	open map[*line]struct{}
}

// line is one of them; Close forgets it.
type line struct {
	net.Conn
	all *lines
}

// dialMarked dials with our mark, so that no route of the mesh catches the
// connection that carries the mesh.
func dialMarked(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: 10 * time.Second, Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			// Without the privilege there are no routes of ours either.
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, host.Mark)
		})
	}}
	return d.DialContext(ctx, network, addr)
}

func (l *lines) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := dialMarked(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c := &line{conn, l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		l.open = map[*line]struct{}{}
	}
	l.open[c] = struct{}{}
	return c, nil
}

func (c *line) Close() error {
	c.all.mu.Lock()
	delete(c.all.open, c)
	c.all.mu.Unlock()
	return c.Conn.Close()
}

// leave ends the connections whose own address is none of the router's now. Who
// uses them dials again.
func (l *lines) leave(f host.Facts) {
	ours := map[netip.Addr]bool{}
	for _, i := range f.Interfaces {
		for _, p := range i.Addrs {
			ours[p.Addr().Unmap().WithZone("")] = true
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.open {
		local, ok := c.LocalAddr().(*net.TCPAddr)
		if !ok {
			continue
		}
		if a := local.AddrPort().Addr().Unmap().WithZone(""); !a.IsLoopback() && !ours[a] {
			delete(l.open, c)
			_ = c.Conn.Close()
		}
	}
}
