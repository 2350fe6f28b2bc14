package tunnel

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"subnetd/subnetd/host"

	"golang.org/x/sys/unix"
	"tailscale.com/types/key"
)

// fakeKernel behaves as the kernel's WireGuard does.
type fakeKernel struct {
	mu    sync.Mutex
	all   map[string]*fakeLink
	made  uint32
	sets  []wgSet // all there were
	looks int     // at links
	dumps int
	taken uint16            // a port that is somebody else's
	fail  func(n int) error // of the n-th set; nil: none
	torn  int               // so many of the next dumps are interrupted
	note  func(string)      // told of what is done to which interface; nil: nobody
}

// noting has what is done from now on told to note, under f.mu.
func (f *fakeKernel) noting(note func(string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.note = note
}

func (f *fakeKernel) tell(format string, args ...any) {
	if f.note != nil {
		f.note(fmt.Sprintf(format, args...))
	}
}

type fakeLink struct {
	wgLink
	device wgDevice
	peers  map[key.NodePublic]*fakePeer
}

type fakePeer struct {
	wgPeer
	life uint32 // another for each time it was made
}

func newFakeKernel() *fakeKernel { return &fakeKernel{all: map[string]*fakeLink{}} }

func (f *fakeKernel) link(name string) (wgLink, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks++
	l := f.all[name]
	if l == nil {
		return wgLink{}, nil
	}
	got := l.wgLink
	for _, p := range l.peers {
		got.rx += p.stat.Rx
		got.tx += p.stat.Tx
	}
	return got, nil
}

func (f *fakeKernel) links() ([]wgLink, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []wgLink
	for name, l := range f.all {
		own := l.wgLink
		own.name = name
		all = append(all, own)
	}
	return all, nil
}

func (f *fakeKernel) create(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all[name] != nil {
		return unix.EEXIST
	}
	f.tell("make %s", name)
	f.made++
	f.all[name] = &fakeLink{wgLink: wgLink{index: f.made, kind: wgName, mtu: host.MTU}, peers: map[key.NodePublic]*fakePeer{}}
	return nil
}

func (f *fakeKernel) byIndex(l wgLink) (string, *fakeLink) {
	for name, have := range f.all {
		if have.index == l.index {
			return name, have
		}
	}
	return "", nil
}

func (f *fakeKernel) start(l wgLink) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, have := f.byIndex(l)
	if have == nil {
		return unix.ENODEV
	}
	if f.taken != 0 && have.device.port == f.taken {
		return unix.EADDRINUSE
	}
	have.up, have.mtu = true, host.MTU
	if have.device.port == 0 {
		f.made++
		have.device.port = 50000 + uint16(f.made)
	}
	return nil
}

func (f *fakeKernel) remove(l wgLink) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	name, have := f.byIndex(l)
	if have == nil {
		return unix.ENODEV
	}
	f.tell("delete %s", name)
	delete(f.all, name)
	return nil
}

func (f *fakeKernel) dump(name string, each func(*wgPeer)) (wgDevice, error) {
	f.mu.Lock()
	f.dumps++
	l := f.all[name]
	var peers []wgPeer
	var device wgDevice
	if l != nil {
		device = l.device
		for _, p := range l.peers {
			peers = append(peers, p.wgPeer)
		}
	}
	torn := f.torn > 0
	f.torn -= min(f.torn, 1)
	f.mu.Unlock()
	if l == nil {
		return wgDevice{}, unix.ENODEV
	}
	if torn {
		peers = peers[:len(peers)/2]
	}
	for i := range peers {
		own := peers[i]
		own.allowed = slices.Clone(own.allowed)
		slices.Reverse(own.allowed) // the kernel has an order of its own
		each(&own)
		clear(own.allowed) // and its bytes are used again
	}
	if torn {
		return device, errInterrupted
	}
	return device, nil
}

func (f *fakeKernel) set(name string, s *wgSet) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.all[name]
	if l == nil {
		return unix.ENODEV
	}
	f.sets = append(f.sets, wgSet{device: s.device, bare: s.bare, peers: slices.Clone(s.peers)})
	if f.fail != nil {
		if err := f.fail(len(f.sets)); err != nil {
			return err
		}
	}
	if s.device != nil {
		if l.up && s.device.port == f.taken && f.taken != 0 {
			return unix.EADDRINUSE
		}
		if s.bare {
			clear(l.peers)
		}
		l.device = *s.device
	}
	for i := range s.peers {
		f.tell("%s %s %s", name, s.peers[i].verb(), s.peers[i].key.ShortString())
		f.setPeer(l, &s.peers[i])
	}
	return nil
}

// verb is what becomes of a peer, in a word.
func (c *wgChange) verb() string {
	switch {
	case c.add && c.remove:
		return "renews"
	case c.add:
		return "adds"
	case c.remove:
		return "drops"
	case c.nudge:
		return "nudges"
	case c.replace:
		return "changes"
	}
	return "aims"
}

func (f *fakeKernel) setPeer(l *fakeLink, c *wgChange) {
	if c.remove {
		delete(l.peers, c.key)
		if !c.add {
			return
		}
	}
	p := l.peers[c.key]
	if p == nil {
		if !c.add {
			return
		}
		f.made++
		p = &fakePeer{wgPeer: wgPeer{key: c.key}, life: f.made}
		l.peers[c.key] = p
	}
	if c.aim {
		p.endpoint = c.endpoint
	}
	if c.replace {
		p.allowed = nil
	}
	for _, a := range c.allowed {
		for _, other := range l.peers {
			other.allowed = slices.DeleteFunc(other.allowed, func(b netip.Prefix) bool { return a == b })
		}
		p.allowed = append(p.allowed, a)
	}
}

