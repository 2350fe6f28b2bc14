package names

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"subnetd/firmware/notice"

	"golang.org/x/net/ipv6"
	"golang.org/x/sync/errgroup"
)

const (
	mostAsked  = 128 // questions that wait at once
	mostConns  = 32  // of TCP
	idle       = 10 * time.Second
	perConn    = 100 // questions over one connection of TCP
	serverPort = "53"
)

// Server is the forwarder's hand: it answers at port 53 of one interface, both families.
type Server struct {
	Forwarder *Forwarder
	Notice    *notice.Log
	Control   func(network, address string, c syscall.RawConn) error // binds a socket to the interface
	slots     chan struct{}
}

// Run answers until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	lc := net.ListenConfig{Control: s.Control}
	pc, err := lc.ListenPacket(ctx, "udp", "[::]:"+serverPort)
	if err != nil {
		return fmt.Errorf("answer for names: %w", err)
	}
	defer pc.Close()
	ln, err := lc.Listen(ctx, "tcp", "[::]:"+serverPort)
	if err != nil {
		return fmt.Errorf("answer for names: %w", err)
	}
	defer ln.Close()
	s.slots = make(chan struct{}, mostAsked)
	group, ctx := errgroup.WithContext(ctx)
	context.AfterFunc(ctx, func() { _, _ = pc.Close(), ln.Close() })
	group.Go(func() error { return ended(ctx, s.udp(ctx, ipv6.NewPacketConn(pc))) })
	group.Go(func() error { return ended(ctx, s.tcp(ctx, ln)) })
	return group.Wait()
}

func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// udp answers from the address that was asked, of which the interface may have several.
func (s *Server) udp(ctx context.Context, pc *ipv6.PacketConn) error {
	if err := pc.SetControlMessage(ipv6.FlagDst, true); err != nil {
		return err
	}
	b := make([]byte, mostUDP)
	for {
		n, cm, from, err := pc.ReadFrom(b)
		if err != nil {
			if errors.Is(err, syscall.ECONNREFUSED) { // what ICMP says to an answer of ours
				continue
			}
			return err
		}
		if !s.enter() {
			continue
		}
		message := append([]byte(nil), b[:n]...)
		go func() {
			defer s.leave()
			s.one(ctx, pc, message, cm, from)
		}()
	}
}

const mostUDP = 4096

// enter takes one of the places for questions; false: there is none left.
func (s *Server) enter() bool {
	select {
	case s.slots <- struct{}{}:
		return true
	default:
		s.Notice.Warn("more questions for names wait than are allowed: some get no answer")
		return false
	}
}

func (s *Server) leave() { <-s.slots }

func (s *Server) one(ctx context.Context, pc *ipv6.PacketConn, message []byte, cm *ipv6.ControlMessage, from net.Addr) {
	a := s.Forwarder.Answer(ctx, message, false)
	if a == nil {
		return
	}
	if q, err := parse(message); err == nil && len(a) > q.size {
		a = truncated(a)
	}
	reply := &ipv6.ControlMessage{}
	if cm != nil {
		reply.Src = cm.Dst
	}
	if _, err := pc.WriteTo(a, reply, from); err != nil {
		s.Notice.Warn("a question for a name got no answer", "err", err)
	}
}

func (s *Server) tcp(ctx context.Context, ln net.Listener) error {
	conns := make(chan struct{}, mostConns)
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		select {
		case conns <- struct{}{}:
			go func() {
				defer func() { <-conns }()
				s.talk(ctx, c)
			}()
		default:
			s.Notice.Warn("more connections ask for names than are allowed")
			_ = c.Close()
		}
	}
}

// talk answers over one connection, one question after the other (RFC 7766, 6.2.1.1 lets
// us).
func (s *Server) talk(ctx context.Context, c net.Conn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	r := bufio.NewReader(c)
	for range perConn {
		_ = c.SetDeadline(time.Now().Add(idle)) // a connection that is closed fails below
		message, err := readTCP(r)
		if err != nil || !s.enter() {
			return
		}
		a := s.Forwarder.Answer(ctx, message, true)
		s.leave()
		if a == nil || writeTCP(c, a) != nil {
			return
		}
	}
}
