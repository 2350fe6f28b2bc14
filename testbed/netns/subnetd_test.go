package netns_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// daemonConfig is the configuration of a home router that opens its whole LAN.
const daemonConfig = `
[lan]
interfaces = ["lan0"]
expose = "all"
[tunnel]
engine = "userspace"
`

// scene is the usual cast: subnetd on a home router, stock Tailscale on a phone behind a NAT, Headscale outside.
type scene struct {
	hs     *netns.Headscale
	home   *netns.Home
	daemon *netns.Subnetd
	phone  *netns.StockPeer
}

// join sets the scene: both nodes are in the mesh and the LAN's prefixes are approved.
func join(t *testing.T, homeNAT, phoneNAT netns.NAT) *scene {
	t.Helper()
	lab := netns.New(t)
	s := &scene{hs: lab.Headscale(), home: lab.Home(homeNAT)}
	s.phone = lab.StockPeer(lab.NAT(phoneNAT))
	s.daemon = lab.SubnetdIdle(s.home.Router, daemonConfig)
	s.join(t)
	return s
}

// join brings both nodes into the mesh and approves the LAN's prefixes.
func (s *scene) join(t *testing.T) {
	t.Helper()
	s.daemon.Start()
	start := time.Now()
	s.daemon.UpKey(s.hs, s.hs.PreAuthKey("ana", netns.KeyOptions{}), "home")
	t.Logf("joined and online %v after `subnetd up` began", time.Since(start).Round(time.Millisecond))
	s.hs.ApproveRoutes("home", s.home.LAN4, s.home.LAN6)
	s.phone.Up(s.hs.URL, s.hs.PreAuthKey("ana", netns.KeyOptions{}), "--accept-routes")
}

// TestStockPhoneReachesTheLAN: a stock client behind a NAT pings a LAN host that has no client and fetches 200 MB
// from it, and the LAN host fetches 200 MB from the phone.
func TestStockPhoneReachesTheLAN(t *testing.T) {
	wantOpenLAN(t, join(t, netns.Public, netns.Easy), 200_000_000)
}

// wantOpenLAN: phone and LAN host reach each other, and each fetches so many bytes from the other.
func wantOpenLAN(t *testing.T, s *scene, size int64) {
	t.Helper()
	wantReach(t, s.phone.Host, s.home.LAN.Addr4, s.home.LAN.Addr6)
	s.home.LAN.ServePayload("[::]:80", 1, size)
	s.phone.Host.ServePayload("[::]:80", 2, size)
	wantPayload(t, s.phone.Host, "http://"+s.home.LAN.Addr4.String()+"/", 1, size)
	v4, _, err := s.hs.MeshAddrs(s.phone.Host.Name)
	if err != nil {
		t.Fatal(err)
	}
	wantPayload(t, s.home.LAN, "http://"+v4.String()+"/", 2, size)
}

// TestLANOverIPv6: the same over the mesh's IPv6, with less data.
func TestLANOverIPv6(t *testing.T) {
	wantOpenLAN6(t, join(t, netns.Public, netns.Public), 5_000_000)
}

func wantOpenLAN6(t *testing.T, s *scene, size int64) {
	t.Helper()
	wantReach(t, s.phone.Host, s.home.LAN.Addr6)
	s.home.LAN.ServePayload("[::]:80", 1, size)
	s.phone.Host.ServePayload("[::]:80", 2, size)
	wantPayload(t, s.phone.Host, "http://["+s.home.LAN.Addr6.String()+"]/", 1, size)
	_, v6, err := s.hs.MeshAddrs(s.phone.Host.Name)
	if err != nil {
		t.Fatal(err)
	}
	wantPayload(t, s.home.LAN, "http://["+v6.String()+"]/", 2, size)
}

