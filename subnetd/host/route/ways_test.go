package route

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/host"

	"github.com/google/go-cmp/cmp"
)

// house is a router with a LAN, an uplink, a second one of others', the mesh and two
// exit tunnels.
func house(t *testing.T) {
	t.Helper()
	world(t, "m0", "mesh-x", "mesh-y")
	for i, name := range []string{"lan0", "wan0", "wan1"} {
		run(t, fmt.Sprintf("ip link add %s type veth peer name far%d", name, i))
		t.Cleanup(func() { run(t, "ip link del "+name) })
		run(t, "ip link set "+name+" addrgenmode none up")
		run(t, fmt.Sprintf("ip link set far%d addrgenmode none up", i))
		run(t, fmt.Sprintf("ip addr add 192.168.%d.1/24 dev %s", 77+i, name))
		run(t, fmt.Sprintf("ip addr add 2001:db8:%d::1/64 dev %s nodad", 77+i, name))
	}
	for _, r := range []string{"192.168.78.2 table main", "2001:db8:78::2 table main", "192.168.79.2 table 256", "2001:db8:79::2 table 256"} {
		via, _, _ := strings.Cut(r, " ")
		dev := map[bool]string{true: "wan0", false: "wan1"}[strings.HasSuffix(r, "main")]
		run(t, "ip route add default via "+r+" dev "+dev)
		run(t, "ip neigh add "+via+" lladdr 02:00:00:00:00:09 dev "+dev)
	}
	settled(t, "2001:db8:77::1", "2001:db8:78::1", "2001:db8:79::1")
	for path, value := range map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"} {
		old, err := os.ReadFile("/proc/sys/net/" + path)
		if err != nil {
			t.Fatal(err)
		}
		write := func(v string) {
			if err := os.WriteFile("/proc/sys/net/"+path, []byte(v), 0); err != nil {
				t.Fatal(err)
			}
		}
		write(value)
		t.Cleanup(func() { write(strings.TrimSpace(string(old))) })
	}
}

// settled waits until the kernel has taken addresses of IPv6 for its own.
func settled(t *testing.T, addrs ...string) {
	t.Helper()
	for _, a := range addrs {
		for deadline := time.Now().Add(30 * time.Second); !strings.Contains(run(t, "ip -6 route show table local"), "local "+a+" "); {
			if time.Now().After(deadline) {
				t.Fatalf("%s never settled", a)
			}
		}
	}
}

// away has ways of each kind: through a tunnel, blocked, and as if there were none.
func away() host.Route {
	from := func(a string, way int) host.RouteSource {
		return host.RouteSource{From: netip.MustParseAddr(a), Way: way}
	}
	return host.Route{
		Interface: "m0", Forward: true,
		Addresses: prefixes("100.64.0.7/32", "fd7a:115c:a1e0::7/128"),
		Routes:    prefixes("100.64.0.9/32", "fd7a:115c:a1e0::9/128"),
		Exits: []host.ExitRoute{
			{Interface: "mesh-x", Routes: prefixes("100.64.0.10/32", "fd7a:115c:a1e0::a/128")},
			{Interface: "mesh-y", Routes: prefixes("100.64.0.11/32", "fd7a:115c:a1e0::b/128")},
		},
		Ways: []host.Way{{Interface: "mesh-x", Block: true}, {Block: true}, {}, {Interface: "mesh-y", Block: true, No6: true}, {Interface: "mesh-y", No4: true}},
		Sources: []host.RouteSource{
			from("192.168.77.50", 0), from("2001:db8:77::50", 0), from("192.168.77.51", -1), from("2001:db8:77::51", -1),
			{Interface: "lan0", Way: 1}, {Interface: "lo", Way: 0},
		},
	}
}

// leads is where the kernel sends a packet, by its own word: an interface, or why not.
func leads(t *testing.T, family, args string) string {
	t.Helper()
	out, err := exec.Command("ip", strings.Fields("-j "+family+" route get "+args)...).CombinedOutput()
	if err != nil {
		_, why, _ := strings.Cut(string(out), "answers: ")
		return strings.ToLower(strings.TrimSpace(why))
	}
	var got []struct{ Type, Dev string }
	if err := json.Unmarshal(out, &got); err != nil || len(got) != 1 {
		t.Fatalf("ip %s route get %s: %v\n%s", family, args, err, out)
	}
	if got[0].Type == "unreachable" {
		return "no route to host"
	}
	return got[0].Dev
}

