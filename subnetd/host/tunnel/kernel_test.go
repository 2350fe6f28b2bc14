package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"subnetd/subnetd/host"

	"golang.org/x/sys/unix"
	"tailscale.com/types/key"
)

const testPort, testMark = 51820, 0x05000000

// newFake is an engine over a fake kernel.
func newFake(f *fakeKernel) (*Kernel, *fakeWays) {
	w := &fakeWays{}
	k := NewKernel(slog.New(slog.DiscardHandler), testPort, testMark, w)
	k.wg = f
	return k, w
}

func mustSet(t *testing.T, k *Kernel, want host.Tunnel) {
	t.Helper()
	if err := k.Set(t.Context(), want); err != nil {
		t.Fatal(err)
	}
}

var (
	direct1 = netip.MustParseAddrPort("192.0.2.7:41641")
	direct2 = netip.MustParseAddrPort("[2001:db8::7]:41641")
)

func TestKernelSet(t *testing.T) {
	f := newFakeKernel()
	k, w := newFake(f)
	want := host.Tunnel{Name: "mesh0", Key: key.NewNode(), Peers: somePeers(10)}
	w.point(want.Peers[3].Key, direct1)
	mustSet(t, k, want)
	f.holds(t, want)
	if l := f.all["mesh0"]; l.device.port != testPort || l.device.mark != testMark || !l.up || l.mtu != host.MTU {
		t.Errorf("interface %+v %+v", l.wgLink, l.device)
	}
	for i, p := range want.Peers {
		wish := loopback(p.Key)
		if i == 3 {
			wish = direct1
		}
		if got := f.peer(p.Key).endpoint; got != wish {
			t.Errorf("peer %d is sent to %v, want %v", i, got, wish)
		}
	}
	if _, _, n := f.counts(); n != 1+3 {
		t.Errorf("%d messages for an interface with ten peers, want 1+3", n)
	}

	for _, again := range []*Kernel{k, func() *Kernel { k, w := newFake(f); w.direct = map[key.NodePublic]netip.AddrPort{}; return k }()} {
		mustSet(t, again, want)
		if _, _, n := f.counts(); n != 0 {
			t.Errorf("%d messages though nothing differs", n)
		}
	}

	mustSet(t, k, host.Tunnel{Name: "mesh1", Key: want.Key, Peers: want.Peers})
	if f.all["mesh0"] != nil || f.all["mesh1"] == nil {
		t.Error("another name needs another interface")
	}
	mustSet(t, k, host.Tunnel{})
	if len(f.all) != 0 {
		t.Error("the interface stayed")
	}
	if got := k.Stats(); len(got) != 0 {
		t.Errorf("no interface has stats %v", got)
	}
}

