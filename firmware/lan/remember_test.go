package lan

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRemember: after a power cut, what the provider gives again is as it was, and what it does not is gone.
func TestRemember(t *testing.T) {
	path := filepath.Join(t.TempDir(), "prefixes")
	if got := remembered(path, 0); len(got) != 0 {
		t.Errorf("of no file: %v", got)
	}
	other := prefix{net: old, preferred: time.Hour, valid: 2 * time.Hour}
	if err := remember(path, []prefix{at(time.Hour, 2*time.Hour), other}); err != nil {
		t.Fatal(err)
	}
	const boot = 20 * time.Second
	now := follow(remembered(path, boot), []prefix{at(time.Hour, 2*time.Hour)}, boot)
	if len(now) != 2 || now[0].net != pd || now[0].gone != 0 || now[1].net != old || now[1].gone != boot {
		t.Errorf("%+v", now)
	}
	ra := advertisement(home{mac: net.HardwareAddr{2, 0, 0, 0, 0, 1}, ula: ulaNet, resolver: first(ulaNet).Addr(), internet: true, prefixes: now}, boot)
	if preferred, valid := said(ra, old); preferred != 0 || valid != raGone {
		t.Errorf("what is gone is said to be so for %v, %v", preferred, valid)
	}
	lines := []string{"2001:db8:7::/64", "nonsense", "2001:db8:8::/56", "192.0.2.0/24", "fe80::/64", "ff02::/64"}
	for i := range 100 {
		lines = append(lines, netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 9, byte(i)}), 64).String())
	}
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := remembered(path, 0); len(got) != mostPrefixes || got[0].net.String() != "2001:db8:7::/64" || got[1].net.Addr().As16()[4] != 9 || got[0].gone == 0 {
		t.Errorf("of a damaged file: %v", got)
	}
}
