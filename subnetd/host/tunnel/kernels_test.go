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

// fakeDoors keeps the ports it was told last.
type fakeDoors struct {
	fakeWays
	ports map[key.NodePublic]uint16
	note  func(string)
	err   error
}

func (d *fakeDoors) Served(_ context.Context, ports map[key.NodePublic]uint16) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ports = ports
	if d.note != nil {
		var all []string
		for k := range ports {
			all = append(all, k.ShortString())
		}
		slices.Sort(all)
		d.note("served " + strings.Join(all, " "))
	}
	return d.err
}

func newFakes(f *fakeKernel) (*Kernels, *fakeDoors) {
	d := &fakeDoors{}
	return newKernels(testPort, d, func(port uint16, w Ways) *Kernel {
		k := NewKernel(slog.New(slog.DiscardHandler), port, testMark, w)
		k.wg = f
		return k
	}), d
}

// exitOf is the tunnel to a peer as an exit.
func exitOf(p host.Peer) host.ExitTunnel {
	p.AllowedIPs = append(slices.Clone(p.AllowedIPs), netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"))
	return host.ExitTunnel{Name: host.ExitInterface(p.Key), Peer: p}
}

// chosen is the tunnel with those of its peers as exits.
func chosen(want host.Tunnel, exits ...int) host.Tunnel {
	all := want.Peers
	want.Peers = nil
	for i, p := range all {
		if slices.Contains(exits, i) {
			want.Exits = append(want.Exits, exitOf(p))
		} else {
			want.Peers = append(want.Peers, p)
		}
	}
	slices.SortFunc(want.Exits, func(a, b host.ExitTunnel) int { return strings.Compare(a.Name, b.Name) })
	return want
}

// holdsAll compares all interfaces with what was wanted.
func holdsAll(t *testing.T, f *fakeKernel, d *fakeDoors, want host.Tunnel) {
	t.Helper()
	f.holds(t, want)
	if len(f.all) != 1+len(want.Exits) || len(d.ports) != len(want.Exits) {
		t.Errorf("%d interfaces and %d ports for %d exits", len(f.all), len(d.ports), len(want.Exits))
	}
	for _, e := range want.Exits {
		f.holds(t, host.Tunnel{Name: e.Name, Key: want.Key, Peers: []host.Peer{e.Peer}})
		l := f.all[e.Name]
		if port := l.device.port; port == 0 || port == testPort || port != d.ports[e.Peer.Key] || l.device.mark != testMark {
			t.Errorf("interface %s: %+v, served on %d", e.Name, l.device, d.ports[e.Peer.Key])
		}
	}
}

// What is done, in which order: packets of a peer that moves always have somewhere
// to go, no other is touched, and the last is a handshake.
func TestKernelsMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeKernel()
		k, d := newFakes(f)
		defer start(t, k)()
		all := host.Tunnel{Name: "mesh0", Key: key.NewNode(), Peers: somePeers(200)}
		set := func(want host.Tunnel, steps ...string) {
			t.Helper()
			var done []string
			note := func(s string) { done = append(done, s) }
			f.noting(note)
			d.note = note
			if err := k.Set(t.Context(), want); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			f.noting(nil)
			d.note = nil
			if i := slices.IndexFunc(done, func(s string) bool { return strings.Contains(s, "nudges") }); i >= 0 {
				slices.Sort(done[i:]) // each by its own interface's goroutine
			}
			if steps != nil && !slices.Equal(done, steps) {
				t.Errorf("done:\n%s\nwant:\n%s", strings.Join(done, "\n"), strings.Join(steps, "\n"))
			}
			holdsAll(t, f, d, want)
		}
		set(all)
		a, b := exitOf(all.Peers[3]), exitOf(all.Peers[150])
		pa, pb := a.Peer.Key.ShortString(), b.Peer.Key.ShortString()
		lives := f.lives()
		set(chosen(all, 3), "make "+a.Name, a.Name+" adds "+pa, "served "+pa, "mesh0 drops "+pa, a.Name+" nudges "+pa)
		set(chosen(all, 3), "served "+pa)
		nudges := []string{b.Name + " nudges " + pb, "mesh0 nudges " + pa}
		slices.Sort(nudges)
		set(chosen(all, 150), append([]string{"make " + b.Name, b.Name + " adds " + pb, "delete " + a.Name, "served " + pb,
			"mesh0 drops " + pb, "mesh0 adds " + pa}, nudges...)...)
		if got := reborn(lives, f.lives()); len(got) != 1 {
			t.Errorf("%d peers of mesh0 began anew", len(got))
		}
		if _, left := f.lives()[b.Peer.Key]; left {
			t.Error("an exit's peer is on mesh0, too")
		}
		set(all)
		set(host.Tunnel{Name: "mesh0", Key: all.Key})
		if err := k.Set(t.Context(), host.Tunnel{Exits: []host.ExitTunnel{a}}); err != nil || len(f.all) != 0 || len(d.ports) != 0 {
			t.Errorf("without a main interface: %v, %d interfaces, ports %v", err, len(f.all), d.ports)
		}
	})
}