// TestKernelDifferences: each change of the wish costs what it must, and no peer
// that stays loses its session.
func TestKernelDifferences(t *testing.T) {
	base := host.Tunnel{Name: "mesh0", Key: key.NewNode(), Peers: somePeers(6)}
	newcomer := somePeers(1)[0]
	newcomer.AllowedIPs = base.Peers[1].AllowedIPs
	for _, tt := range []struct {
		name   string
		change func(*host.Tunnel)
		sets   int
		reborn int // peer that starts over; -1: none
	}{
		{"nothing", func(*host.Tunnel) {}, 0, -1},
		{"another order", func(h *host.Tunnel) { slices.Reverse(h.Peers[2].AllowedIPs) }, 0, -1},
		{"one address more", func(h *host.Tunnel) {
			h.Peers[2].AllowedIPs = append(h.Peers[2].AllowedIPs, netip.MustParsePrefix("192.168.9.0/24"))
		}, 1, -1},
		{"an address less", func(h *host.Tunnel) { h.Peers[2].AllowedIPs = h.Peers[2].AllowedIPs[:1] }, 1, -1},
		{"no address", func(h *host.Tunnel) { h.Peers[2].AllowedIPs = nil }, 1, -1},
		{"addresses change places", func(h *host.Tunnel) {
			h.Peers[0].AllowedIPs, h.Peers[5].AllowedIPs = h.Peers[5].AllowedIPs, h.Peers[0].AllowedIPs
		}, 1, -1},
		{"a peer goes", func(h *host.Tunnel) { h.Peers = slices.Delete(h.Peers, 1, 2) }, 1, -1},
		{"one takes the addresses of another", func(h *host.Tunnel) { h.Peers[1] = newcomer }, 1, -1},
		{"all go", func(h *host.Tunnel) { h.Peers = nil }, 2, -1},
		{"a peer restarted", func(h *host.Tunnel) { h.Peers[4].Session = "2" }, 1, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFakeKernel()
			k, _ := newFake(f)
			mustSet(t, k, base)
			f.counts()
			before := f.lives()
			want := base
			want.Peers = copyPeers(base.Peers)
			tt.change(&want)
			mustSet(t, k, want)
			f.holds(t, want)
			if got := len(k.Stats()); got != len(want.Peers) {
				t.Errorf("stats of %d peers", got)
			}
			for _, s := range f.sets {
				if s.device != nil {
					t.Error("the device was set again")
				}
			}
			if _, _, n := f.counts(); n != tt.sets {
				t.Errorf("%d messages, want %d", n, tt.sets)
			}
			var wish []key.NodePublic
			if tt.reborn >= 0 {
				wish = append(wish, want.Peers[tt.reborn].Key)
			}
			if got := reborn(before, f.lives()); !slices.Equal(got, wish) {
				t.Errorf("%v lost their sessions, want %v", got, wish)
			}
			mustSet(t, k, want)
			if _, _, n := f.counts(); n != 0 {
				t.Errorf("%d messages though nothing differs", n)
			}
		})
	}
}

// TestKernelSessionChange: the old session goes and the peer is there again in
// one message, and only once.
func TestKernelSessionChange(t *testing.T) {
	f := newFakeKernel()
	k, w := newFake(f)
	want := host.Tunnel{Name: "mesh0", Key: key.NewNode(), Peers: somePeers(1)}
	peer := want.Peers[0].Key
	mustSet(t, k, want)
	f.hear(peer, netip.AddrPort{}, 100, 100)
	w.point(peer, direct2)
	want.Peers = copyPeers(want.Peers)
	want.Peers[0].Session = "2"
	f.counts()
	mustSet(t, k, want)
	if len(f.sets) != 1 || len(f.sets[0].peers) != 1 {
		t.Fatalf("messages %+v", f.sets)
	}
	if c := f.sets[0].peers[0]; !c.remove || !c.add || c.endpoint != direct2 || !slices.Equal(c.allowed, want.Peers[0].AllowedIPs) {
		t.Errorf("change %+v", c)
	}
	if st := k.Stats()[peer]; st != (Stat{}) {
		t.Errorf("a new peer has carried %+v", st)
	}
	// Who has no session name restarts unnoticed; to get one is no restart.
	k, _ = newFake(f)
	for i, tt := range []struct {
		session string
		sets    int
	}{{"", 0}, {"3", 0}, {"3", 0}, {"4", 1}} {
		want.Peers[0].Session = tt.session
		f.counts()
		mustSet(t, k, want)
		if _, _, n := f.counts(); n != tt.sets {
			t.Errorf("%d: %d messages for session %q, want %d", i, n, tt.session, tt.sets)
		}
	}
}

