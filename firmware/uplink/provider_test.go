package uplink

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"subnetd/firmware/place"
	"subnetd/firmware/wan"
)

// lab is the internet's side of the appliance in front of a provider.
type lab struct {
	t       *testing.T
	options options
	net     place.Place
	reloads atomic.Int32
	clock   *steps
}

// steps stands in for the clock of the machine, which all namespaces share.
type steps struct{ to chan time.Duration }

func (s *steps) Step(to time.Time) error { s.to <- time.Until(to); return nil }

func (s *steps) Slew(by time.Duration) error { s.to <- by; return nil }

func newLab(t *testing.T) *lab {
	t.Helper()
	dir := t.TempDir()
	l := &lab{t: t, clock: &steps{make(chan time.Duration, 16)}}
	l.options = options{wan: "wan0", wanFile: filepath.Join(dir, "wan.json"), resolv: filepath.Join(dir, "resolv.conf"), data: filepath.Join(dir, "data"),
		changed: func() { l.reloads.Add(1) }, setTime: l.clock, built: time.Unix(1700000000, 0)}
	l.again()
	return l
}

// again puts a provider in front.
func (l *lab) again() {
	l.t.Helper()
	l.net = place.New(l.t, "wan0")
	l.net.Run("ip", "addr", "add", "198.51.100.1/24", "dev", "eth0")
	l.net.Run("ip", "-6", "addr", "add", "2001:db8:ffff::1/64", "dev", "eth0", "nodad")
	place.Command(l.t, "ip", "link", "set", "wan0", "up")
	place.Eventually(l.t, "an address of the link, by which servers listen", func() bool {
		out := l.net.Run("ip", "-6", "addr", "show", "dev", "eth0", "scope", "link")
		return strings.Contains(out, "fe80::") && !strings.Contains(out, "tentative")
	})
}

func (l *lab) start() {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, l.options, slog.New(slog.NewTextHandler(os.Stderr, nil))) }()
	l.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			l.t.Error(err)
		}
	})
}

// knows waits until the home's side would know.
func (l *lab) knows(what string, holds func(wan.State) bool) wan.State {
	l.t.Helper()
	var s wan.State
	place.Eventually(l.t, what, func() bool {
		var err error
		if s, err = wan.Load(l.options.wanFile); err != nil {
			l.t.Fatal(err)
		}
		return holds(s)
	})
	return s
}

// dhcpd starts ISC's server for one family.
func (l *lab) dhcpd(family, config string) (stop func()) {
	l.t.Helper()
	dir := l.t.TempDir()
	conf, leases := filepath.Join(dir, "dhcpd.conf"), filepath.Join(dir, "leases")
	for file, text := range map[string]string{conf: config, leases: ""} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			l.t.Fatal(err)
		}
	}
	return l.net.Start("dhcpd", family, "-d", "-cf", conf, "-lf", leases, "-pf", filepath.Join(dir, "pid"), "--no-pid", "eth0")
}

const dhcpd6 = `
default-lease-time 7200; preferred-lifetime 3600;
option dhcp6.name-servers 2001:db8:ffff::1;
subnet6 2001:db8:ffff::/64 { range6 2001:db8:ffff::100 2001:db8:ffff::1ff; prefix6 2001:db8:100:: 2001:db8:100:ff00:: /56; }
`

