package path

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"subnetd/subnetd/mesh"

	"github.com/google/go-cmp/cmp"
	"tailscale.com/types/key"
)

const (
	ownA = "198.51.100.2:41641" // where the peer of most tests is
	ownB = "198.51.100.3:41641"
)

func TestNewPeerGoesByRelay(t *testing.T) {
	r := newRig(t)
	b := node(2, ownA)
	u := lastUse(t, r.step(SetPeers{Peers: []mesh.Node{b}}))
	if u.Peer != b.Key || u.Addr.IsValid() || u.Region != 1 || u.Path.Kind != mesh.PathRelay {
		t.Errorf("first Use is %+v, want relay 1", u)
	}
	if !r.m.Wake().IsZero() {
		t.Error("a peer nobody speaks to wants a Tick")
	}
	if out := r.step(SetPeers{Peers: []mesh.Node{b}}); len(out) > 0 {
		t.Errorf("the same peers again do %v", out)
	}
}

// TestDeadPath follows a direct path through death and recovery.
func TestDeadPath(t *testing.T) {
	b := node(2, ownA)
	r := localRig(t, b)
	r.direct(b, addr(ownA), 10*time.Millisecond)
	r.talk(b.Key, 20*time.Second, 10*time.Millisecond)
	r.wantPath(b, mesh.PathDirect, addr(ownA))

	died := r.now
	var doubt, dead time.Duration
	for r.now.Sub(died) < 40*time.Second {
		out := r.step(Sent{Peer: b.Key})
		out = append(out, r.wait(100*time.Millisecond)...)
		for _, u := range of[Use](out) {
			switch {
			case u.Addr.IsValid() && u.Region == 1 && doubt == 0:
				doubt = r.now.Sub(died)
			case !u.Addr.IsValid() && u.Region == 1 && dead == 0:
				dead = r.now.Sub(died)
			case u.Region != 1:
				t.Fatalf("after %v: %+v", r.now.Sub(died), u)
			}
		}
	}
	if doubt == 0 || doubt > trustFor+200*time.Millisecond {
		t.Errorf("doubted after %v, want %v at most", doubt, trustFor)
	}
	if lim := heartbeatEvery + deadAfter + 200*time.Millisecond; dead <= doubt || dead > lim {
		t.Errorf("relay only after %v, want %v at most", dead, lim)
	}

	back := r.now
	for r.m.Path(b.Key).Kind != mesh.PathDirect {
		out := r.step(Sent{Peer: b.Key})
		out = append(out, r.wait(100*time.Millisecond)...)
		r.answer(out, 10*time.Millisecond)
		if r.now.Sub(back) > pingEvery+time.Second {
			t.Fatalf("not found again %v after it came back: %s", r.now.Sub(back), r.m.Path(b.Key).Reason)
		}
	}
	if p := r.m.Path(b.Key); p.Relay != 0 || p.Reason != "" {
		t.Errorf("path is %+v, want purely direct", p)
	}
}

// TestDeadPathElsewhere: while one address dies another that answers is taken,
// and nothing but the direct way is used once it is trusted.
func TestDeadPathElsewhere(t *testing.T) {
	b := node(2, ownA, ownB)
	r := localRig(t, b)
	r.direct(b, addr(ownA), 10*time.Millisecond)
	out := r.talk(b.Key, 20*time.Second, 10*time.Millisecond, addr(ownA))
	r.wantPath(b, mesh.PathDirect, addr(ownB))
	for _, u := range of[Use](out) {
		if !u.Addr.IsValid() {
			t.Errorf("fell back to %+v, though another address answers", u)
		}
	}
}