// TestChangesOrder: who goes goes first, so that nobody's packets take the way of
// another for longer than need be.
func TestChangesOrder(t *testing.T) {
	peers := somePeers(9)
	var have []wgPeer
	for _, p := range peers[:6] {
		have = append(have, wgPeer{key: p.Key, endpoint: loopback(p.Key), allowed: p.AllowedIPs})
	}
	want := copyPeers(append(slices.Clone(peers[3:5]), peers[6:]...)) // 0, 1, 2, 5 go; 6, 7, 8 come
	want[0].AllowedIPs = append(want[0].AllowedIPs, peers[0].AllowedIPs...)
	all := changes(have, want, func(p *host.Peer) bool { return p.Key == peers[4].Key }, loopback)
	var got []string
	for _, c := range all {
		i := slices.IndexFunc(peers, func(p host.Peer) bool { return p.Key == c.key })
		got = append(got, fmt.Sprintf("%d:%v,%v,%v", i, c.remove, c.add, c.aim))
	}
	wish := []string{"0:true,false,false", "1:true,false,false", "2:true,false,false", "5:true,false,false",
		"3:false,false,false", "4:true,true,true", "6:false,true,true", "7:false,true,true", "8:false,true,true"}
	if !slices.Equal(got, wish) {
		t.Errorf("got %v\nwant %v", got, wish)
	}
}

func TestKernelManyAddresses(t *testing.T) {
	f := newFakeKernel()
	k, _ := newFake(f)
	want := host.Tunnel{Name: "mesh0", Key: key.NewNode(), Peers: somePeers(5)}
	for i := range want.Peers {
		for j := range 3*maxAllowed + 1 {
			a := netip.AddrFrom16([16]byte{0x20, 1: byte(i), 2: byte(j / 256), 3: byte(j % 256)})
			want.Peers[i].AllowedIPs = append(want.Peers[i].AllowedIPs, netip.PrefixFrom(a, 64))
		}
	}
	mustSet(t, k, want)
	f.holds(t, want)
	for _, s := range f.sets {
		if len(s.peers) > batchPeers {
			t.Errorf("a message with %d peers", len(s.peers))
		}
		if n := len(s.encode("mesh0")); n >= 1<<16 {
			t.Errorf("a message of %d bytes does not fit its own length", n)
		}
	}
	f.counts()
	mustSet(t, k, want)
	if _, _, n := f.counts(); n != 0 {
		t.Errorf("%d messages though nothing differs", n)
	}
}

// TestKernelAdoption: what an earlier life left goes on; what only looks like
// ours is put right.
func TestKernelAdoption(t *testing.T) {
	f := newFakeKernel()
	first, _ := newFake(f)
	want := host.Tunnel{Name: "mesh0", Key: key.NewNode(), Peers: somePeers(5)}
	mustSet(t, first, want)
	l := f.all["mesh0"]
	at := func(i int) *fakePeer { return l.peers[want.Peers[i].Key] }
	at(0).endpoint = direct1                                 // went direct
	at(1).endpoint = netip.MustParseAddrPort("127.77.7.7:7") // another conduit
	at(2).endpoint = netip.AddrPort{}                        // nobody knows
	at(3).foreign, at(3).endpoint = true, direct2            // somebody's preshared key
	stranger := key.NewNode().Public()
	l.peers[stranger] = &fakePeer{wgPeer: wgPeer{key: stranger}}
	l.peers[want.Peers[0].Key].stat = Stat{Rx: 10, Tx: 20} // has carried
	l.mtu, l.device.mark = 1420, 1                         // somebody's taste
	before := f.lives()
	f.counts()

	k, w := newFake(f)
	sawBefore := ""
	f.fail = func(int) error { sawBefore += w.told(); return nil }
	mustSet(t, k, want)
	f.holds(t, want)
	if l.mtu != host.MTU || l.device.mark != testMark {
		t.Errorf("interface %+v %+v", l.wgLink, l.device)
	}
	if got, wish := w.told(), "roamed "+want.Peers[0].Key.ShortString()+" "+direct1.String(); got != wish || sawBefore != "" {
		t.Errorf("news after %q, before the peers were set %q; want %q after", got, sawBefore, wish)
	}
	if got := at(0).endpoint; got != direct1 {
		t.Errorf("the direct endpoint became %v", got)
	}
	for _, i := range []int{1, 2, 3, 4} {
		if got := at(i).endpoint; got != loopback(want.Peers[i].Key) {
			t.Errorf("peer %d is sent to %v", i, got)
		}
	}
	if got := reborn(before, f.lives()); !slices.Equal(got, []key.NodePublic{want.Peers[3].Key}) {
		t.Errorf("%v lost their sessions", got)
	}
	if st := k.Stats()[want.Peers[0].Key]; st != (Stat{Rx: 10, Tx: 20}) {
		t.Errorf("stats %+v", st)
	}
	mustSet(t, k, want)
	if got := w.told(); got != "" {
		t.Errorf("told again: %q", got)
	}
}

