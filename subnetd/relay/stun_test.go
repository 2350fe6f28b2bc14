package relay

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tailscale.com/net/stun"
)

// stunAt serves on an address until the test ends.
func stunAt(t *testing.T, network, addr string) *net.UDPConn {
	t.Helper()
	noLeak(t)
	pc, err := net.ListenPacket(network, addr)
	if err != nil {
		t.Skipf("this machine has no %s: %v", network, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- ServeSTUN(ctx, pc, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return pc.(*net.UDPConn)
}

// ask sends a request and gives the answer.
func ask(t *testing.T, network, from string, to netip.AddrPort, b []byte) (answer []byte, who netip.AddrPort, local netip.AddrPort) {
	t.Helper()
	pc, err := net.ListenPacket(network, from)
	if err != nil {
		t.Skipf("this machine has no %s: %v", network, err)
	}
	defer pc.Close()
	c := pc.(*net.UDPConn)
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.WriteToUDPAddrPort(b, to); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	n, who, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n], unmap(who), unmap(c.LocalAddr().(*net.UDPAddr).AddrPort())
}

// Everybody hears his own address, also where one socket serves both families,
// and from the address that he has asked.
func TestSTUN(t *testing.T) {
	for _, tt := range []struct{ name, network, listen, clients, from, asked string }{
		{"v4", "udp4", "0.0.0.0:0", "udp4", "127.0.0.1:0", "127.0.0.1"},
		{"v4, another of our addresses", "udp4", "0.0.0.0:0", "udp4", "127.0.0.1:0", "127.0.0.7"},
		{"v4 only there", "udp4", "127.0.0.8:0", "udp4", "127.0.0.1:0", "127.0.0.8"},
		{"v6", "udp6", "[::]:0", "udp6", "[::1]:0", "::1"},
		{"both, asked in v6", "udp", ":0", "udp6", "[::1]:0", "::1"},
		{"both, asked in v4", "udp", ":0", "udp4", "127.0.0.1:0", "127.0.0.1"},
		{"both, another of our addresses", "udp", ":0", "udp4", "127.0.0.1:0", "127.0.0.7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := stunAt(t, tt.network, tt.listen)
			asked := netip.AddrPortFrom(netip.MustParseAddr(tt.asked), s.LocalAddr().(*net.UDPAddr).AddrPort().Port())
			id := stun.NewTxID()
			request := stun.Request(id)
			answer, who, local := ask(t, tt.clients, tt.from, asked, request)
			gotID, addr, err := stun.ParseResponse(answer)
			if err != nil || gotID != id || addr != local {
				t.Errorf("told %s, %v, want %s", addr, err, local)
			}
			if who != asked {
				t.Errorf("%s answers though %s was asked", who, asked)
			}
			if len(answer) > len(request)+4 {
				t.Errorf("%d bytes answer %d", len(answer), len(request))
			}
		})
	}
}

// What is no request of a client of the mesh is not answered: the next answer is
// that to the next request.
func TestSTUNGarbage(t *testing.T) {
	s := stunAt(t, "udp4", "127.0.0.1:0")
	to := s.LocalAddr().(*net.UDPAddr).AddrPort()
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	good := stun.Request(stun.NewTxID())
	garbage := [][]byte{
		{}, {0}, good[:20], good[:len(good)-1], append(append([]byte(nil), good...), 0),
		make([]byte, 20), make([]byte, 1400),
		append([]byte("\x00\x01\x00\x00\x21\x12\xa4\x42"), "123456789012"...), // a bare request, of other software
		stun.Response(stun.NewTxID(), to),
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		b := append([]byte(nil), good...)
		b[rnd.IntN(len(b))] ^= byte(1 + rnd.IntN(255))
		garbage = append(garbage, b)
	}
	id := stun.NewTxID()
	answer := make([]byte, 2048)
	for i, b := range garbage {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if i%20 == 0 || i == len(garbage)-1 {
			c.Write(stun.Request(id))
			n, err := c.Read(answer)
			if err != nil {
				t.Fatal(err)
			}
			if got, _, err := stun.ParseResponse(answer[:n]); err != nil || got != id {
				t.Fatalf("%x was answered", b)
			}
		}
	}
}

// A socket that breaks ends it with an error, and one that fails for a while does
// not; any kind of socket will do.
func TestSTUNErrors(t *testing.T) {
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc.Close()
	if err := ServeSTUN(t.Context(), pc, slog.New(slog.DiscardHandler)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
	synctest.Test(t, func(t *testing.T) {
		f := &failing{reads: make(chan []byte), wrote: make(chan []byte, 1)}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- ServeSTUN(ctx, f, slog.New(slog.DiscardHandler)) }()
		f.reads <- nil
		f.reads <- stun.Request(stun.NewTxID())
		if _, addr, err := stun.ParseResponse(<-f.wrote); err != nil || addr.String() != "192.0.2.1:7" {
			t.Errorf("told %s, %v", addr, err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// failing is a socket that fails when it reads nil.
type failing struct {
	net.PacketConn
	reads, wrote chan []byte
	once         sync.Once
}

func (f *failing) ReadFrom(b []byte) (int, net.Addr, error) {
	r, ok := <-f.reads
	if !ok {
		return 0, nil, net.ErrClosed
	}
	if r == nil {
		return 0, nil, io.ErrNoProgress
	}
	return copy(b, r), &net.UDPAddr{IP: net.ParseIP("::ffff:192.0.2.1"), Port: 7}, nil
}

func (f *failing) WriteTo(b []byte, _ net.Addr) (int, error) {
	f.wrote <- append([]byte(nil), b...)
	return len(b), nil
}

func (f *failing) Close() error {
	f.once.Do(func() { close(f.reads) })
	return nil
}
