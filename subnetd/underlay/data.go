package underlay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"subnetd/subnetd/path"

	"tailscale.com/disco"
	"tailscale.com/net/stun"
	"tailscale.com/types/key"
)

// ReceiveFunc blocks until packets came, copies them into packets and tells
// their sizes and senders; a zero key is a sender we do not know. After
// CloseReceivers or the end of Run it returns net.ErrClosed.
type ReceiveFunc = func(packets [][]byte, sizes []int, from []key.NodePublic) (int, error)

// batchSize is how many packets one call of a ReceiveFunc should have room for.
const batchSize = 64

// packetSize is the most bytes a packet in our queues may have.
const packetSize = 2048

var errNoPath = errors.New("no path to the peer")

// peer is what the data plane knows of a peer. The loop writes, all read.
type peer struct {
	key    key.NodePublic
	use    atomic.Pointer[path.Use] // nil: the machine has not spoken yet
	home   atomic.Int32             // the peer's home region; 0: none
	region atomic.Int32             // relay region its traffic came over last; 0: none
	sent   atomic.Int64             // uptime at which the machine was last told of sending
	got    atomic.Int64             // the same for receiving directly
	gotBy  atomic.Int64             // the same for receiving over relays
	addrs  []netip.AddrPort         // its entries in Underlay.addrs; owned by the loop

	// In kernel mode:
	loop    netip.AddrPort                 // its address on lo
	pin     atomic.Pointer[netip.AddrPort] // where the kernel sends to it; never nil
	adrift  bool                           // not because we said so; owned by the loop
	trusted time.Duration                  // uptime at which we last meant a direct address by that; owned by the loop
	unclear atomic.Bool                    // not all that the tunnel received came from pin
	began   atomic.Pointer[initiation]     // handshake without answer; nil: none
	door    atomic.Uint32                  // port of WireGuard's for it alone; 0: the public one

	ourAddr   netip.Addr // towards ourAddrTo, by the facts of ourAddrAt; owned by injectLoop
	ourAddrTo netip.AddrPort
	ourAddrAt uint32
}

// packet is a copy of bytes on the way between two goroutines.
type packet struct {
	from path.Source
	peer key.NodePublic // relay: sender or receiver
	n    int
	data [packetSize]byte
}

func (p *packet) bytes() []byte { return p.data[:p.n] }

// newPacket copies b; nil if it is too large.
func (u *Underlay) newPacket(b []byte) *packet {
	if len(b) > packetSize {
		return nil
	}
	p := u.packets.Get().(*packet)
	p.n = copy(p.data[:], b)
	return p
}

func (u *Underlay) free(p *packet) { u.packets.Put(p) }

// generation is one Open: the receivers of it end together.
type generation struct {
	busy   sync.RWMutex  // held for reading by a ReceiveFunc at work
	ended  chan struct{} // closed by CloseReceivers
	closed atomic.Bool
}

// receivers is who reads the sockets now.
type receivers struct {
	mu      sync.Mutex // guards all below, and the order of opening and closing
	current *generation
	pump    *sync.WaitGroup // not nil: current is our own pump
	running int             // Run and a self-test, as far as at work: pump while nobody else reads
	readers []*reader
}

func (r *receivers) init(u *Underlay) {
	for _, s := range u.sockets() {
		r.readers = append(r.readers, newReader(s))
	}
}

// Open gives the receivers of all packets (IPv4, IPv6, relay) and the UDP
// port. Earlier receivers are closed.
func (u *Underlay) Open() ([]ReceiveFunc, uint16, error) {
	u.receivers.mu.Lock()
	defer u.receivers.mu.Unlock()
	if u.conduit != nil {
		return nil, 0, errors.New("the packets of the kernel's WireGuard are not handed out")
	}
	u.stopReceivers()
	select {
	case <-u.done:
		return nil, 0, net.ErrClosed
	default:
	}
	return u.startReceivers(), u.port, nil
}

// CloseReceivers ends the receivers of Open. The sockets stay, and until the
// next Open we read them ourselves, so that disco and STUN go on.
func (u *Underlay) CloseReceivers() error {
	u.receivers.mu.Lock()
	defer u.receivers.mu.Unlock()
	if u.receivers.pump != nil {
		return nil
	}
	u.stopReceivers()
	u.startPump()
	return nil
}

// startRunning begins to read the sockets if nobody does, stopRunning ends all
// that read them, with the last who called startRunning.
func (u *Underlay) startRunning() {
	u.receivers.mu.Lock()
	defer u.receivers.mu.Unlock()
	u.receivers.running++
	if u.receivers.current == nil {
		u.startPump()
	}
}

