//go:build !race

package relay

import (
	"testing"

	"tailscale.com/types/key"
)

// A packet on its way allocates nothing. (Not with the race detector, under which
// pools forget at random.)
func TestAllocations(t *testing.T) {
	s := newServer(t, Config{})
	from := &seat{key: key.NewNode().Public()}
	var o outbox
	o.init(&s.budget)
	var batch []*packet
	var b []byte
	cycle := func() {
		for range 10 {
			if o.put(s, s.pools.packet(1280, from), false) {
				o.signal()
			}
		}
		<-o.wake
		for {
			b, batch, _ = o.take(b[:0], batch[:0])
			if len(batch) == 0 {
				return
			}
			for _, p := range batch {
				s.pools.free(p)
			}
		}
	}
	if n := testing.AllocsPerRun(1000, cycle); n > 0.5 {
		t.Errorf("%.1f allocations for ten packets", n)
	}
}
