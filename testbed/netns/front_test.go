package netns_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// allMay lets everybody in the mesh reach everything, those with a tag, too.
const allMay = `{"tagOwners": {"tag:kiosk": []}, "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}`

// frontScene is a home with a web app on a NAS that speaks only HTTP, a printer whose page is at its port 80, and three stock
// members: the owner's, bob's, and a tagged one.
type frontScene struct {
	*homeScene
	phone, bob, kiosk *netns.StockPeer
	nas, printer      *netns.Host
	root              string // path of the home's root certificate
	roots             *x509.CertPool
}

// TestFront: the router speaks TLS for things at home that do not, and for its own page; it tells an app there who calls, whatever
// the caller says; and the policy judges who calls at all.
func TestFront(t *testing.T) {
	lab := netns.New(t)
	s := &frontScene{homeScene: &homeScene{t: t, lab: lab, home: lab.Home(netns.Public)}}
	s.nas, s.printer = lab.Device(s.home, "nas", 51), lab.Device(s.home, "printer", 52)
	s.mesh = lab.HomeMesh(s.home.Router, netns.HomeOptions{URL: "http://home.test", Expose: "chosen", Policy: allMay,
		Devices: []string{"nas=192.168.77.51", "nas=fd77:77::51", "printer=192.168.77.52", "printer=fd77:77::52"}})
	s.phone, s.bob, s.kiosk = s.client("phone", netns.Easy, netns.StockVersions()[0]), s.client("bob", netns.Easy, netns.StockVersions()[0]), s.client("kiosk", netns.Public, netns.StockVersions()[1])
	s.letIn(s.phone)
	s.letIn(s.bob, "--user", "bob")
	s.letIn(s.kiosk, "--tags", "tag:kiosk")
	s.home.LAN.Resolver(netip.MustParseAddr("100.100.100.100"))
	s.app(s.nas, "[::]:5000")
	s.app(s.nas, "[::]:22")
	s.app(s.printer, "[::]:80")
	s.root = filepath.Join(lab.Dir(), "root.crt")
	s.nas.WriteFile(s.root, say(t, s.mesh.Subnetd, "cert", "root"))
	s.roots = x509.NewCertPool()
	if text, err := os.ReadFile(s.root); err != nil || !s.roots.AppendCertsFromPEM(text) {
		t.Fatalf("the root: %v", err)
	}
	say(t, s.mesh.Subnetd, "devices", "web", "nas", "http:5000")
	say(t, s.mesh.Subnetd, "devices", "web", "printer", "80")
	for _, part := range []struct {
		name string
		do   func(*frontScene, *testing.T)
	}{
		{"caller", (*frontScene).caller}, {"spoofed", (*frontScene).spoofed}, {"around", (*frontScene).around}, {"live", (*frontScene).live}, {"plain", (*frontScene).plain},
		{"page", (*frontScene).page}, {"strangers", (*frontScene).strangers}, {"policy", (*frontScene).policy}, {"off", (*frontScene).off},
	} {
		lab.Run(part.name, func(t *testing.T) { part.do(s, t) })
	}
}

// heard is what the app says it was asked.
type heard struct {
	Host, Path, From string
	Header           http.Header
	Body             string
}

// who is what it was told of the caller.
func (h heard) who() string {
	return strings.Join(append(h.Header.Values("Tailscale-User-Login"), h.Header.Values("Tailscale-User-Name")...), " ")
}

// app is a web app that tells what it hears; at /stream it says a word, and another one when it was read; at /echo it
// upgrades to a stream that answers with what it is sent.
func (s *frontScene) app(h *netns.Host, at string) {
	s.t.Helper()
	ln, err := h.Listen(at)
	if err != nil {
		s.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		for k, v := range r.Trailer {
			r.Header[k] = append(r.Header[k], v...)
		}
		_ = json.NewEncoder(w).Encode(heard{r.Host, r.URL.RequestURI(), r.RemoteAddr, r.Header, string(body)})
	})
	mux.HandleFunc("GET /stream", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "first\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("GET /echo", func(w http.ResponseWriter, r *http.Request) {
		c, both, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+r.Header.Get("Upgrade")+"\r\n\r\n")
		_, _ = io.Copy(c, both)
	})
	srv := &http.Server{Handler: mux}
	go func() { _ = srv.Serve(ln) }()
	s.t.Cleanup(func() { _ = srv.Close() })
}

