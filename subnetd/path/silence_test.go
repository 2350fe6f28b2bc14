package path

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/mesh"
)

const (
	ms    = time.Millisecond
	ownA6 = "[2001:db8::2]:41641"
)

// families are the same peer over IPv4 and over IPv6.
func families(t *testing.T, do func(t *testing.T, a string)) {
	for _, a := range []string{ownA, ownA6} {
		t.Run(addr(a).Addr().String(), func(t *testing.T) { do(t, a) })
	}
}

// directRig is a rig whose path to the peer at a is direct.
func directRig(t testing.TB, a string, rtt time.Duration) (*rig, mesh.Node) {
	t.Helper()
	b := node(2, a)
	r := newRig(t, b)
	r.step(SetLocal{Endpoints: addrs("203.0.113.1:41641"), UDP: true, V6: true})
	r.direct(b, addr(a), rtt)
	return r, b
}

// rush returns the most actions of the kind within any second of the flow.
func rush[T Action](t testing.TB, r *rig, b mesh.Node, d time.Duration, f flow) (most, sum int) {
	t.Helper()
	var last []time.Time
	for past := time.Duration(0); past < d; past += 10 * ms {
		for range of[T](r.carry(b, 10*ms, f)) {
			last = append(last, r.now)
			sum++
		}
		last = slices.DeleteFunc(last, func(at time.Time) bool { return r.now.Sub(at) >= 990*ms })
		most = max(most, len(last))
	}
	return most, sum
}

// TestHealthyIsTrusted: whatever the rhythm of what goes and comes, and however
// slow, a path that answers is never doubted.
func TestHealthyIsTrusted(t *testing.T) {
	rhythms := []time.Duration{0, 20 * ms, 990 * ms, 1100 * ms, 3 * time.Second, 10 * time.Second}
	families(t, func(t *testing.T, a string) {
		for _, rtt := range []time.Duration{30 * ms, 990 * ms}[:turns(2, 1)] {
			for _, out := range rhythms[1:] {
				for _, in := range rhythms {
					r, b := directRig(t, a, rtt)
					all := r.carry(b, 30*time.Second, flow{out: out, in: in, phase: 370 * ms, from: at(a), rtt: rtt})
					if u := of[Use](all); len(u) > 0 {
						t.Errorf("a packet every %v, back every %v, round trip %v: %+v", out, in, rtt, u)
					}
					// Each packet that is told may ask once, and there is the heartbeat.
					if n, lim := len(of[SendPing](all)), 31+11; n > lim {
						t.Errorf("a packet every %v, back every %v, round trip %v: %d pings in 30 s", out, in, rtt, n)
					}
				}
			}
		}
	})
}

// TestPingsOnlyWhileSilent: a flow that comes back at a pace costs nothing but
// the heartbeat; one that does not, a ping a second.
func TestPingsOnlyWhileSilent(t *testing.T) {
	for _, tt := range []struct {
		name     string
		in       time.Duration
		min, max int
	}{
		{"both ways", 50 * ms, 19, 21},
		{"both ways, slowly back", 90 * ms, 19, 21},
		{"only out", 0, 50, 60},
		{"out, and a keepalive", 10 * time.Second, 45, 60},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, b := directRig(t, ownA, 20*ms)
			most, sum := rush[SendPing](t, r, b, time.Minute, flow{out: 20 * ms, in: tt.in, from: at(ownA), rtt: 20 * ms})
			if sum < tt.min || sum > tt.max {
				t.Errorf("%d pings in a minute, want %d to %d", sum, tt.min, tt.max)
			}
			if most > 1 {
				t.Errorf("%d pings within a second", most)
			}
		})
	}
}

// doubted lets the flow go on until data goes both ways, and returns how long
// that took.
func (r *rig) doubted(b mesh.Node, limit time.Duration, f flow) (time.Duration, bool) {
	r.t.Helper()
	start := r.now
	for r.now.Sub(start) < limit {
		for _, u := range of[Use](r.carry(b, 10*ms, f)) {
			if u.Region != 0 {
				return r.now.Sub(start), u.Addr.IsValid()
			}
		}
	}
	return limit, false
}

