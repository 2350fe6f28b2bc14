package config

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestServing(t *testing.T) {
	l := lanOf(t, []string{"tv=" + mac1, "nas=" + mac2}, nil)
	for _, w := range []Served{{"tv", "http", 80}, {"nas", "https", 5001}, {"tv", "http", 8080}} {
		next, err := l.Serving(w)
		if err != nil {
			t.Fatal(err)
		}
		l = next
	}
	says := func(l LAN, want ...string) {
		t.Helper()
		if diff := cmp.Diff(append([]string{}, want...), written(l.Web)); diff != "" {
			t.Error(diff)
		}
	}
	says(l, "nas=https:5001", "tv=http:8080")
	if s, ok := l.ServedAs("NAS"); !ok || s.Target() != "https:5001" {
		t.Errorf("%v", s)
	}
	if _, ok := l.ServedAs(""); ok {
		t.Error("what has no name is served")
	}
	called, err := l.Calling(mac1, "screen")
	if err != nil {
		t.Fatal(err)
	}
	says(called, "nas=https:5001", "screen=http:8080")
	exposed, err := called.Exposing(device(t, "box="+mac2+" tcp/443"), nil)
	if err != nil {
		t.Fatal(err)
	}
	says(exposed, "box=https:5001", "screen=http:8080")
	nameless, err := exposed.Exposing(device(t, mac1), nil)
	if err != nil {
		t.Fatal(err)
	}
	says(nameless, "box=https:5001")
	says(nameless.NotServing("box"))
	says(l, "nas=https:5001", "tv=http:8080") // the wishes in force did not change
	if diff := cmp.Diff(map[string]any{"web": []string{}}, l.Changes(l.NotServing("tv").NotServing("nas"))); diff != "" {
		t.Error(diff)
	}
}
