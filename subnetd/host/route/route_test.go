package route

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"subnetd/subnetd/host"

	"github.com/google/go-cmp/cmp"
)

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

// world makes lo up and an interface that stays until the test ends.
func world(t *testing.T, names ...string) {
	t.Helper()
	run(t, "ip link set lo up")
	for _, n := range names {
		run(t, "ip tuntap add dev "+n+" mode tun")
		t.Cleanup(func() { _ = exec.Command("ip", "link", "del", n).Run() })
	}
}

// everything is the namespace as `ip` sees it: addresses, all tables, rules.
func everything(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, f := range []string{"-4", "-6"} {
		b.WriteString(run(t, "ip "+f+" -o addr"))
		b.WriteString(run(t, "ip "+f+" rule"))
		b.WriteString(run(t, "ip "+f+" route show table all"))
	}
	for _, s := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/lo/accept_ra"} {
		v, err := os.ReadFile("/proc/sys/net/" + s)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %s", s, v)
	}
	return b.String()
}

type ipLink struct {
	MTU   int      `json:"mtu"`
	Flags []string `json:"flags"`
	Addrs []struct {
		Local string `json:"local"`
		Bits  int    `json:"prefixlen"`
		Scope string `json:"scope"`
	} `json:"addr_info"`
}

func askIP[T any](t *testing.T, args string) []T {
	t.Helper()
	out, err := exec.Command("ip", strings.Fields("-j "+args)...).Output()
	if err != nil { // an unknown table is an empty table
		return nil
	}
	var v []T
	if len(bytes.TrimSpace(out)) > 0 {
		if err := json.Unmarshal(out, &v); err != nil {
			t.Fatalf("ip %s: %v", args, err)
		}
	}
	return v
}

// seen is what the kernel has of a host.Route, by the word of `ip`.
func seen(t *testing.T, name string) host.Route {
	t.Helper()
	var r host.Route
	for _, l := range askIP[ipLink](t, "addr show dev "+name) {
		for _, a := range l.Addrs {
			if a.Scope != "link" {
				r.Interface = name
				r.Addresses = append(r.Addresses, netip.PrefixFrom(netip.MustParseAddr(a.Local), a.Bits))
			}
		}
	}
	for _, f := range []string{"-4", "-6"} {
		type route struct{ Dst, Dev string }
		for _, x := range askIP[route](t, fmt.Sprintf("%s route show table %d", f, host.RouteTable)) {
			if x.Dev != name {
				t.Errorf("route over %s: %v", x.Dev, x)
			}
			r.Routes = append(r.Routes, parse(f, x.Dst))
		}
	}
	v, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		t.Fatal(err)
	}
	v6, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/forwarding")
	if err != nil {
		t.Fatal(err)
	}
	if string(v) != string(v6) {
		t.Errorf("forwarding v4 %s v6 %s", v, v6)
	}
	r.Forward = strings.TrimSpace(string(v)) == "1"
	return sorted(r)
}

func parse(f, s string) netip.Prefix {
	if s == "default" {
		return map[string]netip.Prefix{"-4": netip.MustParsePrefix("0.0.0.0/0"), "-6": netip.MustParsePrefix("::/0")}[f]
	}
	if !strings.Contains(s, "/") {
		a := netip.MustParseAddr(s)
		return netip.PrefixFrom(a, a.BitLen())
	}
	return netip.MustParsePrefix(s)
}

func sorted(r host.Route) host.Route {
	order := func(a, b netip.Prefix) int { return a.Compare(b) }
	r.Addresses, r.Routes = slices.Clone(r.Addresses), slices.Clone(r.Routes)
	slices.SortFunc(r.Addresses, order)
	slices.SortFunc(r.Routes, order)
	return r
}

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