// TestDeathUnderTraffic: a path that dies is doubted soon, at whatever moment.
func TestDeathUnderTraffic(t *testing.T) {
	for _, tt := range []struct {
		name    string
		out, in time.Duration // before; after the death in is 0
		rtt     time.Duration
		after   flow
		limit   time.Duration
	}{
		{"stream", 10 * ms, 0, 20 * ms, flow{out: 10 * ms}, 2200 * ms},
		{"both ways", 10 * ms, 10 * ms, 20 * ms, flow{out: 10 * ms}, 2200 * ms},
		{"slow", 700 * ms, 700 * ms, 20 * ms, flow{out: 700 * ms}, 2900 * ms},
		{"far", 10 * ms, 10 * ms, 600 * ms, flow{out: 10 * ms}, 3600 * ms}, // 3 round trips, after what was still under way
		{"they still come, and ask by the relay", 10 * ms, 10 * ms, 20 * ms, flow{out: 10 * ms, in: 10 * ms, from: at(ownA), relay: 1}, 1600 * ms},
		{"they still come", 10 * ms, 10 * ms, 20 * ms, flow{out: 10 * ms, in: 10 * ms, from: at(ownA)}, trustFor},
	} {
		t.Run(tt.name, func(t *testing.T) {
			worst := time.Duration(0)
			for phase := time.Duration(0); phase < 4*time.Second; phase += time.Duration(turns(70, 490)) * ms {
				r, b := directRig(t, ownA, tt.rtt)
				r.carry(b, 12*time.Second+phase, flow{out: tt.out, in: tt.in, phase: phase % (10 * ms), from: at(ownA), rtt: tt.rtt})
				r.wantPath(b, mesh.PathDirect, addr(ownA))
				tt.after.mute = true
				took, both := r.doubted(b, 10*time.Second, tt.after)
				worst = max(worst, took)
				if !both {
					t.Fatalf("after %v: %+v", took, r.m.Path(b.Key))
				}
			}
			t.Logf("doubted after %v at most", worst)
			if worst > tt.limit {
				t.Errorf("doubted after %v, want %v", worst, tt.limit)
			}
		})
	}
}

// TestDoubtLooks: with the doubt all is tried at once, and a pong, but not mere
// data, brings the trust back.
func TestDoubtLooks(t *testing.T) {
	families(t, func(t *testing.T, a string) {
		r, b := directRig(t, a, 20*ms)
		r.carry(b, 10*time.Second, flow{out: 10 * ms, in: 10 * ms, from: at(a), rtt: 20 * ms})
		out := r.carry(b, 2200*ms, flow{out: 10 * ms, mute: true})
		u := lastUse(t, out)
		if u.Addr != addr(a) || u.Region != 1 || u.Path.Kind != mesh.PathDirect {
			t.Fatalf("silent, so %+v", u)
		}
		if len(of[SendCallMeMaybe](out)) != 1 || len(of[SendPing](out)) < 2 {
			t.Errorf("in doubt does %v, want a ping and a call", out)
		}
		if more := r.step(Received{b.Key, at(a)}); len(more) > 0 {
			t.Errorf("data that comes does %v", more)
		}
		if p := r.m.Path(b.Key); p.Relay != 1 {
			t.Errorf("data restored the trust: %+v", p)
		}
		i := slices.IndexFunc(out, func(a Action) bool { _, ok := a.(Restun); return ok })
		if i < 0 || !slices.Equal(pinged(out[i:]), addrs(a)) {
			t.Errorf("in doubt does %v, want fresh endpoints, and a ping then", out)
		}
		pings := of[SendPing](out)
		p := pings[len(pings)-1]
		if u := lastUse(t, r.step(Pong{From: p.To, Sender: b.Disco, TxID: p.TxID})); u.Addr != addr(a) || u.Region != 0 || u.Path.Reason != "" {
			t.Errorf("a pong: %+v", u)
		}
	})
}