// curl is curl on a host, which trusts the home's root and nobody else.
func (s *frontScene) curl(t *testing.T, h *netns.Host, args ...string) (string, error) {
	t.Helper()
	return h.RunPlain(t.Context(), "curl", append([]string{"-sS", "--max-time", "10", "--cacert", s.root}, args...)...)
}

// hears is what the app at a URL hears of a caller.
func (s *frontScene) hears(t *testing.T, from *netns.Host, args ...string) (h heard) {
	t.Helper()
	netns.Eventually(t, 15*time.Second, from.Name+" asks the app", func() error {
		out, err := s.curl(t, from, args...)
		if err == nil {
			if err = json.Unmarshal([]byte(out), &h); err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
		}
		return err
	})
	return h
}

const nasPage = "https://nas.mesh.internal/"

// caller: two members of different users are told apart, in both families; a tagged one is nobody.
func (s *frontScene) caller(t *testing.T) {
	for _, flag := range []string{"-4", "-6"} {
		for _, w := range []struct {
			from  *netns.StockPeer
			login string
		}{{s.phone, "home"}, {s.bob, "bob"}, {s.kiosk, ""}} {
			h := s.hears(t, w.from.Host, flag, nasPage+"a/b%2Fc?d=e%20f")
			if got := h.Header.Values("Tailscale-User-Login"); w.login == "" && h.who() != "" || w.login != "" && !slices.Equal(got, []string{w.login}) {
				t.Errorf("the app takes %s for %q, want %q", w.from.Host.Name, h.who(), w.login)
			}
			if own := s.addrs(w.from.Host.Name); !slices.Equal(h.Header.Values("X-Forwarded-For"), []string{own[map[string]int{"-4": 0, "-6": 1}[flag]].String()}) {
				t.Errorf("%s comes from %q, is %v", w.from.Host.Name, h.Header.Values("X-Forwarded-For"), own)
			}
			if h.Header.Get("X-Forwarded-Proto") != "https" || h.Header.Get("X-Forwarded-Host") != "nas.mesh.internal" || h.Path != "/a/b%2Fc?d=e%20f" {
				t.Errorf("the app hears %+v", h)
			}
		}
	}
	if out, err := s.curl(t, s.phone.Host, "https://nas.home.mesh.internal/"); err != nil {
		t.Logf("members do not know the longer name: %v %s", err, out)
	}
	if h := s.hears(t, s.phone.Host, "https://printer.mesh.internal/"); h.who() == "" {
		t.Errorf("the printer hears %+v", h)
	}
	if h := s.hears(t, s.phone.Host, "-d", "a body", nasPage); h.Body != "a body" {
		t.Errorf("the app hears %+v", h)
	}
}

// spoofed: what a caller says of himself is gone before the app hears it.
func (s *frontScene) spoofed(t *testing.T) {
	for _, header := range []string{
		"Tailscale-User-Login: root", "tailscale-user-login: root", "TAILSCALE-USER-LOGIN: root", "Tailscale_User_Login: root", "tailscale_user-login: root",
		"Tailscale-User-Name: root", "Tailscale-User-Profile-Pic: http://root/", "Tailscale-Anything: root", "Tailscale_Anything: root",
		"X-Forwarded-For: root", "X-Forwarded-For: 192.168.77.1", "X_Forwarded_For: root", "X-Forwarded-Host: root", "X-Forwarded-Proto: root", "X-Forwarded-Port: root", "Forwarded: for=root",
		"X-Forwarded-User: root", "X-Forwarded-Email: root", "X-Real-IP: root", "Connection: close, Tailscale-User-Login", "Connection: X-Forwarded-For, Tailscale-User-Name",
	} {
		for _, w := range []struct {
			from       *netns.Host
			url, login string
		}{{s.bob.Host, nasPage, "bob"}, {s.kiosk.Host, nasPage, ""}, {s.home.LAN, "https://nas.home.mesh.internal/", ""}} {
			h := s.hears(t, w.from, "-H", header, w.url)
			if h.Header.Get("Tailscale-User-Login") != w.login || len(h.Header.Values("X-Forwarded-For")) != 1 {
				t.Errorf("%s says %q, and is taken for %q at %q", w.from.Name, header, h.who(), h.Header.Values("X-Forwarded-For"))
			}
			for name, values := range h.Header {
				if text := strings.Join(values, " "); strings.Contains(text, "root") || text == "192.168.77.1" {
					t.Errorf("%s says %q, and the app hears %s: %s", w.from.Name, header, name, text)
				}
			}
		}
	}
	s.spoofedRaw(t)
}

