package lan

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"subnetd/firmware/place"
	"subnetd/firmware/wan"
)

const leaseScript = `#!/bin/sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip addr flush dev eth0 scope global
ip addr add "$ip/$mask" dev eth0
ip route replace default via "$router"
echo "got ip=$ip mask=$mask router=$router dns=$dns lease=$lease server=$serverid domain=$domain"
`

// script is what udhcpc runs.
func script(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(file, []byte(leaseScript), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

// lab is the appliance's home side between a device and the internet.
type lab struct {
	t         *testing.T
	options   options
	log       *bytes.Buffer
	home, net place.Place
	stop      context.CancelFunc
	ended     chan error
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, home: place.New(t, "lan0"), net: place.New(t, "wan0"), log: &bytes.Buffer{}}
	dir := t.TempDir()
	l.options = options{wan: "wan0", lans: "lan0", data: filepath.Join(dir, "lan"), wanFile: filepath.Join(dir, "wan.json"),
		names: filepath.Join(dir, "dnsmasq.d"), leases: filepath.Join(dir, "dhcp.leases"), subnetd: filepath.Join(dir, "subnetd.sock")}
	for _, c := range [][]string{{"addr", "add", "198.51.100.2/24", "dev", "wan0"}, {"-6", "addr", "add", "2001:db8:ffff::2/64", "dev", "wan0", "nodad"},
		{"link", "set", "wan0", "up"}, {"link", "set", "lo", "up"}} {
		place.Command(t, "ip", c...)
	}
	l.net.Run("ip", "addr", "add", "198.51.100.1/24", "dev", "eth0")
	l.net.Run("ip", "-6", "addr", "add", "2001:db8:ffff::1/64", "dev", "eth0", "nodad")
	l.net.Run("ip", "-6", "route", "add", "2001:db8::/56", "via", "2001:db8:ffff::2")
	return l
}

func (l *lab) start() {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l.stop, l.ended = cancel, make(chan error, 1)
	go func() { l.ended <- serve(ctx, l.options, slog.New(slog.NewTextHandler(os.Stderr, nil))) }()
	l.t.Cleanup(func() {
		cancel()
		if err := <-l.ended; err != nil {
			l.t.Error(err)
		}
	})
}

// tells is what the uplink does.
func (l *lab) tells(s wan.State) {
	l.t.Helper()
	if err := wan.Save(l.options.wanFile, s); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) reload() {
	l.t.Helper()
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		l.t.Fatal(err)
	}
}