func TestHeartbeat(t *testing.T) {
	b := node(2, ownA)
	r := localRig(t, b)
	r.direct(b, addr(ownA), time.Millisecond)
	f := flow{out: 50 * time.Millisecond, in: 50 * time.Millisecond, from: at(ownA), rtt: 10 * time.Millisecond}
	out := r.carry(b, 60*time.Second, f)
	if n := len(of[SendPing](out)); n < 19 || n > 21 {
		t.Errorf("%d pings in a minute, want one every %v", n, heartbeatEvery)
	}
	if n := len(of[SendCallMeMaybe](out)) + len(of[Use](out)) + len(of[Restun](out)); n > 0 {
		t.Errorf("a path that works made %v", out)
	}
}

// TestIdle: nothing is sent when nothing is wanted, and no Tick asked for.
func TestIdle(t *testing.T) {
	b, c := node(2, ownA), node(3, ownB)
	r := localRig(t, b, c)
	if out := r.wait(24 * time.Hour); len(out) > 0 || !r.m.Wake().IsZero() {
		t.Fatalf("unused peers do %v, wake %v", out, r.m.Wake())
	}
	r.direct(b, addr(ownA), time.Millisecond)
	r.talk(b.Key, 10*time.Second, time.Millisecond)
	out := r.live(nil, sessionActive+trustFor+time.Second, time.Millisecond)
	if u := lastUse(t, out); !u.Addr.IsValid() || u.Region != 1 {
		t.Errorf("idle path is %+v, want both ways", u)
	}
	if out := r.wait(24 * time.Hour); len(out) > 0 || !r.m.Wake().IsZero() {
		t.Fatalf("idle again, but does %v, wake %v", out, r.m.Wake())
	}
	// The first packet after the silence looks for the path at once.
	out = r.step(Sent{Peer: b.Key})
	if !slices.Contains(pinged(out), addr(ownA)) {
		t.Fatalf("first packet after the silence made %v", out)
	}
	r.answer(out, time.Millisecond)
	r.wantPath(b, mesh.PathDirect, addr(ownA))
}

func TestRebind(t *testing.T) {
	b, c, d := node(2, ownA), node(3, ownB), node(4, "198.51.100.4:1")
	r := localRig(t, b, c, d)
	r.direct(b, addr(ownA), time.Millisecond)
	r.direct(c, addr(ownB), time.Millisecond)
	late := r.step(Probe{Peer: b.Key, ID: 7})

	out := r.step(Rebind{})
	if len(of[Restun](out)) != 1 {
		t.Errorf("%d Restun, want 1", len(of[Restun](out)))
	}
	doubted := map[key.NodePublic]bool{}
	for _, u := range of[Use](out) {
		doubted[u.Peer] = u.Addr.IsValid() && u.Region == 1
	}
	if want := map[key.NodePublic]bool{b.Key: true, c.Key: true}; !cmp.Equal(doubted, want, byValue()) {
		t.Errorf("doubted %v, want both that were direct", doubted)
	}
	if got := pinged(out); !slices.Contains(got, addr(ownA)) || !slices.Contains(got, addr(ownB)) || len(got) != 2 {
		t.Errorf("pinged %v, want the two in use", got)
	}
	if len(of[SendCallMeMaybe](out)) > 0 {
		t.Error("told endpoints that are no longer ours")
	}
	// A pong for a ping from the old address says nothing of the new one.
	for _, p := range of[SendPing](late) {
		r.step(Pong{From: p.To, Sender: p.Disco, TxID: p.TxID})
	}
	if p := r.m.Path(b.Key); p.Relay != 1 {
		t.Errorf("a pong from before counts: %+v", p)
	}
	// New endpoints are told to both.
	out = r.step(SetLocal{Endpoints: addrs("203.0.113.99:5"), UDP: true})
	calls := of[SendCallMeMaybe](out)
	if len(calls) != 2 || !slices.Equal(calls[0].Endpoints, addrs("203.0.113.99:5")) {
		t.Errorf("new endpoints made %v", out)
	}
}