// spoofedRaw says what curl would not.
func (s *frontScene) spoofedRaw(t *testing.T) {
	for _, request := range []string{
		"GET / HTTP/1.1\r\nHost: nas.mesh.internal\r\nTailscale-User-Login : root\r\nConnection: close\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: nas.mesh.internal\r\n Tailscale-User-Login: root\r\nConnection: close\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: nas.mesh.internal\r\nTailscale-User-Login: root\r\nTailscale-User-Login: root\r\nConnection: close\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: nas.mesh.internal\r\nX: a\nTailscale-User-Login: root\r\nConnection: close\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: nas.mesh.internal\r\nTransfer-Encoding: chunked\r\nTrailer: Tailscale-User-Login\r\nConnection: close\r\n\r\n1\r\nx\r\n0\r\nTailscale-User-Login: root\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: nas.mesh.internal\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: nas.mesh.internal\r\nTailscale-User-Login: root\r\n\r\n",
		"GET http://nas.mesh.internal/ HTTP/1.1\r\nHost: page.home.mesh.internal\r\nTailscale-User-Login: root\r\nConnection: close\r\n\r\n",
		"GET / HTTP/1.0\r\nHost: nas.mesh.internal\r\nTailscale-User-Login: root\r\n\r\n",
	} {
		c := s.dialTLS(t, s.kiosk.Host, "nas", "nas.mesh.internal")
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(c, request)
		answer, _ := io.ReadAll(c)
		c.Close()
		if strings.Contains(string(answer), "root") {
			t.Errorf("%q is answered with\n%s", request, answer)
		}
	}
}

// dialTLS opens a connection to a thing's port 443 in the mesh.
func (s *frontScene) dialTLS(t *testing.T, from *netns.Host, thing, name string) net.Conn {
	t.Helper()
	raw, err := from.Dial(t.Context(), "tcp", netip.AddrPortFrom(s.addrs(thing)[0], 443).String())
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, &tls.Config{ServerName: name, RootCAs: s.roots, NextProtos: []string{"http/1.1"}})
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return c
}

// around: the app is not reached past the front, where a caller could say who he is; the rest of the thing is as before.
func (s *frontScene) around(t *testing.T) {
	for _, at := range s.addrs("nas") {
		if answers(t.Context(), s.bob.Host, netip.AddrPortFrom(at, 5000)) {
			h := s.hears(t, s.bob.Host, "-H", "Tailscale-User-Login: root", "http://"+netip.AddrPortFrom(at, 5000).String()+"/")
			if h.who() != "bob bob" && h.Header.Get("Tailscale-User-Login") != "bob" {
				t.Errorf("past the front bob is %q", h.who())
			}
		}
		if !answers(t.Context(), s.bob.Host, netip.AddrPortFrom(at, 22)) {
			t.Errorf("another port of the NAS is shut")
		}
	}
}

// live: what the app sends comes at once, and an upgraded connection goes both ways.
func (s *frontScene) live(t *testing.T) {
	for _, upgrade := range []bool{false, true} {
		c := s.dialTLS(t, s.phone.Host, "nas", "nas.mesh.internal")
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		request := "GET /stream HTTP/1.1\r\nHost: nas.mesh.internal\r\n\r\n"
		if upgrade {
			request = "GET /echo HTTP/1.1\r\nHost: nas.mesh.internal\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
		}
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(c)
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		var line string
		if upgrade {
			if _, err := io.WriteString(c, "first\n"); err != nil || res.StatusCode != http.StatusSwitchingProtocols {
				t.Errorf("upgrade: %s %v", res.Status, err)
			}
			line, err = in.ReadString('\n')
		} else {
			line, err = bufio.NewReader(res.Body).ReadString('\n')
		}
		if line != "first\n" {
			t.Errorf("upgrade %v: %q %v", upgrade, line, err)
		}
		c.Close()
	}
}