// check asks the kernel about packets "who -> where" in both families; where "/" is in
// an answer, it is of IPv4 / of IPv6.
func check(t *testing.T, name string, wants map[string]string) {
	t.Helper()
	words := map[string][2]string{
		"web": {"203.0.113.5", "2001:db8:aaaa::5"}, "nas": {"192.168.77.9", "2001:db8:77::9"},
		"peer": {"100.64.0.9", "fd7a:115c:a1e0::9"}, "exit": {"100.64.0.10", "fd7a:115c:a1e0::a"},
		"A": {"from 192.168.77.50 iif lan0", "from 2001:db8:77::50 iif lan0"}, "B": {"from 192.168.77.51 iif lan0", "from 2001:db8:77::51 iif lan0"},
		"other": {"from 192.168.77.52 iif lan0", "from 2001:db8:77::52 iif lan0"}, "router": {"", ""},
		"bound": {"from 192.168.78.1", "from 2001:db8:78::1"}, "member": {"from 100.64.0.7", "from fd7a:115c:a1e0::7"},
	}
	for question, want := range wants {
		var fields [2][]string
		for _, w := range strings.Fields(question) {
			both, known := words[w]
			if !known {
				both = [2]string{w, w}
			}
			fields[0], fields[1] = append(fields[0], both[0]), append(fields[1], both[1])
		}
		want4, want6, two := strings.Cut(want, "/")
		if !two {
			want6 = want4
		}
		for i, f := range [...]struct{ flag, want string }{{"-4", want4}, {"-6", want6}} {
			if got := leads(t, f.flag, strings.Join(fields[i], " ")); got != f.want {
				t.Errorf("%s: %s %s: by %q, want %q", name, f.flag, question, got, f.want)
			}
		}
	}
}

const refused = "no route to host"

// shut is a way without an exit that the router itself takes, too.
const shut = refused + "/m0"

// heldBack: no socket of the router that has not chosen an address gets the WAN's, by which it would be let out.
func heldBack(t *testing.T, name string) {
	t.Helper()
	for _, web := range []string{"203.0.113.5:7", "[2001:db8:aaaa::5]:7"} {
		c, err := net.Dial("udp", web)
		if err != nil {
			continue
		}
		defer c.Close()
		if from := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr(); from != netip.MustParseAddr("fd7a:115c:a1e0::7") {
			t.Errorf("%s: the router asks %s from %s", name, web, from)
		}
	}
}

// rest is what holds whatever marks there are.
func rest() map[string]string {
	return map[string]string{
		// Marks decide, but the mesh and the home win over any exit.
		"web A mark 0x08000000": "mesh-x", "web A mark 0x09000000": refused, "web A mark 0x0a000000": "wan0",
		"web A mark 0x0b000000": "mesh-y/" + refused, "web A mark 0x0c000000": refused + "/mesh-y", "web A mark 0x06000000": "wan0",
		"nas A mark 0x09000000": "lan0", "peer A mark 0x09000000": "m0", "exit A mark 0x09000000": "mesh-x",
		// Without them, addresses do, before interfaces.
		"web A": "mesh-x", "web B": "wan0", "web other": refused, "nas other": "lan0", "peer other": "m0",
		// The router itself, unless it has chosen; its own sockets never.
		"web router": "mesh-x", "web member": "mesh-x", "web bound": "wan0", "peer router": "m0", "exit router": "mesh-x",
		"web router mark 0x05000000": "wan0", "peer router mark 0x05000000": "wan0",
	}
}

func TestWays(t *testing.T) {
	house(t)
	clean := everything(t)
	quiet := slog.New(slog.DiscardHandler)
	r := New(quiet)
	set(t, r, away())
	check(t, "first", rest())
	if n := set(t, r, away()); n != 0 {
		t.Errorf("the second Set sent %d changes", n)
	}
	if n := set(t, New(quiet), away()); n != 0 {
		t.Errorf("Set of a new Router sent %d changes", n)
	}
	for _, name := range []string{"mesh-x", "mesh-y"} {
		v, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + name + "/rp_filter")
		if err != nil || strings.TrimSpace(string(v)) != "2" {
			t.Errorf("rp_filter of %s: %s %v", name, v, err)
		}
		if d := cmp.Diff([]string{"100.64.0.7", "fd7a:115c:a1e0::7"}, seenAddresses(t, name)); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	// One exit goes and another takes over, and none is left.
	moved := away()
	moved.Ways[0].Interface, moved.Ways[3].Interface = "mesh-y", ""
	set(t, r, moved)
	check(t, "moved", map[string]string{"web A mark 0x08000000": "mesh-y", "web A": "mesh-y", "web router": "mesh-y", "web A mark 0x0b000000": refused})
	moved.Ways[0] = host.Way{}
	set(t, r, moved)
	check(t, "open", map[string]string{"web A mark 0x08000000": "wan0", "web A": "wan0"})
	moved.Ways[0] = host.Way{Block: true}
	set(t, r, moved)
	check(t, "shut", map[string]string{"web A mark 0x08000000": shut, "web A": shut, "web B": "wan0", "web bound": "wan0"})
	heldBack(t, "shut")
	if n := set(t, r, moved); n != 0 {
		t.Errorf("the second Set after changes sent %d changes", n)
	}
	none := away()
	none.Ways, none.Sources, none.Exits = nil, nil, nil
	set(t, r, none)
	check(t, "none", map[string]string{"web A": "wan0", "web router": "wan0", "peer A": "m0"})
	checkRules(t, true)
	set(t, r, away())
	set(t, New(quiet), host.Route{})
	for _, name := range []string{"m0", "mesh-x", "mesh-y"} {
		run(t, "ip link set "+name+" down")
	}
	if d := cmp.Diff(clean, everything(t)); d != "" {
		t.Errorf("traces: %s", d)
	}
}