func (f *fakeKernel) close() error { return nil }

// peer is one of mesh0's.
func (f *fakeKernel) peer(k key.NodePublic) fakePeer { return f.peerOf("mesh0", k) }

func (f *fakeKernel) peerOf(name string, k key.NodePublic) fakePeer {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l := f.all[name]; l != nil && l.peers[k] != nil {
		return *l.peers[k]
	}
	return fakePeer{}
}

// hear has data of the peer come from that address, and the tunnel answer.
func (f *fakeKernel) hear(k key.NodePublic, from netip.AddrPort, rx, tx uint64) {
	f.hearOn("mesh0", k, from, rx, tx)
}

func (f *fakeKernel) hearOn(name string, k key.NodePublic, from netip.AddrPort, rx, tx uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.all[name].peers[k]
	if from.IsValid() {
		p.endpoint = from
	}
	p.stat.Rx += rx
	p.stat.Tx += tx
	p.stat.Handshake = time.Unix(1, 0)
}

// counts are the questions and orders since the last call.
func (f *fakeKernel) counts() (looks, dumps, sets int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	looks, dumps, sets = f.looks, f.dumps, len(f.sets)
	f.looks, f.dumps, f.sets = 0, 0, nil
	return looks, dumps, sets
}

// holds compares what the kernel has with what was wanted.
func (f *fakeKernel) holds(t *testing.T, want host.Tunnel) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.all[want.Name]
	if l == nil || !l.up || l.device.private != clamped(want.Key) {
		t.Fatalf("interface %+v", l)
	}
	if len(l.peers) != len(want.Peers) {
		t.Errorf("%d peers, want %d", len(l.peers), len(want.Peers))
	}
	for _, p := range want.Peers {
		have := l.peers[p.Key]
		if have == nil {
			t.Errorf("peer %s is missing", p.Key.ShortString())
			continue
		}
		if !slices.Equal(sorted(have.allowed), sorted(p.AllowedIPs)) {
			t.Errorf("peer %s has %v, want %v", p.Key.ShortString(), have.allowed, p.AllowedIPs)
		}
		if !have.endpoint.IsValid() {
			t.Errorf("peer %s has no endpoint", p.Key.ShortString())
		}
	}
}

// fakeWays is an underlay that sends to every peer's loopback endpoint unless
// told otherwise.
type fakeWays struct {
	mu     sync.Mutex
	direct map[key.NodePublic]netip.AddrPort
	news   []string
}

func (w *fakeWays) Endpoint(k key.NodePublic) netip.AddrPort {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a, ok := w.direct[k]; ok {
		return a
	}
	return loopback(k)
}

func (w *fakeWays) point(k key.NodePublic, to netip.AddrPort) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.direct == nil {
		w.direct = map[key.NodePublic]netip.AddrPort{}
	}
	w.direct[k] = to
}

func (w *fakeWays) Carried(k key.NodePublic, sent, received bool) {
	w.tell(fmt.Sprintf("carried %s %v %v", k.ShortString(), sent, received))
}

func (w *fakeWays) Roamed(k key.NodePublic, to netip.AddrPort) {
	w.tell(fmt.Sprintf("roamed %s %s", k.ShortString(), to))
}

func (w *fakeWays) tell(s string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.news = append(w.news, s)
}

// told gives the news since the last call.
func (w *fakeWays) told() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := strings.Join(w.news, "\n")
	w.news = nil
	return s
}

func loopback(k key.NodePublic) netip.AddrPort {
	raw := k.AppendTo(nil)
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 64 + raw[0]%64, raw[1], raw[2]}), 4242)
}

// somePeers are n peers with two addresses each.
func somePeers(n int) []host.Peer {
	var all []host.Peer
	for i := range n {
		all = append(all, host.Peer{Key: key.NewNode().Public(), Session: "1", AllowedIPs: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 65, byte(i / 250), byte(1 + i%250)}), 32),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 14: byte(i / 250), 15: byte(1 + i%250)}), 128),
		}})
	}
	slices.SortFunc(all, func(a, b host.Peer) int { return a.Key.Compare(b.Key) })
	return all
}

// copyPeers is a deep copy, to be changed.
func copyPeers(peers []host.Peer) []host.Peer {
	all := slices.Clone(peers)
	for i := range all {
		all[i].AllowedIPs = slices.Clone(all[i].AllowedIPs)
	}
	return all
}

// lives are the times each peer was made.
func (f *fakeKernel) lives() map[key.NodePublic]uint32 {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := map[key.NodePublic]uint32{}
	for k, p := range f.all["mesh0"].peers {
		all[k] = p.life
	}
	return all
}

// reborn are the peers that have a new life.
func reborn(before, after map[key.NodePublic]uint32) []key.NodePublic {
	return slices.SortedFunc(maps.Keys(maps.Collect(func(yield func(key.NodePublic, uint32) bool) {
		for k, l := range after {
			if was, ok := before[k]; ok && was != l && !yield(k, l) {
				return
			}
		}
	})), key.NodePublic.Compare)
}

var errFake = errors.New("out of order")
