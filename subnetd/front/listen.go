package front

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	portHTTP  = 80
	portHTTPS = 443
)

// serve listens at the addresses of now until ctx ends.
func (s *Server) serve(ctx context.Context) error {
	open := map[netip.AddrPort]net.Listener{}
	var served sync.WaitGroup
	defer func() {
		for _, ln := range open {
			_ = ln.Close()
		}
		_ = s.http.Close()
		s.Set(Settings{}) // ends what has changed its protocol
		s.ways.CloseIdleConnections()
		served.Wait()
	}()
	var again <-chan time.Time
	told := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-again:
		}
		again = nil
		err := s.listen(ctx, open, &served)
		if err != nil {
			again = time.After(retry)
		}
		if err != nil && !told {
			s.cfg.Log.Warn("the pages of this router and of devices are not served", "err", err)
		}
		told = err != nil
	}
}

// listen makes open what is wished now: the first address of each family, where the
// firewall brings all others.
func (s *Server) listen(ctx context.Context, open map[netip.AddrPort]net.Listener, served *sync.WaitGroup) error {
	want := s.now.Load().listen()
	for at, ln := range open {
		if !slices.Contains(want, at) {
			_ = ln.Close()
			delete(open, at)
		}
	}
	for _, at := range want {
		if open[at] != nil {
			continue
		}
		lc := net.ListenConfig{Control: early}
		ln, err := lc.Listen(ctx, "tcp", at.String())
		switch {
		case errors.Is(err, syscall.EAFNOSUPPORT): // a kernel without IPv6
			continue
		case errors.Is(err, syscall.EADDRINUSE):
			s.cfg.Taken(at.Port())
			return err
		case err != nil:
			return err
		}
		open[at] = ln
		served.Go(func() { _ = s.http.Serve(&door{Listener: ln, s: s}) })
	}
	return nil
}

func (f *inForce) listen() (out []netip.AddrPort) {
	if f.Port == 0 {
		return nil
	}
	for _, is6 := range [...]bool{false, true} {
		if i := slices.IndexFunc(f.Own, func(a netip.Addr) bool { return a.Is6() == is6 }); i >= 0 {
			out = append(out, netip.AddrPortFrom(f.Own[i], f.Port))
		}
	}
	return out
}

// early lets a socket have an address that this machine is yet to get.
func early(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
	return errors.Join(err, failed)
}

// door is a listener that those get through who may call whom they call.
type door struct {
	net.Listener
	s *Server
}

func (d *door) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if in := d.s.enter(c.(*net.TCPConn)); in != nil {
			return in, nil
		}
		_ = c.Close()
	}
}

// enter says who a connection is from and for; nil: for nobody.
func (s *Server) enter(tcp *net.TCPConn) net.Conn {
	from := tcp.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().WithZone("")
	at, err := s.meant(tcp)
	if err != nil {
		return nil
	}
	s.mu.Lock() // Set sees it, or it sees what was set
	defer s.mu.Unlock()
	site, ok := s.now.Load().lets(from, at)
	if !ok || !s.conns.Take(from, mostConns, connsEach) {
		return nil
	}
	c := &conn{Conn: tcp, from: from, at: at, site: site}
	c.end = sync.OnceFunc(func() { s.leave(c) })
	s.open[c] = struct{}{}
	if at.Port() == portHTTPS || site != nil && at.Port() == site.Port && site.Scheme == "https" {
		c.secure = true
		return tls.Server(c, s.tls)
	}
	return c
}

func (s *Server) leave(c *conn) {
	s.conns.Return(c.from)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

// conn is a connection of somebody who may call whom he calls, until it is closed.
type conn struct {
	net.Conn
	from   netip.Addr
	at     netip.AddrPort // what was meant
	site   *Site          // nil: this router itself
	secure bool           // TLS
	end    func()
}

func (c *conn) Close() error {
	c.end()
	return c.Conn.Close()
}

// originalDst is SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST.
const originalDst = 80

// meant is where a connection was to go before it was brought here, as conntrack knows.
func meant(c *net.TCPConn) (at netip.AddrPort, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return at, err
	}
	v4 := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().Is4()
	var failed error
	err = raw.Control(func(fd uintptr) {
		if v4 { // struct sockaddr_in has the size of what this reads
			var a *unix.IPv6Mreq
			if a, failed = unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, originalDst); failed == nil {
				b := a.Multiaddr
				at = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:]))
			}
			return
		}
		var a *unix.IPv6MTUInfo // begins with struct sockaddr_in6
		if a, failed = unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, originalDst); failed == nil {
			port := binary.NativeEndian.AppendUint16(nil, a.Addr.Port)
			at = netip.AddrPortFrom(netip.AddrFrom16(a.Addr.Addr), binary.BigEndian.Uint16(port))
		}
	})
	return at, errors.Join(err, failed)
}
