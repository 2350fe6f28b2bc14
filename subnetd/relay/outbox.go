package relay

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

const (
	packetLane      = 64 // packets
	packetLaneBytes = 128 << 10
	discoLane       = 16
	discoLaneBytes  = discoLane * smallFrame
	laneReserve     = 4 * smallFrame // bytes of a lane that never wait for the others'
	maxGone         = 256            // notes of peers that are gone
)

// outbox is what waits for one client. Any goroutine puts in, its writer takes.
type outbox struct {
	wake chan struct{} // one slot: the writer shall look

	mu     sync.Mutex
	closed bool
	awake  bool // the writer looks already, or someone is about to tell it

	// Few and small, so they go first. Of those of which only the last one
	// matters there is only the last one.
	pong   [8]byte
	ponged bool
	health string // the last that was said of it; "" says that all is well
	ailing bool   // it has to be said
	beat   bool
	goners []goner

	disco   lane // the talk that finds direct paths: little, and it relieves us
	packets lane

	sent, bytes, dropped int64
}

// goner is a peer that is not here (any more).
type goner struct {
	key    key.NodePublic
	reason derp.PeerGoneReasonType
}

func (o *outbox) init(b *budget) {
	o.wake = make(chan struct{}, 1)
	o.disco = lane{ring: make([]*packet, discoLane), limit: discoLaneBytes, budget: b}
	o.packets = lane{ring: make([]*packet, packetLane), limit: packetLaneBytes, budget: b}
}

// rouse lets the writer look, if it does not anyway. o.mu is held; the caller
// owes a signal if it says true.
func (o *outbox) rouse() bool {
	was := o.awake
	o.awake = true
	return !was
}

// signal wakes the writer up.
func (o *outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// note changes what is to be said, and wakes the writer up.
func (o *outbox) note(change func()) {
	o.mu.Lock()
	change()
	wake := o.rouse()
	o.mu.Unlock()
	if wake {
		o.signal()
	}
}

func (o *outbox) tell(health string) {
	o.note(func() { o.ailing, o.health = o.ailing || o.health != health, health })
}

func (o *outbox) reply(pong [8]byte) {
	o.note(func() { o.pong, o.ponged = pong, true })
}

func (o *outbox) keepAlive() {
	o.note(func() { o.beat = true })
}

func (o *outbox) gone(k key.NodePublic, why derp.PeerGoneReasonType) {
	o.note(func() {
		if len(o.goners) < maxGone {
			o.goners = append(o.goners, goner{k, why})
		}
	})
}

// put adds a packet, at the cost of older ones if need be. wake says that the
// caller owes a signal.
func (o *outbox) put(s *Server, p *packet, disco bool) (wake bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		o.dropped++
		s.pools.free(p)
		return false
	}
	l := &o.packets
	if disco && cap(p.frame) == smallFrame {
		l = &o.disco
	}
	mine := l.shareOf(p.from)
	for !l.admit(p) {
		old := l.evict(mine, cap(p.frame))
		if old == nil { // it is long, and the others' outboxes hold all there may be
			o.dropped++
			s.pools.free(p)
			return false
		}
		o.dropped++
		s.pools.free(old)
	}
	l.push(p, mine)
	return o.rouse()
}

// take moves what waits to b and batch, of both together not more than one TLS
// record unless a single packet is longer. The packets are the caller's to
// free. Nothing at all: the writer may sleep until it is woken up.
func (o *outbox) take(b []byte, batch []*packet) ([]byte, []*packet, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	b = o.appendNotes(b)
	size := len(b)
	for _, l := range []*lane{&o.disco, &o.packets} {
		for l.n > 0 {
			next := len(l.at(0).frame)
			if size > 0 && size+next > maxRecord {
				return b, batch, !o.closed
			}
			size += next
			o.sent++
			o.bytes += int64(next - recvHeader)
			batch = append(batch, l.pop(0))
		}
	}
	o.awake = size > 0
	return b, batch, !o.closed
}

