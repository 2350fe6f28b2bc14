package dns

import (
	"bytes"
	"encoding/binary"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/mesh"

	"golang.org/x/net/dns/dnsmessage"
)

// ask is a question in bytes; change may do to it what it likes.
func ask(name string, t dnsmessage.Type, change ...func([]byte) []byte) []byte {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 0x1234, RecursionDesired: true})
	_ = b.StartQuestions()
	_ = b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: t, Class: dnsmessage.ClassINET})
	msg, _ := b.Finish()
	for _, f := range change {
		msg = f(msg)
	}
	return msg
}

// edns adds an OPT record.
func edns(size int, version, flags byte) func([]byte) []byte {
	return func(msg []byte) []byte {
		msg[11]++
		return append(msg, 0, 0, typeOPT, byte(size>>8), byte(size), 0, version, flags, 0, 0, 0)
	}
}

func set(at int, v byte) func([]byte) []byte {
	return func(msg []byte) []byte { msg[at] = v; return msg }
}

func TestParse(t *testing.T) {
	for what, c := range map[string]struct {
		msg   []byte
		rcode dnsmessage.RCode
		ok    bool
		size  int // of an answer by datagram
	}{
		"plain":              {ask("A.b.", dnsmessage.TypeA), 0, true, 512},
		"edns":               {ask("a.b.", dnsmessage.TypeA, edns(1000, 0, 0)), 0, true, 1000},
		"edns, tiny":         {ask("a.b.", dnsmessage.TypeA, edns(100, 0, 0)), 0, true, 512},
		"edns, huge":         {ask("a.b.", dnsmessage.TypeA, edns(4096, 0, 0)), 0, true, 1232},
		"edns 1":             {ask("a.b.", dnsmessage.TypeA, edns(1000, 1, 0)), 16, true, 1000},
		"edns twice":         {ask("a.b.", dnsmessage.TypeA, edns(1000, 0, 0), edns(1000, 0, 0)), 1, true, 1000},
		"edns, cut":          {ask("a.b.", dnsmessage.TypeA, edns(1000, 0, 0))[:30], 1, true, 512},
		"an answer":          {ask("a.b.", dnsmessage.TypeA, set(2, 0x80)), 0, false, 0},
		"short":              {ask("a.b.", dnsmessage.TypeA)[:11], 0, false, 0},
		"header only":        {ask("a.b.", dnsmessage.TypeA)[:12], 1, true, 512},
		"status":             {ask("a.b.", dnsmessage.TypeA, set(2, 2<<3)), 4, true, 512},
		"two questions":      {ask("a.b.", dnsmessage.TypeA, set(5, 2)), 1, true, 512},
		"no question":        {ask("a.b.", dnsmessage.TypeA, set(5, 0)), 1, true, 512},
		"chaos":              {ask("a.b.", dnsmessage.TypeA, set(20, 3)), 5, true, 512},
		"a dot in the label": {ask("abc.", dnsmessage.TypeA, set(14, '.')), 1, true, 512},
		"a loop":             {ask("ab.", dnsmessage.TypeA, set(12, 0xc0), set(13, 12)), 1, true, 512},
	} {
		q, rcode, ok := parse(c.msg)
		if rcode != c.rcode || ok != c.ok || ok && q.limit(maxDatagram) != c.size {
			t.Errorf("%s: got %v %v, %d bytes, want %v %v %d", what, rcode, ok, q.limit(maxDatagram), c.rcode, c.ok, c.size)
		}
		if ok && q.limit(noLimit) != noLimit {
			t.Errorf("%s: limited by TCP", what)
		}
	}
	if q, _, _ := parse(ask("A.b.", dnsmessage.TypeA)); q.name != "a.b" || q.question.Name.String() != "A.b." {
		t.Errorf("name %q of question %q", q.name, q.question.Name)
	}
}

