package apply

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/host"
	"subnetd/subnetd/host/firewall"
	"subnetd/subnetd/mesh"

	"golang.org/x/sys/unix"
)

// Each goes its way at the same time, in both families, and another at once when the
// rows change; what is at home stays at home.
func TestWaysOut(t *testing.T) {
	world(t)
	a := hands()
	set(t, a, home())
	wants(t, "first", map[string]string{"tv": "x", "pc": "wan", "cam": "y", "nas": "x", "router": "wan"})
	before := run(t, "nft -a list ruleset", "ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all")
	set(t, a, home())
	set(t, hands(), home())
	if after := run(t, "nft -a list ruleset", "ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all"); after != before {
		t.Error("the second Set changed something")
	}
	for ns, dst := range map[string]string{"tv": "192.168.77.1:7", "cam": "192.168.77.1:7", "nas": "[fd77::1]:7"} {
		want := map[string]string{"tv": "192.168.77.50", "cam": "192.168.78.50", "nas": "fd77::70"}[ns]
		if got := dial(t, ns, "", dst, 0).ask(t); got != want {
			t.Errorf("%s to the router: %q", ns, got)
		}
	}
	moved := home()
	moved.Firewall.Sources = []host.ExitSource{{MACs: []string{macs["tv"], macs["pc"]}, Way: 1, Block: true}, {Interfaces: []string{"lan0.7"}, Way: -1}, {LAN: true, Router: true, Way: 0}}
	moved.Route.Sources = []host.RouteSource{{Interface: "lan0", Way: 0}, {Interface: "lan0.7", Way: -1}, {Interface: "lo", Way: 0}}
	set(t, a, moved)
	wants(t, "moved", map[string]string{"tv": "y", "pc": "y", "cam": "wan", "nas": "x", "router": "x"})
	set(t, a, host.Config{})
	wants(t, "gone", map[string]string{"tv": "wan", "pc": "wan", "cam": "wan", "nas": "wan", "router": "wan"})
}

// lanMeshRouter are addresses that a blocked device may talk to.
var lanMeshRouter = map[string]string{"192.168.77.1:7": "192.168.77.50", "[fd77::1]:7": "fd77::50", "100.64.0.9:7": "mesh", "[fd7a::9]:7": "mesh"}

// Without an exit at hand nothing of a blocked source leaves by the WAN, whatever else
// is missing of us, and whatever others do; home, router and mesh stay in reach.
func TestKillSwitch(t *testing.T) {
	world(t)
	answer(t, "peer", "udp4", "100.64.0.9:7")
	answer(t, "peer", "udp6", "[fd7a::9]:7")
	wan := listen(t, "wan0")
	witness := dial(t, "pc", "", webs[0], 0)
	// tv has flows that began before it was blocked.
	var old []flow
	for _, dst := range webs {
		f := dial(t, "tv", "", dst, 0)
		if got := f.ask(t); got != "wan" {
			t.Fatalf("before: %q", got)
		}
		old = append(old, f)
	}
	a := hands()
	speak := func(text string) {
		for _, f := range old {
			f.send(text)
		}
		for _, ns := range []string{"tv", "nas", "cam"} {
			for _, dst := range webs {
				dial(t, ns, "", dst, 0).send(text)
			}
		}
	}
	set(t, a, shut(home()))
	wants(t, "shut", map[string]string{"tv": "unreachable"})
	for _, tt := range []struct {
		name  string
		spoil func()
		mesh  bool // the mesh is still there to be reached
	}{
		{"shut", func() {}, true},
		{"the edge's table is gone", func() { run(t, "nft delete table inet subnetd") }, false},
		{"others' marks lead elsewhere", func() {
			run(t, "ip rule add priority 2001 fwmark 0x100/0x3f00 lookup main", "ip -6 rule add priority 2001 fwmark 0x100/0x3f00 lookup main")
			load(t, "", `table inet mwan3 { chain pre { type filter hook prerouting priority mangle; iifname "lan*" meta mark set meta mark and 0xffffc0ff or 0x100; }; }`)
		}, false},
		{"the rules are gone", func() {
			for _, f := range []string{"-4", "-6"} {
				for _, base := range []string{"2001", "5181", "5182", "5183", "5184", "5191", "5192", "5193"} {
					for delRule(f, base) {
					}
				}
			}
		}, false},
		{"the exits are gone", func() { run(t, "ip link del mesh-x", "ip link del mesh-y") }, false},
		{"others accept all", func() {
			load(t, "", `table inet fw4 { chain forward { type filter hook forward priority filter; policy accept; accept; }; }`)
		}, false},
	} {
		tt.spoil()
		speak("leak")
		wan.silent(t, tt.name, "leak", witness)
		for dst, want := range lanMeshRouter {
			if want == "mesh" && !tt.mesh {
				continue
			}
			if got := dial(t, "tv", "", dst, 0).ask(t); got != want {
				t.Errorf("%s: tv to %s: %q, want %q", tt.name, dst, got, want)
			}
		}
		wants(t, tt.name, map[string]string{"pc": "wan"})
	}
}

