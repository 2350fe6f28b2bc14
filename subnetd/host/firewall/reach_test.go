package firewall

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
)

// reached is what the kernel has counted: "from -> to" and how often.
func reached(t *testing.T) (out map[string]uint64, full bool) {
	t.Helper()
	all, full, err := New(slog.New(slog.DiscardHandler)).Reached(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out = map[string]uint64{}
	for _, r := range all {
		if r.Ago < 0 || r.Ago > time.Minute {
			t.Errorf("%v: %v ago", r, r.Ago)
		}
		out[fmt.Sprint(r.From, " -> ", r.To)] = r.Flows
	}
	return out, full
}

// Flows into the LAN are counted once each, refused ones never; another policy keeps
// the counts.
func TestReached(t *testing.T) {
	neighbourhood(t)
	if got, full := reached(t); len(got) > 0 || full {
		t.Errorf("without a table: %v, %v", got, full)
	}
	cfg := rented()
	put(t, cfg)
	serve(t, "tv", ":80", "tv")
	for _, tt := range []struct{ network, tv, lan, near, good, other string }{
		{"ip4:udp", "100.64.5.5", "192.168.77.50", "192.168.77.60", "100.64.0.9", "100.64.0.10"},
		{"ip6:udp", "fd7a::5:5", "fd77::50", "fd77::60", "fd7a::9", "fd7a::a"},
	} {
		for range 3 {
			call(t, "peer", tt.good, net.JoinHostPort(tt.tv, "80"))
		}
		tv := ear(t, "tv", tt.network)
		say(t, tt.good, net.JoinHostPort(tt.tv, "5001"), "refused")
		say(t, tt.good, net.JoinHostPort(tt.near, "80"), "refused")
		say(t, tt.other, net.JoinHostPort(tt.tv, "9"), "last")
		hear(t, tv)
		good, other := tt.good+" -> "+tt.lan, tt.other+" -> "+tt.lan
		got, full := reached(t)
		if got[good] != 3 || got[other] != 1 || full {
			t.Errorf("%v, %v", got, full)
		}
		more := cfg
		more.Rules = append(more.Rules[:2:2], allow("100.64.0.10 fd7a::a", "192.168.77.50 fd77::50", 9, 10, protoUDP))
		put(t, more)
		if now, _ := reached(t); now[good] != 3 || now[other] != 1 || len(now) != len(got) {
			t.Errorf("after another policy: %v, was %v", now, got)
		}
		put(t, cfg)
	}
	if got, _ := reached(t); len(got) != 4 {
		t.Errorf("%v", got)
	}
	put(t, host.Firewall{})
	if got, _ := reached(t); len(got) > 0 {
		t.Errorf("without the mesh: %v", got)
	}
}

// A member that knocks everywhere fills what there is, and no more: those behind it are
// let through uncounted.
func TestReachedIsBounded(t *testing.T) {
	neighbourhood(t)
	cfg := rented()
	cfg.Exposed = prefixes("192.168.64.0/19")
	cfg.Rules = []mesh.Rule{allow("100.64.0.9", "192.168.64.0/19", 9, 9, protoUDP), allow("100.64.0.10", "192.168.77.50", 80, 80, protoTCP)}
	put(t, cfg)
	run(t, "ip route add 192.168.64.0/20 dev lan0")
	to := netip.MustParseAddr("192.168.64.1")
	c := in(t, "peer", func() (*net.UDPConn, error) {
		return net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP("100.64.0.9")})
	})
	defer c.Close()
	for range maxReach + 500 {
		if _, err := c.WriteToUDPAddrPort([]byte("knock"), netip.AddrPortFrom(to, 9)); err != nil && !refused(err) {
			t.Fatal(err)
		}
		to = to.Next()
	}
	serve(t, "tv", ":80", "tv")
	if got := call(t, "peer", "100.64.0.10", "100.64.5.5:80"); got != "tv 192.168.77.1" {
		t.Errorf("behind the flood: %q", got)
	}
	if got, full := reached(t); len(got) != maxReach || !full {
		t.Errorf("%d pairs, full %v", len(got), full)
	}
}

// A set or a chain that somebody took away is put back with all the rest.
func TestMissing(t *testing.T) {
	for _, away := range []string{
		"nft flush chain inet subnetd postrouting; nft delete set inet subnetd $(nft list sets inet | grep -o 'reach4-[0-9a-f]*')",
		"nft delete chain inet subnetd postrouting",
	} {
		fresh(t)
		cfg := rented()
		put(t, cfg)
		if out, err := exec.Command("sh", "-ec", away).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", away, err, out)
		}
		if log := putNoting(t, cfg); !strings.Contains(log, " is missing") {
			t.Errorf("after %s: %s", away, log)
		}
		whole(t, cfg)
	}
}