// An exit tunnel that goes takes its routes along; what is blocked stays so, and the
// rest is done without it.
func TestExitVanishes(t *testing.T) {
	house(t)
	r := New(slog.New(slog.DiscardHandler))
	t.Cleanup(func() { _ = r.Set(context.Background(), host.Route{}) })
	set(t, r, away())
	run(t, "ip link del mesh-x")
	heldBack(t, "gone")
	check(t, "gone", map[string]string{"web A mark 0x08000000": shut, "web A": shut, "web router": shut, "web B": "wan0", "web A mark 0x0b000000": "mesh-y/" + refused})
	if err := r.Set(t.Context(), away()); err == nil || !strings.Contains(err.Error(), "mesh-x") {
		t.Errorf("a Set without the exit tunnel: %v", err)
	}
	check(t, "set without it", map[string]string{"web A": shut, "web other": refused, "web A mark 0x0b000000": "mesh-y/" + refused})
	run(t, "ip tuntap add dev mesh-x mode tun")
	set(t, r, away())
	check(t, "back", rest())
	many := away()
	many.Ways = make([]host.Way, host.MaxWays+1)
	if err := r.Set(t.Context(), many); err == nil {
		t.Error("more ways than tables")
	}
	check(t, "after what cannot be", rest())
}

// Others' rules and marks beside ours: each has its say where it should.
func TestWaysBesideOthers(t *testing.T) {
	house(t)
	theirs := []string{
		"fwmark 0x10000/0xff0000 table 256 priority 30000",         // pbr
		"fwmark 0x100/0x3f00 table 256 priority 2001",              // mwan3
		"not fwmark 0x5000000/0xf000000 table main priority 31000", // nearly ours
		"not from 192.168.77.98 table 8411 priority 31001",
		"table main suppress_prefixlength 0 priority 5182",    // wg-quick, by chance
		"fwmark 0x6000000/0xf000000 goto 30000 priority 5191", // what only looks like ours from afar
		"from 192.168.77.99 goto 30000 priority 5192",
	}
	for _, f := range []string{"-4", "-6"} {
		for _, rule := range theirs {
			if f == "-6" && strings.Contains(rule, "192.") {
				continue
			}
			run(t, "ip "+f+" rule add "+rule)
			t.Cleanup(func() { run(t, "ip "+f+" rule del "+rule) })
		}
	}
	clean := everything(t)
	early := away()
	early.Priority = host.RuleEarly
	r := New(slog.New(slog.DiscardHandler))
	set(t, r, early)
	check(t, "early", rest())
	check(t, "early", map[string]string{
		"web A mark 0x08010100": "mesh-x", "web A mark 0x06010000": "wan1", "web A mark 0x06000100": "wan1",
		"web B mark 0x10000": "wan1", "web other mark 0x10000": refused,
	})
	if n := set(t, New(slog.New(slog.DiscardHandler)), early); n != 0 {
		t.Errorf("the second Set sent %d changes", n)
	}
	set(t, r, host.Route{})
	for _, name := range []string{"m0", "mesh-x", "mesh-y"} {
		run(t, "ip link set "+name+" down")
	}
	if d := cmp.Diff(clean, everything(t)); d != "" {
		t.Errorf("foreign state changed: %s", d)
	}
}

