package path

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/mesh"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"tailscale.com/types/key"
)

// noon is when every test begins: a time of day makes reasons readable.
var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// rig is a machine with a clock that only the test moves.
type rig struct {
	t   testing.TB
	m   *Machine
	now time.Time
	tx  uint32

	watch   func([]Action)       // is shown what every step does; nil: nobody
	told    map[string]time.Time // of carry: when a hint was given
	answers []answer             // of carry: on their way
}

// answer is a pong that comes at its time.
type answer struct {
	at   time.Time
	ping SendPing
}

func newRig(t testing.TB, peers ...mesh.Node) *rig {
	t.Helper()
	r := &rig{t: t, now: noon, told: map[string]time.Time{}}
	r.m = New(Config{NewTxID: r.newTxID})
	r.step(SetPeers{Peers: peers})
	return r
}

// localRig is a rig that knows its own endpoints already.
func localRig(t testing.TB, peers ...mesh.Node) *rig {
	t.Helper()
	r := newRig(t, peers...)
	r.step(SetLocal{Endpoints: addrs("203.0.113.1:41641"), UDP: true})
	return r
}

func (r *rig) newTxID() TxID {
	r.tx++
	return txID(r.tx)
}

func txID(n uint32) (tx TxID) {
	binary.BigEndian.PutUint32(tx[8:], n)
	return tx
}

// foreign is a TxID that a peer made; ours count from 1.
func foreign(n uint32) TxID { return txID(1<<31 | n) }

// turns is n, or fewer with -short: on an emulated processor each turn takes as long as fifty here.
func turns(n, fewer int) int {
	if testing.Short() {
		return fewer
	}
	return n
}

// step does one event now, and checks what must hold after every event.
func (r *rig) step(e Event) []Action {
	r.t.Helper()
	out := r.m.Step(r.now, e)
	check(r.t, r.m)
	if r.watch != nil {
		r.watch(out)
	}
	return out
}

// wait lets time pass, with a Tick whenever one is wanted.
func (r *rig) wait(d time.Duration) []Action {
	r.t.Helper()
	var all []Action
	end := r.now.Add(d)
	for ticks := 0; ; ticks++ {
		wake := r.m.Wake()
		if wake.IsZero() || wake.After(end) {
			break
		}
		if ticks > 1000+int(d/time.Second)*100 {
			r.t.Fatalf("busy loop: %d ticks within %v", ticks, d)
		}
		if wake.After(r.now) {
			r.now = wake
		}
		all = append(all, r.step(Tick{})...)
	}
	r.now = end
	return all
}

// answer gives the pong for every ping among the actions, after rtt, except to
// the addresses that are silent. What the machine answers to that is returned.
func (r *rig) answer(actions []Action, rtt time.Duration, silent ...netip.AddrPort) []Action {
	r.t.Helper()
	pings := of[SendPing](actions)
	if len(pings) == 0 {
		return nil
	}
	out := r.wait(rtt)
	for _, p := range pings {
		mute := false
		for _, s := range silent {
			mute = mute || p.To.Addr == s
		}
		if !mute {
			out = append(out, r.step(Pong{From: p.To, Sender: p.Disco, TxID: p.TxID})...)
		}
	}
	return out
}

// live lets d pass and answers every ping after rtt, also those that out holds
// already, except to the silent addresses.
func (r *rig) live(out []Action, d, rtt time.Duration, silent ...netip.AddrPort) []Action {
	r.t.Helper()
	end := r.now.Add(d)
	var all []Action
	for {
		for len(out) > 0 {
			all = append(all, out...)
			out = r.answer(out, rtt, silent...)
		}
		wake := r.m.Wake()
		if wake.IsZero() || wake.After(end) {
			r.now = later(r.now, end)
			return all
		}
		out = r.wait(wake.Sub(r.now))
	}
}

// talk is live while data goes to the peer once a second.
func (r *rig) talk(to key.NodePublic, d, rtt time.Duration, silent ...netip.AddrPort) []Action {
	r.t.Helper()
	var all []Action
	for end := r.now.Add(d); r.now.Before(end); {
		out := r.step(Sent{Peer: to})
		all = append(all, r.live(out, min(time.Second, end.Sub(r.now)), rtt, silent...)...)
	}
	return all
}

// flow is data that a peer and we exchange.
type flow struct {
	out, in time.Duration // between packets; 0: none
	phase   time.Duration // of what comes in
	from    Source        // of what comes in
	relay   int           // it comes over this relay too; 0: it does not
	rtt     time.Duration // of a ping
	mute    bool          // pings are not answered
}

// carry lets d pass with that flow. The machine is told of it as by the
// underlay: once a second and direction.
func (r *rig) carry(n mesh.Node, d time.Duration, f flow) []Action {
	r.t.Helper()
	const step = 10 * time.Millisecond
	var all []Action
	take := func(out []Action) {
		all = append(all, out...)
		for _, p := range of[SendPing](out) {
			if !f.mute {
				r.answers = append(r.answers, answer{r.now.Add(f.rtt), p})
			}
		}
	}
	tell := func(what string, e Event) {
		if !r.now.Before(r.told[what].Add(time.Second)) {
			r.told[what] = r.now
			take(r.step(e))
		}
	}
	for end := r.now.Add(d); r.now.Before(end); {
		past := r.now.Sub(noon).Truncate(step)
		if f.out > 0 && past%f.out == 0 {
			tell("out", Sent{n.Key})
		}
		if f.in > 0 && (past+f.phase)%f.in == 0 {
			tell("in", Received{n.Key, f.from})
			if f.relay != 0 {
				tell("relay", Received{n.Key, over(n, f.relay)})
			}
		}
		for len(r.answers) > 0 && !r.now.Before(r.answers[0].at) {
			p := r.answers[0].ping
			r.answers = r.answers[1:]
			take(r.step(Pong{From: p.To, Sender: p.Disco, TxID: p.TxID}))
		}
		take(r.wait(step))
	}
	return all
}

