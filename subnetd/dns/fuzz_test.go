package dns

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// FuzzQuestion: whatever comes, an answer of ours is a message that fits.
func FuzzQuestion(f *testing.F) {
	for _, msg := range [][]byte{
		ask("phone.mesh.internal.", dnsmessage.TypeA), ask("2.0.64.100.in-addr.arpa.", dnsmessage.TypePTR, edns(1232, 0, 0x80)),
		ask("x.mesh.internal.", dnsmessage.TypeALL, edns(1232, 1, 0)), ask("known.example.", dnsmessage.TypeA), ask(".", dnsmessage.TypeNS),
		ask("printer.home.mesh.internal.", dnsmessage.TypeAAAA), ask("mesh.internal.", dnsmessage.TypeSOA),
	} {
		f.Add(msg)
	}
	n := world()
	n.Netmap.Names.Upstream = []string{"192.0.2.1"}
	s := New(Config{Now: time.Now})
	s.Set(Settings{Zone: NewZone(n)})
	known, _, _ := parse(ask("known.example.", dnsmessage.TypeA))
	s.forwards.cache.put(keyOf(&known, []netip.AddrPort{resolver("192.0.2.1:53")}),
		reply("known.example.", dnsmessage.TypeA, 0, []dnsmessage.Resource{rrA("known.example.", 300, "1.2.3.4")}, nil), time.Now(), time.Hour)
	f.Fuzz(func(t *testing.T, msg []byte) {
		before := slices.Clone(msg)
		for _, size := range []int{maxDatagram, noLimit} {
			tn, ok := s.begin(msg, make([]byte, 0, maxDatagram), addr("127.0.0.1"), Home, size)
			if !slices.Equal(msg, before) {
				t.Fatal("the question was changed")
			}
			if !ok || tn.done == nil {
				continue
			}
			var m dnsmessage.Message
			if err := m.Unpack(tn.done); err != nil {
				t.Fatalf("%x: %v", tn.done, err)
			}
			if m.ID != binary.BigEndian.Uint16(msg) || !m.Response || len(tn.done) > size || len(m.Questions) > 1 {
				t.Fatalf("%x", tn.done)
			}
			if len(m.Questions) == 1 && m.Questions[0] != tn.query.question {
				t.Fatalf("answers %v to %v", m.Questions[0], tn.query.question)
			}
		}
	})
}

// FuzzResolver: whatever a resolver sends, what we pass on is an answer to the
// question asked, and of the size asked for. Where the records are is what
// dnsmessage says.
func FuzzResolver(f *testing.F) {
	good := reply("example.com.", dnsmessage.TypeA, 0, []dnsmessage.Resource{rrA("example.com.", 300, "1.2.3.4")},
		[]dnsmessage.Resource{rrSOA("example.com.", 300, 60)})
	f.Add(good, uint16(512))
	f.Add(edns(1232, 0, 0x80)(slices.Clone(good)), uint16(40))
	f.Add(good[:30], uint16(1000))
	q, _, _ := parse(ask("Example.com.", dnsmessage.TypeA, edns(1232, 0, 0)))
	wire := q.wire()
	f.Fuzz(func(t *testing.T, in []byte, size uint16) {
		size = max(size, smallDatagram)
		oracle, known := timesOf(in)
		msg, err := checked(slices.Clone(in), 0x1234, wire)
		if err != nil {
			return
		}
		var times []uint32
		if _, err := walk(msg, len(wire), func(r record) {
			if r.kind == typeOPT {
				t.Fatalf("EDNS is left in %x", msg)
			}
			if r.section < 2 {
				times = append(times, binary.BigEndian.Uint32(msg[r.ttl:]))
			}
		}); err != nil {
			t.Fatalf("%x was good and is not: %v", msg, err)
		}
		if known && !slices.Equal(times, oracle) {
			t.Fatalf("times to live %v, dnsmessage has %v in %x", times, oracle, in)
		}
		if keep := keepFor(msg, len(wire)); keep < 0 || keep > 24*time.Hour {
			t.Fatalf("kept for %v", keep)
		}
		out := q.pass(nil, msg, 10*time.Second, int(size))
		if len(out) > int(size) || string(out[headerLen:headerLen+len(wire)]) != string(wire) || out[2]&bitResponse == 0 {
			t.Fatalf("%x passed as %x", msg, out)
		}
		if _, err := walk(out, len(wire), func(record) {}); err != nil {
			t.Fatalf("passed %x: %v", out, err)
		}
	})
}

