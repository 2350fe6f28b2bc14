package coord

import (
	"context"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"sort"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

const (
	keepAliveFirst = 50 * time.Second // clients give a silent stream up after 120 s
	keepAliveMore  = 10 * time.Second // at random
	writeTimeout   = 30 * time.Second // for one frame
	frameGap       = 20 * time.Millisecond
	frameGapEach   = 500 * time.Microsecond // more for each session: a crowd that joins is told in fewer words
)

// session is one client's long poll of the map. Its fields below the line are
// what the client knows, and belong to the goroutine that serves it.
type session struct {
	c      *Coordinator
	id     tailcfg.NodeID
	key    key.NodePublic
	self   bool // the router's own
	cancel context.CancelFunc
	wake   chan struct{} // one slot: there is another snapshot
	pings  chan *tailcfg.PingRequest

	w       http.ResponseWriter
	version tailcfg.CapabilityVersion
	packed  bool // zstd

	told     *snapshot // what the client was last told; nil: nothing yet
	selfJSON string    // what of its own node matters to the client
	filter   string
	dns      *tailcfg.DNSConfig
	relays   *tailcfg.DERPMap
	users    map[tailcfg.UserID]bool
}

// stream serves a long poll until the client leaves, another of the same node
// begins, or the node is gone.
func (c *Coordinator) stream(ctx context.Context, w http.ResponseWriter, n *node, req *tailcfg.MapRequest) error {
	if err := n.pace.tell.Wait(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &session{
		c: c, id: n.ID, key: n.Key, self: n.Self, cancel: cancel, wake: make(chan struct{}, 1), pings: make(chan *tailcfg.PingRequest, 4),
		w: w, version: req.Version, packed: req.Compress == "zstd", users: map[tailcfg.UserID]bool{},
	}
	c.begin(s)
	defer c.end(s)
	var more bool
	if err := c.update(ctx, func(d *draft) error {
		n, err := d.member(s.id, s.key)
		if err == nil {
			more = d.tell(n, req)
			d.arrived(n)
		}
		return err
	}); err != nil {
		return err
	}
	if more && n.pace.note.Allow() { // else with its next update: the map must not wait
		if err := c.note(ctx, n, req); err != nil {
			c.cfg.Log.Warn("what a node says of itself is not kept", "node", n.Name, "err", err)
		}
	}
	return s.serve(ctx)
}

// note keeps what a node says of itself that must last.
func (c *Coordinator) note(ctx context.Context, n *node, req *tailcfg.MapRequest) error {
	return c.update(ctx, func(d *draft) error {
		n, err := d.member(n.ID, n.Key)
		if err == nil {
			d.note(n, req)
		}
		return err
	})
}

// begin makes s the one session of its node.
func (c *Coordinator) begin(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.sessions[s.id]; old != nil {
		old.cancel()
	}
	c.sessions[s.id] = s
}

// end lets the time of the node's absence begin, unless another session has
// taken over.
func (c *Coordinator) end(s *session) {
	c.mu.Lock()
	last := c.sessions[s.id] == s
	if last {
		delete(c.sessions, s.id)
	}
	c.mu.Unlock()
	if !last {
		return
	}
	_ = c.update(context.Background(), func(d *draft) error { // an error: we are stopping, and nobody asks
		if n := d.nodes[s.id]; n != nil && !c.connected(s.id) {
			n = d.edit(s.id)
			n.left, n.Seen = d.now, d.now
		}
		return nil
	})
}

func (c *Coordinator) connected(id tailcfg.NodeID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sessions[id] != nil
}

func (s *session) serve(ctx context.Context) error {
	keep := time.NewTimer(0)
	defer keep.Stop()
	var sent time.Time
	for r := s.first(s.c.snap.Load()); ; {
		if r != nil {
			if err := s.send(r); err != nil {
				return err
			}
			sent = time.Now()
			keep.Reset(keepAliveFirst + rand.N(keepAliveMore)) // not when others' news are none for this client
		}
		r = nil
		select {
		case <-ctx.Done():
			return nil
		case <-keep.C:
			r = &response{KeepAlive: true}
		case ping := <-s.pings:
			r = &response{PingRequest: ping}
		case <-s.wake:
			if !pause(ctx, s.c.gap()-time.Since(sent)) {
				return nil
			}
			snap := s.c.snap.Load()
			n := snap.nodes[s.id]
			if n == nil || n.Key != s.key {
				return s.farewell(ctx)
			}
			if d := s.delta(snap, n); !d.empty() {
				r = d
			}
		}
	}
}

// gap is the least time between two frames to one client.
func (c *Coordinator) gap() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return frameGap + time.Duration(len(c.sessions))*frameGapEach
}

// pause reports whether so much time passed before ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (s *session) send(r *response) error {
	if !r.KeepAlive {
		now := s.c.cfg.Now().UTC()
		if r.Node != nil {
			r.ControlTime = &now
		}
	}
	return s.c.writeFrame(s.w, r, s.packed)
}

