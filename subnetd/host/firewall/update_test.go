package firewall

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// generation counts the kernel's transactions.
func generation(t *testing.T) uint32 {
	t.Helper()
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	replies, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
		Data:   make([]byte, 4), // struct nfgenmsg
	})
	if err != nil || len(replies) != 1 {
		t.Fatalf("%d replies: %v", len(replies), err)
	}
	ad, err := netlink.NewAttributeDecoder(replies[0].Data[4:])
	if err != nil {
		t.Fatal(err)
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		if ad.Type() == unix.NFTA_GEN_ID {
			return ad.Uint32()
		}
	}
	t.Fatal("no generation", ad.Err())
	return 0
}

// handles is a table with the kernel's numbers for chains and rules, which a
// replaced table has others of. What sets have inside is left out.
func handles(t *testing.T, table string) string {
	t.Helper()
	var out []string
	for line := range strings.Lines(run(t, "nft -a list table inet "+table)) {
		if strings.Contains(line, "# handle") && !strings.Contains(line, "return comment") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
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

// Members come and go: the sets become what a fresh table has, chains and rules
// stay the ones they were.
func TestMembersInPlace(t *testing.T) {
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
		return cfg
	}
	var saved [24]string
	for i := range saved {
		if i == 0 || i == 12 {
			run(t, "nft flush ruleset")
			put(t, next())
		}
		before := handles(t, host.NftTable)
		cfg := next()
		if log := putNoting(t, cfg); strings.Contains(log, "why=") {
			t.Errorf("step %d: %s", i, log)
		}
		if d := cmp.Diff(before, handles(t, host.NftTable)); d != "" {
			t.Errorf("step %d: chains changed: %s", i, d)
		}
		whole(t, cfg)
		have := listing(t)
		run(t, "nft flush ruleset")
		put(t, cfg)
		if d := cmp.Diff(listing(t), have); d != "" {
			t.Fatalf("step %d: in place differs from a fresh table: %s", i, d)
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
	put(t, joined(2, 3, 4))
	edge, way, gen := handles(t, host.NftTable), handles(t, host.NftHomeTable), generation(t)
	put(t, joined(2, 3, 4))
	if g := generation(t); g != gen {
		t.Errorf("the second Set: %d transactions", g-gen)
	}
	put(t, joined(2, 3, 4, 6))
	if g := generation(t); g != gen+1 {
		t.Errorf("a member: %d transactions", g-gen)
	}
	other := joined(2, 3, 4, 6)
	other.SNAT = true // another rule: the edge is replaced
	put(t, other)
	if d := cmp.Diff(way, handles(t, host.NftHomeTable)); d != "" {
		t.Errorf("another policy changed the way home: %s", d)
	}
	if handles(t, host.NftTable) == edge {
		t.Error("another rule changed nothing")
	}
	edge = handles(t, host.NftTable)
	other.Rules[0] = allow("100.64.0.9 fd7a::9 100.80.0.2 100.80.0.4 fd7a::2 fd7a::4", "192.168.77.50 fd77::50", 81, 81, protoTCP)
	put(t, other) // as many rights as before, but others
	if handles(t, host.NftTable) == edge || !strings.Contains(listing(t), "192.168.77.50 . 6 . 81") {
		t.Error("rights of a class changed in place, or not at all")
	}
	edge = handles(t, host.NftTable)
	other.Redirect.To++
	put(t, other)
	if handles(t, host.NftHomeTable) == way {
		t.Error("another port changed nothing")
	}
	way = handles(t, host.NftHomeTable)
	other.Redirect.Addrs = addrsOf("198.51.100.7", "2001:db8::1") // the WAN got another address
	put(t, other)
	if !strings.Contains(listing(t), "{ 198.51.100.7 }") {
		t.Error("the new WAN address is missing")
	}
	if d := cmp.Diff(edge+way, handles(t, host.NftTable)+handles(t, host.NftHomeTable)); d != "" {
		t.Errorf("another WAN address changed rules: %s", d)
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

// Where the sets cannot be changed in place, the table is replaced; where that
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

// A member that gets the rights of others keeps its key in the source map.
func TestAnotherClass(t *testing.T) {
	fresh(t)
	cfg := joined(2, 3, 7, 10)
	put(t, cfg)
	before, had := handles(t, host.NftTable), listing(t)
	rest := len(cfg.Rules[0].Srcs) - 2
	cfg.Rules[1].Srcs = append(cfg.Rules[1].Srcs, cfg.Rules[0].Srcs[rest:]...)
	cfg.Rules[0].Srcs = cfg.Rules[0].Srcs[:rest]
	put(t, cfg)
	want := strings.NewReplacer("100.80.0.10 : goto acl4_1", "100.80.0.10 : goto acl4_3", "fd7a::a : goto acl6_0", "fd7a::a : goto acl6_2")
	if d := cmp.Diff(unmarked(want.Replace(had)), unmarked(listing(t))); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(before, handles(t, host.NftTable)); d != "" {
		t.Errorf("chains changed: %s", d)
	}
}

// What others break in our tables, the next Set repairs, also if a member joins
// at the same time.
func TestRepair(t *testing.T) {
	fresh(t)
	for _, after := range []host.Firewall{joined(2, 3, 4), joined(2, 3, 4, 6)} {
		put(t, after)
		want := listing(t)
		for _, breakage := range []string{
			"nft flush ruleset", "nft delete table inet subnetd", "nft flush table inet subnetd",
			"nft flush chain inet subnetd forward", "nft flush chain inet subnetd from_mesh", "nft add rule inet subnetd to_mesh accept",
			"nft flush set inet subnetd own4", "nft delete element inet subnetd exposed4 {192.168.77.0/24}",
			"nft add element inet subnetd lans {wan0}", "nft flush map inet subnetd device6",
			"nft add element inet subnetd device4 {100.64.5.6:192.168.77.1}", "nft add rule inet subnetd to_device accept",
			"nft flush map inet subnetd src4", "nft flush set inet subnetd acl4_0",
			"nft add element inet subnetd acl4_0 {0.0.0.0/0 . tcp . 22}", "nft flush chain inet subnetd config",
			"nft delete table inet subnetd_home", "nft flush table inet subnetd_home", "nft flush chain inet subnetd_home output",
			"nft add element inet subnetd_home ports {22}", "nft flush set inet subnetd_home wan6",
			"nft add rule inet subnetd_home to_home accept",
			"nft delete table inet subnetd_port", "nft flush table inet subnetd_port", "nft flush chain inet subnetd_port out",
			"nft flush chain inet subnetd_port ours", "nft add rule inet subnetd_port in accept",
		} {
			put(t, joined(2, 3, 4))
			run(t, breakage)
			put(t, after)
			if d := cmp.Diff(want, listing(t)); d != "" {
				t.Errorf("after %s: %s", breakage, d)
			}
		}
	}
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

// The difference names whole ranges, and nothing that stays.
func TestDifference(t *testing.T) {
	v4 := families()[0]
	sources := func(classes ...string) set { // "range class"
		var in []source
		for _, c := range classes {
			r, class, _ := strings.Cut(c, " ")
			in = append(in, source{span(r), int(class[0] - '0')})
		}
		return sourceMap(v4, in)
	}
	text := func(elements []nftables.SetElement) string {
		var out []string
		for _, e := range elements {
			a, _ := netip.AddrFromSlice(e.Key)
			s := a.String()
			if e.IntervalEnd {
				s = ")" + s
			}
			if e.VerdictData != nil {
				s += ">" + e.VerdictData.Chain
			}
			out = append(out, s)
		}
		return strings.Join(out, " ")
	}
	low, high := "1.0.0.0-1.0.0.9 0", "1.0.0.10-1.0.0.19 1"
	for _, tt := range []struct {
		name       string
		have, want set
		gone, come string
	}{
		{"same", sources(low, high), sources(low, high), "", ""},
		{"first", sources(), sources(low), "", "1.0.0.0>acl4_0 )1.0.0.10"},
		{"last", sources(low), sources(), "1.0.0.0 )1.0.0.10", ""},
		{"adjacent", sources(low), sources(low, high), "", "1.0.0.10>acl4_1 )1.0.0.20"},
		{"wider", sources(low), sources("1.0.0.0-1.0.0.11 0"), "1.0.0.0 )1.0.0.10", "1.0.0.0>acl4_0 )1.0.0.12"},
		{"other class", sources(low, high), sources(low, "1.0.0.10-1.0.0.19 0"), "1.0.0.10 )1.0.0.20", "1.0.0.10>acl4_0 )1.0.0.20"},
		{"to the end", sources("255.0.0.0/9 0"), sources("255.0.0.0/8 0"), "255.0.0.0 )255.128.0.0", "255.0.0.0>acl4_0"},
	} {
		slices.Reverse(tt.have.values) // the kernel's order is not ours
		gone, come, err := tt.want.difference(tt.have.values)
		if err != nil || text(gone) != tt.gone || text(come) != tt.come {
			t.Errorf("%s: gone %q, come %q, %v", tt.name, text(gone), text(come), err)
		}
	}
	start := nftables.SetElement{Key: []byte{1, 0, 0, 0}, VerdictData: &expr.Verdict{}}
	end := nftables.SetElement{Key: []byte{2, 0, 0, 0}, IntervalEnd: true}
	later := nftables.SetElement{Key: []byte{3, 0, 0, 0}, VerdictData: &expr.Verdict{}}
	for _, half := range [][]nftables.SetElement{{end}, {start, later}, {start, end, end}, {start, end, later, later}} {
		if _, _, err := sources().difference(half); err == nil {
			t.Errorf("%v: half a range passed", half)
		}
	}
	if _, _, err := sources().difference([]nftables.SetElement{{Key: []byte{1, 0, 0, 0}, Val: []byte{1}}}); err == nil {
		t.Error("a verdict that is none passed")
	}
}