// answerTo is the zone's answer in one line.
func answerTo(t *testing.T, z *Zone, msg []byte, size int) (string, dnsmessage.Message, []byte) {
	t.Helper()
	q, rcode, ok := parse(msg)
	if !ok || rcode != 0 {
		t.Fatalf("parse: %v %v", rcode, ok)
	}
	v := z.decide(q.name, q.question.Type, Home)
	out := q.answer(make([]byte, 0, 512), &v, q.limit(size))
	var m dnsmessage.Message
	if err := m.Unpack(out); err != nil {
		t.Fatalf("%x: %v", out, err)
	}
	return lineOf(m), m, out
}

func lineOf(m dnsmessage.Message) string {
	out := []string{strings.TrimPrefix(m.RCode.String(), "RCode")}
	if m.Truncated {
		out = append(out, "cut")
	}
	if m.Authoritative {
		out = append(out, "aa")
	}
	for i, section := range [][]dnsmessage.Resource{m.Answers, m.Authorities, m.Additionals} {
		for _, r := range section {
			text := [...]string{"", "authority ", "additional "}[i] + r.Header.Name.String() + " "
			switch b := r.Body.(type) {
			case *dnsmessage.AResource:
				text += netip.AddrFrom4(b.A).String()
			case *dnsmessage.AAAAResource:
				text += netip.AddrFrom16(b.AAAA).String()
			case *dnsmessage.PTRResource:
				text += b.PTR.String()
			default:
				text += strings.TrimPrefix(r.Header.Type.String(), "Type")
			}
			out = append(out, text)
		}
	}
	return strings.Join(out, "; ")
}

func TestAnswer(t *testing.T) {
	z := NewZone(world())
	for _, c := range []struct {
		msg  []byte
		want string
	}{
		{ask("PHONE.mesh.internal.", dnsmessage.TypeA), "Success; aa; PHONE.mesh.internal. 100.64.0.2"},
		{ask("phone.mesh.internal.", dnsmessage.TypeAAAA, edns(4096, 0, 0x80)), "Success; aa; phone.mesh.internal. fd7a:115c:a1e0::2; additional . OPT"},
		{ask("phone.mesh.internal.", dnsmessage.TypeMX), "Success; aa; authority mesh.internal. SOA"},
		{ask("phone.mesh.internal.", dnsmessage.TypeALL), "Success; aa; phone.mesh.internal. HINFO"},
		{ask("mesh.internal.", dnsmessage.TypeSOA), "Success; aa; mesh.internal. SOA"},
		{ask("no.mesh.internal.", dnsmessage.TypeA), "NameError; aa; authority mesh.internal. SOA"},
		{ask("2.0.64.100.in-addr.arpa.", dnsmessage.TypePTR), "Success; aa; 2.0.64.100.in-addr.arpa. Phone.mesh.internal."},
		{ask("mesh.internal.", 252), "Refused"},
	} {
		got, m, _ := answerTo(t, z, c.msg, maxDatagram)
		if got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
		if m.ID != 0x1234 || !m.Response || !m.RecursionDesired || !m.RecursionAvailable {
			t.Errorf("%s: header %+v", c.want, m.Header)
		}
		for _, r := range append(m.Answers, m.Authorities...) {
			if s, ok := r.Body.(*dnsmessage.SOAResource); ok && (s.MinTTL != ttlNegative || r.Header.TTL > ttl) || !ok && r.Header.TTL != ttl {
				t.Errorf("%s: time to live %d", c.want, r.Header.TTL)
			}
		}
	}
}

// TestCut: what does not fit is asked for again by TCP.
func TestCut(t *testing.T) {
	n := world()
	for i := range 100 {
		n.Netmap.Names.Records = append(n.Netmap.Names.Records, mesh.Record{Name: "many.mesh.internal", Addr: netip.AddrFrom4([4]byte{100, 64, 7, byte(i)})})
	}
	z := NewZone(n)
	for _, c := range []struct {
		size    int
		msg     []byte
		answers int
	}{
		{maxDatagram, ask("many.mesh.internal.", dnsmessage.TypeA), 0},
		{maxDatagram, ask("many.mesh.internal.", dnsmessage.TypeA, edns(4000, 0, 0)), 0},
		{noLimit, ask("many.mesh.internal.", dnsmessage.TypeA), 100},
	} {
		_, m, out := answerTo(t, z, c.msg, c.size)
		if len(m.Answers) != c.answers || m.Truncated != (c.answers == 0) {
			t.Errorf("%d answers, cut %v in %d bytes, want %d", len(m.Answers), m.Truncated, len(out), c.answers)
		}
	}
}

