package tunnel

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"subnetd/subnetd/host"

	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/tuntest"
	"tailscale.com/types/key"
)

// post joins nodes in memory.
type post struct {
	self    key.NodePublic
	others  map[key.NodePublic]*post
	in      chan letter
	mu      sync.Mutex
	unknown bool // who sends is not known
	ended   chan struct{}
}

type letter struct {
	from key.NodePublic
	data []byte
}

func posts(keys ...key.NodePublic) []*post {
	var all []*post
	byKey := map[key.NodePublic]*post{}
	for _, k := range keys {
		p := &post{self: k, others: byKey, in: make(chan letter, 256)}
		byKey[k] = p
		all = append(all, p)
	}
	return all
}

func (p *post) Open() ([]func([][]byte, []int, []key.NodePublic) (int, error), uint16, error) {
	ended := make(chan struct{})
	p.ended = ended
	return []func([][]byte, []int, []key.NodePublic) (int, error){
		func(packets [][]byte, sizes []int, from []key.NodePublic) (n int, err error) {
			select {
			case l := <-p.in:
				p.read(l, packets[0], &sizes[0], &from[0])
			case <-ended:
				return 0, net.ErrClosed
			}
			for n = 1; n < len(packets); n++ {
				select {
				case l := <-p.in:
					p.read(l, packets[n], &sizes[n], &from[n])
				default:
					return n, nil
				}
			}
			return n, nil
		},
	}, 1, nil
}

func (p *post) read(l letter, packet []byte, size *int, from *key.NodePublic) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*size, *from = copy(packet, l.data), l.from
	if p.unknown {
		*from = key.NodePublic{}
	}
}

func (p *post) lose(unknown bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unknown = unknown
}

func (p *post) CloseReceivers() error {
	if p.ended != nil {
		close(p.ended)
		p.ended = nil
	}
	return nil
}

func (p *post) Send(to key.NodePublic, packets [][]byte) error {
	for _, b := range packets {
		p.others[to].in <- letter{p.self, bytes.Clone(b)}
	}
	return nil
}

func (p *post) BatchSize() int { return 8 }

// household is a router with its interfaces, and three peers.
type household struct {
	*Userspaces
	post  *post
	tuns  map[string]*tuntest.ChannelTUN // by interface
	all   host.Tunnel
	peers []*side
}

func newHousehold(t *testing.T) *household {
	t.Helper()
	own := key.NewNode()
	ours := netip.MustParsePrefix("100.64.0.1/32")
	keys, names := []key.NodePrivate{key.NewNode(), key.NewNode(), key.NewNode()}, []key.NodePublic{own.Public()}
	for _, k := range keys {
		names = append(names, k.Public())
	}
	all := posts(names...)
	h := &household{post: all[0], tuns: map[string]*tuntest.ChannelTUN{}, all: host.Tunnel{Name: "mesh0", Key: own}}
	var mu sync.Mutex
	h.Userspaces = newUserspaces(h.post, func(tr Transport) *Userspace {
		u := NewUserspace(slog.New(slog.DiscardHandler), tr)
		u.open = func(name string, _ int) (tun.Device, error) {
			mu.Lock()
			defer mu.Unlock()
			h.tuns[name] = tuntest.NewChannelTUN()
			return h.tuns[name].TUN(), nil
		}
		return u
	})
	for i, k := range keys {
		s := &side{Userspace: NewUserspace(slog.New(slog.DiscardHandler), all[1+i]), tun: tuntest.NewChannelTUN()}
		s.open = func(string, int) (tun.Device, error) { return s.tun.TUN(), nil }
		s.want = host.Tunnel{Name: "mesh0", Key: k, Peers: []host.Peer{{Key: own.Public(), AllowedIPs: []netip.Prefix{ours}}}}
		if err := s.Set(t.Context(), s.want); err != nil {
			t.Fatal(err)
		}
		h.peers = append(h.peers, s)
		h.all.Peers = append(h.all.Peers, host.Peer{Key: k.Public(), Session: "1",
			AllowedIPs: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("100.64.0.%d", 2+i)), 32)}})
	}
	return h
}

func (h *household) close() {
	h.Close()
	for _, p := range h.peers {
		p.Close()
	}
}

// choose has peers as exits. WireGuard takes no two handshakes within 20 ms.
func (h *household) choose(t *testing.T, exits ...int) {
	t.Helper()
	time.Sleep(30 * time.Millisecond)
	if err := h.Set(t.Context(), chosen(h.all, exits...)); err != nil {
		t.Fatal(err)
	}
}

// pass has packets go to peer i and back, by that interface: one for the peer, and
// one for the internet if it is an exit. Those on the way when the peer moved are
// lost with their session, so that the first is said again.
func (h *household) pass(t *testing.T, i int, name string) {
	t.Helper()
	router, peer := h.tuns[name], h.peers[i].tun
	ours, its := addrA, h.all.Peers[i].AllowedIPs[0].Addr()
	to := []netip.Addr{its}
	if name != "mesh0" {
		to = append(to, netip.MustParseAddr("192.0.2.80"))
	}
	for _, addr := range to {
		there, back := tuntest.Ping(addr, ours), tuntest.Ping(ours, addr)
		router.Outbound <- there
		deliver(t, fmt.Sprintf("to peer %d by %s", i, name), peer, there)
		peer.Outbound <- back
		deliver(t, fmt.Sprintf("from peer %d by %s", i, name), router, back)
	}
}