// The rules move as a whole, from wherever a predecessor had them, and each moment has
// a whole set.
func TestBaseMoves(t *testing.T) {
	house(t)
	run(t, "ip rule add fwmark 0x100/0x3f00 table 256 priority 2001")
	t.Cleanup(func() { run(t, "ip rule del fwmark 0x100/0x3f00 table 256 priority 2001") })
	quiet := slog.New(slog.DiscardHandler)
	t.Cleanup(func() { _ = New(quiet).Set(context.Background(), host.Route{}) })
	set(t, New(quiet), away())
	check(t, "behind mwan3", map[string]string{"web A mark 0x08000100": "wan1/mesh-x", "web A mark 0x08000000": "mesh-x"})
	late := rules(t, "5180", "5194")
	moved := away()
	for _, base := range []uint32{host.RuleEarly, 900, host.RuleMark} {
		moved.Priority = base
		r := New(quiet)
		set(t, r, moved)
		check(t, fmt.Sprint("at ", base), rest())
		if n := set(t, r, moved); n != 0 {
			t.Errorf("at %d: the second Set sent %d changes", base, n)
		}
		if base != host.RuleMark {
			check(t, "before mwan3", map[string]string{"web A mark 0x08000100": "mesh-x"})
			if left := rules(t, "5180", "5194"); left != "" {
				t.Errorf("at %d: left behind %s", base, left)
			}
		}
	}
	if d := cmp.Diff(late, rules(t, "5180", "5194")); d != "" {
		t.Errorf("there and back: %s", d)
	}
}

// rules are those of a range of priorities.
func rules(t *testing.T, first, last string) string {
	var out strings.Builder
	for _, f := range []string{"-4", "-6"} {
		for line := range strings.Lines(run(t, "ip "+f+" rule")) {
			p, rule, _ := strings.Cut(line, ":")
			if len(p) == len(first) && p >= first && p <= last {
				fmt.Fprintln(&out, f, p, strings.TrimSpace(rule))
			}
		}
	}
	return out.String()
}

// Whatever a walk over ways and disturbances does, after each Set the kernel sends
// where the last value says, and has nothing else to do.
func TestWalkOfWays(t *testing.T) {
	house(t)
	rnd := rand.New(rand.NewPCG(1, 0)) // the same in every run: what is red is so because of a change
	disturb := []string{
		"ip rule flush", "ip -6 route flush table 8411", "ip route flush table 8412", "ip rule del priority 5183", "ip link set mesh-x down",
		"ip addr flush dev mesh-y", "ip rule add priority 5184 table 8415", "ip route add 9.9.9.9/32 dev mesh-y table 8413", "ip -6 rule del priority 5194",
	}
	r := New(slog.New(slog.DiscardHandler))
	for range 15 {
		want := away()
		want.Ways = want.Ways[:1+rnd.IntN(len(want.Ways))]
		for i := range want.Ways {
			want.Ways[i] = host.Way{Interface: []string{"", "mesh-x", "mesh-y"}[rnd.IntN(3)], Block: rnd.IntN(2) == 0, No4: rnd.IntN(4) == 0, No6: rnd.IntN(4) == 0}
		}
		want.Sources = []host.RouteSource{{Interface: "lan0", Way: rnd.IntN(len(want.Ways)+1) - 1}}
		want.Priority = []uint32{0, host.RuleEarly}[rnd.IntN(2)]
		set(t, r, want)
		if rnd.IntN(2) == 0 {
			args := strings.Fields(disturb[rnd.IntN(len(disturb))])
			_ = exec.Command(args[0], args[1:]...).Run()
			ensureMain()
			set(t, r, want)
		}
		wants := map[string]string{"nas A mark 0x08000000": "lan0", "exit A": "mesh-x"}
		for i := range want.Ways {
			wants[fmt.Sprintf("web A mark %#x", host.WayMark(i))] = leadsTo(want.Ways[i])
		}
		if w := want.Sources[0].Way; w >= 0 {
			wants["web A"] = leadsTo(want.Ways[w])
		} else {
			wants["web A"] = "wan0"
		}
		check(t, fmt.Sprintf("%+v %+v", want.Ways, want.Sources), wants)
		if n := set(t, r, want); n != 0 {
			t.Fatalf("second Set of %+v sent %d changes", want, n)
		}
		if t.Failed() {
			return
		}
	}
	set(t, r, host.Route{})
	if left := rules(t, "5180", "5194") + rules(t, "1280", "1294"); left != "" {
		t.Errorf("traces: %s", left)
	}
}

// ensureMain puts back the kernel's rule for the main table, which `ip rule flush` takes.
func ensureMain() {
	if out, _ := exec.Command("ip", "rule", "list", "priority", "32766").Output(); len(out) == 0 {
		_ = exec.Command("ip", "rule", "add", "table", "main", "priority", "32766").Run()
	}
}

// leadsTo is what a way comes to, as check writes it.
func leadsTo(w host.Way) string {
	var out []string
	for _, missing := range []bool{w.No4, w.No6} {
		switch {
		case w.Interface != "" && !missing:
			out = append(out, w.Interface)
		case w.Interface != "" || w.Block:
			out = append(out, refused)
		default:
			out = append(out, "wan0")
		}
	}
	return strings.Join(out, "/")
}
