package simnet

import (
	"net/netip"
	"time"

	"subnetd/subnetd/path"

	"tailscale.com/types/key"
)

// kernel is WireGuard in the kernel: it sends where authenticated data came
// from last, and tells nobody. What that is, and whether data passed, is seen
// only by looking.
type kernel struct {
	node  *Node
	every time.Duration // between looks
	peers map[key.NodePublic]*kernelPeer
	order []key.NodePublic
}

type kernelPeer struct {
	pin, at   netip.AddrPort // as told, and as it is; invalid: our conduit
	sent, got bool           // since the last look
	injected  bool           // what came over a relay was given to it since
}

// Kernel has the kernel carry the node's data from now on; it is looked at
// every so often.
func (n *Node) Kernel(every time.Duration) {
	n.kernel = &kernel{node: n, every: every, peers: map[key.NodePublic]*kernelPeer{}}
	n.sim.After(every, n.kernel.look)
}

func (k *kernel) peer(who key.NodePublic) *kernelPeer {
	p := k.peers[who]
	if p == nil {
		p = &kernelPeer{}
		k.peers[who] = p
		k.order = append(k.order, who)
	}
	return p
}

// send is false if it went to the conduit, where we have to send it on.
func (k *kernel) send(to key.NodePublic, d data) bool {
	p := k.peer(to)
	p.sent = true
	if p.at.IsValid() {
		k.node.Host.Send(p.at, d)
	}
	return p.at.IsValid()
}

// receive has the kernel follow a packet to from; invalid: it came over a relay,
// and is injected as if from where the kernel is to send.
func (k *kernel) receive(who key.NodePublic, from netip.AddrPort) {
	p := k.peer(who)
	if from.IsValid() {
		p.at, p.got = from, true
	} else {
		p.at, p.injected = p.pin, true
	}
}

// pin does what Use says: the kernel sends directly only where that is trusted.
func (k *kernel) pin(u path.Use) {
	p := k.peer(u.Peer)
	p.pin = u.Addr
	if u.Region != 0 {
		p.pin = netip.AddrPort{}
	}
	p.at = p.pin
}

// look tells the machine what it sees.
func (k *kernel) look() {
	for _, who := range k.order {
		p := *k.peers[who]
		k.peers[who].sent, k.peers[who].got, k.peers[who].injected = false, false, false
		if p.sent {
			k.node.step(path.Sent{Peer: who})
		}
		if p.got && !p.injected && p.at.IsValid() {
			k.node.step(path.Received{Peer: who, From: path.Source{Addr: p.at}})
		}
		if p.at.IsValid() && p.at != p.pin {
			k.node.step(path.Roamed{Peer: who, Addr: p.at})
		}
	}
	k.node.sim.After(k.every, k.look)
}

// adopt tells the machine what the kernel still has after a restart.
func (n *Node) adopt() {
	if n.kernel == nil {
		return
	}
	for _, who := range n.kernel.order {
		if p := n.kernel.peers[who]; p.at.IsValid() {
			n.step(path.Roamed{Peer: who, Addr: p.at})
		}
	}
}
