package route

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, v := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(v+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestSwitches(t *testing.T) {
	for _, tc := range []struct {
		name     string
		have, on map[string]string
	}{
		{
			name: "a host",
			have: map[string]string{forward4: "0", forward6: "0", "ipv6/conf/wan/accept_ra": "1", "ipv6/conf/lan/accept_ra": "0", "ipv6/conf/all/accept_ra": "1", "ipv6/conf/default/accept_ra": "1"},
			on:   map[string]string{forward4: "1", forward6: "1", "ipv6/conf/wan/accept_ra": "2", "ipv6/conf/lan/accept_ra": "0", "ipv6/conf/all/accept_ra": "1", "ipv6/conf/default/accept_ra": "1"},
		},
		{
			name: "a router",
			have: map[string]string{forward4: "1", forward6: "1", "ipv6/conf/wan/accept_ra": "1"},
			on:   map[string]string{forward4: "1", forward6: "1", "ipv6/conf/wan/accept_ra": "1"},
		},
		{name: "no IPv6", have: map[string]string{forward4: "0"}, on: map[string]string{forward4: "1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := switches{root: tree(t, tc.have), before: map[string]string{}}
			read := func() map[string]string {
				out := map[string]string{}
				for name := range tc.have {
					v, err := s.read(name)
					if err != nil {
						t.Fatal(err)
					}
					out[name] = v
				}
				return out
			}
			for range 2 {
				if err := s.set(true); err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(tc.on, read()); d != "" {
					t.Error(d)
				}
			}
			for range 2 {
				if err := s.set(false); err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(tc.have, read()); d != "" {
					t.Error(d)
				}
			}
		})
	}
}