// TestJoinRefused: what cannot work is said in one plain sentence and ends with exit code 1.
func TestJoinRefused(t *testing.T) {
	lab := netns.New(t)
	hs := lab.Headscale()
	home := lab.Home(netns.Public)
	daemon := lab.Subnetd(home.Router, daemonConfig)
	expired := hs.PreAuthKey("ana", netns.KeyOptions{Expires: time.Millisecond})
	used := hs.PreAuthKey("ana", netns.KeyOptions{})
	lab.StockPeer(lab.NAT(netns.Public)).Up(hs.URL, used)
	for _, tt := range []struct{ name, control, key string }{
		{"used key", hs.URL, used},
		{"wrong key", hs.URL, "hskey-auth-000000000000-0000000000000000000000000000000000000000000000000000000000000000"},
		{"expired key", hs.URL, expired},
		{"unknown host", "https://nowhere.invalid", expired},
		{"wrong certificate", "https://203.0.113.30:8443", expired},
		{"nobody listens", "https://203.0.113.10:9", expired},
	} {
		t.Run(strings.ReplaceAll(tt.name, " ", "-"), func(t *testing.T) {
			if strings.Contains(tt.control, "203.0.113.30") {
				hs.Host.IP("addr add 203.0.113.30/24 dev wan0") // the certificate does not name this address
			}
			out, err := daemon.CLI("up", "--control", tt.control, "--auth-key", tt.key, "--hostname", "home")
			var exit interface{ ExitCode() int }
			if !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Fatalf("want exit code 1, got %v", err)
			}
			if lines := strings.Count(strings.TrimSpace(out), "\n") + 1; lines > 1 || len(out) < 15 || strings.Contains(out, "goroutine") {
				t.Errorf("want one plain sentence, got:\n%s", out)
			}
			t.Logf("%s: %s", tt.name, strings.TrimSpace(out))
		})
	}
}

// TestJoinByBrowser: without a key `up` prints a URL, and the node joins by itself once a user approved it there.
func TestJoinByBrowser(t *testing.T) {
	lab := netns.New(t)
	hs := lab.Headscale()
	home := lab.Home(netns.Public)
	daemon := lab.Subnetd(home.Router, daemonConfig)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	up := daemon.Cmd(ctx, "up", "--control", hs.URL, "--hostname", "home")
	r, w := io.Pipe()
	up.Stdout, up.Stderr = w, w
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- up.Wait(); w.Close() }()
	login, err := findURL(r, hs.URL)
	if err != nil {
		t.Fatalf("no login URL from `up`: %v", err)
	}
	hs.Register("ana", login)
	go func() { _, _ = io.Copy(io.Discard, r) }()
	if err := <-ended; err != nil {
		t.Errorf("up: %v", err)
	}
	netns.Eventually(t, 15*time.Second, "the approved node is online", func() error {
		n, err := hs.Node("home")
		if err == nil && !n.Online {
			err = errors.New("it is offline")
		}
		return err
	})
}

// TestFlowsOutliveTheCoordinator: with Headscale killed flows go on, and nodes restarted without it come back from
// what they remember.
func TestFlowsOutliveTheCoordinator(t *testing.T) {
	wantNoNeedOfCoordinator(t, join(t, netns.Public, netns.Easy))
}

// wantNoNeedOfCoordinator kills Headscale for good.
func wantNoNeedOfCoordinator(t *testing.T, s *scene) {
	t.Helper()
	lan := s.home.LAN.Addr4
	wantReach(t, s.phone.Host, lan)
	s.home.LAN.ServePayload("[::]:80", 1, 1_000_000)

	conn := dialEcho(t, s)
	s.hs.Kill()
	if err := echoOnce(conn, "after the coordinator's end"); err != nil {
		t.Fatalf("a flow broke: %v", err)
	}
	wantPayload(t, s.phone.Host, "http://"+lan.String()+"/", 1, 1_000_000)

	s.daemon.Kill9()
	s.daemon.Start()
	wantReach(t, s.phone.Host, lan)
	wantPayload(t, s.phone.Host, "http://"+lan.String()+"/", 1, 1_000_000)
	if err := s.daemon.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	s.daemon.Start()
	wantReach(t, s.phone.Host, lan)
}

// webOnly is a policy that lets everybody reach tcp/80 of one LAN host and nothing else.
const webOnly = `{"acls": [{"action": "accept", "proto": "tcp", "src": ["*"], "dst": ["192.168.77.50/32:80", "fd77:77::50/128:80"]}]}`

// allowAll is the policy that a coordinator without one enforces.
const allowAll = `{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}`

// TestPolicy: only what the policy allows gets in, for both families; a change takes effect without cutting what it allows.
func TestPolicy(t *testing.T) {
	wantPolicy(t, join(t, netns.Public, netns.Easy))
}

