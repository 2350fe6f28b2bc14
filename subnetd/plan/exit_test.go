package plan

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/config"
	"subnetd/subnetd/exit"
	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/status"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"tailscale.com/types/key"
)

const (
	tv  = "02:00:00:00:00:01"
	pc  = "02:00:00:00:00:02"
	nas = "02:00:00:00:00:03"
)

var equal = cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}, netip.AddrPort{}, key.NodePublic{})

// travel is a home with two networks, and a mesh with exits of all kinds.
func travel(t *testing.T, rows ...string) Inputs {
	t.Helper()
	in := inputs()
	in.Facts.Interfaces = append(in.Facts.Interfaces, host.Interface{Index: 6, Name: "br-guest", Bridge: true, Up: true, Addrs: prefixes("192.168.78.1/24")})
	in.Netmap.Filter = nil
	node := func(id int, name string, allowed ...string) {
		self := prefixes(fmt.Sprintf("100.64.0.%d/32", id), fmt.Sprintf("fd7a:115c:a1e0::%d/128", id))
		in.Netmap.Peers = append(in.Netmap.Peers, mesh.Node{ID: mesh.NodeID(id), Name: name, Key: key.NewNode().Public(), Addresses: self,
			AllowedIPs: slices.Concat(self, prefixes(allowed...))})
	}
	node(3, "far.mesh.", "0.0.0.0/0", "::/0")
	node(4, "four.mesh.", "0.0.0.0/0")
	node(5, "plain.mesh.")
	node(6, "twin.mesh.", "0.0.0.0/0", "::/0")
	node(7, "twin.other.", "0.0.0.0/0", "::/0")
	node(8, "old.mesh.", "0.0.0.0/0", "::/0")
	in.Netmap.Peers[len(in.Netmap.Peers)-1].KeyExpiry = start
	in.Exits = map[key.NodePublic]Exit{}
	setRows(t, &in, rows...)
	return in
}

func setRows(t *testing.T, in *Inputs, rows ...string) {
	t.Helper()
	var quoted []string
	for _, r := range rows {
		quoted = append(quoted, fmt.Sprintf("%q", r))
	}
	c, err := config.Parse(strings.NewReader("exit.rows = ["+strings.Join(quoted, ",")+"]"), "f")
	if err != nil {
		t.Fatal(err)
	}
	in.Config.Exit.Rows = c.Exit.Rows
}

// peer is the node of that first label.
func (in *Inputs) peer(name string) *mesh.Node {
	i := slices.IndexFunc(in.Netmap.Peers, func(n mesh.Node) bool { return strings.HasPrefix(n.Name, name+".") })
	return &in.Netmap.Peers[i]
}

func (in *Inputs) link(name string) string { return host.ExitInterface(in.peer(name).Key) }

func (in *Inputs) is(name string, s exit.State) {
	k := in.peer(name).Key
	in.Exits[k] = Exit{Health: exit.Health{State: s, Since: start.Add(-time.Minute)}, At: in.Exits[k].At}
}