func delRule(f, priority string) bool {
	return exec.Command("ip", f, "rule", "del", "priority", priority).Run() == nil
}

// Somebody flushes nftables, the kill switch included: the rules by addresses and
// interfaces keep what is blocked off the WAN, and it goes by its exit on.
func TestFlushed(t *testing.T) {
	world(t)
	wan := listen(t, "wan0")
	for name, c := range map[string]host.Config{"open": home(), "shut": shut(home())} {
		a := hands()
		set(t, a, c)
		run(t, "nft flush ruleset")
		load(t, "", theirs)
		witness := dial(t, "pc", "", webs[0], 0)
		for _, ns := range []string{"tv", "nas", "cam"} {
			for _, dst := range webs {
				dial(t, ns, "", dst, 0).send("leak")
			}
		}
		wan.silent(t, name, "leak", witness)
		set(t, a, c)
		if wants(t, name+", restored", map[string]string{"pc": "wan"}); name == "open" {
			wants(t, name+", restored", map[string]string{"tv": "x", "nas": "x", "cam": "y"})
		}
	}
}

// At boot there is the guard alone: no daemon, no route, no mesh.
func TestGuardAlone(t *testing.T) {
	world(t)
	run(t, "ip link del mesh0", "ip link del mesh-x", "ip link del mesh-y")
	fw := firewall.Guard{F: firewall.New(slog.New(slog.DiscardHandler))}
	if err := fw.Set(t.Context(), home().Firewall.Guard()); err != nil {
		t.Fatal(err)
	}
	wan := listen(t, "wan0")
	for _, ns := range []string{"tv", "nas", "cam"} {
		for _, dst := range webs {
			dial(t, ns, "", dst, 0).send("leak")
		}
	}
	wan.silent(t, "alone", "leak", dial(t, "pc", "", webs[0], 0))
	wants(t, "alone", map[string]string{"pc": "wan", "router": "wan"})
	// An interface of the home that nobody knew comes up, and one that was known goes
	// and comes back.
	run(t, "ip link add lan9 type bridge", "ip link set lan9 addrgenmode none up", "ip link set lan3 nomaster", "ip link set lan3 master lan9",
		"ip addr add 192.168.79.1/24 dev lan9", "ip -n nas addr add 192.168.79.70/24 dev e0", "ip -n nas route replace default via 192.168.79.1")
	t.Cleanup(func() { run(t, "ip link del lan9") })
	dial(t, "nas", "192.168.79.70", webs[0], 0).send("leak")
	wan.silent(t, "a new interface", "leak", dial(t, "pc", "", webs[0], 0))
	// Who is no part of the home by the owner's word is in reach, and answers.
	g := home().Firewall.Guard()
	g.Sources = append([]host.ExitSource{{Interfaces: []string{"lan9"}}}, slices.DeleteFunc(g.Sources, func(s host.ExitSource) bool { return !s.LAN })...)
	if err := fw.Set(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	answer(t, "nas", "udp4", "192.168.79.70:7")
	run(t, "ip -n world route add 192.168.79.0/24 via 198.51.100.1")
	if got := dial(t, "world", "198.51.100.2", "192.168.79.70:7", 0).ask(t); got != "198.51.100.2" {
		t.Errorf("from the internet to a server of no row: %q", got)
	}
	if err := fw.SetAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, dst := range webs {
		dial(t, "pc", "", dst, 0).send("all")
	}
	wan.silent(t, "all", "all", dial(t, "", "", webs[0], 0))
	if got := dial(t, "pc", "", "192.168.78.50:7", 0).ask(t); got != "refused" {
		t.Errorf("from LAN to LAN: %q", got)
	}
	if err := fw.Set(t.Context(), host.Guard{}); err != nil {
		t.Fatal(err)
	}
	wants(t, "open", map[string]string{"pc": "wan", "tv": "wan"})
	if out := run(t, "nft list tables"); strings.Contains(out, host.NftGuardTable) {
		t.Errorf("left behind: %s", out)
	}
}

// A blocked router says nothing to the internet of its own, but answers who calls it,
// and its sockets and neighbours are left alone; also where others send its packets
// another way when they are on their way already.
func TestRouterHeldBack(t *testing.T) {
	world(t)
	answer(t, "", "udp4", "198.51.100.1:9")
	answer(t, "", "udp6", "[2001:db8::1]:9")
	wan := listen(t, "wan0")
	link, err := net.InterfaceByName("wan0")
	if err != nil {
		t.Fatal(err)
	}
	c := home()
	c.Firewall.Sources = []host.ExitSource{{Router: true, Way: 0, Block: true}}
	c.Route.Sources = []host.RouteSource{{Interface: "lo", Way: 0}}
	a := hands()
	for i, name := range []string{"open", "shut", "only the guard", "rerouted"} {
		switch i {
		case 0:
			set(t, a, c)
		case 1:
			set(t, a, shut(c))
		case 2:
			if err := a.route.Set(t.Context(), host.Route{}); err != nil {
				t.Fatal(err)
			}
		case 3:
			set(t, a, c)
			run(t, "ip rule add priority 2001 fwmark 0x100/0x3f00 lookup main", "ip -6 rule add priority 2001 fwmark 0x100/0x3f00 lookup main")
			t.Cleanup(func() { delRule("-4", "2001"); delRule("-6", "2001") })
			load(t, "", `table inet mwan3 { chain out { type route hook output priority mangle; udp dport 7 meta mark set meta mark and 0xffffc0ff or 0x100; }; }`)
		}
		for _, dst := range webs {
			for _, src := range []string{"", map[bool]string{true: "198.51.100.1", false: "2001:db8::1"}[dst == webs[0]]} {
				c, err := in("", func() (net.Conn, error) {
					return (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(src)}}).Dial("udp", dst)
				})
				if err == nil { // else the kernel has no way at all
					flow{c}.send("leak")
					_ = c.Close()
				}
			}
		}
		wan.silent(t, name, "leak", dial(t, "pc", "", webs[0], 0))
		if name == "open" {
			wants(t, name, map[string]string{"router": "x", "pc": "wan"})
		}
		if name != "rerouted" {
			for _, dst := range webs {
				if got := dial(t, "", "", dst, host.Mark).ask(t); got != "wan" {
					t.Errorf("%s: a socket of ours to %s: %q", name, dst, got)
				}
			}
		}
		for _, dst := range []string{"198.51.100.1:9", "[2001:db8::1]:9"} {
			if got := dial(t, "world", "", dst, 0).ask(t); got != "198.51.100.2" && got != "2001:db8::2" {
				t.Errorf("%s: the router answers %s: %q", name, dst, got)
			}
		}
		for _, near := range []string{"224.0.0.9:7", fmt.Sprintf("[ff02::9%%%d]:7", link.Index)} { // net remembers names' numbers of former tests
			before := wan.heard("near")
			f, err := in("", func() (net.Conn, error) {
				if strings.HasPrefix(near, "2") {
					return (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP("198.51.100.1")}}).Dial("udp", near)
				}
				return net.Dial("udp", near)
			})
			if err != nil {
				t.Fatal(name, err)
			}
			flow{f}.send("near")
			_ = f.Close()
			wan.silent(t, name, "leak", dial(t, "pc", "", webs[0], 0))
			if wan.heard("near") == before {
				t.Errorf("%s: not on the link: %s", name, near)
			}
		}
	}
}

