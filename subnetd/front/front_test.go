package front

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
)

// app tells what it is asked.
func app() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		for k, v := range r.Trailer {
			r.Header[k] = append(r.Header[k], v...)
		}
		_ = json.NewEncoder(w).Encode(heard{r.Host, r.Method + " " + r.URL.RequestURI(), n, r.Header})
	})
	mux.HandleFunc("GET /echo", func(w http.ResponseWriter, r *http.Request) {
		c, both, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(c, both)
	})
	mux.HandleFunc("GET /drip", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "first\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("GET /half", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "10")
		_, _ = io.WriteString(w, "half!")
	})
	mux.HandleFunc("GET /trailer", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		w.Header().Set("Connection", "X-Mine")
		w.Header().Set("X-Mine", "for one connection")
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, "all")
		w.Header().Set("X-Sum", "5")
	})
	mux.HandleFunc("GET /other", func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n")
	})
	return mux
}

type heard struct {
	Host, What string
	Bytes      int64
	Header     http.Header
}

func TestRoutes(t *testing.T) {
	r := newRig(t, app())
	itself := r.itself()
	at := fmt.Sprintf(":%d", itself.Port())
	for _, c := range []struct {
		name string
		from netip.Addr
		to   netip.AddrPort
		url  string
		want string
	}{
		{"the page", phone, self443, "https://page.home.mesh/", "200 page 127.0.0.9 100.64.0.1:443"},
		{"the page, by this router's name", phone, self443, "https://home.mesh/x", "200 page 127.0.0.9 100.64.0.1:443"},
		{"the page, from the sofa", sofa, self443, "https://page.home.mesh/", "200 page 127.0.1.2 100.64.0.1:443"},
		{"files", phone, self443, "https://drop.home.mesh/phone/", "200 drop 127.0.0.9 100.64.0.1:443"},
		{"files, in the clear", sofa, self80, "http://Drop.home.mesh:80/phone/", "200 drop 127.0.1.2 100.64.0.1:80"},
		{"the root, before it is trusted", sofa, self80, "http://ca.home.mesh/root.crt", "200 ca 127.0.1.2 100.64.0.1:80"},
		{"the page, in the clear", sofa, self80, "http://page.home.mesh/a%2Fb?c", "307 https://page.home.mesh/a%2Fb?c"},
		{"by this router's name, in the clear", sofa, self80, "http://home.mesh/", "307 https://home.mesh/"},
		{"by its address", sofa, self80, "http://100.64.0.1/", "307 https://page.home.mesh/"},
		{"by the name of another", sofa, self80, "http://evil.example/", "307 https://page.home.mesh/"},
		{"a name that is another's", sofa, self443, "https://nas.mesh/", "nothing"},
		{"a member who may not", tagged, self443, "https://page.home.mesh/", "nothing"},
		{"a stranger", stranger, self443, "https://page.home.mesh/", "nothing"},
		{"a stranger, a device", stranger, nas443, "https://nas.mesh/", "nothing"},
		{"what was not meant for anybody", sofa, netip.MustParseAddrPort("100.64.0.1:7443"), "http://page.home.mesh/", "nothing"},
		{"a device, in the clear", phone, nas80, "http://nas/x", "307 https://nas.mesh/x"},
		{"a device, where the rules do not let", tagged, nas80, "http://nas.mesh/x", "nothing"},
		{"a name that is not the device's", phone, nas443, "https://page.home.mesh/", "nothing"},
	} {
		if got := r.get(c.from, c.to, c.url); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	for _, c := range []struct {
		from netip.Addr
		to   netip.AddrPort
		url  string
	}{{phone, nas443, "https://nas.mesh/a%2Fb?c"}, {phone, nas443, "https://nas.home.mesh/a%2Fb?c"}, {sofa, itself, "http://nas.mesh" + at + "/a%2Fb?c"}} {
		if got := r.get(c.from, c.to, c.url); !strings.Contains(got, `"What":"GET /a%2Fb?c"`) {
			t.Errorf("%s: %q", c.url, got)
		}
	}
	q, _ := http.NewRequest(http.MethodPut, "http://nas.mesh/", strings.NewReader("secret"))
	if res, err := r.ask(phone, nas80, "", q); err != nil || res.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("what is sent in the clear is sent on: %v, %v", res, err)
	}
}

