package underlay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"subnetd/subnetd/mesh"

	"github.com/google/go-cmp/cmp"
	"tailscale.com/net/stun"
)

// stunServer answers STUN on loopback. seen turns the source of a request into
// what it answers; an invalid address is no answer.
type stunServer struct {
	addr  netip.AddrPort
	asked atomic.Int64
}

func startSTUN(t *testing.T, host string, seen func(netip.AddrPort) netip.AddrPort) *stunServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Skipf("no %s on this machine: %v", host, err)
	}
	s := &stunServer{addr: conn.LocalAddr().(*net.UDPAddr).AddrPort()}
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 2000)
		for {
			n, from, err := conn.(*net.UDPConn).ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			id, err := stun.ParseBindingRequest(b[:n])
			if err != nil {
				t.Errorf("not a STUN request: %v", err)
				continue
			}
			s.asked.Add(1)
			if a := seen(unmap(from)); a.IsValid() {
				_, _ = conn.(*net.UDPConn).WriteToUDPAddrPort(stun.Response(id, a), from)
			}
		}
	})
	t.Cleanup(func() { conn.Close(); wg.Wait() })
	return s
}

func honest(a netip.AddrPort) netip.AddrPort { return a }
func silent(netip.AddrPort) netip.AddrPort   { return netip.AddrPort{} }
func seenAs(s string) func(netip.AddrPort) netip.AddrPort {
	return func(netip.AddrPort) netip.AddrPort { return netip.MustParseAddrPort(s) }
}

// relayNode is the server as a node of the relay map. Nobody listens at its
// TCP port.
func (s *stunServer) relayNode() mesh.RelayNode {
	n := mesh.RelayNode{Name: "r", Host: "relay.test", IPv4: "none", IPv6: "none", Port: 1, STUNPort: int(s.addr.Port())}
	if s.addr.Addr().Is4() {
		n.IPv4 = s.addr.Addr().String()
	} else {
		n.IPv6 = s.addr.Addr().String()
	}
	return n
}

func region(id int, servers ...*stunServer) mesh.RelayRegion {
	r := mesh.RelayRegion{ID: id, Code: fmt.Sprint("r", id), Name: fmt.Sprint("Region ", id)}
	for _, s := range servers {
		r.Nodes = append(r.Nodes, s.relayNode())
	}
	return r
}

func TestNetcheck(t *testing.T) {
	noLeak(t)
	const us, usElsewhere = "203.0.113.7:700", "203.0.113.7:701"
	on := func(as ...string) []*stunServer {
		var all []*stunServer
		for _, a := range as {
			all = append(all, startSTUN(t, "127.0.0.1", seenAs(a)))
		}
		return all
	}
	tests := []struct {
		name    string
		regions []mesh.RelayRegion
		want    Report
	}{
		{"one server", []mesh.RelayRegion{region(1, on(us)...)}, Report{UDP: true, V4Addr: addrPort(us), Nearest: 1}},
		{"easy NAT, one region of two", []mesh.RelayRegion{region(1, on(us, us)...)},
			Report{UDP: true, VariesKnown: true, V4Addr: addrPort(us), Nearest: 1}},
		{"hard NAT, one region of two", []mesh.RelayRegion{region(1, on(us, usElsewhere)...)},
			Report{UDP: true, VariesKnown: true, MappingVaries: true, Nearest: 1}},
		{"hard NAT, two regions", []mesh.RelayRegion{region(1, on(us)...), region(2, on(usElsewhere)...)},
			Report{UDP: true, VariesKnown: true, MappingVaries: true}},
		{"IPv6", []mesh.RelayRegion{region(1, startSTUN(t, "::1", seenAs("[2001:db8::7]:700")))},
			Report{UDP: true, V6: true, V6Addr: addrPort("[2001:db8::7]:700"), Nearest: 1}},
		{"nobody to ask", nil, Report{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Netcheck(t.Context(), tt.regions, 0)
			if len(got.Latency) != len(tt.regions) {
				t.Errorf("latency %v", got.Latency)
			}
			if tt.want.MappingVaries { // which answer was first is chance
				got.V4Addr = netip.AddrPort{}
			}
			if len(tt.regions) > 1 {
				got.Nearest = 0
			}
			got.Latency, got.names = nil, nil
			if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
				cmp.AllowUnexported(Report{})); diff != "" {
				t.Fatal(diff)
			}
		})
	}
}

