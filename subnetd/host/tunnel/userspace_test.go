package tunnel

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"subnetd/subnetd/host"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/tuntest"
	"tailscale.com/types/key"
)

// wire joins two nodes in memory.
type wire struct {
	self  key.NodePublic
	peer  *wire
	in    chan []byte
	mu    sync.Mutex
	cut   bool
	ended chan struct{}
}

var errCut = errors.New("cut")

func wires(a, b key.NodePublic) (*wire, *wire) {
	x := &wire{self: a, in: make(chan []byte, 64)}
	y := &wire{self: b, in: make(chan []byte, 64), peer: x}
	x.peer = y
	return x, y
}

func (w *wire) Open() ([]func([][]byte, []int, []key.NodePublic) (int, error), uint16, error) {
	w.ended = make(chan struct{})
	ended := w.ended
	return []func([][]byte, []int, []key.NodePublic) (int, error){
		func(packets [][]byte, sizes []int, from []key.NodePublic) (int, error) {
			select {
			case b := <-w.in:
				sizes[0], from[0] = copy(packets[0], b), w.peer.self
				return 1, nil
			case <-ended:
				return 0, net.ErrClosed
			}
		},
	}, 1, nil
}

func (w *wire) CloseReceivers() error {
	if w.ended != nil {
		close(w.ended)
		w.ended = nil
	}
	return nil
}

func (w *wire) setCut(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
}

func (w *wire) Send(_ key.NodePublic, packets [][]byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut {
		return errCut
	}
	for _, p := range packets {
		w.peer.in <- bytes.Clone(p)
	}
	return nil
}

func (w *wire) BatchSize() int { return 8 }

// side is one engine on a TUN of channels.
type side struct {
	*Userspace
	tun  *tuntest.ChannelTUN
	want host.Tunnel
}

func newSide(t *testing.T, w *wire, k key.NodePrivate, peer key.NodePublic, peerIP string) *side {
	t.Helper()
	s := &side{Userspace: NewUserspace(slog.New(slog.DiscardHandler), w), tun: tuntest.NewChannelTUN()}
	s.open = func(string, int) (tun.Device, error) { return s.tun.TUN(), nil }
	s.want = host.Tunnel{Name: "mesh0", Key: k, Peers: []host.Peer{{Key: peer, AllowedIPs: []netip.Prefix{netip.MustParsePrefix(peerIP + "/32")}, Session: "1"}}}
	if err := s.Set(t.Context(), s.want); err != nil {
		t.Fatal(err)
	}
	return s
}

func pair(t *testing.T) (a, b *side, wa *wire) {
	ka, kb := key.NewNode(), key.NewNode()
	wa, wb := wires(ka.Public(), kb.Public())
	a = newSide(t, wa, ka, kb.Public(), "100.64.0.2")
	b = newSide(t, wb, kb, ka.Public(), "100.64.0.1")
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b, wa
}

var addrA, addrB = netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("100.64.0.2")

func TestPacketsPass(t *testing.T) {
	a, b, _ := pair(t)
	for range 3 {
		ping := tuntest.Ping(addrB, addrA)
		a.tun.Outbound <- ping
		if got := <-b.tun.Inbound; !bytes.Equal(got, ping) {
			t.Fatalf("got %x, want %x", got, ping)
		}
	}
	st := a.Stats()[b.want.Key.Public()]
	if st.Tx == 0 || st.Rx == 0 || st.Handshake.IsZero() {
		t.Errorf("stats %+v: a tunnel that carried packets has counters", st)
	}
}

// beforeRepair is less than the 15 s after which WireGuard by itself begins anew with
// a peer that does not answer, and much more than a busy machine takes.
const beforeRepair = 12 * time.Second

// A restarted peer has no session keys of before: the first packet must not be
// sent under them.
func TestSessionForgotten(t *testing.T) {
	a, b, _ := pair(t)
	a.tun.Outbound <- tuntest.Ping(addrB, addrA)
	<-b.tun.Inbound
	if err := b.Set(t.Context(), host.Tunnel{}); err != nil {
		t.Fatal(err)
	}
	b.tun = tuntest.NewChannelTUN()
	if err := b.Set(t.Context(), b.want); err != nil {
		t.Fatal(err)
	}
	next := a.want
	next.Peers = []host.Peer{{Key: a.want.Peers[0].Key, AllowedIPs: a.want.Peers[0].AllowedIPs, Session: "2"}}
	if err := a.Set(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	a.tun.Outbound <- tuntest.Ping(addrB, addrA)
	select {
	case <-b.tun.Inbound:
	case <-time.After(beforeRepair):
		t.Fatal("the packet was sent under keys that the restarted peer does not have")
	}
}

// A peer that does not know of our restart sends under keys we never had: it
// learns of us at its first packet, not by WireGuard's timers.
func TestRestartIsTold(t *testing.T) {
	a, b, _ := pair(t)
	a.tun.Outbound <- tuntest.Ping(addrB, addrA)
	<-b.tun.Inbound
	if err := b.Set(t.Context(), host.Tunnel{}); err != nil {
		t.Fatal(err)
	}
	b.tun = tuntest.NewChannelTUN()
	if err := b.Set(t.Context(), b.want); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(beforeRepair)
	for every := time.NewTicker(50 * time.Millisecond); ; {
		select {
		case a.tun.Outbound <- tuntest.Ping(addrB, addrA):
		case <-deadline:
			t.Fatal("the peer goes on sending under keys that nobody has")
		}
		select {
		case <-b.tun.Inbound:
			every.Stop()
			return
		case <-every.C:
		case <-deadline:
			t.Fatal("the peer goes on sending under keys that nobody has")
		}
	}
}

// TestKick: a handshake that had no way is tried again as soon as there is one,
// not when WireGuard's timer says so.
func TestKick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, wa := pair(t)
		wa.setCut(true)
		a.tun.Outbound <- tuntest.Ping(addrB, addrA)
		synctest.Wait()
		wa.setCut(false)
		start := time.Now()
		a.Kick(b.want.Key.Public())
		<-b.tun.Inbound
		if took := time.Since(start); took > 100*time.Millisecond {
			t.Errorf("the packet came %v after the path did", took)
		}
		a.Close()
		b.Close()
	})
}