// TestExit is one home whole: who goes where.
func TestExit(t *testing.T) {
	in := travel(t, tv+" -> far, cabin", "br-guest -> direct", nas+", router -> far, direct", "lan -> cabin.mesh.")
	in.Facts.Neighbours = []host.Neighbour{
		{Addr: netip.MustParseAddr("192.168.77.10"), MAC: tv, Interface: "br-lan"},
		{Addr: netip.MustParseAddr("192.168.77.11"), MAC: nas, Interface: "br-lan"},
		{Addr: netip.MustParseAddr("198.51.100.9"), MAC: nas, Interface: "wan"}, // whoever that is, he is not at home
		{Addr: netip.MustParseAddr("fd77:77::10"), MAC: tv, Interface: "br-lan"},
	}
	p := Compile(in)
	cabin, far := in.link("cabin"), in.link("far")
	both := func(name string, more ...string) []netip.Prefix {
		return sortPrefixes(append(slices.Clone(in.peer(name).Addresses), prefixes(more...)...))
	}
	exits := []host.ExitTunnel{
		{Name: cabin, Peer: host.Peer{Key: in.peer("cabin").Key, Session: in.peer("cabin").Disco.String(), AllowedIPs: both("cabin", "192.168.88.0/24", "0.0.0.0/0", "::/0")}},
		{Name: far, Peer: host.Peer{Key: in.peer("far").Key, AllowedIPs: both("far", "0.0.0.0/0", "::/0")}},
	}
	routes := []host.ExitRoute{{Interface: cabin, Routes: both("cabin", "192.168.88.0/24")}, {Interface: far, Routes: both("far")}}
	if far < cabin {
		slices.Reverse(exits)
		slices.Reverse(routes)
	}
	diff := func(what string, want, got any) {
		t.Helper()
		if d := cmp.Diff(want, got, equal); d != "" {
			t.Errorf("%s (-want +got):\n%s", what, d)
		}
	}
	diff("tunnels", exits, p.Host.Tunnel.Exits)
	diff("routes", routes, p.Host.Route.Exits)
	diff("routes of the firewall", routes, p.Host.Firewall.Exits)
	for _, peer := range p.Host.Tunnel.Peers {
		if peer.Key == in.peer("cabin").Key || peer.Key == in.peer("far").Key {
			t.Error("an exit in use is a peer of the main interface, too")
		}
	}
	for _, r := range routes {
		for _, a := range r.Routes {
			if slices.Contains(p.Host.Route.Routes, a) || !slices.Contains(p.Host.Firewall.Mesh, a) {
				t.Errorf("%s is routed to the main interface, or anybody may send from it", a)
			}
		}
	}
	diff("ways", []host.Way{{Interface: far, Block: true}, {Interface: far}, {Interface: cabin, Block: true}}, p.Host.Route.Ways)
	diff("sources", []host.ExitSource{
		{MACs: []string{tv}, Way: 0, Block: true},
		{Interfaces: []string{"br-guest"}, Way: -1},
		{MACs: []string{nas}, Router: true, Way: 1},
		{LAN: true, Way: 2, Block: true},
	}, p.Host.Firewall.Sources)
	diff("second layer", []host.RouteSource{
		{From: netip.MustParseAddr("192.168.77.10"), Way: 0},
		{From: netip.MustParseAddr("192.168.77.11"), Way: 1},
		{From: netip.MustParseAddr("fd77:77::10"), Way: 0},
		{Interface: "br-lan", Way: 2},
		{Interface: "lo", Way: 1},
	}, p.Host.Route.Sources)
	diff("names", []string{"far.mesh", "far.mesh", "cabin.mesh"}, []string{p.Exits[0].Now, p.Exits[2].Now, p.Exits[3].Now})
	diff("there", []string{"cabin.mesh", "far.mesh", "four.mesh", "twin.mesh", "twin.other"}, p.There)
	if p.Host.Firewall.Internet || p.Host.Firewall.Local != nil {
		t.Error("an exit is offered that nobody wished")
	}
}