func TestDeviceHears(t *testing.T) {
	r := newRig(t, app())
	body := strings.Repeat("x", 1<<20)
	spoofed := http.Header{"Cookie": {"a=b"}, "X-Own": {"mine"}}
	for _, name := range []string{
		"Tailscale-User-Login", "tailscale_user_login", "Tailscale_User-Name", "TAILSCALE-ANYTHING", "Forwarded", "X-Real-Ip",
		"X-Forwarded-For", "x_forwarded_for", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-User",
	} {
		spoofed[name] = []string{"root", "root"}
	}
	spoofed["Connection"] = []string{"Tailscale-User-Login, X-Forwarded-For, X-Forwarded-Proto"}
	for _, c := range []struct {
		name, host, login, called, proto string
		from                             netip.Addr
		to                               netip.AddrPort
	}{
		{"ann", "nas.mesh", "ann@example.org", "=?utf-8?q?Ann_=C3=96.?=", "https", phone, nas443},
		{"ann, by its address", "100.64.5.5", "ann@example.org", "=?utf-8?q?Ann_=C3=96.?=", "https", phone, nas443},
		{"ann, where it speaks itself", "nas", "ann@example.org", "=?utf-8?q?Ann_=C3=96.?=", "http", phone, r.itself()},
		{"ann, led there by somebody's page", "evil.example", "", "", "http", phone, r.itself()},
		{"what is nobody's", "nas.mesh", "", "", "https", tagged, nas443},
		{"somebody at home", "nas.mesh", "", "", "https", sofa, nas443},
	} {
		q, err := http.NewRequest(http.MethodPost, c.proto+"://"+c.host+"/up", struct{ io.Reader }{strings.NewReader(body)})
		if err != nil {
			t.Fatal(err)
		}
		q.Header = spoofed.Clone()
		q.Trailer = http.Header{"Tailscale-User-Login": {"root"}}
		sni := "nas.mesh"
		res, err := r.ask(c.from, c.to, sni, q)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		var h heard
		if err := json.NewDecoder(res.Body).Decode(&h); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{
			"Tailscale-User-Login": c.login, "Tailscale-User-Name": c.called, "X-Forwarded-For": c.from.String(), "X-Forwarded-Proto": c.proto,
			"X-Forwarded-Host": c.host, "Cookie": "a=b", "X-Own": "mine",
		} {
			if got := strings.Join(h.Header.Values(name), " "); got != want {
				t.Errorf("%s: the device hears %s: %q, want %q", c.name, name, got, want)
			}
		}
		if text, _ := json.Marshal(h.Header); strings.Contains(string(text), "root") {
			t.Errorf("%s: the device hears %s", c.name, text)
		}
		if h.Host != c.host || h.What != "POST /up" || h.Bytes != int64(len(body)) {
			t.Errorf("%s: the device hears %s of %d bytes for %s", c.name, h.What, h.Bytes, h.Host)
		}
	}
}

// A connection goes both ways, and what a device sends comes when it does.
func TestLive(t *testing.T) {
	r := newRig(t, app())
	for _, request := range []string{
		"GET /echo HTTP/1.1\r\nHost: nas.mesh\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		"GET /drip HTTP/1.1\r\nHost: nas.mesh\r\n\r\n",
	} {
		c, err := r.hello(r.dial(phone, nas443), "nas.mesh")
		if err != nil {
			t.Fatal(err)
		}
		if got := liveLine(t, c, request); got != "first\n" {
			t.Errorf("%q is answered with %q", request, got)
		}
	}
}

// liveLine is the first line that is sent after the head of the answer.
func liveLine(t *testing.T, c net.Conn, request string) string {
	t.Helper()
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(c)
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		if _, err := io.WriteString(c, "first\n"); err != nil {
			t.Fatal(err)
		}
	} else {
		in = bufio.NewReader(res.Body)
	}
	line, err := in.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return line
}