// TestKernelOtherKey: under another key all starts over, with no time lost on
// peers of before.
func TestKernelOtherKey(t *testing.T) {
	f := newFakeKernel()
	k, w := newFake(f)
	want := host.Tunnel{Name: "mesh0", Key: key.NewNode(), Peers: somePeers(3)}
	mustSet(t, k, want)
	before := f.lives()
	f.all["mesh0"].peers[want.Peers[0].Key].endpoint = direct1
	f.counts()
	want.Key = key.NewNode()
	mustSet(t, k, want)
	f.holds(t, want)
	if !f.sets[0].bare || len(f.sets) != 2 {
		t.Errorf("messages %+v", f.sets)
	}
	if got := reborn(before, f.lives()); len(got) != 3 {
		t.Errorf("%d peers started over", len(got))
	}
	if got := w.told(); strings.Count(got, "\n") > 0 {
		t.Errorf("news %q", got)
	}
}

func TestKernelErrors(t *testing.T) {
	want := host.Tunnel{Name: "mesh0", Key: key.NewNode(), Peers: somePeers(1)}
	f := newFakeKernel()
	f.all["mesh0"] = &fakeLink{wgLink: wgLink{index: 9, kind: "tun"}}
	k, _ := newFake(f)
	if err := k.Set(t.Context(), want); err == nil || !strings.Contains(err.Error(), "somebody else's") {
		t.Errorf("a taken name gives %v", err)
	}
	if err := deleteLink(f, "mesh0"); err != nil || f.all["mesh0"] == nil {
		t.Errorf("somebody else's interface was removed, %v", err)
	}

	f = newFakeKernel()
	f.taken = testPort
	k, _ = newFake(f)
	if err := k.Set(t.Context(), want); err == nil || !strings.Contains(err.Error(), "UDP port 51820 is taken") || !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a taken port gives %v", err)
	}
	f.taken = 0
	mustSet(t, k, want)
	f.holds(t, want)
	f.taken, f.all["mesh0"].device.port = testPort, 1 // somebody changed it, and took ours
	if err := k.Set(t.Context(), want); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a taken port gives %v", err)
	}

	for _, tt := range []struct {
		err  error
		text string
	}{{unix.EOPNOTSUPP, "kmod-wireguard"}, {unix.EPERM, "CAP_NET_ADMIN"}} {
		f = newFakeKernel()
		f.fail = func(int) error { return tt.err }
		k, _ = newFake(f)
		if err := k.Set(t.Context(), want); !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%v gives %v", tt.err, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	k, _ = newFake(newFakeKernel())
	if err := k.Set(ctx, want); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context gives %v", err)
	}
}

// TestKernelInterrupted: a dump that misses peers is not believed.
func TestKernelInterrupted(t *testing.T) {
	f := newFakeKernel()
	k, _ := newFake(f)
	want := host.Tunnel{Name: "mesh0", Key: key.NewNode(), Peers: somePeers(8)}
	mustSet(t, k, want)
	f.counts()
	f.torn = 2
	mustSet(t, k, want)
	if _, _, n := f.counts(); n != 0 {
		t.Errorf("%d messages for peers that were only not seen", n)
	}
	f.torn = 3
	if err := k.Set(t.Context(), want); !errors.Is(err, errInterrupted) {
		t.Errorf("an interface that never holds still gives %v", err)
	}
}

