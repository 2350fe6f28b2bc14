package relay

import (
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

// Members flood others who read nothing, with long packets: the memory is
// bounded, and two members who have nothing to do with it notice nothing.
func TestFlood(t *testing.T) {
	const (
		victims  = 20
		attacker = 4
	)
	r := start(t, Config{MaxQueued: 1 << 20})
	a, b := r.node(), r.node()
	var deaf []key.NodePublic
	for range victims {
		k := key.NewNode()
		upgradeTo(t, r.tls(), k) // and nobody reads
		deaf = append(deaf, k.Public())
	}
	before := heap()
	var wg sync.WaitGroup
	var sent atomic.Int64
	done := make(chan struct{})
	for i := range attacker {
		c := upgradeTo(t, r.tls(), key.NewNode())
		packet := []byte(strings.Repeat("x", []int{1280, 1280, 9000, derp.MaxPacketSize}[i]))
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				if err := c.Send(deaf[n%victims], packet); err != nil {
					t.Errorf("an attacker: %v", err)
					return
				}
				sent.Add(1)
			}
		})
	}
	until(t, "the queues to overflow", func() bool { return r.s.Stats().Dropped > 1000 })
	var worst time.Duration
	for range 50 {
		begin := time.Now()
		a.send(b.key, "hello")
		b.expect(packetFrom(a, "hello"))
		worst = max(worst, time.Since(begin))
	}
	full := heap()
	if used := r.s.budget.used.Load(); used > r.s.budget.limit {
		t.Errorf("%d bytes wait, %d may", used, r.s.budget.limit)
	}
	close(done)
	wg.Wait()
	t.Logf("%d packets sent to who reads nothing, %+v; the slowest honest packet took %s; heap %+d KiB", sent.Load(), r.s.Stats(), worst, (full-before)>>10)
	if grew := full - before; grew > 16<<20 {
		t.Errorf("the heap grew by %d KiB", grew>>10)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// What a hundred idle members cost, TLS and port included.
func TestIdleMemory(t *testing.T) {
	const n = 100
	r := start(t, Config{})
	r.node()
	// The clients are in this process, too: a stock one keeps as much as ours,
	// so half of it is the relay's.
	before := heap()
	for range n {
		upgradeTo(t, r.tls(), key.NewNode())
	}
	each := (heap() - before) / n
	t.Logf("%d KiB each, with both ends", each>>10)
	if each > 150<<10 {
		t.Errorf("%d KiB each", each>>10)
	}
}