// What an exit brings is its peer's own, or an answer.
func TestExitsBringAnswersOnly(t *testing.T) {
	world(t)
	c := home()
	c.Firewall.Exposed = prefixes("192.168.77.70/32", "fd77::70/128")
	set(t, hands(), c)
	for _, v := range []struct{ network, nas, own, x, y, peer, web, device string }{
		{"udp4", "192.168.77.70:9", "100.64.0.1:9", "100.64.0.20", "100.64.0.21", "100.64.0.9", web4, "192.168.77.60"},
		{"udp6", "[fd77::70]:9", "[fd7a::1]:9", "fd7a::20", "fd7a::21", "fd7a::9", web6, "fd77::60"},
	} {
		liars := []string{v.peer, v.x, v.web, v.device, strings.TrimSuffix(strings.Trim(v.own, "[]9:"), ":")}
		for _, a := range liars {
			run(t, "ip -n y address add "+a+" dev lo"+map[bool]string{true: " nodad"}[v.network == "udp6"])
		}
		for i, dst := range []string{v.nas, v.own} {
			ns := []string{"nas", ""}[i]
			if ns == "" {
				run(t, "ip -n y address del "+liars[4]+" dev lo") // else y talks to itself
			}
			e := answer(t, ns, v.network, dst)
			for _, liar := range liars {
				if liar != liars[4] || ns != "" {
					dial(t, "y", liar, dst, 0).send("a lie")
				}
			}
			dial(t, "y", v.y, dst, 0).send("no rule") // the access list has none for y
			dial(t, "x", v.x, dst, 0).send("allowed")
			if got := dial(t, "x", v.x, dst, 0).ask(t); got != v.x {
				t.Errorf("x to %s: %q", dst, got)
			}
			if got := e.heard(); len(got) != 1 || got[0] != "allowed" {
				t.Errorf("%s heard %q", dst, got)
			}
		}
		for _, a := range liars[:4] {
			run(t, "ip -n y address del "+a+" dev lo")
		}
	}
	wants(t, "answers", map[string]string{"cam": "y", "tv": "x"})
}

