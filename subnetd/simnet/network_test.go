package simnet

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// inbox notes what a host receives, as "source data".
func inbox(h *Host) *[]string {
	got := new([]string)
	h.Receive = func(p Packet) { *got = append(*got, p.From.String()+" "+p.Data.(string)) }
	return got
}

// expect fails unless exactly that came since the last time.
func expect(t *testing.T, s *Sim, box *[]string, want ...string) {
	t.Helper()
	s.Run(time.Second)
	if d := cmp.Diff(want, *box); d != "" {
		t.Error(d)
	}
	*box = nil
}

func TestOrderOfEvents(t *testing.T) {
	s := New(1)
	var got []string
	note := func(x string) func() { return func() { got = append(got, x) } }
	s.After(2*time.Second, note("third"))
	s.After(time.Second, note("first"))
	s.After(time.Second, note("second"))
	s.After(3*time.Second+1, note("too late"))
	s.After(-time.Hour, note("at once"))
	s.Run(3 * time.Second)
	if want := []string{"at once", "first", "second", "third"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if d := s.Now().Sub(New(1).Now()); d != 3*time.Second {
		t.Errorf("%v passed", d)
	}
	if d, ok := s.Until(time.Second, func() bool { return len(got) == 5 }); !ok || d > time.Millisecond {
		t.Errorf("until: %v %v", d, ok)
	}
	if d, ok := s.Until(time.Second, func() bool { return false }); ok || d != time.Second {
		t.Errorf("until never: %v %v", d, ok)
	}
}

func TestOneNetwork(t *testing.T) {
	s := New(1)
	a, b := s.Internet.Host("198.51.100.1"), s.Internet.Host("198.51.100.2", "2001:db8::2")
	box := inbox(b)
	a.Send(ap("198.51.100.2:41641"), "hello")
	a.Send(ap("198.51.100.9:41641"), "nobody is there")
	a.Send(ap("[2001:db8::2]:41641"), "no address of that family")
	expect(t, s, box, "198.51.100.1:41641 hello")
	b.Move(nil)
	a.Send(ap("198.51.100.2:41641"), "gone")
	b.Send(ap("198.51.100.1:41641"), "offline")
	expect(t, s, box)
}

func TestBehindRouter(t *testing.T) {
	s := New(1)
	out := s.Internet.Host("198.51.100.1")
	in := s.Internet.Router(Easy(), "203.0.113.1").Inside.Host("192.168.1.2")
	there, here := inbox(out), inbox(in)
	out.Send(ap("203.0.113.1:1025"), "unasked")
	expect(t, s, here)
	in.Send(ap("198.51.100.1:41641"), "hello")
	expect(t, s, there, "203.0.113.1:1025 hello")
	out.Send(ap("203.0.113.1:1025"), "welcome")
	out.Send(ap("192.168.1.2:41641"), "private addresses lead nowhere")
	expect(t, s, here, "198.51.100.1:41641 welcome")
}

func TestTwoRouters(t *testing.T) {
	s := New(1)
	carrier := s.Internet.Router(Easy(), "203.0.113.1")
	in := carrier.Inside.Router(Easy(), "100.64.1.1").Inside.Host("192.168.1.2")
	other := carrier.Inside.Router(Easy(), "100.64.1.2").Inside.Host("192.168.1.2")
	out := s.Internet.Host("198.51.100.1")
	there, here := inbox(out), inbox(in)
	in.Send(ap("198.51.100.1:41641"), "one")
	other.Send(ap("198.51.100.1:41641"), "two")
	expect(t, s, there, "203.0.113.1:1025 one", "203.0.113.1:1026 two")
	out.Send(ap("203.0.113.1:1025"), "back")
	expect(t, s, here, "198.51.100.1:41641 back")
}

func TestHairpin(t *testing.T) {
	for _, hairpin := range []bool{false, true} {
		s := New(1)
		k := Easy()
		k.Hairpin = hairpin
		r := s.Internet.Router(k, "203.0.113.1")
		a, b := r.Inside.Host("192.168.1.2"), r.Inside.Host("192.168.1.3")
		s.Internet.Host("198.51.100.1")
		a.Send(ap("198.51.100.1:41641"), "a has 1025")
		b.Send(ap("198.51.100.1:41641"), "b has 1026")
		s.Run(time.Second)
		box := inbox(b)
		b.Send(ap("203.0.113.1:1025"), "b lets a in")
		s.Run(time.Second)
		a.Send(ap("203.0.113.1:1026"), "round")
		a.Send(ap("192.168.1.3:41641"), "straight")
		if hairpin { // RFC 4787, REQ-9: by the outer source
			expect(t, s, box, "192.168.1.2:41641 straight", "203.0.113.1:1025 round")
		} else {
			expect(t, s, box, "192.168.1.2:41641 straight")
		}
	}
}

func TestV6ThroughRouters(t *testing.T) {
	s := New(1)
	carrier := s.Internet.Router(Easy(), "203.0.113.1")
	home := carrier.Inside.Router(Hard(), "100.64.1.1")
	in := home.Inside.Host("192.168.1.2", "2001:db8::2")
	out := s.Internet.Host("2001:db8:ffff::1")
	there, here := inbox(out), inbox(in)
	out.Send(ap("[2001:db8::2]:41641"), "unasked")
	expect(t, s, here)
	in.Send(ap("[2001:db8:ffff::1]:41641"), "hello")
	expect(t, s, there, "[2001:db8::2]:41641 hello")
	out.Send(ap("[2001:db8::2]:41641"), "welcome")
	expect(t, s, here, "[2001:db8:ffff::1]:41641 welcome")
	in.Move(nil)
	out.Send(ap("[2001:db8::2]:41641"), "it has left")
	expect(t, s, here)
	in.Move(s.Internet, "2001:db8::2")
	out.Send(ap("[2001:db8::2]:41641"), "it is elsewhere")
	expect(t, s, here, "[2001:db8:ffff::1]:41641 it is elsewhere")
}

func TestRouterChanges(t *testing.T) {
	s := New(1)
	r := s.Internet.Router(FullCone(), "203.0.113.1")
	in, out := r.Inside.Host("192.168.1.2"), s.Internet.Host("198.51.100.1")
	there, here := inbox(out), inbox(in)
	in.Send(ap("198.51.100.1:41641"), "one")
	expect(t, s, there, "203.0.113.1:1025 one")
	r.SetWAN("203.0.113.9")
	out.Send(ap("203.0.113.1:1025"), "to the old address")
	expect(t, s, here)
	in.Send(ap("198.51.100.1:41641"), "two")
	expect(t, s, there, "203.0.113.9:1026 two")
	r.SetKind(Blocked())
	in.Send(ap("198.51.100.1:41641"), "three")
	expect(t, s, there)
}

// TestLink: loss is as said, delay is within bounds, and one seed gives one
// history.
func TestLink(t *testing.T) {
	history := func(seed uint64) (got []time.Duration) {
		s := New(seed)
		s.Internet.Link = Link{Delay: 20 * time.Millisecond, Jitter: 10 * time.Millisecond, Loss: 0.3}
		a, b := s.Internet.Host("198.51.100.1"), s.Internet.Host("198.51.100.2")
		b.Receive = func(p Packet) { got = append(got, s.Now().Sub(p.Data.(time.Time))) }
		for range 2000 {
			a.Send(ap("198.51.100.2:41641"), s.Now())
			s.Run(time.Millisecond)
		}
		s.Run(time.Second)
		return got
	}
	got := history(1)
	if len(got) < 1300 || len(got) > 1500 {
		t.Errorf("%d of 2000 came through, want 1400 or so", len(got))
	}
	if lo, hi := slices.Min(got), slices.Max(got); lo < 20*time.Millisecond || hi >= 30*time.Millisecond || hi-lo < 5*time.Millisecond {
		t.Errorf("took between %v and %v", lo, hi)
	}
	if !slices.Equal(got, history(1)) {
		t.Error("the same seed gave another history")
	}
	if slices.Equal(got, history(2)) {
		t.Error("another seed gave the same history")
	}
}

func TestDrop(t *testing.T) {
	s := New(1)
	a, b := s.Internet.Host("198.51.100.1"), s.Internet.Host("198.51.100.2")
	box := inbox(b)
	s.Internet.Drop = func(p Packet) bool { return p.Data == "lost" }
	a.Send(ap("198.51.100.2:41641"), "lost")
	a.Send(ap("198.51.100.2:41641"), "found")
	expect(t, s, box, "198.51.100.1:41641 found")
}