// TestUntoldData: data within a second after a hint is not told. It may have
// come after a ping that was lost, so that alone is no doubt yet.
func TestUntoldData(t *testing.T) {
	r, b := directRig(t, ownA, 20*ms)
	f := flow{out: 10 * ms, in: 10 * ms, from: at(ownA), rtt: 20 * ms}
	r.carry(b, 10*time.Second, f)
	r.step(Received{b.Key, at(ownA)})
	came := r.now
	r.wait(100 * ms)
	r.step(Probe{b.Key, 1}) // its ping is lost
	out := append(r.wait(came.Add(saidFor+doubtAfter-100*ms).Sub(r.now)), r.step(Received{b.Key, at(ownA)})...)
	if u := of[Use](out); len(u) > 0 {
		t.Errorf("doubted: %+v", u)
	}
	asked := r.now.Add(silentAfter)
	r.wait(asked.Sub(r.now))
	r.step(Sent{b.Key})
	if u := of[Use](r.wait(doubtAfter - 1)); len(u) > 0 {
		t.Errorf("doubted by an older ping: %+v", u)
	}
	if u := of[Use](r.wait(1)); len(u) != 1 || u[0].Region != 1 {
		t.Errorf("then: %+v", u)
	}
}

// TestOldSilenceIsForgotten: a ping that was lost at the end of a session does
// not make the next begin in doubt.
func TestOldSilenceIsForgotten(t *testing.T) {
	r, b := directRig(t, ownA, 20*ms)
	r.live(r.step(Sent{b.Key}), 41*time.Second, 20*ms)
	r.wait(sessionActive - 41*time.Second + 500*ms) // the last ping is lost
	if u := of[Use](r.step(Sent{b.Key})); len(u) > 0 {
		t.Errorf("doubted at once: %+v", u)
	}
}

// TestRebindExplains: after a change here, the silence of before is no reason.
func TestRebindExplains(t *testing.T) {
	r, b := directRig(t, ownA, 20*ms)
	r.carry(b, 3*time.Second, flow{out: 10 * ms, mute: true})
	if u := lastUse(t, r.step(Rebind{})); !strings.HasPrefix(u.Path.Reason, "no answer from") {
		t.Errorf("%+v", u)
	}
}

// TestImpatienceIsLearned: where a full queue makes answers late, the first
// doubt was wrong, and there is no second.
func TestImpatienceIsLearned(t *testing.T) {
	r, b := directRig(t, ownA, 20*ms)
	f := flow{out: 10 * ms, rtt: 1800 * ms}
	all := r.carry(b, time.Minute, f)
	if n := len(of[Use](all)); n != 2 {
		t.Errorf("the way changed %d times, want into doubt and back", n)
	}
	r.wantPath(b, mesh.PathDirect, addr(ownA))
}

// TestOtherAddressSaysNothing: what comes from another address of the peer
// does not show that the one in use still works.
func TestOtherAddressSaysNothing(t *testing.T) {
	r, b := directRig(t, ownA, 20*ms)
	if took, _ := r.doubted(b, 10*time.Second, flow{out: 10 * ms, in: 10 * ms, from: at(ownB), mute: true}); took > 2200*ms {
		t.Errorf("doubted after %v", took)
	}
}

// TestSuspicionNeedsSilence: a peer that calls or sends over a relay while it
// answers is asked, and trusted.
func TestSuspicionNeedsSilence(t *testing.T) {
	for name, e := range map[string]Event{
		"call": CallMeMaybe{over(node(2), 1), discoKey(2), addrs(ownA)},
		"data": Received{nodeKey(2), over(node(2), 1)},
	} {
		t.Run(name, func(t *testing.T) {
			r, b := directRig(t, ownA, 20*ms)
			f := flow{out: 10 * ms, in: 10 * ms, from: at(ownA), rtt: 20 * ms}
			for range 200 {
				all := append(r.carry(b, 90*ms, f), r.step(e)...)
				for _, p := range of[SendPing](all) {
					r.answers = append(r.answers, answer{r.now.Add(20 * ms), p})
				}
				if u := of[Use](all); len(u) > 0 {
					t.Fatalf("though it answers: %+v", u)
				}
			}
			// The same, and it answers no more.
			f.mute = true
			r.carry(b, 1100*ms, f)
			r.step(e)
			r.carry(b, 600*ms, f)
			if p := r.m.Path(b.Key); p.Relay != 1 {
				t.Errorf("though it does not answer: %+v", p)
			}
		})
	}
}

