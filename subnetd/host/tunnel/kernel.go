package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"subnetd/subnetd/host"

	"golang.org/x/sys/unix"
	"tailscale.com/types/key"
)

// Ways is the underlay in kernel mode. Its methods are called while a Kernel is
// at work: they must not block, and of the Kernel's methods call only Pin and Look.
type Ways interface {
	// Endpoint is where the kernel shall send to the peer now: a direct address,
	// or the peer's own loopback address behind which the underlay sends on. It is
	// never older than what the last Pin of that peer said.
	Endpoint(k key.NodePublic) netip.AddrPort
	// Carried tells what the peer's tunnel has carried since the last look,
	// handshakes included.
	Carried(k key.NodePublic, sent, received bool)
	// Roamed tells that the kernel sends to an address that we did not set:
	// authentic packets came from there. It is told at every look that finds news,
	// before Carried, until the kernel is back or there is another Pin. An address
	// found in an interface of an earlier life counts as one, once.
	Roamed(k key.NodePublic, to netip.AddrPort)
}

const (
	// pollEvery is how often the counters are read, at least. A direct path that
	// died is found out in less than 2.5 s, of which 1.8 are for the peer to answer.
	pollEvery   = 500 * time.Millisecond
	pollPeer    = 20 * time.Millisecond // for each peer
	pollSlowest = 20 * time.Second
	pollLinger  = 10 * time.Second // polling goes on so long after the last news
)

// Kernel is the engine in the kernel. The interface outlives it: the next one
// finds it and changes only what differs; sessions go on. Its methods may be
// called from several goroutines.
//
// The kernel follows a peer to whichever address it hears it from. Kernel
// watches that, and what the peers carry, by polling: while some peer has a
// direct endpoint, and for a while after traffic or Look. An idle router sleeps.
type Kernel struct {
	log  *slog.Logger
	port uint16 // 0: the kernel's choice
	mark uint32
	ways Ways
	wake chan struct{} // one slot: Run shall look at its wishes

	sets sync.Mutex // one Set at a time; taken before mu

	mu      sync.Mutex // guards all below, for one exchange with the kernel at a time
	wg      wireguard
	name    string // interface; "": none
	listens uint16 // on that port, as last set
	peers   map[key.NodePublic]*kernelPeer
	rx, tx  uint64    // counters of the link when its peers were read last
	looked  time.Time // when the counters were looked at last
	moved   time.Time // when there was news last

	wishes sync.Mutex // guards all below; never held for long
	pins   map[key.NodePublic]netip.AddrPort
	kicks  map[key.NodePublic]bool // true: whatever the path
	asked  bool                    // Look was called
}

// kernelPeer is what we know of a peer in the kernel.
type kernelPeer struct {
	pin     netip.AddrPort // where it was told to send, or was found sending
	at      netip.AddrPort // where it sends, as last seen
	session string
	stat    Stat
}

// NewKernel makes an engine with no interface yet. WireGuard will listen on the
// port and mark its packets.
func NewKernel(log *slog.Logger, port uint16, mark uint32, w Ways) *Kernel {
	return &Kernel{log: log, port: port, mark: mark, ways: w, wake: make(chan struct{}, 1), wg: newWGKernel()}
}

// String is the name of the task.
func (k *Kernel) String() string { return "tunnel" }

// Set brings the interface and its peers to want. Peers that stay keep their
// sessions and endpoints. An interface without name is none. After a failure the
// next Set goes on from what the kernel then has.
func (k *Kernel) Set(ctx context.Context, want host.Tunnel) error {
	k.sets.Lock()
	defer k.sets.Unlock()
	if err := k.leave(want.Name); err != nil || want.Name == "" {
		return err
	}
	have, err := k.open(want)
	if err != nil {
		return k.failed(want.Name, err)
	}
	adopted := k.adopt(have, want.Peers)
	err = k.change(ctx, changes(have, want.Peers, k.renewed, k.ways.Endpoint))
	k.forget(want.Peers)
	for _, p := range adopted {
		k.ways.Roamed(p.key, p.endpoint)
	}
	k.signal()
	if err != nil {
		return k.failed(want.Name, err)
	}
	return nil
}

// failed says what of setting the interface did not work.
func (k *Kernel) failed(name string, err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("UDP port %d is taken: stop the program or other WireGuard interface that listens on it, or set tunnel.port: %w", k.port, err)
	}
	return fmt.Errorf("setting interface %s: %w", name, plain(err))
}