func (u *Underlay) stopRunning() {
	u.receivers.mu.Lock()
	defer u.receivers.mu.Unlock()
	if u.receivers.running--; u.receivers.running == 0 {
		u.stopReceivers()
	}
}

func (u *Underlay) startReceivers() []ReceiveFunc {
	g := &generation{ended: make(chan struct{})}
	u.receivers.current = g
	var all []ReceiveFunc
	for _, r := range u.receivers.readers {
		_ = r.sock.conn.SetReadDeadline(time.Time{})
		all = append(all, u.receiveUDP(g, r))
	}
	if u.conduit == nil { // else injectLoop has them
		all = append(all, u.receiveRelay(g))
	}
	return all
}

func (u *Underlay) stopReceivers() {
	g := u.receivers.current
	if g == nil {
		return
	}
	g.closed.Store(true)
	close(g.ended)
	for _, r := range u.receivers.readers {
		_ = r.sock.conn.SetReadDeadline(time.Unix(1, 0))
	}
	g.busy.Lock() // all have left
	//lint:ignore SA2001 nothing is to be done while it is held
	g.busy.Unlock()
	if u.receivers.pump != nil {
		u.receivers.pump.Wait()
	}
	u.receivers.current, u.receivers.pump = nil, nil
}

// startPump reads everything and drops the WireGuard packets.
func (u *Underlay) startPump() {
	if u.receivers.running == 0 {
		return
	}
	u.receivers.pump = new(sync.WaitGroup)
	for _, f := range u.startReceivers() {
		u.receivers.pump.Go(func() {
			for {
				if _, err := f(nil, nil, nil); err != nil {
					return
				}
			}
		})
	}
}

func (u *Underlay) receiveUDP(g *generation, r *reader) ReceiveFunc {
	return func(packets [][]byte, sizes []int, from []key.NodePublic) (int, error) {
		g.busy.RLock()
		defer g.busy.RUnlock()
		for !g.closed.Load() {
			if n := u.demux(r, packets, sizes, from); n > 0 {
				return n, nil
			}
			err := r.fill()
			switch {
			case err == nil, errors.Is(err, os.ErrDeadlineExceeded):
			case errors.Is(err, net.ErrClosed):
				return 0, net.ErrClosed
			default: // out of memory, most likely: it passes
				u.cfg.Log.Debug("receive", "err", err)
				time.Sleep(10 * time.Millisecond)
			}
		}
		return 0, net.ErrClosed
	}
}

// demux hands on what the reader holds: WireGuard packets to the caller, as
// many as fit; STUN and disco to whom they belong.
func (u *Underlay) demux(r *reader, packets [][]byte, sizes []int, from []key.NodePublic) int {
	addrs := *u.addrs.Load()
	n := 0
	for n < len(packets) || len(packets) == 0 {
		b, addr, ok := r.take()
		if !ok {
			break
		}
		switch classify(b) {
		case kindSTUN:
			u.takeSTUN(b)
		case kindDisco:
			if u.trial.passes(b) {
				continue
			}
			u.takeDisco(path.Source{Addr: addr}, b)
		case kindWireGuard:
			if len(packets) == 0 || len(b) > len(packets[n]) {
				continue
			}
			sizes[n] = copy(packets[n], b)
			from[n] = key.NodePublic{}
			if p := addrs[addr]; p != nil {
				from[n] = p.key
				u.noteReceived(p, path.Source{Addr: addr})
			} else if b[0] == wireguardData {
				u.noteStranger(addr)
			}
			n++
		}
	}
	return n
}

type kind int

const (
	kindWireGuard kind = iota
	kindDisco
	kindSTUN
)

// classify tells what shares the port apart. Only STUN answers count as STUN:
// the cookie alone can also be the receiver index of a WireGuard packet, whose
// second byte, however, is always 0.
func classify(b []byte) kind {
	switch {
	case len(b) >= 20 && b[0] == 1 && (b[1] == 0x01 || b[1] == 0x11) && stun.Is(b):
		return kindSTUN
	case disco.LooksLikeDiscoWrapper(b):
		return kindDisco
	}
	return kindWireGuard
}

// takeDisco queues a sealed message for the loop; a full queue drops it.
func (u *Underlay) takeDisco(from path.Source, b []byte) {
	p := u.newPacket(b)
	if p == nil {
		return
	}
	p.from = from
	select {
	case u.inbound <- p:
	default:
		u.free(p)
	}
}

