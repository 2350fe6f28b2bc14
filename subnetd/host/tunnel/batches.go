package tunnel

import (
	"sync"

	"golang.zx2c4.com/wireguard/tun"
)

// batchSize is how many packets go between TUN and device at once. One
// segmented packet of the kernel is 53 packets of ours at most.
const batchSize = 64

// batches is a TUN whose packets may be in small buffers. Packets of one flow
// are handed to the kernel as one large packet, which is put together in the
// first one's buffer: it is copied to where there is room for that.
type batches struct {
	tun.Device

	mu    sync.Mutex // guards all below, for one Write at a time
	room  [batchSize][]byte
	batch [][]byte
}

const (
	largest = 1 << 16 // bytes of a packet, header of the TUN included
	copied  = 4096    // packets of more bytes have had their room from the device
)

// BatchSize bounds the buffers that the device keeps ready.
func (b *batches) BatchSize() int { return min(b.Device.BatchSize(), batchSize) }

// Write hands packets, which begin at offset of their buffers, to the kernel.
func (b *batches) Write(packets [][]byte, offset int) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	written := 0
	for len(packets) > 0 {
		n := min(len(packets), batchSize)
		b.batch = b.batch[:0]
		for i, p := range packets[:n] {
			b.batch = append(b.batch, b.roomy(i, p))
		}
		packets = packets[n:]
		m, err := b.Device.Write(b.batch, offset)
		written += m
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// roomy gives p in a buffer in which it can grow.
func (b *batches) roomy(i int, p []byte) []byte {
	if cap(p) > copied || b.BatchSize() == 1 {
		return p
	}
	if b.room[i] == nil {
		b.room[i] = make([]byte, largest)
	}
	return b.room[i][:copy(b.room[i], p)]
}
