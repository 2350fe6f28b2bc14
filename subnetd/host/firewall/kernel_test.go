package firewall

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write the golden files")

var silent = slog.New(slog.DiscardHandler)

// run executes a command and fails the test if it fails.
func run(t *testing.T, line string) string {
	t.Helper()
	args := strings.Fields(line)
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

func ruleset(t *testing.T) string { return run(t, "nft -a list ruleset") }

// listing is our tables by the word of nft, without handles, which vary.
func listing(t *testing.T) string {
	tables := strings.Split(run(t, "nft list tables"), "\n")
	out := ""
	for _, name := range []string{host.NftTable, host.NftHomeTable, host.NftPortTable} {
		if slices.Contains(tables, "table inet "+name) {
			out += run(t, "nft -nn list table inet "+name)
		}
	}
	return out
}

// unmarked is a listing without digests, some of which are of expressions in the
// machine's byte order. Classes have numbers again, in their order.
func unmarked(listing string) string {
	listing = regexp.MustCompile(`return comment "[0-9a-f]{32}-[0-9a-f]{32}"`).ReplaceAllString(listing, `return comment "DIGEST"`)
	numbers, next := map[string]string{}, map[string]int{}
	for _, kind := range []string{`(set |map |@)`, `(chain |goto |jump )`} {
		listing = regexp.MustCompile(kind+`(\w+)(-[0-9a-f]{12})\b`).ReplaceAllStringFunc(listing, func(s string) string {
			lead, name, _ := strings.Cut(s, " ")
			if strings.HasPrefix(s, "@") {
				lead, name = "@", s[1:]
			} else {
				lead += " "
			}
			base := name[:len(name)-nameDigits-1]
			if base != "acl4" && base != "acl6" {
				return lead + base
			}
			if key := kind + name; numbers[key] == "" {
				numbers[key] = fmt.Sprintf("%s_%d", base, next[kind+base])
				next[kind+base]++
			}
			return lead + numbers[kind+name]
		})
	}
	return listing
}

func put(t *testing.T, cfg host.Firewall) {
	t.Helper()
	if err := New(silent).Set(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
}

// fresh empties the ruleset before and after a test.
func fresh(t *testing.T) {
	t.Helper()
	kernel(t)
	run(t, "nft flush ruleset")
	t.Cleanup(func() { run(t, "nft flush ruleset") })
}

// whole fails the test if what was just put does not look untouched.
func whole(t *testing.T, cfg host.Firewall) {
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
		if len(table.chains) == 0 {
			continue
		}
		n, err := table.named()
		if err != nil {
			t.Fatal(err)
		}
		if _, flaw, err := n.inspect(conn, true); err != nil || flaw != "" {
			t.Errorf("the table %s just loaded looks broken: %s %v", n.name, flaw, err)
		}
	}
}

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// span reads "a", "a-b" or "a/n".
func span(s string) mesh.Range {
	if p, err := netip.ParsePrefix(s); err == nil {
		return rangesOf([]netip.Prefix{p}, p.Addr().Is6())[0]
	}
	from, to, two := strings.Cut(s, "-")
	if !two {
		to = from
	}
	return mesh.Range{From: netip.MustParseAddr(from), To: netip.MustParseAddr(to)}
}

func allow(src, dst string, first, last uint16, protos ...uint8) mesh.Rule {
	r := mesh.Rule{Protos: protos}
	for _, s := range strings.Fields(src) {
		r.Srcs = append(r.Srcs, span(s))
	}
	for _, d := range strings.Fields(dst) {
		r.Dsts = append(r.Dsts, mesh.Dest{Range: span(d), Ports: mesh.PortRange{First: first, Last: last}})
	}
	return r
}

// addrsOf reads addresses.
func addrsOf(s ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// translations reads pairs "mesh=lan".
func translations(s ...string) []host.DeviceMap {
	var out []host.DeviceMap
	for _, p := range s {
		m, lan, _ := strings.Cut(p, "=")
		out = append(out, host.DeviceMap{Mesh: netip.MustParseAddr(m), LAN: netip.MustParseAddr(lan)})
	}
	return out
}

// public is the redirect of a coordinator with a public URL.
func public() host.Redirect {
	return host.Redirect{Addrs: addrsOf("198.51.100.1", "2001:db8::1"), Ports: []uint16{80, 443}, To: 8410}
}

// withDevices is home with a device at addresses of its own and a coordinator.
func withDevices() host.Firewall {
	cfg := home()
	cfg.Devices = translations("100.64.5.5=192.168.77.50", "fd7a::5:5=fd77::50")
	cfg.Redirect = public()
	return cfg
}

// home is a typical policy.
func home() host.Firewall {
	return host.Firewall{
		Interface: "mesh0",
		Own:       []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd7a::1")},
		Exposed:   prefixes("192.168.77.0/24", "fd77::/64"),
		Rules: []mesh.Rule{
			allow("100.64.0.9 fd7a::9", "192.168.77.50 fd77::50", 80, 80, protoTCP),
			allow("100.64.0.9 fd7a::9", "192.168.77.50 fd77::50", 5000, 5000, protoUDP),
		},
		LANs: []string{"lan0"}, MasqueradeLAN: true,
		Sites:     prefixes("10.9.0.0/24", "fd09::/64"),
		LocalLANs: prefixes("192.168.77.0/24", "fd77::/64"),
		Mesh:      prefixes("100.64.0.9/32", "100.64.0.10/32", "10.9.0.0/24", "fd7a::9/128", "fd7a::a/128", "fd09::/64"),
	}
}

func TestGolden(t *testing.T) {
	fresh(t)
	overlapping := home()
	overlapping.Rules = []mesh.Rule{
		allow("100.64.0.0-100.115.91.255 fd7a::/48", "192.168.77.0/24 fd77::/64", 0, 65535),
		allow("100.64.0.9", "192.168.77.0/25", 80, 443, protoTCP, protoSCTP),
		allow("0.0.0.0/0 ::/0", "192.168.77.7 fd77::7", 0, 65535, 47, protoTCP),
		allow("100.64.0.9-100.64.0.20", "255.255.255.255", 1, 65535),
	}
	overlapping.Exposed = prefixes("0.0.0.0/0", "::/0")
	snat := home()
	snat.SNAT, snat.MasqueradeLAN = true, false
	for name, cfg := range map[string]host.Firewall{
		"closed": {Interface: "mesh0"}, "home": home(), "open": open(), "overlapping": overlapping, "snat": snat,
		"devices": withDevices(), "front": fronted(), "redirect": {Redirect: public()},
		"share": {Share: host.PortShare{Outer: 41001, Inner: 7001}},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, "nft flush ruleset") // what is swapped keeps its place
			put(t, cfg)
			whole(t, cfg)
			got := unmarked(listing(t))
			path := "testdata/" + name + ".nft"
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Error(d)
			}
			// Owners save their ruleset as nft lists it, and load it at boot.
			saved := listing(t)
			run(t, "nft flush ruleset")
			load(t, saved)
			if d := cmp.Diff(saved, listing(t)); d != "" {
				t.Errorf("saved and loaded: %s", d)
			}
		})
	}
}

