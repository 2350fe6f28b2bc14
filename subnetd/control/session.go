package control

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"time"

	"subnetd/subnetd/mesh"
	"tailscale.com/tailcfg"
)

const (
	maxPeers    = 20_000      // more than this ends the stream
	minSkew     = time.Minute // smaller differences of clocks are no skew
	skewJitter  = 30 * time.Second
	baseFilter  = "base" // the name under which the unnamed filter is kept
	clearAll    = "*"    // key of a map patch that empties the map first
	maxMessages = 100    // health texts kept
	maxFilters  = 1000   // named filters kept
)

var errNoSelf = errors.New("the coordinator began the map stream without telling about this node")

// session is what one map stream has said so far. It is pure: it is given the
// time, and it never changes a netmap that it has returned.
type session struct {
	now      func() time.Time
	last     *mesh.Netmap // last returned; may come from the stream before
	started  bool
	self     mesh.Node
	peers    []mesh.Node // sorted by ID
	shared   bool        // peers belongs to last: copy before writing
	unsigned map[mesh.NodeID]bool
	filters  map[string][]tailcfg.FilterRule
	rules    []mesh.Rule
	grants   []mesh.Grant
	refilter bool // rules are out of date
	byPeer   bool // rules depend on what the peers are
	relays   []mesh.RelayRegion
	names    mesh.Names
	users    map[int64]string
	people   map[int64]mesh.Person
	domain   string
	health   []string
	messages map[string]string
	skew     time.Duration
	locked   bool
	devices  []mesh.Device
	warning  error // about the filter, nil if all is understood
}

// newSession starts an empty state. last, which may be nil, is the netmap of
// the stream before: if the new state comes out equal, it is returned again.
func newSession(now func() time.Time, last *mesh.Netmap) *session {
	return &session{
		now: now, last: last, refilter: true,
		unsigned: make(map[mesh.NodeID]bool),
		filters:  make(map[string][]tailcfg.FilterRule),
		users:    make(map[int64]string),
		messages: make(map[string]string),
	}
}

// apply takes one message and returns the whole netmap after it. If nothing
// changed, that is the same pointer as before. Before the first message that
// tells about this node it returns nil for a keep-alive, and an error else.
func (s *session) apply(r *tailcfg.MapResponse) (*mesh.Netmap, error) {
	s.applyTime(r.ControlTime)
	if r.KeepAlive {
		if !s.started {
			return nil, nil
		}
		return s.publish(), nil
	}
	if r.Node == nil && !s.started {
		return nil, errNoSelf
	}
	if r.Node != nil {
		s.self, s.started = nodeOf(r.Node), true
		s.devices = devicesOf(r.Node.CapMap)
	}
	if err := s.applyPeers(r); err != nil {
		return nil, err
	}
	s.applyFilters(r)
	s.applyRest(r)
	return s.publish(), nil
}

func (s *session) publish() *mesh.Netmap {
	if s.refilter {
		s.compile()
	}
	nm := &mesh.Netmap{
		Self: s.self, Peers: s.peers, Relays: s.relays, Names: s.names, Filter: s.rules,
		Users: s.users, People: s.people, Domain: s.domain, Health: s.healthTexts(), ClockSkew: s.skew, Locked: s.locked,
		Devices: s.devices, Grants: s.grants,
	}
	if s.last == nil || !equalNetmaps(s.last, nm) {
		s.last = nm
	}
	s.shared = true
	return s.last
}

// applyTime keeps the distance of the clocks steady: the way of a frame through
// the net must not look like a change.
func (s *session) applyTime(t *time.Time) {
	if t == nil || t.IsZero() {
		return
	}
	d := t.Sub(s.now())
	if d.Abs() <= minSkew {
		d = 0
	}
	if (d - s.skew).Abs() >= skewJitter {
		s.skew = d.Round(time.Second)
	}
}