func TestRelayGone(t *testing.T) {
	b := node(2)
	r := localRig(t, b)
	r.step(Received{Peer: b.Key, From: over(b, 5)})
	if u := r.m.Path(b.Key); u.Relay != 1 {
		t.Fatalf("heard over 5, so %+v: the home goes first", u)
	}
	steps := []struct {
		name   string
		event  Event
		region int
		reason string
	}{
		{"home gone", RelayGone{b.Key, 1}, 5, "peer has no addresses"},
		{"the other too", RelayGone{b.Key, 5}, 1, "relay 1 does not reach the peer; peer has no addresses"},
		{"heard at home", Received{b.Key, over(b, 1)}, 1, "peer has no addresses"},
		{"no region", RelayGone{b.Key, 0}, 1, "peer has no addresses"},
		{"no such peer", RelayGone{nodeKey(9), 1}, 1, "peer has no addresses"},
		{"over UDP", Received{b.Key, at(ownA)}, 1, "peer has no addresses"},
	}
	for _, s := range steps {
		r.step(s.event)
		if p := r.m.Path(b.Key); p.Relay != s.region || p.Reason != s.reason {
			t.Errorf("%s: relay %d, %q; want %d, %q", s.name, p.Relay, p.Reason, s.region, s.reason)
		}
	}
	b.HomeRelay = 8
	r.step(Received{b.Key, over(b, 5)})
	r.step(RelayGone{b.Key, 1})
	if u := lastUse(t, r.step(SetPeers{Peers: []mesh.Node{b}})); u.Region != 8 {
		t.Errorf("new home 8: %+v", u)
	}
}

func TestNoHome(t *testing.T) {
	b := node(2)
	b.HomeRelay = 0
	r := localRig(t, b)
	if p := r.m.Path(b.Key); p.Kind != mesh.PathNone || p.Reason != "the peer has no relay; peer has no addresses" {
		t.Errorf("no home: %+v", p)
	}
	if out := r.step(Sent{Peer: b.Key}); len(of[SendCallMeMaybe](out)) > 0 {
		t.Error("called over no relay")
	}
	if u := lastUse(t, r.step(Received{Peer: b.Key, From: over(b, 3)})); u.Region != 3 || u.Path.Kind != mesh.PathRelay {
		t.Errorf("heard over 3: %+v", u)
	}
}

func TestNewDiscoKeyForgets(t *testing.T) {
	b := node(2, ownA)
	r := localRig(t, b)
	r.direct(b, addr(ownA), time.Millisecond)
	old := r.step(Probe{Peer: b.Key, ID: 1})

	b2 := b
	b2.Disco = discoKey(22)
	out := r.step(SetPeers{Peers: []mesh.Node{b2}})
	if u := lastUse(t, out); u.Addr.IsValid() || u.Region != 1 {
		t.Errorf("restarted peer: %+v, want relay", u)
	}
	if p := of[SendPing](out); len(p) != 1 || p[0].Disco != b2.Disco {
		t.Errorf("in use, so the new key should be pinged at once: %v", out)
	}
	for _, p := range of[SendPing](old) {
		for _, sender := range []key.DiscoPublic{b.Disco, b2.Disco} {
			r.step(Pong{From: p.To, Sender: sender, TxID: p.TxID})
		}
	}
	r.wantPath(b, mesh.PathRelay, netip.AddrPort{})
	if out := r.step(Ping{From: at(ownA), Sender: b.Disco, TxID: foreign(1), Node: b.Key}); len(out) > 0 {
		t.Errorf("the old key is answered: %v", out)
	}
	r.answer(out, time.Millisecond)
	r.wantPath(b, mesh.PathDirect, addr(ownA))
}