const foreign = `
table inet fw4 {
	set s { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 } }
	chain forward {
		type filter hook forward priority filter; policy accept;
		iifname "wan" counter drop comment "theirs"
	}
}
table ip subnetd {
	chain c {
		counter
	}
}
table ip6 nat {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		masquerade
	}
}
`

func load(t *testing.T, rules string) {
	t.Helper()
	c := exec.Command("nft", "-f", "-")
	c.Stdin = strings.NewReader(rules)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
}

// without cuts a table out of a ruleset.
func without(rules, table string) string {
	before, rest, found := strings.Cut(rules, "table inet "+table+" {")
	if !found {
		return rules
	}
	_, after, _ := strings.Cut(rest, "\n}\n")
	return before + after
}

// The same Set changes nothing, not even a handle; others' tables never change,
// whatever we do to ours; at the end nothing of ours is left.
func TestIdempotentAndForeign(t *testing.T) {
	fresh(t)
	load(t, foreign)
	theirs := ruleset(t)
	others := func() string {
		return without(without(without(ruleset(t), host.NftTable), host.NftHomeTable), host.NftPortTable)
	}
	put(t, host.Firewall{})
	if d := cmp.Diff(theirs, ruleset(t)); d != "" {
		t.Errorf("removal of nothing: %s", d)
	}
	put(t, home())
	first := ruleset(t)
	reordered := home() // equal in meaning, and from another process
	reordered.LANs = []string{"lan0", "lan0"}
	reordered.Sites = append(reordered.Sites, reordered.Sites[0])
	put(t, reordered)
	put(t, home())
	if d := cmp.Diff(first, ruleset(t)); d != "" {
		t.Errorf("the second Set changed: %s", d)
	}
	if d := cmp.Diff(theirs, others()); d != "" {
		t.Errorf("foreign tables: %s", d)
	}
	other := home()
	other.Rules = other.Rules[:1]
	put(t, other)
	if ruleset(t) == first {
		t.Error("a new policy changed nothing")
	}
	moved := withDevices() // the same number of everything, another address
	put(t, moved)
	before := ruleset(t)
	put(t, moved)
	if d := cmp.Diff(before, ruleset(t)); d != "" {
		t.Errorf("the second Set with devices changed: %s", d)
	}
	moved.Devices[0].LAN = moved.Devices[0].LAN.Next()
	put(t, moved)
	if ruleset(t) == before {
		t.Error("a device at another address changed nothing")
	}
	put(t, host.Firewall{Redirect: public()}) // the mesh is left, the coordinator stays
	if d := cmp.Diff(theirs, others()); d != "" {
		t.Errorf("foreign tables: %s", d)
	}
	put(t, host.Firewall{})
	if d := cmp.Diff(theirs, ruleset(t)); d != "" {
		t.Errorf("traces: %s", d)
	}
}