func TestProviderOfBoth(t *testing.T) {
	place.Need(t, "dnsmasq", "dhcpd")
	l := newLab(t)
	l.net.Start("dnsmasq", "--keep-in-foreground", "--port=0", "--pid-file=", "--user=root", "--leasefile-ro", "--log-facility=-",
		"--dhcp-range=198.51.100.50,198.51.100.60,255.255.255.0,1h", "--dhcp-option=option:dns-server,198.51.100.1,203.0.113.53", "--dhcp-authoritative",
		"--enable-ra", "--dhcp-range=2001:db8:ffff::,ra-only")
	l.dhcpd("-6", dhcpd6)
	l.start()
	s := l.knows("a lease and a prefix", func(s wan.State) bool { return len(s.Addresses) > 0 && len(s.Delegated) > 0 })
	if !netip.MustParsePrefix("198.51.100.0/24").Contains(s.Addresses[0].Addr()) || s.Addresses[0].Bits() != 24 {
		t.Errorf("address %v", s.Addresses)
	}
	if got := fmt.Sprint(s.Resolvers); got != "[198.51.100.1 203.0.113.53 2001:db8:ffff::1]" {
		t.Errorf("resolvers %s", got)
	}
	d := s.Delegated[0]
	if d.Prefix.Bits() != 56 || !netip.MustParsePrefix("2001:db8:100::/48").Overlaps(d.Prefix) || d.Valid <= d.Preferred || d.Preferred <= wan.Now() {
		t.Errorf("delegated %+v", d)
	}
	resolv, _ := os.ReadFile(l.options.resolv)
	if !strings.Contains(string(resolv), "nameserver 198.51.100.1\nnameserver 203.0.113.53\nnameserver 2001:db8:ffff::1\n") {
		t.Errorf("resolv.conf: %s", resolv)
	}
	shows := func(want string, args ...string) {
		t.Helper()
		place.Eventually(t, want, func() bool {
			out, _ := exec.Command("ip", args...).Output()
			return strings.Contains(string(out), want)
		})
	}
	shows("inet "+s.Addresses[0].String(), "addr", "show", "dev", "wan0")
	shows("inet6 2001:db8:ffff::1", "-6", "addr", "show", "dev", "wan0") // of the server's range, /128
	shows("default via 198.51.100.1 dev wan0", "route")
	shows("default via fe80::", "-6", "route")
	shows("unreachable "+d.Prefix.String(), "-6", "route")
	if got := readPrefix(filepath.Join(l.options.data, "prefix")); got != d.Prefix {
		t.Errorf("kept for the next boot: %v", got)
	}
	if l.reloads.Load() == 0 {
		t.Error("the home's side was not told")
	}

	// The cable is pulled, and put in again: the same address, at once.
	l.net.Run("ip", "link", "set", "eth0", "down")
	l.knows("no lease without a link", func(s wan.State) bool { return len(s.Addresses)+len(s.Delegated) == 0 })
	l.net.Run("ip", "link", "set", "eth0", "up")
	l.net.Run("ip", "-6", "addr", "replace", "2001:db8:ffff::1/64", "dev", "eth0", "nodad")
	again := l.knows("the lease again", func(s wan.State) bool { return len(s.Addresses) > 0 && len(s.Delegated) > 0 })
	if again.Addresses[0] != s.Addresses[0] || again.Delegated[0].Prefix != d.Prefix {
		t.Errorf("after the link was gone: %v and %v, before %v and %v", again.Addresses, again.Delegated[0].Prefix, s.Addresses, d.Prefix)
	}
}

// TestStandardServer has the reference implementation answer, which counts seconds and
// verifies options.
func TestStandardServer(t *testing.T) {
	place.Need(t, "dhcpd")
	l := newLab(t)
	l.dhcpd("-4", `
default-lease-time 3600; max-lease-time 3600; authoritative;
subnet 198.51.100.0 netmask 255.255.255.0 { range 198.51.100.70 198.51.100.80; option routers 198.51.100.1; option domain-name-servers 198.51.100.1; option ntp-servers 198.51.100.1; }
`)
	l.start()
	l.knows("a lease", func(s wan.State) bool { return len(s.Addresses) > 0 && s.Addresses[0].Addr().As4()[3]/10 == 7 })
}

// TestPulledOut: an adapter is pulled out, and another is put in, which gets its name.
func TestPulledOut(t *testing.T) {
	place.Need(t, "dhcpd")
	l := newLab(t)
	l.dhcpd("-6", dhcpd6)
	l.start()
	l.knows("a prefix", func(s wan.State) bool { return len(s.Delegated) > 0 })
	place.Command(t, "ip", "link", "del", "wan0")
	l.knows("no interface", func(s wan.State) bool { return s.Interface == "" && len(s.Delegated) == 0 })
	l.again()
	l.dhcpd("-6", dhcpd6)
	l.knows("a prefix again", func(s wan.State) bool { return s.Interface == "wan0" && len(s.Delegated) > 0 })
}
