package peerapi

import (
	"context"
	"encoding/base64"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/mesh"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func span(from, to string) mesh.Range { return mesh.Range{From: addr(from), To: addr(to)} }

func rule(src, first, last string, ports mesh.PortRange, protos ...uint8) mesh.Rule {
	return mesh.Rule{Srcs: []mesh.Range{span(src, src)}, Dsts: []mesh.Dest{{Range: span(first, last), Ports: ports}}, Protos: protos}
}

func TestMayLeave(t *testing.T) {
	all, any4, any6 := mesh.PortRange{Last: 65535}, [2]string{"0.0.0.0", "255.255.255.255"}, [2]string{"2000::", "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}
	for what, c := range map[string]struct {
		rule mesh.Rule
		from string
		want bool
	}{
		"everything":           {rule("100.64.0.2", any4[0], any4[1], all), "100.64.0.2", true},
		"the internet, v6":     {rule("fd7a:115c:a1e0::2", any6[0], any6[1], all), "fd7a:115c:a1e0::2", true},
		"the other family":     {rule("100.64.0.2", any6[0], any6[1], all), "100.64.0.2", false},
		"somebody else":        {rule("100.64.0.3", any4[0], any4[1], all), "100.64.0.2", false},
		"the LAN only":         {rule("100.64.0.2", "192.168.0.0", "192.168.255.255", all), "100.64.0.2", false},
		"a part":               {rule("100.64.0.2", "8.8.8.8", "8.8.8.8", all), "100.64.0.2", false},
		"web only":             {rule("100.64.0.2", any4[0], any4[1], mesh.PortRange{First: 80, Last: 443}), "100.64.0.2", false},
		"DNS only":             {rule("100.64.0.2", any4[0], any4[1], mesh.PortRange{First: 53, Last: 53}), "100.64.0.2", true},
		"pings only":           {rule("100.64.0.2", any4[0], any4[1], all, 1), "100.64.0.2", false},
		"TCP among its protos": {rule("100.64.0.2", any4[0], any4[1], all, 17, 6), "100.64.0.2", true},
	} {
		if got := MayLeave([]mesh.Rule{c.rule}, addr(c.from)); got != c.want {
			t.Errorf("%s: got %v", what, got)
		}
	}
	if MayLeave(nil, addr("100.64.0.2")) {
		t.Error("no rules let somebody out")
	}
}

const sometime = 30 * time.Second // is enough for what has to happen, on any machine

// rig is a Server on loopback addresses, of which 127.0.0.2 is a member that may
// leave and 127.0.0.3 one that may not.
type rig struct {
	t     *testing.T
	s     *Server
	at    netip.AddrPort
	asked chan string
	taken chan uint16
}

// nobodys is one of this machine's sixteen million own addresses, and a port below those that the kernel gives to whoever
// asks for any: one that was free a moment ago may be another test's by now.
func nobodys() netip.AddrPort {
	n := rand.Uint32()
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, byte(1 + n>>16%254), byte(n >> 8), byte(1 + n%254)}), 20054)
}

func newRig(t *testing.T, change func(*Settings)) *rig {
	t.Helper()
	at := nobodys()
	own := at.Addr().As4()
	own[0] = 10
	r := &rig{t: t, at: at, asked: make(chan string, 100), taken: make(chan uint16, 10)}
	r.s = New(Config{
		Ask: func(_ context.Context, msg []byte, from netip.Addr) []byte {
			r.asked <- from.String() + " " + string(msg)
			if string(msg) == "too much" {
				return nil
			}
			return []byte("answer to " + string(msg))
		},
		Files: func(w http.ResponseWriter, r *http.Request, from mesh.Node) {
			b, _ := io.ReadAll(r.Body)
			_, _ = io.WriteString(w, from.Name+" sends "+r.URL.Path+": "+string(b))
		},
		Taken: func(p uint16) { r.taken <- p }, Log: slog.New(slog.DiscardHandler),
	})
	set := Settings{
		Port: at.Port(), Own: []netip.Addr{netip.AddrFrom4(own), at.Addr()}, Exit: true, // the first is yet to come
		Peers: []mesh.Node{{Name: "phone", Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32"), netip.MustParsePrefix("127.0.0.5/32")}}, {Addresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.3/32")}}},
		Rules: []mesh.Rule{rule("127.0.0.2", "0.0.0.0", "255.255.255.255", mesh.PortRange{Last: 65535})},
	}
	if change != nil {
		change(&set)
	}
	r.s.Set(set)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- r.s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return r
}

// do sends a request from that address, and gives "refused" if nobody listens to it.
func (r *rig) do(from, method, path, body string, header ...string) string {
	r.t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(r.t.Context(), method, "http://"+r.at.String()+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
	}
	res, err := (&http.Client{Transport: tr, Timeout: sometime}).Do(req)
	if err != nil {
		return "refused"
	}
	defer res.Body.Close()
	out, _ := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusOK {
		return res.Status[:3]
	}
	return strings.TrimSpace(res.Header.Get("Content-Type") + " " + string(out))
}

// up waits until the server listens.
func (r *rig) up() {
	r.t.Helper()
	for deadline := time.Now().Add(sometime); ; time.Sleep(time.Millisecond) {
		c, err := net.Dial("tcp", r.at.String())
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatal(err)
		}
	}
}

