package firewall

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/host"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// openDoors are the openings of the neighbourhood's router.
var openDoors = host.Openings{UDP: []uint16{41001, 3478}, TCP: []uint16{8410},
	At: []host.WANAddr{{Interface: "wan0", Addr: netip.MustParseAddr("198.51.100.1")}, {Interface: "wan0", Addr: netip.MustParseAddr("2001:db8::1")}}}

// openDoorsHere is the same with the interface's index as it is.
func openDoorsHere(t *testing.T) host.Openings {
	t.Helper()
	link, err := net.InterfaceByName("wan0")
	if err != nil {
		t.Fatal(err)
	}
	o := openDoors
	o.At = slices.Clone(o.At)
	for i := range o.At {
		o.At[i].Index = link.Index
	}
	return o
}

// strangersWorld is the neighbourhood with the strangers in its world.
func strangersWorld(t *testing.T) {
	t.Helper()
	neighbourhood(t)
	for _, a := range strangers {
		via, bits := "198.51.100.2", "/32"
		if a.Is6() {
			via, bits = "2001:db8::2", "/128"
		}
		run(t, "ip -n world address add "+a.String()+bits+" dev e0")
		run(t, "ip route add "+a.String()+" via "+via)
	}
	// What is loaded here may shut neighbour discovery out, too.
	run(t, "ip link set wan0 address 02:00:00:00:00:03")
	run(t, "ip -n world neigh replace 2001:db8::1 lladdr 02:00:00:00:00:03 dev e0")
}

// shutInEarnest sends what openings are for from the strangers, and says what is not let in. url is the port that TCP is
// sent to.
func shutInEarnest(t *testing.T, url uint16) (out []string) {
	t.Helper()
	load(t, `table inet subnetd_watch
		delete table inet subnetd_watch
		table inet subnetd_watch {
		chain first { type filter hook prerouting priority -400; udp dport 9 counter comment "last"; }
		chain input { type filter hook input priority 1000;
			ip saddr 198.41.0.4 udp dport 41001 counter comment "udp 41001"
			ip saddr 198.41.0.4 udp dport 3478 counter comment "udp 3478"
			ip saddr 198.41.0.4 tcp dport 8410 counter comment "tcp 8410"
			ip6 saddr 2001:503:ba3e::2:30 udp dport 41001 counter comment "udp 41001 v6"
			ip6 saddr 2001:503:ba3e::2:30 udp dport 3478 counter comment "udp 3478 v6"
			ip6 saddr 2001:503:ba3e::2:30 tcp dport 8410 counter comment "tcp 8410 v6"
		}
	}`)
	in(t, "world", func() (struct{}, error) {
		for i, at := range openDoors.At {
			c, err := net.ListenUDP("udp", &net.UDPAddr{IP: strangers[i].AsSlice()})
			if err != nil {
				return struct{}{}, err
			}
			defer c.Close()
			if err := callTCP(strangers[i], netip.AddrPortFrom(at.Addr, url)); err != nil {
				return struct{}{}, err
			}
			for _, port := range [...]uint16{41001, 3478, 9} {
				_, _ = c.WriteToUDPAddrPort([]byte("let me in"), netip.AddrPortFrom(at.Addr, port)) // it may be told of the one before
				if _, err := c.WriteToUDPAddrPort([]byte("let me in"), netip.AddrPortFrom(at.Addr, port)); err != nil {
					return struct{}{}, err
				}
			}
		}
		return struct{}{}, nil
	})
	seen := ""
	for end := time.Now().Add(patience); ; {
		seen = run(t, "nft list table inet subnetd_watch")
		if _, rest, _ := strings.Cut(seen, "udp dport 9 counter packets "); !strings.HasPrefix(rest, "0 ") && !strings.HasPrefix(rest, "1 ") &&
			!strings.HasPrefix(rest, "2 ") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("what was sent did not come:\n%s", seen)
		}
	}
	for line := range strings.Lines(seen) {
		if _, what, ok := strings.Cut(line, "comment \""); ok && strings.Contains(line, " packets 0 ") {
			out = append(out, strings.TrimRight(what, "\"\n"))
		}
	}
	slices.Sort(out)
	return out
}