// Every trouble with a row: where it goes then, and what its owner is told.
func TestExitTroubles(t *testing.T) {
	in7 := netip.MustParseAddr("192.168.77.40")
	tests := []struct {
		name     string
		rows     []string
		change   func(*Inputs)
		now      string // of the first row
		problems []string
	}{
		{"works", []string{"lan -> far"}, nil, "far.mesh", nil},
		{"by address", []string{"lan -> 100.64.0.3"}, nil, "far.mesh", nil},
		{"by address of the other family", []string{"lan -> fd7a:115c:a1e0::3"}, nil, "far.mesh", nil},
		{"unknown", []string{"lan -> nobody"}, nil, "blocked", []string{
			"exit-unusable: The exit nobody is no node of this mesh.",
			"exit-blocked: Blocked from the internet: lan. nobody is no node of this mesh."}},
		{"unknown, another", []string{"lan -> nobody, far"}, nil, "far.mesh", []string{"exit-unusable: The exit nobody is no node of this mesh."}},
		{"unknown, direct", []string{"lan -> nobody, direct"}, nil, "direct", []string{"exit-unusable: The exit nobody is no node of this mesh."}},
		{"no exit", []string{"lan -> plain"}, nil, "blocked", []string{
			"exit-unusable: The exit plain.mesh offers no exit.",
			"exit-blocked: Blocked from the internet: lan. plain.mesh offers no exit."}},
		{"ourselves", []string{"lan -> home"}, nil, "blocked", []string{
			"exit-unusable: The exit home is this router itself.",
			"exit-blocked: Blocked from the internet: lan. home is this router itself."}},
		{"ourselves by address", []string{"lan -> 100.64.0.1, direct"}, nil, "direct", []string{"exit-unusable: The exit 100.64.0.1 is this router itself."}},
		{"expired", []string{"lan -> old, far"}, nil, "far.mesh", []string{"exit-unusable: The exit old.mesh must log in again, as its key has expired."}},
		{"ambiguous", []string{"lan -> twin, far"}, nil, "far.mesh", []string{
			"exit-unusable: The exit twin is the name of several nodes, twin.mesh and twin.other."}},
		{"not ambiguous", []string{"lan -> twin.other"}, nil, "twin.other", nil},
		{"one family", []string{"lan -> four, far", "router -> four, direct"}, nil, "four.mesh", []string{
			"exit-family: The exit four.mesh carries no IPv6: for who uses it, what has only IPv6 is blocked."}},
		{"blocked as wished", []string{"lan -> block"}, nil, "blocked", nil},
		{"dead", []string{"lan, " + tv + " -> far"}, func(in *Inputs) { in.is("far", exit.Dead) }, "blocked", []string{
			"exit-blocked: Blocked from the internet: " + tv + ", lan. far.mesh does not answer."}},
		{"dead, another", []string{"lan -> far, cabin"}, func(in *Inputs) { in.is("far", exit.Dead) }, "cabin.mesh", nil},
		{"dead, direct", []string{"lan -> far, direct"}, func(in *Inputs) { in.is("far", exit.Dead) }, "direct", nil},
		{"back, another", []string{"lan -> far, cabin"}, func(in *Inputs) { in.is("far", exit.Back) }, "cabin.mesh", nil},
		{"back, nothing else", []string{"lan -> far"}, func(in *Inputs) { in.is("far", exit.Back) }, "far.mesh", nil},
		{"dead and unknown", []string{"lan -> far, nobody"}, func(in *Inputs) { in.is("far", exit.Dead) }, "blocked", []string{
			"exit-unusable: The exit nobody is no node of this mesh.",
			"exit-blocked: Blocked from the internet: lan. nobody is no node of this mesh; far.mesh does not answer."}},
		{"in no mesh", []string{"lan -> far", "router -> far, direct"}, func(in *Inputs) { in.Netmap = nil }, "blocked", []string{
			"exit-blocked: Blocked from the internet: lan. This router is in no mesh."}},
		{"expired ourselves", []string{"lan -> far"}, func(in *Inputs) { in.Netmap.Self.KeyExpiry = start }, "blocked", []string{
			"exit-blocked: Blocked from the internet: lan. This router must log in to the mesh again."}},
		{"the WAN is no source", []string{"wan, mesh0, lo -> far"}, nil, "far.mesh", []string{
			"exit-interface: wan of exit.rows is no interface of the LAN: the row is not about what comes from there.",
			"exit-interface: mesh0 of exit.rows is no interface of the LAN: the row is not about what comes from there.",
			"exit-interface: lo of exit.rows is no interface of the LAN: the row is not about what comes from there."}},
		{"behind ourselves", []string{"lan -> far"}, func(in *Inputs) { in.Exits[in.peer("far").Key] = Exit{At: in7} }, "blocked", []string{
			"exit-unusable: The exit far.mesh is in this LAN, at 192.168.77.40, and row 1 would bring its own traffic back to it.",
			"exit-blocked: Blocked from the internet: lan. far.mesh is in this LAN, at 192.168.77.40, and row 1 would bring its own traffic back to it."}},
		{"behind ourselves, let out", []string{"lan -> far"}, func(in *Inputs) {
			setRows(t, in, pc+" -> direct", "lan -> far")
			in.Exits[in.peer("far").Key] = Exit{At: in7}
			in.Facts.Neighbours = []host.Neighbour{{Addr: in7, MAC: pc, Interface: "br-lan"}}
		}, "direct", nil},
		{"behind ourselves, in a network of its own", []string{"br-guest -> far"}, func(in *Inputs) { in.Exits[in.peer("far").Key] = Exit{At: in7} }, "far.mesh", nil},
		{"elsewhere", []string{"lan -> far"}, func(in *Inputs) {
			in.Exits[in.peer("far").Key] = Exit{At: netip.MustParseAddr("203.0.113.9")}
		}, "far.mesh", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := travel(t, tt.rows...)
			in.Netmap.Self.AllowedIPs = append(in.Netmap.Self.AllowedIPs, prefixes("fd77:77::/64", "192.168.78.0/24")...)
			if tt.change != nil {
				tt.change(&in)
			}
			p := Compile(in)
			var got []string
			for _, pr := range p.Problems {
				got = append(got, pr.Code+": "+pr.Text)
				if pr.Fix == "" {
					t.Errorf("%s: nothing says what to do", pr.Code)
				}
			}
			if d := cmp.Diff(tt.problems, got); d != "" {
				t.Errorf("problems (-want +got):\n%s", d)
			}
			if len(p.Exits) == 0 || p.Exits[0].Now != tt.now {
				t.Errorf("goes now: %+v, want %s", p.Exits, tt.now)
			}
		})
	}
}