// The exit that is offered leads to the internet only, with our address, and to what
// the access list says: not to the home, not to another exit.
func TestExitOffered(t *testing.T) {
	world(t)
	answer(t, "peer", "udp4", "100.64.0.9:9")
	a := hands()
	c := home()
	set(t, a, c)
	homes := []string{"192.168.77.70:7", "[fd77::70]:7", "192.168.78.50:7", "[fd78::50]:7", "198.51.100.2:7", "[2001:db8::2]:7", "100.64.0.20:7", "[fd7a::20]:7"}
	var ears []*ear
	for i, where := range []string{"nas", "nas", "cam", "cam", "world", "world", "x", "x"} {
		ears = append(ears, answer(t, where, []string{"udp4", "udp6"}[i%2], homes[i]))
	}
	wan := listen(t, "wan0")
	try := func(name string, open bool) {
		t.Helper()
		for _, dst := range append(homes, webs[:]...) {
			f := dial(t, "peer", "", dst, 0)
			f.send("peer: " + name)
			if web := slices.Contains(webs[:], dst); web && open {
				if got := f.ask(t); got != "wan" {
					t.Errorf("%s: %s is asked by %q", name, dst, got)
				}
			}
		}
		if !open {
			wan.silent(t, name, "peer: "+name, dial(t, "pc", "", webs[0], 0))
		}
		wants(t, name, map[string]string{"tv": "x", "pc": "wan"})
		for i, e := range ears {
			if got := e.heard(); len(got) > 0 {
				t.Errorf("%s: %s heard %q", name, homes[i], got)
			}
		}
	}
	try("not offered", false)
	c.Firewall.Internet = true
	set(t, a, c)
	try("offered", true)
	// A public network of somebody's behind a LAN is no internet either.
	run(t, "ip route add 203.0.113.64/26 via 192.168.77.70", "ip route add 2001:db8:bbbb::/64 via fd77::70", "ip -n nas addr add 203.0.113.66/32 dev lo", "ip -n nas addr add 2001:db8:bbbb::66/128 dev lo nodad")
	t.Cleanup(func() { run(t, "ip route del 203.0.113.64/26", "ip route del 2001:db8:bbbb::/64") })
	ears = append(ears, answer(t, "nas", "udp4", "203.0.113.66:7"), answer(t, "nas", "udp6", "[2001:db8:bbbb::66]:7"))
	homes = append(homes, "203.0.113.66:7", "[2001:db8:bbbb::66]:7")
	try("a network behind a LAN", true)
	c.Firewall.Rules[0].Dsts = []mesh.Dest{anyone("192.168.0.0/16")}
	set(t, a, c)
	try("no rule", false)
}