func (s *session) applyPeers(r *tailcfg.MapResponse) error {
	if len(r.Peers) > 0 {
		s.replacePeers(r.Peers)
	} else {
		s.removePeers(r.PeersRemoved)
		s.upsertPeers(r.PeersChanged)
		s.markSeen(r)
		for _, p := range r.PeersChangedPatch {
			if p != nil {
				s.patchPeer(p)
			}
		}
	}
	if len(s.peers) > maxPeers {
		return fmt.Errorf("the coordinator sent %d peers, more than the %d this router takes", len(s.peers), maxPeers)
	}
	return nil
}

func (s *session) replacePeers(in []*tailcfg.Node) {
	s.peers, s.shared = make([]mesh.Node, 0, len(in)), false
	clear(s.unsigned)
	s.upsertPeers(in)
	s.peersMoved()
}

// peersMoved notes that the filter may mean something else now, if it asks what
// the peers are.
func (s *session) peersMoved() {
	if s.byPeer || len(s.unsigned) > 0 {
		s.refilter = true
	}
}

func (s *session) own() {
	if s.shared {
		s.peers, s.shared = slices.Clone(s.peers), false
	}
}

func (s *session) find(id mesh.NodeID) (int, bool) {
	return slices.BinarySearchFunc(s.peers, id, func(n mesh.Node, id mesh.NodeID) int { return cmp.Compare(n.ID, id) })
}

func (s *session) removePeers(ids []tailcfg.NodeID) {
	if len(ids) == 0 {
		return
	}
	gone := make(map[mesh.NodeID]bool, len(ids))
	for _, id := range ids {
		gone[mesh.NodeID(id)] = true
		delete(s.unsigned, mesh.NodeID(id))
	}
	s.own()
	s.peers = slices.DeleteFunc(s.peers, func(n mesh.Node) bool { return gone[n.ID] })
	s.peersMoved()
}

// upsertPeers sets whole nodes. A node without a key cannot be spoken to and is
// left out; one that had a key before is removed.
func (s *session) upsertPeers(in []*tailcfg.Node) {
	if len(in) == 0 {
		return
	}
	s.own()
	fresh := make(map[mesh.NodeID]mesh.Node)
	for _, n := range in {
		if n != nil {
			s.upsert(n, fresh)
		}
	}
	for _, n := range fresh {
		s.peers = append(s.peers, n)
	}
	s.peers = slices.DeleteFunc(s.peers, func(n mesh.Node) bool { return n.Key.IsZero() })
	if len(fresh) > 0 {
		sort.Slice(s.peers, func(i, j int) bool { return s.peers[i].ID < s.peers[j].ID })
	}
	s.peersMoved()
}

// upsert changes a known peer in place and collects an unknown one in fresh.
func (s *session) upsert(n *tailcfg.Node, fresh map[mesh.NodeID]mesh.Node) {
	node := nodeOf(n)
	if node.ID == s.self.ID {
		return // we are no peer of ourselves
	}
	if i, ok := s.find(node.ID); ok {
		s.peers[i] = node
	} else {
		fresh[node.ID] = node
	}
	delete(s.unsigned, node.ID)
	if n.UnsignedPeerAPIOnly {
		s.unsigned[node.ID] = true
	}
}

func (s *session) markSeen(r *tailcfg.MapResponse) {
	for id, seen := range r.PeerSeenChange {
		s.edit(mesh.NodeID(id), func(n *mesh.Node) {
			n.LastSeen = time.Time{}
			if seen {
				n.LastSeen = s.now()
			}
		})
	}
	for id, online := range r.OnlineChange {
		s.edit(mesh.NodeID(id), func(n *mesh.Node) { n.Online = &online })
	}
}

func (s *session) edit(id mesh.NodeID, f func(*mesh.Node)) {
	if i, ok := s.find(id); ok {
		s.own()
		f(&s.peers[i])
	}
}

func (s *session) patchPeer(p *tailcfg.PeerChange) {
	s.edit(mesh.NodeID(p.NodeID), func(n *mesh.Node) {
		patchReach(n, p)
		patchKeys(n, p)
		if p.Cap != 0 {
			n.Cap = int(p.Cap)
		}
		if p.CapMap != nil {
			n.Caps = capsOf(nil, p.CapMap)
			s.peersMoved()
		}
	})
}