// leave removes our interface unless it has that name.
func (k *Kernel) leave(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.name != "" && k.name != name {
		if err := deleteLink(k.wg, k.name); err != nil {
			return fmt.Errorf("removing interface %s: %w", k.name, err)
		}
	}
	if k.name != name {
		k.name, k.peers, k.listens = name, nil, 0
	}
	return nil
}

// open finds or makes the interface, brings all but its peers to want, and
// gives the peers it has.
func (k *Kernel) open(want host.Tunnel) ([]wgPeer, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	l, err := k.wg.link(want.Name)
	if err == nil && l.index == 0 {
		if err = k.wg.create(want.Name); err == nil {
			l, err = k.wg.link(want.Name)
		}
	}
	if err != nil {
		return nil, err
	}
	if l.kind != wgName {
		return nil, errors.New("it exists and is somebody else's: stop its owner or set tunnel.interface")
	}
	device, have, err := k.read()
	if err != nil {
		return nil, err
	}
	wish := wgDevice{private: clamped(want.Key), port: k.port, mark: k.mark}
	if k.port == 0 && l.up {
		wish.port = device.port
	}
	if device != wish {
		// Under another key all sessions are void, and every peer that stays would
		// cost the kernel a curve multiplication under its lock.
		bare := device.private != wish.private
		if bare {
			have = nil
		}
		if err := k.wg.set(want.Name, &wgSet{device: &wish, bare: bare}); err != nil {
			return nil, err
		}
	}
	if !l.up || l.mtu != host.MTU {
		err = k.wg.start(l)
	}
	if k.listens = wish.port; err == nil && wish.port == 0 {
		device, err = k.wg.dump(want.Name, func(*wgPeer) {})
		k.listens = device.port
	}
	return have, err
}

// clamped is the key as the kernel keeps it (RFC 7748, 5).
func clamped(k key.NodePrivate) [32]byte {
	raw := k.Raw32()
	raw[0] &= 248
	raw[31] = raw[31]&127 | 64
	return raw
}

// read gives the interface as the kernel has it.
func (k *Kernel) read() (wgDevice, []wgPeer, error) {
	recent := k.recent(time.Now())
	for tries := 3; ; tries-- {
		var have []wgPeer
		device, err := k.wg.dump(k.name, func(p *wgPeer) {
			k.take(p, recent)
			have = append(have, *p)
			have[len(have)-1].allowed = slices.Clone(p.allowed)
		})
		if !errors.Is(err, errInterrupted) || tries == 1 {
			return device, have, err
		}
	}
}

// adopt takes over the peers that the kernel has and we do not know, and gives
// those it sends to directly.
func (k *Kernel) adopt(have []wgPeer, want []host.Peer) (found []wgPeer) {
	sessions := make(map[key.NodePublic]string, len(want))
	for i := range want {
		sessions[want[i].Key] = want[i].Session
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.peers == nil {
		k.peers = make(map[key.NodePublic]*kernelPeer, len(want))
	}
	for i := range have {
		h := &have[i]
		session, wanted := sessions[h.key]
		switch p := k.peers[h.key]; {
		case !wanted:
		case p == nil:
			k.peers[h.key] = &kernelPeer{pin: h.endpoint, at: h.endpoint, session: session, stat: h.stat}
			if direct(h.endpoint) && !h.foreign {
				found = append(found, *h)
			}
		case p.session == "":
			p.session = session
		}
	}
	return found
}

// renewed reports whether the peer restarted: what is sent under the old session
// keys would be lost until a timer of WireGuard's finds out.
func (k *Kernel) renewed(want *host.Peer) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.peers[want.Key]
	return p != nil && p.session != want.Session
}

// change sends the changes, a few at a time.
func (k *Kernel) change(ctx context.Context, all []wgChange) error {
	for len(all) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(len(all), batchPeers)
		if err := k.send(all[:n]); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}

// send sends one message and keeps what has become of the peers. It asks for
// endpoints itself, so that no pin is lost that comes in between: those of peers
// which the kernel does not have yet are dropped.
func (k *Kernel) send(batch []wgChange) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range batch {
		if c := &batch[i]; c.aim {
			c.endpoint = plainAddr(k.ways.Endpoint(c.key))
		}
	}
	if err := k.wg.set(k.name, &wgSet{peers: batch}); err != nil {
		return err
	}
	for i := range batch {
		k.record(&batch[i])
	}
	return nil
}

