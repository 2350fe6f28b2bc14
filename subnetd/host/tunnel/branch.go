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

// parcel is a packet on its way to a branch.
type parcel struct {
	from key.NodePublic
	n    int
	data [branchSize]byte
}

var parcels = sync.Pool{New: func() any { return new(parcel) }}

// Open is the transport's Open. A packet that a branch takes has size 0 then, which
// WireGuard drops.
func (t *trunk) Open() ([]func([][]byte, []int, []key.NodePublic) (int, error), uint16, error) {
	receivers, port, err := t.Transport.Open()
	for i, receive := range receivers {
		receivers[i] = func(packets [][]byte, sizes []int, from []key.NodePublic) (int, error) {
			n, err := receive(packets, sizes, from)
			if branches := t.branches.Load(); branches != nil && err == nil {
				for i := range n {
					divert(*branches, packets[i][:sizes[i]], &sizes[i], from[i])
				}
			}
			return n, err
		}
	}
	return receivers, port, err
}

func divert(branches map[key.NodePublic]*branch, packet []byte, size *int, from key.NodePublic) {
	if from.IsZero() {
		for _, b := range branches {
			b.put(packet, from)
		}
	} else if b := branches[from]; b != nil {
		b.put(packet, from)
		*size = 0
	}
}

// branch is the transport of an interface for some nodes only.
type branch struct {
	*trunk
	queue chan *parcel

	mu    sync.Mutex
	ended chan struct{} // closed by CloseReceivers; nil: not open
}

func newBranch(t *trunk) *branch { return &branch{trunk: t, queue: make(chan *parcel, branchQueue)} }

// put queues a copy of the packet.
func (b *branch) put(packet []byte, from key.NodePublic) {
	if len(packet) > branchSize {
		return
	}
	p := parcels.Get().(*parcel)
	p.from, p.n = from, copy(p.data[:], packet)
	select {
	case b.queue <- p:
	default:
		parcels.Put(p)
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
			select {
			case p := <-b.queue:
				return b.take(p, packets, sizes, from), nil
			case <-ended:
				return 0, net.ErrClosed
			}
		},
	}, 0, nil
}

// take hands out p and what else waits.
func (b *branch) take(p *parcel, packets [][]byte, sizes []int, from []key.NodePublic) (n int) {
	for {
		sizes[n], from[n] = copy(packets[n], p.data[:p.n]), p.from
		parcels.Put(p)
		if n++; n == len(packets) {
			return n
		}
		select {
		case p = <-b.queue:
		default:
			return n
		}
	}
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