func TestReportString(t *testing.T) {
	names := map[int]string{1: "Near", 2: "Far"}
	tests := []struct {
		name string
		r    Report
		want string
	}{
		{"works", Report{UDP: true, VariesKnown: true, V4Addr: addrPort("203.0.113.7:700"), names: names,
			Latency: map[int]time.Duration{2: 20 * time.Millisecond, 1: 1500 * time.Microsecond}},
			"UDP: works|IPv4: works, we are seen as 203.0.113.7:700|IPv6: no answer|NAT: easy: every destination sees the same port|" +
				"Relay 1: 1.5 ms Near|Relay 2: 20.0 ms Far"},
		{"blocked", Report{},
			"UDP: blocked: peers are reached through relays only|IPv4: no answer|IPv6: no answer|" +
				"NAT: unknown: fewer than two servers answered|Relays: none answered"},
		{"hard", Report{UDP: true, MappingVaries: true, VariesKnown: true},
			"UDP: works|IPv4: no answer|IPv6: no answer|" +
				"NAT: hard: it gives every destination another port, so direct paths need an easy NAT on the other side|Relays: none answered"},
		{"error", Report{Err: "no sockets"}, "cannot measure: no sockets"},
	}
	for _, tt := range tests {
		lines := strings.Split(strings.TrimSpace(tt.r.String()), "\n")
		for i := range lines {
			if at := strings.Index(lines[i], ": "); at >= 0 {
				lines[i] = lines[i][:at+2] + strings.TrimSpace(lines[i][at+2:])
			}
		}
		for i := range lines {
			name, value, _ := strings.Cut(lines[i], ":")
			lines[i] = name + ": " + strings.TrimSpace(value)
		}
		if got := strings.Join(lines, "|"); got != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

// The node's own port is what STUN servers see, and the answers are its state.
func TestSTUNRound(t *testing.T) {
	noLeak(t)
	n := startNode(t, nil)
	near := startSTUN(t, "127.0.0.1", honest)
	n.know([]mesh.RelayRegion{region(7, near)})
	n.until("a STUN endpoint", func() bool {
		s := n.State()
		return s.UDP && s.HomeRelay == 7 && !s.MappingVaries &&
			slices.Contains(s.Endpoints, Endpoint{n.loopback(), EndpointSTUN})
	})
	again := startSTUN(t, "127.0.0.1", seenAs("203.0.113.7:700"))
	n.know([]mesh.RelayRegion{region(8, again)}) // other relays: measured anew at once
	n.until("the new relay", func() bool {
		s := n.State()
		return s.HomeRelay == 8 && slices.Contains(s.Endpoints, Endpoint{addrPort("203.0.113.7:700"), EndpointSTUN})
	})
}

// Where UDP is blocked, distances are measured by TCP, and paths say why.
func TestUDPBlocked(t *testing.T) {
	noLeak(t)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	deaf := region(7, startSTUN(t, "127.0.0.1", silent))
	deaf.Nodes[0].Port = tcp.Addr().(*net.TCPAddr).Port
	n, peer := startNode(t, nil), startNode(t, nil)
	n.SetNetmap(&mesh.Netmap{Relays: []mesh.RelayRegion{deaf}, Peers: []mesh.Node{peer.as(1, 7, addrPort("127.0.0.1:9"))}}, n.key)
	n.until("UDP is blocked", func() bool { return !n.State().UDP })
	s := n.State()
	if s.HomeRelay != 7 || s.Latency[7] <= 0 {
		t.Errorf("home %d, latency %v", s.HomeRelay, s.Latency)
	}
	n.until("a reason", func() bool { return strings.Contains(n.pathTo(peer).Reason, "no UDP here") })
}

// fakeNet is what a prober in a bubble sends into.
type fakeNet struct {
	replies chan stunReply
	sent    []netip.AddrPort
	answer  func(try int, to netip.AddrPort, id stun.TxID) []stunReply
	delay   time.Duration
}

func (f *fakeNet) send(to netip.AddrPort, b []byte) error {
	if to.Port() == 9 {
		return errors.New("no route to host")
	}
	try := 0
	for _, a := range f.sent {
		if a == to {
			try++
		}
	}
	f.sent = append(f.sent, to)
	id, err := stun.ParseBindingRequest(b)
	if err != nil {
		return err
	}
	all := f.answer(try, to, id)
	time.AfterFunc(f.delay, func() {
		for _, r := range all {
			r.at = time.Now()
			f.replies <- r
		}
	})
	return nil
}

func TestProber(t *testing.T) {
	us := addrPort("203.0.113.7:700")
	literal := func(id int, addrs ...string) mesh.RelayRegion {
		r := mesh.RelayRegion{ID: id}
		for _, a := range addrs {
			ap := netip.MustParseAddrPort(a)
			r.Nodes = append(r.Nodes, mesh.RelayNode{IPv4: ap.Addr().String(), IPv6: "none", STUNPort: int(ap.Port())})
		}
		return r
	}
	near, far, broken := literal(1, "192.0.2.1:3478"), literal(2, "192.0.2.2:3478"), literal(3, "192.0.2.3:9")
	always := func(_ int, _ netip.AddrPort, id stun.TxID) []stunReply { return []stunReply{{id: id, mapped: us}} }
	tests := []struct {
		name    string
		regions []mesh.RelayRegion
		delay   time.Duration
		answer  func(int, netip.AddrPort, stun.TxID) []stunReply
		want    measurement
		took    time.Duration
		sent    int
	}{
		{"all answer", []mesh.RelayRegion{near, far}, 30 * time.Millisecond, always,
			measurement{asked: true, udp: true, v4: us, servers: 2, latency: map[int]time.Duration{1: 30 * time.Millisecond, 2: 30 * time.Millisecond}},
			30 * time.Millisecond, 2},
		{"an answer twice counts once", []mesh.RelayRegion{near}, 30 * time.Millisecond,
			func(_ int, _ netip.AddrPort, id stun.TxID) []stunReply {
				return []stunReply{{id: stun.TxID{1}, mapped: us}, {id: id, mapped: us}, {id: id, mapped: addrPort("203.0.113.66:6")}}
			},
			measurement{asked: true, udp: true, v4: us, servers: 1, latency: map[int]time.Duration{1: 30 * time.Millisecond}},
			30 * time.Millisecond, 1},
		{"one is silent: not waited for long", []mesh.RelayRegion{near, far}, 30 * time.Millisecond,
			func(try int, to netip.AddrPort, id stun.TxID) []stunReply {
				if to.Addr() == netip.MustParseAddr("192.0.2.2") {
					return nil
				}
				return always(try, to, id)
			},
			measurement{asked: true, udp: true, v4: us, servers: 1, latency: map[int]time.Duration{1: 30 * time.Millisecond}},
			stunEnough, 2},
		{"the first request is lost", []mesh.RelayRegion{near}, 30 * time.Millisecond,
			func(try int, to netip.AddrPort, id stun.TxID) []stunReply {
				if try == 0 {
					return nil
				}
				return always(try, to, id)
			},
			measurement{asked: true, udp: true, v4: us, servers: 1, latency: map[int]time.Duration{1: 30 * time.Millisecond}},
			stunEnough + 30*time.Millisecond, 2},
		{"all are silent", []mesh.RelayRegion{near, far}, 0,
			func(int, netip.AddrPort, stun.TxID) []stunReply { return nil },
			measurement{asked: true, latency: map[int]time.Duration{}}, stunEnough + 2*(stunTimeout/3), 6},
		{"unreachable: not waited for", []mesh.RelayRegion{broken}, 0, always,
			measurement{asked: true, latency: map[int]time.Duration{}}, 0, 0},
		{"nobody to ask", nil, 0, always, measurement{latency: map[int]time.Duration{}}, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeNet{replies: make(chan stunReply, 10), answer: tt.answer, delay: tt.delay}
				p := prober{send: f.send, replies: f.replies, now: time.Now, v4: true}
				began := time.Now()
				got := p.run(t.Context(), tt.regions)
				if took := time.Since(began); took != tt.took {
					t.Errorf("took %s, want %s", took, tt.took)
				}
				if len(f.sent) != tt.sent {
					t.Errorf("sent %d requests, want %d", len(f.sent), tt.sent)
				}
				if diff := cmp.Diff(fmt.Sprintf("%+v", tt.want), fmt.Sprintf("%+v", got)); diff != "" {
					t.Error(diff)
				}
				time.Sleep(time.Minute) // late answers find nobody
			})
		})
	}
}

func TestProberEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		f := &fakeNet{answer: func(int, netip.AddrPort, stun.TxID) []stunReply { return nil }}
		p := prober{send: f.send, now: time.Now, v4: true}
		began := time.Now()
		p.run(ctx, []mesh.RelayRegion{{ID: 1, Nodes: []mesh.RelayNode{{IPv4: "192.0.2.1"}}}})
		if took := time.Since(began); took != 100*time.Millisecond {
			t.Fatalf("took %s", took)
		}
	})
}

func TestTargets(t *testing.T) {
	lookup := func(_ context.Context, host string) ([]netip.Addr, error) {
		if host != "both.test" {
			return nil, errors.New("no such host")
		}
		return []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}, nil
	}
	node := func(host, v4, v6 string, port int) mesh.RelayNode {
		return mesh.RelayNode{Host: host, IPv4: v4, IPv6: v6, STUNPort: port}
	}
	tests := []struct {
		name   string
		nodes  [][]mesh.RelayNode // by region
		v4, v6 bool
		want   string
	}{
		{"literals", [][]mesh.RelayNode{{node("x.test", "192.0.2.9", "2001:db8::9", 0)}}, true, true, "192.0.2.9:3478 [2001:db8::9]:3478"},
		{"names: one of each family", [][]mesh.RelayNode{{node("both.test", "", "", 99)}}, true, true, "192.0.2.1:99 [2001:db8::1]:99"},
		{"IPv4 only here", [][]mesh.RelayNode{{node("both.test", "", "", 0)}}, true, false, "192.0.2.1:3478"},
		{"IPv6 only here", [][]mesh.RelayNode{{node("both.test", "", "", 0)}}, false, true, "[2001:db8::1]:3478"},
		{"a family switched off", [][]mesh.RelayNode{{node("both.test", "none", "", 0)}}, true, true, "[2001:db8::1]:3478"},
		{"the host is a literal", [][]mesh.RelayNode{{node("192.0.2.7", "", "", 0)}}, true, true, "192.0.2.7:3478"},
		{"no such name", [][]mesh.RelayNode{{node("gone.test", "", "", 0)}}, true, true, ""},
		{"no STUN", [][]mesh.RelayNode{{node("x.test", "192.0.2.9", "none", -1), node("x.test", "192.0.2.8", "none", 0)}}, true, true, "192.0.2.8:3478"},
		{"two of the only region", [][]mesh.RelayNode{{node("", "192.0.2.1", "none", 0), node("", "192.0.2.2", "none", 0), node("", "192.0.2.3", "none", 0)}},
			true, true, "192.0.2.1:3478 192.0.2.2:3478"},
		{"one of each of several", [][]mesh.RelayNode{
			{node("", "192.0.2.1", "none", 0), node("", "192.0.2.2", "none", 0)}, {node("", "192.0.2.3", "none", 0)}},
			true, true, "192.0.2.1:3478 192.0.2.3:3478"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var regions []mesh.RelayRegion
			for i, nodes := range tt.nodes {
				regions = append(regions, mesh.RelayRegion{ID: i + 1, Nodes: nodes})
			}
			p := prober{lookup: lookup, v4: tt.v4, v6: tt.v6}
			var got []string
			for _, target := range p.targets(t.Context(), regions) {
				got = append(got, target.addr.String())
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Fatalf("got %s, want %s", s, tt.want)
			}
		})
	}
}

