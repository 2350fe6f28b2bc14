package swarm

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// oracle is the netmap as the plain types and the plain decoder have it.
type oracle map[tailcfg.NodeID]tailcfg.Node

func (o oracle) apply(m *tailcfg.MapResponse) {
	if m.Peers != nil {
		clear(o)
		for _, p := range m.Peers {
			o[p.ID] = *p
		}
	} else {
		for _, p := range m.PeersChanged {
			o[p.ID] = *p
		}
		for _, id := range m.PeersRemoved {
			delete(o, id)
		}
	}
	for _, c := range m.PeersChangedPatch {
		p, ok := o[c.NodeID]
		if !ok {
			continue
		}
		if c.DERPRegion != 0 {
			p.HomeDERP = c.DERPRegion
		}
		if c.Endpoints != nil {
			p.Endpoints = c.Endpoints
		}
		if c.Key != nil {
			p.Key = *c.Key
		}
		if c.Online != nil {
			p.Online = c.Online
		}
		o[p.ID] = p
	}
	for id, is := range m.OnlineChange {
		if p, ok := o[id]; ok {
			p.Online = &is
			o[id] = p
		}
	}
}

func (o oracle) peers() map[tailcfg.NodeID]Peer {
	all := map[tailcfg.NodeID]Peer{}
	for id, n := range o {
		all[id] = Peer{ID: id, Name: n.Name, Key: n.Key.String(), Addresses: quoted(n.Addresses), Endpoints: quoted(n.Endpoints),
			HomeDERP: n.HomeDERP, Online: n.Online != nil && *n.Online, Expired: n.Expired}
	}
	return all
}

func quoted[T fmt.Stringer](list []T) string {
	var all []string
	for _, e := range list {
		all = append(all, `"`+e.String()+`"`)
	}
	return strings.Join(all, ",")
}

// TestNetmapAgainstOracle applies long random runs of frames, and compares after each with what the plain decoder makes
// of it. Every change must be told, and nothing else.
func TestNetmapAgainstOracle(t *testing.T) {
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 1))
		var have netmap
		want, told := oracle{}, map[tailcfg.NodeID]Peer{}
		for step := range 100 {
			m := randomResponse(r)
			text, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			var again tailcfg.MapResponse
			if err := json.Unmarshal(text, &again); err != nil {
				t.Fatal(err)
			}
			want.apply(&again)
			f, err := parseFrame(text)
			if err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			have.apply(f, func(c Change) {
				switch {
				case c.Self:
				case c.Removed:
					delete(told, c.Peer.ID)
				default:
					told[c.Peer.ID] = c.Peer
				}
			})
			now := map[tailcfg.NodeID]Peer{}
			for id, h := range have.peers {
				now[id] = h.Value()
			}
			if w := want.peers(); !maps.Equal(now, w) || !maps.Equal(told, w) {
				t.Fatalf("seed %d, step %d: have\n%v\ntold\n%v\nwant\n%v\nafter %s", seed, step, now, told, w, text)
			}
		}
	}
}

// randomResponse is a frame about nodes 1 to 8, with much in it that nobody asked for.
func randomResponse(r *rand.Rand) *tailcfg.MapResponse {
	m := &tailcfg.MapResponse{Domain: `"{[\`, DNSConfig: &tailcfg.DNSConfig{Domains: []string{"a", `]}"`}},
		Node: randomNode(r, 9), PacketFilters: map[string][]tailcfg.FilterRule{"base": {{SrcIPs: []string{"*"}}}}}
	nodes := func() (all []*tailcfg.Node) {
		for range r.IntN(4) {
			all = append(all, randomNode(r, 1+tailcfg.NodeID(r.IntN(8))))
		}
		return all
	}
	switch r.IntN(6) {
	case 0:
		for id := range tailcfg.NodeID(r.IntN(8)) {
			m.Peers = append(m.Peers, randomNode(r, id+1))
		}
	case 1:
		m.PeersRemoved = []tailcfg.NodeID{tailcfg.NodeID(r.IntN(10))}
		fallthrough
	default:
		m.PeersChanged = nodes()
	}
	if r.IntN(2) == 0 {
		c := &tailcfg.PeerChange{NodeID: tailcfg.NodeID(r.IntN(10)), DERPRegion: r.IntN(3)}
		if r.IntN(2) == 0 {
			c.Endpoints = randomEndpoints(r)
		}
		if r.IntN(2) == 0 {
			c.Key = &someKeys[r.IntN(len(someKeys))]
		}
		m.PeersChangedPatch = []*tailcfg.PeerChange{c}
	}
	if r.IntN(2) == 0 {
		m.OnlineChange = map[tailcfg.NodeID]bool{tailcfg.NodeID(r.IntN(10)): r.IntN(2) == 0}
	}
	return m
}

// someKeys are few, for making keys takes long.
var someKeys = func() (all []key.NodePublic) {
	for range 8 {
		all = append(all, key.NewNode().Public())
	}
	return all
}()

func randomNode(r *rand.Rand, id tailcfg.NodeID) *tailcfg.Node {
	n := &tailcfg.Node{ID: id, Name: fmt.Sprintf("n%d\"\\\u00e4<.lab.test.", r.IntN(3)), Key: someKeys[r.IntN(len(someKeys))], HomeDERP: r.IntN(3),
		Addresses: []netip.Prefix{netip.MustParsePrefix("100.64.0.1/32")}, Endpoints: randomEndpoints(r), Expired: r.IntN(4) == 0,
		Hostinfo: (&tailcfg.Hostinfo{Hostname: `\"}`, Services: []tailcfg.Service{{Proto: tailcfg.PeerAPI4, Port: 1}}}).View()}
	if r.IntN(2) == 0 {
		is := r.IntN(2) == 0
		n.Online = &is
	}
	return n
}

func randomEndpoints(r *rand.Rand) (all []netip.AddrPort) {
	for range 1 + r.IntN(3) {
		all = append(all, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(256))}), uint16(r.IntN(1<<16))))
	}
	return all
}

// TestFrameRefused: what is no frame is an error, not half a netmap.
func TestFrameRefused(t *testing.T) {
	for _, text := range []string{"", "[]", "{", `{"Peers":`, `{"Peers":[{"ID":1}`, `{"Peers":[{"ID":"x"}]}`, `{"Node":"x`, `{"A":"\"}`,
		`{"Node":{"Name":"\z"}}`, `{"Peers":[{}{}]}`, `{"OnlineChange":{"x":true}}`, `{"DERPMap":[]}`} {
		if f, err := parseFrame([]byte(text)); err == nil {
			t.Errorf("%q is taken for %+v", text, f)
		}
	}
}

// FuzzFrame: no text makes the parser loop or crash.
func FuzzFrame(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		text, err := json.Marshal(randomResponse(r))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(` { "KeepAlive" : true , "Peers" : null } `))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := parseFrame(text)
		if err != nil {
			return
		}
		var nm netmap
		nm.apply(m, func(Change) {})
	})
}