// A policy beyond the bounds leaves the one in force.
func TestTooBigKeepsOld(t *testing.T) {
	fresh(t)
	put(t, home())
	before := ruleset(t)
	big := home()
	for i := range maxClasses + 1 {
		a := netip.AddrFrom4([4]byte{100, 65, byte(i >> 8), byte(i)}).String()
		big.Rules = append(big.Rules, allow(a, "192.168.77.1", uint16(i), uint16(i)))
	}
	if err := New(silent).Set(t.Context(), big); err == nil {
		t.Error("no error")
	}
	if d := cmp.Diff(before, ruleset(t)); d != "" {
		t.Error(d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := New(silent).Set(ctx, host.Firewall{}); err == nil || ruleset(t) != before {
		t.Errorf("a cancelled Set: %v", err)
	}
}

// A thousand rules with as many sources are one transaction. The time is printed only.
func TestThousandRules(t *testing.T) {
	fresh(t)
	cfg := home()
	for i := range 1000 {
		a := netip.AddrFrom4([4]byte{100, 70, byte(i >> 7), byte(i << 1)}).String()
		cfg.Rules = append(cfg.Rules, allow(a, "192.168.77."+a[strings.LastIndexByte(a, '.')+1:], uint16(i), uint16(i)+9))
	}
	start := time.Now()
	put(t, cfg)
	t.Logf("1000 rules: %v", time.Since(start).Round(time.Millisecond))
	start = time.Now()
	put(t, cfg)
	t.Logf("again: %v", time.Since(start).Round(time.Millisecond))
	if n := strings.Count(listing(t), "chain acl4-"); n < 1000 {
		t.Errorf("%d classes", n)
	}
}

// A kernel without nftables or a caller without rights is one clear sentence.
func TestRefusals(t *testing.T) {
	for _, tc := range []struct {
		errno unix.Errno
		want  string
	}{
		{unix.EPERM, "root (CAP_NET_ADMIN) is needed"},
		{unix.EINVAL, "this kernel has no nftables"},
		{unix.EOPNOTSUPP, "this kernel has no nftables"},
	} {
		err := explain("list tables", fmt.Errorf("netlink receive: %w", tc.errno))
		if !errors.Is(err, tc.errno) || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v", tc.errno, err)
		}
	}
	f := New(silent)
	f.dial = func() (*nftables.Conn, error) { return nil, explain("open netlink", unix.EPERM) }
	if err := f.Set(t.Context(), home()); !errors.Is(err, unix.EPERM) {
		t.Errorf("without rights: %v", err)
	}
}
