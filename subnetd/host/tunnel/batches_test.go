package tunnel

import (
	"bytes"
	"testing"

	"golang.zx2c4.com/wireguard/tun"
)

// kernel is a TUN that looks at what it is given.
type kernel struct {
	tun.Device
	size    int // of a batch
	batches [][][]byte
}

func (k *kernel) BatchSize() int { return k.size }

func (k *kernel) Write(packets [][]byte, _ int) (int, error) {
	var all [][]byte
	for _, p := range packets {
		if cap(p) < largest && k.size > 1 {
			return 0, bytes.ErrTooLarge
		}
		all = append(all, bytes.Clone(p))
	}
	k.batches = append(k.batches, all)
	return len(packets), nil
}

// Packets in small buffers come whole and in order, each with room to grow; in batches that the kernel takes.
func TestBatches(t *testing.T) {
	for _, size := range []int{1, 128} {
		k := &kernel{size: size}
		b := &batches{Device: k}
		var packets [][]byte
		for i := range 150 {
			packets = append(packets, bytes.Repeat([]byte{byte(i)}, 16+i))
		}
		if n, err := b.Write(packets, 16); err != nil || n != len(packets) {
			t.Fatalf("batches of %d: %d written, %v", size, n, err)
		}
		var got [][]byte
		for _, batch := range k.batches {
			if len(batch) > batchSize {
				t.Errorf("a batch of %d packets", len(batch))
			}
			got = append(got, batch...)
		}
		for i, p := range packets {
			if !bytes.Equal(got[i], p) {
				t.Fatalf("packet %d is %d bytes, want %d", i, len(got[i]), len(p))
			}
		}
	}
}