// patchReach changes where a peer is and whether.
func patchReach(n *mesh.Node, p *tailcfg.PeerChange) {
	if p.DERPRegion != 0 {
		n.HomeRelay = p.DERPRegion
	}
	if p.Endpoints != nil {
		n.Endpoints = validEndpoints(p.Endpoints)
	}
	if p.Online != nil {
		n.Online = p.Online
	}
	if p.LastSeen != nil {
		n.LastSeen = *p.LastSeen
	}
}

// patchKeys changes who a peer is. KeySignature belongs to tailnet lock, which
// is not supported.
func patchKeys(n *mesh.Node, p *tailcfg.PeerChange) {
	if p.Key != nil && !p.Key.IsZero() {
		n.Key = *p.Key
	}
	if p.DiscoKey != nil {
		n.Disco = *p.DiscoKey
	}
	if p.KeyExpiry != nil {
		n.KeyExpiry = *p.KeyExpiry
	}
}

func (s *session) applyFilters(r *tailcfg.MapResponse) {
	if r.PacketFilter != nil {
		s.filters[baseFilter], s.refilter = r.PacketFilter, true
	}
	if v, ok := r.PacketFilters[clearAll]; ok && v == nil {
		clear(s.filters)
		s.refilter = true
	}
	for name, rules := range r.PacketFilters {
		switch {
		case name == clearAll && rules == nil: // done
		case rules == nil:
			delete(s.filters, name)
		case len(s.filters) < maxFilters:
			s.filters[name] = rules
		}
		s.refilter = true
	}
}

// compile joins the named filters. Rules only allow, so that their order means
// nothing; sorting keeps equal filters equal.
func (s *session) compile() {
	s.refilter = false
	var all []tailcfg.FilterRule
	for _, name := range slices.Sorted(maps.Keys(s.filters)) {
		all = append(all, s.filters[name]...)
	}
	rules, err := compileFilter(all, s.peers, s.unsigned)
	if !equalRules(rules, s.rules) {
		s.rules = rules
	}
	s.grants = compileGrants(all, s.peers)
	s.warning = err
	s.byPeer = len(s.unsigned) > 0 || hasCapSources(all)
}

func (s *session) applyRest(r *tailcfg.MapResponse) {
	if r.DERPMap != nil && r.DERPMap.Regions != nil {
		s.relays = relaysOf(r.DERPMap.Regions)
	}
	if r.DNSConfig != nil {
		s.names = namesOf(r.DNSConfig)
	}
	if r.Domain != "" {
		s.domain = r.Domain
	}
	if r.TKAInfo != nil {
		s.locked = !r.TKAInfo.Disabled
	}
	if r.Health != nil {
		s.health = r.Health[:min(len(r.Health), maxMessages)]
	}
	s.applyUsers(r.UserProfiles)
	s.applyMessages(r.DisplayMessages)
}

func (s *session) applyUsers(in []tailcfg.UserProfile) {
	if len(in) == 0 {
		return
	}
	users, people := maps.Clone(s.users), maps.Clone(s.people)
	for _, u := range in {
		if len(users) >= maxPeers {
			continue
		}
		users[int64(u.ID)] = userName(u)
		delete(people, int64(u.ID))
		if p := personOf(u); p != (mesh.Person{}) {
			if people == nil {
				people = map[int64]mesh.Person{}
			}
			people[int64(u.ID)] = p
		}
	}
	s.users, s.people = users, people
}

func (s *session) applyMessages(in map[tailcfg.DisplayMessageID]*tailcfg.DisplayMessage) {
	if v, ok := in[clearAll]; ok && v == nil {
		clear(s.messages)
	}
	for id, m := range in {
		switch {
		case m == nil:
			delete(s.messages, string(id))
		case len(s.messages) < maxMessages:
			s.messages[string(id)] = messageText(m)
		}
	}
}

func messageText(m *tailcfg.DisplayMessage) string {
	if m.Text == "" {
		return m.Title
	}
	return m.Title + ": " + m.Text
}

func (s *session) healthTexts() []string {
	if len(s.messages) == 0 {
		return s.health
	}
	out := slices.Clone(s.health)
	for _, id := range slices.Sorted(maps.Keys(s.messages)) {
		out = append(out, s.messages[id])
	}
	return out
}
