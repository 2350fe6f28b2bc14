package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

const sometime = 30 * time.Second // is enough for what has to happen, on any machine

// stranger is a resolver that answers with what its function makes of a question.
type stranger struct {
	at    netip.AddrPort
	leave func()
}

func newStranger(t *testing.T, answer func(q []byte, tcp bool) [][]byte) *stranger {
	t.Helper()
	s := &stranger{at: nobodys()}
	pc, err := net.ListenPacket("udp4", s.at.String())
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp4", s.at.String())
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	s.leave = func() { pc.Close(); ln.Close(); all.Wait() }
	t.Cleanup(s.leave)
	all.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			for _, msg := range answer(slices.Clone(buf[:n]), false) {
				_, _ = pc.WriteTo(msg, from)
			}
		}
	})
	all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			msg, err := readFrame(c, make([]byte, 4096))
			if err == nil {
				for _, msg := range answer(msg, true) {
					_, _ = c.Write(framed(msg))
				}
			}
			c.Close()
		}
	})
	return s
}

// answerA answers any question with addresses.
func answerA(q []byte, addrs ...string) []byte {
	var p dnsmessage.Parser
	h, _ := p.Start(q)
	question, err := p.Question()
	if err != nil {
		return nil
	}
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: h.ID, Response: true}, Questions: []dnsmessage.Question{question}}
	for _, a := range addrs {
		m.Answers = append(m.Answers, rrA(question.Name.String(), 300, a))
	}
	msg, _ := m.Pack()
	return msg
}

// running is a Server with these settings on a loopback address, and the zone of
// world with resolvers.
func running(t *testing.T, set Settings, upstream ...*stranger) (*Server, netip.AddrPort) {
	t.Helper()
	n := world()
	n.Netmap.Names.Upstream = nil
	for _, u := range upstream {
		n.Netmap.Names.Upstream = append(n.Netmap.Names.Upstream, u.at.String())
	}
	if set.Zone == nil {
		set.Zone = NewZone(n)
	}
	s, _ := started(t, set)
	return s, s.now.Load().Listen[0]
}

// started runs a Server, and gives what it tells of its troubles after the first.
func started(t *testing.T, set Settings) (*Server, <-chan string) {
	t.Helper()
	var id atomic.Uint32
	listening := make(chan string, 10)
	s := New(Config{
		Now: time.Now, Random: func() uint16 { return uint16(id.Add(7919)) },
		Trouble: func(text string) { listening <- text },
	})
	if set.Listen == nil {
		set.Listen = []netip.AddrPort{nobodys()}
	}
	s.Set(set)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(sometime); ; time.Sleep(time.Millisecond) {
		c, err := net.Dial("tcp", set.Listen[0].String())
		if err == nil {
			c.Close()
			return s, listening
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// nobodys is one of this machine's sixteen million own addresses, and a port below those that the kernel gives to whoever
// asks for any: one that was free a moment ago may be another test's by now.
func nobodys() netip.AddrPort {
	n := rand.Uint32()
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, byte(1 + n>>16%254), byte(n >> 8), byte(1 + n%254)}), 20053)
}

