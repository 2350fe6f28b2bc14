package netns_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"subnetd/testbed/netns"
)

// stream is numbered datagrams of 1,200 bytes from one host to another at a fixed rate, and what became of them.
type stream struct {
	what   string
	out    net.PacketConn
	in     net.PacketConn
	ended  chan struct{} // closed: send no more
	sender sync.WaitGroup
	reader sync.WaitGroup

	mu    sync.Mutex
	sent  []time.Time // by number
	came  []time.Time // by number; zero: it has not come
	first int         // that counts
}

const streamEvery = 20 * time.Millisecond // 50 datagrams a second, 0.5 Mbit/s: an emulated router carries several

// startStream sends from one host to a port of another until end is called. addr is where the other is reached. What was
// sent before the first that came does not count.
func startStream(t *testing.T, from, to *netns.Host, addr netip.Addr, port uint16) *stream {
	t.Helper()
	s := &stream{what: from.Name + " to " + to.Name, ended: make(chan struct{})}
	var err error
	if s.in, err = to.ListenPacket(fmt.Sprintf("[::]:%d", port)); err != nil {
		t.Fatal(err)
	}
	if s.out, err = from.ListenPacket("[::]:0"); err != nil {
		t.Fatal(err)
	}
	if err := deepen(s.in); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	s.sender.Go(func() { s.send(netip.AddrPortFrom(addr, port)) })
	s.reader.Go(s.receive)
	netns.Eventually(t, 20*time.Second, s.what+" flows", s.begin)
	return s
}

// begin says nil once something has come, and forgets what was sent before.
func (s *stream) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, at := range s.came {
		if !at.IsZero() {
			s.first = i
			return nil
		}
	}
	return fmt.Errorf("none of %d datagrams came", len(s.sent))
}

// deepen gives a socket a buffer for some minutes of a stream: this process may have to wait for a core.
func deepen(pc net.PacketConn) error {
	c, err := pc.(*net.UDPConn).SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = c.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20) })
	return errors.Join(err, set)
}

func (s *stream) close() {
	select {
	case <-s.ended:
	default:
		close(s.ended)
	}
	s.sender.Wait()
	s.in.Close()
	s.out.Close()
	s.reader.Wait()
}

func (s *stream) send(to netip.AddrPort) {
	b, dst := make([]byte, 1200), net.UDPAddrFromAddrPort(to)
	tick := time.NewTicker(streamEvery)
	defer tick.Stop()
	for n := uint32(0); ; n++ {
		select {
		case <-s.ended:
			return
		case <-tick.C:
		}
		binary.BigEndian.PutUint32(b, n)
		s.mu.Lock()
		s.sent, s.came = append(s.sent, time.Now()), append(s.came, time.Time{})
		s.mu.Unlock()
		_, _ = s.out.WriteTo(b, dst) // what is not sent is missed at the other end
	}
}

func (s *stream) receive() {
	b := make([]byte, 2000)
	for {
		n, _, err := s.in.ReadFrom(b)
		if err != nil {
			return
		}
		if n != 1200 {
			continue
		}
		s.mu.Lock()
		if i := binary.BigEndian.Uint32(b); int(i) < len(s.came) && s.came[i].IsZero() {
			s.came[i] = time.Now()
		}
		s.mu.Unlock()
	}
}

// hole is a run of datagrams that did not come.
type hole struct {
	at    time.Duration // after the stream's begin
	long  time.Duration // from the last that came to the next that did
	count int
}

// end stops sending, waits a moment for what is under way, and tells what is missing.
func (s *stream) end() (sent int, holes []hole) {
	close(s.ended)
	s.sender.Wait()
	deadline := time.Now().Add(2 * time.Second)
	for time.Now().Before(deadline) && !s.whole() {
		time.Sleep(20 * time.Millisecond) // there is no event for what does not come
	}
	s.close()
	return len(s.sent) - s.first, s.holes()
}

func (s *stream) whole() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.came) > 0 && !s.came[len(s.came)-1].IsZero()
}

func (s *stream) holes() (all []hole) {
	for i := s.first; i < len(s.sent); i++ {
		if !s.came[i].IsZero() {
			continue
		}
		first := i
		for i < len(s.sent) && s.came[i].IsZero() {
			i++
		}
		long := s.sent[min(i, len(s.sent)-1)].Sub(s.sent[first])
		all = append(all, hole{s.sent[first].Sub(s.sent[s.first]), long + streamEvery, i - first})
	}
	return all
}

// wantWhole ends a stream and wants every datagram to have come.
func wantWhole(t *testing.T, s *stream) {
	t.Helper()
	sent, holes := s.end()
	lost := 0
	for _, h := range holes {
		lost += h.count
	}
	t.Logf("%s: %d datagrams sent, %d lost %s", s.what, sent, lost, tell(holes))
	if lost > 0 {
		t.Errorf("%s: %d of %d datagrams were lost", s.what, lost, sent)
	}
}

// tell lists holes, at most ten.
func tell(holes []hole) string {
	var b strings.Builder
	for i, h := range holes {
		if i == 10 {
			fmt.Fprintf(&b, "(and %d more holes)", len(holes)-i)
			break
		}
		fmt.Fprintf(&b, "(%d for %v at %v) ", h.count, h.long.Round(time.Millisecond), h.at.Round(time.Millisecond))
	}
	return b.String()
}

// longest is the longest time for which nothing came.
func longest(holes []hole) (d time.Duration) {
	for _, h := range holes {
		d = max(d, h.long)
	}
	return d
}

// pipeUDP runs iperf3 over UDP at half a Mbit/s from a host to another's address and gives how much was lost, as iperf3
// counts it.
func pipeUDP(ctx context.Context, from *netns.Host, to netip.Addr, span time.Duration) (sent, lost float64, err error) {
	out, err := from.Output(ctx, "iperf3", "-J", "-u", "-b", "500k", "-l", "1200", "-t", fmt.Sprint(int(span.Seconds())), "-c", to.String())
	if err != nil {
		return 0, 0, err
	}
	return iperfLoss(out)
}