// callTCP begins a TCP connection and waits for nothing.
func callTCP(from netip.Addr, to netip.AddrPort) error {
	family := unix.AF_INET
	var own, peer unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte(from.AsSlice()[:4])}, &unix.SockaddrInet4{}
	if from.Is6() {
		family, own, peer = unix.AF_INET6, &unix.SockaddrInet6{Addr: from.As16()}, &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
	} else {
		peer = &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, own); err != nil {
		return err
	}
	if err := unix.Connect(fd, peer); err != nil && err != unix.EINPROGRESS && err != unix.ECONNREFUSED {
		return err
	}
	return nil
}

// shutByOurWord is what Closed says.
func shutByOurWord(t *testing.T, o host.Openings) (out []string, all []host.Shut) {
	t.Helper()
	all, err := New(silent).Closed(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		what := map[bool]string{true: "udp", false: "tcp"}[s.UDP] + fmt.Sprintf(" %d", s.Port)
		if s.V6 {
			what += " v6"
		}
		if !slices.Contains(out, what) {
			out = append(out, what)
		}
	}
	slices.Sort(out)
	return out, all
}

// fw4 is the ruleset that OpenWrt 24.10 makes of its defaults, as far as input goes. open is in the zone of the WAN.
func fw4(open string) string {
	return `table inet fw4 {
	chain input {
		type filter hook input priority filter; policy drop;
		iif "lo" accept comment "!fw4: Accept traffic from loopback"
		ct state vmap { established : accept, related : accept } comment "!fw4: Handle inbound flows"
		tcp flags & (fin | syn | rst | ack) == syn jump syn_flood comment "!fw4: Rate limit TCP syn packets"
		iifname "lan0" jump input_lan comment "!fw4: Handle lan IPv4/IPv6 input traffic"
		iifname "wan0" jump input_wan comment "!fw4: Handle wan IPv4/IPv6 input traffic"
		jump handle_reject
	}
	chain handle_reject {
		meta l4proto tcp reject with tcp reset comment "!fw4: Reject TCP traffic"
		reject with icmpx type port-unreachable comment "!fw4: Reject any other traffic"
	}
	chain syn_flood {
		limit rate 25/second burst 50 packets return comment "!fw4: Accept SYN packets below rate-limit"
		drop comment "!fw4: Drop excess packets"
	}
	chain input_lan { jump accept_from_lan; }
	chain accept_from_lan { iifname "lan0" counter accept; }
	chain input_wan {
		meta nfproto ipv4 udp dport 68 counter accept comment "!fw4: Allow-DHCP-Renew"
		icmp type echo-request counter accept comment "!fw4: Allow-Ping"
		meta nfproto ipv4 meta l4proto igmp counter accept comment "!fw4: Allow-IGMP"
		meta nfproto ipv6 udp dport 546 counter accept comment "!fw4: Allow-DHCPv6"
		ip6 saddr fe80::/10 icmpv6 type . icmpv6 code { mld-listener-query . no-route, mld-listener-report . no-route } counter accept
		icmpv6 type { echo-request, nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } limit rate 1000/second counter accept
		` + open + `
		jump reject_from_wan
	}
	chain reject_from_wan { iifname "wan0" counter jump handle_reject comment "!fw4: reject wan IPv4/IPv6 traffic"; }
}
`
}

const redirected = `table inet subnetd_home { chain pre { type nat hook prerouting priority dstnat; tcp dport 80 redirect to :8410; }; }
`