func (u *Underlay) receiveRelay(g *generation) ReceiveFunc {
	return func(packets [][]byte, sizes []int, from []key.NodePublic) (int, error) {
		g.busy.RLock()
		defer g.busy.RUnlock()
		n := 0
		for {
			if n == 0 {
				select {
				case p := <-u.relayIn:
					n += u.deliver(p, n, packets, sizes, from)
				case <-g.ended:
					return 0, net.ErrClosed
				}
				continue
			}
			if n == len(packets) {
				return n, nil
			}
			select {
			case p := <-u.relayIn:
				n += u.deliver(p, n, packets, sizes, from)
			default:
				return n, nil
			}
		}
	}
}

// deliver copies a relayed packet into slot i; it is 1 if that was done.
func (u *Underlay) deliver(p *packet, i int, packets [][]byte, sizes []int, from []key.NodePublic) int {
	defer u.free(p)
	if i >= len(packets) || p.n > len(packets[i]) {
		return 0
	}
	sizes[i] = copy(packets[i], p.bytes())
	from[i] = p.peer
	return 1
}

// BatchSize is how many packets a ReceiveFunc may give at once.
func (u *Underlay) BatchSize() int { return batchSize }

// Send sends WireGuard packets to the peer the way the path machine chose:
// direct, over a relay, or both while the direct path is in doubt.
func (u *Underlay) Send(to key.NodePublic, packets [][]byte) error {
	p := (*u.peers.Load())[to]
	if p == nil {
		return fmt.Errorf("send to %s: %w", to.ShortString(), errNoPath)
	}
	u.noteSent(p)
	addr, region := p.way()
	var err error = errNoPath
	if addr.IsValid() {
		if err = u.sendUDP(addr, packets); err != nil && region == 0 {
			region = p.anyRegion() // the direct path is broken and the machine does not know yet
		}
	}
	if region != 0 && u.sendRelay(region, to, packets...) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("send to %s: %w", to.ShortString(), err)
	}
	return nil
}

// way is where to send: an address, a region, or both.
func (p *peer) way() (netip.AddrPort, int) {
	if use := p.use.Load(); use != nil && (use.Addr.IsValid() || use.Region != 0) {
		return use.Addr, use.Region
	}
	return netip.AddrPort{}, p.anyRegion()
}

// anyRegion is a relay by which the peer may be reached: its home, else the
// one over which it was last heard.
func (p *peer) anyRegion() int {
	if home := p.home.Load(); home != 0 {
		return int(home)
	}
	return int(p.region.Load())
}

func (u *Underlay) sendUDP(to netip.AddrPort, packets [][]byte) error {
	sock := u.socketFor(to.Addr())
	if sock == nil {
		return fmt.Errorf("no socket for %s", to)
	}
	s := u.senders.Get().(*sender)
	defer u.senders.Put(s)
	return s.writeBatch(sock, netip.Addr{}, to, packets)
}

func (u *Underlay) socketFor(a netip.Addr) *socket {
	switch {
	case a.Is4():
		return u.v4
	case a.Is6() && !a.Is4In6():
		return u.v6
	}
	return nil
}

// sendRelay queues packets on a relay connection, opening it if need be. It is
// false if there is no such region.
func (u *Underlay) sendRelay(region int, to key.NodePublic, packets ...[]byte) bool {
	r := (*u.relays.Load())[region]
	if r == nil {
		return false
	}
	for _, b := range packets {
		r.enqueue(to, b)
	}
	return true
}

// noteSent and noteReceived tell the machine, once a second and peer.
func (u *Underlay) noteSent(p *peer) {
	if u.due(&p.sent) {
		u.hint(path.Sent{Peer: p.key})
	}
}

// What relays bring has a second of its own: that a peer sends both ways says
// that it doubts the direct one.
func (u *Underlay) noteReceived(p *peer, from path.Source) {
	last := &p.got
	if from.Region != 0 {
		last = &p.gotBy
	}
	if u.due(last) {
		u.hint(path.Received{Peer: p.key, From: from})
	}
}

// noteStranger tells the machine of data from an address that is nobody's, ten
// times a second at most.
func (u *Underlay) noteStranger(from netip.AddrPort) {
	if u.dueEvery(&u.strange, 100*time.Millisecond) {
		u.hint(path.Stranger{From: from})
	}
}

func (u *Underlay) due(last *atomic.Int64) bool { return u.dueEvery(last, time.Second) }

func (u *Underlay) dueEvery(last *atomic.Int64, pause time.Duration) bool {
	now, was := int64(u.uptime())+1, last.Load()
	return (was == 0 || now-was >= int64(pause)) && last.CompareAndSwap(was, now)
}

func (u *Underlay) hint(e path.Event) {
	select {
	case u.hints <- e:
	default:
	}
}
