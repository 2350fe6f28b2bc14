package names

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

func ask1(t testing.TB, name string, kind dnsmessage.Type) []byte {
	t.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}}}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// reply answers a question of anybody with an address, or that there is none.
func reply(t testing.TB, question []byte, ttl uint32, rcode dnsmessage.RCode) []byte {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil {
		t.Fatal(err)
	}
	m.Response, m.RCode, m.RecursionAvailable = true, rcode, true
	h := dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: ttl}
	if rcode == dnsmessage.RCodeSuccess {
		m.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.AResource{A: [4]byte{203, 0, 113, 7}}},
			{Header: h, Body: &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName("b.example.")}}}
	} else {
		h.TTL = 900
		m.Authorities = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.SOAResource{NS: m.Questions[0].Name, MBox: m.Questions[0].Name, MinTTL: ttl}}}
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parsed(t testing.TB, m []byte) question {
	t.Helper()
	q, err := parse(m)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func TestParse(t *testing.T) {
	q := parsed(t, ask1(t, "A.Example.", dnsmessage.TypeA))
	if q.name != "a.example" || q.kind != 1 || q.size != smallest || q.end != len(q.message) {
		t.Errorf("%+v", q)
	}
	whole := ask1(t, "a.example.", dnsmessage.TypeA)
	bad := map[string]struct {
		change func([]byte) []byte
		rcode  int // -1: silence
	}{
		"empty":         {func([]byte) []byte { return nil }, -1},
		"short":         {func(b []byte) []byte { return b[:11] }, -1},
		"an answer":     {func(b []byte) []byte { b[2] |= flagResponse; return b }, -1},
		"an update":     {func(b []byte) []byte { b[2] |= 5 << 3; return b }, rcodeNotImp},
		"two questions": {func(b []byte) []byte { b[5] = 2; return b }, rcodeFormErr},
		"none":          {func(b []byte) []byte { b[5] = 0; return b }, rcodeFormErr},
		"cut":           {func(b []byte) []byte { return b[:len(b)-3] }, rcodeFormErr},
		"a pointer":     {func(b []byte) []byte { b[12], b[13] = 0xc0, 12; return b }, rcodeFormErr},
		"a zone":        {func(b []byte) []byte { b[len(b)-3] = typeAXFR; return b }, rcodeNotImp},
		"records":       {func(b []byte) []byte { b[11] = 1; return b }, rcodeFormErr},
	}
	for name, c := range bad {
		m := c.change(append([]byte(nil), whole...))
		_, err := parse(m)
		a := refusal(m, err)
		if err == nil || (a == nil) != (c.rcode < 0) || a != nil && int(a[3]&15) != c.rcode {
			t.Errorf("%s: %v, answered %x", name, err, a)
		}
	}
}

func TestWhom(t *testing.T) {
	isp, mesh, corp := netip.MustParseAddrPort("192.0.2.53:53"), netip.MustParseAddrPort("127.0.0.1:5335"), netip.MustParseAddrPort("[fd00::1]:53")
	c := Config{Resolvers: []netip.AddrPort{isp}, Domains: map[string][]netip.AddrPort{"mesh.internal": {mesh}, "corp.mesh.internal": {corp}, "64.100.in-addr.arpa": {mesh}}}
	for name, want := range map[string]netip.AddrPort{"a.example": isp, "": isp, "mesh.internal": mesh, "phone.mesh.internal": mesh, "xmesh.internal": isp, "internal": isp,
		"git.corp.mesh.internal": corp, "7.0.64.100.in-addr.arpa": mesh} {
		if got, cached := c.whom(name); got[0] != want || cached != (want == isp) {
			t.Errorf("%q is asked of %v, remembered: %v", name, got, cached)
		}
	}
}

func TestReadDir(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"subnetd.conf":          "# Written by subnetd\nserver=/Mesh.internal/127.0.0.1#5335\nrebind-domain-ok=/mesh.internal/\nserver=/0.0.1.d.f.ip6.arpa/fd7a::53#5335\n",
		"b.conf":                "server=/corp.example/10.0.0.1\nserver=8.8.8.8\nserver=/x/\nserver=/y/1.2.3.4#99999\naddress=/a/1.2.3.4\n",
		".subnetd.conf.subnetd": "server=/not.read/127.0.0.1\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ReadDir(dir)
	if err != nil || len(got) != 3 || got["mesh.internal"][0].String() != "127.0.0.1:5335" || got["corp.example"][0].String() != "10.0.0.1:53" || got["0.0.1.d.f.ip6.arpa"][0].String() != "[fd7a::53]:5335" {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := ReadDir(filepath.Join(dir, "none")); err != nil || len(got) != 0 {
		t.Errorf("no directory: %v, %v", got, err)
	}
}

func TestCache(t *testing.T) {
	at := time.Unix(1700000000, 0)
	c := newCache()
	q := parsed(t, ask1(t, "a.example.", dnsmessage.TypeA))
	c.put(q, reply(t, q.message, 60, dnsmessage.RCodeSuccess), at)
	other := ask1(t, "A.eXample.", dnsmessage.TypeA)
	other[0] = 99
	a := c.get(parsed(t, other), at.Add(20*time.Second))
	var m dnsmessage.Message
	if err := m.Unpack(a); err != nil {
		t.Fatal(err)
	}
	if m.ID != 99<<8|7 || m.Questions[0].Name.String() != "A.eXample." || m.Answers[0].Header.TTL != 40 || m.Answers[1].Header.TTL != 40 {
		t.Errorf("%v", m.GoString())
	}
	if c.get(q, at.Add(60*time.Second)) != nil || c.get(parsed(t, ask1(t, "a.example.", dnsmessage.TypeAAAA)), at) != nil {
		t.Error("an answer that is too old, or to another question")
	}
	for name, c2 := range map[string]struct {
		ttl   uint32
		rcode dnsmessage.RCode
		lives time.Duration
	}{
		"x.": {30, dnsmessage.RCodeNameError, 30 * time.Second}, "y.": {86400, dnsmessage.RCodeNameError, mostNegative},
		"z.": {60, dnsmessage.RCodeServerFailure, 0}, "zero.": {0, dnsmessage.RCodeSuccess, 0}, "long.": {1 << 30, dnsmessage.RCodeSuccess, longestLife},
	} {
		q := parsed(t, ask1(t, name, dnsmessage.TypeA))
		c.put(q, reply(t, q.message, c2.ttl, c2.rcode), at)
		if c2.lives > 0 && c.get(q, at.Add(c2.lives-time.Second)) == nil || c.get(q, at.Add(c2.lives)) != nil {
			t.Errorf("%s does not live for %v", name, c2.lives)
		}
	}
	for i := range 3 * mostAnswers {
		q := parsed(t, ask1(t, strings.Repeat("x", i%60+1)+"."+strings.Repeat("y", i/60+1)[:min(i/60+1, 60)]+".", dnsmessage.Type(1+i%3)))
		c.put(q, reply(t, q.message, 60, dnsmessage.RCodeSuccess), at)
	}
	if len(c.answers) != len(c.order) || len(c.answers) > mostAnswers || c.bytes > mostBytes || c.bytes <= 0 {
		t.Errorf("%d answers, %d keys, %d bytes", len(c.answers), len(c.order), c.bytes)
	}
}

// TestForgery: an attacker who guesses answers before the resolver does is not believed.
func TestForgery(t *testing.T) {
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	go func() {
		b := make([]byte, 1500)
		n, from, err := pc.ReadFrom(b)
		if err != nil {
			return
		}
		good := reply(t, b[:n], 60, dnsmessage.RCodeSuccess)
		for _, change := range []func([]byte){
			func(f []byte) { f[0] ^= 1 },
			func(f []byte) { f[2] &^= flagResponse },
			func(f []byte) { f[13] ^= 1 },
			func(f []byte) { f[5] = 0 },
			func(f []byte) { f[12] = 63 },
		} {
			forged := append([]byte(nil), good...)
			change(forged)
			forged[len(forged)-20] ^= 1
			_, _ = pc.WriteTo(forged, from)
		}
		_, _ = pc.WriteTo(good[:8], from)
		_, _ = pc.WriteTo(good, from)
	}()
	now := time.Now() // it stands: what is remembered has less to live each second
	f := NewForwarder(func() time.Time { return now })
	f.Set(Config{Resolvers: []netip.AddrPort{netip.MustParseAddrPort(pc.LocalAddr().String())}})
	question := ask1(t, "a.example.", dnsmessage.TypeA)
	a := f.Answer(context.Background(), question, false)
	if string(a) != string(reply(t, question, 60, dnsmessage.RCodeSuccess)) {
		t.Errorf("%x", a)
	}
	if b := f.Answer(context.Background(), question, false); string(b) != string(a) {
		t.Error("the second answer, with nobody left to ask, is another")
	}
}

func TestNobody(t *testing.T) {
	f := NewForwarder(time.Now)
	a := f.Answer(context.Background(), ask1(t, "a.example.", dnsmessage.TypeA), false)
	if len(a) < headerSize || a[3]&15 != rcodeServFail || a[2]&flagResponse == 0 {
		t.Errorf("%x", a)
	}
}

// FuzzAnswer: whatever comes from the home, and whatever a resolver says.
func FuzzAnswer(f *testing.F) {
	q := ask1(f, "a.example.", dnsmessage.TypeA)
	f.Add(q, reply(f, q, 60, dnsmessage.RCodeSuccess))
	f.Add(q, reply(f, q, 60, dnsmessage.RCodeNameError))
	f.Fuzz(func(t *testing.T, m, a []byte) {
		now := time.Unix(1700000000, 0)
		q, err := parse(m)
		if err != nil {
			if r := refusal(m, err); r != nil && (len(r) < headerSize || r[2]&flagResponse == 0) {
				t.Errorf("refused by %x", r)
			}
			return
		}
		if !q.answeredBy(a, m) {
			return
		}
		c := newCache()
		c.put(q, own(a, q), now)
		if b := c.get(q, now); b != nil && (len(b) != len(a) || string(b[:2]) != string(m[:2])) {
			t.Errorf("remembered as %x", b)
		}
		if s := truncated(a); len(s) > smallest || s[2]&flagTruncated == 0 {
			t.Errorf("cut to %x", s)
		}
	})
}
