package netns_test

import (
	"errors"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// rulesOf is all of a router's nftables, with the kernel's numbers: what was deleted and added again has others.
func rulesOf(t *testing.T, h *netns.Host) string {
	t.Helper()
	out, err := h.Output(t.Context(), "nft", "-a", "list", "ruleset")
	if err != nil {
		t.Fatal(err)
	}
	return without(string(out))
}

// wantRulesUntouched ends a daemon and starts it again, and wants it not to have changed a single rule: neither before it
// heard of the coordinator nor after.
func wantRulesUntouched(t *testing.T, d *netns.Subnetd, how string, end, start func()) {
	t.Helper()
	before := rulesOf(t, d.Host)
	end()
	start()
	wantPhase(t, d, "joined")
	time.Sleep(3 * time.Second) // there is no event for what does not happen
	if now := rulesOf(t, d.Host); now != before {
		t.Errorf("%s: the rules are others:\n%s", how, difference(before, now))
	}
}

// TestRestartTouchesNothing: a daemon that is killed or stopped and started again in an unchanged mesh leaves every rule
// as it is, also right after a day on which much was changed: what it starts with is what was last in force.
func TestRestartTouchesNothing(t *testing.T) {
	h := joinHomes(t)
	wantApproved(t, h.northD)
	wantApproved(t, h.southD)
	wantReach(t, h.south.LAN, h.north.LAN.Addr4)
	d := h.northD
	for i := range 13 { // the last is narrow
		before := rulesOf(t, d.Host)
		h.hs.SetPolicy([]string{flowsOnly, allowAll}[i%2])
		netns.Eventually(t, 10*time.Second, "another policy is in force", func() error {
			if rulesOf(t, d.Host) == before {
				return errors.New("the rules are the same")
			}
			return nil
		})
	}
	wantRulesUntouched(t, d, "killed", d.Kill9, d.Start)
	wantRulesUntouched(t, d, "stopped", func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
	}, d.Start)
	h.hs.Kill()
	h.northD.Kill9()
	before := rulesOf(t, d.Host)
	h.northD.Start()
	wantReach(t, h.north.LAN, h.south.LAN.Addr4)
	if now := rulesOf(t, d.Host); now != before {
		t.Errorf("without the coordinator the rules are others:\n%s", difference(before, now))
	}
}

// TestHomeRestartTouchesNothing: so it is where the coordinator is in the router, and things on the LAN have addresses.
func TestHomeRestartTouchesNothing(t *testing.T) {
	s := openPolicyScene(t)
	wantReach(t, s.laptop.Host, s.printer...)
	wantRulesUntouched(t, s.mesh.Subnetd, "killed", s.mesh.Kill, s.mesh.Start)
	wantRulesUntouched(t, s.mesh.Subnetd, "stopped and started", s.mesh.Restart, func() {})
	wantReach(t, s.laptop.Host, s.printer...)
}