// plain: who comes by HTTP is led to HTTPS, unless that port is what the thing serves.
func (s *frontScene) plain(t *testing.T) {
	out, err := s.curl(t, s.phone.Host, "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", "http://nas.mesh.internal/a?b")
	if err != nil || !strings.HasPrefix(out, "30") || !strings.HasSuffix(out, "https://nas.mesh.internal/a?b") {
		t.Errorf("http: %v %s", err, out)
	}
	for _, name := range []string{"nobody.mesh.internal", "example.com", "phone.mesh.internal", ""} { // certificates for these are not made, either
		raw, err := s.phone.Host.Dial(t.Context(), "tcp", netip.AddrPortFrom(s.addrs("nas")[0], 443).String())
		if err != nil {
			t.Fatal(err)
		}
		c := tls.Client(raw, &tls.Config{ServerName: name, InsecureSkipVerify: true})
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if err := c.HandshakeContext(t.Context()); err == nil && name != "" {
			t.Errorf("the NAS says that it is %s: %q", name, c.ConnectionState().PeerCertificates[0].DNSNames)
		}
		c.Close()
	}
}

// page: the router's own page is there by TLS, at home and in the mesh, and Chromium has nothing to say against it.
func (s *frontScene) page(t *testing.T) {
	for _, w := range []struct {
		from *netns.Host
		url  string
	}{{s.home.LAN, "https://page.home.mesh.internal/"}, {s.phone.Host, "https://page.home.mesh.internal/"}, {s.phone.Host, "https://home.mesh.internal/"}, {s.home.LAN, "https://home.mesh.internal/"}} {
		for _, flag := range []string{"-4", "-6"} {
			netns.Eventually(t, 10*time.Second, w.from.Name+" opens "+w.url, func() error {
				out, err := s.curl(t, w.from, flag, "--compressed", "-f", w.url)
				if err == nil && !strings.Contains(out, "<title>") {
					err = errors.New(out)
				}
				return err
			})
		}
	}
	var said pageState
	out, err := s.curl(t, s.bob.Host, "-H", "Tailscale-User-Login: home", "-H", "X-Forwarded-For: 192.168.77.50", "https://page.home.mesh.internal/v1/page")
	if err == nil {
		err = json.Unmarshal([]byte(out), &said)
	}
	if err != nil || said.Owner || !strings.HasPrefix(said.Member, "bob") {
		t.Errorf("the page takes bob for %+v: %v\n%s", said, err, out)
	}
	browse(t, s.home.LAN, s.root, "", "https://page.home.mesh.internal/=password")
}

// strangers: from the internet there is no front, whatever name is asked for; the coordinator's own port is another house.
func (s *frontScene) strangers(t *testing.T) {
	stranger := s.lab.Client("stranger", netns.Public)
	out, err := s.home.Router.Output(t.Context(), "ss", "-Hltn")
	if err != nil {
		t.Fatal(err)
	}
	open := 0
	for line := range strings.Lines(string(out)) {
		local := strings.Fields(line)[3]
		port := local[strings.LastIndexByte(local, ':')+1:]
		for _, at := range []netip.Addr{s.home.Router.Addr4, s.home.Router.Addr6} {
			to := netip.MustParseAddrPort(net.JoinHostPort(at.String(), port))
			if port != "8410" && answers(t.Context(), stranger, to) {
				t.Errorf("a stranger reaches port %s", port)
			} else if port == "8410" {
				open++
			}
		}
	}
	if open == 0 {
		t.Errorf("the coordinator is not there:\n%s", out)
	}
	for _, name := range []string{"drop.home.mesh.internal", "ca.home.mesh.internal", "page.home.mesh.internal", "nas.mesh.internal"} {
		for _, path := range []string{"/", "/root.crt", "/acme/directory", "/phone/x"} {
			out, err := s.curl(t, stranger, "-L", "-o", "/dev/null", "-w", "%{http_code}", "--resolve", name+":80:"+s.home.Router.Addr4.String(), "--resolve", name+":443:"+s.home.Router.Addr4.String(), "http://"+name+path)
			got, _ := s.curl(t, stranger, "--resolve", name+":80:"+s.home.Router.Addr4.String(), "http://"+name+path)
			if err == nil && path != "/" && strings.HasPrefix(out, "2") || strings.Contains(got, "BEGIN CERTIFICATE") || strings.Contains(got, "newNonce") {
				t.Errorf("a stranger asks for http://%s%s: %s %s", name, path, out, got)
			}
		}
	}
}

