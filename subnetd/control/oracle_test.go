package control

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"subnetd/subnetd/mesh"
	"tailscale.com/tailcfg"
)

// model is a session without wit: it keeps the coordinator's own nodes, and
// translates all of them after each message.
type model struct {
	self    *tailcfg.Node
	peers   map[tailcfg.NodeID]*tailcfg.Node
	filters map[string][]tailcfg.FilterRule
	users   map[int64]string
	domain  string
}

func newModel() *model {
	return &model{
		peers: make(map[tailcfg.NodeID]*tailcfg.Node), filters: make(map[string][]tailcfg.FilterRule), users: make(map[int64]string),
	}
}

func (o *model) apply(m *tailcfg.MapResponse, now time.Time) {
	if m.Node != nil {
		o.self = m.Node
	}
	if len(m.Peers) > 0 {
		clear(o.peers)
		o.set(m.Peers)
	} else {
		for _, id := range m.PeersRemoved {
			delete(o.peers, id)
		}
		o.set(m.PeersChanged)
		o.seen(m, now)
		for _, p := range m.PeersChangedPatch {
			if n := o.peers[p.NodeID]; n != nil {
				patch(n, p)
			}
		}
	}
	if _, ok := m.PacketFilters["*"]; ok {
		clear(o.filters)
	}
	for name, rules := range m.PacketFilters {
		if o.filters[name] = rules; rules == nil {
			delete(o.filters, name)
		}
	}
	for _, u := range m.UserProfiles {
		o.users[int64(u.ID)] = u.LoginName
	}
	if m.Domain != "" {
		o.domain = m.Domain
	}
}

func (o *model) set(in []*tailcfg.Node) {
	for _, n := range in {
		if o.peers[n.ID] = n; n.Key.IsZero() || n.ID == o.self.ID {
			delete(o.peers, n.ID)
		}
	}
}

func (o *model) seen(m *tailcfg.MapResponse, now time.Time) {
	for id, seen := range m.PeerSeenChange {
		if n := o.peers[id]; n != nil {
			if n.LastSeen = nil; seen {
				n.LastSeen = &now
			}
		}
	}
	for id, online := range m.OnlineChange {
		if n := o.peers[id]; n != nil {
			n.Online = &online
		}
	}
}

func patch(n *tailcfg.Node, p *tailcfg.PeerChange) {
	if p.DERPRegion != 0 {
		n.HomeDERP = p.DERPRegion
	}
	if p.Cap != 0 {
		n.Cap = p.Cap
	}
	if p.CapMap != nil {
		n.CapMap = p.CapMap
	}
	if p.Endpoints != nil {
		n.Endpoints = p.Endpoints
	}
	if p.Key != nil {
		n.Key = *p.Key
	}
	if p.DiscoKey != nil {
		n.DiscoKey = *p.DiscoKey
	}
	if p.Online != nil {
		n.Online = p.Online
	}
	if p.LastSeen != nil {
		n.LastSeen = p.LastSeen
	}
	if p.KeyExpiry != nil {
		n.KeyExpiry = *p.KeyExpiry
	}
}

func (o *model) netmap() *mesh.Netmap {
	nm := &mesh.Netmap{Self: nodeOf(o.self), Users: maps.Clone(o.users), Domain: o.domain}
	unsigned := make(map[mesh.NodeID]bool)
	for _, id := range slices.Sorted(maps.Keys(o.peers)) {
		nm.Peers = append(nm.Peers, nodeOf(o.peers[id]))
		unsigned[mesh.NodeID(id)] = o.peers[id].UnsignedPeerAPIOnly
	}
	var all []tailcfg.FilterRule
	for _, name := range slices.Sorted(maps.Keys(o.filters)) {
		all = append(all, o.filters[name]...)
	}
	nm.Filter, _ = compileFilter(all, nm.Peers, unsigned)
	return nm
}

// speaker makes up messages. It uses few IDs and names, so that they meet often.
type speaker struct{ *rand.Rand }

func (r speaker) often(in int) bool { return r.IntN(in) == 0 }
func (r speaker) id() int           { return r.IntN(8) } // 1 is ourselves

func (r speaker) node(id int) map[string]any {
	n := map[string]any{"ID": id, "Addresses": []string{fmt.Sprintf("100.64.0.%d/32", id)}}
	if !r.often(12) {
		n["Key"] = nodeKey(byte(1 + r.IntN(3)))
	}
	r.reach(n, "HomeDERP")
	if r.often(3) {
		n["AllowedIPs"] = []string{fmt.Sprintf("100.64.0.%d/32", id), fmt.Sprintf("10.%d.0.0/16", r.IntN(3))}
	}
	if r.often(6) {
		n["UnsignedPeerAPIOnly"] = true
	}
	return n
}