// Without a mesh who is to be blocked is blocked; `down` opens all.
func TestExitWithoutMesh(t *testing.T) {
	in := travel(t, tv+" -> far", "lan -> far, direct")
	in.Netmap = nil
	p := Compile(in)
	want := host.Firewall{LANs: []string{"br-lan", "br-guest"}, Sources: []host.ExitSource{{MACs: []string{tv}, Block: true}, {LAN: true, Way: 1}}}
	if d := cmp.Diff(host.Config{Firewall: want}, p.Host, equal); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if !p.Host.Firewall.Guard().Blocks() {
		t.Error("the guard is open")
	}
	in.Down = true
	if p := Compile(in); !reflect.DeepEqual(p.Host, host.Config{}) {
		t.Errorf("down: %+v", p.Host)
	}
	in = travel(t, "lan -> far, direct")
	in.Netmap = nil
	if p := Compile(in); !reflect.DeepEqual(p.Host, host.Config{}) {
		t.Errorf("nobody is to be blocked: %+v", p.Host)
	}
}

// An exit is offered, and served once the coordinator lets us: to the internet, and
// to nothing of ours.
func TestExitOffer(t *testing.T) {
	in := travel(t)
	in.Config.Exit.Offer = true
	in.Config.LAN.Expose = config.ExposeNone
	p := Compile(in)
	if !slices.Equal(p.Offer, prefixes("0.0.0.0/0", "::/0")) || p.Host.Firewall.Internet {
		t.Errorf("offer %v, internet %v before the approval", p.Offer, p.Host.Firewall.Internet)
	}
	if len(p.Problems) != 1 || p.Problems[0].Code != "exit-unapproved" {
		t.Errorf("problems: %+v", p.Problems)
	}
	in.Netmap.Self.AllowedIPs = append(in.Netmap.Self.AllowedIPs, prefixes("0.0.0.0/0", "::/0")...)
	in.Facts.Interfaces[1].Addrs = append(in.Facts.Interfaces[1].Addrs, prefixes("fe80::2/64", "203.0.113.7/32")...)
	in.Facts.Interfaces = append(in.Facts.Interfaces, host.Interface{Index: 9, Name: in.link("far"), Up: true, Addrs: prefixes("100.64.0.1/32")})
	p = Compile(in)
	f := p.Host.Firewall
	if !f.Internet || !p.Host.Route.Forward || len(p.Problems) != 0 {
		t.Errorf("internet %v, forward %v, %+v", f.Internet, p.Host.Route.Forward, p.Problems)
	}
	if len(f.Exposed)+len(f.LocalLANs) != 0 {
		t.Errorf("the exit implies the LAN: %v %v", f.Exposed, f.LocalLANs)
	}
	want := prefixes("172.17.0.0/16", "192.168.77.0/24", "192.168.78.0/24", "198.51.100.0/24", "203.0.113.7/32", "2001:db8::/64", "fd77:77::/64")
	if d := cmp.Diff(want, f.Local, equal); d != "" {
		t.Errorf("local (-want +got):\n%s", d)
	}
	in.Config.Mesh.Control = "home"
	in.Netmap.Self.AllowedIPs = in.Netmap.Self.Addresses
	if p := Compile(in); len(p.Problems) != 0 {
		t.Errorf("in our own mesh: %+v", p.Problems)
	}
}

