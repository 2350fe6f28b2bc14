package plan

import (
	"net/netip"
	"strings"
	"testing"

	"subnetd/subnetd/config"
	"subnetd/subnetd/host"

	"github.com/google/go-cmp/cmp"
)

// twoSided is a router with a LAN and a WAN of these addresses.
func twoSided(wan ...string) host.Facts {
	f := host.Facts{
		Interfaces: []host.Interface{
			{Index: 2, Name: "wan0", Up: true},
			{Index: 3, Name: "br-lan", Up: true, Bridge: true, Addrs: []netip.Prefix{
				netip.MustParsePrefix("192.168.77.1/24"), netip.MustParsePrefix("fd77:77::1/64"), netip.MustParsePrefix("fe80::1/64")}},
		},
		Defaults: []host.Default{{Interface: "wan0"}},
	}
	for _, a := range wan {
		f.Interfaces[0].Addrs = append(f.Interfaces[0].Addrs, netip.MustParsePrefix(a))
	}
	return f
}

func at(host string, port uint16, v4, v6 string) RelayAt {
	r := RelayAt{Host: host, Port: port}
	r.V4, _ = netip.ParseAddr(v4)
	r.V6, _ = netip.ParseAddr(v6)
	return r
}

func TestReachOf(t *testing.T) {
	public := twoSided("203.0.113.20/24", "2001:db8::20/64")
	inside := at("relay.mesh.internal", 8410, "203.0.113.20", "2001:db8::20")
	for name, tt := range map[string]struct {
		url, listen string
		facts       host.Facts
		want        Reach
		missing     string // a word of each sentence, in order
	}{
		"nothing said: at home by a private address": {
			facts: public,
			want: Reach{URL: "http://192.168.77.1:8410", Inside: inside,
				Relay: at("relay.mesh.internal", 8410, "192.168.77.1", "fd77:77::1")},
			missing: "home.url",
		},
		"a name": {
			url: "http://home.example/", facts: public,
			want: Reach{URL: "http://home.example", Outside: true, Name: "home.example", Inside: inside, Relay: at("home.example", 443, "", "")},
		},
		"a name with a certificate": {
			url: "https://Home.Example", facts: public,
			want: Reach{URL: "https://Home.Example", Outside: true, TLS: true, Name: "home.example", Inside: inside, Relay: at("home.example", 443, "", "")},
		},
		"the public address, and its v6 twin": {
			url: "http://203.0.113.20", facts: public,
			want: Reach{URL: "http://203.0.113.20", Outside: true, Inside: inside, Relay: at("relay.mesh.internal", 443, "203.0.113.20", "2001:db8::20")},
		},
		"a v6 address": {
			url: "http://[2001:db8::20]", facts: public,
			want: Reach{URL: "http://[2001:db8::20]", Outside: true, Inside: inside, Relay: at("relay.mesh.internal", 443, "203.0.113.20", "2001:db8::20")},
		},
		"somebody else's address": {
			url: "http://198.51.100.7", facts: public,
			want:    Reach{URL: "http://198.51.100.7", Outside: true, Inside: inside, Relay: at("relay.mesh.internal", 443, "198.51.100.7", "2001:db8::20")},
			missing: "forward",
		},
		"behind another router": {
			url: "http://home.example", facts: twoSided("10.0.0.2/24"),
			want: Reach{URL: "http://home.example", Outside: true, Name: "home.example", Relay: at("home.example", 443, "", ""),
				Inside: at("relay.mesh.internal", 8410, "10.0.0.2", "fd77:77::1")},
			missing: "forward",
		},
		"a private address by the owner's word": {
			url: "http://192.168.77.1:8410", facts: public,
			want: Reach{URL: "http://192.168.77.1:8410", Outside: true, Inside: inside,
				Relay: at("relay.mesh.internal", 8410, "192.168.77.1", "2001:db8::20")},
			missing: "forward",
		},
		"one address listens": {
			listen: "192.168.77.1:9000", facts: public,
			want: Reach{URL: "http://192.168.77.1:9000", Inside: at("relay.mesh.internal", 9000, "192.168.77.1", ""),
				Relay: at("relay.mesh.internal", 9000, "192.168.77.1", "")},
			missing: "home.url",
		},
		"no LAN, a public address": {
			facts: host.Facts{Interfaces: public.Interfaces[:1], Defaults: public.Defaults},
			want: Reach{URL: "http://203.0.113.20:8410", Inside: inside,
				Relay: at("relay.mesh.internal", 8410, "203.0.113.20", "2001:db8::20")},
			missing: "home.url 443",
		},
		"no address at all": {
			want:    Reach{Inside: at("relay.mesh.internal", 8410, "", ""), Relay: at("relay.mesh.internal", 8410, "", "")},
			missing: "LAN",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := config.Default().Home
			c.URL = tt.url
			if tt.listen != "" {
				c.Listen = tt.listen
			}
			got := ReachOf(c, tt.facts, []string{"br-lan"})
			words := strings.Fields(tt.missing)
			if len(got.Missing) != len(words) {
				t.Fatalf("missing %q, want one sentence about each of %q", got.Missing, words)
			}
			for i, w := range words {
				if !strings.Contains(got.Missing[i], w) {
					t.Errorf("missing %q says nothing of %s", got.Missing[i], w)
				}
			}
			got.Missing = nil
			if d := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
				t.Error("(-want +got)\n" + d)
			}
		})
	}
}
