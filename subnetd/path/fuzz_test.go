package path

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/mesh"

	"github.com/google/go-cmp/cmp"
	"tailscale.com/types/key"
)

// story turns bytes into events: few peers, few addresses and few regions, so
// that they meet often. It reads what the machine did, to answer some of it.
type story struct {
	bytes []byte
	pings []SendPing // asked by the machine, newest last
}

// next returns the next byte below n; at the end of the story it is 0.
func (s *story) next(n int) int {
	if len(s.bytes) == 0 {
		return 0
	}
	b := s.bytes[0]
	s.bytes = s.bytes[1:]
	return int(b) % n
}

func (s *story) node() mesh.Node {
	n := node(byte(2 + s.next(4)))
	switch s.next(8) {
	case 0:
		n.Disco = key.DiscoPublic{}
	case 1:
		n.Disco = discoKey(2) // shared
	case 2:
		n.Disco = discoKey(99) // restarted
	}
	n.HomeRelay = s.next(3)
	n.Endpoints = s.addrs()
	return n
}

func (s *story) addr() netip.AddrPort {
	odd := []string{"0.0.0.0:1", "127.3.3.40:1", "100.64.0.2:1", "[fe80::1]:1", "[fd00::1]:1", "[2001:db8::1]:1", "192.168.1.1:1", "[::ffff:10.0.0.1]:41641", "10.0.0.2:0"}
	if i := s.next(4 * len(odd)); i < len(odd) {
		return addr(odd[i])
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(s.next(64))}), 41641)
}

func (s *story) addrs() []netip.AddrPort {
	var all []netip.AddrPort
	for range s.next(40) {
		all = append(all, s.addr())
	}
	return all
}

func (s *story) source() Source {
	n := node(byte(2 + s.next(5)))
	if s.next(3) == 0 {
		return Source{Region: s.next(3), Node: n.Key}
	}
	return Source{Addr: s.addr()}
}

func (s *story) event() Event {
	n := node(byte(2 + s.next(5)))
	switch s.next(18) {
	case 0:
		var nodes []mesh.Node
		for range s.next(5) {
			nodes = append(nodes, s.node())
		}
		return SetPeers{nodes}
	case 1:
		return SetLocal{Endpoints: s.addrs(), UDP: s.next(2) == 0, V6: s.next(2) == 0}
	case 2, 3:
		return Sent{n.Key}
	case 4:
		return Received{n.Key, s.source()}
	case 5, 6:
		return Ping{From: s.source(), Sender: n.Disco, TxID: foreign(uint32(s.next(256))), Node: node(byte(s.next(6))).Key}
	case 7, 8, 9:
		if len(s.pings) > 0 {
			p := s.pings[len(s.pings)-1-s.next(len(s.pings))%len(s.pings)]
			return Pong{From: p.To, Sender: p.Disco, TxID: p.TxID}
		}
		return Pong{From: s.source(), Sender: n.Disco, TxID: foreign(1)}
	case 10:
		return CallMeMaybe{From: Source{Region: 1 + s.next(2), Node: n.Key}, Sender: n.Disco, Endpoints: s.addrs()}
	case 11:
		return RelayGone{n.Key, s.next(3)}
	case 12:
		return Probe{n.Key, uint64(s.next(256))}
	case 13, 14:
		return Roamed{n.Key, s.addr()}
	case 15, 16:
		if len(s.pings) > 0 { // from where the peer may be
			p := s.pings[len(s.pings)-1]
			return Received{p.Peer, p.To}
		}
	}
	return Rebind{}
}

// pause is how long the story rests before the next event; negative: the
// clock is set back.
func (s *story) pause() time.Duration {
	switch s.next(16) {
	case 0:
		return -time.Minute
	case 1:
		return time.Hour
	case 2, 3, 4:
		return time.Duration(s.next(50)) * time.Second
	}
	return time.Duration(s.next(256)) * 10 * time.Millisecond
}

