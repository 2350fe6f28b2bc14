package simnet

import (
	"net/netip"
	"slices"
	"time"
)

// Port is where every host has its one socket.
const Port = 41641

// Packet is one datagram. Data is a plain value: nobody looks into packets on
// the way.
type Packet struct {
	From, To netip.AddrPort
	Data     any
}

// Link is what happens to packets that cross a network.
type Link struct {
	Delay  time.Duration
	Jitter time.Duration // on top of the delay, at most
	Loss   float64       // part of the packets that is lost
}

// Network is what is connected without a router between.
type Network struct {
	Link
	Drop func(Packet) bool // packets that are lost, besides Loss; nil: none

	sim *Sim
	up  *Router // to the rest of the world; nil: the internet
	at  map[netip.Addr]func(Packet)
}

func newNetwork(s *Sim, l Link) *Network {
	return &Network{Link: l, sim: s, at: map[netip.Addr]func(Packet){}}
}

// send brings p to whoever has the address here, else to the router.
func (n *Network) send(p Packet) {
	to := n.at[p.To.Addr()]
	if to == nil && n.up != nil {
		to = n.up.out
	}
	n.carry(p, to)
}

func (n *Network) carry(p Packet, to func(Packet)) {
	if to == nil || n.Drop != nil && n.Drop(p) || n.Loss > 0 && n.sim.rnd.Float64() < n.Loss {
		return
	}
	d := n.Delay
	if n.Jitter > 0 {
		d += time.Duration(n.sim.rnd.Int64N(int64(n.Jitter)))
	}
	n.sim.After(d, func() { to(p) })
}

// Router stands between a network and the one above it.
type Router struct {
	Inside *Network

	nat     *NAT
	outside *Network
}

// Router connects a new network to n. Crossing it takes a millisecond.
func (n *Network) Router(k Kind, wan string) *Router {
	r := &Router{nat: NewNAT(k, netip.MustParseAddr(wan)), outside: n}
	r.Inside = newNetwork(n.sim, Link{Delay: time.Millisecond})
	r.Inside.up = r
	n.at[r.nat.wan] = r.in
	return r
}

// SetWAN gives the router another outer address; all mappings are gone.
func (r *Router) SetWAN(wan string) {
	delete(r.outside.at, r.nat.wan)
	r.nat.Reset(netip.MustParseAddr(wan))
	r.outside.at[r.nat.wan] = r.in
}

// SetKind makes it another kind of router; all mappings are gone.
func (r *Router) SetKind(k Kind) {
	r.nat.Kind = k
	r.nat.Reset(r.nat.wan)
}

// Route leads packets for an address to the router, which does not translate it.
func (n *Network) Route(addr string, r *Router) { n.at[netip.MustParseAddr(addr)] = r.in }

func (r *Router) out(p Packet) {
	from, ok := r.nat.Out(r.outside.sim.now, p.From, p.To)
	if !ok {
		return
	}
	p.From = from
	if p.To.Addr() != r.nat.wan {
		r.outside.send(p)
	} else if r.nat.Hairpin {
		r.in(p)
	}
}

// in never sends a packet back out, or two routers could play with it for ever.
func (r *Router) in(p Packet) {
	if to, ok := r.nat.In(r.outside.sim.now, p.From, p.To); ok {
		p.To = to
		r.Inside.carry(p, r.Inside.at[to.Addr()])
	}
}

// Host is a machine with at most one address of each family.
type Host struct {
	// Receive is given what comes for the host.
	Receive func(Packet)

	net   *Network // nil: offline
	addrs []netip.Addr
}

// Host adds a host to the network.
func (n *Network) Host(addrs ...string) *Host {
	h := &Host{}
	h.Move(n, addrs...)
	return h
}

// Move takes the host to another network; nil: it goes offline.
func (h *Host) Move(to *Network, addrs ...string) {
	h.announce(nil)
	h.net, h.addrs = to, nil
	for _, a := range addrs {
		h.addrs = append(h.addrs, netip.MustParseAddr(a))
	}
	h.announce(h.receive)
}

// announce tells the network who has the host's addresses now. IPv6 addresses
// are known to all networks above.
func (h *Host) announce(to func(Packet)) {
	for _, a := range h.addrs {
		for n, f := h.net, to; n != nil; n = n.up.outside {
			if f == nil {
				delete(n.at, a)
			} else {
				n.at[a] = f
			}
			if n.up == nil || a.Is4() {
				break
			}
			if f != nil {
				f = n.up.in
			}
		}
	}
}

func (h *Host) receive(p Packet) {
	if h.Receive != nil && p.To.Port() == Port {
		h.Receive(p)
	}
}

// Addrs returns where the host's socket is reached from its own network.
func (h *Host) Addrs() []netip.AddrPort {
	var all []netip.AddrPort
	for _, a := range h.addrs {
		all = append(all, netip.AddrPortFrom(a, Port))
	}
	return all
}

// Send sends data from the address of the same family, if there is one.
func (h *Host) Send(to netip.AddrPort, data any) {
	i := slices.IndexFunc(h.addrs, func(a netip.Addr) bool { return a.Is4() == to.Addr().Is4() })
	if h.net != nil && i >= 0 {
		h.net.send(Packet{netip.AddrPortFrom(h.addrs[i], Port), to, data})
	}
}