// TestKernelWalk: whatever fails on the way, the next Set that succeeds leaves
// what is wanted, and then nothing is left to do.
func TestKernelWalk(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 4))
		f := newFakeKernel()
		k, _ := newFake(f)
		pool := somePeers(12)
		want := host.Tunnel{Name: "mesh0", Key: key.NewNode()}
		for range 12 {
			want.Peers = randomPeers(r, pool)
			switch r.IntN(8) {
			case 0:
				want.Key = key.NewNode()
			case 1:
				k, _ = newFake(f) // a restart
			case 2:
				delete(f.all, "mesh0")
			}
			f.fail = func(int) error {
				if r.IntN(4) == 0 {
					return errFake
				}
				return nil
			}
			for k.Set(t.Context(), want) != nil {
			}
			f.holds(t, want)
			f.fail = nil
			f.counts()
			mustSet(t, k, want)
			if _, _, n := f.counts(); n != 0 || t.Failed() {
				t.Fatalf("seed %d: %d messages though nothing differs", seed, n)
			}
		}
	}
}

// randomPeers are some of the pool, with the pool's addresses dealt anew.
func randomPeers(r *rand.Rand, pool []host.Peer) []host.Peer {
	var all []host.Peer
	var ips []netip.Prefix
	for _, p := range pool {
		ips = append(ips, p.AllowedIPs...)
		if r.IntN(3) > 0 {
			p.AllowedIPs, p.Session = nil, string(rune('1'+r.IntN(2)))
			all = append(all, p)
		}
	}
	for _, a := range ips {
		if i := r.IntN(len(pool)); i < len(all) {
			all[i].AllowedIPs = append(all[i].AllowedIPs, a)
		}
	}
	return all
}

// running is an engine at work in virtual time, with peers on loopback.
func running(t *testing.T, peers int) (*Kernel, *fakeKernel, *fakeWays, host.Tunnel) {
	f := newFakeKernel()
	k, w := newFake(f)
	want := host.Tunnel{Name: "mesh0", Key: key.NewNode(), Peers: somePeers(peers)}
	mustSet(t, k, want)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- k.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	synctest.Wait()
	f.counts()
	return k, f, w, want
}

func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestPins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, f, _, want := running(t, 3)
		peer := want.Peers[0].Key
		k.Pin(peer, direct1)
		k.Pin(peer, direct2) // the newest counts
		k.Pin(key.NewNode().Public(), direct1)
		synctest.Wait()
		if got := f.peer(peer).endpoint; got != direct2 {
			t.Errorf("the peer is sent to %v", got)
		}
		f.mu.Lock()
		for _, s := range f.sets {
			for _, c := range s.peers {
				if c.add || c.remove || c.replace || c.key != peer {
					t.Errorf("a pin does %+v", c)
				}
			}
		}
		f.mu.Unlock()
		if got := len(f.lives()); got != 3 {
			t.Errorf("%d peers after a pin of a stranger", got)
		}
		k.Pin(peer, netip.MustParseAddrPort("[::ffff:192.0.2.7]:41641"))
		synctest.Wait()
		if got := f.peer(peer).endpoint; got != direct1 {
			t.Errorf("the peer is sent to %v", got)
		}
		k.Pin(peer, direct2)
		synctest.Wait()
		f.counts()
		k.Pin(peer, direct2)
		synctest.Wait()
		if _, _, n := f.counts(); n != 0 {
			t.Errorf("%d messages for a pin that holds", n)
		}
		// A pin goes with its peer.
		mustSet(t, k, host.Tunnel{Name: "mesh0", Key: want.Key, Peers: want.Peers[1:]})
		k.Pin(peer, direct1)
		synctest.Wait()
		mustSet(t, k, want)
		if got := f.peer(peer).endpoint; got != loopback(peer) {
			t.Errorf("the peer came back with %v", got)
		}
	})
}

func TestPinsInBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, f, _, want := running(t, 3*batchPins)
		k.mu.Lock() // all come while Run is busy
		for _, p := range want.Peers {
			k.Pin(p.Key, direct1)
		}
		k.mu.Unlock()
		synctest.Wait()
		n, most := 0, 0
		f.mu.Lock()
		for _, s := range f.sets {
			n, most = n+len(s.peers), max(most, len(s.peers))
		}
		f.mu.Unlock()
		if n != len(want.Peers) || most > batchPins {
			t.Errorf("%d pins sent, %d in one message", n, most)
		}
	})
}

// TestPinFails: what the kernel did not take is told again, a newer wish first,
// and not in a hurry.
func TestPinFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, f, _, want := running(t, 2)
		f.mu.Lock()
		f.fail = func(int) error { return errFake }
		f.mu.Unlock()
		k.Pin(want.Peers[0].Key, direct1)
		k.Pin(want.Peers[1].Key, direct1)
		pass(10 * time.Second)
		if _, _, n := f.counts(); n < 5 || n > 25 {
			t.Errorf("tried %d times in ten seconds", n)
		}
		k.Pin(want.Peers[1].Key, direct2)
		f.mu.Lock()
		f.fail = nil
		f.mu.Unlock()
		pass(2 * time.Second)
		if a, b := f.peer(want.Peers[0].Key).endpoint, f.peer(want.Peers[1].Key).endpoint; a != direct1 || b != direct2 {
			t.Errorf("endpoints %v, %v", a, b)
		}
	})
}

// TestPinFailsAndIsOld: a wish that comes while the one before fails is the one
// that counts.
func TestPinFailsAndIsOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, f, _, want := running(t, 1)
		p := want.Peers[0].Key
		f.mu.Lock()
		f.fail = func(n int) error {
			if n > 1 {
				return nil
			}
			k.Pin(p, direct2)
			return errFake
		}
		f.mu.Unlock()
		k.Pin(p, direct1)
		pass(3 * time.Second)
		if got := f.peer(p).endpoint; got != direct2 {
			t.Errorf("sent to %v", got)
		}
	})
}

// TestLinger: polling goes on while there is traffic, and Stats are of now also
// when there is none.
func TestLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, f, w, want := running(t, 1)
		p := want.Peers[0].Key
		k.Look()
		for range 20 {
			pass(pollLinger / 2)
			f.hear(p, netip.AddrPort{}, 92, 0)
		}
		w.told()
		f.hear(p, direct1, 92, 0)
		pass(2 * time.Second)
		if got := w.told(); !strings.Contains(got, "roamed") {
			t.Errorf("told %q in the midst of traffic", got)
		}
		k.Pin(p, loopback(p))
		pass(time.Minute)
		f.hear(p, netip.AddrPort{}, 1000, 0)
		f.counts()
		pass(time.Minute)
		if st := k.Stats()[p]; st.Rx != f.peer(p).stat.Rx {
			t.Errorf("stats %+v are old", st)
		}
		for range 10 {
			k.Stats()
		}
		if looks, dumps, _ := f.counts(); looks != 1 || dumps != 1 {
			t.Errorf("Stats took %d looks, %d dumps", looks, dumps)
		}
	})
}

// TestQuiet: with all peers on loopback there is no wake-up.
func TestQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, f, _, want := running(t, 20)
		pass(pollLinger * 2)
		f.counts()
		f.hear(want.Peers[0].Key, netip.AddrPort{}, 1, 1)
		pass(time.Hour)
		if looks, dumps, sets := f.counts(); looks+dumps+sets != 0 {
			t.Errorf("in a quiet hour: %d looks, %d dumps, %d sets", looks, dumps, sets)
		}
	})
}

