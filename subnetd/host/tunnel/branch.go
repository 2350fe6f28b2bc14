package tunnel

import (
	"net"
	"sync"
	"sync/atomic"

	"tailscale.com/types/key"
)

// trunk is the main interface's transport. What comes from the nodes of its branches
// goes to theirs; what comes from a sender that nobody knows goes to all, since the
// receiver's number, or the key, in it may be anyone's. Without branches it costs
// nothing.
type trunk struct {
	Transport
	branches atomic.Pointer[map[key.NodePublic]*branch] // never changed once published
}

const (
	branchQueue = 512  // packets that wait for a branch; what comes then is dropped
	branchSize  = 2048 // bytes of a packet at most
)

// parcel is packets on their way to a branch.
type parcel struct {
	from []key.NodePublic
	ends []int // of each packet in data
	data []byte
}

func (p *parcel) add(packet []byte, from key.NodePublic) {
	if len(packet) > branchSize || len(p.ends) == branchQueue {
		return
	}
	p.data = append(p.data, packet...)
	p.from, p.ends = append(p.from, from), append(p.ends, len(p.data))
}

// empty keeps the room.
func (p *parcel) empty() { p.from, p.ends, p.data = p.from[:0], p.ends[:0], p.data[:0] }

// Open is the transport's Open. A packet that a branch takes has size 0 then, which
// WireGuard drops.
func (t *trunk) Open() ([]func([][]byte, []int, []key.NodePublic) (int, error), uint16, error) {
	receivers, port, err := t.Transport.Open()
	for i, receive := range receivers {
		receivers[i] = func(packets [][]byte, sizes []int, from []key.NodePublic) (int, error) {
			n, err := receive(packets, sizes, from)
			if branches := t.branches.Load(); branches != nil && err == nil {
				divert(*branches, packets[:n], sizes, from)
			}
			return n, err
		}
	}
	return receivers, port, err
}

// divert gives branches the packets of one reading that are theirs, and wakes them
// when it has them all: what is read together is worth most together.
func divert(branches map[key.NodePublic]*branch, packets [][]byte, sizes []int, from []key.NodePublic) {
	for i, packet := range packets {
		packet = packet[:sizes[i]]
		if from[i].IsZero() {
			for _, b := range branches {
				b.put(packet, from[i])
			}
		} else if b := branches[from[i]]; b != nil {
			b.put(packet, from[i])
			sizes[i] = 0
		}
	}
	for _, b := range branches {
		b.wake()
	}
}

// branch is the transport of an interface for some nodes only.
type branch struct {
	*trunk
	some chan struct{} // there is something to take, perhaps

	mu      sync.Mutex // guards waiting, ended
	waiting parcel
	ended   chan struct{} // closed by CloseReceivers; nil: not open

	// The receiver's.
	taken parcel
	next  int // of the packets taken
}

func newBranch(t *trunk) *branch { return &branch{trunk: t, some: make(chan struct{}, 1)} }

// put queues a copy of the packet.
func (b *branch) put(packet []byte, from key.NodePublic) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting.add(packet, from)
}

// wake tells the receiver if something waits.
func (b *branch) wake() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting.ends) == 0 {
		return
	}
	select {
	case b.some <- struct{}{}:
	default:
	}
}

// Open gives one receiver, of what the trunk diverts. The port is not ours.
func (b *branch) Open() ([]func([][]byte, []int, []key.NodePublic) (int, error), uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ended := make(chan struct{})
	b.ended = ended
	return []func([][]byte, []int, []key.NodePublic) (int, error){
		func(packets [][]byte, sizes []int, from []key.NodePublic) (int, error) {
			for {
				select {
				case <-ended:
					return 0, net.ErrClosed
				default:
				}
				if n := b.take(packets, sizes, from); n > 0 {
					return n, nil
				}
				select {
				case <-b.some:
				case <-ended:
					return 0, net.ErrClosed
				}
			}
		},
	}, 0, nil
}

// take hands out what was taken before, else what waits.
func (b *branch) take(packets [][]byte, sizes []int, from []key.NodePublic) (n int) {
	if b.next == len(b.taken.ends) {
		b.taken.empty()
		b.mu.Lock()
		b.waiting, b.taken, b.next = b.taken, b.waiting, 0
		b.mu.Unlock()
	}
	for ; n < len(packets) && b.next < len(b.taken.ends); n++ {
		begin := 0
		if b.next > 0 {
			begin = b.taken.ends[b.next-1]
		}
		sizes[n] = copy(packets[n], b.taken.data[begin:b.taken.ends[b.next]])
		from[n] = b.taken.from[b.next]
		b.next++
	}
	return n
}

func (b *branch) CloseReceivers() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended != nil {
		close(b.ended)
		b.ended = nil
	}
	return nil
}