func TestKickWithoutNeed(t *testing.T) {
	a, b, wa := pair(t)
	a.Kick(b.want.Key.Public())
	select {
	case p := <-wa.peer.in:
		t.Errorf("%d bytes were sent though nobody wanted to send", len(p))
	default:
	}
}

func TestNoGoroutineStays(t *testing.T) {
	before := runtime.NumGoroutine()
	ka, kb := key.NewNode(), key.NewNode()
	w, _ := wires(ka.Public(), kb.Public())
	s := newSide(t, w, ka, kb.Public(), "100.64.0.2")
	s.Close()
	s.tun = tuntest.NewChannelTUN() // Close is no end
	if err := s.Set(t.Context(), s.want); err != nil {
		t.Fatal(err)
	}
	s.Close()
	until(t, "the end of all goroutines", func() bool { return runtime.NumGoroutine() <= before })
}

func TestChange(t *testing.T) {
	k := key.NewNode()
	p1, p2 := key.NewNode().Public(), key.NewNode().Public()
	ips := func(s ...string) (all []netip.Prefix) {
		for _, x := range s {
			all = append(all, netip.MustParsePrefix(x))
		}
		return all
	}
	one := host.Tunnel{Name: "mesh0", Key: k, Peers: []host.Peer{{Key: p1, AllowedIPs: ips("100.64.0.1/32", "fd7a::1/128")}}}
	for _, tt := range []struct {
		name      string
		now, want host.Tunnel
		text      string
	}{
		{"nothing", one, one, ""},
		{"first", host.Tunnel{}, one, "private_key=" + k.UntypedHexString() + "\npublic_key=" + hexKey(p1) + "\nendpoint=" + hexKey(p1) +
			"\nreplace_allowed_ips=true\nallowed_ip=100.64.0.1/32\nallowed_ip=fd7a::1/128\n"},
		{"another peer", one, host.Tunnel{Key: k, Peers: []host.Peer{{Key: p2, AllowedIPs: ips("100.64.0.1/32")}}},
			"public_key=" + hexKey(p1) + "\nremove=true\npublic_key=" + hexKey(p2) + "\nendpoint=" + hexKey(p2) +
				"\nreplace_allowed_ips=true\nallowed_ip=100.64.0.1/32\n"},
		{"its routes", one, host.Tunnel{Key: k, Peers: []host.Peer{{Key: p1, AllowedIPs: ips("100.64.0.1/32")}}},
			"public_key=" + hexKey(p1) + "\nreplace_allowed_ips=true\nallowed_ip=100.64.0.1/32\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if d := cmp.Diff(tt.text, change(tt.now, tt.want)); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestRealInterface makes one in a namespace of its own.
func TestRealInterface(t *testing.T) {
	if os.Getenv("SUBNETD_TEST_NETNS") == "" {
		if os.Getuid() != 0 {
			if os.Getenv("CI") == "true" {
				t.Fatal("this test needs root")
			}
			t.Skip("this test needs root")
		}
		cmd := exec.CommandContext(t.Context(), "unshare", "-n", os.Args[0], "-test.run=^TestRealInterface$", "-test.v")
		cmd.Env = append(os.Environ(), "SUBNETD_TEST_NETNS=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	k := key.NewNode()
	w, _ := wires(k.Public(), key.NewNode().Public())
	u := NewUserspace(slog.New(slog.DiscardHandler), w)
	want := host.Tunnel{Name: "mesh0", Key: k}
	for range 2 {
		if err := u.Set(t.Context(), want); err != nil {
			t.Fatal(err)
		}
	}
	if i, err := net.InterfaceByName("mesh0"); err != nil || i.MTU != host.MTU {
		t.Errorf("interface %+v, %v", i, err)
	}
	err := NewUserspace(slog.New(slog.DiscardHandler), w).Set(t.Context(), want)
	if err == nil || !strings.Contains(err.Error(), "somebody else's") {
		t.Errorf("a taken name gives %v", err)
	}
	if err := u.Set(t.Context(), host.Tunnel{}); err != nil {
		t.Fatal(err)
	}
	if _, err := net.InterfaceByName("mesh0"); err == nil {
		t.Error("the interface stayed")
	}
}
