package netns_test

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// fw4 is what OpenWrt makes of its defaults, as far as input goes: nobody comes in by the WAN but by what is open.
func fw4(open string) string {
	return `table inet fw4
	flush table inet fw4
	table inet fw4 {
	chain input {
		type filter hook input priority filter; policy drop;
		iif "lo" accept
		ct state vmap { established : accept, related : accept }
		iifname { "lan0", "mesh0" } accept
		iifname "wan0" jump input_wan
		jump handle_reject
	}
	chain handle_reject {
		meta l4proto tcp reject with tcp reset
		reject with icmpx type port-unreachable
	}
	chain input_wan {
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } counter accept
		` + open + `
		iifname "wan0" counter jump handle_reject
	}
}
`
}

// TestHomeWANShut: where the firewall of the system shuts the WAN, the owner reads which ports, and what opens them; once he
// has done that, a stranger joins. A reload of that firewall that forgets it is told, too.
func TestHomeWANShut(t *testing.T) {
	s := openHome(t, netns.HomeOptions{})
	status := func(want bool, what string) string {
		t.Helper()
		out := ""
		netns.Eventually(t, 10*time.Second, what, func() error {
			out = s.mesh.Must("status")
			if strings.Contains(out, "drops what the internet sends") != want {
				return errors.New(out)
			}
			return nil
		})
		return out
	}
	status(false, "nothing is shut")
	s.home.Router.NFT(fw4(""))
	shut := time.Now()
	told := status(true, "the owner reads what is shut")
	t.Logf("%v after it was shut:\n%s", time.Since(shut).Round(time.Millisecond), told)
	coordinator := netip.AddrPortFrom(s.home.Router.Addr4, 80)
	phone := s.client("phone", netns.Easy, netns.StockVersions()[0])
	if letsIn(phone.Host, coordinator) {
		t.Fatal("it is open: the test proves nothing")
	}

	ports := map[string]string{}
	for _, m := range regexp.MustCompile(`firewall\.subnetd_(udp|tcp)\.dest_port='([0-9 ]+)'`).FindAllStringSubmatch(told, -1) {
		ports[m[1]] = strings.ReplaceAll(m[2], " ", ", ")
	}
	if !strings.Contains(told, "uci set firewall.subnetd_udp.src=wan") || len(ports) != 2 {
		t.Fatalf("status tells no line for UCI: %v", ports)
	}
	s.home.Router.NFT(fw4(fmt.Sprintf("udp dport { %s } counter accept\ntcp dport { %s } counter accept", ports["udp"], ports["tcp"]))) // as it says
	status(false, "what was told opens it")
	s.letIn(phone)
	wantReach(t, phone.Host, s.addrs("home")...)

	s.home.Router.NFT(fw4(""))
	status(true, "it is shut again")
	wantReach(t, phone.Host, s.addrs("home")...) // who is in stays in
	s.home.Router.NFT("delete table inet fw4\n" + `table inet filter { chain input { type filter hook input priority 0; policy drop;
		ct state established,related accept; iifname { lo, lan0, mesh0 } accept; meta l4proto { icmp, ipv6-icmp } accept; }; }`)
	var line string
	netns.Eventually(t, 10*time.Second, "the owner reads a line for nft", func() error {
		m := regexp.MustCompile(`(?m)boot: (nft insert rule inet filter .*)$`).FindStringSubmatch(s.mesh.Must("status"))
		if m == nil {
			return errors.New("there is none")
		}
		line = m[1]
		return nil
	})
	if out, err := s.home.Router.Run(t.Context(), "sh", "-c", line); err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	status(false, "that line opens it")
	if !letsIn(phone.Host, coordinator) {
		t.Error("the coordinator is not reached")
	}
}