// TestExitsAreStable: an unchanged wish is an equal plan, and a list of exits keeps
// its number while others come and go.
func TestExitsAreStable(t *testing.T) {
	in := travel(t, tv+" -> far", "lan -> cabin, direct", "router -> four")
	first := Compile(in)
	in.Ways = first.Ways
	if !reflect.DeepEqual(Compile(in).Host, first.Host) {
		t.Error("the same again is another")
	}
	setRows(t, &in, pc+" -> twin.mesh", "lan -> cabin, direct", "router -> block")
	p := Compile(in)
	if got := []int{p.Sources[0].Way, p.Sources[1].Way, p.Sources[2].Way}; !slices.Equal(got, []int{0, 1, 2}) {
		t.Errorf("ways %v of %q", got, p.Ways)
	}
	in.Ways = p.Ways
	setRows(t, &in, "router -> block")
	p = Compile(in)
	if p.Sources[0].Way != 2 || len(p.Host.Route.Ways) != 3 || p.Host.Route.Ways[0] != (host.Way{Block: true}) {
		t.Errorf("%+v %+v", p.Sources, p.Host.Route.Ways)
	}
	in.Ways = p.Ways
	setRows(t, &in)
	if p := Compile(in); p.Host.Route.Ways != nil || p.Ways != nil || len(p.Host.Tunnel.Exits) != 0 {
		t.Errorf("%+v", p.Host.Route)
	}
}

// A name of an interface is made of 32 bits of a key: who makes one that hits another
// gets none of its traffic.
func TestExitCollision(t *testing.T) {
	in := travel(t, "lan -> far", "router -> cabin")
	rows := in.Config.Exit.All()
	p := Plan{LANs: []string{"br-lan"}}
	in.peer("cabin").Key = in.peer("far").Key // the same key is the utmost of it
	if found := p.findExits(in, rows, start); found["far"].link != found["cabin"].link || found["cabin"].bad != "" {
		t.Errorf("one key is one exit: %+v", found["cabin"])
	}
}

// TestExitAlways: whatever the rows, the health of exits and who is on the LAN: the
// first row that fits decides, as a simple reader of the rows sees it; who is to be
// blocked never goes as if there were no exits; what comes from the mesh takes no
// row; and both layers say the same.
func TestExitAlways(t *testing.T) {
	macs, links := []string{tv, pc, nas}, []string{"br-lan", "br-guest", "wlan9"}
	names := []string{"far", "cabin", "four", "plain", "twin", "old", "nobody", "home", "twin.other"}
	seeds := uint64(100)
	if testing.Short() { // on an emulated processor each takes as long as fifty here
		seeds = 20
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 3))
		in := travel(t, randomRows(rng, macs, links, names)...)
		for _, name := range []string{"far", "cabin", "four", "twin"} {
			in.is(name, []exit.State{exit.Unknown, exit.Alive, exit.Back, exit.Dead}[rng.IntN(4)])
		}
		for i := range 8 {
			n := host.Neighbour{Addr: netip.AddrFrom4([4]byte{192, 168, 77, byte(10 + i)}), MAC: append(macs, "02:00:00:00:00:09")[rng.IntN(4)], Interface: links[rng.IntN(2)]}
			in.Facts.Neighbours = append(in.Facts.Neighbours, n)
		}
		joined := rng.IntN(8) > 0
		if !joined {
			in.Netmap = nil
		}
		p := Compile(in)
		rows := in.Config.Exit.All()
		for _, s := range p.Host.Firewall.Sources {
			if s.Way >= len(p.Ways) && joined || s.Way < 0 && s.Block {
				t.Fatalf("seed %d: %+v", seed, s)
			}
			for _, i := range s.Interfaces {
				if isOurs(i) || i == "wan" {
					t.Fatalf("seed %d: %s is a source", seed, i)
				}
			}
		}
		for _, r := range p.Host.Route.Sources {
			if isOurs(r.Interface) || r.Interface == "wan" || inAny(prefixes("100.64.0.0/10", "fd7a:115c:a1e0::/48"), r.From) {
				t.Fatalf("seed %d: the mesh takes a row: %+v", seed, r)
			}
		}
		for _, mac := range append(macs, "02:00:00:00:00:09") {
			for _, link := range append(links, "lo") {
				if link == "lo" {
					mac = ""
				}
				lan := link == "br-lan" || link == "br-guest"
				want := read(rows, mac, link, lan)
				got := SourceOf(p.Sources, mac, link, lan)
				if got != want {
					t.Fatalf("seed %d: %s on %s takes row %d, want %d: %v", seed, mac, link, got, want, rows)
				}
				if want < 0 || !joined {
					continue
				}
				judge(t, seed, in, rows[want], p.Sources[got], p)
			}
		}
		if joined {
			layers(t, seed, in, p)
		}
	}
}

