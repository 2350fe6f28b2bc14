package underlay

import (
	"net/netip"
	"time"

	"subnetd/subnetd/path"

	"tailscale.com/types/key"
)

// leaveYoung is how long ago a direct address may have been trusted that we
// leave to the kernel: NATs keep a mapping for two minutes (RFC 4787, 4.3).
const leaveYoung = 2 * time.Minute

// Endpoint is where the kernel shall send to the peer now: its direct address,
// or, to us, the peer's own address on lo. OnUse tells of changes. Like the other
// methods for the tunnel it is for kernel mode only.
func (u *Underlay) Endpoint(k key.NodePublic) netip.AddrPort { return *u.conduit.peer(k).pin.Load() }

// Carried says that the tunnel has sent data to the peer, or received some,
// since it last looked. Tell Roamed first, if the same look shows that as well.
func (u *Underlay) Carried(k key.NodePublic, sent, received bool) {
	p := (*u.peers.Load())[k]
	if p == nil {
		return
	}
	at, unclear := *p.pin.Load(), p.unclear.Swap(false)
	if at == p.loop {
		return // we have carried it, and noted that
	}
	if sent { // looks are rare enough: each is told
		u.hint(path.Sent{Peer: k})
	}
	if received && !unclear {
		u.hint(path.Received{Peer: k, From: path.Source{Addr: at}})
	}
}

// Roamed says that the kernel has followed the peer to an address that we did
// not set. It does no harm to say it again.
func (u *Underlay) Roamed(k key.NodePublic, to netip.AddrPort) {
	u.conduit.peer(k).unclear.Store(true)
	u.mu.Lock()
	if u.roams == nil {
		u.roams = map[key.NodePublic]netip.AddrPort{}
	}
	u.roams[k] = to
	u.mu.Unlock()
	signal(u.wake)
}

// adopt takes over what a run before left in the kernel: a peer that has a real
// address keeps it until the machine knows better, so that nothing is lost.
func (l *loop) adopt() {
	for k, a := range l.u.cfg.Adopted {
		l.takeRoam(k, a)
	}
	l.u.adopted.Store(true)
}

// takeRoam leaves the kernel where it is and asks the machine, which always
// answers with a Use: at once, or after it has pinged the address.
func (l *loop) takeRoam(k key.NodePublic, to netip.AddrPort) {
	p := l.u.conduit.peer(k)
	to = unmap(to)
	if to == *p.pin.Load() {
		if !p.adrift {
			l.u.cfg.OnUse(k, to) // we mean it; the tunnel did not know yet
		}
		return
	}
	p.adrift = true
	if !to.Addr().IsLoopback() {
		p.pin.Store(&to)
		l.u.movedAt(p)
	}
	l.step(path.Roamed{Peer: k, Addr: to})
}

// pin tells the kernel where to send to the peer, if that is not where it does:
// to the direct address if the machine trusts it and wants no other way beside
// it, else to us.
func (l *loop) pin(p *peer, use *path.Use) {
	to := p.loop
	if use.Addr.IsValid() && use.Region == 0 {
		to = use.Addr
	} else if !p.adrift && *p.pin.Load() != p.loop {
		p.trusted = l.u.uptime()
	}
	if p.adrift || to != *p.pin.Load() {
		l.setPin(p, to)
	}
}

func (l *loop) setPin(p *peer, to netip.AddrPort) {
	p.adrift = false
	p.pin.Store(&to)
	l.u.movedAt(p)
	l.u.cfg.OnUse(p.key, to)
}

// leave sets the kernel to the direct addresses of peers that it has so far
// reached by us: from now on we carry nothing. One that was not in use for long
// is none to leave: a NAT will have forgotten it, and the next run would wait for
// an answer from there.
func (l *loop) leave() {
	if l.u.conduit == nil {
		return
	}
	for _, p := range *l.u.peers.Load() {
		use := p.use.Load()
		young := p.trusted != 0 && l.u.uptime()-p.trusted < leaveYoung
		if young && use.Addr.IsValid() && !p.adrift && *p.pin.Load() != use.Addr {
			l.setPin(p, use.Addr)
		}
	}
}