// What we say of the firewalls that people have is what they do to packets.
func TestClosed(t *testing.T) {
	every := []string{"tcp 8410", "tcp 8410 v6", "udp 3478", "udp 3478 v6", "udp 41001", "udp 41001 v6"}
	strangersWorld(t)
	for _, tt := range []struct {
		name, rules string
		url         uint16
		shut        []string
		where       string // of the first: table, chain, zone
	}{
		{"none", "", 8410, nil, ""},
		{"OpenWrt", fw4(""), 8410, every, "inet fw4 input wan"},
		{"OpenWrt, opened", fw4("udp dport { 3478, 41001 } counter accept\ntcp dport 8410 counter accept"), 8410, nil, ""},
		{"OpenWrt, redirected", redirected + fw4(`ct status dnat accept comment "!fw4: Accept port redirections"`), 80,
			[]string{"udp 3478", "udp 3478 v6", "udp 41001", "udp 41001 v6"}, "inet fw4 input wan"},
		{"OpenWrt, of another zone", strings.Replace(fw4(""), `iifname "wan0" jump`, `iifname "wan1" jump`, 1), 8410, every, "inet fw4 input "},
		{"a host", fw("udp dport 41001 accept"), 8410, []string{"tcp 8410", "tcp 8410 v6", "udp 3478", "udp 3478 v6"}, "inet fw4 input "},
		{"Debian's example", `table inet filter { chain input { type filter hook input priority 0; policy accept;
			ct state { established, related } accept; iif lo accept; tcp dport 22 accept; drop; }; }`, 8410, every, "inet filter input "},
		{"one family", `table ip filter { chain INPUT { type filter hook input priority 0; policy drop; iifname "wan*" udp dport 3000-4000 accept; }; }`, 8410,
			[]string{"tcp 8410", "udp 41001"}, "ip filter INPUT "},
		{"firewalld", `table inet firewalld {
			chain filter_INPUT { type filter hook input priority 10; policy accept;
				ct state { established, related } accept; iifname "lo" accept; jump filter_INPUT_ZONES
				ct state invalid drop; reject with icmpx admin-prohibited; }
			chain filter_INPUT_ZONES { iifname "lan0" goto filter_IN_home; goto filter_IN_public; }
			chain filter_IN_home { accept; }
			chain filter_IN_public { jump filter_IN_public_allow; meta l4proto { icmp, ipv6-icmp } accept; reject with icmpx admin-prohibited; }
			chain filter_IN_public_allow { tcp dport 22 accept; udp dport 41001 accept; }
		}`, 8410, []string{"tcp 8410", "tcp 8410 v6", "udp 3478", "udp 3478 v6"}, "inet firewalld filter_INPUT "},
		{"two programs", `table inet a { chain in { type filter hook input priority 0; policy drop; udp dport . iifname { 41001 . "wan0", 3478 . "wan0" } accept; }; }
			table ip6 b { chain in { type filter hook input priority 5; udp dport vmap { 3478 : drop, 41001 : accept }; }; }`, 8410,
			[]string{"tcp 8410", "tcp 8410 v6", "udp 3478 v6"}, "inet a in "},
		{"by address", `table inet a { set friends { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 198.41.0.0/24 }; }
			set ports { type inet_proto . inet_service; flags interval; elements = { udp . 40000-42000, tcp . 8410 }; }
			chain in { type filter hook input priority 0; policy drop; ip saddr @friends accept; ip6 nexthdr . th dport @ports counter name c accept; }; counter c { }; }`, 8410,
			[]string{"udp 3478 v6"}, "inet a in "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			run(t, "nft flush ruleset")
			load(t, tt.rules)
			o := openDoorsHere(t)
			o.Translated = tt.url != 8410
			if got := shutInEarnest(t, tt.url); !slices.Equal(got, tt.shut) {
				t.Fatalf("the kernel shuts %q: the test is wrong", got)
			}
			got, all := shutByOurWord(t, o)
			if d := cmp.Diff(tt.shut, got); d != "" {
				t.Error(d)
			}
			if len(all) > 0 && all[0].Table+" "+all[0].Chain+" "+all[0].Zone != tt.where {
				t.Errorf("it is shut by %+v, want %q", all[0], tt.where)
			}
		})
	}
}