// policy: the rules judge a call by the port that was called. At home nobody is asked.
func (s *frontScene) policy(t *testing.T) {
	nas, home := s.addrs("nas"), s.addrs("home")
	rule := func(ports string) string {
		return fmt.Sprintf(`{"tagOwners": {"tag:kiosk": []}, "hosts": {"nas4": %q, "nas6": %q, "home4": %q, "home6": %q}, "acls": [{"action": "accept", "src": ["bob@"], "dst": ["nas4:%s", "nas6:%[5]s", "home4:%[5]s", "home6:%[5]s"]}]}`,
			nas[0], nas[1], home[0], home[1], ports)
	}
	at := []netip.Addr{nas[0], nas[1], home[0], home[1]}
	for _, w := range []struct {
		ports string
		in    bool
	}{{"443", true}, {"22", false}, {"443", true}} {
		if err := s.mesh.SetPolicy(rule(w.ports)); err != nil {
			t.Fatal(err)
		}
		for _, a := range at {
			s.lets(t, s.bob.Host, netip.AddrPortFrom(a, 443), w.in)
			s.lets(t, s.bob.Host, netip.AddrPortFrom(a, 80), false)
			s.lets(t, s.phone.Host, netip.AddrPortFrom(a, 443), false) // there is no rule for it
		}
	}
	if out, err := s.curl(t, s.home.LAN, "-f", "-o", "/dev/null", "https://page.home.mesh.internal/"); err != nil {
		t.Errorf("at home: %v %s", err, out)
	}
	if err := s.mesh.SetPolicy(allMay); err != nil {
		t.Fatal(err)
	}
}

// lets waits until a port lets somebody in, or does not.
func (s *frontScene) lets(t *testing.T, from *netns.Host, to netip.AddrPort, in bool) {
	t.Helper()
	netns.Eventually(t, 10*time.Second, fmt.Sprintf("%v lets %s in: %v", to, from.Name, in), func() error {
		if answers(t.Context(), from, to) != in {
			return errors.New("not yet")
		}
		return nil
	})
}

// off: taken back, port 443 is the thing's own again, which has none, and so is the app's.
func (s *frontScene) off(t *testing.T) {
	for _, wrong := range [][]string{{"nobody", "80"}, {"nas", "0"}, {"nas", "65536"}, {"nas", "ftp:21"}, {"nas", "http:"}, {"nas"}} {
		if out, err := s.mesh.CLI(append([]string{"devices", "web"}, wrong...)...); exitCode(err) != 1 && exitCode(err) != 2 || strings.Contains(out, "panic") {
			t.Errorf("devices web %q: %d %s", wrong, exitCode(err), out)
		}
	}
	t.Log(say(t, s.mesh.Subnetd, "devices", "web", "nas", "off"))
	netns.Eventually(t, 10*time.Second, "the NAS has no port 443", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if out, err := s.phone.Host.RunPlain(ctx, "curl", "-sSk", "--max-time", "2", nasPage); err == nil {
			return errors.New(out)
		}
		if !answers(t.Context(), s.phone.Host, netip.AddrPortFrom(s.addrs("nas")[0], 5000)) {
			return errors.New("the app is not reached")
		}
		return nil
	})
	if h := s.hears(t, s.phone.Host, "https://printer.mesh.internal/"); h.who() == "" {
		t.Errorf("the printer's page went, too: %+v", h)
	}
}
