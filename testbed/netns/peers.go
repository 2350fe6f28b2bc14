package netns

import (
	"os"
	"path/filepath"
	"testing"
)

// Versions of the strangers; testbed/peers/build.sh builds the same.
const (
	tailscaleVersion = "v1.102.5"
	headscaleVersion = "v0.29.0"
	legoVersion      = "v5.5.2"
	miniupnpdVersion = "debian"
)

// peer is the path of a stock program that testbed/peers/build.sh built; the test fails if there is none.
func peer(t testing.TB, name, version, program string) string {
	t.Helper()
	cache := os.Getenv("SUBNETD_CACHE")
	if cache == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			t.Fatalf("SUBNETD_CACHE is not set and there is no home: %v", err)
		}
		cache = filepath.Join(home, ".cache", "subnetd")
	}
	path := filepath.Join(cache, "peers", name+"-"+version, program)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("stock %s %s is missing (%v): run testbed/peers/build.sh, or make test", program, version, err)
	}
	return path
}

// Lego is the path of lego, who asks a certificate authority that speaks ACME for certificates.
func (l *Lab) Lego() string {
	l.t.Helper()
	return peer(l.t, "lego", legoVersion, "lego")
}

// repoRoot is the nearest folder above the test that holds a go.mod.
func repoRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("no go.mod above the test's folder")
		}
		dir = up
	}
}
