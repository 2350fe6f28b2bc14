package lan

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParseLeases(t *testing.T) {
	till := time.Unix(1772366400, 0)
	given := func(mac, addr, name, iface string, till time.Time) Given {
		return Given{MAC: mac, Addr: ip(addr), Name: name, Interface: iface, Expires: till, Guess: ip(addr).Is6()}
	}
	for _, c := range []struct {
		what, text string
		want       []Given
	}{
		{"nothing", "", nil},
		{"dnsmasq", `1772366400 00:80:77:00:00:01 192.168.1.50 BRN008077 01:00:80:77:00:00:01
0 a2:00:00:00:00:02 192.168.1.60 * *
43200 a2:00:00:00:00:03 192.168.1.61 no-clock *
duid 00:01:00:01:2b:3c:4d:5e:52:54:00:12:34:56
1772366400 7864321 fd00::50 BRN008077 00:03:00:01:00:80:77:00:00:01
1772366400 T7864322 2001:db8::51 * 00:01:00:01:2b:3c:4d:5e:a2:00:00:00:00:02
1772366400 7864323 fd00::52 * 00:04:12:34:56:78:12:34:56:78:12:34:56:78:12:34:56:78
`, []Given{
			given(printer, "192.168.1.50", "BRN008077", "", till),
			given(phone, "192.168.1.60", "", "", time.Time{}),
			given("a2:00:00:00:00:03", "192.168.1.61", "no-clock", "", time.Time{}),
			given(printer, "fd00::50", "BRN008077", "", till),
			given(phone, "2001:db8::51", "", "", till),
			given("", "fd00::52", "", "", till),
		}},
		{"odhcpd", `# br-lan 008077000001 ipv4 BRN008077 1772366400 c0a80132 32 192.168.1.50/32
192.168.1.50	BRN008077.lan	BRN008077
# br-lan a2:0:0:0:0:2 ipv4 - -1 c0a8013c 32 192.168.1.60/32
# br-lan 00030001008077000001 1 BRN008077 1772366400 50 128 fd00::50/128 2001:db8::50/128
# br-lan 00030001a20000000002 1 broken\x20a\x0ab 0 51 128 fd00::51/128
# br-lan 00030001a20000000002 2 - 1772366400 1 62 2001:db8:0:4::/62
`, []Given{
			given(printer, "192.168.1.50", "BRN008077", "br-lan", till),
			given(phone, "192.168.1.60", "", "br-lan", time.Time{}),
			given(printer, "fd00::50", "BRN008077", "br-lan", till),
			given(printer, "2001:db8::50", "BRN008077", "br-lan", till),
			given(phone, "fd00::51", "", "br-lan", time.Time{}),
		}},
		{"half written", "1772366400 00:80:77:00:00:01 192.168.1.50 a *\n1772366400 a2:00:00:00:00:02 192.168.1.6", []Given{given(printer, "192.168.1.50", "a", "", till)}},
		{"no leases", `

a b c d
a b c d e
-5 00:80:77:00:00:01 192.168.1.50 a *
99999999999999999999 00:80:77:00:00:01 192.168.1.50 a *
1772366400 00:80:77:00:00:01 192.168.1.500 a *
1772366400 06-00:80:77:00:00:01 192.168.1.50 a *
1772366400 01:80:77:00:00:01 192.168.1.50 a *
1772366400 00:80:77:00:00:01:02 192.168.1.50 a *
1772366400 00:80:77:00:00:01 224.0.0.1 a *
# br-lan x ipv4 a 1772366400 c0a80132 32 192.168.1.50/32
# br-lan 008077000001 ipv4 a x c0a80132 32 192.168.1.50/32
# br-lan 008077000001 ipv4 a 1772366400 c0a80132 32 fd00::1/128
# br-lan 008077000001 ipv4 a 1772366400 c0a80132 24 192.168.1.0/24
`, nil},
	} {
		if got := ParseLeases(c.text); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\n%+v\n%+v", c.what, got, c.want)
		}
	}
	if n := len(ParseLeases(strings.Repeat("0 00:80:77:00:00:01 192.168.1.50 a *\n", 100000))); n != maxLeases {
		t.Errorf("%d leases", n)
	}
}

func FuzzParseLeases(f *testing.F) {
	f.Add("1772366400 00:80:77:00:00:01 192.168.1.50 BRN008077 01:00:80:77:00:00:01\n# br-lan 008077000001 ipv4 a 1772366400 c0a80132 32 192.168.1.50/32\n")
	f.Add("1772366400 7864321 fd00::50 a 00:03:00:01:00:80:77:00:00:01\n# br-lan 00030001008077000001 1 a 1772366400 50 128 fd00::50/128\n")
	f.Fuzz(func(t *testing.T, s string) {
		leases := ParseLeases(s)
		if len(leases) > maxLeases {
			t.Errorf("%d leases", len(leases))
		}
		for _, g := range leases {
			shown(t, g.Name)
			if !usable(g.Addr) || g.MAC != "" && !valid(g.MAC) || g.MAC == "" && !g.Guess {
				t.Errorf("%+v", g)
			}
		}
		b := NewBook()
		b.Leases(t0, "f", leases)
		check(t, b)
	})
}