// exchanged sends msg from that local address and gives the answer, nil after a while.
func exchanged(t *testing.T, network, local string, at netip.AddrPort, msg []byte) []byte {
	t.Helper()
	d := net.Dialer{Timeout: sometime}
	if local != "" {
		if network == "udp" {
			d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr(local), 0))
		} else {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr(local), 0))
		}
	}
	c, err := d.Dial(network, at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if network == "tcp" {
		_, _ = c.Write(framed(msg))
		out, err := readFrame(c, make([]byte, 65537))
		if err != nil {
			return nil
		}
		return out
	}
	_, _ = c.Write(msg)
	_ = c.SetReadDeadline(time.Now().Add(sometime))
	buf := make([]byte, 65536)
	n, err := c.Read(buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

func lineOfBytes(msg []byte) string {
	var m dnsmessage.Message
	if msg == nil {
		return "silence"
	}
	if err := m.Unpack(msg); err != nil {
		return err.Error()
	}
	return lineOf(m)
}

// TestServed: what a resolver said once is known, also when it is gone.
func TestServed(t *testing.T) {
	up := newStranger(t, func(q []byte, _ bool) [][]byte { return [][]byte{answerA(q, "1.2.3.4")} })
	_, at := running(t, Settings{}, up)
	if got := lineOfBytes(exchanged(t, "udp", "", at, ask("example.com.", dnsmessage.TypeA))); got != "Success; example.com. 1.2.3.4" {
		t.Fatalf("got %q", got)
	}
	up.leave()
	for _, network := range []string{"udp", "tcp"} {
		for _, c := range []struct {
			msg  []byte
			want string
		}{
			{ask("phone.mesh.internal.", dnsmessage.TypeA), "Success; aa; phone.mesh.internal. 100.64.0.2"},
			{ask("Example.COM.", dnsmessage.TypeA), "Success; Example.COM. 1.2.3.4"},
			{ask("example.com.", dnsmessage.TypeA, edns(1232, 0, 0)), "Success; example.com. 1.2.3.4; additional . OPT"},
			{ask("doh.example.", dnsmessage.TypeA), "ServerFailure"},
			{ask("x.", dnsmessage.TypeA, set(2, 5<<3)), "NotImplemented"},
		} {
			if got := lineOfBytes(exchanged(t, network, "", at, c.msg)); got != c.want {
				t.Errorf("%s: got %q, want %q", network, got, c.want)
			}
		}
	}
}

// TestHostileResolver: what is no answer to our question is none, however much
// comes of it.
func TestHostileResolver(t *testing.T) {
	for what, c := range map[string]struct {
		answers func(q []byte, tcp bool) [][]byte
		want    string
	}{
		"guesses first": {func(q []byte, _ bool) [][]byte {
			wrong := answerA(q, "6.6.6.6")
			wrong[1]++
			other := answerA(ask("other.", dnsmessage.TypeA), "6.6.6.6")
			copy(other, q[:2])
			return [][]byte{wrong, other, {}, q, answerA(q, "1.2.3.4")}
		}, "Success; x. 1.2.3.4"},
		"floods": {func(q []byte, _ bool) [][]byte {
			var out [][]byte
			for range mostStray + 1 {
				out = append(out, []byte("nonsense"))
			}
			return append(out, answerA(q, "6.6.6.6"))
		}, "ServerFailure"},
		"cuts": {func(q []byte, tcp bool) [][]byte {
			msg := answerA(q, "1.2.3.4")
			if !tcp {
				msg[2] |= bitTruncated
			}
			return [][]byte{msg}
		}, "Success; x. 1.2.3.4"},
		"cuts, and more so by TCP": {func(q []byte, tcp bool) [][]byte {
			if tcp {
				return nil
			}
			msg := answerA(q)
			msg[2] |= bitTruncated
			return [][]byte{msg}
		}, "Success; cut"},
		"knows no EDNS": {func(q []byte, _ bool) [][]byte {
			if q[11] != 0 {
				return [][]byte{append(slices.Clone(q[:3]), append([]byte{1}, make([]byte, 8)...)...)}
			}
			return [][]byte{answerA(q, "1.2.3.4")}
		}, "Success; x. 1.2.3.4"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			up := newStranger(t, func(q []byte, tcp bool) [][]byte {
				out := c.answers(q, tcp)
				for _, msg := range out { // an answer, not an echo
					if len(msg) == 12 {
						msg[2] |= bitResponse
					}
				}
				return out
			})
			_, at := running(t, Settings{}, up)
			m := ask("x.", dnsmessage.TypeA)
			if what == "knows no EDNS" {
				m = ask("x.", dnsmessage.TypeA, edns(1232, 0, 0))
				c.want += "; additional . OPT"
			}
			if got := lineOfBytes(exchanged(t, "udp", "", at, m)); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestWho: strangers hear nothing, members their addresses.
func TestWho(t *testing.T) {
	s := sourcesOf(Settings{
		Home: []netip.Prefix{prefix("192.168.1.0/24"), prefix("203.0.113.7/32"), prefix("fd00::/64")},
		Mesh: []netip.Prefix{prefix("100.64.0.2/32"), prefix("10.1.0.0/16"), prefix("fd7a:115c:a1e0::2/128"), prefix("203.0.113.7/32")},
	})
	for a, want := range map[string]Asker{
		"127.0.0.1": Home, "127.9.9.9": Home, "::1": Home, "192.168.1.77": Home, "203.0.113.7": Home, "fd00::9": Home,
		"100.64.0.2": Member, "10.1.2.3": Member, "fd7a:115c:a1e0::2": Member,
		"100.64.0.3": Stranger, "203.0.113.8": Stranger, "192.168.2.1": Stranger, "fd00:0:0:1::1": Stranger, "fe80::1": Stranger, "0.0.0.0": Stranger,
	} {
		if got := s.who(addr(a)); got != want {
			t.Errorf("%s: got %d, want %d", a, got, want)
		}
	}
	member := newServerFor(t)
	if got := lineOfBytes(member.Ask(t.Context(), ask("printer.mesh.internal.", dnsmessage.TypeA), addr("100.64.0.2"))); got != "Success; aa; printer.mesh.internal. 100.64.1.1" {
		t.Errorf("a member is told %q", got)
	}
	strangers := 0
	for range 3 {
		if tn, ok := member.begin(ask("printer.mesh.internal.", dnsmessage.TypeA), nil, addr("8.8.8.8"), Stranger, maxDatagram); ok || tn.done != nil {
			strangers++
		}
	}
	if strangers > 0 {
		t.Error("a stranger is told something")
	}
}

func newServerFor(t *testing.T) *Server {
	s, _ := running(t, Settings{})
	return s
}

// TestPipeline: answers of one connection come as they are ready, and a slow one
// holds up nobody.
func TestPipeline(t *testing.T) {
	release := make(chan struct{})
	up := newStranger(t, func(q []byte, _ bool) [][]byte {
		if strings.Contains(string(q), "slow") {
			<-release
		}
		return [][]byte{answerA(q, "1.2.3.4")}
	})
	_, at := running(t, Settings{}, up)
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write(framed(ask("slow.", dnsmessage.TypeA)))
	var fast []byte
	for range 40 {
		fast = append(fast, framed(ask("phone.mesh.internal.", dnsmessage.TypeA))...)
	}
	_, _ = c.Write(fast)
	buf := make([]byte, 4096)
	for range 40 {
		msg, err := readFrame(c, buf)
		if err != nil {
			t.Fatal(err)
		}
		if got := lineOfBytes(msg); got != "Success; aa; phone.mesh.internal. 100.64.0.2" {
			t.Fatal(got)
		}
	}
	close(release)
	msg, err := readFrame(c, buf)
	if got := lineOfBytes(msg); err != nil || got != "Success; slow. 1.2.3.4" {
		t.Errorf("%v: %q", err, got)
	}
}

// TestConnectionsBounded: a source has so many connections, and a nonsense length
// ends one.
func TestConnectionsBounded(t *testing.T) {
	_, at := running(t, Settings{})
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write(binary.BigEndian.AppendUint16(nil, mostQuery+1))
	if _, err := io.ReadAll(c); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !strings.Contains(err.Error(), "reset") {
		t.Errorf("it stays: %v", err)
	}
	k := &Server{}
	for i := range mostPerHost + 1 {
		if got := k.takes(addr("192.168.1.9")); got != (i < mostPerHost) {
			t.Fatalf("connection %d: %v", i, got)
		}
	}
	for range mostConns - mostPerHost {
		if !k.takes(addr("127.0.0.1")) {
			t.Fatal("this machine has no more connections")
		}
	}
	if k.takes(addr("127.0.0.1")) {
		t.Error("there is no end of connections")
	}
	for range mostPerHost {
		k.conns.Return(addr("192.168.1.9"))
	}
	if !k.takes(addr("192.168.1.9")) {
		t.Error("what ended still counts")
	}
}

// TestListen follows addresses that come and go: one is bound before it is there,
// one that another program has is told of and taken when it is free.
func TestListen(t *testing.T) {
	a, b := nobodys(), nobodys()
	own := a.Addr().As4()
	own[0] = 10
	yet := netip.AddrPortFrom(netip.AddrFrom4(own), a.Port()) // not this machine's
	yet6 := netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 13: own[1], 14: own[2], 15: own[3]}), a.Port())
	s, told := started(t, Settings{Listen: []netip.AddrPort{a, yet, yet6}})
	q := ask("localhost.", dnsmessage.TypeA)
	if got := exchanged(t, "udp", "", a, q); got == nil {
		t.Fatal("no answer")
	}
	taken, err := net.ListenPacket("udp", b.String())
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	s.Set(Settings{Listen: []netip.AddrPort{b}})
	if text := <-told; !strings.Contains(text, "another program has "+b.String()) {
		t.Errorf("told %q", text)
	}
	if c, err := net.Dial("tcp", a.String()); err == nil {
		c.Close()
		t.Error("the address that we left still answers")
	}
	taken.Close()
	s.Set(Settings{Listen: []netip.AddrPort{b}}) // or a while later by itself
	if text := <-told; text != "" {
		t.Errorf("told %q", text)
	}
	if got := exchanged(t, "tcp", "", b, q); got == nil {
		t.Error("no answer at the new address")
	}
}

// TestMark: questions go out beside the mesh, but for those to resolvers in there,
// or where the owner sends all of this router's traffic elsewhere.
func TestMark(t *testing.T) {
	const mark = 0x05000000
	for what, c := range map[string]struct {
		set  Settings
		want int
	}{
		"outside":               {Settings{Through: []netip.Prefix{prefix("10.0.0.0/8")}}, mark},
		"in the mesh":           {Settings{Through: []netip.Prefix{prefix("10.0.0.0/8"), prefix("127.0.0.2/32")}}, 0},
		"by a way of the owner": {Settings{Unmarked: true}, 0},
	} {
		f := newForwarder(Config{Now: time.Now, Mark: mark})
		f.setTo(c.set)
		c1, err := f.dial(t.Context(), "udp", resolver("127.0.0.2:53"))
		if errors.Is(err, os.ErrPermission) || errors.Is(err, unix.ENOPROTOOPT) {
			t.Skip("marks need privileges, and qemu-user has none")
		}
		if err != nil {
			t.Fatal(err)
		}
		raw, err := c1.(*net.UDPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		got := -1
		if err := raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK) }); err != nil {
			t.Fatal(err)
		}
		if got != c.want {
			t.Errorf("%s: mark %#x, want %#x", what, got, c.want)
		}
		c1.Close()
		f.close()
	}
}