func TestRemovedPeer(t *testing.T) {
	b, c := node(2, ownA), node(3, ownB)
	r := localRig(t, b, c)
	r.direct(b, addr(ownA), time.Millisecond)
	r.direct(c, addr(ownB), time.Millisecond)
	pings := r.step(Probe{Peer: b.Key, ID: 5})

	out := r.step(SetPeers{Peers: []mesh.Node{c}})
	want := []Action{Answered{ID: 5, Path: mesh.Path{Kind: mesh.PathNone, Reason: "no such peer"}}}
	if d := cmp.Diff(want, out, byValue()); d != "" {
		t.Errorf("removing (-want +got):\n%s", d)
	}
	if p := r.m.Path(b.Key); p.Kind != mesh.PathNone || p.Reason != "no such peer" {
		t.Errorf("path of a removed peer: %+v", p)
	}
	events := []Event{
		Sent{b.Key}, Received{b.Key, at(ownA)}, Received{b.Key, over(b, 1)}, RelayGone{b.Key, 1},
		Ping{From: at(ownA), Sender: b.Disco, TxID: foreign(1), Node: b.Key},
		Ping{From: over(b, 1), Sender: b.Disco, TxID: foreign(2), Node: b.Key},
		Pong{From: at(ownA), Sender: b.Disco, TxID: of[SendPing](pings)[0].TxID},
		CallMeMaybe{From: over(b, 1), Sender: b.Disco, Endpoints: addrs(ownA)},
	}
	for _, e := range events {
		if out := r.step(e); len(out) > 0 {
			t.Errorf("%+v of a removed peer does %v", e, out)
		}
	}
	r.wantPath(c, mesh.PathDirect, addr(ownB))

	// It comes back as a new one.
	if u := lastUse(t, r.step(SetPeers{Peers: []mesh.Node{b, c}})); u.Peer != b.Key || u.Addr.IsValid() {
		t.Errorf("back: %+v", u)
	}
}

