package lan

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/mdlayher/ndp"
)

var (
	ulaNet = netip.MustParsePrefix("fd12:3456:789a::/64")
	pd     = netip.MustParsePrefix("2001:db8:1::/64")
	old    = netip.MustParsePrefix("2001:db8:2::/64")
)

func at(preferred, valid time.Duration) prefix {
	return prefix{net: pd, preferred: preferred, valid: valid}
}

// said is what the devices learn of a prefix.
func said(ra *ndp.RouterAdvertisement, p netip.Prefix) (preferred, valid time.Duration) {
	for _, o := range ra.Options {
		if i, ok := o.(*ndp.PrefixInformation); ok && i.Prefix == p.Addr() {
			return i.PreferredLifetime, i.ValidLifetime
		}
	}
	return -1, -1
}

func TestAdvertisement(t *testing.T) {
	const day = 24 * time.Hour
	gone := prefix{net: pd, preferred: 10 * day, valid: 20 * day, gone: day}
	for name, c := range map[string]struct {
		prefixes         []prefix
		internet         bool
		now              time.Duration
		router           time.Duration
		preferred, valid time.Duration
	}{
		"no provider":               {nil, false, 0, 0, -1, -1},
		"a long prefix":             {[]prefix{at(day, 2*day)}, true, 0, raLifetime, ndPrefLft, ndValidLft},
		"one that runs out":         {[]prefix{at(day, day+time.Hour)}, true, day - time.Minute, raLifetime, time.Minute, time.Hour + time.Minute},
		"one to use no more":        {[]prefix{at(day, day+time.Hour)}, true, day + time.Minute, 0, 0, 59 * time.Minute},
		"one that is over":          {[]prefix{at(day, day+time.Hour)}, true, 2 * day, 0, 0, 0},
		"no internet":               {[]prefix{at(day, 2*day)}, false, 0, 0, ndPrefLft, ndValidLft},
		"taken away just now":       {[]prefix{gone}, false, day, 0, 0, raGone},
		"taken away an hour ago":    {[]prefix{gone}, false, day + time.Hour, 0, 0, time.Hour},
		"taken away, almost over":   {[]prefix{{net: pd, preferred: day, valid: day + time.Minute, gone: day}}, false, day, 0, 0, time.Minute},
		"of half a second":          {[]prefix{at(1500*time.Millisecond, 2500*time.Millisecond)}, true, 0, raLifetime, time.Second, 2 * time.Second},
		"preferred for longer even": {[]prefix{at(day, time.Minute)}, true, 0, raLifetime, time.Minute, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			h := home{mac: net.HardwareAddr{2, 0, 0, 0, 0, 1}, ula: ulaNet, resolver: first(ulaNet).Addr(), internet: c.internet, prefixes: c.prefixes}
			ra := advertisement(h, c.now)
			if ra.RouterLifetime != c.router {
				t.Errorf("router lifetime %v, want %v", ra.RouterLifetime, c.router)
			}
			if p, v := said(ra, pd); p != c.preferred || v != c.valid {
				t.Errorf("lifetimes %v and %v, want %v and %v", p, v, c.preferred, c.valid)
			}
			if p, v := said(ra, ulaNet); p != ndPrefLft || v != ndValidLft {
				t.Errorf("the home's own prefix: %v, %v", p, v)
			}
			if b, err := ndp.MarshalMessage(ra); err != nil || len(b) > 1232 {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			if end := farewell(h, c.now); end.RouterLifetime != 0 {
				t.Error("the farewell is none")
			}
		})
	}
}

func TestFollow(t *testing.T) {
	const day = 24 * time.Hour
	same := cmp.AllowUnexported(prefix{})
	addrs := cmpopts.EquateComparable(netip.Prefix{})
	now := day
	have := follow(nil, []prefix{at(2*day, 3*day)}, now)
	if d := cmp.Diff([]prefix{at(2*day, 3*day)}, have, same, addrs); d != "" {
		t.Error(d)
	}
	other := prefix{net: old, preferred: 2 * day, valid: 3 * day}
	have = follow(have, []prefix{other}, now)
	gone := at(2*day, 3*day)
	gone.gone = day
	if d := cmp.Diff([]prefix{other, gone}, have, same, addrs); d != "" {
		t.Error("another prefix came:", d)
	}
	if got := follow(have, []prefix{other}, now+raGone); len(got) != 1 {
		t.Errorf("two hours later: %v", got)
	}
	if got := follow(have, []prefix{at(5*day, 6*day)}, now+time.Hour); len(got) != 2 || got[0].gone != 0 || got[1].net != old {
		t.Errorf("the first came back: %v", got)
	}
	for i := range 100 { // a provider that gives another every minute
		p := netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 3, byte(i)}), 64)
		have = follow(have, []prefix{{net: p, preferred: 9 * day, valid: 9 * day}}, now+time.Duration(i)*time.Second)
	}
	if len(have) > mostPrefixes || have[0].gone != 0 {
		t.Errorf("%d prefixes", len(have))
	}
}
