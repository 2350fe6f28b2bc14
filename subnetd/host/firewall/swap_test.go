package firewall

import (
	"bytes"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// generation counts the kernel's transactions.
func generation(t *testing.T) uint32 {
	t.Helper()
	gen, err := transactions()
	if err != nil {
		t.Fatal(err)
	}
	return gen
}

// hooks is the chains of a table that are no class's, with the kernel's numbers for
// them. A table loaded anew has others.
func hooks(t *testing.T, table string) string {
	t.Helper()
	return strings.Join(regexp.MustCompile(`(?m)^\s*chain \w+ \{ # handle \d+$`).FindAllString(run(t, "nft -a list table inet "+table), -1), "\n")
}

// sets is the kernel's numbers for the sets of the edge.
func sets(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, m := range regexp.MustCompile(`(?:set|map) (\S+) \{ # handle (\d+)`).FindAllStringSubmatch(run(t, "nft -a list table inet "+host.NftTable), -1) {
		out[m[1]] = m[2]
	}
	return out
}

// sorted is a listing with the sets and chains of each table in the order of their
// names.
func sorted(listing string) string {
	var out strings.Builder
	for table := range strings.SplitSeq(listing, "\n}\n") {
		first, rest, _ := strings.Cut(table, "\n")
		blocks := strings.Split(rest, "\n\n")
		slices.Sort(blocks)
		out.WriteString(first + "\n" + strings.Join(blocks, "\n\n") + "\n\n")
	}
	return out.String()
}

// putNoting is put that returns what was logged.
func putNoting(t *testing.T, cfg host.Firewall) string {
	t.Helper()
	var log bytes.Buffer
	f := New(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err := f.Set(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	return log.String()
}

// joined is withDevices and a shared port, with members of two ranks, by their
// numbers.
func joined(members ...byte) host.Firewall {
	cfg := withDevices()
	cfg.Share = shared.Share
	all := mesh.Rule{Dsts: []mesh.Dest{{Range: span("192.168.77.0/24"), Ports: mesh.PortRange{First: 1, Last: 9}},
		{Range: span("fd77::/64"), Ports: mesh.PortRange{First: 1, Last: 9}}}}
	cfg.Mesh = cfg.Mesh[:0:0]
	for _, m := range members {
		v4 := netip.AddrFrom4([4]byte{100, 80, 0, m})
		v6 := netip.AddrFrom16([16]byte{0xfd, 0x7a, 15: m})
		if m == 255 {
			v4, v6 = lastAddr(v4), lastAddr(v6)
		}
		for _, a := range []netip.Addr{v4, v6} {
			cfg.Mesh = append(cfg.Mesh, netip.PrefixFrom(a, a.BitLen()))
			if r := (mesh.Range{From: a, To: a}); m%3 == 0 {
				all.Srcs = append(all.Srcs, r)
			} else {
				cfg.Rules[m%2].Srcs = append(cfg.Rules[m%2].Srcs, r)
			}
		}
	}
	cfg.Rules = append(cfg.Rules, all)
	return cfg
}

// Members come and go, and rights: the table becomes what a fresh one is, hooks and
// sets that stay are the ones they were.
func TestMembers(t *testing.T) {
	fresh(t)
	random := rand.New(rand.NewPCG(1, 2))
	here := []byte{2, 3, 4, 6, 7, 9} // all ranks, always
	var members []byte
	next := func() host.Firewall {
		if m := byte(10 + random.IntN(20)); random.IntN(9) == 0 {
			members = nil
		} else if i := slices.Index(members, m); i >= 0 {
			members = slices.Delete(members, i, i+1)
		} else {
			members = append(members, m, byte(236+random.IntN(20)))
		}
		cfg := joined(slices.Concat(here, members)...)
		cfg.Devices[0].LAN = netip.AddrFrom4([4]byte{192, 168, 77, byte(random.IntN(3))})
		cfg.Sites = prefixes("10.9.0.0/24", "fd09::/64")[:random.IntN(3)]
		cfg.LANs = []string{"lan0", "lan1", "lan2"}[:1+random.IntN(3)]
		if random.IntN(9) == 0 {
			cfg.Exposed = prefixes("0.0.0.0/0", "::/0")
		}
		if random.IntN(3) == 0 { // another right
			r := &cfg.Rules[random.IntN(len(cfg.Rules))]
			r.Dsts = append(r.Dsts, mesh.Dest{Range: span("192.168.77.50"), Ports: mesh.PortRange{First: 7, Last: uint16(7 + random.IntN(3))}})
		}
		return cfg
	}
	var saved [24]string
	for i := range saved {
		if i == 0 || i == 12 {
			run(t, "nft flush ruleset")
			put(t, next())
		}
		before, was := hooks(t, host.NftTable), sets(t)
		cfg := next()
		if log := putNoting(t, cfg); strings.Contains(log, "why=") {
			t.Errorf("step %d: %s", i, log)
		}
		if d := cmp.Diff(before, hooks(t, host.NftTable)); d != "" {
			t.Errorf("step %d: chains changed: %s", i, d)
		}
		for name, handle := range sets(t) {
			if was[name] != "" && was[name] != handle {
				t.Errorf("step %d: set %s was made anew", i, name)
			}
		}
		whole(t, cfg)
		have := sorted(listing(t))
		run(t, "nft flush ruleset")
		put(t, cfg)
		if d := cmp.Diff(sorted(listing(t)), have); d != "" {
			t.Fatalf("step %d: it differs from a fresh table: %s", i, d)
		}
		saved[i] = have
	}
	if n := len(slices.Compact(slices.Sorted(slices.Values(saved[:])))); n < 20 {
		t.Errorf("%d different policies", n)
	}
}

// A restarted daemon touches nothing; each table changes by itself.
func TestAdoption(t *testing.T) {
	fresh(t)
	gen := generation(t)
	step := func(what string, cfg host.Firewall, transactions uint32, want string) {
		t.Helper()
		edge, way := run(t, "nft -a list table inet "+host.NftTable), run(t, "nft -a list table inet "+host.NftHomeTable)
		had := hooks(t, host.NftTable) + hooks(t, host.NftHomeTable)
		put(t, cfg)
		if d := cmp.Diff(had, hooks(t, host.NftTable)+hooks(t, host.NftHomeTable)); d != "" {
			t.Errorf("%s: a table was loaded anew: %s", what, d)
		}
		changed := ""
		if run(t, "nft -a list table inet "+host.NftTable) != edge {
			changed += "edge "
		}
		if run(t, "nft -a list table inet "+host.NftHomeTable) != way {
			changed += "way "
		}
		if changed != want {
			t.Errorf("%s changed %q, want %q", what, changed, want)
		}
		if g := generation(t); g != gen+transactions {
			t.Errorf("%s: %d transactions, want %d", what, g-gen, transactions)
		}
		gen = generation(t)
	}
	put(t, joined(2, 3, 4))
	gen = generation(t)
	step("the second Set", joined(2, 3, 4), 0, "")
	step("a member", joined(2, 3, 4, 6), 3, "edge ")
	other := joined(2, 3, 4, 6)
	other.SNAT = true
	step("another rule", other, 1, "edge ") // no set comes or goes
	other.Rules[0] = allow("100.64.0.9 fd7a::9 100.80.0.2 100.80.0.4 fd7a::2 fd7a::4", "192.168.77.50 fd77::50", 81, 81, protoTCP)
	step("other rights, as many as before", other, 3, "edge ")
	if !strings.Contains(listing(t), "192.168.77.50 . 6 . 81") {
		t.Error("other rights are missing")
	}
	other.Redirect.To++
	step("another port", other, 1, "way ")
	other.Redirect.Addrs = addrsOf("198.51.100.7", "2001:db8::1") // the WAN got another address
	step("another WAN address", other, 3, "way ")
	if !strings.Contains(listing(t), "{ 198.51.100.7 }") {
		t.Error("the new WAN address is missing")
	}
	for _, cfg := range []host.Firewall{{Redirect: public()}, home(), {}} {
		put(t, cfg)
		tables := run(t, "nft list tables")
		if got, want := strings.Contains(tables, "inet subnetd\n"), cfg.Interface != ""; got != want {
			t.Errorf("%q: the edge: %v", tables, got)
		}
		if got, want := strings.Contains(tables, "inet subnetd_home\n"), redirects(cfg.Redirect); got != want {
			t.Errorf("%q: the way home: %v", tables, got)
		}
	}
}

// Where the kernel refuses a part of the swap, the table is replaced; where that
// cannot be either, the kernel keeps what it had.
func TestReplaceAfterAll(t *testing.T) {
	fresh(t)
	many := []byte{2, 3, 4}
	for m := byte(6); m < 250; m += 2 {
		many = append(many, m)
	}
	before, after := joined(2, 3, 4), joined(many...)
	put(t, after)
	want := listing(t)
	for _, replaced := range []bool{true, false} {
		put(t, host.Firewall{})
		put(t, before)
		had := listing(t)
		var log bytes.Buffer
		f := New(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
		f.dial = func() (*nftables.Conn, error) {
			if replaced && strings.Contains(log.String(), "why=") {
				return dial()
			}
			return nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error { return c.SetWriteBuffer(1) }))
		}
		err := f.Set(t.Context(), after)
		if (err == nil) != replaced || !strings.Contains(log.String(), unix.EMSGSIZE.Error()) {
			t.Errorf("%v, logged %q", err, log.String())
		}
		if replaced {
			had = want
		}
		if d := cmp.Diff(had, listing(t)); d != "" {
			t.Errorf("replaced %v: %s", replaced, d)
		}
	}
}

// A swap that is cut short leaves one of the two policies in force, as a whole, and
// the next Set goes on from there, to either.
func TestCutShort(t *testing.T) {
	fresh(t)
	before, after := joined(2, 3, 4), joined(2, 3, 4, 6, 9)
	after.SNAT, after.Rules[0].Dsts[0].Ports.Last = true, 99
	after.Devices = nil // chains go
	for _, pair := range [][2]host.Firewall{{before, after}, {after, before}} {
		var fine [2]string
		for i, cfg := range pair {
			put(t, host.Firewall{})
			put(t, cfg)
			fine[i] = listing(t)
		}
		for steps := 1; steps <= 2; steps++ {
			for i, next := range pair {
				put(t, host.Firewall{})
				put(t, pair[0])
				swapPartly(t, pair[1], steps)
				if d := cmp.Diff(inForce(fine[steps-1]), inForce(listing(t))); d != "" {
					t.Errorf("after %d steps: %s", steps, d)
				}
				if log := putNoting(t, next); strings.Contains(log, "why=") || strings.Contains(log, "WARN") {
					t.Error(log)
				}
				if d := cmp.Diff(sorted(fine[i]), sorted(listing(t))); d != "" {
					t.Errorf("%d after %d steps: %s", i, steps, d)
				}
			}
		}
	}
}

// inForce is the rules of a listing that packets meet first.
func inForce(listing string) string {
	var out []string
	for _, block := range strings.Split(regexp.MustCompile(`(?m)^table .*$`).ReplaceAllString(sorted(listing), ""), "\n\n") {
		block = strings.Trim(block, "\n")
		if regexp.MustCompile(`^\tchain \w+ \{`).MatchString(block) && !regexp.MustCompile(`\{\n(?:\t\ttype .*\n)?\t\}`).MatchString(block) {
			out = append(out, block)
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// swapPartly does the first steps of a swap: make, turn.
func swapPartly(t *testing.T, cfg host.Firewall, steps int) {
	t.Helper()
	tables, err := compile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.CloseLasting() }()
	for _, table := range tables {
		n, err := table.named()
		if err != nil {
			t.Fatal(err)
		}
		there, flaw, err := n.inspect(conn, false)
		if err == nil && flaw == "" {
			err = n.make(conn, there)
		}
		if err == nil && steps > 1 {
			err = n.turn(conn, there)
		}
		if err != nil || flaw != "" {
			t.Fatal(flaw, err)
		}
	}
}

// A set that is there already is not believed blindly, nor is a chain that hangs
// elsewhere.
func TestRepair(t *testing.T) {
	fresh(t)
	for _, after := range []host.Firewall{joined(2, 3, 4), joined(2, 3, 4, 6)} {
		put(t, after)
		want := sorted(listing(t))
		for _, breakage := range []string{
			"nft flush ruleset", "nft delete table inet subnetd", "nft flush table inet subnetd",
			"nft flush chain inet subnetd forward", "nft flush chain inet subnetd input", "nft add rule inet subnetd guard accept",
			"nft flush set inet subnetd <own4>", "nft delete element inet subnetd <ours4> {192.168.77.0/24}",
			"nft add element inet subnetd <lans> {wan0}", "nft flush map inet subnetd <device6>",
			"nft add element inet subnetd <device4> {100.64.5.6:192.168.77.1}", "nft add rule inet subnetd to_device accept",
			"nft flush map inet subnetd <src4>", "nft flush set inet subnetd <acl4>",
			"nft add element inet subnetd <acl4> {0.0.0.0/0 . tcp . 22}", "nft flush chain inet subnetd config",
			"nft add chain inet subnetd strange", "nft add set inet subnetd strange { type inet_service ; }",
			"nft add set inet subnetd strange { typeof ip hdrlength ; }", "nft add map inet subnetd strange { type mark : verdict ; }",
			"nft delete table inet subnetd_home", "nft flush table inet subnetd_home", "nft flush chain inet subnetd_home output",
			"nft add element inet subnetd_home <ports> {22}", "nft flush set inet subnetd_home <wan6>",
			"nft add rule inet subnetd_home to_home accept",
			"nft delete table inet subnetd_port", "nft flush table inet subnetd_port", "nft flush chain inet subnetd_port out",
			"nft flush chain inet subnetd_port ours", "nft add rule inet subnetd_port in accept",
		} {
			put(t, joined(2, 3, 4))
			run(t, regexp.MustCompile(`<\w+>`).ReplaceAllStringFunc(breakage, func(s string) string { return inKernel(t, s[1:len(s)-1]) }))
			put(t, after)
			if d := cmp.Diff(want, sorted(listing(t))); d != "" {
				t.Errorf("after %s: %s", breakage, d)
			}
		}
	}
}

// What was left is not looked at again, until somebody else was at nftables: then it is
// as if the daemon had started anew. Whoever it was and whatever he did, the next Set
// leaves the tables as a fresh one would.
func TestMemory(t *testing.T) {
	fresh(t)
	f := New(silent)
	looks := 0
	f.dial = func() (*nftables.Conn, error) { looks++; return dial() }
	set := func(cfg host.Firewall) {
		t.Helper()
		if err := f.Set(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what string, n int) {
		t.Helper()
		if looks != n {
			t.Errorf("%s: %d looks, want %d", what, looks, n)
		}
		looks = 0
	}
	first, second := joined(2, 3, 4), joined(2, 3, 4, 6)
	put(t, second)
	fine := sorted(listing(t))
	put(t, host.Firewall{})
	set(first)
	looks = 0
	set(first)
	want("the same again", 0)
	gen, forward := generation(t), run(t, "nft -a list chain inet subnetd forward")
	set(second)
	want("a member", 1)
	if run(t, "nft -a list chain inet subnetd forward") != forward {
		t.Error("a member: rules were made anew that are the same")
	}
	if g := generation(t); g != gen+3 {
		t.Errorf("a member: %d transactions", g-gen)
	}
	if d := cmp.Diff(fine, sorted(listing(t))); d != "" {
		t.Errorf("a member: %s", d)
	}
	for _, act := range []string{
		"nft add table inet theirs", "nft flush ruleset", "nft flush chain inet subnetd forward", "nft delete table inet subnetd_home",
		"nft add rule inet subnetd guard accept", "nft add chain inet subnetd strange",
	} {
		for _, next := range []host.Firewall{second, first} {
			set(second)
			run(t, act)
			set(next)
			set(second)
			if d := cmp.Diff(fine, sorted(listing(t))); d != "" {
				t.Errorf("after %s: %s", act, d)
			}
		}
	}
	set(host.Firewall{})
	if got := listing(t); got != "" {
		t.Errorf("left: %s", got)
	}
	looks = 0
	set(host.Firewall{})
	want("nothing, twice", 0)
}

// inKernel is the name of a set in the kernel.
func inKernel(t *testing.T, name string) string {
	t.Helper()
	m := regexp.MustCompile(`(?:set|map) (` + name + `-[0-9a-f]+)`).FindStringSubmatch(listing(t))
	if m == nil {
		t.Fatalf("no set %s in %s", name, listing(t))
	}
	return m[1]
}

// Set says something when it changes something, and only then; what happens with
// every member is for debugging.
func TestLogs(t *testing.T) {
	fresh(t)
	lobby := host.Firewall{Redirect: public()}
	elsewhere := lobby
	elsewhere.Redirect.Addrs = addrsOf("198.51.100.7")
	for i, step := range []struct {
		cfg  host.Firewall
		want []string
	}{
		{host.Firewall{}, nil},
		{home(), []string{"INFO applied subnetd"}},
		{home(), nil},
		{host.Firewall{}, []string{"INFO removed subnetd"}},
		{host.Firewall{}, nil},
		{lobby, []string{"INFO applied subnetd_home"}},
		{lobby, nil},
		{joined(2, 3, 4), []string{"INFO applied subnetd_port", "INFO applied subnetd"}},
		{joined(2, 3, 4, 6), []string{"DEBUG applied subnetd"}},
		{lobby, []string{"INFO removed subnetd_port", "INFO removed subnetd"}},
		{elsewhere, []string{"DEBUG applied subnetd_home"}},
		{host.Firewall{Redirect: host.Redirect{To: 8410}}, []string{"INFO removed subnetd_home"}},
		{host.Firewall{}, nil},
	} {
		var got []string
		for line := range strings.Lines(putNoting(t, step.cfg)) {
			at := func(key string) string {
				_, s, _ := strings.Cut(line, key)
				return strings.Trim(strings.Fields(s)[0], `"`)
			}
			got = append(got, at("level=")+" "+at(`"firewall policy `)+" "+at("table="))
		}
		if d := cmp.Diff(step.want, got); d != "" {
			t.Errorf("step %d: %s", i, d)
		}
	}
}