// What a device answers arrives whole or not at all, without what was for the router.
func TestAnswers(t *testing.T) {
	r := newRig(t, app())
	ask := func(path string, h http.Header) (*http.Response, error) {
		q, err := http.NewRequest(http.MethodGet, "https://nas.mesh"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		maps.Copy(q.Header, h)
		return r.ask(phone, nas443, "nas.mesh", q)
	}
	if res, err := ask("/half", nil); err == nil {
		t.Errorf("half an answer looks whole: %v", res)
	}
	res, err := ask("/trailer", nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusTeapot || res.Trailer.Get("X-Sum") != "5" || res.Header.Get("X-Mine") != "" {
		t.Errorf("%s %v, trailer %v", res.Status, res.Header, res.Trailer)
	}
	res, err = ask("/other", http.Header{"Connection": {"keep-alive, UPGRADE"}, "Upgrade": {"websocket"}})
	if err != nil || res.StatusCode != http.StatusBadGateway {
		t.Errorf("another protocol than was asked for: %v, %v", res, err)
	}
	q, _ := http.NewRequest(http.MethodConnect, "http://nas.mesh", nil)
	if res, err := r.ask(phone, r.itself(), "", q); err != nil || res.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("it is a proxy: %v, %v", res, err)
	}
}

// What the rules do not let any more, and what is served elsewhere now, is closed at
// once; all else goes on.
func TestSetCuts(t *testing.T) {
	const upgrade = "GET /echo HTTP/1.1\r\nHost: nas.mesh\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
	for _, c := range []struct {
		name   string
		change func(*Settings)
		closed bool
	}{
		{"nothing", func(*Settings) {}, false},
		{"another rule is gone", func(s *Settings) { s.Rules = s.Rules[:1] }, false},
		{"its rule is gone", func(s *Settings) { s.Rules = s.Rules[1:] }, true},
		{"it may call another port only", func(s *Settings) { s.Rules[0] = rule(phone, nas443.Addr(), 80, 80) }, true},
		{"the device is not served", func(s *Settings) { s.Sites = nil }, true},
		{"it is asked elsewhere", func(s *Settings) {
			s.Sites = []Site{s.Sites[0]}
			s.Sites[0].Maps = []host.DeviceMap{{Mesh: nas443.Addr(), LAN: netip.MustParseAddr("127.0.0.2")}}
		}, true},
		{"there is no mesh", func(s *Settings) { *s = Settings{} }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, app())
			conn, err := r.hello(r.dial(phone, nas443), "nas.mesh")
			if err != nil {
				t.Fatal(err)
			}
			if got := liveLine(t, conn, upgrade); got != "first\n" {
				t.Fatal(got)
			}
			next := r.set
			next.Rules = append([]mesh.Rule{}, r.set.Rules...)
			c.change(&next)
			r.Set(next)
			_, err = io.WriteString(conn, "second\n")
			line, readErr := bufio.NewReader(conn).ReadString('\n')
			if closed := err != nil || readErr != nil; closed != c.closed {
				t.Errorf("closed: %v (%q, %v, %v)", closed, line, err, readErr)
			}
		})
	}
}

func TestSilentDevice(t *testing.T) {
	r := newRig(t, app())
	at := netip.MustParseAddr("127.0.0.1")
	if r.Asked(at, patience) {
		t.Error("a device is called for nobody")
	}
	next := r.set
	site := next.Sites[0]
	gone := listen(t)
	site.Port = gone.Addr().(*net.TCPAddr).AddrPort().Port()
	_ = gone.Close()
	next.Sites = []Site{site}
	r.Set(next)
	if got := r.get(phone, nas443, "https://nas.mesh/"); !strings.HasPrefix(got, "502 nas.mesh does not answer at its port ") {
		t.Error(got)
	}
	if !r.Asked(at, patience) || r.Asked(netip.MustParseAddr("127.0.0.2"), patience) {
		t.Error("it is not known which device was called")
	}
	if r.later(patience + 1); r.Asked(at, patience) {
		t.Error("a device is called for ever")
	}
}

// Nobody takes all there is.
func TestBounds(t *testing.T) {
	r := newRig(t, app())
	for range connsEach {
		c := r.dial(phone, r.itself())
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: nas\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.get(phone, r.itself(), "http://nas/"); got != "nothing" {
		t.Errorf("one more than may be: %q", got)
	}
	if got := r.get(sofa, r.itself(), "http://nas/"); !strings.HasPrefix(got, "200 ") {
		t.Errorf("another one: %q", got)
	}
}

func TestReserved(t *testing.T) {
	for name, want := range map[string]bool{
		"Tailscale-User-Login": true, "tailscale_x": true, "TailScale-": true, "X-FORWARDED-FOR": true, "X_Forwarded-Anything": true, "forwarded": true, "X_Real_IP": true,
		"Tailscale": false, "X-Forwarded": false, "X-Own": false, "Authorization": false, "Via": false,
	} {
		if reserved(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}