// TestShare: a member gets no more answers than its share.
func TestShare(t *testing.T) {
	s := New(Config{Now: func() time.Time { return time.Unix(1000, 0) }})
	s.Set(Settings{Zone: NewZone(world())})
	answers := 0
	for range 2 * burst {
		if s.Ask(t.Context(), ask("phone.mesh.internal.", dnsmessage.TypeA), addr("100.64.0.2")) != nil {
			answers++
		}
	}
	if answers != burst {
		t.Errorf("%d answers at once", answers)
	}
	others := 0
	for i := range 8 { // one may share with him
		if s.Ask(t.Context(), ask("phone.mesh.internal.", dnsmessage.TypeA), netip.AddrFrom4([4]byte{100, 64, 9, byte(i)})) != nil {
			others++
		}
	}
	if others == 0 {
		t.Error("other members get none")
	}
}

// TestIdle: a connection without a question ends, and so does one whose question
// never comes to its end.
func TestIdle(t *testing.T) {
	for what, first := range map[string][]byte{"nothing": nil, "half a question": framed(ask("x.", dnsmessage.TypeA))[:7]} {
		synctest.Test(t, func(t *testing.T) {
			s := New(Config{Now: time.Now})
			ours, theirs := net.Pipe()
			start := time.Now()
			go s.serveConn(t.Context(), ours, addr("127.0.0.1"), Home)
			_, _ = theirs.Write(first)
			if _, err := theirs.Read(make([]byte, 1)); err == nil || time.Since(start) != idle {
				t.Errorf("%s: %v after %v", what, err, time.Since(start))
			}
			s.forwards.close()
		})
	}
}

// TestSystemResolver: without a coordinator's word the system's resolvers are
// asked, those of before us first.
func TestSystemResolver(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver 127.0.0.77\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newForwarder(Config{Now: time.Now, ResolvConf: []string{file}})
	defer f.close()
	v := NewZone(Names{}).decide("example.com", dnsmessage.TypeA, Home)
	if got := f.resolvers(&v); !slices.Equal(got, []netip.AddrPort{resolver("127.0.0.77:53")}) {
		t.Errorf("got %v", got)
	}
}