func TestRequests(t *testing.T) {
	r := newRig(t, nil)
	r.up()
	b64 := base64.RawURLEncoding.EncodeToString
	post := []string{"Content-Type", dnsType}
	for _, c := range []struct {
		from, method, path, body string
		header                   []string
		want                     string
	}{
		{"127.0.0.2", "POST", "/dns-query", "q", post, dnsType + " answer to q"},
		{"127.0.0.2", "GET", "/dns-query?dns=" + b64([]byte("q?>")), "", nil, dnsType + " answer to q?>"},
		{"127.0.0.2", "POST", "/dns-query", "q", append([]string{"Host", "peer"}, post...), dnsType + " answer to q"},
		{"127.0.0.2", "POST", "/dns-query", "too much", post, "503"},
		{"127.0.0.2", "POST", "/dns-query", "q", nil, "415"},
		{"127.0.0.2", "POST", "/dns-query", "", post, "400"},
		{"127.0.0.2", "POST", "/dns-query", strings.Repeat("q", mostQuery+1), post, "413"},
		{"127.0.0.2", "GET", "/dns-query?dns=%25", "", nil, "400"},
		{"127.0.0.2", "GET", "/dns-query", "", nil, "400"},
		{"127.0.0.2", "GET", "/dns-query?dns=" + b64(make([]byte, mostQuery+1)), "", nil, "414"},
		{"127.0.0.2", "PUT", "/dns-query", "q", post, "405"},
		{"127.0.0.2", "GET", "/", "", nil, ""},
		{"127.0.0.3", "HEAD", "/", "", nil, ""},
		{"127.0.0.2", "PUT", "/v0/put/x", "a file", nil, "text/plain; charset=utf-8 phone sends /v0/put/x: a file"},
		{"127.0.0.5", "PUT", "/v0/put/x", "a file", nil, "403"}, // a device behind it
		{"127.0.0.4", "PUT", "/v0/put/x", "a file", nil, "refused"},
		{"127.0.0.2", "PUT", "/v0/put/x", "a file", []string{"Origin", "http://evil.example"}, "403"},
		{"127.0.0.2", "PUT", "/", "x", nil, "404"},
		{"127.0.0.3", "POST", "/dns-query", "q", post, "403"}, // the policy
		{"127.0.0.4", "POST", "/dns-query", "q", post, "refused"},
		// pages
		{"127.0.0.2", "POST", "/dns-query", "q", append([]string{"Origin", "http://evil.example"}, post...), "403"},
		{"127.0.0.2", "GET", "/", "", []string{"Referer", "http://evil.example/"}, "403"},
		{"127.0.0.2", "GET", "/", "", []string{"Host", "evil.example"}, "403"},
		{"127.0.0.2", "GET", "/", "", []string{"Host", "127.0.0.9:80"}, "403"},
	} {
		if got := r.do(c.from, c.method, c.path, c.body, c.header...); got != c.want {
			t.Errorf("%s %s %.40s %q: got %q, want %q", c.from, c.method, c.path, c.header, got, c.want)
		}
	}
	if got := <-r.asked; got != "127.0.0.2 q" {
		t.Errorf("asked as %q", got)
	}
}

func TestNoExit(t *testing.T) {
	r := newRig(t, func(s *Settings) { s.Exit = false })
	r.up()
	if got := r.do("127.0.0.2", "POST", "/dns-query", "q", "Content-Type", dnsType); got != "403" {
		t.Errorf("got %q", got)
	}
}

// TestTaken: a port that another program has is given up.
func TestTaken(t *testing.T) {
	const taken = 20055
	r := newRig(t, func(s *Settings) {
		s.Port = taken
		ln, err := net.Listen("tcp", netip.AddrPortFrom(s.Own[1], taken).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
	})
	if got := <-r.taken; got != taken {
		t.Errorf("told of %d, want %d", got, taken)
	}
	set := r.s.now.Load().Settings
	set.Port = r.at.Port()
	r.s.Set(set)
	r.up()
	set.Own = nil
	r.s.Set(set)
	for deadline := time.Now().Add(sometime); ; time.Sleep(time.Millisecond) {
		c, err := net.Dial("tcp", r.at.String())
		if err != nil {
			break
		}
		c.Close()
		if time.Now().After(deadline) {
			t.Fatal("it still listens on an address that is not ours")
		}
	}
}

func TestConnectionsBounded(t *testing.T) {
	r := newRig(t, nil)
	r.up()
	var open []net.Conn
	served := 0
	for range mostPerMember + 4 {
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.2")}}).Dial("tcp", r.at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = c.Write([]byte("GET / HTTP/1.1\r\nHost: peer\r\n\r\n"))
		_ = c.SetReadDeadline(time.Now().Add(sometime))
		if n, _ := c.Read(make([]byte, 100)); n > 0 {
			served++
			open = append(open, c)
		}
	}
	if served != mostPerMember {
		t.Errorf("%d connections of one member", served)
	}
	if got := r.do("127.0.0.3", "GET", "/", ""); got != "" {
		t.Errorf("another member gets %q", got)
	}
	for _, c := range slices.Backward(open) {
		c.Close()
	}
	for deadline := time.Now().Add(sometime); r.do("127.0.0.2", "GET", "/", "") != ""; {
		if time.Now().After(deadline) {
			t.Fatal("the connections that ended still count")
		}
	}
}
