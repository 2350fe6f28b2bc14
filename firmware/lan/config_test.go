package lan

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"subnetd/firmware/lan/leases"
)

func TestConfig(t *testing.T) {
	d := Default()
	if d.First.String() != "192.168.77.102" || d.Last.String() != "192.168.77.251" {
		t.Errorf("the usual pool is %v-%v", d.First, d.Last)
	}
	file := filepath.Join(t.TempDir(), "lan.toml")
	for text, wrong := range map[string]string{
		"":                        "",
		`address = "10.0.0.1/16"`: "",
		"address = \"192.168.5.1/24\"\npool = \"192.168.5.10-192.168.5.20\"\nleases = [\"02:00:00:00:00:01=192.168.5.9\"]\ndomain = \"home.arpa\"": "",
		`address = "192.168.5.1/28"`:                  "",
		`address = "192.168.5.0/24"`:                  "host",
		`address = "192.168.5.255/24"`:                "host",
		`address = "8.8.8.8/24"`:                      "private",
		`address = "fd00::1/64"`:                      "private",
		`address = "192.168.5.1/30"`:                  "private",
		`adress = "192.168.5.1/24"`:                   "",
		`pool = "192.168.77.20-192.168.77.10"`:        "pool",
		`pool = "192.168.77.20"`:                      "pool",
		`pool = "192.168.1.1-192.168.1.9"`:            "pool",
		`leases = ["02:00:00:00:00:01=192.168.1.1"]`:  "outside",
		`leases = ["02:00:00:00:00:01=192.168.77.1"]`: "twice",
		`leases = ["02:00:00:00:00:01"]`:              "leases",
		`leases = ["x=192.168.77.9"]`:                 "leases",
		`leases = ["02:00:00:00:00:01=192.168.77.5","02:00:00:00:00:01=192.168.77.6"]`: "twice",
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		c, err := ReadConfig(file)
		unknown := strings.HasPrefix(text, "adress")
		if (err != nil) != (wrong != "" || unknown) || err != nil && !strings.Contains(err.Error(), wrong) {
			t.Errorf("%s: %v", text, err)
		}
		if err != nil && c.Router != d.Router {
			t.Errorf("%s: the default is not in force", text)
		}
		if !hosts(c.Router, c.First) || !hosts(c.Router, c.Last) || c.Last.Less(c.First) {
			t.Errorf("%s: pool %v-%v", text, c.First, c.Last)
		}
	}
	if c, err := ReadConfig(filepath.Join(t.TempDir(), "none")); err != nil || c.Router != d.Router {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(file, []byte("address = \"192.168.5.1/24\"\nleases = [\"02:00:00:00:00:01=192.168.5.9\"]"), 0o644); err != nil {
		t.Fatal(err)
	}
	if c, _ := ReadConfig(file); c.Static[leases.MAC{2, 0, 0, 0, 0, 1}] != netip.MustParseAddr("192.168.5.9") {
		t.Errorf("static leases: %v", c.Static)
	}
}

func TestOwnNetwork(t *testing.T) {
	file := filepath.Join(t.TempDir(), "d", "ula")
	a, err := ownNetwork(file)
	if err != nil || a.Bits() != 64 || a.Addr().As16()[0] != 0xfd || a.Addr().As16()[6] != 0 {
		t.Fatalf("%v, %v", a, err)
	}
	if b, err := ownNetwork(file); err != nil || a != b {
		t.Errorf("it was %v, and is %v, %v", a, b, err)
	}
	if err := os.WriteFile(file, []byte("2001:db8::/64"), 0o644); err != nil {
		t.Fatal(err)
	}
	if b, err := ownNetwork(file); err != nil || b.Addr().As16()[0] != 0xfd {
		t.Errorf("of a damaged file: %v, %v", b, err)
	}
}
