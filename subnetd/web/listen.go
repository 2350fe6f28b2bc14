package web

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// retry is how long after an address could not be had it is tried again.
const retry = 10 * time.Second

// Ways in which a browser reaches this router (status.Page).
const (
	overLocal = "local"
	overLAN   = "lan"
	overMesh  = "mesh"
)

// serve listens at the addresses of now until ctx ends. Each has a socket of its own,
// so that on all others, those of the WAN first, nothing of us is there.
func (s *Server) serve(ctx context.Context) error {
	open := map[netip.AddrPort]net.Listener{}
	var served sync.WaitGroup
	defer func() {
		for _, ln := range open {
			_ = ln.Close()
		}
		_ = s.http.Close()
		served.Wait()
	}()
	for _, ln := range s.cfg.Given {
		served.Go(func() { _ = s.http.Serve(&gate{Listener: ln, s: s}) })
	}
	var again <-chan time.Time
	told := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-again:
		}
		again = nil
		trouble := ""
		if err := s.listen(ctx, open, &served); err != nil {
			trouble = "The page is not served everywhere: " + err.Error() + "."
			again = time.After(retry)
		}
		if trouble != told {
			s.cfg.Trouble(trouble)
			told = trouble
		}
	}
}

// listen makes open what is wished now.
func (s *Server) listen(ctx context.Context, open map[netip.AddrPort]net.Listener, served *sync.WaitGroup) error {
	want := s.now.Load().listen()
	for at, ln := range open {
		if !slices.Contains(want, at) {
			_ = ln.Close()
			delete(open, at)
		}
	}
	var failed []string
	for _, at := range want {
		if open[at] != nil {
			continue
		}
		lc := net.ListenConfig{Control: early}
		ln, err := lc.Listen(ctx, "tcp", at.String())
		switch {
		case errors.Is(err, syscall.EAFNOSUPPORT): // a kernel without IPv6
		case errors.Is(err, syscall.EADDRINUSE) && s.given(at):
		case errors.Is(err, syscall.EADDRINUSE):
			failed = append(failed, "another program has "+at.String())
		case err != nil:
			failed = append(failed, err.Error())
		default:
			open[at] = ln
			served.Go(func() { _ = s.http.Serve(&gate{Listener: ln, s: s}) })
		}
	}
	if len(failed) > 0 {
		return errors.New(strings.Join(failed, "; "))
	}
	return nil
}

// given reports whether a socket that we were given is at that address, or at all.
func (s *Server) given(at netip.AddrPort) bool {
	return slices.ContainsFunc(s.cfg.Given, func(ln net.Listener) bool {
		has := ln.Addr().(*net.TCPAddr).AddrPort()
		has = netip.AddrPortFrom(has.Addr().Unmap(), has.Port())
		all := has.Addr().IsUnspecified() && (has.Addr().Is6() || at.Addr().Is4())
		return has == at || all && has.Port() == at.Port()
	})
}

// listen is the addresses of ours that the page is at.
func (set *Settings) listen() (out []netip.AddrPort) {
	if set.Port == 0 {
		return nil
	}
	add := func(a netip.Addr) {
		at := netip.AddrPortFrom(a, set.Port)
		if a.IsLinkLocalUnicast() || set.Only.IsValid() && set.Only != a || slices.Contains(out, at) {
			return
		}
		out = append(out, at)
	}
	add(netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	add(netip.IPv6Loopback())
	for _, p := range set.Home {
		add(p.Addr())
	}
	for _, a := range set.Mesh {
		add(a)
	}
	return out
}

// over is how somebody with an address reaches us; "": he shall not.
func (s *Server) over(from netip.Addr) string {
	set := s.now.Load()
	if from.IsLoopback() || slices.Contains(set.Mesh, from) {
		return overLocal
	}
	way := ""
	for _, p := range set.Home {
		if p.Addr() == from {
			return overLocal
		}
		if p.Contains(from) {
			way = overLAN
		}
	}
	if way == "" {
		if _, ok := s.cfg.Member(from); ok {
			return overMesh
		}
	}
	return way
}

// early lets a socket have an address that this machine is yet to get.
func early(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
	return errors.Join(err, failed)
}

// gate is a listener that only those get through who may be here at all.
type gate struct {
	net.Listener
	s *Server
}

func (g *gate) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := sourceOf(c)
		if g.s.over(from) != "" && g.s.conns.Take(from, mostConns, connsEach) {
			return &conn{Conn: c, end: sync.OnceFunc(func() { g.s.conns.Return(from) })}, nil
		}
		_ = c.Close()
	}
}

func sourceOf(c net.Conn) netip.Addr {
	return c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().WithZone("")
}

// conn counts until it is closed.
type conn struct {
	net.Conn
	end func()
}

func (c *conn) Close() error {
	c.end()
	return c.Conn.Close()
}
