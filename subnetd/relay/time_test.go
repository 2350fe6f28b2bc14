package relay

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

// Whoever does not finish the handshake in time is let go, however he dawdles.
func TestHandshakeTimeout(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(w *wire)
	}{
		{"silent", func(*wire) {}},
		{"announces", func(w *wire) { w.Write(appendHeader(nil, derp.FrameClientInfo, maxInfo)) }},
		{"byte by byte", func(w *wire) {
			for _, b := range append(appendHeader(nil, derp.FrameClientInfo, 200), make([]byte, 200)...) {
				w.Write([]byte{b})
				time.Sleep(time.Second)
			}
		}},
		{"reads nothing", func(w *wire) { w.send(derp.FrameClientInfo, w.info(`{"version":2}`)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t, Config{})
				w := dialWire(t, s, key.NewNode())
				begin := time.Now()
				go tt.do(w)
				s.mu.RLock()
				n := len(s.open)
				s.mu.RUnlock()
				for ; n > 0; n = s.openNow() {
					time.Sleep(time.Second)
					synctest.Wait()
				}
				if took := time.Since(begin); took != greetTimeout {
					t.Errorf("it took %s", took)
				}
				w.Close()
				time.Sleep(time.Hour) // who writes byte by byte ends
			})
		})
	}
}

func (s *Server) openNow() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.open)
}

// A silent client gets a sign of life every minute, and stays.
func TestKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{})
		defer s.Close()
		w := joinWire(t, s, key.NewNode())
		last := time.Now()
		for range 100 {
			w.expect(derp.FrameKeepAlive, "")
			if gap := time.Since(last); gap < derp.KeepAlive || gap > derp.KeepAlive+jitter {
				t.Errorf("after %s", gap)
			}
			last = time.Now()
		}
	})
}

// A client that reads nothing holds nobody up, gets the newest packets when it
// reads again, and is let go when it does not.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{})
		defer s.Close()
		a, slow, quick := joinWire(t, s, key.NewNode()), joinWire(t, s, key.NewNode()), joinWire(t, s, key.NewNode())
		slow.packet(a.key.Public(), "I am here")
		a.expectPacket(slow.key, "I am here")
		a.packet(slow.key.Public(), "first") // on its way: the writer waits with it
		synctest.Wait()
		const n = 500
		for i := range n {
			a.packet(slow.key.Public(), fmt.Sprint("packet ", i))
		}
		a.packet(quick.key.Public(), "hello")
		quick.expectPacket(a.key, "hello")
		slow.expectPacket(a.key, "first")
		for i := n - packetLane; i < n; i++ {
			slow.expectPacket(a.key, fmt.Sprint("packet ", i))
		}
		if st := s.Stats(); st.Dropped != n-packetLane || st.Packets != packetLane+3 {
			t.Errorf("%+v", st)
		}
		begin := time.Now()
		a.packet(slow.key.Public(), "stuck")
		a.expect(derp.FramePeerGone, string(slow.key.Public().AppendTo(nil))+"\x00")
		if took := time.Since(begin); took < writeTimeout/2 || took > writeTimeout {
			t.Errorf("let go after %s", took)
		}
		slow.ended()
	})
}

// Bytes are bounded, not only packets.
func TestQueueBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{})
		defer s.Close()
		a, slow := joinWire(t, s, key.NewNode()), joinWire(t, s, key.NewNode())
		a.packet(slow.key.Public(), "first")
		synctest.Wait()
		for i := range 50 {
			a.packet(slow.key.Public(), fmt.Sprintf("%02d%s", i, strings.Repeat("x", 30_000)))
		}
		synctest.Wait()
		if used := s.budget.used.Load(); used == 0 || used > packetLaneBytes {
			t.Errorf("%d bytes wait", used)
		}
		slow.expectPacket(a.key, "first")
		for i := 46; i < 50; i++ {
			slow.expectPacket(a.key, fmt.Sprintf("%02d%s", i, strings.Repeat("x", 30_000)))
		}
		synctest.Wait()
		if used := s.budget.used.Load(); used != 0 {
			t.Errorf("%d bytes wait for nobody", used)
		}
	})
}