// read is the oracle: the first row that fits.
func read(rows []config.ExitRow, mac, link string, lan bool) int {
	for i, r := range rows {
		for _, w := range r.List() {
			if link == "lo" && w == "router" || link != "lo" && (w == mac || w == link || w == "lan" && lan) {
				return i
			}
		}
	}
	return -1
}

// judge asks of one source whether it goes where its row says.
func judge(t *testing.T, seed uint64, in Inputs, r config.ExitRow, s host.ExitSource, p Plan) {
	t.Helper()
	want := host.Way{Block: !r.Direct}
	for _, state := range [][]exit.State{{exit.Unknown, exit.Alive}, {exit.Back}} {
		for _, name := range r.Exits {
			n := map[string]string{"far": "far", "cabin": "cabin", "four": "four", "twin.other": "twin"}[name]
			if n == "" || want.Interface != "" {
				continue // nothing that could be used
			}
			k := in.peer(n).Key
			if name == "twin.other" {
				k = in.Netmap.Peers[slices.IndexFunc(in.Netmap.Peers, func(n mesh.Node) bool { return n.Name == "twin.other." })].Key
			}
			if slices.Contains(state, in.Exits[k].State) {
				want.Interface, want.No6 = host.ExitInterface(k), n == "four"
			}
		}
		if r.Direct {
			break // one that is only just back does not take over from that
		}
	}
	if s.Way < 0 {
		if len(r.Exits) > 0 || !r.Direct {
			t.Fatalf("seed %d: %v has no way", seed, r)
		}
		return
	}
	if got := p.Host.Route.Ways[s.Way]; got != want || s.Block != want.Block {
		t.Fatalf("seed %d: %v goes %+v, want %+v", seed, r, got, want)
	}
	if now := p.Exits[slices.IndexFunc(p.Exits, func(e status.ExitRow) bool { return slices.Equal(e.Sources, r.List()) })].Now; (now == "blocked") != (want.Interface == "" && want.Block) {
		t.Fatalf("seed %d: %v is told to go %s", seed, r, now)
	}
}

// layers compares the marks with what the routes say of packets without.
func layers(t *testing.T, seed uint64, in Inputs, p Plan) {
	t.Helper()
	byRoute := func(from netip.Addr, link string) int {
		for _, s := range p.Host.Route.Sources {
			if s.From.IsValid() && s.From == from || s.Interface == link {
				return s.Way
			}
		}
		return -1
	}
	seen := map[netip.Addr]bool{}
	for _, n := range in.Facts.Neighbours {
		if seen[n.Addr] {
			continue
		}
		seen[n.Addr] = true
		want := -1
		if i := SourceOf(p.Sources, n.MAC, n.Interface, true); i >= 0 {
			want = p.Sources[i].Way
		}
		if got := byRoute(n.Addr, n.Interface); got != want {
			t.Fatalf("seed %d: %+v goes way %d without a mark, and %d with: %+v", seed, n, got, want, p.Host.Route.Sources)
		}
	}
}

func randomRows(rng *rand.Rand, macs, links, names []string) (rows []string) {
	words := slices.Concat(macs, links, []string{"router"})
	rng.Shuffle(len(words), func(i, j int) { words[i], words[j] = words[j], words[i] })
	to := func() string {
		n := slices.Clone(names)
		rng.Shuffle(len(n), func(i, j int) { n[i], n[j] = n[j], n[i] })
		list := n[:rng.IntN(4)]
		if rng.IntN(3) == 0 || len(list) == 0 {
			list = append(list, []string{"direct", "block"}[rng.IntN(2)])
		}
		return strings.Join(list, ", ")
	}
	for len(words) > 0 && rng.IntN(5) > 0 && len(rows) < 6 {
		n := 1 + rng.IntN(min(3, len(words)))
		rows = append(rows, strings.Join(words[:n], ", ")+" -> "+to())
		words = words[n:]
	}
	if rng.IntN(2) == 0 {
		rows = append(rows, "lan -> "+to())
	}
	return rows
}