func TestHome(t *testing.T) {
	place.Need(t, "busybox", "dnsmasq", "rdisc6", "dig", "nft", "ping")
	l := newLab(t)
	l.net.Start("dnsmasq", "--keep-in-foreground", "--no-hosts", "--no-resolv", "--bind-interfaces", "--pid-file=", "--user=root",
		"--address=/a.example/203.0.113.7", "--address=/a.example/2001:db8:1::7", "--txt-record=long.example,"+strings.Repeat("x", 250)+","+strings.Repeat("y", 250)+","+
			strings.Repeat("z", 250)+","+strings.Repeat("w", 250)+","+strings.Repeat("v", 250))
	now := wan.Now()
	l.tells(wan.State{Interface: "wan0", Resolvers: []netip.Addr{netip.MustParseAddr("198.51.100.1")},
		Delegated: []wan.Delegation{{Prefix: netip.MustParsePrefix("2001:db8::/56"), Preferred: now + time.Hour, Valid: now + 2*time.Hour}}})
	ports := l.daemon()
	l.start()

	got := ""
	place.Eventually(t, "a lease", func() bool {
		out, err := l.home.Command("busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-t", "1", "-T", "1", "-s", script(t), "-x", "hostname:printer").CombinedOutput()
		got = string(out)
		return err == nil
	})
	for _, want := range []string{"mask=24", "router=192.168.77.1", "dns=192.168.77.1", "lease=600", "server=192.168.77.1"} {
		if !strings.Contains(got, want) {
			t.Errorf("the lease lacks %s:\n%s", want, got)
		}
	}
	told, _ := os.ReadFile(l.options.leases)
	if !strings.Contains(string(told), " printer *\n") {
		t.Errorf("leases that subnetd reads: %q", told)
	}

	ra := ""
	place.Eventually(t, "an advertisement", func() bool {
		out, err := l.home.Command("rdisc6", "-1", "eth0").CombinedOutput() // its own address has to be checked first
		ra = string(out)
		return err == nil
	})
	for _, want := range []string{"Prefix                   : 2001:db8::/64", "Prefix                   : " + l.ula().String(), "Recursive DNS server     : " + first(l.ula()).Addr().String(),
		"Router lifetime           :         1800", "Route                    : " + netip.PrefixFrom(l.ula().Addr(), 48).String()} {
		if !strings.Contains(ra, want) {
			t.Errorf("the advertisement lacks %q:\n%s", want, ra)
		}
	}

	place.Eventually(t, "the provider's resolver", func() bool {
		return l.net.Command("dig", "+tries=1", "+time=1", "@198.51.100.1", "a.example").Run() == nil
	})
	for _, at := range []string{"192.168.77.1", first(l.ula()).Addr().String(), "2001:db8::1"} {
		place.Eventually(t, "an address that is not tentative any more", func() bool {
			return l.home.Command("ping", "-c", "1", "-W", "1", at).Run() == nil
		})
		for _, how := range []string{"+notcp", "+tcp"} {
			l.answers("2001:db8:1::7", how, "@"+at, "a.example", "AAAA")
		}
	}
	l.answers("wwww", "@192.168.77.1", "+bufsize=512", "long.example", "TXT") // dig comes again by TCP
	if out := l.home.Run("dig", "@192.168.77.1", "+notcp", "+ignore", "+bufsize=512", "long.example", "TXT"); !strings.Contains(out, " tc ") || strings.Contains(out, "wwww") {
		t.Errorf("a long answer is not cut short:\n%s", out)
	}

	// The home reaches the internet, which does not know its network of IPv4.
	for _, at := range []string{"198.51.100.1", "2001:db8:ffff::1"} {
		place.Eventually(t, "the internet at "+at, func() bool { return l.home.Command("ping", "-c", "1", "-W", "1", at).Run() == nil })
	}
	// The internet reaches the router by ping, and nothing else.
	l.net.Run("ping", "-c", "1", "-W", "2", "198.51.100.2")
	l.net.Fails("dig", "+tries=1", "+time=1", "@198.51.100.2", "a.example")
	l.net.Fails("dig", "+tries=1", "+time=1", "@2001:db8::1", "a.example")
	device := strings.Fields(l.home.Run("ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "global"))
	for _, f := range device {
		if a, err := netip.ParsePrefix(f); err == nil && strings.HasPrefix(f, "2001:db8:") {
			l.net.Fails("ping", "-c", "1", "-W", "1", a.Addr().String())
		}
	}

	// subnetd says which names are the mesh's, and which ports it needs.
	if err := os.MkdirAll(l.options.names, 0o755); err != nil {
		t.Fatal(err)
	}
	l.net.Start("dnsmasq", "--keep-in-foreground", "--no-hosts", "--no-resolv", "--port=5335", "--bind-interfaces", "--pid-file=", "--user=root", "--address=/phone.mesh.internal/100.64.0.7")
	if err := os.WriteFile(filepath.Join(l.options.names, "subnetd.conf"), []byte("# Written by subnetd\nserver=/mesh.internal/198.51.100.1#5335\nrebind-domain-ok=/mesh.internal/\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	l.reload()
	l.answers("100.64.0.7", "@192.168.77.1", "Phone.MESH.internal")
	for _, tcp := range []string{"8410", "8443"} { // then the owner changes it
		ports <- `{"udp":[40001],"tcp":[` + tcp + `]}`
		place.Eventually(t, "the ports of subnetd", func() bool {
			rules := place.Command(t, "nft", "list", "table", "inet", "appliance")
			return strings.Contains(rules, `iifname "wan0" udp dport 40001`) && strings.Contains(rules, `iifname "wan0" tcp dport `+tcp)
		})
	}

	// The provider takes its prefix away.
	l.tells(wan.State{Interface: "wan0"})
	l.reload()
	place.Eventually(t, "a prefix that is gone", func() bool {
		out, _ := l.home.Command("rdisc6", "-1", "eth0").Output()
		ra := string(out)
		_, after, _ := strings.Cut(ra, "Prefix                   : 2001:db8::/64")
		return strings.Contains(ra, "Router lifetime           :            0") && strings.Contains(strings.Join(strings.Fields(after), " "), "Pref. time : 0 ")
	})
}

// daemon answers at subnetd's socket: a snapshot for all openings that are sent.
func (l *lab) daemon() chan<- string {
	l.t.Helper()
	ln, err := net.Listen("unix", l.options.subnetd)
	if err != nil {
		l.t.Fatal(err)
	}
	openings := make(chan string)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/watch", func(w http.ResponseWriter, r *http.Request) {
		for now := `{"udp":null,"tcp":null}`; ; { // before it has a port
			for generation := range 2 { // something else is new, too
				fmt.Fprintf(w, "{\"generation\":%d,\"openings\":%s,\"peers\":[]}\n", generation, now)
			}
			_ = http.NewResponseController(w).Flush() // an asker who left ends by its context
			select {
			case <-r.Context().Done():
				return
			case now = <-openings:
			}
		}
	})
	s := &http.Server{Handler: mux}
	go func() { _ = s.Serve(ln) }() // until it is closed
	l.t.Cleanup(func() { s.Close() })
	return openings
}

// answers waits until a question of the home's has an answer with that text: a resolver that is slow once is no error.
func (l *lab) answers(want string, args ...string) {
	l.t.Helper()
	place.Eventually(l.t, want+" as the answer to "+strings.Join(args, " "), func() bool {
		out, _ := l.home.Command("dig", append([]string{"+short", "+tries=1", "+time=2"}, args...)...).Output()
		return strings.Contains(string(out), want)
	})
}

func (l *lab) ula() netip.Prefix {
	p, err := ownNetwork(filepath.Join(l.options.data, "ula"))
	if err != nil {
		l.t.Fatal(err)
	}
	return p
}