// reply is a resolver's answer to ask(name, t) with that much to live.
func reply(name string, t dnsmessage.Type, rcode dnsmessage.RCode, answers, authorities []dnsmessage.Resource, change ...func([]byte) []byte) []byte {
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 0x1234, Response: true, RecursionAvailable: true, AuthenticData: true, Authoritative: true, RCode: rcode},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: t, Class: dnsmessage.ClassINET}},
		Answers:   answers, Authorities: authorities,
	}
	msg, err := m.Pack()
	if err != nil {
		panic(err)
	}
	for _, f := range change {
		msg = f(msg)
	}
	return msg
}

func rrA(name string, ttl uint32, a string) dnsmessage.Resource {
	return dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET, TTL: ttl},
		Body: &dnsmessage.AResource{A: addr(a).As4()}}
}

func rrSOA(name string, ttl, least uint32) dnsmessage.Resource {
	n := dnsmessage.MustNewName(name)
	return dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: n, Class: dnsmessage.ClassINET, TTL: ttl},
		Body: &dnsmessage.SOAResource{NS: n, MBox: n, MinTTL: least}}
}

func TestPass(t *testing.T) {
	from := reply("example.com.", dnsmessage.TypeA, 0, []dnsmessage.Resource{rrA("example.com.", 300, "1.2.3.4"), rrA("example.com.", 5, "1.2.3.5")}, nil)
	whole := slices.Clone(from)
	for _, c := range []struct {
		msg  []byte
		age  time.Duration
		size int
		want string
		ttls []uint32
	}{
		{ask("EXAMPLE.com.", dnsmessage.TypeA), 0, noLimit, "Success; EXAMPLE.com. 1.2.3.4; EXAMPLE.com. 1.2.3.5", []uint32{300, 5}},
		{ask("example.com.", dnsmessage.TypeA, edns(512, 0, 0)), 10*time.Second + 1, noLimit, "Success; example.com. 1.2.3.4; example.com. 1.2.3.5; additional . OPT", []uint32{290, 0}},
		{ask("example.com.", dnsmessage.TypeA, edns(512, 0, 0)), 0, 60, "Success; cut; additional . OPT", nil},
		{ask("example.com.", dnsmessage.TypeA), 0, len(from), "Success; example.com. 1.2.3.4; example.com. 1.2.3.5", []uint32{300, 5}},
		{ask("example.com.", dnsmessage.TypeA, edns(512, 0, 0)), 0, len(from) + optLen - 1, "Success; cut; additional . OPT", nil},
		{ask("example.com.", dnsmessage.TypeA), math.MaxInt64, noLimit, "Success; example.com. 1.2.3.4; example.com. 1.2.3.5", []uint32{0, 0}},
	} {
		q, _, _ := parse(c.msg)
		out := q.pass(nil, from, c.age, c.size)
		var m dnsmessage.Message
		if err := m.Unpack(out); err != nil {
			t.Fatal(err)
		}
		if got := lineOf(m); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
		if m.AuthenticData || m.Authoritative {
			t.Error("the resolver's word is passed on as ours")
		}
		var ttls []uint32
		for _, r := range m.Answers {
			ttls = append(ttls, r.Header.TTL)
		}
		if !slices.Equal(ttls, c.ttls) {
			t.Errorf("times to live %v, want %v", ttls, c.ttls)
		}
	}
	if !bytes.Equal(from, whole) {
		t.Error("what others may be reading was changed")
	}
}