// Whatever others write, what we call shut is shut; and what is shut by rules that we understand we say.
func TestClosedAtRandom(t *testing.T) {
	strangersWorld(t)
	r := rand.New(rand.NewPCG(1, 0)) // the same in every run: what is red is so because of a change
	understood, shutOnes := 0, 0
	for n := 0; n < 60; {
		rules, known := randomInput(r)
		run(t, "nft flush ruleset")
		c := exec.Command("nft", "-f", "-")
		if c.Stdin = strings.NewReader(rules); c.Run() != nil {
			continue // of two families, or the like
		}
		n++
		want := shutInEarnest(t, 8410)
		got, _ := shutByOurWord(t, openDoorsHere(t))
		shutOnes += len(got)
		for _, s := range got {
			if !slices.Contains(want, s) {
				t.Fatalf("%s is open, and we say it is shut:\n%s", s, rules)
			}
		}
		if known {
			understood++
			if d := cmp.Diff(want, got); d != "" {
				t.Fatalf("%s\n%s", d, rules)
			}
		}
	}
	if understood < 10 || shutOnes < 20 {
		t.Errorf("%d of 60 rulesets were understood, %d openings shut: the test proves little", understood, shutOnes)
	}
}

// randomInput is a ruleset, and whether we understand all of it.
func randomInput(r *rand.Rand) (rules string, known bool) {
	conditions := []string{"iifname wan0", "iif wan0", "iif != lo", "iifname \"lan*\"", "iifname != wan0", "ip saddr 198.41.0.4", "ip6 saddr 2001:503::/32", "ip saddr { 10.0.0.0/8, 198.0.0.0/8 }",
		"udp dport 41001", "udp dport != 3478", "tcp dport 8000-9000", "udp dport { 3478, 5000-6000 }", "th dport { 8410, 41001 }", "meta l4proto tcp", "meta nfproto ipv6",
		"ct state new", "ct state established,related", "ct state != invalid", "ct direction original", "ct status dnat", "fib daddr type local", "meta pkttype unicast",
		"iifname . udp dport { wan0 . 41001 }", "meta l4proto . th dport vmap { udp . 3478 : return, tcp . 8410 : accept }", "tcp flags & (syn | ack) == syn",
		"limit rate 1000/second burst 100 packets", "limit rate over 1000/second burst 100 packets", "counter", "ip ttl > 3", "udp sport >= 1", "ip daddr 198.51.100.1", "meta protocol ip6"}
	dark := []string{"meta mark 0", "meta mark 1", "meta length < 100", "meta length > 100", "ct mark 0", "meta iifgroup 0", "ct zone 0", "meta priority 0",
		"socket wildcard 0", "ether type ip", "meta cpu < 64", "fib saddr oif exists", "numgen inc mod 2 < 2"}
	known = true
	line := func(jumps []string) string {
		out := ""
		for range r.IntN(3) {
			if r.IntN(12) == 0 {
				known, out = false, out+dark[r.IntN(len(dark))]+" "
			} else {
				out += conditions[r.IntN(len(conditions))] + " "
			}
		}
		if strings.Contains(out, "vmap") { // has the last word
			before, after, _ := strings.Cut(out, "vmap")
			return before + "vmap" + after[:strings.Index(after, "}")+1] + "\n"
		}
		ends := append([]string{"accept", "drop", "return", "reject", ""}, jumps...)
		if end := ends[r.IntN(len(ends))]; end != "" || out != "" {
			return out + end + "\n"
		}
		return "counter\n"
	}
	chain := func(head string, jumps ...string) string {
		out := head
		for range r.IntN(5) {
			out += line(jumps)
		}
		return out + "}\n"
	}
	rules = "table inet x {\n" + chain("chain c {\n") + chain("chain b {\n", "jump c", "goto c")
	rules += chain("chain a {\ntype filter hook input priority 0; policy "+[]string{"accept", "drop"}[r.IntN(2)]+";\n", "jump b", "goto b", "jump c", "jump b", "goto c") + "}\n"
	if r.IntN(3) == 0 {
		rules += "table ip6 y {\n" + chain("chain a {\ntype filter hook input priority -5; policy accept;\n") + "}\n"
	}
	return rules, known
}