// Questions for names come to the answerer from the LAN, from members and from the
// router itself; what every member may call needs no rule.
func TestServices(t *testing.T) {
	world(t)
	c := home()
	c.Firewall.Names, c.Firewall.PeerAPI = 5335, 8412
	c.Firewall.Rules = nil
	set(t, hands(), c)
	members := []*ear{answer(t, "", "udp4", "100.64.0.1:5335"), answer(t, "", "udp6", "[fd7a::1]:5335")}
	for _, a := range []string{"192.168.77.1", "192.168.78.1", "127.0.0.1"} {
		answer(t, "", "udp4", a+":5335")
	}
	for _, a := range []string{"fd77::1", "fd78::1", "::1"} {
		answer(t, "", "udp6", "["+a+"]:5335")
	}
	for i, dst := range []string{"100.100.100.100:53", "[fd7a:115c:a1e0::53]:53"} {
		run(t, []string{"ip -n x route add 100.100.100.100 dev e0", "ip -n x route add fd7a:115c:a1e0::53 dev e0"}[i])
		for ns, want := range map[string][2]string{
			"tv": {"192.168.77.50", "fd77::50"}, "cam": {"192.168.78.50", "fd78::50"}, "peer": {"100.64.0.9", "fd7a::9"}, "x": {"100.64.0.20", "fd7a::20"}, "": {"wan", "wan"},
		} {
			if got := dial(t, ns, "", dst, 0).ask(t); got != want[i] {
				t.Errorf("%q asks %s as %q, want %q", ns, dst, got, want[i])
			}
		}
	}
	for _, own := range []string{"100.64.0.1", "[fd7a::1]"} {
		l, err := net.Listen("tcp", own+":8412")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		for _, ns := range []string{"peer", "x"} {
			c, err := in(ns, func() (net.Conn, error) { return net.DialTimeout("tcp", own+":8412", patience) })
			if err != nil {
				t.Errorf("%s to %s: %v", ns, own, err)
				continue
			}
			_ = c.Close()
		}
	}
	// The answerer's port itself needs a rule.
	for i, own := range []string{"100.64.0.1:5335", "[fd7a::1]:5335"} {
		dial(t, "peer", "", own, 0).send("direct")
		dial(t, "peer", "", []string{"100.100.100.100:53", "[fd7a:115c:a1e0::53]:53"}[i], 0).ask(t)
		if got := members[i].heard(); len(got) > 0 {
			t.Errorf("%s heard %q", own, got)
		}
	}
}

// Flows that run by the WAN end with the row that blocks them, in both directions, even
// where the kernel has taken them out of the firewall's sight (flow offload, as on
// OpenWrt), and go by the exit where there is one.
func TestRunningFlowsAreCut(t *testing.T) {
	for _, offload := range []bool{false, true} {
		t.Run(fmt.Sprint("offload ", offload), func(t *testing.T) {
			world(t)
			if offload && exec.Command("nft", "add table inet fw4; add flowtable inet fw4 ft { hook ingress priority 0; }").Run() != nil {
				t.Skip("this kernel has no flow offload")
			}
			if offload {
				load(t, "", `table inet fw4 {
					flowtable ft { hook ingress priority filter; devices = { lan1, wan0 }; }
					chain forward { type filter hook forward priority filter; policy accept; meta l4proto { tcp, udp } flow add @ft; }
				}`)
			}
			a := hands()
			open := home()
			open.Firewall.Sources, open.Route.Sources, open.Route.Ways = nil, nil, nil
			set(t, a, open)
			wan := listen(t, "wan0")
			var flows []flow
			for _, dst := range webs {
				f := dial(t, "tv", "", dst, 0)
				for range 20 {
					if got := f.ask(t); got != "wan" {
						t.Fatalf("before: %q", got)
					}
				}
				flows = append(flows, f)
			}
			set(t, a, shut(home()))
			for _, f := range flows {
				f.send("leak")
			}
			wan.silent(t, "shut", "leak", dial(t, "pc", "", webs[0], 0))
			set(t, a, home())
			for _, f := range flows {
				f.send("the socket tells of its error") // and does not send
				f.send("the kernel forgets what it translated for another interface")
				if got := f.ask(t); got != "x" {
					t.Errorf("an old flow goes on by %q", got)
				}
			}
			wants(t, "new flows", map[string]string{"tv": "x"})
		})
	}
}

// A flow that IPv6 leads through the WAN with the device's own address cannot go on by
// an exit: who began it hears of that, and begins anew by the exit.
func TestStrandedFlowsEnd(t *testing.T) {
	world(t)
	run(t, "nft flush ruleset", "ip -n world route add fd77::/64 via 2001:db8::1")
	load(t, "", `table ip theirs { chain postrouting { type nat hook postrouting priority srcnat; oifname "wan0" masquerade; }; }`)
	l, err := in("world", func() (net.Listener, error) { return net.Listen("tcp", "["+web6+"]:80") })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	a := hands()
	open := home()
	open.Firewall.Sources, open.Route.Sources, open.Route.Ways = nil, nil, nil
	set(t, a, open)
	udp := dial(t, "tv", "", webs[1], 0)
	if got := udp.ask(t); got != "fd77::50" {
		t.Fatalf("before: %q", got)
	}
	c, err := in("tv", func() (net.Conn, error) { return net.DialTimeout("tcp", l.Addr().String(), patience) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	set(t, a, home())
	_ = c.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(c, "still there?")
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("TCP: %v", err)
	}
	if got := udp.ask(t); got != "unreachable" {
		t.Errorf("UDP: %q", got)
	}
	wants(t, "new flows", map[string]string{"tv": "x"})
}