func TestPriority(t *testing.T) {
	mwan3 := []host.PolicyRule{{Priority: 1001, Table: 1}, {Priority: 2001, Table: 1, Mark: 0x100, Mask: 0x3f00}, {Priority: 2061, Mark: 0x3d00, Mask: 0x3f00}}
	tailscaled := []host.PolicyRule{{Priority: 5210, Table: 254, Mark: 0x80000, Mask: 0xff0000}, {Priority: 5270, Table: 52}}
	pbr := []host.PolicyRule{{Priority: 29998, Table: 254, Mark: 0x1, Mask: 0xff0000}, {Priority: 30000, Table: 256, Mark: 0x10000, Mask: 0xff0000}}
	ours := func(base uint32) []host.PolicyRule {
		out := []host.PolicyRule{
			{Priority: base, Table: 254, Mark: host.Mark, Mask: host.MarkMask}, {Priority: base + 1, Table: host.RouteTable}, {Priority: base + 2, Table: 254},
			{Priority: base + 11, Mark: host.DirectMark, Mask: host.MarkMask}, {Priority: base + 11, Mark: host.WayMark(0), Mask: host.WayMark(0)}, {Priority: base + 12, Table: host.RouteTable + 1}, {Priority: base + 13, Table: host.RouteTable + 2}, {Priority: base + 14}}
		for i := range host.MaxWays {
			out = append(out, host.PolicyRule{V6: i%2 == 0, Priority: base + 3 + uint32(i), Table: uint32(host.RouteTable + 1 + i), Mark: host.WayMark(i), Mask: host.MarkMask})
		}
		return out
	}
	for _, tt := range []struct {
		name  string
		rules []host.PolicyRule
		own   uint32 // exit.priority
		want  uint32
		clash string // part of what is told
	}{
		{"alone", ours(host.RuleMark), 0, 0, ""},
		{"mwan3", mwan3, 0, host.RuleEarly, ""},
		{"mwan3, and ours moving", slices.Concat(mwan3, ours(host.RuleMark), ours(host.RuleEarly)), 0, host.RuleEarly, ""},
		{"mwan3 is gone, and ours moving", ours(host.RuleEarly), 0, 0, ""},
		{"ours moving from where the owner had them", ours(3000), 0, 0, "The policy rule 3000 of another program looks at bits of the mark that are ours"},
		{"tailscaled and pbr", slices.Concat(tailscaled, pbr), 0, 0, ""},
		{"the owner's", mwan3, 1500, 1500, ""},
		{"the owner's, amid mwan3", mwan3, 1000, 1000, "The policy rule 1001 of another program (table 1) stands among ours"},
		{"our table", []host.PolicyRule{{Priority: 100, Table: host.RouteTable + 3}}, 0, 0, "The policy rule 100 of another program uses the routing table 8413, which is ours"},
		{"our mark", []host.PolicyRule{{Priority: 9000, Table: 99, Mark: 0x1000000, Mask: 0x7000000}}, 0, 0, "bits of the mark that are ours"},
		{"a whole mark with our bits", []host.PolicyRule{{V6: true, Priority: 9000, Table: 99, Mark: 0x5000001, Mask: 0xffffffff}}, 0, 0, "bits of the mark that are ours"},
		{"a whole mark without", []host.PolicyRule{{Priority: 9000, Table: 51820, Mark: 0xca6c, Mask: 0xffffffff}}, 0, 0, ""},
		{"among ours", []host.PolicyRule{{Priority: host.RuleWay, Table: 99}}, 0, 0, "The policy rule 5183 of another program (table 99) stands among ours"},
		{"among ours, but those are elsewhere", []host.PolicyRule{{Priority: host.RuleWay, Table: 99}}, 7000, 7000, ""},
	} {
		in := travel(t)
		in.Netmap.Self.AllowedIPs = append(in.Netmap.Self.AllowedIPs, prefixes("fd77:77::/64", "192.168.78.0/24")...)
		in.Facts.Rules, in.Config.Exit.Priority = tt.rules, tt.own
		p := Compile(in)
		if p.Host.Route.Priority != tt.want {
			t.Errorf("%s: priority %d, want %d", tt.name, p.Host.Route.Priority, tt.want)
		}
		if len(p.Problems) > 0 != (tt.clash != "") || len(p.Problems) > 0 && !strings.Contains(p.Problems[0].Text, tt.clash) {
			t.Errorf("%s: %+v", tt.name, p.Problems)
		}
	}
}

