package wan

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "wan.json")
	if s, err := Load(file); err != nil || s.Interface != "" {
		t.Errorf("no file: %+v, %v", s, err)
	}
	s := State{Interface: "eth0", Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.9/24")}, Resolvers: []netip.Addr{netip.MustParseAddr("2001:db8::53")},
		Delegated: []Delegation{{netip.MustParsePrefix("2001:db8::/56"), time.Hour, 1 << 61}}}
	if err := Save(file, s); err != nil {
		t.Fatal(err)
	}
	got, err := Load(file)
	if d := cmp.Diff(s, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); err != nil || d != "" {
		t.Errorf("%v\n%s", err, d)
	}
	for _, bad := range []string{"", "{", `{"addresses":["x"]}`, string(make([]byte, most+1))} {
		if err := os.WriteFile(file, []byte(bad), 0o644); err != nil {
			t.Fatal(err)
		}
		if s, err := Load(file); err == nil {
			t.Errorf("%.20q: %+v", bad, s)
		}
	}
}

func TestNow(t *testing.T) {
	a := Now()
	if b := Now(); a <= 0 || b < a {
		t.Errorf("%v, then %v", a, b)
	}
}