// start runs the engine and gives what ends it.
func start(t *testing.T, k *Kernels) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- k.Run(ctx) }()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Pins, kicks and the kernel's news are the peer's, whichever interface it is on;
// an idle interface is not read because another is busy, and one that goes is left.
func TestKernelsPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeKernel()
		k, d := newFakes(f)
		defer start(t, k)()
		all := host.Tunnel{Name: "mesh0", Key: key.NewNode(), Peers: somePeers(3)}
		set := func(want host.Tunnel) {
			t.Helper()
			if err := k.Set(t.Context(), want); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		exit, p := exitOf(all.Peers[1]), all.Peers[1].Key
		where := func() (string, fakePeer) {
			if got := f.peerOf(exit.Name, p); got.endpoint.IsValid() {
				return exit.Name, got
			}
			return "mesh0", f.peer(p)
		}
		pin := func(to netip.AddrPort) {
			t.Helper()
			d.point(p, to)
			k.Pin(p, to)
			synctest.Wait()
			if name, got := where(); got.endpoint != to {
				t.Errorf("%s sends to %v, not %v", name, got.endpoint, to)
			}
		}
		set(all)
		pin(direct1)
		set(chosen(all, 1))
		if _, got := where(); got.endpoint != direct1 {
			t.Errorf("a peer that moved is sent to at %v", got.endpoint)
		}
		pin(direct2)
		var done []string
		f.noting(func(s string) { done = append(done, s) })
		k.Kick(p)
		synctest.Wait()
		f.noting(nil)
		if want := []string{exit.Name + " nudges " + p.ShortString()}; !slices.Equal(done, want) {
			t.Errorf("kicked: %q, want %q", done, want)
		}

		pass(time.Minute) // both were looked at
		d.told()
		f.hearOn(exit.Name, p, direct1, 100, 10)
		f.counts()
		pass(pollEvery)
		if _, dumps, _ := f.counts(); dumps != 1 {
			t.Errorf("%d dumps as one interface has news", dumps)
		}
		want := fmt.Sprintf("roamed %s %s\ncarried %s true true", p.ShortString(), direct1, p.ShortString())
		if got := d.told(); got != want {
			t.Errorf("told %q, want %q", got, want)
		}
		if st := k.Stats()[p]; st.Rx != 100 || len(k.Stats()) != 3 {
			t.Errorf("stats %v", k.Stats())
		}
		set(all)
		pin(loopback(p))
		pass(time.Minute)
		f.counts()
		pass(time.Minute)
		if looks, dumps, sets := f.counts(); looks+dumps+sets != 0 {
			t.Errorf("with no direct path: %d looks, %d dumps, %d messages", looks, dumps, sets)
		}
	})
}

