package coord

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// view is a client without wit: it keeps what it is told, as the protocol says
// that it must be read.
type view struct {
	Self    *tailcfg.Node
	Peers   map[tailcfg.NodeID]*tailcfg.Node
	Filters map[string][]tailcfg.FilterRule
	Users   map[tailcfg.UserID]tailcfg.UserProfile
	DNS     *tailcfg.DNSConfig
	Relays  *tailcfg.DERPMap
	Domain  string

	wasteful []tailcfg.NodeID // told whole though a patch could say it
}

func newView() *view {
	return &view{
		Peers: map[tailcfg.NodeID]*tailcfg.Node{}, Filters: map[string][]tailcfg.FilterRule{}, Users: map[tailcfg.UserID]tailcfg.UserProfile{},
	}
}

// clone is the view of now: apply replaces nodes, and does not change them.
func (v *view) clone() *view {
	c := *v
	c.Peers, c.Filters, c.Users = maps.Clone(v.Peers), maps.Clone(v.Filters), maps.Clone(v.Users)
	return &c
}

func (v *view) apply(text []byte) *tailcfg.MapResponse {
	m := new(tailcfg.MapResponse)
	if err := json.Unmarshal(text, m); err != nil {
		panic(err)
	}
	if m.KeepAlive {
		return m
	}
	if m.Node != nil {
		v.Self = m.Node
	}
	if len(m.Peers) > 0 {
		clear(v.Peers)
	}
	for _, id := range m.PeersRemoved {
		delete(v.Peers, id)
	}
	for _, n := range slices.Concat(m.Peers, m.PeersChanged) {
		if old := v.Peers[n.ID]; old != nil && patchable(old, n) {
			v.wasteful = append(v.wasteful, n.ID)
		}
		v.Peers[n.ID] = n
	}
	for _, p := range m.PeersChangedPatch {
		if n := v.Peers[p.NodeID]; n != nil {
			v.Peers[p.NodeID] = patched(n, p)
		}
	}
	for name, rules := range m.PacketFilters {
		if v.Filters[name] = rules; rules == nil {
			delete(v.Filters, name)
		}
	}
	for _, u := range m.UserProfiles {
		v.Users[u.ID] = u
	}
	if m.DNSConfig != nil {
		v.DNS = m.DNSConfig
	}
	if m.DERPMap != nil {
		v.Relays = m.DERPMap
	}
	if m.Domain != "" {
		v.Domain = m.Domain
	}
	return m
}

// patched is a node after what a patch says; an absent field says nothing.
func patched(old *tailcfg.Node, p *tailcfg.PeerChange) *tailcfg.Node {
	n := new(tailcfg.Node)
	*n = *old
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
	return n
}

// patchable reports whether the fields that this coordinator patches are all in
// which the nodes differ, and a patch can say them.
func patchable(old, now *tailcfg.Node) bool {
	if len(now.Endpoints) == 0 && len(old.Endpoints) > 0 || now.HomeDERP == 0 && old.HomeDERP != 0 || now.DiscoKey.IsZero() && !old.DiscoKey.IsZero() {
		return false
	}
	a, b := old.Clone(), now.Clone()
	for _, n := range []*tailcfg.Node{a, b} {
		n.Endpoints, n.HomeDERP, n.DiscoKey, n.Online, n.LastSeen = nil, 0, key.DiscoPublic{}, nil, nil
	}
	return a.Equal(b)
}

// text is what a client knows in a form to be compared. Left out is what it need
// not be told: what it says of itself, and when one who is online was last seen.
func (v *view) text(t testing.TB) string {
	t.Helper()
	w := v.clone()
	if w.Self != nil {
		self := *w.Self
		self.Endpoints, self.DiscoKey, self.HomeDERP, self.Online, self.LastSeen = nil, key.DiscoPublic{}, 0, nil, nil
		self.Hostinfo = tailcfg.HostinfoView{}
		w.Self = &self
	}
	for id, n := range w.Peers {
		if n.Online != nil && *n.Online && n.LastSeen != nil {
			seen := *n
			seen.LastSeen = nil
			w.Peers[id] = &seen
		}
	}
	b, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// lines is JSON in lines.
func lines(text string) []string {
	var b bytes.Buffer
	_ = json.Indent(&b, []byte(text), "", " ")
	return strings.Split(b.String(), "\n")
}

// check asserts that what a live client knows is what a new session tells. Users
// that it need not know any more do no harm.
func (c *client) check(p *poll, when string) {
	c.m.t.Helper()
	live, fresh := p.now(), c.full()
	for id := range live.Users {
		if _, ok := fresh.Users[id]; !ok {
			delete(live.Users, id)
		}
	}
	if a, b := live.text(c.m.t), fresh.text(c.m.t); a != b {
		c.m.t.Fatalf("%s: %s knows (-), but is told anew (+)\n%s", when, c.host.Hostname, cmp.Diff(lines(a), lines(b)))
	}
	if len(live.wasteful) > 0 {
		c.m.t.Fatalf("%s: %s was told nodes %v whole, though a patch can say it", when, c.host.Hostname, live.wasteful)
	}
}

// peer is the peer with that key, nil if there is none.
func (v *view) peer(k key.NodePublic) *tailcfg.Node {
	for _, n := range v.Peers {
		if n.Key == k {
			return n
		}
	}
	return nil
}