// TestDataOutlivesDaemon: a peer whose daemon is gone answers no ping, but its
// WireGuard goes on. As long as it is heard, we send there, too.
func TestDataOutlivesDaemon(t *testing.T) {
	families(t, func(t *testing.T, a string) {
		for _, event := range []func(mesh.Node) Event{
			func(b mesh.Node) Event { return Received{Peer: b.Key, From: at(a)} },
			func(b mesh.Node) Event { return Roamed{Peer: b.Key, Addr: addr(a)} },
		} {
			r, b := directRig(t, a, 20*ms)
			for range 180 {
				r.step(Sent{Peer: b.Key}) // nobody answers what it brings about
				r.step(event(b))
				r.wait(time.Second)
			}
			if p := r.m.Path(b.Key); p.Kind != mesh.PathDirect || p.Addr != addr(a) || p.Relay != 1 {
				t.Errorf("while data comes the path is %+v, want both ways", p)
			}
			for range 20 {
				r.step(Sent{Peer: b.Key})
				r.wait(time.Second)
			}
			if p := r.m.Path(b.Key); p.Kind != mesh.PathRelay {
				t.Errorf("when nothing comes any more the path is %+v, want the relay", p)
			}
		}
	})
}

// TestSilentButUnused: nothing is asked of a path on which nothing was sent
// after the last that came, and nothing at all after the end of a session.
func TestSilentButUnused(t *testing.T) {
	r, b := directRig(t, ownA, 20*ms)
	f := flow{out: 20 * ms, in: 20 * ms, from: at(ownA), rtt: 20 * ms}
	r.carry(b, 10*time.Second, f)
	out := r.live(nil, 10*time.Second, 20*ms)
	if n := len(of[SendPing](out)); n > 5 || len(of[Use](out)) > 0 {
		t.Errorf("10 s after the last packet: %v", out)
	}
	// Only the peer sends.
	r.carry(b, time.Minute, flow{in: 20 * ms, from: at(ownA), rtt: 20 * ms})
	out = r.carry(b, time.Duration(turns(60, 10))*time.Minute, flow{in: time.Second, from: at(ownA), rtt: 20 * ms})
	if len(out) > 0 || !r.m.Wake().IsZero() {
		t.Errorf("only receiving for long does %d actions, wake %v", len(out), r.m.Wake())
	}
}

// TestThousandIdle: a thousand peers that were direct, and are idle, want no
// Tick in a day.
func TestThousandIdle(t *testing.T) {
	var peers []mesh.Node
	for i := range turns(1000, 200) {
		n := node(byte(i))
		must := fmt.Sprintf("%064x", i+1)
		mustText(n.Key.UnmarshalText([]byte("nodekey:" + must)))
		mustText(n.Disco.UnmarshalText([]byte("discokey:" + must)))
		n.Endpoints = many(198, 1000)[i : i+1]
		peers = append(peers, n)
	}
	r := localRig(t, peers...)
	for _, n := range peers {
		out := r.m.Step(r.now, Sent{n.Key})
		for _, p := range of[SendPing](out) {
			r.now = r.now.Add(time.Millisecond)
			r.m.Step(r.now, Pong{From: p.To, Sender: p.Disco, TxID: p.TxID})
		}
		r.m.Step(r.now, Received{n.Key, Source{Addr: n.Endpoints[0]}})
	}
	ticks := 0
	tick := func(d time.Duration) {
		for end := r.now.Add(d); ; ticks++ {
			w := r.m.Wake()
			if w.IsZero() || w.After(end) {
				r.now = end
				return
			}
			r.now = later(r.now, w)
			for _, p := range of[SendPing](r.m.Step(r.now, Tick{})) {
				r.m.Step(r.now, Pong{From: p.To, Sender: p.Disco, TxID: p.TxID})
			}
		}
	}
	tick(2 * time.Minute)
	t.Logf("%d Ticks until all are idle", ticks)
	ticks = 0
	tick(24 * time.Hour)
	if ticks > 0 || !r.m.Wake().IsZero() {
		t.Errorf("%d Ticks in an idle day, wake %v", ticks, r.m.Wake())
	}
	check(t, r.m)
}