func TestProbe(t *testing.T) {
	b, mute := node(2, ownA), node(3)
	mute.Disco = key.DiscoPublic{}
	none := mesh.Path{Kind: mesh.PathNone}
	relay := mesh.Path{Kind: mesh.PathRelay, Relay: 1, RTT: 40 * time.Millisecond}
	direct := mesh.Path{Kind: mesh.PathDirect, Addr: addr(ownA), RTT: 40 * time.Millisecond}
	tests := []struct {
		name   string
		peer   key.NodePublic
		answer func(SendPing) bool
		want   mesh.Path
		reason string
	}{
		{"unknown", nodeKey(9), nil, none, "no such peer"},
		{"no disco key", mute.Key, nil, none, "the peer has no disco key, so it cannot be asked"},
		{"silent", b.Key, func(SendPing) bool { return false }, none, "no answer within 5 s"},
		{"relay", b.Key, func(p SendPing) bool { return p.To.relayed() }, relay, ""},
		{"direct", b.Key, func(p SendPing) bool { return !p.To.relayed() }, direct, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := localRig(t, b, mute)
			out := r.step(Probe{Peer: tt.peer, ID: 77})
			pings := of[SendPing](out)
			out = append(out, r.wait(40*time.Millisecond)...)
			for _, p := range pings {
				if tt.answer(p) {
					out = append(out, r.step(Pong{From: p.To, Sender: p.Disco, TxID: p.TxID})...)
				}
			}
			out = append(out, r.wait(20*time.Second)...)
			tt.want.Reason = tt.reason
			if d := cmp.Diff([]Answered{{ID: 77, Path: tt.want}}, of[Answered](out), byValue()); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestProbesAreBounded: each one asked for is answered exactly once, too many
// at once are refused.
func TestProbesAreBounded(t *testing.T) {
	b := node(2, ownA)
	r := localRig(t, b)
	answers := map[uint64]int{}
	refused := 0
	var out []Action
	for id := range uint64(50) {
		out = append(out, r.step(Probe{Peer: b.Key, ID: id})...)
	}
	if n := len(of[SendPing](out)); n > 2*maxProbes+1 {
		t.Errorf("50 probes at once sent %d pings", n)
	}
	out = append(out, r.wait(pingTimeout)...)
	for _, a := range of[Answered](out) {
		answers[a.ID]++
		if a.Path.Reason == "too many pings of this peer at once" {
			refused++
		}
	}
	if refused != 50-maxProbes {
		t.Errorf("%d refused, want %d", refused, 50-maxProbes)
	}
	for id := range uint64(50) {
		if answers[id] != 1 {
			t.Errorf("probe %d was answered %d times", id, answers[id])
		}
	}
}

// TestProbeLatePong: an answer to a ping from before the probe is none to it.
func TestProbeLatePong(t *testing.T) {
	b := node(2, ownA)
	r := localRig(t, b)
	before := of[SendPing](r.step(Sent{Peer: b.Key}))
	r.wait(time.Second)
	r.step(Probe{Peer: b.Key, ID: 1})
	out := r.step(Pong{From: before[0].To, Sender: b.Disco, TxID: before[0].TxID})
	if got := of[Answered](out); len(got) > 0 {
		t.Errorf("an older pong answered the probe: %v", got)
	}
}

// TestTimeGoesBack: a clock that is set back neither confuses nor wakes.
func TestTimeGoesBack(t *testing.T) {
	b := node(2, ownA)
	r, q := localRig(t, b), localRig(t, b)
	back := func(e Event) []Action { return q.m.Step(q.now.Add(-time.Hour), e) }
	r.direct(b, addr(ownA), time.Millisecond)
	q.direct(b, addr(ownA), time.Millisecond)
	for _, e := range []Event{Tick{}, Sent{b.Key}, Probe{b.Key, 3}, Rebind{}, Tick{}} {
		if d := cmp.Diff(r.step(e), back(e), byValue()); d != "" {
			t.Errorf("%T an hour ago differs from now:\n%s", e, d)
		}
	}
	if !r.m.Wake().Equal(q.m.Wake()) {
		t.Errorf("wake %v, want %v", q.m.Wake(), r.m.Wake())
	}
}

// TestOrderOfPeers: in which order the coordinator names the peers says nothing.
func TestOrderOfPeers(t *testing.T) {
	b, c, d := node(2, ownA), node(3, ownB), node(4, "198.51.100.4:1")
	run := func(peers ...mesh.Node) []Action {
		r := localRig(t, peers...)
		for _, n := range []mesh.Node{d, b, c} {
			r.direct(n, n.Endpoints[0], time.Millisecond)
		}
		return append(r.step(Rebind{}), r.step(SetPeers{})...)
	}
	if d := cmp.Diff(run(b, c, d), run(d, c, b), byValue()); d != "" {
		t.Error(d)
	}
}

// TestIdleKeepsLearnedPath: an address that nobody named, but that worked, is
// the first guess also after a long silence.
func TestIdleKeepsLearnedPath(t *testing.T) {
	b := node(2)
	r := localRig(t, b)
	out := r.step(Ping{From: at(ownA), Sender: b.Disco, TxID: foreign(1), Node: b.Key})
	r.answer(out, time.Millisecond)
	r.wait(time.Hour)
	out = r.step(Sent{Peer: b.Key})
	if got := pinged(out); !slices.Equal(got, addrs(ownA)) {
		t.Errorf("pinged %v", got)
	}
	if p := r.m.Path(b.Key); p.Addr != addr(ownA) || p.Relay != 1 {
		t.Errorf("path %+v, want both ways", p)
	}
}

// TestManyPeers: peers do not disturb one another, and a Tick serves all.
func TestManyPeers(t *testing.T) {
	var peers []mesh.Node
	for i := range turns(200, 40) {
		n := node(byte(i + 1))
		n.Endpoints = many(198, 256)[i : i+1]
		peers = append(peers, n)
	}
	r := localRig(t, peers...)
	for _, n := range peers {
		r.answer(r.step(Sent{Peer: n.Key}), time.Millisecond)
	}
	for _, n := range peers {
		r.wantPath(n, mesh.PathDirect, n.Endpoints[0])
	}
	r.wait(2 * sessionActive)
	if out := r.wait(time.Hour); len(out) > 0 || !r.m.Wake().IsZero() {
		t.Errorf("idle peers do %d actions in an hour, wake %v", len(out), r.m.Wake())
	}
}
