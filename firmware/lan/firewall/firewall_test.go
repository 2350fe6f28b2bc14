package firewall

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"subnetd/firmware/place"

	"github.com/google/go-cmp/cmp"
)

func TestMain(m *testing.M) { os.Exit(place.Main(m)) }

// table is what nft reads of it, without counts.
func table(t *testing.T) string {
	t.Helper()
	var out []string
	for line := range strings.Lines(place.Command(t, "nft", "--stateless", "list", "table", "inet", Name)) {
		out = append(out, strings.TrimSpace(line))
	}
	return strings.Join(out, "\n")
}

const golden = `table inet appliance {
chain input {
type filter hook input priority filter; policy drop;
ct state established,related counter accept
ct state invalid drop
iifname "lo" counter accept
iifname "br-lan" counter accept
iifname "mesh*" counter accept
icmpv6 type nd-router-solicit counter accept
icmpv6 type nd-router-advert counter accept
icmpv6 type nd-neighbor-solicit counter accept
icmpv6 type nd-neighbor-advert counter accept
icmpv6 type mld-listener-query counter accept
icmpv6 type mld-listener-report counter accept
icmpv6 type mld-listener-done counter accept
icmpv6 type mld2-listener-report counter accept
icmpv6 type packet-too-big counter accept
icmp type echo-request limit rate 10/second burst 20 packets counter accept
icmpv6 type echo-request limit rate 10/second burst 20 packets counter accept
iifname "eth0" udp dport 68 counter accept
iifname "eth0" ip6 saddr fe80::/10 udp dport 546 counter accept
iifname "eth0" meta l4proto igmp counter accept
iifname "eth0" udp dport 41641 counter accept
iifname "eth0" udp dport 3478 counter accept
iifname "eth0" tcp dport 8410 counter accept
}

chain forward {
type filter hook forward priority filter; policy drop;
oifname "eth0" tcp flags syn / syn,rst tcp option maxseg size set rt mtu
ct state established,related counter accept
ct state invalid drop
iifname "br-lan" oifname "eth0" counter accept
iifname "mesh*" oifname "eth0" counter accept
iifname "br-lan" oifname "mesh*" counter accept
iifname "mesh*" oifname "br-lan" counter accept
iifname "mesh*" oifname "mesh*" counter accept
iifname "br-lan" oifname "br-lan" counter accept
}

chain postrouting {
type nat hook postrouting priority srcnat; policy accept;
oifname "eth0" ip saddr 192.168.77.0/24 masquerade
oifname "eth0" ip saddr 100.64.0.0/10 masquerade
}
}
`

func TestTable(t *testing.T) {
	place.Need(t, "nft")
	c := Config{WAN: "eth0", LAN: "br-lan", Mesh: "mesh", Home: netip.MustParsePrefix("192.168.77.1/24"), UDP: []uint16{41641, 3478}, TCP: []uint16{8410}}
	for range 2 {
		if err := Set(c); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(strings.TrimSpace(golden), strings.TrimSpace(table(t))); d != "" {
			t.Error(d)
		}
	}
	if err := Set(Config{LAN: "br-lan", Mesh: "mesh", Home: c.Home}); err != nil {
		t.Fatal(err)
	}
	if text := table(t); strings.Contains(text, "eth0") || strings.Contains(text, "masquerade") || strings.Count(text, "policy drop") != 2 {
		t.Errorf("without a WAN:\n%s", text)
	}
}