func TestKeepFor(t *testing.T) {
	const a = dnsmessage.TypeA
	rr := func(rs ...dnsmessage.Resource) []dnsmessage.Resource { return rs }
	for what, c := range map[string]struct {
		msg  []byte
		want time.Duration
	}{
		"the shortest":           {reply("x.", a, 0, rr(rrA("x.", 300, "1.2.3.4"), rrA("x.", 60, "1.2.3.4")), nil), time.Minute},
		"zero":                   {reply("x.", a, 0, rr(rrA("x.", 0, "1.2.3.4")), nil), 0},
		"no number":              {reply("x.", a, 0, rr(rrA("x.", 1<<31, "1.2.3.4")), nil), 0},
		"for ever":               {reply("x.", a, 0, rr(rrA("x.", 1<<31-1, "1.2.3.4")), nil), 24 * time.Hour},
		"no such name":           {reply("x.", a, 3, nil, rr(rrSOA("x.", 300, 120))), 2 * time.Minute},
		"no such name, SOA's":    {reply("x.", a, 3, nil, rr(rrSOA("x.", 30, 120))), 30 * time.Second},
		"no such name, long":     {reply("x.", a, 3, nil, rr(rrSOA("x.", 86400, 86400))), 10 * time.Minute},
		"nothing":                {reply("x.", a, 0, nil, rr(rrSOA("x.", 300, 120))), 2 * time.Minute},
		"nothing, nobody's word": {reply("x.", a, 0, nil, nil), 0},
		"failure":                {reply("x.", a, 2, nil, rr(rrSOA("x.", 300, 120))), 0},
		"cut":                    {reply("x.", a, 0, rr(rrA("x.", 300, "1.2.3.4")), nil, set(2, 0x82)), 0},
	} {
		if got := keepFor(c.msg, 1+2+4); got != c.want {
			t.Errorf("%s: got %v, want %v", what, got, c.want)
		}
	}
}

func TestChecked(t *testing.T) {
	q, _, _ := parse(ask("example.com.", dnsmessage.TypeA))
	good := func(change ...func([]byte) []byte) []byte {
		return reply("EXAMPLE.com.", dnsmessage.TypeA, 0, []dnsmessage.Resource{rrA("example.com.", 300, "1.2.3.4")}, nil, change...)
	}
	bare := good()
	behind := func(msg []byte) []byte { // a record behind OPT
		msg[11]++
		return append(msg, 0, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 1, 1, 1, 1)
	}
	for what, c := range map[string]struct {
		msg  []byte
		err  error
		want []byte
	}{
		"good":                {good(), nil, bare},
		"with EDNS":           {good(edns(1232, 0, 0)), nil, bare},
		"more behind EDNS":    {good(edns(1232, 0, 0), behind), nil, bare},
		"behind the message":  {append(good(), 1, 2, 3), nil, bare},
		"another identity":    {good(set(0, 0)), errMessage, nil},
		"a question":          {good(set(2, 0)), errMessage, nil},
		"another operation":   {good(set(2, 0x88)), errMessage, nil},
		"another name":        {good(set(13, 'f')), errMessage, nil},
		"another type":        {good(set(26, 28)), errMessage, nil},
		"two questions":       {good(set(5, 2)), errMessage, nil},
		"cut short":           {good()[:40], errMessage, nil},
		"short":               {good()[:11], errMessage, nil},
		"refusal, no more":    {good(set(3, 5))[:12], errRefused, nil},
		"success, no more":    {good()[:12], errMessage, nil},
		"upper bits of rcode": {good(edns(1232, 0, 0), func(m []byte) []byte { m[len(m)-6] = 1; return m }), errRefused, nil},
	} {
		got, err := checked(c.msg, 0x1234, q.wire())
		if err != c.err || !bytes.Equal(got, c.want) {
			t.Errorf("%s: got %x %v, want %x %v", what, got, err, c.want, c.err)
		}
	}
	letters := good()
	wire := q.wire()
	binary.BigEndian.PutUint16(wire[len(wire)-4:], 'a')
	binary.BigEndian.PutUint16(letters[25:], 'A')
	if sameQuestion(letters, wire) {
		t.Error("type 65 passes for type 97")
	}
}
