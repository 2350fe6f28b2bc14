package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Each address of ours has sockets of its own, so that on all others nothing of us
// is there, and an answer comes from where it was asked. They are bound before an
// address is there, and stay while it is gone.

const (
	mostConns    = 64               // by TCP
	mostPerHost  = 8                // of them from one address; this machine asks for the whole home
	mostPipeline = 16               // questions of one connection that wait for resolvers
	idle         = 10 * time.Second // that a connection may be without a question: RFC 7766, 6.2.3
	writing      = 5 * time.Second  // that one answer may take
	retry        = 10 * time.Second // after an address could not be had
)

// sources is who may ask.
type sources struct {
	single map[netip.Addr]Asker
	wide   []netip.Prefix
	asker  []Asker // of wide
}

func sourcesOf(set Settings) sources {
	s := sources{single: map[netip.Addr]Asker{}}
	add := func(p netip.Prefix, who Asker) {
		if _, known := s.single[p.Addr()]; p.IsSingleIP() && !known {
			s.single[p.Addr()] = who
		} else if !p.IsSingleIP() {
			s.wide, s.asker = append(s.wide, p), append(s.asker, who)
		}
	}
	for _, p := range set.Home {
		add(p, Home)
	}
	for _, p := range set.Mesh {
		add(p, Member)
	}
	return s
}

// who says where a question comes from.
func (s *sources) who(a netip.Addr) Asker {
	if a.IsLoopback() {
		return Home
	}
	if who, ok := s.single[a]; ok {
		return who
	}
	if i := slices.IndexFunc(s.wide, func(p netip.Prefix) bool { return p.Contains(a) }); i >= 0 {
		return s.asker[i]
	}
	return Stranger
}

// Run answers until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	open := map[netip.AddrPort]func(){}
	var served sync.WaitGroup
	defer func() {
		for _, shut := range open {
			shut()
		}
		s.forwards.close()
		served.Wait()
	}()
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
			trouble = "Names are not answered everywhere: " + err.Error() + "."
			again = time.After(retry)
		}
		if trouble != told {
			s.cfg.Trouble(trouble)
			told = trouble
		}
	}
}

// listen makes open what is wished now.
func (s *Server) listen(ctx context.Context, open map[netip.AddrPort]func(), served *sync.WaitGroup) error {
	want := s.now.Load().Listen
	for at, shut := range open {
		if !slices.Contains(want, at) {
			shut()
			delete(open, at)
		}
	}
	var failed []string
	for _, at := range want {
		if open[at] != nil {
			continue
		}
		shut, err := s.listenAt(ctx, at, served)
		if errors.Is(err, syscall.EAFNOSUPPORT) {
			continue // a kernel without IPv6
		}
		if err != nil {
			failed = append(failed, err.Error())
			continue
		}
		open[at] = shut
	}
	if len(failed) > 0 {
		return errors.New(strings.Join(failed, "; "))
	}
	return nil
}

func (s *Server) listenAt(ctx context.Context, at netip.AddrPort, served *sync.WaitGroup) (shut func(), err error) {
	family := "4"
	if at.Addr().Is6() {
		family = "6"
	}
	lc := net.ListenConfig{Control: early}
	pc, err := lc.ListenPacket(ctx, "udp"+family, at.String())
	if err != nil {
		return nil, inWords(at, err)
	}
	ln, err := lc.Listen(ctx, "tcp"+family, at.String())
	if err != nil {
		return nil, errors.Join(inWords(at, err), pc.Close())
	}
	life, end := context.WithCancel(ctx)
	served.Go(func() { s.serveUDP(life, pc.(*net.UDPConn), served) })
	served.Go(func() { s.serveTCP(life, ln, served) })
	return func() {
		end()
		_, _ = pc.Close(), ln.Close()
	}, nil
}

func inWords(at netip.AddrPort, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("another program has %s", at)
	}
	return err
}

// early lets a socket have an address that this machine is yet to get.
func early(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
	return errors.Join(err, failed)
}

// serveUDP answers datagrams until the socket is closed.
func (s *Server) serveUDP(ctx context.Context, c *net.UDPConn, served *sync.WaitGroup) {
	buf, out := make([]byte, maxDatagram), make([]byte, 0, maxDatagram)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no memory is left, for one
			pause(ctx)
			continue
		}
		t, ok := s.begin(buf[:n], out, from.Addr(), s.now.Load().sources.who(from.Addr().WithZone("")), maxDatagram)
		switch {
		case !ok:
		case t.done != nil:
			_, _ = c.WriteToUDPAddrPort(t.done, from)
		case s.limit.begin(t.from):
			served.Go(func() {
				defer s.limit.end(t.from)
				_, _ = c.WriteToUDPAddrPort(s.finish(ctx, &t), from)
			})
		}
	}
}

// takes counts a connection by TCP, unless there are too many. This machine itself
// may have them all.
func (s *Server) takes(from netip.Addr) bool {
	each := mostPerHost
	if from.IsLoopback() {
		each = mostConns
	}
	return s.conns.Take(from, mostConns, each)
}

// serveTCP takes connections until the listener is closed.
func (s *Server) serveTCP(ctx context.Context, ln net.Listener, served *sync.WaitGroup) {
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no descriptors are left, for one
			pause(ctx)
			continue
		}
		from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
		who := s.now.Load().sources.who(from.WithZone(""))
		if who == Stranger || !s.takes(from) {
			_ = c.Close()
			continue
		}
		served.Go(func() {
			defer s.conns.Return(from)
			s.serveConn(ctx, c, from, who)
		})
	}
}

func pause(ctx context.Context) {
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
	}
}

// serveConn answers the questions of one connection, each as soon as it can:
// RFC 7766, 6.2.1.1.
func (s *Server) serveConn(ctx context.Context, c net.Conn, from netip.Addr, who Asker) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	var (
		asked sync.WaitGroup
		turns = make(chan struct{}, mostPipeline)
		one   sync.Mutex // an answer at a time
	)
	defer asked.Wait()
	send := func(msg []byte) {
		if len(msg) == 0 {
			return
		}
		one.Lock()
		defer one.Unlock()
		if c.SetWriteDeadline(time.Now().Add(writing)) != nil || ctx.Err() != nil {
			return
		}
		if _, err := c.Write(framed(msg)); err != nil {
			_ = c.Close()
		}
	}
	buf := make([]byte, mostQuery)
	for ctx.Err() == nil {
		msg, err := readFrame(c, buf)
		if err != nil {
			return
		}
		t, ok := s.begin(msg, nil, from, who, noLimit)
		switch {
		case !ok:
			return
		case t.done != nil:
			send(t.done)
			continue
		}
		select {
		case turns <- struct{}{}:
		case <-ctx.Done():
			return
		}
		asked.Go(func() {
			defer func() { <-turns }()
			send(s.wait(ctx, &t))
		})
	}
}

// readFrame reads one message of a connection that may be idle before it.
func readFrame(c net.Conn, buf []byte) ([]byte, error) {
	if err := c.SetReadDeadline(time.Now().Add(idle)); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(c, buf[:2]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(buf))
	if n > len(buf) {
		return nil, errMessage
	}
	_, err := io.ReadFull(c, buf[:n])
	return buf[:n], err
}
