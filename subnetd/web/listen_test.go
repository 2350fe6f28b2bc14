package web

import (
	"bufio"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func TestWhere(t *testing.T) {
	at := netip.MustParseAddrPort
	set := Settings{
		Port: 8411, Mesh: []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd7a:115c:a1e0::1")},
		Home: []netip.Prefix{netip.MustParsePrefix("192.168.1.1/24"), netip.MustParsePrefix("fd00::1/64"), netip.MustParsePrefix("fe80::1/64"), netip.MustParsePrefix("192.168.1.1/24")},
	}
	want := []netip.AddrPort{at("127.0.0.1:8411"), at("[::1]:8411"), at("192.168.1.1:8411"), at("[fd00::1]:8411"), at("100.64.0.1:8411"), at("[fd7a:115c:a1e0::1]:8411")}
	if got := set.listen(); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	set.Only = netip.MustParseAddr("fd00::1")
	if got := set.listen(); !slices.Equal(got, want[3:4]) {
		t.Errorf("%v", got)
	}
	set.Only = netip.MustParseAddr("203.0.113.5") // of the WAN
	if got := set.listen(); len(got) != 0 {
		t.Errorf("%v", got)
	}
	if got := (&Settings{}).listen(); len(got) != 0 {
		t.Errorf("%v", got)
	}

	r := newRig(t)
	r.Set(Settings{Port: 8411, Home: set.Home, Mesh: set.Mesh})
	for from, want := range map[string]string{
		"192.168.1.77": overLAN, "192.168.1.1": overLocal, "fd00::77": overLAN, "fd00::1": overLocal, "fd00:0:0:1::77": "", "192.168.2.1": "",
		"127.0.0.1": overLocal, "::1": overLocal, "100.64.0.1": overLocal, "100.64.0.7": overMesh, "100.64.0.99": "",
		"203.0.113.9": "", "0.0.0.0": "", "fe80::2": overLAN,
	} {
		if got := r.over(netip.MustParseAddr(from)); got != want {
			t.Errorf("from %s: %q, want %q", from, got, want)
		}
	}
	if got := r.over(netip.Addr{}); got != "" {
		t.Errorf("from nowhere: %q", got)
	}
}

// TestRun: the page is where it is set to be, and nowhere else; another port is taken up
// without a restart.
func TestRun(t *testing.T) {
	r := newRig(t)
	ports := [...]uint16{20057, 20058} // below those that the kernel gives to whoever asks for any
	loopback := nobodys()
	troubles := make(chan string, 8)
	r.cfg.Trouble = func(text string) { troubles <- text }
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- r.Run(ctx) }()
	answers := func(port uint16) bool {
		c, err := net.Dial("tcp4", netip.AddrPortFrom(loopback, port).String())
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	await := func(port uint16, there bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); answers(port) != there; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("port %d answers: %v", port, !there)
			}
		}
	}
	r.Set(Settings{Port: ports[0], Mesh: []netip.Addr{loopback}, Only: loopback})
	await(ports[0], true)
	r.Set(Settings{Port: ports[1], Mesh: []netip.Addr{loopback}, Only: loopback})
	await(ports[1], true)
	await(ports[0], false)
	other, err := net.Listen("tcp4", netip.AddrPortFrom(loopback, ports[0]).String())
	if err != nil {
		t.Fatal(err)
	}
	r.Set(Settings{Port: ports[0], Mesh: []netip.Addr{loopback}, Only: loopback})
	if text := <-troubles; text != "The page is not served everywhere: another program has "+other.Addr().String()+"." {
		t.Error(text)
	}
	other.Close()
	r.Set(Settings{Port: ports[0], Mesh: []netip.Addr{loopback}, Only: loopback})
	if text := <-troubles; text != "" {
		t.Error(text)
	}
	await(ports[0], true)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	await(ports[0], false)
}

// nobodys is one of this machine's sixteen million own addresses, and nobody else's.
func nobodys() netip.Addr {
	n := rand.Uint32()
	return netip.AddrFrom4([4]byte{127, byte(1 + n>>16%254), byte(n >> 8), byte(1 + n%254)})
}

// TestGiven: a socket that was open before is served, also for who called before, and what
// is at its address is no trouble; all other addresses get sockets of their own.
func TestGiven(t *testing.T) {
	second := nobodys()
	at := netip.MustParseAddrPort("127.0.0.1:20059")
	given, err := net.Listen("tcp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(c *Config) {
		c.Given = []net.Listener{given}
		c.Trouble = func(text string) { t.Errorf("trouble: %q", text) }
	})
	early, err := net.Dial("tcp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	if _, err := io.WriteString(early, "GET /v1/page HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	r.Set(Settings{Port: at.Port(), Home: []netip.Prefix{netip.PrefixFrom(second, 8)}})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- r.Run(ctx) }()
	if res, err := http.ReadResponse(bufio.NewReader(early), nil); err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("who called before: %v, %v", res, err)
	}
	other := netip.AddrPortFrom(second, at.Port()).String()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		res, err := http.Get("http://" + other + "/v1/page")
		if err == nil {
			res.Body.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("another address: %v", err)
		}
	}

	// The owner has the page elsewhere now: the socket is no way around that.
	r.Set(Settings{Port: at.Port(), Only: second, Home: []netip.Prefix{netip.PrefixFrom(second, 8)}})
	res, err := http.Get("http://" + at.String() + "/v1/page")
	if err != nil || res.StatusCode != http.StatusForbidden {
		t.Errorf("where the page is not: %v, %v", res, err)
	} else {
		res.Body.Close()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("tcp4", at.String()); err == nil {
		c.Close()
		t.Error("it is served no more, and still open here")
	}
}

func TestGivenCovers(t *testing.T) {
	for given, covers := range map[string]map[string]bool{
		"127.0.0.1:8411": {"127.0.0.1:8411": true, "127.0.0.2:8411": false, "127.0.0.1:8412": false, "[::1]:8411": false},
		"0.0.0.0:8411":   {"192.168.1.1:8411": true, "[fd00::1]:8411": false, "192.168.1.1:80": false},
		"[::]:8411":      {"192.168.1.1:8411": true, "[fd00::1]:8411": true},
	} {
		s := &Server{cfg: Config{Given: []net.Listener{addressed(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(given)))}}}
		for at, want := range covers {
			if got := s.given(netip.MustParseAddrPort(at)); got != want {
				t.Errorf("%s is where %s is: %v", given, at, got)
			}
		}
	}
}

// addressed is a listener of which only the address matters.
func addressed(a *net.TCPAddr) net.Listener { return onlyAddr{at: a} }

type onlyAddr struct {
	net.Listener
	at *net.TCPAddr
}

func (o onlyAddr) Addr() net.Addr { return o.at }