func TestChooseHome(t *testing.T) {
	relayed := func(ids ...int) []mesh.RelayRegion {
		var all []mesh.RelayRegion
		for _, id := range ids {
			all = append(all, mesh.RelayRegion{ID: id, Nodes: []mesh.RelayNode{{}}})
		}
		return all
	}
	three := relayed(1, 2, 3)
	ms := func(l map[int]int) map[int]time.Duration {
		all := map[int]time.Duration{}
		for id, n := range l {
			all[id] = time.Duration(n) * time.Millisecond
		}
		return all
	}
	onlySTUN := append(relayed(1), mesh.RelayRegion{ID: 2, Nodes: []mesh.RelayNode{{STUNOnly: true}}})
	notMeasured := append(relayed(1), mesh.RelayRegion{ID: 2, NoMeasure: true, Nodes: []mesh.RelayNode{{}}})
	tests := []struct {
		name    string
		old     int
		regions []mesh.RelayRegion
		latency map[int]int
		want    int
	}{
		{"nothing measured yet", 0, three, nil, 0},
		{"the nearest", 0, three, map[int]int{1: 30, 2: 20, 3: 40}, 2},
		{"the lower number of equals", 0, three, map[int]int{3: 20, 2: 20}, 2},
		{"a little better is not enough", 1, three, map[int]int{1: 30, 2: 21}, 1},
		{"10 ms, but not a third", 1, three, map[int]int{1: 100, 2: 80}, 1},
		{"a third, but not 10 ms", 1, three, map[int]int{1: 12, 2: 4}, 1},
		{"much better", 1, three, map[int]int{1: 30, 2: 20}, 2},
		{"the old one is silent", 1, three, map[int]int{3: 90}, 3},
		{"all are silent", 1, three, nil, 1},
		{"the old one is gone", 9, three, map[int]int{1: 30}, 1},
		{"the old one is gone, and nothing answers", 9, three, nil, 0},
		{"a region without relays", 0, onlySTUN, map[int]int{1: 90, 2: 1}, 1},
		{"a region not to be chosen", 0, notMeasured, map[int]int{1: 90, 2: 1}, 1},
		{"no regions", 1, nil, map[int]int{1: 1}, 0},
	}
	for _, tt := range tests {
		if got := chooseHome(tt.old, tt.regions, ms(tt.latency)); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestNearest(t *testing.T) {
	var regions []mesh.RelayRegion
	for id := range 6 {
		regions = append(regions, mesh.RelayRegion{ID: id + 1})
	}
	tests := []struct {
		name    string
		home    int
		latency map[int]time.Duration
		want    []int
	}{
		{"home and the two nearest", 5, map[int]time.Duration{1: 40, 2: 10, 3: 20, 5: 99}, []int{5, 2, 3}},
		{"home is the nearest", 2, map[int]time.Duration{1: 40, 2: 10, 3: 20}, []int{2, 3, 1}},
		{"home was not measured", 6, map[int]time.Duration{1: 40}, []int{6, 1}},
		{"nothing known", 0, nil, nil},
	}
	for _, tt := range tests {
		var got []int
		for _, r := range nearest(tt.home, regions, tt.latency) {
			got = append(got, r.ID)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestTCPLatency(t *testing.T) {
	noLeak(t)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	here := mesh.RelayNode{Host: "127.0.0.1", Port: tcp.Addr().(*net.TCPAddr).Port}
	off := mesh.RelayNode{Host: "relay.test", IPv4: "none", IPv6: "none"}
	got := tcpLatency(t.Context(), &dialer{now: time.Now}, []mesh.RelayRegion{
		{ID: 1, Nodes: []mesh.RelayNode{{STUNOnly: true}, here}}, {ID: 2, Nodes: []mesh.RelayNode{off}}, {ID: 3}})
	if got[1] <= 0 || len(got) != 1 {
		t.Fatalf("got %v", slices.Collect(maps.Keys(got)))
	}
}
