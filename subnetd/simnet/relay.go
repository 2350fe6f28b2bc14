package simnet

import (
	"fmt"
	"time"

	"subnetd/subnetd/path"

	"tailscale.com/types/key"
)

// relayDelay is one way between a node and any relay, over TCP: that passes
// every router and loses nothing.
const relayDelay = 25 * time.Millisecond

// relay carries messages by node key, and answers STUN.
type relay struct {
	sim     *Sim
	region  int
	down    bool
	clients map[key.NodePublic]*Node
}

// stunAsk is answered by stunTell, with the address it came from.
type (
	stunAsk  struct{ round int }
	stunTell struct {
		round int
		addr  path.Source
	}
)

// Relay adds the relay of a region, with STUN of both families.
func (s *Sim) Relay(region int) {
	s.relays[region] = &relay{sim: s, region: region, clients: map[key.NodePublic]*Node{}}
	h := s.Internet.Host(stunAddrs(region)...)
	h.Receive = func(p Packet) {
		if ask, ok := p.Data.(stunAsk); ok {
			h.Send(p.From, stunTell{ask.round, path.Source{Addr: p.From}})
		}
	}
}

func stunAddrs(region int) []string {
	return []string{fmt.Sprintf("192.0.2.%d", region), fmt.Sprintf("2001:db8:ffff::%d", region)}
}

// SetRelay ends a relay with all its connections, or starts it again.
func (s *Sim) SetRelay(region int, up bool) { s.relays[region].down = !up }

// send brings data to the node of that key, or tells from that it is not here.
func (r *relay) send(from *Node, to key.NodePublic, data any) {
	if r == nil || r.down || from.Host.net == nil {
		return
	}
	r.clients[from.Key] = from
	source := path.Source{Region: r.region, Node: from.Key}
	r.sim.After(relayDelay, func() {
		n := r.clients[to]
		r.sim.After(relayDelay, func() {
			switch {
			case r.down:
			case n != nil && n.Host.net != nil:
				n.take(source, data)
			case n == nil && from.Host.net != nil:
				from.step(path.RelayGone{Peer: to, Region: r.region})
			}
		})
	})
}