// record keeps what a change made of a peer.
func (k *Kernel) record(c *wgChange) {
	switch p := k.peers[c.key]; {
	case c.add:
		k.peers[c.key] = &kernelPeer{pin: c.endpoint, at: c.endpoint, session: c.session}
	case c.aim && p != nil:
		p.pin, p.at = c.endpoint, c.endpoint
	}
}

// listensOn is the port on which the interface listens; 0: there is none.
func (k *Kernel) listensOn() uint16 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.listens
}

// has reports whether the interface has the peer.
func (k *Kernel) has(peer key.NodePublic) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.peers[peer] != nil
}

// forget drops what we know of peers that nobody wants.
func (k *Kernel) forget(want []host.Peer) {
	stays := keys(want)
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.peers, func(p key.NodePublic, _ *kernelPeer) bool { return !stays[p] })
}

// Pin has the kernel send to the peer at that endpoint from now on: a direct
// address or the peer's loopback one. It never blocks; Run tells the kernel, and
// the newest wish counts. A peer that is not there gets its endpoint when it comes.
func (k *Kernel) Pin(peer key.NodePublic, to netip.AddrPort) {
	k.wish(peer, plainAddr(to), true)
	k.signal()
}

// Kick starts a handshake with a peer that never had one and now has a direct
// path: it may be sending under session keys of before our start, which its own
// timers notice after fifteen seconds only. Handshakes that a change of the path
// cost go out again by themselves: the underlay sends those that went through a
// loopback endpoint, the kernel others within five seconds. It never blocks.
func (k *Kernel) Kick(peer key.NodePublic) { k.kick(peer, false) }

// kick is Kick, on a relayed path too if it is to be anyway.
func (k *Kernel) kick(peer key.NodePublic, anyway bool) {
	k.wishes.Lock()
	if k.kicks == nil {
		k.kicks = map[key.NodePublic]bool{}
	}
	k.kicks[peer] = k.kicks[peer] || anyway
	k.wishes.Unlock()
	k.signal()
}

// Look has the kernel watched for a while: some peer is about to send directly.
// It never blocks.
func (k *Kernel) Look() {
	k.wishes.Lock()
	k.asked = true
	k.wishes.Unlock()
	k.signal()
}

// signal says "look again" to Run.
func (k *Kernel) signal() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run sends pins and polls, until ctx ends.
func (k *Kernel) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.wake:
		case <-timer.C:
		}
		if wait := k.round(time.Now()); wait > 0 {
			timer.Reset(wait)
		} else {
			timer.Stop()
		}
	}
}

// round does what is due and gives the time until something is again; 0: nothing
// will be, by itself.
func (k *Kernel) round(now time.Time) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	every := k.interval()
	pins, kicks, asked := k.takeWishes()
	if asked {
		k.moved = now
	}
	if err := k.sendPins(pins); err != nil {
		k.log.Debug("endpoints", "err", err)
		return pollEvery // and once more
	}
	if err := k.sendKicks(kicks); err != nil {
		k.log.Debug("handshakes", "err", err)
	}
	if k.name == "" || !k.busy(now) {
		return 0
	}
	if wait := k.looked.Add(every).Sub(now); wait > 0 {
		return wait
	}
	if err := k.look(now); err != nil {
		k.log.Debug("counters", "err", err)
	}
	return every
}

// interval is how often to poll: the more peers, the more a look costs.
func (k *Kernel) interval() time.Duration {
	return min(max(pollEvery, time.Duration(len(k.peers))*pollPeer), pollSlowest)
}

// busy reports whether polling goes on.
func (k *Kernel) busy(now time.Time) bool {
	if now.Sub(k.moved) < pollLinger {
		return true
	}
	for _, p := range k.peers {
		if direct(p.pin) || direct(p.at) {
			return true
		}
	}
	return false
}

func (k *Kernel) takeWishes() (pins map[key.NodePublic]netip.AddrPort, kicks map[key.NodePublic]bool, asked bool) {
	k.wishes.Lock()
	defer k.wishes.Unlock()
	pins, kicks, asked = k.pins, k.kicks, k.asked
	k.pins, k.kicks, k.asked = nil, nil, false
	return pins, kicks, asked
}