// TestKernelsAdopt: the next life finds all interfaces, changes nothing, keeps the
// ports and can remove what it does not want.
func TestKernelsAdopt(t *testing.T) {
	f := newFakeKernel()
	k, d := newFakes(f)
	all := host.Tunnel{Name: "mesh0", Key: key.NewNode(), Peers: somePeers(5)}
	want := chosen(all, 1, 4)
	d.point(want.Exits[0].Peer.Key, direct1)
	f.all["mesh-feedbeef"] = &fakeLink{wgLink: wgLink{index: 99, kind: "dummy"}} // somebody else's
	f.all["mesh-work"] = &fakeLink{wgLink: wgLink{index: 98, kind: wgName}}
	if err := k.Set(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	ports := d.ports
	left, err := find(f, "mesh0")
	if err != nil || left.Name != "mesh0" || left.Port != testPort || len(left.Exits) != 2 ||
		len(left.Direct) != 1 || left.Direct[want.Exits[0].Peer.Key] != direct1 {
		t.Fatalf("left: %+v, %v", left, err)
	}
	for _, e := range left.Exits {
		if ports[e.Peer] != e.Port || host.ExitInterface(e.Peer) != e.Name {
			t.Errorf("left: %+v, ports %v", e, ports)
		}
	}
	f.counts()
	next, d := newFakes(f)
	next.Adopt(left)
	if err := next.Set(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if _, _, n := f.counts(); n != 0 || d.ports[left.Exits[0].Peer] != left.Exits[0].Port || len(d.ports) != 2 {
		t.Errorf("%d messages though nothing differs; ports %v, were %v", n, d.ports, ports)
	}
	if got := d.told(); got != fmt.Sprintf("roamed %s %s", want.Exits[0].Peer.Key.ShortString(), direct1) {
		t.Errorf("told %q", got)
	}
	for _, tt := range []struct {
		want host.Tunnel
		left int
	}{{chosen(all, 4), 4}, {host.Tunnel{}, 2}} {
		next, _ := newFakes(f)
		next.Adopt(left)
		if err := next.Set(t.Context(), tt.want); err != nil || len(f.all) != tt.left {
			t.Errorf("%d interfaces, want %d: %v", len(f.all), tt.left, err)
		}
	}
	delete(f.all, "mesh-feedbeef")
	delete(f.all, "mesh-work")
}

// An interface that somebody set down or deleted comes back, if need be on another
// port.
func TestKernelsRepair(t *testing.T) {
	f := newFakeKernel()
	k, d := newFakes(f)
	want := chosen(host.Tunnel{Name: "mesh0", Key: key.NewNode(), Peers: somePeers(2)}, 0)
	name := want.Exits[0].Name
	for _, harm := range []func(){func() {}, func() { f.all[name].up = false }, func() { delete(f.all, name) }, func() { delete(f.all, "mesh0") }} {
		harm()
		if err := k.Set(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		holdsAll(t, f, d, want)
	}
}

// What fails is said, stops nothing else, and is done by the next Set.
func TestKernelsErrors(t *testing.T) {
	f := newFakeKernel()
	k, d := newFakes(f)
	all := host.Tunnel{Name: "mesh0", Key: key.NewNode(), Peers: somePeers(3)}
	want := chosen(all, 0, 2)
	f.all[want.Exits[0].Name] = &fakeLink{wgLink: wgLink{index: 99, kind: "dummy"}}
	d.err = errFake
	err := k.Set(t.Context(), want)
	if !errors.Is(err, errFake) || !strings.Contains(err.Error(), want.Exits[0].Name) {
		t.Errorf("error %v", err)
	}
	f.holds(t, want)
	if len(d.ports) != 1 || d.ports[want.Exits[1].Peer.Key] == 0 {
		t.Errorf("ports %v", d.ports)
	}
	delete(f.all, want.Exits[0].Name)
	d.err = nil
	if err := k.Set(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	holdsAll(t, f, d, want)
	f.fail = func(int) error { return unix.EBUSY }
	if err := k.Set(t.Context(), all); !errors.Is(err, unix.EBUSY) {
		t.Errorf("error %v", err)
	}
	f.fail = nil
	if err := k.Set(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	holdsAll(t, f, d, all)
}

// TestKernelsWalk goes through states in random order, with restarts; the last
// wish decides what there is.
func TestKernelsWalk(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 1))
	f := newFakeKernel()
	k, d := newFakes(f)
	all := host.Tunnel{Name: "mesh0", Key: key.NewNode(), Peers: somePeers(12)}
	for range 300 {
		want := chosen(all, r.Perm(len(all.Peers))[:r.IntN(5)]...)
		if r.IntN(10) == 0 {
			left, err := find(f, "mesh0")
			if err != nil {
				t.Fatal(err)
			}
			k, d = newFakes(f)
			k.Adopt(left)
		}
		if err := k.Set(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		holdsAll(t, f, d, want)
		if t.Failed() {
			return
		}
	}
}