// A ruleset made by iptables has extensions that nf_tables only carries.
func TestStrangersAtIptables(t *testing.T) {
	conntrack := func(flags, invert, states uint16) expression {
		inside := make([]byte, 160)
		for i, n := range []uint16{flags, invert, states} {
			binary.NativeEndian.PutUint16(inside[146+2*i:], n)
		}
		return expression{"match", attributes{extensionName: []byte("conntrack\x00"), extensionInside: inside}}
	}
	named := func(kind, name string) expression {
		return expression{kind, attributes{extensionName: []byte(name + "\x00")}}
	}
	verdict := func(code int32) expression {
		nested := func(kind uint16, data []byte) []byte {
			b, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: kind, Data: data}})
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		return expression{"immediate", attributes{unix.NFTA_IMMEDIATE_DREG: be(0),
			unix.NFTA_IMMEDIATE_DATA: nested(unix.NFTA_DATA_VERDICT, nested(unix.NFTA_VERDICT_CODE, be(uint32(code))))}}
	}
	const isNew, running = 1 << 3, 1<<1 | 1<<2
	accept, dropIt := verdict(1), verdict(0)
	for _, tt := range []struct {
		name string
		rule []expression
		shut bool // by the policy, or by the rule
	}{
		{"running flows", []expression{conntrack(1, 0, running), accept}, true},
		{"all but new ones", []expression{conntrack(1, 1, isNew), accept}, true},
		{"new ones", []expression{conntrack(1, 0, isNew), accept}, false},
		{"of a status", []expression{conntrack(1|1<<6, 0, running), accept}, false},
		{"it is logged", []expression{named("match", "limit"), named("target", "LOG")}, true},
		{"with a comment", []expression{named("match", "comment"), dropIt}, true},
		{"with a comment, open", []expression{named("match", "comment"), accept}, false},
		{"whatever", []expression{named("match", "geoip"), accept}, false},
		{"whatever drops", []expression{named("match", "geoip"), dropIt}, true},
		{"whatever is done", []expression{named("target", "TARPIT")}, false},
	} {
		if got := len(shut(openDoors, written{[][]expression{tt.rule}})) > 0; got != tt.shut {
			t.Errorf("%s: shut is %v", tt.name, got)
		}
	}
}

// What is written there by whomever: a walk through it ends, and without a fault.
func FuzzStrangers(f *testing.F) {
	f.Add([]byte("\x14\x00\x01\x00\x09\x00\x01\x00meta\x00\x00\x00\x00\x04\x00\x02\x00"), uint32(1), uint32(4))
	f.Add([]byte{}, uint32(0), uint32(1<<31))
	f.Fuzz(func(t *testing.T, rule []byte, register, n uint32) {
		rules := [][]expression{expressionsOf(rule), {{"payload", attributes{
			unix.NFTA_PAYLOAD_DREG: be(register), unix.NFTA_PAYLOAD_LEN: be(n), unix.NFTA_PAYLOAD_BASE: be(1), unix.NFTA_PAYLOAD_OFFSET: be(n)}}},
			{{"bitwise", attributes{unix.NFTA_BITWISE_SREG: be(register), unix.NFTA_BITWISE_DREG: be(n), unix.NFTA_BITWISE_LEN: be(n)}}}}
		shut(openDoors, written{rules})
	})
}

func be(n uint32) []byte { return []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)} }

// written is one chain, to which every jump leads.
type written struct{ all [][]expression }

func (w written) bases() []base              { return []base{{place{unix.NFPROTO_INET, "x", "y"}, 0, true}} }
func (w written) rules(place) [][]expression { return w.all }
func (w written) element(place, string, []byte) element {
	return element{found: true, value: []byte{1}}
}
func (w written) keySize(place, string) int { return 4 }