// appendNotes appends the frames of all that is no packet. That a peer is gone may
// so be said before his last packets come; who answers them hears it again.
func (o *outbox) appendNotes(b []byte) []byte {
	if o.ailing {
		b = append(appendHeader(b, derp.FrameHealth, len(o.health)), o.health...)
		o.ailing = false
	}
	if o.ponged {
		b = append(appendHeader(b, derp.FramePong, len(o.pong)), o.pong[:]...)
		o.ponged = false
	}
	if o.beat {
		b = appendHeader(b, derp.FrameKeepAlive, 0)
		o.beat = false
	}
	for _, g := range o.goners {
		b = g.key.AppendTo(appendHeader(b, derp.FramePeerGone, derp.KeyLen+1))
		b = append(b, byte(g.reason))
	}
	o.goners = nil
	return b
}

// close lets the writer end, and takes nothing any more.
func (o *outbox) close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.signal()
}

// drain frees what will not be sent.
func (o *outbox) drain(s *Server) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range []*lane{&o.disco, &o.packets} {
		for l.n > 0 {
			o.dropped++
			s.pools.free(l.pop(0))
		}
	}
}

func (o *outbox) count(sum *Stats) {
	o.mu.Lock()
	defer o.mu.Unlock()
	sum.Packets += o.sent
	sum.Bytes += o.bytes
	sum.Dropped += o.dropped
}

// lane is a queue that knows how much of it is whose.
type lane struct {
	ring    []*packet
	head, n int
	bytes   int // memory, not only what is sent
	limit   int
	budget  *budget // pays for bytes beyond laneReserve
	shares  []share // by packet.share; those without packets are taken by others
}

type share struct {
	from  *seat
	bytes int
}

func (l *lane) at(i int) *packet { return l.ring[(l.head+i)%len(l.ring)] }

// admit reports whether there is room for the packet, which is pushed then.
func (l *lane) admit(p *packet) bool {
	return l.n < len(l.ring) && l.bytes+cap(p.frame) <= l.limit && l.budget.take(l.grow(cap(p.frame)))
}

// grow is how many bytes more have to be paid for if the lane grows.
func (l *lane) grow(by int) (more int) {
	return max(0, l.bytes+by-laneReserve) - max(0, l.bytes-laneReserve)
}

// shareOf finds the sender's share. Senders who wait at the same time are few.
func (l *lane) shareOf(from *seat) int {
	vacant := -1
	for i := range l.shares {
		if l.shares[i].from == from {
			return i
		}
		if l.shares[i].bytes == 0 {
			vacant = i
		}
	}
	if vacant < 0 {
		vacant = len(l.shares)
		l.shares = append(l.shares, share{})
	}
	l.shares[vacant] = share{from: from}
	return vacant
}

func (l *lane) push(p *packet, mine int) {
	p.share = mine
	l.ring[(l.head+l.n)%len(l.ring)] = p
	l.n++
	l.bytes += cap(p.frame)
	l.shares[mine].bytes += cap(p.frame)
}

// pop removes the packet that is the i-th from the oldest.
func (l *lane) pop(i int) *packet {
	p := l.at(i)
	for ; i > 0; i-- { // those before it move up
		l.ring[(l.head+i)%len(l.ring)] = l.at(i - 1)
	}
	l.ring[l.head] = nil
	l.head = (l.head + 1) % len(l.ring)
	l.n--
	l.budget.take(l.grow(-cap(p.frame)))
	l.bytes -= cap(p.frame)
	l.shares[p.share].bytes -= cap(p.frame)
	return p
}

// evict removes the oldest packet of the sender who has the most, counting what
// the sender of the share mine wants to add. nil: there is none.
func (l *lane) evict(mine, adds int) *packet {
	victim, most := -1, 0
	for i, sh := range l.shares {
		has := sh.bytes
		if has > 0 && i == mine {
			has += adds
		}
		if has > most || has == most && has > 0 && i == mine {
			victim, most = i, has
		}
	}
	for i := range l.n {
		if l.at(i).share == victim {
			return l.pop(i)
		}
	}
	return nil
}

// budget bounds the memory of all outboxes beyond what each may have anyway.
type budget struct {
	limit int32
	used  atomic.Int32
}

// take pays for n bytes, or, if n is negative, gives them back. false: there is
// not enough.
func (b *budget) take(n int) bool {
	if b.used.Add(int32(n)) > b.limit && n > 0 {
		b.used.Add(-int32(n))
		return false
	}
	return true
}

func appendHeader(b []byte, t derp.FrameType, n int) []byte {
	return binary.BigEndian.AppendUint32(append(b, byte(t)), uint32(n))
}
