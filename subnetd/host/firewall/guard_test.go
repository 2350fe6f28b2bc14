package firewall

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"testing"

	"subnetd/subnetd/host"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// held is a guard whose rows have one of each kind: tv and its twin by an exit only, a
// laptop as if there were none, guests by an exit, a camera nowhere, and the rest of
// the home and the router itself by an exit.
func held() host.Guard {
	return host.Guard{Interface: "mesh0", LANs: []string{"lan0", "guest0"}, Sources: []host.ExitSource{
		{MACs: []string{"02:00:00:00:00:50", "02:00:00:00:00:51"}, Block: true},
		{MACs: []string{"02:00:00:00:00:60"}},
		{Interfaces: []string{"guest0", "lan0.7"}, Block: true},
		{MACs: []string{"02:00:00:00:00:70", "02:00:00:00:00:60"}, Block: true},
		{LAN: true, Router: true, Block: true},
	}}
}

// away is home with two exits, one of which it offers itself.
func away() host.Firewall {
	cfg := home()
	cfg.LANs = []string{"lan0", "guest0"}
	cfg.Sources = held().Sources
	cfg.Sources[0].Way, cfg.Sources[1].Way, cfg.Sources[2].Way, cfg.Sources[3].Way, cfg.Sources[4].Way = 0, -1, 1, 2, 0
	cfg.Exits = []host.ExitRoute{
		{Interface: "mesh-aa", Routes: prefixes("100.64.0.20/32", "fd7a::20/128", "10.8.0.0/24")},
		{Interface: "mesh-bb", Routes: prefixes("100.64.0.21/32", "fd7a::21/128")},
	}
	cfg.Internet = true
	cfg.Local = prefixes("192.168.77.0/24", "fd77::/64", "198.51.100.0/24", "2001:db8::/64")
	cfg.Names, cfg.PeerAPI = 5335, 8412
	return cfg
}

func putGuard(t *testing.T, g host.Guard) {
	t.Helper()
	if err := (Guard{New(silent)}).Set(t.Context(), g); err != nil {
		t.Fatal(err)
	}
}

func TestGuardGolden(t *testing.T) {
	fresh(t)
	for name, do := range map[string]func(){
		"guard":     func() { putGuard(t, held()) },
		"guard-all": func() { _ = (Guard{New(silent)}).SetAll(t.Context()) },
		"exits":     func() { put(t, away()) },
	} {
		t.Run(name, func(t *testing.T) {
			table := map[bool]string{true: host.NftTable, false: host.NftGuardTable}[name == "exits"]
			do()
			list := func() string { return run(t, "nft -nn list table inet "+table) }
			saved := list()
			got := unmarked(saved)
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
			before := ruleset(t)
			do()
			if d := cmp.Diff(before, ruleset(t)); d != "" {
				t.Errorf("the second time changed: %s", d)
			}
			run(t, "nft flush ruleset")
			load(t, saved)
			if d := cmp.Diff(saved, list()); d != "" {
				t.Errorf("saved and loaded: %s", d)
			}
			run(t, "nft flush ruleset")
		})
	}
}

// naive is the first source that fits a packet, by the words of host.ExitSource.
func naive(sources []host.ExitSource, mac, link string) int {
	return slices.IndexFunc(sources, func(s host.ExitSource) bool {
		return slices.Contains(s.MACs, mac) || slices.Contains(s.Interfaces, link)
	})
}

