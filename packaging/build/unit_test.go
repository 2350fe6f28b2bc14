package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestUnits: systemd understands the units, and finds little that a hole in the daemon
// would give away. Its figure goes from 0 to 10, lower is better.
func TestUnits(t *testing.T) {
	dir := t.TempDir()
	var units []string
	for _, name := range []string{"subnetd.service", "subnetd-guard.service", "subnetd-web.socket"} {
		b, err := os.ReadFile(checkout + "/packaging/systemd/" + name)
		if err != nil {
			t.Fatal(err)
		}
		unit := filepath.Join(dir, name)
		if err := os.WriteFile(unit, []byte(strings.ReplaceAll(string(b), daemonPath, "/bin/true")), 0o600); err != nil {
			t.Fatal(err)
		}
		units = append(units, unit)
		if filepath.Ext(name) == ".socket" {
			continue // nothing runs in it
		}
		said := tool(t, "systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=30", unit)
		figure := regexp.MustCompile(`Overall exposure level for \S+ \S+`).FindString(said)
		if figure == "" {
			t.Errorf("no figure in\n%s", said)
		}
		t.Log(figure)
	}
	// It goes on over what it does not understand. The machine's own units are not our business.
	said, err := exec.Command("systemd-analyze", append([]string{"verify", "--man=no"}, units...)...).CombinedOutput()
	if err != nil || strings.Contains(string(said), "subnetd") {
		t.Errorf("verify: %v\n%s", err, said)
	}
}