// TestTest: what `exit test` says of everything it may be asked.
func TestTest(t *testing.T) {
	in := travel(t, tv+" -> far", "br-guest -> direct", "lan, router -> cabin")
	addr := netip.MustParseAddr
	all := []host.Neighbour{
		{Addr: addr("192.168.77.10"), MAC: tv, Interface: "br-lan"},
		{Addr: addr("192.168.77.11"), MAC: pc, Interface: "br-lan"},
		{Addr: addr("192.168.78.11"), MAC: nas, Interface: "br-guest"},
		{Addr: addr("192.168.77.12"), MAC: nas, Interface: "br-lan"},
		{Addr: addr("192.168.78.13"), MAC: "02:00:00:00:00:0d", Interface: "br-guest"},
	}
	p := Compile(in)
	for _, tt := range []struct {
		of    string
		addrs []netip.Addr
		want  string
	}{
		{tv, nil, tv + " [192.168.77.10] br-lan row 1 far.mesh"},
		{strings.ToUpper(tv), nil, tv + " [192.168.77.10] br-lan row 1 far.mesh"},
		{"192.168.77.11", []netip.Addr{addr("192.168.77.11")}, pc + " [192.168.77.11] br-lan row 3 cabin.mesh"},
		{"tv", []netip.Addr{addr("192.168.77.99"), addr("192.168.77.10")}, tv + " [192.168.77.10] br-lan row 1 far.mesh"},
		{"02:00:00:00:00:0d", nil, "02:00:00:00:00:0d [192.168.78.13] br-guest row 2 direct"},
		{nas, nil, nas + " [192.168.78.11 192.168.77.12] br-guest, br-lan row 2 direct but that depends on the interface it is behind"},
		{"02:00:00:00:00:99", nil, "02:00:00:00:00:99 []  row 3 cabin.mesh but that depends on the interface it is behind"},
		{"router", nil, "router []  row 3 cabin.mesh"},
		{"192.168.77.1", []netip.Addr{addr("192.168.77.1")}, "router []  row 3 cabin.mesh"},
		{"br-guest", nil, "a device [] br-guest row 2 direct but a row for its MAC address may be about it"},
		{"192.168.77.200", []netip.Addr{addr("192.168.77.200")}, "192.168.77.200 [] br-lan row 3 cabin.mesh but its MAC address is not known, as nothing was heard of it lately: a row for that may be about it"},
		{"10.9.9.9", []netip.Addr{addr("10.9.9.9")}, "no device of the LAN: 10.9.9.9 is in no network of the LAN"},
		{"toaster", nil, `no device of the LAN: "toaster" is no MAC address, no address, no device of lan.devices and no interface of the LAN`},
	} {
		got, err := Test(p, in.Facts, all, tt.of, tt.addrs)
		text := fmt.Sprint(err)
		if err == nil {
			text = fmt.Sprintf("%s %v %s", got.What, got.Addresses, got.Interface)
			if got.Row != nil {
				text += fmt.Sprintf(" row %d %s", got.Row.Row, got.Row.Now)
			}
			if got.Unsure != "" {
				text += " but " + got.Unsure
			}
		}
		if text != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.of, text, tt.want)
		}
	}
}

func TestRefuseExits(t *testing.T) {
	in := travel(t)
	for name, want := range map[string]string{
		"far": "<nil>", "far.mesh": "<nil>", "100.64.0.3": "<nil>", "plain": "plain.mesh offers no exit", "home": "home is this router itself",
		"nobody": "nobody is no node of this mesh", "twin": "twin is the name of several nodes, twin.mesh and twin.other",
	} {
		if got := fmt.Sprint(RefuseExits(in.Netmap, []string{"cabin", name}, start)); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}
