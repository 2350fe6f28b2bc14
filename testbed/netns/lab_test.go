package netns_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }

// TestNATKinds checks what each kind of NAT does to UDP: which outside port it shows to two destinations.
func TestNATKinds(t *testing.T) {
	lab := netns.New(t)
	echo := make([]netip.AddrPort, 2)
	for i, name := range []string{"echo1", "echo2"} {
		h := lab.Client(name, netns.Public)
		echo[i] = netip.AddrPortFrom(h.Addr4, 7)
		serveEcho(t, h)
	}
	for _, kind := range netns.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			h := lab.Client("c"+string(kind)[:3], kind)
			pc, err := h.ListenPacket("0.0.0.0:4242")
			if err != nil {
				t.Fatal(err)
			}
			defer pc.Close()
			first, err1 := ask(pc, echo[0])
			second, err2 := ask(pc, echo[1])
			if kind == netns.UDPBlocked {
				if err1 == nil || err2 == nil {
					t.Errorf("UDP came through: %v %v", first, second)
				}
				return
			}
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			if same := first == second; same != (kind != netns.Hard) {
				t.Errorf("seen from outside as %v and %v", first, second)
			}
			if inside := first.Addr() == h.Addr4; inside != (kind == netns.Public) {
				t.Errorf("address %v is seen as %v", h.Addr4, first)
			}
		})
	}
}

// TestLabLeavesNothing checks that a lab's namespaces are gone when its test is over.
func TestLabLeavesNothing(t *testing.T) {
	t.Run("lab", func(t *testing.T) {
		lab := netns.New(t)
		home := lab.Home(netns.Double)
		p := home.LAN.Start("cat", "/dev/zero")
		if err := home.LAN.Ping(context.Background(), netip.MustParseAddr("203.0.113.1")); err != nil {
			t.Error(err)
		}
		p.Kill()
	})
	entries, err := os.ReadDir("/run/netns")
	if err != nil {
		t.Fatal(err)
	}
	mine := "subnetd-" + strconv.Itoa(os.Getpid()) + "-"
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), mine) {
			t.Errorf("namespace %s is left", e.Name())
		}
	}
}

// serveEcho answers every datagram at port 7 with the address it came from.
func serveEcho(t *testing.T, h *netns.Host) {
	t.Helper()
	pc, err := h.ListenPacket("0.0.0.0:7")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		b := make([]byte, 64)
		for {
			_, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo([]byte(from.String()), from)
		}
	}()
}

// ask sends one datagram to an echo server and gives the address it was seen from.
func ask(pc net.PacketConn, to netip.AddrPort) (netip.AddrPort, error) {
	if err := pc.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return netip.AddrPort{}, err
	}
	if _, err := pc.WriteTo([]byte("?"), net.UDPAddrFromAddrPort(to)); err != nil {
		return netip.AddrPort{}, err
	}
	b := make([]byte, 64)
	n, _, err := pc.ReadFrom(b)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.ParseAddrPort(string(b[:n]))
}