func TestPolling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, f, w, want := running(t, 3)
		p := want.Peers[1].Key
		name := p.ShortString()
		k.Pin(p, direct1)
		pass(10*time.Second + time.Millisecond)
		if looks, dumps, _ := f.counts(); looks < 18 || looks > 22 || dumps != 0 {
			t.Errorf("ten silent seconds: %d looks, %d dumps", looks, dumps)
		}
		for _, tt := range []struct {
			from   netip.AddrPort
			rx, tx uint64
			told   string
		}{
			{netip.AddrPort{}, 0, 148, "carried " + name + " true false"},
			{direct1, 92, 0, "carried " + name + " false true"},
			{netip.AddrPort{}, 0, 0, ""},
			{direct2, 92, 148, "roamed " + name + " " + direct2.String() + "\ncarried " + name + " true true"},
			{direct2, 92, 0, "roamed " + name + " " + direct2.String() + "\ncarried " + name + " false true"},
			{direct1, 92, 0, "carried " + name + " false true"}, // back where we set it
			{direct2, 92, 0, "roamed " + name + " " + direct2.String() + "\ncarried " + name + " false true"},
		} {
			f.hear(p, tt.from, tt.rx, tt.tx)
			f.counts()
			pass(pollEvery)
			if got := w.told(); got != tt.told {
				t.Errorf("heard %d from %v, sent %d: told %q, want %q", tt.rx, tt.from, tt.tx, got, tt.told)
			}
			if looks, dumps, sets := f.counts(); looks != 1 || dumps != min(1, int(tt.rx+tt.tx)) || sets != 0 {
				t.Errorf("an interval took %d looks, %d dumps, %d sets", looks, dumps, sets)
			}
		}
		// All on loopback again: polling ends.
		k.Pin(p, loopback(p))
		synctest.Wait()
		if got := f.peer(p).endpoint; got != loopback(p) {
			t.Errorf("sent to %v", got)
		}
		pass(pollLinger + 2*time.Second)
		f.counts()
		pass(time.Hour)
		if looks, _, _ := f.counts(); looks != 0 {
			t.Errorf("%d looks after it", looks)
		}
		// What was carried meanwhile is no news.
		f.hear(p, netip.AddrPort{}, 1000, 1000)
		pass(time.Minute)
		w.told()
		k.Look()
		synctest.Wait()
		if got := w.told(); got != "" {
			t.Errorf("old news: %q", got)
		}
		f.hear(p, direct2, 92, 0)
		pass(time.Second)
		if got := w.told(); !strings.Contains(got, "roamed") || !strings.Contains(got, "carried") {
			t.Errorf("told %q after Look", got)
		}
		if st := k.Stats()[p]; st.Rx == 0 || st.Tx == 0 || st.Handshake.IsZero() {
			t.Errorf("stats %+v", st)
		}
	})
}

// TestLateRelay: a relayed packet that comes after the pin takes the kernel off
// the direct path; it is put back.
func TestLateRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, f, w, want := running(t, 1)
		p := want.Peers[0].Key
		k.Pin(p, direct1)
		synctest.Wait()
		f.hear(p, loopback(p), 92, 0)
		pass(2 * time.Second)
		if got := f.peer(p).endpoint; got != direct1 {
			t.Errorf("sent to %v", got)
		}
		if got := w.told(); strings.Contains(got, "roamed") {
			t.Errorf("our own loopback was told: %q", got)
		}
	})
}

// TestPollingIsBounded: a thousand peers are read every 20 s at most.
func TestPollingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, f, _, want := running(t, 1000)
		k.Pin(want.Peers[0].Key, direct1)
		synctest.Wait()
		f.counts()
		for range 100 {
			f.hear(want.Peers[0].Key, netip.AddrPort{}, 1, 1)
			k.Look()
			pass(time.Second)
		}
		if looks, dumps, _ := f.counts(); looks > 6 || dumps > 6 || dumps < 4 {
			t.Errorf("in 100 busy seconds: %d looks, %d dumps", looks, dumps)
		}
	})
}