// tell runs the story to its end, and then on until the machine is quiet.
func tell(t testing.TB, data []byte) []Action {
	t.Helper()
	s := &story{bytes: data}
	r := newRig(t, node(2, ownA), node(3), node(4, ownB, ownA))
	var all []Action
	w := witness{rig: r, in: map[place]time.Time{}, asked: map[place]time.Time{}, unheard: map[place]time.Time{}, roamed: map[key.NodePublic]time.Time{}, direct: map[key.NodePublic]bool{}}
	r.watch = func(out []Action) { w.see(t, out) }
	take := func(out []Action) {
		all = append(all, out...)
		s.pings = append(s.pings, of[SendPing](out)...)
		s.pings = s.pings[max(0, len(s.pings)-200):]
	}
	for len(s.bytes) > 0 {
		d := s.pause()
		if d < 0 {
			r.now = r.now.Add(d)
		} else {
			take(r.wait(d))
		}
		before := len(of[SendPing](all))
		w.waits(t)
		e := s.event()
		w.hear(e)
		take(r.step(e))
		if n := len(of[SendPing](all)) - before; n > 5*maxCandidates {
			t.Fatalf("one event made %d pings", n)
		}
		if w := r.m.Wake(); !w.IsZero() && w.Before(r.now.Add(-time.Minute)) {
			t.Fatalf("wake is %v ago", r.now.Sub(w))
		}
	}
	// wait fails on a busy loop. A time set back at the end is no excuse.
	r.now = later(r.now, r.m.now)
	take(r.wait(10 * time.Minute))
	if w := r.m.Wake(); !w.IsZero() {
		t.Fatalf("10 minutes after the last event a Tick is wanted in %v", w.Sub(r.now))
	}
	checkAnswers(t, all)
	return all
}

// place is a peer at an address.
type place struct {
	peer key.NodePublic
	addr netip.AddrPort
}

// witness sees what goes in and out, and knows by that alone when a path may be
// doubted, and when the kernel has to be told where to go.
type witness struct {
	*rig
	in      map[place]time.Time // the last that came from there
	asked   map[place]time.Time // the first ping after the last pong from there
	unheard map[place]time.Time // the first ping after the last anything
	roamed  map[key.NodePublic]time.Time
	direct  map[key.NodePublic]bool // is trusted, and the kernel does as it was told
}

// time is what the machine takes for now.
func (w *witness) time() time.Time { return later(w.m.now, w.now) }

// hear notes an event that is about to happen.
func (w *witness) hear(e Event) {
	switch e := e.(type) {
	case Received:
		at := place{e.Peer, unmap(e.From.Addr)}
		w.in[at] = w.time()
		delete(w.unheard, at)
	case Pong:
		if p, ok := w.m.pings[e.TxID]; ok && w.time().Before(p.at.Add(pingTimeout)) && p.peer.disco == e.Sender {
			at := place{p.peer.key, p.to.Addr}
			delete(w.asked, at)
			delete(w.unheard, at)
		}
	case Roamed:
		delete(w.direct, e.Peer)
		if _, waits := w.roamed[e.Peer]; !waits && w.m.peers[e.Peer] != nil {
			w.roamed[e.Peer] = w.time()
		}
	case Rebind:
		clear(w.asked)
		clear(w.unheard)
	}
}

// see judges what the machine does.
func (w *witness) see(t testing.TB, out []Action) {
	t.Helper()
	for _, a := range out {
		switch a := a.(type) {
		case SendPing:
			for _, m := range []map[place]time.Time{w.asked, w.unheard} {
				if at := (place{a.Peer, a.To.Addr}); m[at].IsZero() {
					m[at] = w.time()
				}
			}
		case Use:
			delete(w.roamed, a.Peer)
			direct := w.direct[a.Peer]
			w.direct[a.Peer] = w.m.peers[a.Peer] != nil && w.m.peers[a.Peer].trusted(w.time())
			at := place{a.Peer, a.Addr}
			hushed, unheard, unanswered := w.time().Sub(w.in[at]), w.time().Sub(w.unheard[at]), w.time().Sub(w.asked[at])
			switch p := w.m.peers[a.Peer]; {
			case p == nil || p.best == nil || a.Region == 0 || !direct:
			case p.doubt == silent && (hushed < saidFor+doubtAfter || unheard < doubtAfter):
				t.Fatalf("doubted for silence %v after the last from there, %v after it was asked", hushed, unheard)
			case p.doubt == deaf && unanswered < deafAfter:
				t.Fatalf("doubted %v after it was asked", unanswered)
			}
		}
	}
}

