package firewall

import (
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// rented is the policy of a home whose tv has mesh addresses, and nothing else
// is exposed.
func rented() host.Firewall {
	cfg := home()
	cfg.Exposed = prefixes("192.168.77.50/32", "fd77::50/128")
	cfg.LocalLANs, cfg.Sites = nil, nil
	cfg.Mesh = prefixes("100.64.0.9/32", "100.64.0.10/32", "fd7a::9/128", "fd7a::a/128")
	cfg.SNAT = true
	cfg.Devices = translations("100.64.5.5=192.168.77.50", "fd7a::5:5=fd77::50", "100.64.5.6=192.168.77.60", "fd7a::5:6=fd77::60")
	cfg.Rules = []mesh.Rule{
		allow("100.64.0.9 100.64.5.6 fd7a::9 fd7a::5:6", "192.168.77.50 fd77::50", 80, 80, protoTCP),
		allow("100.64.0.9 100.64.5.6 fd7a::9 fd7a::5:6", "192.168.77.50 fd77::50", 5000, 5000, protoUDP, protoICMP, protoICMPv6),
		allow("100.64.0.10 fd7a::a", "192.168.77.50 fd77::50", 9, 9, protoUDP), // for "last"
	}
	cfg.Redirect = public()
	return cfg
}

// A device is reached at its mesh address, by what the access list allows, and
// sees the router as the sender, or the peer where the owner wants it so.
func TestDevicePackets(t *testing.T) {
	neighbourhood(t)
	cfg := rented()
	put(t, cfg)
	serve(t, "tv", ":80", "tv")
	for _, tt := range []struct {
		network                                       string
		tv, lan, near, good, other, liar, seen, world string
	}{
		{"ip4:udp", "100.64.5.5", "192.168.77.50", "192.168.77.60", "100.64.0.9", "100.64.0.10", "100.64.5.6", "192.168.77.1", "198.51.100.2"},
		{"ip6:udp", "fd7a::5:5", "fd77::50", "fd77::60", "fd7a::9", "fd7a::a", "fd7a::5:6", "fd77::1", "2001:db8::2"},
	} {
		t.Run(tt.network, func(t *testing.T) {
			if got, want := call(t, "peer", tt.good, net.JoinHostPort(tt.tv, "80")), "tv "+tt.seen; got != want {
				t.Errorf("by its mesh address: %q, want %q", got, want)
			}
			run(t, "ip netns exec peer ping -n -q -c 1 -W 5 -I "+tt.good+" "+tt.tv)
			tv, near := ear(t, "tv", tt.network), ear(t, "near", tt.network)
			flow := say(t, tt.good, net.JoinHostPort(tt.tv, "5000"), "allowed")
			say(t, tt.good, net.JoinHostPort(tt.tv, "5001"), "other port")
			say(t, tt.other, net.JoinHostPort(tt.tv, "5000"), "other peer")
			say(t, tt.other, net.JoinHostPort(tt.lan, "5000"), "other peer, LAN address")
			say(t, tt.good, net.JoinHostPort(tt.lan, "5001"), "other port, LAN address")
			say(t, tt.good, net.JoinHostPort(tt.near, "5000"), "a neighbour's LAN address")
			say(t, tt.liar, net.JoinHostPort(tt.tv, "5000"), "from a device's own address")
			say(t, tt.other, net.JoinHostPort(tt.tv, "9"), "last")
			if d := cmp.Diff([]string{"allowed 5000"}, hear(t, tv)); d != "" {
				t.Error(d)
			}
			closed := cfg
			closed.Rules = cfg.Rules[2:]
			put(t, closed)
			if _, err := io.WriteString(flow, "after withdrawal"); err != nil && !refused(err) {
				t.Fatal(err)
			}
			say(t, tt.other, net.JoinHostPort(tt.tv, "9"), "last")
			if d := cmp.Diff([]string(nil), hear(t, tv)); d != "" {
				t.Error(d)
			}
			in(t, "tv", func() (int, error) { // a neighbour's own word ends the silence there
				c, err := net.Dial("udp", net.JoinHostPort(tt.near, "9"))
				if err != nil {
					return 0, err
				}
				defer c.Close()
				return io.WriteString(c, "last")
			})
			if d := cmp.Diff([]string(nil), hear(t, near)); d != "" {
				t.Errorf("the neighbour: %s", d)
			}
			plain := cfg
			plain.SNAT = false
			put(t, plain)
			if got, want := call(t, "peer", tt.good, net.JoinHostPort(tt.tv, "80")), "tv "+tt.good; got != want {
				t.Errorf("without SNAT: %q, want %q", got, want)
			}
			// A neighbour gets there too, by the same name, with the answer through the router.
			if got, want := call(t, "near", "", net.JoinHostPort(tt.tv, "80")), "tv "+tt.seen; got != want {
				t.Errorf("a neighbour: %q, want %q", got, want)
			}
			// From another LAN to its LAN address nothing is translated.
			two := cfg
			two.LANs = []string{"lan0", "wan0"}
			put(t, two)
			if got, want := call(t, "world", "", net.JoinHostPort(tt.lan, "80")), "tv "+tt.world; got != want {
				t.Errorf("from another LAN: %q, want %q", got, want)
			}
			put(t, cfg)
		})
	}
}

// refused reports whether err is an ICMP error for a datagram before.
func refused(err error) bool { return strings.Contains(err.Error(), unix.ECONNREFUSED.Error()) }

// TCP 80 and 443 of the WAN are the coordinator's, before the mesh is joined and
// after it, for the world, the LAN and the router itself. All else stays.
func TestRedirectPackets(t *testing.T) {
	neighbourhood(t)
	serve(t, "", ":8410", "home")
	serve(t, "", "192.168.77.1:80", "luci")
	serve(t, "", "[fd77::1]:80", "luci")
	serve(t, "", ":22", "ssh")
	serve(t, "tv", ":443", "tv")
	for name, cfg := range map[string]host.Firewall{"before": {Redirect: public()}, "joined": rented()} {
		t.Run(name, func(t *testing.T) {
			put(t, cfg)
			for _, tt := range []struct{ ns, dst, want string }{
				{"world", "198.51.100.1:80", "home 198.51.100.2"},
				{"world", "198.51.100.1:443", "home 198.51.100.2"},
				{"world", "[2001:db8::1]:80", "home 2001:db8::2"},
				{"world", "[2001:db8::1]:443", "home 2001:db8::2"},
				{"world", "198.51.100.1:22", "ssh 198.51.100.2"},
				{"world", "[2001:db8::1]:22", "ssh 2001:db8::2"},
				{"world", "198.51.100.1:8410", "home 198.51.100.2"},
				{"near", "198.51.100.1:443", "home 192.168.77.60"},
				{"near", "[2001:db8::1]:443", "home fd77::60"},
				{"near", "192.168.77.1:80", "luci 192.168.77.60"},
				{"near", "[fd77::1]:80", "luci fd77::60"},
				{"", "198.51.100.1:443", "home 198.51.100.1"},
				{"", "[2001:db8::1]:443", "home 2001:db8::1"},
				{"", "192.168.77.1:80", "luci 192.168.77.1"},
			} {
				if got := call(t, tt.ns, "", tt.dst); got != tt.want {
					t.Errorf("%q to %s: %q, want %q", tt.ns, tt.dst, got, tt.want)
				}
			}
		})
	}
	// A port that the owner forwards is not ours to take, whoever loads last.
	theirs := `table inet theirs {
	chain dstnat {
		type nat hook prerouting priority dstnat; policy accept;
		iifname "wan0" meta nfproto ipv4 tcp dport 443 dnat ip to 192.168.77.50
	}
}`
	load(t, theirs)
	for _, last := range []func(){func() {}, func() { put(t, host.Firewall{}); put(t, rented()) }} {
		last()
		if got, want := call(t, "world", "", "198.51.100.1:443"), "tv 198.51.100.2"; got != want {
			t.Errorf("a forwarded port: %q, want %q", got, want)
		}
	}
}

// Pairs that are no translation within one family translate nothing, and two of
// one mesh address do not make the kernel refuse all.
func TestDeviceMap(t *testing.T) {
	pairs := translations("100.64.5.6=192.168.77.60", "100.64.5.5=192.168.77.51", "100.64.5.5=192.168.77.50",
		"fd7a::5:5=192.168.77.50", "100.64.5.7=fd77::50", "::ffff:100.64.5.8=::ffff:192.168.77.50", "fd7a::5:6=fd77::50")
	pairs = append(pairs, host.DeviceMap{}, host.DeviceMap{Mesh: netip.MustParseAddr("fd7a::5:9%x"), LAN: netip.MustParseAddr("fd77::50")})
	var got []string
	for _, f := range families() {
		for _, e := range deviceMap(f, pairs).values {
			m, _ := netip.AddrFromSlice(e.Key)
			lan, _ := netip.AddrFromSlice(e.Val)
			got = append(got, m.String()+"="+lan.String())
		}
	}
	want := []string{"100.64.5.5=192.168.77.50", "100.64.5.6=192.168.77.60", "fd7a::5:6=fd77::50"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	slices.Reverse(pairs)
	kernel(t)
	cfg := home()
	cfg.Devices = pairs
	fresh(t)
	put(t, cfg)
	whole(t, cfg)
}