// sendPins tells the kernel of endpoints. Those that it was not told, because of
// an error, are wishes again.
func (k *Kernel) sendPins(pins map[key.NodePublic]netip.AddrPort) error {
	var all []wgChange
	for peer, to := range pins {
		if p := k.peers[peer]; p != nil && (p.pin != to || p.at != to) {
			all = append(all, wgChange{key: peer, aim: true, endpoint: to})
		}
	}
	all, err := k.sendBatches(all)
	for i := range all {
		k.wish(all[i].key, all[i].endpoint, false)
	}
	return err
}

func (k *Kernel) sendKicks(kicks map[key.NodePublic]bool) error {
	var all []wgChange
	for peer, anyway := range kicks {
		if p := k.peers[peer]; p != nil && (anyway || direct(p.pin)) && p.stat.Handshake.IsZero() {
			all = append(all, wgChange{key: peer, nudge: true})
		}
	}
	_, err := k.sendBatches(all)
	return err
}

// sendBatches sends changes that cost the kernel little, and gives those it did
// not take.
func (k *Kernel) sendBatches(all []wgChange) ([]wgChange, error) {
	for len(all) > 0 {
		n := min(len(all), batchPins)
		if err := k.wg.set(k.name, &wgSet{peers: all[:n]}); err != nil {
			return all, err
		}
		for i := range all[:n] {
			k.record(&all[i])
		}
		all = all[n:]
	}
	return nil, nil
}

// wish keeps a pin for Run's next round.
func (k *Kernel) wish(peer key.NodePublic, to netip.AddrPort, newest bool) {
	k.wishes.Lock()
	defer k.wishes.Unlock()
	if k.pins == nil {
		k.pins = map[key.NodePublic]netip.AddrPort{}
	}
	if _, newer := k.pins[peer]; newest || !newer {
		k.pins[peer] = to
	}
}

// look reads the peers if the interface has carried anything since the last
// time, and tells the news.
func (k *Kernel) look(now time.Time) error {
	recent := k.recent(now)
	k.looked = now
	l, err := k.wg.link(k.name)
	if err != nil || l.rx == k.rx && l.tx == k.tx {
		return err
	}
	if _, err := k.wg.dump(k.name, func(p *wgPeer) { k.take(p, recent) }); err != nil && !errors.Is(err, errInterrupted) {
		return err
	}
	k.rx, k.tx, k.moved = l.rx, l.tx, now
	return nil
}

// recent reports whether what is new since the last look is news to tell: after
// a pause it is of no use to know that once there was traffic.
func (k *Kernel) recent(now time.Time) bool { return now.Sub(k.looked) < 3*k.interval() }

// take tells the news of one peer.
func (k *Kernel) take(now *wgPeer, recent bool) {
	p := k.peers[now.key]
	if p == nil {
		return
	}
	sent, received := now.stat.Tx > p.stat.Tx, now.stat.Rx > p.stat.Rx
	p.stat = now.stat
	p.at = now.endpoint
	switch {
	case p.at == p.pin:
	case direct(p.at):
		k.ways.Roamed(now.key, p.at)
	default: // a relayed packet was late, and took the kernel off the direct path
		k.log.Debug("endpoint set again", "peer", now.key.ShortString(), "from", p.at, "to", p.pin)
		k.wish(now.key, p.pin, false)
		k.signal()
	}
	if recent && (sent || received) {
		k.ways.Carried(now.key, sent, received)
	}
}

// Stats is what every peer's tunnel has carried.
func (k *Kernel) Stats() map[key.NodePublic]Stat {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := time.Now(); k.name != "" && now.Sub(k.looked) >= k.interval()/4 {
		if err := k.look(now); err != nil {
			k.log.Debug("counters", "err", err)
		}
	}
	all := make(map[key.NodePublic]Stat, len(k.peers))
	for peer, p := range k.peers {
		all[peer] = p.stat
	}
	return all
}

// Close sends the pins that wait and ends the conversation with the kernel. The
// interface stays: its removal is Set of no interface.
func (k *Kernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	pins, _, _ := k.takeWishes()
	if err := k.sendPins(pins); err != nil {
		return errors.Join(fmt.Errorf("last endpoints of interface %s: %w", k.name, err), k.wg.close())
	}
	return k.wg.close()
}