func (c *Coordinator) writeFrame(w http.ResponseWriter, r *response, packed bool) error {
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Now().Add(writeTimeout))   // always there over HTTP/2
	defer func() { _ = rc.SetWriteDeadline(time.Time{}) }() // once it passes the stream is over, though nothing be written
	if err := writeFrame(w, r, packed); err != nil {
		return err
	}
	return rc.Flush()
}

// farewell tells a node that its key is nobody's: it asks its owner to log in
// again, where an HTTP error would have it go on with the mesh it remembers.
func (s *session) farewell(ctx context.Context) error {
	if err := s.c.writeFrame(s.w, s.c.stranger(s.key), s.packed); err != nil {
		return err
	}
	pause(ctx, writeTimeout) // the client hangs up
	return nil
}

// stranger is the map of a node that we do not know. It has the relays, without
// which a client that logs in again would not find its way back to them.
func (c *Coordinator) stranger(k key.NodePublic) *response {
	now, snap := c.cfg.Now().UTC(), c.snap.Load()
	return &response{ControlTime: &now, Domain: c.cfg.Domain, DERPMap: snap.place.Relays,
		UserProfiles: []tailcfg.UserProfile{snap.profile(ownerID)}, PacketFilters: map[string]any{"base": []tailcfg.FilterRule{}},
		Node: &tailcfg.Node{
			ID: 1, StableID: stableID(1), Name: "removed." + c.cfg.Domain + ".", User: ownerID, Key: k, KeyExpiry: now.Add(-time.Hour), Expired: true,
			Addresses: []netip.Prefix{}, AllowedIPs: []netip.Prefix{}, MachineAuthorized: true,
		}}
}

// first is the whole map, of which everything later is a change.
func (s *session) first(snap *snapshot) *response {
	n := snap.nodes[s.id]
	if n == nil || n.Key != s.key {
		return s.c.stranger(s.key)
	}
	r := s.delta(snap, n)
	r.Domain, r.Peers, r.PeersChanged = s.c.cfg.Domain, r.PeersChanged, nil
	return r
}

// delta is what the client does not know yet of a snapshot.
func (s *session) delta(snap *snapshot, n *node) *response {
	r := &response{}
	var was *node
	if s.told != nil {
		was = s.told.nodes[n.ID]
	}
	if was == nil || n.shown != was.shown || snap.compiled != s.told.compiled {
		s.deltaSelf(r, snap, n)
	}
	// Who sees whom follows from the policy and these two. So where those of the
	// client stay, only they who changed need a look.
	ids, ok := snap.since(s.told)
	if ok && was != nil && was.ruled == n.ruled && s.told.policy == snap.policy {
		for _, id := range ids {
			s.deltaPeer(r, snap, n, id)
		}
	} else {
		s.deltaAll(r, snap, n)
	}
	s.told = snap
	if snap.dns != s.dns {
		r.DNSConfig, s.dns = snap.dns, snap.dns
	}
	relays := snap.place.Relays
	if s.self && snap.place.Inside != nil {
		relays = snap.place.Inside
	}
	if relays != s.relays && relays != nil {
		r.DERPMap, s.relays = relays, relays
	}
	return r
}

// since lists the nodes that changed after told; ok is false if that is too long ago.
func (s *snapshot) since(told *snapshot) (ids []tailcfg.NodeID, ok bool) {
	if told == nil || len(s.recent) == 0 || s.recent[0].gen > told.gen+1 {
		return nil, false
	}
	for _, r := range s.recent {
		if r.gen > told.gen {
			ids = append(ids, r.ids...)
		}
	}
	return slices.Compact(sortIDs(ids)), true
}