var compare = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func home() host.Route {
	return host.Route{
		Interface: "m0", Forward: true,
		Addresses: prefixes("100.64.0.7/32", "fd7a:115c:a1e0::7/128"),
		Routes:    prefixes("100.64.0.0/10", "192.168.7.0/24", "0.0.0.0/0", "fd7a:115c:a1e0::/48", "::/0"),
	}
}

func set(t *testing.T, r *Router, c host.Route) int {
	t.Helper()
	before := r.changes
	if err := r.Set(t.Context(), c); err != nil {
		t.Fatalf("Set: %v", err)
	}
	return r.changes - before
}

func TestSetTwiceAndRemove(t *testing.T) {
	world(t, "m0")
	clean := everything(t)
	r := New(slog.New(slog.DiscardHandler))
	set(t, r, home())
	if d := cmp.Diff(sorted(home()), seen(t, "m0"), compare); d != "" {
		t.Error(d)
	}
	link := askIP[ipLink](t, "link show dev m0")[0]
	if link.MTU != host.MTU || !slices.Contains(link.Flags, "UP") {
		t.Errorf("link %+v", link)
	}
	checkRules(t, true)
	if n := set(t, r, home()); n != 0 {
		t.Errorf("the second Set sent %d changes", n)
	}
	if n := set(t, New(slog.New(slog.DiscardHandler)), home()); n != 0 {
		t.Errorf("Set of a new Router sent %d changes", n)
	}
	set(t, r, host.Route{})
	checkRules(t, false)
	run(t, "ip link set m0 down")
	if d := cmp.Diff(clean, everything(t)); d != "" {
		t.Errorf("traces: %s", d)
	}
	if n := set(t, r, host.Route{}); n != 0 {
		t.Errorf("the second removal sent %d changes", n)
	}
}

func checkRules(t *testing.T, want bool) {
	t.Helper()
	type rule struct {
		Priority       int
		FwMark, FwMask string
		Table, Src     string
	}
	for _, f := range []string{"-4", "-6"} {
		var got []rule
		for _, r := range askIP[rule](t, f+" -N rule") {
			if r.Priority == host.RuleMark || r.Priority == host.RuleMesh {
				got = append(got, r)
			}
		}
		var ours []rule
		if want {
			ours = []rule{
				{Priority: host.RuleMark, FwMark: fmt.Sprintf("%#x", host.Mark), FwMask: fmt.Sprintf("%#x", host.MarkMask), Table: "254", Src: "all"},
				{Priority: host.RuleMesh, Table: fmt.Sprint(host.RouteTable), Src: "all"},
			}
		}
		if d := cmp.Diff(ours, got); d != "" {
			t.Errorf("rules %s: %s", f, d)
		}
	}
}

// What somebody else set, even with our numbers, stays as it was.
func TestForeignStays(t *testing.T) {
	world(t, "m0", "other0")
	run(t, "ip link set other0 up")
	run(t, "ip addr add 10.9.0.1/24 dev other0")
	for _, f := range []string{"-4", "-6"} {
		for _, rule := range []string{
			"from all fwmark 0x80000/0xff0000 table main priority 5210",
			"iif lo table 52 priority 5270",
			"dport 53 table main priority 5180",
			"fwmark 0x5 table main priority 5180",
			"table main suppress_prefixlength 0 priority 5181",
		} {
			run(t, "ip "+f+" rule add "+rule)
			t.Cleanup(func() { run(t, "ip "+f+" rule del "+rule) })
		}
	}
	run(t, "ip route add 10.10.0.0/16 dev other0 table 52")
	run(t, "ip -6 route add fd00:10::/32 dev other0")
	clean := everything(t)
	r := New(slog.New(slog.DiscardHandler))
	set(t, r, home())
	run(t, "ip addr add 10.8.0.1/24 dev m0") // a stranger's address on our interface
	set(t, r, home())
	if d := cmp.Diff(sorted(home()), seen(t, "m0"), compare); d != "" {
		t.Error(d)
	}
	set(t, r, host.Route{})
	run(t, "ip link set m0 down")
	if d := cmp.Diff(clean, everything(t)); d != "" {
		t.Errorf("foreign state changed: %s", d)
	}
}

