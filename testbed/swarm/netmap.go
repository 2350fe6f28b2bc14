package swarm

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"unique"

	"tailscale.com/tailcfg"
)

// Peer is what a node keeps of another, or of itself.
type Peer struct {
	ID        tailcfg.NodeID
	Name      string // fully qualified, with a dot at its end
	Key       string // "nodekey:..."
	Addresses string // as the coordinator wrote them, without the brackets
	Endpoints string // as the coordinator wrote them, without the brackets
	HomeDERP  int
	Online    bool
	Expired   bool
}

// HasEndpoint reports whether the peer has this one, written ADDRESS:PORT.
func (p Peer) HasEndpoint(ep string) bool { return strings.Contains(p.Endpoints, `"`+ep+`"`) }

// Change is one thing that a node has learned.
type Change struct {
	Peer    Peer // as it is now; as it was, if removed
	Self    bool // Peer is the node itself
	Removed bool
}

// netmap is one node's view. Equal peers of different nodes are one in memory.
type netmap struct {
	self  Peer
	peers map[tailcfg.NodeID]unique.Handle[Peer]
}

// frame is what one map frame says.
type frame struct {
	keepAlive bool
	self      *Peer
	full      []Peer // all peers
	isFull    bool
	changed   []Peer
	removed   []tailcfg.NodeID
	patches   []func(netmap) (Peer, bool)
	derp      *tailcfg.DERPMap
}

var errJSON = errors.New("a map frame is no JSON of the expected form")

func parseFrame(b []byte) (frame, error) {
	var f frame
	s := &scan{b: b}
	s.object(func(name []byte) {
		switch string(name) {
		case "KeepAlive":
			f.keepAlive = s.boolean()
		case "Node":
			p := s.peer()
			f.self = &p
		case "Peers":
			f.isFull = s.peek() == '['
			s.array(func() { f.full = append(f.full, s.peer()) })
		case "PeersChanged":
			s.array(func() { f.changed = append(f.changed, s.peer()) })
		case "PeersRemoved":
			s.array(func() { f.removed = append(f.removed, tailcfg.NodeID(s.integer())) })
		case "PeersChangedPatch":
			s.array(func() { f.patches = append(f.patches, s.patch()) })
		case "OnlineChange":
			s.object(func(id []byte) { f.patches = append(f.patches, s.online(id)) })
		case "DERPMap":
			f.derp = new(tailcfg.DERPMap)
			s.bad = json.Unmarshal(s.skip(), f.derp) != nil || s.bad
		default:
			s.skip()
		}
	})
	if s.bad {
		return frame{}, errJSON
	}
	return f, nil
}

// peer reads a node object.
func (s *scan) peer() Peer {
	var p Peer
	s.object(func(name []byte) {
		if !s.field(&p, name) {
			s.skip()
		}
	})
	return p
}

// field reads the value of a field that nodes and patches have alike, and reports whether name is one.
func (s *scan) field(p *Peer, name []byte) bool {
	switch string(name) {
	case "ID", "NodeID":
		p.ID = tailcfg.NodeID(s.integer())
	case "Name":
		p.Name = string(s.str())
	case "Key":
		p.Key = string(s.str())
	case "Addresses":
		p.Addresses = inner(s.skip())
	case "Endpoints":
		p.Endpoints = inner(s.skip())
	case "HomeDERP", "DERPRegion":
		p.HomeDERP = int(s.integer())
	case "Online":
		p.Online = s.boolean()
	case "Expired":
		p.Expired = s.boolean()
	default:
		return false
	}
	return true
}

// inner is the text of a list without its brackets.
func inner(list []byte) string {
	if len(list) < 2 || list[0] != '[' {
		return ""
	}
	return string(list[1 : len(list)-1])
}

// patch reads a PeerChange: what it does not name stays.
func (s *scan) patch() func(netmap) (Peer, bool) {
	var p Peer
	named := map[string]bool{}
	s.object(func(name []byte) {
		if s.peek() == 'n' || !s.field(&p, name) {
			s.skip()
			return
		}
		named[string(name)] = true
	})
	return func(m netmap) (Peer, bool) {
		h, ok := m.peers[p.ID]
		if !ok {
			return Peer{}, false
		}
		now := h.Value()
		if named["Key"] {
			now.Key = p.Key
		}
		if named["Endpoints"] {
			now.Endpoints = p.Endpoints
		}
		if named["DERPRegion"] {
			now.HomeDERP = p.HomeDERP
		}
		if named["Online"] {
			now.Online = p.Online
		}
		return now, true
	}
}

// online reads what OnlineChange says of one node.
func (s *scan) online(id []byte) func(netmap) (Peer, bool) {
	n, err := strconv.ParseInt(string(id), 10, 64)
	is := s.boolean()
	s.bad = s.bad || err != nil
	return func(m netmap) (Peer, bool) {
		h, ok := m.peers[tailcfg.NodeID(n)]
		if !ok {
			return Peer{}, false
		}
		now := h.Value()
		now.Online = is
		return now, true
	}
}

// apply brings the netmap up to date and tells of every change, in the order of the stock client: the list or the
// differences to it, then the patches.
func (m *netmap) apply(f frame, tell func(Change)) {
	if f.self != nil && *f.self != m.self {
		m.self = *f.self
		tell(Change{Peer: m.self, Self: true})
	}
	if f.isFull {
		m.replace(f.full, tell)
	} else {
		for _, p := range f.changed {
			m.set(p, tell)
		}
		for _, id := range f.removed {
			m.remove(id, tell)
		}
	}
	for _, patch := range f.patches {
		if p, ok := patch(*m); ok {
			m.set(p, tell)
		}
	}
}

func (m *netmap) replace(all []Peer, tell func(Change)) {
	keep := make(map[tailcfg.NodeID]bool, len(all))
	for _, p := range all {
		keep[p.ID] = true
	}
	for id := range m.peers {
		if !keep[id] {
			m.remove(id, tell)
		}
	}
	if m.peers == nil {
		m.peers = make(map[tailcfg.NodeID]unique.Handle[Peer], len(all))
	}
	for _, p := range all {
		m.set(p, tell)
	}
}

func (m *netmap) set(p Peer, tell func(Change)) {
	h := unique.Make(p)
	if was, ok := m.peers[p.ID]; ok && was == h {
		return
	}
	if m.peers == nil {
		m.peers = map[tailcfg.NodeID]unique.Handle[Peer]{}
	}
	m.peers[p.ID] = h
	tell(Change{Peer: p})
}

func (m *netmap) remove(id tailcfg.NodeID, tell func(Change)) {
	if was, ok := m.peers[id]; ok {
		delete(m.peers, id)
		tell(Change{Peer: was.Value(), Removed: true})
	}
}
