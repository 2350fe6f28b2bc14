package link

import (
	"net/netip"
	"strings"
	"testing"

	"subnetd/firmware/place"
)

func TestChoose(t *testing.T) {
	port := func(index uint32, name string) Link { return Link{Index: index, Name: name, Port: true} }
	three := []Link{port(2, "eth0"), {Index: 3, Name: "br-lan"}, port(4, "eth1"), port(5, "eth2")}
	for _, c := range []struct {
		links     []Link
		wan, lans string
		want      string
	}{
		{nil, "", "", ":"},
		{three, "", "", "eth0:eth1,eth2"},
		{three, "eth2", "", "eth2:eth0,eth1"},
		{three, "", "eth0", "eth1:eth0"},
		{three, "eth9", "eth8", "eth9:eth8"},
		{three[:1], "", "", "eth0:"},
	} {
		wan, home := Choose(c.links, c.wan, c.lans)
		if got := wan + ":" + strings.Join(home, ","); got != c.want {
			t.Errorf("Choose(%v, %q, %q) = %s, want %s", c.links, c.wan, c.lans, got, c.want)
		}
	}
}

// TestKernel does everything twice, and has ip(8) judge.
func TestKernel(t *testing.T) {
	place.New(t, "w0")
	c, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	find := func(name string) Link {
		t.Helper()
		links, err := c.Links()
		must(err)
		l, ok := Find(links, name)
		if !ok {
			t.Fatalf("no %s in %v", name, links)
		}
		return l
	}
	addrs := []netip.Prefix{netip.MustParsePrefix("192.0.2.9/24"), netip.MustParsePrefix("2001:db8::1/64")}
	for range 2 {
		must(c.Bridge("br0"))
		must(c.SetUp(find("br0").Index))
		must(c.SetUp(find("w0").Index))
		must(c.SetAddresses(find("w0").Index, addrs, func(netip.Prefix) bool { return true }))
		must(c.SetDefault(find("w0").Index, netip.MustParseAddr("203.0.113.1"), addrs[0].Addr())) // not on the link
		must(c.SetUnreachable([]netip.Prefix{netip.MustParsePrefix("2001:db8:1::/56")}))
	}
	has := func(want bool, text string, args ...string) {
		t.Helper()
		if out := place.Command(t, "ip", args...); strings.Contains(out, text) != want {
			t.Errorf("ip %v has %q: %v\n%s", args, text, !want, out)
		}
	}
	has(true, "inet 192.0.2.9/24 brd 192.0.2.255", "addr", "show", "w0")
	has(true, "inet6 2001:db8::1/64", "addr", "show", "w0")
	has(true, "default via 203.0.113.1 dev w0 proto dhcp src 192.0.2.9 onlink", "route")
	has(true, "unreachable 2001:db8:1::/56", "-6", "route")
	must(c.SetAddresses(find("w0").Index, addrs[1:], func(p netip.Prefix) bool { return p.Addr().Is4() }))
	must(c.SetUnreachable(nil))
	must(c.SetDefault(find("w0").Index, netip.Addr{}, netip.Addr{}))
	has(false, "192.0.2.9", "addr", "show", "w0")
	has(false, "default", "route")
	has(false, "unreachable", "-6", "route")
	must(c.Join(find("w0").Index, find("br0").Index))
	has(true, "master br0", "link", "show", "w0")
	must(c.Bridge("br0"))
}