// TestPinWhileSet: a pin that comes before its peer does is not lost.
func TestPinWhileSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, f, w, want := running(t, 1)
		late := somePeers(9)
		f.mu.Lock()
		f.fail = func(n int) error {
			if n == 1 {
				for _, p := range late {
					w.point(p.Key, direct1)
					k.Pin(p.Key, direct1)
				}
			}
			return nil
		}
		f.mu.Unlock()
		want.Peers = late
		mustSet(t, k, want)
		synctest.Wait()
		for _, p := range late {
			if got := f.peer(p.Key).endpoint; got != direct1 {
				t.Errorf("sent to %v", got)
			}
		}
	})
}

// TestInterfaceVanishes: somebody removes it; nothing breaks, and the next Set
// makes it again.
func TestInterfaceVanishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, f, _, want := running(t, 3)
		k.Pin(want.Peers[0].Key, direct1)
		pass(3 * time.Second)
		f.mu.Lock()
		delete(f.all, "mesh0")
		f.mu.Unlock()
		k.Pin(want.Peers[1].Key, direct1)
		pass(3 * time.Second)
		mustSet(t, k, want)
		f.holds(t, want)
		pass(time.Minute)
		if got := f.peer(want.Peers[0].Key).endpoint; got != loopback(want.Peers[0].Key) {
			t.Errorf("sent to %v, not to where the underlay says", got)
		}
	})
}

func TestFind(t *testing.T) {
	f := newFakeKernel()
	if left, err := find(f, "mesh0"); err != nil || len(f.all) != 0 || left.Name != "" {
		t.Errorf("%v, %+v, left %v", err, left, f.all)
	}
	k, w := newFake(f)
	want := host.Tunnel{Name: "mesh0", Key: key.NewNode(), Peers: somePeers(2)}
	w.point(want.Peers[0].Key, direct2)
	mustSet(t, k, want)
	f.counts()
	left, err := find(f, "mesh0")
	if err != nil || left.Name != "mesh0" || left.Port != testPort || len(left.Direct) != 1 || left.Direct[want.Peers[0].Key] != direct2 {
		t.Errorf("%v, %+v", err, left)
	}
	if _, _, n := f.counts(); n != 0 || len(f.all) != 1 {
		t.Errorf("%d messages, interfaces %v", n, f.all)
	}
	// Down is down, in the next life too.
	k, _ = newFake(f)
	k.Adopt(left)
	mustSet(t, k, host.Tunnel{})
	if len(f.all) != 0 {
		t.Error("what an earlier life left stays")
	}
}

// TestKernelKick: only a peer that never shook hands and is reached directly is
// made to.
func TestKernelKick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, f, _, want := running(t, 3)
		fresh, relayed, known := want.Peers[0].Key, want.Peers[1].Key, want.Peers[2].Key
		k.Pin(fresh, direct1)
		k.Pin(known, direct2)
		synctest.Wait()
		f.hear(known, netip.AddrPort{}, 92, 148)
		pass(2 * time.Second)
		f.counts()
		for _, p := range []key.NodePublic{fresh, relayed, known, key.NewNode().Public()} {
			k.Kick(p)
		}
		synctest.Wait()
		var got []wgChange
		f.mu.Lock()
		for _, s := range f.sets {
			got = append(got, s.peers...)
		}
		f.mu.Unlock()
		if len(got) != 1 || got[0].key != fresh || !got[0].nudge {
			t.Errorf("changes %+v", got)
		}
	})
}

// TestClose: the last wishes reach the kernel although Run has ended.
func TestClose(t *testing.T) {
	f := newFakeKernel()
	k, _ := newFake(f)
	want := host.Tunnel{Name: "mesh0", Key: key.NewNode(), Peers: somePeers(2)}
	mustSet(t, k, want)
	k.Pin(want.Peers[1].Key, direct2)
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	if got := f.peer(want.Peers[1].Key).endpoint; got != direct2 {
		t.Errorf("the peer is sent to %v", got)
	}
	k.Pin(want.Peers[1].Key, direct1)
	f.fail = func(int) error { return errFake }
	if err := k.Close(); !errors.Is(err, errFake) {
		t.Errorf("a kernel that does not listen gives %v", err)
	}
}