// Runs of maps decide as the list does, whoever is in it how often.
func TestBySourceOracle(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 0)) // the same in every run: what is red is so because of a change
	macs := []string{"02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03", "02:00:00:00:00:04"}
	links := []string{"lan0", "lan1", "guest0", "lan0.7"}
	some := func(all []string) (out []string) {
		for _, i := range rnd.Perm(len(all))[:rnd.IntN(3)] {
			out = append(out, all[i])
		}
		return out
	}
	for range 500 {
		var sources []host.ExitSource
		for i := range rnd.IntN(6) {
			sources = append(sources, host.ExitSource{MACs: some(macs), Interfaces: some(links), Way: i})
		}
		tab := &table{}
		rules, err := tab.bySource(sources, func(s host.ExitSource) *expr.Verdict { return &expr.Verdict{Chain: strconv.Itoa(s.Way)} })
		if err != nil {
			t.Fatal(err)
		}
		if runs := 2 * len(sources); len(rules) > runs {
			t.Fatalf("%d rules for %d sources", len(rules), len(sources))
		}
		for _, m := range macs {
			for _, l := range links {
				want := "-1"
				if i := naive(sources, m, l); i >= 0 {
					want = strconv.Itoa(sources[i].Way)
				}
				if got := decided(t, tab, rules, m, l); got != want {
					t.Fatalf("%s on %s: %s, want %s of %+v", m, l, got, want, sources)
				}
			}
		}
	}
}

// decided is what the rules say about a packet.
func decided(t *testing.T, tab *table, rules []match, mac, link string) string {
	t.Helper()
	hw, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		lookup := r[len(r)-1].(*expr.Lookup)
		i := slices.IndexFunc(tab.sets, func(s set) bool { return s.name == lookup.SetName })
		key := []byte(hw)
		if tab.sets[i].key == nftables.TypeIFName {
			key = ifnameKey(link)
		}
		for _, v := range tab.sets[i].values {
			if bytes.Equal(v.Key, key) {
				return v.VerdictData.Chain
			}
		}
	}
	return "-1"
}

// What cannot be is refused, and what was in force stays.
func TestGuardRefuses(t *testing.T) {
	fresh(t)
	putGuard(t, held())
	before := ruleset(t)
	for name, spoil := range map[string]func(*host.Guard){
		"a MAC":       func(g *host.Guard) { g.Sources[0].MACs = []string{"02:00:00:00:00"} },
		"a long MAC":  func(g *host.Guard) { g.Sources[0].MACs = []string{"02:00:00:00:00:00:00:01"} },
		"a name":      func(g *host.Guard) { g.Sources[2].Interfaces = []string{"a-name-beyond-15"} },
		"no name":     func(g *host.Guard) { g.LANs = []string{""} },
		"no mesh":     func(g *host.Guard) { g.Interface = "" },
		"before that": func(g *host.Guard) { g.Sources[0].Interfaces = []string{""} },
	} {
		g := held()
		spoil(&g)
		if err := (Guard{New(silent)}).Set(t.Context(), g); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (Guard{New(silent)}).Set(ctx, host.Guard{}); err == nil {
		t.Error("a cancelled Set did something")
	}
	if d := cmp.Diff(before, ruleset(t)); d != "" {
		t.Error(d)
	}
}

// The guard is brought in pieces that a kill may come between: whichever came last,
// the next Set ends with the same, and others' tables are not touched.
func TestGuardCutShort(t *testing.T) {
	fresh(t)
	load(t, foreign)
	theirs := ruleset(t)
	other := held()
	other.Sources = other.Sources[:1]
	tab, err := guarding(other)
	if err != nil {
		t.Fatal(err)
	}
	next, err := tab.named()
	if err != nil {
		t.Fatal(err)
	}
	putGuard(t, other)
	want := sorted(run(t, "nft -nn list table inet "+host.NftGuardTable))
	steps := []func(*named, *nftables.Conn, stock) error{(*named).make, (*named).turn, (*named).tidy}
	for last := range steps {
		putGuard(t, held())
		conn, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		there, err := tab.readStock(conn)
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range steps[:last+1] {
			if err := step(next, conn, there); err != nil {
				t.Fatal(err)
			}
		}
		_ = conn.CloseLasting()
		putGuard(t, other)
		if d := cmp.Diff(want, sorted(run(t, "nft -nn list table inet "+host.NftGuardTable))); d != "" {
			t.Errorf("cut after step %d: %s", last, d)
		}
	}
	if d := cmp.Diff(theirs, without(ruleset(t), host.NftGuardTable)); d != "" {
		t.Errorf("foreign tables: %s", d)
	}
}
