package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"

	"golang.org/x/sys/unix"
)

// Whatever changes of the policy, packets of a flow that old and new one allow get
// through, there and back.
func TestSwapLosesNothing(t *testing.T) {
	const changes = 26
	neighbourhood(t)
	members := func(i int) host.Firewall { return joined(2, 3, 7, byte(10+i%40), byte(100+i%7)) }
	for _, tt := range []struct {
		name   string
		change func(i int) host.Firewall
	}{
		{"members", members},
		{"rights", func(i int) host.Firewall {
			cfg := members(0)
			for n := range i%30 + 1 {
				cfg.Rules = append(cfg.Rules, allow("100.64.0.9 100.80.0.0/24 fd7a::9", fmt.Sprintf("192.168.77.%d fd77::%x", 50+i%2, 50+i%2), uint16(6000+2*n), uint16(6000+2*n), protoUDP))
			}
			return cfg
		}},
		{"source ranges", func(i int) host.Firewall { // the peer alone, or among all
			cfg := members(0)
			if i%2 == 0 {
				cfg.Rules = []mesh.Rule{allow("0.0.0.0/0 ::/0", "192.168.77.0/24 fd77::/64", 0, 65535)}
			}
			return cfg
		}},
		{"exposed", func(i int) host.Firewall {
			cfg := members(0)
			if i%2 == 0 {
				cfg.Exposed = prefixes("192.168.77.50/32", "fd77::50/128")
			}
			return cfg
		}},
		{"rules", func(i int) host.Firewall {
			cfg := members(i)
			cfg.SNAT = i%2 == 0
			if i%3 == 0 {
				cfg.Devices = nil
			}
			return cfg
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			put(t, tt.change(0))
			four := startEcho(t, "100.64.0.9", "192.168.77.50:5000")
			six := startEcho(t, "fd7a::9", "[fd77::50]:5000")
			begin := time.Now()
			for i := range changes / 2 {
				put(t, tt.change(i+1)) // as after a start: the kernel's table is read
			}
			f := New(silent)
			for i := range changes / 2 {
				if err := f.Set(t.Context(), tt.change(changes/2+i+1)); err != nil {
					t.Fatal(err)
				}
			}
			took := time.Since(begin)
			for name, e := range map[string]*echo{"IPv4": four, "IPv6": six} {
				sent, back := e.end(t)
				t.Logf("%s: %d of %d datagrams lost in %d changes in %v", name, sent-back, sent, changes, took.Round(time.Millisecond))
				if sent != back || sent < 100 {
					t.Errorf("%s: %d sent, %d came back", name, sent, back)
				}
			}
		})
	}
}

// echo is a stream of datagrams from the peer to a port of the tv, which sends each
// back: what is lost is lost on one of the two ways.
type echo struct {
	peer, tv *net.UDPConn
	sent     atomic.Int64
	back     atomic.Int64
	stop     chan struct{}
	stopped  chan struct{}
}

// echoEvery is a fast stream; what a slow machine cannot send in time is not made up for,
// since a burst may be more than a queue holds.
const echoEvery = 400 * time.Microsecond

func startEcho(t *testing.T, src, dst string) *echo {
	t.Helper()
	to := netip.MustParseAddrPort(dst)
	e := &echo{stop: make(chan struct{}), stopped: make(chan struct{})}
	e.tv = in(t, "tv", func() (*net.UDPConn, error) { return net.ListenUDP("udp", net.UDPAddrFromAddrPort(to)) })
	e.peer = in(t, "peer", func() (*net.UDPConn, error) {
		return net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(src), 0)), net.UDPAddrFromAddrPort(to))
	})
	for _, c := range []*net.UDPConn{e.tv, e.peer} {
		t.Cleanup(func() { _ = c.Close() })
		deepen(t, c)
	}
	go e.answer()
	e.warm(t)
	go e.count()
	go e.send()
	return e
}

// warm returns once the two find each other: not all that was sent before that comes.
func (e *echo) warm(t *testing.T) {
	t.Helper()
	const tries = 500
	for range tries {
		if err := errors.Join(e.peer.SetReadDeadline(time.Now().Add(patience/tries)), first(e.peer.Write(nil))); err != nil {
			t.Fatal(err)
		}
		if _, err := e.peer.Read(make([]byte, 64)); err == nil {
			_ = e.peer.SetReadDeadline(time.Time{})
			return
		}
	}
	t.Fatal("nothing comes back")
}

func first(_ int, err error) error { return err }

// deepen lets a socket wait for its reader.
func deepen(t *testing.T, c *net.UDPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20) })
	if err := errors.Join(err, set); err != nil {
		t.Fatal(err)
	}
}

func (e *echo) answer() {
	for b := make([]byte, 64); ; {
		n, from, err := e.tv.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		_, _ = e.tv.WriteToUDPAddrPort(b[:n], from)
	}
}

func (e *echo) count() {
	for b := make([]byte, 64); ; {
		n, err := e.peer.Read(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil && n > 0 { // a warm-up is empty
			e.back.Add(1)
		}
	}
}

func (e *echo) send() {
	defer close(e.stopped)
	b := make([]byte, 8)
	tick := time.NewTicker(echoEvery)
	defer tick.Stop()
	for {
		select {
		case <-e.stop:
			return
		case <-tick.C:
		}
		binary.BigEndian.PutUint64(b, uint64(e.sent.Load()))
		if _, err := e.peer.Write(b); err == nil {
			e.sent.Add(1)
		}
	}
}

// end stops sending and waits for what is under way.
func (e *echo) end(t *testing.T) (sent, back int64) {
	t.Helper()
	close(e.stop)
	<-e.stopped
	for deadline := time.Now().Add(patience); time.Now().Before(deadline) && e.back.Load() < e.sent.Load(); {
		time.Sleep(10 * time.Millisecond) // there is no event for what does not come
	}
	_ = e.peer.Close()
	_ = e.tv.Close()
	return e.sent.Load(), e.back.Load()
}