func sortIDs(ids []tailcfg.NodeID) []tailcfg.NodeID {
	sort.Slice(ids, func(i, j int) bool { return ids[i] < ids[j] })
	return ids
}

func (s *session) deltaSelf(r *response, snap *snapshot, n *node) {
	self := snap.self(n)
	if text := essence(self); text != s.selfJSON {
		r.Node, s.selfJSON = self, text
	}
	s.deltaUser(r, snap, n)
	if k := snap.compiled.FilterKey(n.ID); k != s.filter || s.told == nil {
		r.PacketFilters, s.filter = map[string]any{"base": snap.compiled.Filter(n.ID)}, k
	}
}

// essence is a node's own view without what it has told us itself.
func essence(self *tailcfg.Node) string {
	w := *self
	w.Endpoints, w.DiscoKey, w.HomeDERP, w.Online, w.LastSeen = nil, key.DiscoPublic{}, 0, nil, nil
	w.Hostinfo = tailcfg.HostinfoView{}
	return string(mustJSON(&w))
}

func (s *session) deltaAll(r *response, snap *snapshot, n *node) {
	for _, p := range snap.order {
		s.deltaPeer(r, snap, n, p.ID)
	}
	if s.told == nil {
		return
	}
	for _, p := range s.told.order {
		if snap.nodes[p.ID] == nil {
			s.deltaPeer(r, snap, n, p.ID)
		}
	}
	sortIDs(r.PeersRemoved)
}

// deltaPeer adds what changed of one node: all of it, the little that clients
// can take as a patch, or that it is gone.
func (s *session) deltaPeer(r *response, snap *snapshot, self *node, id tailcfg.NodeID) {
	old, p := s.told.shownTo(self, id), snap.shownTo(self, id)
	switch {
	case p == old:
		return
	case p == nil:
		r.PeersRemoved = append(r.PeersRemoved, id)
		return
	case old != nil:
		if same, patch := p.since(old); same {
			return
		} else if patch != nil {
			r.PeersChangedPatch = append(r.PeersChangedPatch, patch)
			return
		}
	}
	r.PeersChanged = append(r.PeersChanged, p.text(s.version))
	s.deltaUser(r, snap, snap.nodes[id])
}

// deltaUser introduces the user of a node once.
func (s *session) deltaUser(r *response, snap *snapshot, n *node) {
	if id := n.shown.node.User; !s.users[id] {
		s.users[id] = true
		r.UserProfiles = append(r.UserProfiles, snap.profile(id))
	}
}

// patchOf gives the difference of two states of one node if a patch can say it,
// nil if it takes the whole node; same says that there is none.
func patchOf(old, now *tailcfg.Node) (same bool, patch *tailcfg.PeerChange) {
	w := *old
	p := &tailcfg.PeerChange{NodeID: now.ID}
	changed := false
	if !slices.Equal(w.Endpoints, now.Endpoints) && len(now.Endpoints) > 0 {
		w.Endpoints, p.Endpoints, changed = now.Endpoints, now.Endpoints, true
	}
	if w.DiscoKey != now.DiscoKey && !now.DiscoKey.IsZero() {
		w.DiscoKey, p.DiscoKey, changed = now.DiscoKey, &now.DiscoKey, true
	}
	if w.HomeDERP != now.HomeDERP && now.HomeDERP != 0 {
		w.HomeDERP, p.DERPRegion, changed = now.HomeDERP, now.HomeDERP, true
	}
	if *w.Online != *now.Online {
		w.Online, p.Online, changed = now.Online, now.Online, true
	}
	if now.LastSeen != nil && (w.LastSeen == nil || !w.LastSeen.Equal(*now.LastSeen)) {
		w.LastSeen, p.LastSeen, changed = now.LastSeen, now.LastSeen, true
	}
	if now.LastSeen == nil && *now.Online {
		w.LastSeen = nil // an online node has none
	}
	if !w.Equal(now) {
		return false, nil
	}
	return !changed, p
}