// timesOf is the times to live of answers and authorities as dnsmessage reads them.
func timesOf(msg []byte) (times []uint32, ok bool) {
	var p dnsmessage.Parser
	if _, err := p.Start(msg); err != nil || p.SkipAllQuestions() != nil {
		return nil, false
	}
	for _, section := range []struct {
		header func() (dnsmessage.ResourceHeader, error)
		skip   func() error
	}{{p.AnswerHeader, p.SkipAnswer}, {p.AuthorityHeader, p.SkipAuthority}} {
		for {
			h, err := section.header()
			if err == dnsmessage.ErrSectionDone {
				break
			}
			if err != nil || section.skip() != nil {
				return nil, false
			}
			if h.Type == dnsmessage.TypeOPT {
				return nil, false
			}
			times = append(times, h.TTL)
		}
	}
	return times, true
}

// TestGarbled is FuzzResolver's property for answers with some bytes wrong, which
// a fuzzer finds late.
func TestGarbled(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	q, _, _ := parse(ask("example.com.", dnsmessage.TypeA, edns(1232, 0, 0)))
	wire := q.wire()
	passed := 0
	for range 20000 {
		msg := edns(1232, 0, 0)(reply("example.com.", dnsmessage.TypeA, 0, []dnsmessage.Resource{rrA("example.com.", 300, "1.2.3.4"), rrA("www.example.com.", 3, "1.2.3.4")},
			[]dnsmessage.Resource{rrSOA("example.com.", 300, 60)}))
		for range rnd.IntN(3) {
			msg[rnd.IntN(len(msg))] = byte(rnd.Uint32())
		}
		msg, err := checked(msg[:len(msg)-rnd.IntN(2)*rnd.IntN(len(msg))], 0x1234, wire)
		if err != nil {
			continue
		}
		passed++
		out := q.pass(nil, msg, time.Second, maxDatagram)
		if _, err := walk(out, len(wire), func(record) {}); err != nil || keepFor(msg, len(wire)) < 0 {
			t.Fatalf("%x: %v", out, err)
		}
	}
	if passed < 1000 {
		t.Errorf("only %d were read at all", passed)
	}
}

func BenchmarkAnswer(b *testing.B) {
	n := world()
	s := New(Config{Now: time.Now})
	s.Set(Settings{Zone: NewZone(n)})
	msg, buf := ask("phone.mesh.internal.", dnsmessage.TypeA, edns(1232, 0, 0)), make([]byte, 0, maxDatagram)
	b.ReportAllocs()
	for b.Loop() {
		if t, ok := s.begin(msg, buf, addr("127.0.0.1"), Home, maxDatagram); !ok || len(t.done) == 0 {
			b.Fatal("no answer")
		}
	}
}

func BenchmarkCached(b *testing.B) {
	n := world()
	n.Netmap.Names.Upstream = []string{"192.0.2.1"}
	s := New(Config{Now: time.Now})
	s.Set(Settings{Zone: NewZone(n)})
	known, _, _ := parse(ask("known.example.", dnsmessage.TypeA))
	s.forwards.cache.put(keyOf(&known, []netip.AddrPort{resolver("192.0.2.1:53")}),
		reply("known.example.", dnsmessage.TypeA, 0, []dnsmessage.Resource{rrA("known.example.", 300, "1.2.3.4")}, nil), time.Now(), time.Hour)
	msg, buf := ask("known.example.", dnsmessage.TypeA, edns(1232, 0, 0)), make([]byte, 0, maxDatagram)
	b.ReportAllocs()
	for b.Loop() {
		if t, ok := s.begin(msg, buf, addr("127.0.0.1"), Home, maxDatagram); !ok || len(t.done) == 0 {
			b.Fatal("no answer")
		}
	}
}

func BenchmarkZoneOf1000(b *testing.B) {
	n := world()
	for i := range 1000 {
		n.Netmap.Peers = append(n.Netmap.Peers, node("node-"+netip.AddrFrom4([4]byte{0, 0, byte(i >> 8), byte(i)}).String()[4:]+".mesh.internal.",
			netip.AddrFrom4([4]byte{100, 70, byte(i >> 8), byte(i)}).String()))
	}
	b.ReportAllocs()
	for b.Loop() {
		NewZone(n)
	}
}