func (r speaker) patch() map[string]any {
	p := map[string]any{"NodeID": r.id()}
	if r.often(3) {
		p["Key"] = nodeKey(byte(1 + r.IntN(3)))
	}
	r.reach(p, "DERPRegion")
	return p
}

// reach sets what whole nodes and patches both have.
func (r speaker) reach(n map[string]any, relay string) {
	if r.often(2) {
		n[relay] = 1 + r.IntN(2)
	}
	if r.often(2) {
		n["CapMap"] = [...]map[string]any{{}, {"x": nil}, {"x": nil, "y": nil}}[r.IntN(3)]
	}
	if r.often(2) {
		n["Endpoints"] = [...][]string{{}, {"192.0.2.1:1"}, {"192.0.2.1:1", "192.0.2.2:2"}}[r.IntN(3)]
	}
	if r.often(2) {
		n["Online"] = r.often(2)
	}
	if r.often(4) {
		n["DiscoKey"] = discoKey(byte(1 + r.IntN(3)))
	}
	if r.often(4) {
		n["Cap"] = 100 + r.IntN(3)
	}
	if r.often(4) {
		n["LastSeen"] = now.Add(-time.Duration(r.IntN(3)) * time.Hour)
	}
	if r.often(4) {
		n["KeyExpiry"] = now.Add(time.Duration(r.IntN(3)) * time.Hour)
	}
}

func (r speaker) nodes() []map[string]any {
	var out []map[string]any
	for range r.IntN(4) {
		out = append(out, r.node(r.id()))
	}
	return out
}

func (r speaker) filters() map[string]any {
	out := map[string]any{}
	for _, name := range []string{"*", "base", "a", "b"} {
		if !r.often(3) {
			continue
		}
		src := [...]string{"100.64.0.3", "cap:x", "10.1.0.0/16", "10.0.0.9-10.0.0.12"}[r.IntN(4)]
		out[name] = [...][]json.RawMessage{nil, {}, {json.RawMessage(from(src, 1))}}[r.IntN(3)]
		if name == "*" {
			out[name] = nil
		}
	}
	return out
}

func (r speaker) message(self bool) []byte {
	m := map[string]any{}
	maybe := func(in int, field string, v any) {
		if r.often(in) {
			m[field] = v
		}
	}
	maybe(20, "Node", map[string]any{"ID": 1, "Name": fmt.Sprint(r.IntN(2)), "Key": nodeKey(9)})
	maybe(15, "Peers", r.nodes())
	maybe(3, "PeersChanged", r.nodes())
	maybe(4, "PeersRemoved", []int{r.id(), r.id()})
	maybe(2, "PeersChangedPatch", []any{r.patch(), r.patch()})
	maybe(5, "PeerSeenChange", map[int]bool{r.id(): r.often(2)})
	maybe(5, "OnlineChange", map[int]bool{r.id(): r.often(2), r.id(): r.often(2)})
	maybe(4, "PacketFilters", r.filters())
	maybe(9, "UserProfiles", []any{map[string]any{"ID": r.IntN(3), "LoginName": fmt.Sprint(r.IntN(3))}})
	maybe(9, "Domain", fmt.Sprint(r.IntN(2)))
	if self {
		m["Node"] = map[string]any{"ID": 1, "Key": nodeKey(9)}
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

// bare is the text of a netmap in which none and an empty list are the same. It
// is much faster than cmp.
func bare(t *testing.T, nm *mesh.Netmap) string {
	t.Helper()
	c := *nm
	c.Peers, c.Filter = append([]mesh.Node(nil), c.Peers...), append([]mesh.Rule(nil), c.Filter...)
	return text(t, &c)
}

// TestSessionOracle walks at random: after each message the session must say
// the same as the model, and have left alone what it said before.
func TestSessionOracle(t *testing.T) {
	seeds := uint64(30)
	if raceEnabled { // one goroutine only, and thirty times as slow
		seeds = 2
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := speaker{rand.New(rand.NewPCG(seed, 1))}
			s, o := newSession(func() time.Time { return now }, nil), newModel()
			var before frozen
			for step := range 200 {
				b := r.message(step == 0)
				o.apply(said(t, string(b)), now)
				got, err := s.apply(said(t, string(b)))
				if err != nil {
					t.Fatalf("step %d, %s: %v", step, b, err)
				}
				if want := o.netmap(); bare(t, want) != bare(t, got) {
					t.Fatalf("step %d, %s: model -, session +:\n%s", step, b, cmp.Diff(want, got, equal))
				}
				if before.nm != nil {
					before.check(t)
					if (got == before.nm) != (bare(t, got) == bare(t, before.nm)) {
						t.Fatalf("step %d, %s: a new netmap must mean news, and news a new netmap", step, b)
					}
				}
				before = freeze(t, got)
			}
		})
	}
}