// waits fails if the kernel was left alone for too long.
func (w *witness) waits(t testing.TB) {
	t.Helper()
	for k, since := range w.roamed {
		if w.m.peers[k] == nil {
			delete(w.roamed, k)
		} else if w.time().Sub(since) > roamWait {
			t.Fatalf("the kernel went its way %v ago, and was told nothing", w.time().Sub(since))
		}
	}
}

// checkAnswers: every action must be one that can be done.
func checkAnswers(t testing.TB, all []Action) {
	t.Helper()
	for _, a := range all {
		switch a := a.(type) {
		case SendPing:
			if a.Disco.IsZero() || a.To.Addr.IsValid() == (a.To.Region != 0) {
				t.Fatalf("cannot be sent: %+v", a)
			}
		case SendPong:
			if a.Disco.IsZero() || a.To.Addr.IsValid() == (a.To.Region != 0) || !a.Src.IsValid() {
				t.Fatalf("cannot be sent: %+v", a)
			}
		case SendCallMeMaybe:
			if a.Disco.IsZero() || a.Region == 0 || len(a.Endpoints) == 0 {
				t.Fatalf("cannot be sent: %+v", a)
			}
		case Use:
			if (a.Path.Kind == mesh.PathDirect) != a.Addr.IsValid() || a.Path.Addr != a.Addr || a.Path.Relay != a.Region {
				t.Fatalf("says %+v, does %v and relay %d", a.Path, a.Addr, a.Region)
			}
		}
	}
}

func randomStory(seed uint64, n int) []byte {
	rnd := rand.New(rand.NewPCG(seed, seed))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

// FuzzMachine tells random stories.
func FuzzMachine(f *testing.F) {
	f.Add([]byte{})
	for seed := range turns(60, 6) {
		f.Add(randomStory(uint64(seed), 600))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 4096 {
			t.Skip("long stories say nothing that short ones do not")
		}
		tell(t, data)
	})
}

// TestSameStoryTwice: the machine has no luck of its own.
func TestSameStoryTwice(t *testing.T) {
	for seed := range turns(20, 2) {
		b := randomStory(uint64(seed), 600)
		if one, two := tell(t, b), tell(t, b); !reflect.DeepEqual(one, two) {
			t.Fatalf("seed %d:\n%s", seed, cmp.Diff(one, two, byValue()))
		}
	}
}

// TestStoriesGoEverywhere: a fuzz test whose stories never reach a direct path
// would prove little.
func TestStoriesGoEverywhere(t *testing.T) {
	seen := map[string]int{}
	for seed := range uint64(60) {
		for _, a := range tell(t, randomStory(seed, 600)) {
			switch a := a.(type) {
			case Use:
				seen["use "+string(a.Path.Kind)]++
				if a.Addr.IsValid() && a.Region != 0 {
					seen["doubt"]++
				}
				for what, words := range map[string]string{"silent": "nothing came from there", "deaf": "not to hear us"} {
					if strings.Contains(a.Path.Reason, words) {
						seen[what]++
					}
				}
			case SendPing:
				seen["ping"]++
			case SendPong:
				seen["pong"]++
			case SendCallMeMaybe:
				seen["call"]++
			case Answered:
				seen["answered "+string(a.Path.Kind)]++
			}
		}
	}
	for _, what := range []string{"use none", "use relay", "use direct", "doubt", "ping", "pong", "call", "answered none", "answered direct", "silent"} {
		if seen[what] < 5 {
			t.Errorf("%q happened %d times in all stories", what, seen[what])
		}
	}
}
