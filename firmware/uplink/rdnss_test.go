package uplink

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"subnetd/firmware/place"
	"subnetd/firmware/wan"
)

// rdnss is the option: RFC 8106, 5.1.
func rdnss(seconds uint32, addrs ...string) []byte {
	b := binary.BigEndian.AppendUint32([]byte{25, byte(1 + 2*len(addrs)), 0, 0}, seconds)
	for _, a := range addrs {
		b = append(b, netip.MustParseAddr(a).AsSlice()...)
	}
	return b
}

func TestRDNSS(t *testing.T) {
	const now = time.Hour
	var have []announced
	show := func(at time.Duration) string {
		addrs, next := lasting(have, at)
		if next == never {
			return fmt.Sprint(addrs, " never")
		}
		return fmt.Sprint(addrs, " ", next-now)
	}
	for _, step := range []struct {
		what   string
		option []byte
		want   string
	}{
		{"two", rdnss(600, "2001:db8::53", "fe80::1"), "[2001:db8::53 fe80::1%wan0] 10m0s"},
		{"one again, for ever", rdnss(0xffffffff, "2001:db8::53"), "[fe80::1%wan0 2001:db8::53] 10m0s"},
		{"one no more", rdnss(0, "fe80::1"), "[2001:db8::53] never"},
		{"what is none", rdnss(600, "ff02::1", "::", "::1", "::ffff:192.0.2.1"), "[2001:db8::53] never"},
		{"another option", []byte{31, 3, 0, 0, 0, 0, 2, 88, 1, 'a', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, "[2001:db8::53] never"},
		{"without an address", rdnss(600), "[2001:db8::53] never"},
		{"cut short", rdnss(600, "2001:db8::54")[:20], "[2001:db8::53] never"},
		{"of half an address", append(rdnss(600, "2001:db8::54")[:16:16], 0, 0, 0, 0, 0, 0, 0, 0)[:24], "[2001:db8::53 2001:db8::] 10m0s"},
		{"many", rdnss(60, "2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::4", "2001:db8::5"), "[2001:db8::53 2001:db8:: 2001:db8::4 2001:db8::5] 1m0s"},
	} {
		have = hear(have, step.option, "wan0", now)
		if got := show(now); got != step.want {
			t.Errorf("%s: %s, want %s", step.what, got, step.want)
		}
	}
	if got := show(now + time.Minute); got != "[2001:db8::53 2001:db8::] 10m0s" {
		t.Error("a minute later:", got)
	}
}

// TestAnnounced: a provider that names its resolver by its router only, also to a program that has come after the router.
func TestAnnounced(t *testing.T) {
	place.Need(t, "dnsmasq")
	l := newLab(t)
	l.net.Start("dnsmasq", "--keep-in-foreground", "--port=0", "--pid-file=", "--user=root", "--leasefile-ro", "--log-facility=-",
		"--enable-ra", "--dhcp-range=2001:db8:ffff::,ra-only", "--dhcp-option=option6:dns-server,[2001:db8:ffff::53]")
	l.start()
	l.knows("the resolver", func(s wan.State) bool { return fmt.Sprint(s.Resolvers) == "[2001:db8:ffff::53]" })
	l.net.Run("ip", "link", "set", "eth0", "down")
	l.knows("none without a link", func(s wan.State) bool { return len(s.Resolvers) == 0 })
}

func FuzzRDNSS(f *testing.F) {
	f.Add(rdnss(600, "2001:db8::53", "fe80::1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		have := hear(nil, b, "wan0", 0)
		have = hear(have, b, "wan0", time.Second)
		if addrs, next := lasting(have, time.Second); len(addrs) > mostAnnounced || len(addrs) > 0 && next <= time.Second {
			t.Errorf("%v, %v", addrs, next)
		}
	})
}
