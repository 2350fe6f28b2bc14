package netns_test

import (
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// strangersRules are what others keep on the router; subnetd never touches them.
const strangersRules = `table inet stranger {
	chain forward { type filter hook forward priority filter; policy accept;
		counter comment "not subnetd's"
	}
}
`

// TestDownLeavesNoTrace: after `down` the router's network is what it was before, and what is foreign stayed.
func TestDownLeavesNoTrace(t *testing.T) {
	lab := netns.New(t)
	hs, home := lab.Headscale(), lab.Home(netns.Public)
	home.Router.NFT(strangersRules)
	home.Router.IP("rule add from 192.0.2.1 table 77", "route add 198.51.100.0/24 via 203.0.113.1 table 77")
	before := traces(t, home.Router)
	d := lab.Subnetd(home.Router, daemonConfig)
	d.UpKey(hs, hs.PreAuthKey("ana", netns.KeyOptions{}), "home")
	hs.ApproveRoutes("home", home.LAN4, home.LAN6)
	netns.Eventually(t, 10*time.Second, "the mesh is set up", func() error {
		now := traces(t, home.Router)
		if !strings.Contains(now, "mesh0") || !strings.Contains(now, "table inet subnetd") {
			return errors.New(now)
		}
		return nil
	})
	for range 2 { // saying it again changes nothing
		if out, err := d.CLI("down"); err != nil {
			t.Fatalf("down: %v\n%s", err, out)
		}
		if after := traces(t, home.Router); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	}
	if err := d.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if after := traces(t, home.Router); after != before {
		t.Errorf("before:\n%s\nafter the end:\n%s", before, after)
	}
}

// without takes out of rules what packets change in them: counters, and who is remembered in sets.
func without(rules string) string { return passing.ReplaceAllString(rules, "$1") }

var passing = regexp.MustCompile(`packets \d+ bytes \d+|(flags dynamic[^{}]*?)\s*elements = \{[^{}]*\}`)

// traces is everything of the router's network that subnetd could have changed.
func traces(t *testing.T, h *netns.Host) string {
	t.Helper()
	var all strings.Builder
	for _, line := range []string{
		"ip -o addr", "ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all", "nft list ruleset",
		"sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding net.ipv4.conf.all.rp_filter net.ipv4.conf.all.src_valid_mark",
	} {
		args := strings.Fields(line)
		out, err := h.Run(t.Context(), args[0], args[1:]...)
		if err != nil {
			t.Fatal(err)
		}
		all.WriteString("# " + line + "\n" + without(out) + "\n")
	}
	return all.String()
}

// TestFirewallFlushed: somebody flushes all rules of the router, as other software does at its start; ours are back
// soon, without the daemon being told, and the mesh goes on.
func TestFirewallFlushed(t *testing.T) {
	s := join(t, netns.Public, netns.Public)
	wantReach(t, s.phone.Host, s.home.LAN.Addr4)
	s.hs.SetPolicy(webOnly)
	ours := func() string {
		out, _ := s.home.Router.Run(t.Context(), "nft", "-s", "list", "table", "inet", "subnetd")
		// in some order: a table that took a policy after another has its sets in another one than a new table
		_, body, _ := strings.Cut(strings.TrimSuffix(without(out), "\n}\n"), "\n")
		blocks := strings.Split(body, "\n\n")
		slices.Sort(blocks)
		return strings.Join(blocks, "\n\n")
	}
	netns.Eventually(t, 10*time.Second, "the policy is in force", func() error {
		if now := ours(); !strings.Contains(now, "tcp . 80 ") || strings.Count(now, "set acl4-") != 1 { // or what was before is still there
			return errors.New(now)
		}
		return nil
	})
	before := ours()
	s.home.Router.NFT("flush ruleset")
	s.home.Router.IP("rule del priority 5180", "rule del priority 5181")
	start := time.Now()
	netns.Eventually(t, 15*time.Second, "our rules are back", func() error {
		if now := ours(); now != before {
			return errors.New(now)
		}
		out, err := s.home.Router.Run(t.Context(), "ip", "rule")
		if err == nil && !strings.Contains(out, "5180:") {
			err = errors.New(out)
		}
		return err
	})
	t.Logf("flushed rules are back after %v", time.Since(start).Round(time.Millisecond))
}
