package host

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The guard has what it takes to hold back, up to the last who is, and no more.
func TestGuard(t *testing.T) {
	tv := ExitSource{MACs: []string{"02:00:00:00:00:50"}, Way: 2, Block: true}
	pc := ExitSource{MACs: []string{"02:00:00:00:00:60"}, Way: -1}
	lan := ExitSource{LAN: true, Way: 1}
	kept := func(s ExitSource) ExitSource { s.Way = 0; return s }
	for _, tc := range []struct {
		name    string
		sources []ExitSource
		want    []ExitSource
	}{
		{name: "nobody"},
		{name: "nobody is blocked", sources: []ExitSource{pc, lan}},
		{name: "the last does not count", sources: []ExitSource{pc, tv, lan}, want: []ExitSource{kept(pc), kept(tv)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := append([]ExitSource(nil), tc.sources...)
			for _, link := range []string{"", DefaultInterface} {
				f := Firewall{Interface: link, LANs: []string{"br-lan"}, Sources: tc.sources, Exits: []ExitRoute{{Interface: "mesh-0"}}}
				want := Guard{}
				if tc.want != nil {
					want = Guard{Interface: DefaultInterface, LANs: f.LANs, Sources: tc.want}
				}
				got := f.Guard()
				if d := cmp.Diff(want, got); d != "" || got.Blocks() != (tc.want != nil) {
					t.Errorf("interface %q: %s", link, d)
				}
			}
			if d := cmp.Diff(before, tc.sources); d != "" {
				t.Errorf("the policy itself was changed: %s", d)
			}
		})
	}
}
