package underlay

import (
	"net/netip"

	"subnetd/subnetd/path"

	"tailscale.com/disco"
	"tailscale.com/types/key"

	"go4.org/mem"
)

const (
	keySize         = 32
	maxCallEndpoint = 64 // endpoints taken from one CallMeMaybe
)

// takeDisco opens a sealed message and tells the machine. What is not from a
// peer's disco key, or does not open, is dropped in silence.
func (l *loop) takeDisco(p *packet) {
	e, ok := l.open(p.from, p.bytes())
	if !ok {
		return
	}
	if ping, ok := e.(path.Ping); ok && ping.From.Addr.IsValid() {
		l.u.cfg.OnActive()
	}
	l.step(e)
}

func (l *loop) open(from path.Source, b []byte) (path.Event, bool) {
	raw, ok := disco.Source(b)
	if !ok {
		return nil, false
	}
	sender := key.DiscoPublicFromRaw32(mem.B(raw))
	shared := l.shared(sender)
	if shared == nil {
		return nil, false
	}
	plain, ok := shared.Open(b[len(disco.Magic)+keySize:])
	if !ok {
		return nil, false
	}
	m, err := disco.Parse(plain)
	if err != nil {
		return nil, false
	}
	return event(from, sender, m)
}

// event is the machine's form of a message.
func event(from path.Source, sender key.DiscoPublic, m disco.Message) (path.Event, bool) {
	switch m := m.(type) {
	case *disco.Ping:
		return path.Ping{From: from, Sender: sender, TxID: path.TxID(m.TxID), Node: m.NodeKey}, true
	case *disco.Pong:
		return path.Pong{From: from, Sender: sender, TxID: path.TxID(m.TxID), Src: unmap(m.Src)}, true
	case *disco.CallMeMaybe:
		if from.Region == 0 {
			return nil, false // only a relay can vouch for it
		}
		e := path.CallMeMaybe{From: from, Sender: sender}
		for _, a := range m.MyNumber[:min(len(m.MyNumber), maxCallEndpoint)] {
			e.Endpoints = append(e.Endpoints, unmap(a))
		}
		return e, true
	}
	return nil, false
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// shared is the secret we have with a peer's disco key, computed when first
// needed; nil if no peer has that key.
func (l *loop) shared(k key.DiscoPublic) *key.DiscoShared {
	s, ok := l.disco[k]
	if ok && s == nil {
		fresh := l.u.disco.Shared(k)
		s = &fresh
		l.disco[k] = s
	}
	return s
}

// do does what the machine says.
func (l *loop) do(a path.Action) {
	switch a := a.(type) {
	case path.SendPing:
		l.sendDisco(a.To, a.Peer, a.Disco, &disco.Ping{TxID: a.TxID, NodeKey: l.node})
	case path.SendPong:
		src := a.Src
		if !src.IsValid() { // over a relay: the address that stands for the region
			src = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 3, 3, 40}), uint16(a.To.Region))
		}
		l.sendDisco(a.To, a.Peer, a.Disco, &disco.Pong{TxID: a.TxID, Src: src})
	case path.SendCallMeMaybe:
		l.sendDisco(path.Source{Region: a.Region}, a.Peer, a.Disco, &disco.CallMeMaybe{MyNumber: a.Endpoints})
	case path.Use:
		if p := (*l.u.peers.Load())[a.Peer]; p != nil {
			l.use(p, &a)
		}
	case path.Map:
		l.mapAddr(a)
	case path.Restun:
		l.orderRound()
	case path.Answered:
		if p, ok := l.probes[a.ID]; ok {
			p.answer <- a.Path // it has room for one, and there is only one
			delete(l.probes, a.ID)
		}
	}
}

func (l *loop) use(p *peer, use *path.Use) {
	was := p.use.Swap(use)
	if l.u.conduit != nil {
		l.pin(p, use)
		if was == nil || was.Addr != use.Addr || was.Region != use.Region {
			l.u.resume(p)
		}
	}
	signal(l.u.pathSignal)
}

func (l *loop) sendDisco(to path.Source, peer key.NodePublic, k key.DiscoPublic, m disco.Message) {
	shared := l.shared(k)
	if shared == nil {
		return
	}
	b := append([]byte(disco.Magic), l.u.known.AppendTo(nil)...)
	b = append(b, shared.Seal(m.AppendMarshal(nil))...)
	if !to.Addr.IsValid() {
		l.u.sendRelay(to.Region, peer, b)
		return
	}
	if err := l.u.sendUDP(to.Addr, [][]byte{b}); err != nil {
		l.u.cfg.Log.Debug("disco not sent", "to", to.Addr, "err", err)
	}
}

// mapAddr says whose packets come from an address, in a new copy of the map.
// The oldest address of a peer that has too many is forgotten.
func (l *loop) mapAddr(a path.Map) {
	u := l.u
	old := *u.addrs.Load()
	p := (*u.peers.Load())[a.Peer]
	was := old[a.Addr]
	if was == p {
		return
	}
	addrs := make(map[netip.AddrPort]*peer, len(old)+1)
	for k, v := range old {
		addrs[k] = v
	}
	delete(addrs, a.Addr)
	if was != nil {
		was.forget(a.Addr)
	}
	if p != nil {
		if len(p.addrs) >= peerAddrs {
			delete(addrs, p.addrs[0])
			p.addrs = p.addrs[1:]
		}
		p.addrs = append(p.addrs, a.Addr)
		addrs[a.Addr] = p
	}
	u.addrs.Store(&addrs)
	u.movedAt(p, was)
}

func (p *peer) forget(a netip.AddrPort) {
	kept := p.addrs[:0:0]
	for _, b := range p.addrs {
		if b != a {
			kept = append(kept, b)
		}
	}
	p.addrs = kept
}
