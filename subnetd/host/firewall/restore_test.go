package firewall

import (
	"context"
	"strings"
	"testing"

	"subnetd/subnetd/host"

	"github.com/google/go-cmp/cmp"
)

// What others took away is back without a plan. That they were there is said once, of what we do ourselves nothing, and what
// was never there or is not wanted any more does not come.
func TestRestore(t *testing.T) {
	fresh(t)
	load(t, foreign)
	f := New(silent)
	all := func() string {
		guard := ""
		if strings.Contains(run(t, "nft list tables"), host.NftGuardTable) {
			guard = run(t, "nft -nn list table inet "+host.NftGuardTable)
		}
		return sorted(guard + listing(t))
	}
	restore := func(what string, want bool) {
		t.Helper()
		before := generation(t)
		if others, err := f.Restore(t.Context()); err != nil || others != want {
			t.Errorf("%s: others were there %v, want %v; %v", what, others, want, err)
		}
		if !want && generation(t) != before {
			t.Errorf("%s: it changed something", what)
		}
	}
	bring := func(g host.Guard, cfg host.Firewall) {
		t.Helper()
		if err := (Guard{f}).Set(t.Context(), g); err != nil {
			t.Fatal(err)
		}
		if err := f.Set(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	restore("nothing is wanted", false)
	bring(held(), home())
	want := all()
	restore("it was us", false)

	run(t, "nft flush ruleset")
	load(t, foreign)
	restore("flushed", true)
	if d := cmp.Diff(want, all()); d != "" {
		t.Error(d)
	}
	restore("it is restored", false)
	left := generation(t)
	bring(held(), home())
	if generation(t) != left {
		t.Error("what was restored was loaded again")
	}

	run(t, "nft delete table inet "+host.NftGuardTable)
	restore("the kill switch deleted", true)
	run(t, "nft add table inet stranger")
	restore("a table that is not ours", true)
	restore("which was said", false)
	run(t, "nft flush chain inet "+host.NftTable+" forward")
	restore("a chain flushed", true)
	if d := cmp.Diff(want, all()); d != "" {
		t.Error(d)
	}
	bring(host.Guard{}, host.Firewall{})
	restore("it was us who took all away", false)
	run(t, "nft delete table inet stranger")
	restore("there is nothing of ours to lose", true)
	if got := strings.TrimSpace(all()); got != "" {
		t.Errorf("what is not wanted came back:\n%s", got)
	}
}

// What was cut short is done by whoever comes next.
func TestRestoreCutShort(t *testing.T) {
	fresh(t)
	f := New(silent)
	if err := f.Set(t.Context(), home()); err != nil {
		t.Fatal(err)
	}
	want := listing(t)
	run(t, "nft flush ruleset")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Restore(ctx); err == nil || listing(t) != "" {
		t.Errorf("after its end: %v", err)
	}
	if others, err := f.Restore(t.Context()); err != nil || !others {
		t.Errorf("others were there %v, want true; %v", others, err)
	}
	if d := cmp.Diff(sorted(want), sorted(listing(t))); d != "" {
		t.Error(d)
	}
}