// Who stops in the middle of a long packet does not hold its memory for long.
func TestHalfPacket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{})
		defer s.Close()
		a, b := joinWire(t, s, key.NewNode()), joinWire(t, s, key.NewNode())
		begin := time.Now()
		a.Write(append(appendHeader(nil, derp.FrameSendPacket, 60_000), b.key.Public().AppendTo(nil)...))
		a.ended()
		if took := time.Since(begin); took != readTimeout {
			t.Errorf("let go after %s", took)
		}
		b.expect(derp.FramePeerGone, string(a.key.Public().AppendTo(nil))+"\x00")
		c := joinWire(t, s, key.NewNode())
		c.packet(b.key.Public(), strings.Repeat("x", 60_000)) // and who does not stop may be silent afterwards
		b.expectPacket(c.key, strings.Repeat("x", 60_000))
		go io.Copy(io.Discard, b)
		go io.Copy(io.Discard, c)
		time.Sleep(time.Hour)
		if st := s.Stats(); st.Clients != 2 {
			t.Errorf("%+v", st)
		}
	})
}

// What comes together goes out together; but nobody waits for the rest of what
// follows, nor does he lose anything to it.
func TestTogether(t *testing.T) {
	for _, tt := range []struct {
		name string
		rest []byte
		ends bool
	}{
		{"half a header", []byte{byte(derp.FrameSendPacket), 0, 0}, false},
		{"half a packet", append(appendHeader(nil, derp.FrameSendPacket, 100), "half"...), false},
		{"half a long packet", append(appendHeader(nil, derp.FrameSendPacket, 60_000), make([]byte, 100)...), false},
		{"an illegal frame", append(appendHeader(nil, derp.FrameWatchConns, 0), "more"...), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t, Config{})
				defer s.Close()
				a, b, c := joinWire(t, s, key.NewNode()), joinWire(t, s, key.NewNode()), joinWire(t, s, key.NewNode())
				var all []byte
				for _, to := range []*wire{b, c, b, b} {
					all = to.key.Public().AppendTo(appendHeader(all, derp.FrameSendPacket, derp.KeyLen+5))
					all = append(all, "hello"...)
				}
				begin := time.Now()
				a.Write(append(all, tt.rest...))
				for _, to := range []*wire{b, c, b, b} {
					to.skipTo(a.key, "hello") // that a has left may be said before
				}
				if took := time.Since(begin); took != 0 {
					t.Errorf("it took %s", took)
				}
				if tt.ends {
					a.ended()
				}
			})
		})
	}
}

// Disco packets have a lane of their own: they do not wait behind the data, and
// the data does not push them out.
func TestDiscoLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{})
		defer s.Close()
		a, slow := joinWire(t, s, key.NewNode()), joinWire(t, s, key.NewNode())
		a.packet(slow.key.Public(), "first")
		synctest.Wait()
		talk := discoMagic + strings.Repeat("d", 100)
		a.packet(slow.key.Public(), talk)
		for i := range 200 {
			a.packet(slow.key.Public(), fmt.Sprint("data ", i))
		}
		synctest.Wait()
		slow.expectPacket(a.key, "first")
		slow.expectPacket(a.key, talk)
		slow.expectPacket(a.key, fmt.Sprint("data ", 200-packetLane))
	})
}

// A flood of one sender does not push out what others send to the same receiver.
func TestFloodIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{})
		defer s.Close()
		flood, quiet, to := joinWire(t, s, key.NewNode()), joinWire(t, s, key.NewNode()), joinWire(t, s, key.NewNode())
		flood.packet(to.key.Public(), "first")
		synctest.Wait()
		const n = 20
		for i := range n {
			quiet.packet(to.key.Public(), fmt.Sprint("quiet ", i))
			for range 100 {
				flood.packet(to.key.Public(), "flood")
			}
			synctest.Wait()
		}
		to.expectPacket(flood.key, "first")
		got := 0
		for range packetLane {
			_, body := to.frame()
			if text := string(body[32:]); text != "flood" {
				if want := fmt.Sprint("quiet ", got); text != want {
					t.Errorf("got %q, want %q", text, want)
				}
				got++
			}
		}
		if got != n {
			t.Errorf("%d of %d packets came through the flood", got, n)
		}
	})
}
