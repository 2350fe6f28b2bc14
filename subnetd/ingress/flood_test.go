package ingress

import (
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// notExempt lets loopback addresses stand for strangers.
func notExempt(s *Server) { s.gate.exempt = func(netip.Addr) bool { return false } }

// garbage connects without end from one address, holds what it gets, and says
// what does not lead anywhere.
func (r *rig) garbage(from string) (stop func() (tries int64)) {
	var wg sync.WaitGroup
	var tries atomic.Int64
	done := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			var held []net.Conn
			defer func() {
				for _, c := range held {
					c.Close()
				}
			}()
			for {
				select {
				case <-done:
					return
				default:
				}
				c, err := r.dial(from)
				if err != nil {
					continue
				}
				switch n := tries.Add(1); n % 4 {
				case 0:
					io.WriteString(c, "\x16\x03\x01\x02\x00half a hello")
				case 1:
					io.WriteString(c, "GET / HTTP/1.1\r\nX:")
				case 2:
					io.WriteString(c, "\x00\x01\x02 garbage\r\n\r\n")
				}
				if held = append(held, c); len(held) > 200 {
					held[0].Close()
					held = held[1:]
				}
			}
		})
	}
	return func() int64 {
		close(done)
		wg.Wait()
		return tries.Load()
	}
}

// A flood of garbage from some addresses does not harm who comes from another,
// and the memory that it takes is bounded.
func TestFlood(t *testing.T) {
	r := serve(t, Bounds{Burst: 1e6}, notExempt) // the rate does not help: the room must be shared well
	old, err := r.dial("127.0.0.3")
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := up(old); err != nil {
		t.Fatal(err)
	}
	before := heap()
	stops := []func() int64{r.garbage("127.0.0.2"), r.garbage("127.0.1.2")}
	until(t, "the room to be full", func() bool { return r.s.Stats().Evicted+r.s.Stats().Refused > 0 })
	var worst time.Duration
	for i := range 30 {
		begin := time.Now()
		raw, err := r.dial("127.0.0.3")
		if err != nil {
			t.Fatal(err)
		}
		c := r.tls(raw)
		if _, err := say(c, "let me in"); err != nil {
			t.Errorf("%d: %v", i, err)
		}
		raw.Close()
		worst = max(worst, time.Since(begin))
		if err := echo(old, "still here"); err != nil {
			t.Error(err)
		}
	}
	full := heap()
	s := r.s.Stats()
	tries := int64(0)
	for _, stop := range stops {
		tries += stop()
	}
	t.Logf("%d connections of garbage: %+v; the slowest honest one took %s; heap %+d KiB", tries, s, worst, (full-before)>>10)
	if s.Pending > 256 {
		t.Errorf("%d are pending", s.Pending)
	}
	if grew := full - before; grew > 32<<20 {
		t.Errorf("the heap grew by %d KiB", grew>>10)
	}
}

// A flood faster than the rate is turned away at once.
func TestFloodRefused(t *testing.T) {
	r := serve(t, Bounds{Rate: 1, Burst: 10}, notExempt)
	stop := r.garbage("127.0.0.2")
	until(t, "refusals", func() bool { return r.s.Stats().Refused > 100 })
	c, err := r.dial("127.0.0.3")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := say(c, "let me in"); err != nil {
		t.Error(err)
	}
	stop()
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// Five hundred clients behind one address that have lost us all come back at
// once, each with a request, a control connection and a relay connection, and
// each trying again when it is refused. All are back.
func TestHerd(t *testing.T) {
	clients := 500
	if raceEnabled {
		clients = 100
	}
	r := serve(t, Bounds{}, notExempt)
	begin := time.Now()
	again := herd(t, clients, func() (net.Conn, error) { return r.dial("127.0.0.9") }, func(c net.Conn) net.Conn { return r.tls(c) })
	t.Logf("%d clients behind one address were back after %s, with %d further tries", clients, time.Since(begin), again)
	if s := r.s.Stats(); s.Established != 2*clients {
		t.Errorf("%+v", s)
	}
}

// The same, with clients a third of a second away and a machine that is quick
// enough: the bounds let them all back within ten seconds.
func TestHerdInTime(t *testing.T) {
	const clients = 500
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		var s *Server
		defer bubble(t, p, Bounds{}, &s)()
		begin := time.Now()
		again := herd(t, clients, func() (net.Conn, error) {
			c := p.dial("192.0.2.9:1")
			time.Sleep(time.Second / 3)
			return c, nil
		}, func(c net.Conn) net.Conn { return c })
		took := time.Since(begin)
		t.Logf("%d clients behind one address were back after %s, with %d further tries", clients, took, again)
		if took > 10*time.Second {
			t.Error("that is more than ten seconds")
		}
		if st := s.Stats(); st.Established != 2*clients {
			t.Errorf("%+v", st)
		}
	})
}

// herd has many clients come back, and gives how often they had to try again.
func herd(t *testing.T, clients int, dial func() (net.Conn, error), relay func(net.Conn) net.Conn) int64 {
	var wg sync.WaitGroup
	var again atomic.Int64
	for range clients {
		wg.Go(func() {
			for _, do := range []func(net.Conn) error{
				func(c net.Conn) error { _, err := say(c, "which key?"); c.Close(); return err },
				up,
				func(c net.Conn) error { return up(relay(c)) },
			} {
				if !persist(t, dial, do, &again) {
					return
				}
			}
		})
	}
	wg.Wait()
	return again.Load()
}

// persist tries until it works, as clients do.
func persist(t *testing.T, dial func() (net.Conn, error), do func(net.Conn) error, again *atomic.Int64) bool {
	wait := 50 * time.Millisecond
	for begin := time.Now(); ; again.Add(1) {
		c, err := dial()
		if err == nil {
			if err = do(c); err == nil {
				t.Cleanup(func() { c.Close() })
				return true
			}
			c.Close()
		}
		if time.Since(begin) > 3*patience {
			t.Errorf("not back: %v", err)
			return false
		}
		time.Sleep(wait/2 + rand.N(wait))
		wait = min(2*wait, 2*time.Second)
	}
}