// A Router of a new process finds and removes what its predecessor left, and
// moves everything when the interface's name changes.
func TestRestartAndRename(t *testing.T) {
	world(t, "m0", "m1")
	clean := everything(t)
	quiet := slog.New(slog.DiscardHandler)
	first := New(quiet)
	set(t, first, home())
	moved := home()
	moved.Interface = "m1"
	set(t, first, moved)
	if d := cmp.Diff(sorted(moved), seen(t, "m1"), compare); d != "" {
		t.Error(d)
	}
	if got := seenAddresses(t, "m0"); len(got) != 0 {
		t.Errorf("m0 kept %v", got)
	}
	moved.Forward = false // its switches are the first Router's to put back
	set(t, first, moved)
	set(t, New(quiet), host.Route{})
	run(t, "ip link set m0 down")
	run(t, "ip link set m1 down")
	if d := cmp.Diff(clean, everything(t)); d != "" {
		t.Errorf("traces: %s", d)
	}
}

func seenAddresses(t *testing.T, name string) []string {
	var out []string
	for _, l := range askIP[ipLink](t, "addr show dev "+name) {
		for _, a := range l.Addrs {
			if a.Scope != "link" {
				out = append(out, a.Local)
			}
		}
	}
	return out
}

func TestNoInterface(t *testing.T) {
	world(t)
	r := New(slog.New(slog.DiscardHandler))
	if err := r.Set(t.Context(), home()); err == nil || r.changes != 0 {
		t.Errorf("error %v, %d changes", err, r.changes)
	}
}

// A random walk over configs and disturbances: after each Set the kernel has
// exactly the last config, and a second Set has nothing to do.
func TestWalk(t *testing.T) {
	world(t, "m0")
	rnd := rand.New(rand.NewPCG(1, 0)) // the same in every run: what is red is so because of a change
	addrs := prefixes("100.64.0.1/32", "100.64.0.2/32", "fd7a:115c:a1e0::1/128", "fd7a:115c:a1e0::2/128")
	routes := prefixes("0.0.0.0/0", "100.64.0.0/10", "10.0.0.0/8", "10.0.0.0/9", "192.168.1.0/24", "1.2.3.4/32",
		"::/0", "fd00::/8", "fd7a:115c:a1e0::/48", "fd7a:115c:a1e0::9/128")
	some := func(all []netip.Prefix) []netip.Prefix {
		var out []netip.Prefix
		for _, i := range rnd.Perm(len(all)) {
			if rnd.IntN(2) == 0 {
				out = append(out, all[i])
			}
		}
		return out
	}
	disturb := []string{
		"ip link set m0 down", "ip addr flush dev m0 scope global", "ip link set m0 mtu 1400", "ip rule del priority 5181",
		fmt.Sprintf("ip route flush table %d", host.RouteTable), fmt.Sprintf("ip route add blackhole 9.9.9.9 table %d", host.RouteTable),
	}
	r := New(slog.New(slog.DiscardHandler))
	for range 40 {
		want := host.Route{Interface: "m0", Addresses: some(addrs), Routes: some(routes), Forward: rnd.IntN(2) == 0}
		set(t, r, want)
		if rnd.IntN(3) == 0 { // whatever it breaks, and even if it fails
			args := strings.Fields(disturb[rnd.IntN(len(disturb))])
			_ = exec.Command(args[0], args[1:]...).Run()
			set(t, r, want)
		}
		got := seen(t, "m0")
		got.Interface = "m0"
		if d := cmp.Diff(sorted(want), got, compare); d != "" {
			t.Fatal(d)
		}
		checkRules(t, true)
		if n := set(t, r, want); n != 0 {
			t.Fatalf("second Set of %+v sent %d changes", want, n)
		}
	}
	set(t, r, host.Route{})
	checkRules(t, false)
}