// wantPolicy sets policies; in the end everything is allowed again.
func wantPolicy(t *testing.T, s *scene) {
	t.Helper()
	wantReach(t, s.phone.Host, s.home.LAN.Addr4, s.home.LAN.Addr6)
	s.home.LAN.ServePayload("[::]:80", 1, 100_000)
	s.home.LAN.ServePayload("[::]:81", 1, 100_000)
	conn := dialEchoAt(t, s, s.home.LAN.Addr4, 8080)
	s.hs.SetPolicy(strings.ReplaceAll(webOnly, ":80\"", ":80,8080\""))
	both := []netip.Addr{s.home.LAN.Addr4, s.home.LAN.Addr6}
	for i, took := range untilRefused(s.phone.Host, 81, both) {
		t.Logf("tcp/81 at %v: last let in %v after the policy was set", both[i], took.Round(time.Millisecond))
		if took > time.Second {
			t.Errorf("a new policy takes more than a second to take effect")
		}
	}
	for _, addr := range both {
		wantPayload(t, s.phone.Host, "http://"+netip.AddrPortFrom(addr, 80).String()+"/", 1, 100_000)
		if err := s.phone.Host.Ping(context.Background(), addr); err != nil {
			// Echo is part of a rule only when ICMP is among its protocols; this one names tcp.
			t.Logf("ping of %v is refused, as it should be", addr)
		} else {
			t.Errorf("ping of %v came through a policy that allows tcp only", addr)
		}
	}
	if err := echoOnce(conn, "still allowed"); err != nil {
		t.Errorf("a flow that the new policy allows was cut: %v", err)
	}
	s.hs.SetPolicy(allowAll)
	wantReach(t, s.phone.Host, s.home.LAN.Addr4, s.home.LAN.Addr6)
}

// untilRefused connects to the port of each address again and again until it is refused, for at most ten seconds, and
// gives when each let in for the last time.
func untilRefused(h *netns.Host, port uint16, addrs []netip.Addr) []time.Duration {
	last := make([]time.Duration, len(addrs))
	start := time.Now()
	var group sync.WaitGroup
	for i, a := range addrs {
		group.Go(func() {
			for time.Since(start) < 10*time.Second && letsIn(h, netip.AddrPortFrom(a, port)) {
				last[i] = time.Since(start)
			}
		})
	}
	group.Wait()
	return last
}

// letsIn says whether a TCP connection comes about within half a second.
func letsIn(h *netns.Host, to netip.AddrPort) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	c, err := h.Dial(ctx, "tcp", to.String())
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// dialEcho opens a TCP flow from the phone to an echo service on the LAN host.
func dialEcho(t *testing.T, s *scene) net.Conn {
	t.Helper()
	return dialEchoAt(t, s, s.home.LAN.Addr4, 7)
}

func dialEchoAt(t *testing.T, s *scene, addr netip.Addr, port uint16) net.Conn {
	t.Helper()
	ln, err := s.home.LAN.Listen(fmt.Sprintf("[::]:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := s.phone.Host.Dial(ctx, "tcp", netip.AddrPortFrom(addr, port).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := echoOnce(c, "hello"); err != nil {
		t.Fatal(err)
	}
	return c
}

// echoOnce sends words over an echo flow and wants them back within ten seconds.
func echoOnce(c net.Conn, words string) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, words); err != nil {
		return err
	}
	b := make([]byte, len(words))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != words {
		return fmt.Errorf("sent %q, got %q", words, b)
	}
	return nil
}

// findURL reads until a URL of the coordinator has come.
func findURL(r io.Reader, base string) (string, error) {
	want := regexp.MustCompile(regexp.QuoteMeta(base) + `/\S+`)
	var got strings.Builder
	b := make([]byte, 1024)
	for got.Len() < 64<<10 {
		n, err := r.Read(b)
		got.Write(b[:n])
		if i := want.FindStringIndex(got.String()); i != nil && i[1] < got.Len() {
			return got.String()[i[0]:i[1]], nil
		}
		if err != nil {
			return "", fmt.Errorf("%w after %q", err, got.String())
		}
	}
	return "", fmt.Errorf("not in %q", got.String())
}