func deliver(t *testing.T, what string, to *tuntest.ChannelTUN, want []byte) {
	t.Helper()
	select {
	case got := <-to.Inbound:
		if !bytes.Equal(got, want) {
			t.Fatalf("%s: %x, want %x", what, got, want)
		}
	case <-time.After(beforeRepair):
		t.Fatalf("%s: nothing", what)
	}
}

// Every exit has the internet behind an interface of its own, over one transport, and
// a peer is where it was chosen to be. Who moves needs no traffic and no timer for
// its new session.
func TestUserspaces(t *testing.T) {
	h := newHousehold(t)
	defer h.close()
	h.choose(t)
	names := make([]string, 3)
	for i, p := range h.all.Peers {
		h.pass(t, i, "mesh0")
		names[i] = host.ExitInterface(p.Key)
	}
	h.choose(t, 0, 2)
	for _, unknown := range []bool{false, true} { // from an address that disco does not know yet
		h.post.lose(unknown)
		h.pass(t, 0, names[0])
		h.pass(t, 1, "mesh0")
		h.pass(t, 2, names[2])
	}
	h.post.lose(false)
	h.choose(t, 2)
	h.pass(t, 0, "mesh0")
	h.pass(t, 2, names[2])
	if st := h.Stats(); len(st) != 3 || st[h.all.Peers[2].Key].Rx == 0 || st[h.all.Peers[0].Key].Handshake.IsZero() {
		t.Errorf("stats %v", st)
	}
	// From the other end, whose keys are those of the interface that is gone.
	h.choose(t)
	back := tuntest.Ping(addrA, h.all.Peers[2].AllowedIPs[0].Addr())
	deadline := time.After(beforeRepair)
	for every := time.NewTicker(20 * time.Millisecond); ; {
		select {
		case h.peers[2].tun.Outbound <- back:
		case <-deadline:
			t.Fatal("a peer that moved goes on under keys that nobody has")
		}
		select {
		case <-h.tuns["mesh0"].Inbound:
			every.Stop()
			return
		case <-every.C:
		case <-deadline:
			t.Fatal("a peer that moved goes on under keys that nobody has")
		}
	}
}

// Handshakes of a node that is on an exit's interface come there also from an
// address that nobody knows; those of others are not answered by it.
func TestUserspacesStranger(t *testing.T) {
	h := newHousehold(t)
	defer h.close()
	h.choose(t, 0)
	h.post.lose(true)
	for i, name := range []string{host.ExitInterface(h.all.Peers[0].Key), "mesh0"} {
		from := tuntest.Ping(addrA, h.all.Peers[i].AllowedIPs[0].Addr())
		h.peers[i].tun.Outbound <- from
		deliver(t, fmt.Sprint("from peer ", i), h.tuns[name], from)
	}
	if st := h.Stats(); st[h.all.Peers[1].Key].Handshake.IsZero() || !st[h.all.Peers[2].Key].Handshake.IsZero() {
		t.Errorf("stats %v", st)
	}
}

// Nothing of an exit's interface is left when it goes, and its kicks are its own.
func TestUserspacesClean(t *testing.T) {
	h := newHousehold(t)
	h.choose(t)
	before := runtime.NumGoroutine()
	for range 3 {
		h.choose(t, 0, 1, 2)
		h.Kick(h.all.Peers[0].Key)
		h.choose(t)
	}
	until(t, "the end of all their goroutines", func() bool { return runtime.NumGoroutine() <= before })
	if len(h.all.Peers) != len(h.Stats()) || h.trunk.branches.Load() != nil || len(h.exits) != 0 {
		t.Errorf("left: %v", h.exits)
	}
	h.close()
	h.close()
}

// A branch that is not read drops what does not fit, and the trunk goes on.
func TestBranchFull(t *testing.T) {
	k := key.NewNode().Public()
	b := newBranch(&trunk{})
	for i := range branchQueue + 10 {
		sizes := []int{1, 1}
		divert(map[key.NodePublic]*branch{k: b}, [][]byte{{byte(i)}, {1}}, sizes, []key.NodePublic{k, key.NewNode().Public()})
		if sizes[0] != 0 || sizes[1] != 1 {
			t.Fatal("the trunk kept the packet, or lost its own")
		}
	}
	receivers, _, err := b.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer b.CloseReceivers()
	packets, sizes, from := make([][]byte, 100), make([]int, 100), make([]key.NodePublic, 100)
	for i := range packets {
		packets[i] = make([]byte, branchSize)
	}
	got := 0
	for got < branchQueue {
		n, err := receivers[0](packets, sizes, from)
		if err != nil || sizes[0] != 1 || packets[0][0] != byte(got) || from[0] != k {
			t.Fatalf("packet %d: %v", got, err)
		}
		got += n
	}
	if got != branchQueue || len(b.waiting.ends) != 0 {
		t.Errorf("%d packets and %d", got, len(b.waiting.ends))
	}
	if b.put(make([]byte, branchSize+1), k); len(b.waiting.ends) != 0 {
		t.Error("a packet that has no room waits")
	}
}