// direct makes a the path to the peer by answering its first pings.
func (r *rig) direct(n mesh.Node, a netip.AddrPort, rtt time.Duration) {
	r.t.Helper()
	out := r.step(Sent{Peer: n.Key})
	for _, p := range of[SendPing](out) {
		if p.To.Addr == a {
			r.wait(rtt)
			r.step(Pong{From: p.To, Sender: n.Disco, TxID: p.TxID})
		}
	}
	r.wantPath(n, mesh.PathDirect, a)
}

func (r *rig) wantPath(n mesh.Node, kind mesh.PathKind, a netip.AddrPort) {
	r.t.Helper()
	if p := r.m.Path(n.Key); p.Kind != kind || p.Addr != a {
		r.t.Fatalf("path is %s %v (%s), want %s %v", p.Kind, p.Addr, p.Reason, kind, a)
	}
}

// check fails if a bound is broken, or if the indexes disagree.
func check(t testing.TB, m *Machine) {
	t.Helper()
	pings := 0
	for _, p := range m.order {
		pings += len(p.out)
		static := 0
		for i, c := range p.cands {
			if c.netmap || c.called {
				static++
			}
			if i > 0 && p.cands[i-1].addr.Compare(c.addr) >= 0 {
				t.Fatalf("candidates of %v are out of order", p.key.ShortString())
			}
			if !p.usable(c.addr) {
				t.Fatalf("candidate %v is no address to send to", c.addr)
			}
		}
		if !p.roam.until.IsZero() && (p.roam.until.After(m.now.Add(roamWait)) || m.now.After(p.roam.until.Add(time.Minute))) {
			t.Fatalf("the kernel may stay where it is until %v, now is %v", p.roam.until, m.now)
		}
		if p.trusted(m.now) && p.doubt != sure {
			t.Fatalf("%v is trusted and doubted", p.best.addr)
		}
		if p.best != nil && p.candidate(p.best.addr) != p.best {
			t.Fatalf("the path %v is no candidate", p.best.addr)
		}
		if len(p.cands) > maxCandidates || len(p.out) > maxPings || len(p.probes) > maxProbes {
			t.Fatalf("%d candidates (%d named), %d pings, %d probes: too many", len(p.cands), static, len(p.out), len(p.probes))
		}
	}
	if pings != len(m.pings) {
		t.Fatalf("%d pings are known, the peers have %d", len(m.pings), pings)
	}
	for a, p := range m.owner {
		if m.peers[p.key] != p || p.candidate(a) == nil {
			t.Fatalf("%v is owned by a peer that does not have it", a)
		}
	}
	if len(m.early) > maxEarly {
		t.Fatalf("%d endpoints of peers that are not known", len(m.early))
	}
	for i, p := range m.queue {
		if p.index != i || m.peers[p.key] != p {
			t.Fatalf("place %d of the queue is wrong", i)
		}
	}
}

// of returns the actions of one type.
func of[T Action](actions []Action) []T {
	var some []T
	for _, a := range actions {
		if a, ok := a.(T); ok {
			some = append(some, a)
		}
	}
	return some
}

// lastUse returns the last Use among the actions; there must be one.
func lastUse(t testing.TB, actions []Action) Use {
	t.Helper()
	all := of[Use](actions)
	if len(all) == 0 {
		t.Fatalf("no Use among %v", actions)
	}
	return all[len(all)-1]
}

// pinged returns where pings went, in order.
func pinged(actions []Action) []netip.AddrPort {
	var all []netip.AddrPort
	for _, p := range of[SendPing](actions) {
		all = append(all, p.To.Addr)
	}
	return all
}

func addr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func addrs(list ...string) []netip.AddrPort {
	var all []netip.AddrPort
	for _, s := range list {
		all = append(all, addr(s))
	}
	return all
}

// many returns n addresses that differ from those with another net.
func many(net byte, n int) []netip.AddrPort {
	all := make([]netip.AddrPort, n)
	for i := range all {
		all[i] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{net, 0, byte(i >> 8), byte(i)}), 41641)
	}
	return all
}

func nodeKey(n byte) (k key.NodePublic) {
	mustText(k.UnmarshalText([]byte("nodekey:" + strings.Repeat(fmt.Sprintf("%02x", n), 32))))
	return k
}

func discoKey(n byte) (k key.DiscoPublic) {
	mustText(k.UnmarshalText([]byte("discokey:" + strings.Repeat(fmt.Sprintf("%02x", n), 32))))
	return k
}

func mustText(err error) {
	if err != nil {
		panic(err)
	}
}

// node is peer number n of relay region 1, at the endpoints.
func node(n byte, endpoints ...string) mesh.Node {
	return mesh.Node{
		ID:        mesh.NodeID(n),
		Key:       nodeKey(n),
		Disco:     discoKey(n),
		Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, n}), 32)},
		Endpoints: addrs(endpoints...),
		HomeRelay: 1,
	}
}

// over is the source of what the peer sends through a relay region.
func over(n mesh.Node, region int) Source { return Source{Region: region, Node: n.Key} }

// at is the source of what comes from an address.
func at(s string) Source { return Source{Addr: addr(s)} }

// byValue compares with == what has nothing else to compare.
func byValue() cmp.Option {
	return cmpopts.EquateComparable(netip.AddrPort{}, key.NodePublic{}, key.DiscoPublic{})
}
