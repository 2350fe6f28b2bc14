package web

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"subnetd/subnetd/status"
)

func TestRefused(t *testing.T) {
	r := newRig(t)
	cookie := r.loggedIn()
	tests := []struct {
		name string
		q    request
		want int
	}{
		{"status", request{path: "/v1/status"}, 200},
		{"no cookie", request{path: "/v1/status", cookie: "-"}, 401},
		{"a stranger", request{path: "/v1/page", from: world}, 403},
		{"a stranger with a cookie", request{path: "/v1/status", from: world}, 403},
		{"by name", request{path: "/v1/status", host: "router:8411"}, 200},
		{"by name, loud", request{path: "/v1/status", host: "ROUTER.lan."}, 200},
		{"by mesh name", request{path: "/v1/status", host: "router.mesh.internal:8411"}, 200},
		{"by mesh address", request{path: "/v1/status", host: "100.64.0.1:8411"}, 200},
		{"by localhost", request{path: "/v1/status", host: "localhost:9000"}, 200},
		{"by ::1", request{path: "/v1/status", host: "[::1]:9000"}, 200},
		{"rebound", request{path: "/v1/status", host: "evil.example"}, 421},
		{"rebound, the page", request{path: "/", host: "evil.example:8411"}, 421},
		{"rebound, login", request{path: "/v1/page/login", host: "evil.example", body: "{}"}, 421},
		{"like our name", request{path: "/v1/status", host: "router.evil.example"}, 421},
		{"another address", request{path: "/v1/status", host: "192.168.1.2:8411"}, 421},
		{"no host", request{path: "/v1/status", host: ":8411"}, 421},
		{"down", request{path: "/v1/down", body: "{}"}, 200},
		{"from our page", request{path: "/v1/down", body: "{}", header: map[string]string{"Origin": "http://192.168.1.1:8411"}}, 200},
		{"cross-site by origin", request{path: "/v1/down", body: "{}", header: map[string]string{"Origin": "http://evil.example"}}, 403},
		{"cross-site by another port", request{path: "/v1/down", body: "{}", header: map[string]string{"Origin": "http://192.168.1.1:80"}}, 403},
		{"cross-site by no origin", request{path: "/v1/down", body: "{}", header: map[string]string{"Origin": "null"}}, 403},
		{"cross-site by fetch", request{path: "/v1/down", body: "{}", header: map[string]string{"Sec-Fetch-Site": "cross-site"}}, 403},
		{"same site is not enough", request{path: "/v1/down", body: "{}", header: map[string]string{"Sec-Fetch-Site": "same-site"}}, 403},
		{"a form", request{path: "/v1/down", body: "{}", header: map[string]string{"Content-Type": "text/plain"}}, 415},
		{"no kind", request{path: "/v1/down", body: "{}", header: map[string]string{"Content-Type": ""}}, 415},
		{"json with a charset", request{path: "/v1/down", body: "{}", header: map[string]string{"Content-Type": "application/json; charset=utf-8"}}, 200},
		{"change by GET", request{path: "/v1/down"}, 405},
		{"PUT", request{method: "PUT", path: "/v1/down", body: "{}"}, 405},
		{"DELETE", request{method: "DELETE", path: "/v1/status"}, 405},
		{"OPTIONS", request{method: "OPTIONS", path: "/v1/down", header: map[string]string{"Origin": "http://evil.example"}}, 405},
		{"POST to a file", request{path: "/index.html", body: "{}"}, 405},
		{"no such file", request{path: "/x.js"}, 404},
		{"no such thing", request{path: "/v1/x"}, 404},
		{"no such thing of the login", request{path: "/v1/page/x", body: "{}"}, 404},
		{"login by GET", request{path: "/v1/page/login"}, 405},
		{"reset", request{path: "/v1/page/reset", body: `{"password":"another password"}`}, 404},
		{"unknown field", request{path: "/v1/up", body: `{"x":1}`}, 400},
		{"two values", request{path: "/v1/up", body: `{}{}`}, 400},
		{"not JSON", request{path: "/v1/page/login", body: `password=x`}, 400},
		{"a trial is under way", request{path: "/v1/settings", body: `{}`}, 409},
		{"nothing to confirm", request{path: "/v1/settings/confirm", body: `{"id":"x"}`}, 409},
		{"a code", request{path: "/v1/qr?text=hello"}, 200},
		{"a code of nothing", request{path: "/v1/qr"}, 400},
		{"a code of too much", request{path: "/v1/qr?text=" + strings.Repeat("x", 2000)}, 400},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			switch tt.q.cookie {
			case "":
				tt.q.cookie = cookie
			case "-":
				tt.q.cookie = ""
			}
			a := r.do(tt.q)
			if a.code != tt.want {
				t.Fatalf("%d %s, want %d", a.code, a.body, tt.want)
			}
			for k, want := range map[string]string{
				"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
				"X-Frame-Options": "DENY", "Cross-Origin-Resource-Policy": "same-origin", "Access-Control-Allow-Origin": "",
			} {
				if got := a.header.Get(k); got != want {
					t.Errorf("%s: %q, want %q", k, got, want)
				}
			}
			if a.code >= 400 && !strings.HasPrefix(string(a.body), `{"error":"`) {
				t.Errorf("%s is no error in words", a.body)
			}
		})
	}
}

// TestMoved: a browser that was here before the page moved is here no more, by no connection of before either.
func TestMoved(t *testing.T) {
	r := newRig(t)
	cookie := r.loggedIn()
	events, err := r.send(request{path: "/v1/events", cookie: cookie})
	if err != nil {
		t.Fatal(err)
	}
	defer events.Body.Close()
	defer time.AfterFunc(time.Minute, func() { _ = events.Body.Close() }).Stop() // a stream that goes on is a failure
	moved := *r.now.Load()
	moved.Port++
	r.Set(moved)
	for _, q := range []request{{path: "/v1/page"}, {path: "/v1/settings/confirm", body: `{"id":"1"}`}, {path: "/"}} {
		q.cookie = cookie
		if a := r.do(q); a.code != http.StatusForbidden {
			t.Errorf("%s: %d", q.path, a.code)
		}
	}
	r.house.change(func(snap *status.Snapshot, _ *Rest) { snap.Name = "other" })
	if told, err := io.ReadAll(events.Body); err != nil || strings.Contains(string(told), `"other"`) {
		t.Errorf("%v: %s", err, told)
	}
	moved.Port--
	r.Set(moved)
	if a := r.do(request{path: "/v1/status", cookie: cookie}); a.code != http.StatusOK {
		t.Error("back again:", a.code)
	}
}

// TestTrustworthy: what counts in a secure context only is sent there only.
func TestTrustworthy(t *testing.T) {
	r := newRig(t)
	for host, want := range map[string]string{
		"192.168.1.1:8411": "", "router.lan:8411": "", "100.64.0.1": "",
		"localhost:8411": "same-origin", "127.0.0.1:8411": "same-origin", "[::1]:8411": "same-origin", "LOCALHOST": "same-origin",
	} {
		if got := r.do(request{path: "/v1/page", host: host}).header.Get("Cross-Origin-Opener-Policy"); got != want {
			t.Errorf("%s: %q, want %q", host, got, want)
		}
	}
}

// zeros is a body without end.
type zeros struct{ read atomic.Int64 }

func (z *zeros) Read(b []byte) (int, error) {
	clear(b)
	z.read.Add(int64(len(b)))
	return len(b), nil
}

func TestBigBody(t *testing.T) {
	r := newRig(t)
	cookie := r.loggedIn()
	const size = 100 << 20
	for _, path := range []string{"/v1/page/login", "/v1/up", "/v1/restore", "/v1/settings", "/v1/down"} {
		for _, told := range []bool{true, false} {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			z := &zeros{}
			req, err := http.NewRequest(http.MethodPost, r.url+path, io.LimitReader(z, size))
			if err != nil {
				t.Fatal(err)
			}
			req.Host = "router"
			req.Header.Set("Content-Type", "application/json")
			req.AddCookie(&http.Cookie{Name: cookieName, Value: cookie})
			if told {
				req.ContentLength = size
			}
			res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dialAs(atHome)}}).Do(req)
			if err == nil { // a server that stops reading may be heard as a reset
				res.Body.Close()
				if want := map[bool]int{true: http.StatusRequestEntityTooLarge, false: http.StatusLengthRequired}[told]; res.StatusCode != want {
					t.Errorf("%s, told %v: %d, want %d", path, told, res.StatusCode, want)
				}
			}
			runtime.ReadMemStats(&after)
			t.Logf("%s, size told %v: %d kB of 100 MB were sent, %d kB were allocated", path, told, z.read.Load()>>10, (after.TotalAlloc-before.TotalAlloc)>>10)
			if z.read.Load() > 32<<20 || after.TotalAlloc-before.TotalAlloc > 4<<20 {
				t.Errorf("%s, told %v: too much was read", path, told)
			}
		}
	}
}

func TestSetup(t *testing.T) {
	body := status.PageSecret{Password: password}
	setup := request{path: "/v1/page/setup", body: body}
	state := func(r *rig, from netip.Addr) string {
		return r.do(request{path: "/v1/page", from: from}).page(r.t).State
	}
	t.Run("once", func(t *testing.T) {
		r := newRig(t)
		if s := state(r, atHome); s != status.PageSetup {
			t.Fatal(s)
		}
		if a := r.do(request{path: "/v1/status"}); a.code != 401 {
			t.Fatal("nobody has logged in", a.code)
		}
		if a := r.do(request{path: "/v1/page/setup", body: status.PageSecret{Password: "short"}}); a.code != 400 || !strings.Contains(string(a.body), "8 characters") {
			t.Fatalf("%d %s", a.code, a.body)
		}
		var in atomic.Int32
		var all sync.WaitGroup
		for range 3 { // at once: one is the first
			all.Go(func() {
				if res, err := r.send(setup); err == nil {
					res.Body.Close()
					if res.StatusCode == http.StatusOK {
						in.Add(1)
					}
				}
			})
		}
		all.Wait()
		if in.Load() != 1 {
			t.Fatalf("%d were the first", in.Load())
		}
		if a := r.do(setup); a.code != 403 {
			t.Fatal(a.code)
		}
		if s := state(r, atHome); s != status.PageLogin {
			t.Fatal(s)
		}
		if f := string(r.store.files[secretFile]); strings.Contains(f, password) || !strings.Contains(f, "hash") {
			t.Fatal(f)
		}
		r.loggedIn()
		again := newRig(t, func(c *Config) { c.Store = r.store }) // another life
		again.loggedIn()
	})
	t.Run("not from the mesh", func(t *testing.T) {
		r := newRig(t)
		setup := setup
		setup.from = owner
		if a := r.do(setup); a.code != 403 {
			t.Fatal(a.code)
		}
		if s := state(r, owner); s != status.PageLogin { // who he is, not what he knows, lets him in
			t.Fatal(s)
		}
	})
	t.Run("not for ever", func(t *testing.T) {
		r := newRig(t)
		r.pass(setupFor + time.Second)
		if a := r.do(setup); a.code != 403 || !strings.Contains(string(a.body), "subnetd web password") {
			t.Fatalf("%d %s", a.code, a.body)
		}
		if s := state(r, atHome); s != status.PageShut {
			t.Fatal(s)
		}
		if err := r.SetPassword(t.Context(), password); err != nil { // by the socket
			t.Fatal(err)
		}
		r.loggedIn()
	})
	t.Run("not after a damaged file", func(t *testing.T) {
		for _, m := range []*memory{{lost: "page.corrupt-1"}, {files: map[string][]byte{secretFile: []byte("{")}}, {files: map[string][]byte{secretFile: []byte("{}")}}} {
			r := newRig(t, func(c *Config) { c.Store = m })
			if a := r.do(setup); a.code != 403 {
				t.Fatal(a.code)
			}
			if s := state(r, atHome); s != status.PageShut {
				t.Fatal(s)
			}
		}
	})
}

func TestLogin(t *testing.T) {
	r := newRig(t)
	mine := r.loggedIn()
	other := r.loggedIn()
	status1 := func(cookie string) int { return r.do(request{path: "/v1/status", cookie: cookie}).code }
	if status1(mine) != 200 || status1(other) != 200 || status1("x") != 401 || status1(mine+"x") != 401 {
		t.Fatal("sessions are mixed up")
	}
	p := r.do(request{path: "/v1/page", cookie: mine}).page(t)
	if p.State != status.PageIn || !p.Owner || p.Host != "router" || p.Over != overLAN || p.Version != "1" || p.Boot != r.boot {
		t.Fatalf("%+v", p)
	}
	for _, kept := range r.sessions.all {
		if strings.Contains(fmt.Sprint(kept), mine) {
			t.Fatal("the secret itself is kept")
		}
	}
	a := r.do(request{path: "/v1/page/login", body: status.PageSecret{Password: password}})
	if c := a.header.Get("Set-Cookie"); !strings.Contains(c, "HttpOnly") || !strings.Contains(c, "SameSite=Strict") || !strings.Contains(c, "Path=/") {
		t.Fatal(c)
	}

	a = r.do(request{path: "/v1/page/logout", body: "{}", cookie: mine})
	if a.page(t).State != status.PageLogin || status1(mine) != 401 || status1(other) != 200 {
		t.Fatalf("after logout: %s, %d, %d", a.body, status1(mine), status1(other))
	}

	change := func(cookie, old, new string) reply {
		return r.do(request{path: "/v1/page/password", cookie: cookie, body: status.PagePassword{Old: old, New: new}})
	}
	if a := change("", password, "another password"); a.code != 401 {
		t.Fatal(a.code)
	}
	if a := change(other, "wrong", "another password"); a.code != 401 {
		t.Fatal(a.code)
	}
	if a := change(other, password, "short"); a.code != 400 {
		t.Fatal(a.code)
	}
	third := r.loggedIn()
	a = change(other, password, "another password")
	if a.code != 200 || status1(a.cookie()) != 200 || status1(other) != 401 || status1(third) != 401 {
		t.Fatal("others are still in by the old password")
	}
	if a := r.do(request{path: "/v1/page/login", body: status.PageSecret{Password: password}}); a.code != 401 {
		t.Fatal(a.code)
	}
	four := a.cookie()
	r.pass(idleSession - time.Minute)
	if status1(four) != 200 {
		t.Fatal("out too early")
	}
	r.pass(idleSession + time.Minute)
	if status1(four) != 401 {
		t.Fatal("in for ever")
	}
}

func TestMembers(t *testing.T) {
	r := newRig(t)
	home := r.loggedIn()
	in := func(from netip.Addr) reply { return r.do(request{path: "/v1/page/login", from: from, body: "{}"}) }
	mine, hers := in(owner), in(friend)
	if p := mine.page(t); !p.Owner || p.State != status.PageIn || p.Who != "home" || p.Member != "phone.mesh.internal" || p.Over != overMesh {
		t.Fatalf("%+v", p)
	}
	if p := hers.page(t); p.Owner || p.State != status.PageIn || p.Who != "anna" {
		t.Fatalf("%+v", p)
	}
	if p := r.do(request{path: "/v1/page", from: friend, cookie: hers.cookie()}).page(t); p.Owner || p.State != status.PageIn {
		t.Fatalf("%+v", p)
	}
	tests := []struct {
		name, path string
		post       bool
		from       netip.Addr
		cookie     string
		want       int
	}{
		{"owner looks", "/v1/status", false, owner, mine.cookie(), 200},
		{"owner changes", "/v1/down", true, owner, mine.cookie(), 200},
		{"owner's backup", "/v1/backup", true, owner, mine.cookie(), 403},
		{"owner restores", "/v1/restore", true, owner, mine.cookie(), 403},
		{"owner's certificate", "/v1/cert", true, owner, mine.cookie(), 403},
		{"owner looks at certificates", "/v1/cert", false, owner, mine.cookie(), 200},
		{"owner's settings", "/v1/settings", false, owner, mine.cookie(), 200},
		{"friend looks", "/v1/status", false, friend, hers.cookie(), 200},
		{"friend changes", "/v1/down", true, friend, hers.cookie(), 403},
		{"friend backs up", "/v1/backup", true, friend, hers.cookie(), 403},
		{"friend restores", "/v1/restore", true, friend, hers.cookie(), 403},
		{"friend's settings", "/v1/settings", false, friend, hers.cookie(), 403},
		{"friend's log", "/v1/logs", false, friend, hers.cookie(), 403},
		{"friend's inside", "/v1/debug/plan", false, friend, hers.cookie(), 403},
		{"friend's password", "/v1/page/password", true, friend, hers.cookie(), 400}, // {} is too short for one
		{"a cookie of the mesh at home", "/v1/status", false, atHome, mine.cookie(), 401},
		{"the owner's cookie, stolen", "/v1/status", false, friend, mine.cookie(), 401},
		{"a cookie of home in the mesh", "/v1/status", false, friend, home, 401},
		{"no cookie", "/v1/status", false, owner, "", 401},
	}
	for _, tt := range tests {
		q := request{path: tt.path, from: tt.from, cookie: tt.cookie}
		if tt.post {
			q.body = "{}"
		}
		if a := r.do(q); a.code != tt.want && tt.name != "friend's password" || tt.name == "friend's password" && a.code != 403 {
			t.Errorf("%s: %d %s", tt.name, a.code, a.body)
		}
	}
	if a := r.do(request{path: "/v1/page/login", from: friend, body: status.PageSecret{Password: password}}); a.code != 403 {
		t.Error("a password over the mesh:", a.code)
	}
	r.members.Store(friend, Member{Name: "tablet.mesh.internal", User: "home", Owner: true})
	if a := r.do(request{path: "/v1/down", from: friend, cookie: hers.cookie(), body: "{}"}); a.code != 200 {
		t.Error("she owns it now:", a.code)
	}
	r.members.Delete(friend)
	if a := r.do(request{path: "/v1/status", from: friend, cookie: hers.cookie()}); a.code != 403 {
		t.Error("she is no member any more:", a.code)
	}
}

// TestBehindRouter: whoever is at the LAN of another home's router is anybody, and tells
// the password.
func TestBehindRouter(t *testing.T) {
	r := newRig(t)
	r.members.Store(friend, Member{Name: "cabin.mesh.internal", Router: true})
	if a := r.do(request{path: "/v1/page/setup", from: friend, body: status.PageSecret{Password: password}}); a.code != 403 {
		t.Fatal("it sets the first password:", a.code)
	}
	r.loggedIn()
	if p := r.do(request{path: "/v1/page", from: friend}).page(t); p.State != status.PageLogin || p.Owner || p.Member != "" {
		t.Fatalf("%+v", p)
	}
	if a := r.do(request{path: "/v1/page/login", from: friend, body: "{}"}); a.code != 401 {
		t.Fatal("in by nothing:", a.code)
	}
	a := r.do(request{path: "/v1/page/login", from: friend, body: status.PageSecret{Password: password}})
	if p := a.page(t); !p.Owner || p.State != status.PageIn {
		t.Fatalf("%+v", p)
	}
	for from, want := range map[netip.Addr]int{friend: 200, owner: 401, atHome: 401} {
		if b := r.do(request{path: "/v1/down", from: from, cookie: a.cookie(), body: "{}"}); b.code != want {
			t.Errorf("from %s: %d", from, b.code)
		}
	}
	r.members.Store(friend, Member{Name: "tablet.mesh.internal", User: "home", Owner: true})
	in := r.do(request{path: "/v1/page/login", from: friend, body: "{}"})
	r.members.Store(friend, Member{Name: "tablet.mesh.internal", Router: true}) // it begins to be one
	if b := r.do(request{path: "/v1/status", from: friend, cookie: in.cookie()}); b.code != 401 {
		t.Error("its identity counts still:", b.code)
	}
}

func TestThousandPasswords(t *testing.T) {
	r := newRig(t)
	cookie := r.loggedIn()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var began, ended syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &began)
	var looked, refused, let atomic.Int32
	var all sync.WaitGroup
	for range 8 { // at once
		all.Go(func() {
			for range 125 {
				res, err := r.send(request{path: "/v1/page/login", from: atHome2, body: status.PageSecret{Password: "a wrong password"}})
				if err != nil {
					t.Error(err)
					return
				}
				_ = res.Body.Close()
				switch res.StatusCode {
				case http.StatusUnauthorized:
					looked.Add(1)
				case http.StatusTooManyRequests:
					refused.Add(1)
					if res.Header.Get("Retry-After") == "" {
						t.Error("not told when to come again")
					}
				default:
					let.Add(1)
				}
			}
		})
	}
	all.Wait()
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ended)
	runtime.ReadMemStats(&after)
	cpu := time.Duration(ended.Utime.Nano() + ended.Stime.Nano() - began.Utime.Nano() - began.Stime.Nano())
	t.Logf("1,000 wrong passwords: %d were looked at, %d told to wait; %v of CPU with those who asked, heap %d kB before, %d after",
		looked.Load(), refused.Load(), cpu.Round(time.Millisecond), before.HeapInuse>>10, after.HeapInuse>>10)
	if looked.Load() < freeTries || looked.Load() > freeTries+10 || let.Load() > 0 {
		t.Errorf("%d were looked at, %d let in", looked.Load(), let.Load())
	}
	if r.do(request{path: "/v1/status", cookie: cookie}).code != 200 {
		t.Error("who is in is out")
	}
	r.loggedIn() // from another address at home, at once
	if a := r.do(request{path: "/v1/page/login", from: atHome2, body: status.PageSecret{Password: password}}); a.code != 429 {
		t.Error("the right one in between is looked at:", a.code)
	}
	r.pass(longWait)
	if a := r.do(request{path: "/v1/page/login", from: atHome2, body: status.PageSecret{Password: password}}); a.code != 200 {
		t.Error("out for ever:", a.code)
	}
}

func TestTries(t *testing.T) {
	var x tries
	now := time.Unix(1e9, 0)
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
	for i := range freeTries {
		if w := x.wait(now, at(1)); w != 0 {
			t.Fatalf("wrong %d: %v", i, w)
		}
		x.wrong(now, at(1))
	}
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300} {
		if w := x.wait(now, at(1)); w != want*time.Second {
			t.Fatalf("wait %v, want %vs", w, int(want))
		}
		now = now.Add(want * time.Second)
		x.wrong(now, at(1))
	}
	if w := x.wait(now, at(2)); w != 0 {
		t.Fatalf("another waits %v", w)
	}
	// A crowd: all together are let through no faster than one each allRefill.
	looked := 0
	for i := range 10_000 {
		if x.wait(now, at(1000+i)) == 0 {
			x.wrong(now, at(1000+i))
			looked++
		}
		now = now.Add(10 * time.Millisecond)
	}
	if want := allTries + int(100*time.Second/allRefill); looked > want+1 {
		t.Errorf("%d of a crowd in 100 s, want %d", looked, want)
	}
	if len(x.from) > mostTried {
		t.Errorf("%d are remembered", len(x.from))
	}
	x.right(at(1))
	now = now.Add(time.Hour)
	if w := x.wait(now, at(1)); w != 0 || x.spent != 0 {
		t.Errorf("after an hour: %v, %d", w, x.spent)
	}
	a, b := netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	for range freeTries {
		x.wrong(now, a)
	}
	if x.wait(now, b) == 0 {
		t.Error("one IPv6 host has many tries")
	}
}

func TestSessionsBounded(t *testing.T) {
	var s sessions
	now := time.Unix(1e9, 0)
	first := &session{password: true}
	s.begin(now, "first", first)
	for i := range 10 * mostSessions {
		now = now.Add(time.Second)
		s.begin(now, fmt.Sprint(i), &session{password: true})
	}
	if len(s.all) != mostSessions || first.life.Err() == nil || s.find(now, "first") != nil {
		t.Errorf("%d sessions", len(s.all))
	}
	for range 10 {
		s.begin(now, rand.Text(), &session{member: owner})
	}
	n := 0
	for _, x := range s.all {
		if x.member == owner {
			n++
		}
	}
	if n != 1 {
		t.Errorf("a node has %d", n)
	}
	s.end(func(*session) bool { return true })
}

func TestLoginOfTheMachine(t *testing.T) {
	open := false
	r := newRig(t, func(c *Config) {
		c.Login = func(_ context.Context, user, pass string) error {
			switch {
			case open:
				return ErrNoPassword
			case user != "root" || pass != "toor":
				return errors.New("no")
			}
			return nil
		}
	})
	login := func(user, pass string) reply {
		return r.do(request{path: "/v1/page/login", body: status.PageSecret{User: user, Password: pass}})
	}
	if p := r.do(request{path: "/v1/page"}).page(t); p.State != status.PageLogin || !p.Root {
		t.Fatalf("%+v", p)
	}
	// Nobody at home gets round it by being the first.
	if a := r.do(request{path: "/v1/page/setup", body: status.PageSecret{Password: "long enough"}}); a.code != 403 {
		t.Fatal(a.code)
	}
	open = true
	if a := login("", "toor"); a.code != 403 || !strings.Contains(string(a.body), "passwd") {
		t.Fatalf("%d %s", a.code, a.body)
	}
	open = false
	if a := login("root", "x"); a.code != 401 {
		t.Fatal(a.code)
	}
	if a := login("admin", "toor"); a.code != 401 {
		t.Fatal(a.code)
	}
	a := login("", "toor")
	if p := a.page(t); !p.Owner || p.Who != "root" {
		t.Fatalf("%+v", p)
	}
	// With root's password a page of its own is set, which counts from then on.
	change := func(old string) int {
		return r.do(request{path: "/v1/page/password", cookie: a.cookie(), body: status.PagePassword{Old: old, New: "the page's own"}}).code
	}
	if code := change("wrong"); code != 401 {
		t.Fatal(code)
	}
	if code := change("toor"); code != 200 {
		t.Fatal(code)
	}
	if p := r.do(request{path: "/v1/page"}).page(t); p.State != status.PageLogin || p.Root {
		t.Fatalf("%+v", p)
	}
	if a, b := login("", "toor").code, login("", "the page's own").code; a != 401 || b != 200 {
		t.Fatal(a, b)
	}
}

func TestFiles(t *testing.T) {
	pack := func(s string) *fstest.MapFile {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = w.Write([]byte(s))
		_ = w.Close()
		return &fstest.MapFile{Data: b.Bytes()}
	}
	r := newRig(t, func(c *Config) {
		c.Files = fstest.MapFS{"index.html.gz": pack("<p>page"), "assets/a-1.js.gz": pack("js()"), "x.exe.gz": pack("x")}
	})
	tests := []struct {
		path, kind, body string
		code             int
		lasts            bool
	}{
		{"/", "text/html; charset=utf-8", "<p>page", 200, false},
		{"/index.html", "text/html; charset=utf-8", "<p>page", 200, false},
		{"/devices/aa", "text/html; charset=utf-8", "<p>page", 200, false},
		{"/assets/a-1.js", "text/javascript; charset=utf-8", "js()", 200, true},
		{"/assets/none.js", "", "", 404, false},
		{"/x.exe", "", "", 404, false},
		{"/../../etc/passwd.txt", "", "", 404, false},
		{"/%2e%2e/%2e%2e/x.txt", "", "", 404, false},
	}
	for _, tt := range tests {
		for _, packed := range []bool{true, false} {
			enc := "identity"
			if packed {
				enc = "br, gzip"
			}
			a := r.do(request{path: tt.path, header: map[string]string{"Accept-Encoding": enc}})
			if a.code != tt.code || a.code == 200 && (a.header.Get("Content-Type") != tt.kind || (a.header.Get("Content-Encoding") == "gzip") != packed) ||
				strings.Contains(a.header.Get("Cache-Control"), "immutable") != tt.lasts {
				t.Errorf("%s: %d %v", tt.path, a.code, a.header)
			}
			if a.code != 200 {
				continue
			}
			body := string(a.body)
			if packed {
				z, err := gzip.NewReader(bytes.NewReader(a.body))
				if err != nil {
					t.Fatal(err)
				}
				b, _ := io.ReadAll(z)
				body = string(b)
			}
			if body != tt.body {
				t.Errorf("%s: %q", tt.path, body)
			}
			if a := r.do(request{path: tt.path, header: map[string]string{"If-None-Match": a.header.Get("ETag")}}); a.code != 304 || len(a.body) > 0 {
				t.Errorf("%s again: %d", tt.path, a.code)
			}
		}
	}
}

func FuzzBodies(f *testing.F) {
	r := newRig(f)
	r.loggedIn()
	cookie := ""
	logIn := func() {
		w := &plain{header: http.Header{}}
		if err := r.logIn(w, &session{password: true}); err != nil {
			panic(err) // no randomness is left
		}
		cookie = reply{header: w.header}.cookie()
	}
	logIn()
	paths := []string{"/v1/page/login", "/v1/page/setup", "/v1/page/logout", "/v1/page/password", "/v1/settings", "/v1/settings/confirm", "/v1/settings/undo", "/v1/restore", "/v1/up", "/v1/qr"}
	for i, s := range []string{`{}`, `{"password":"x"}`, `{"old":"x","new":"y"}`, `{"rows":["lan -> x"],"listen":":1"}`, `[]`, `{"id":"\u0000"}`, `null`, `{"password":{}}`, "{\"user\":\"\xff\"}"} {
		f.Add(byte(i), s, "application/json")
	}
	f.Fuzz(func(t *testing.T, which byte, body, kind string) {
		if strings.ContainsAny(kind, "\r\n\x00") {
			t.Skip()
		}
		path := paths[int(which)%len(paths)]
		w := &plain{header: http.Header{}}
		q, err := http.NewRequest(http.MethodPost, "http://router"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		q = q.WithContext(context.WithValue(t.Context(), keyEnds, ends{atHome, here}))
		q.Header.Set("Content-Type", kind)
		q.AddCookie(&http.Cookie{Name: cookieName, Value: cookie})
		r.pass(longWait) // so that each is looked at
		r.ServeHTTP(w, q)
		if w.code == 0 || w.code == http.StatusInternalServerError {
			t.Errorf("%s %q: %d %s", path, body, w.code, w.body.Bytes())
		}
		if w.code == http.StatusOK && strings.HasPrefix(path, "/v1/page/") { // out, or in by another
			logIn()
		}
	})
}

// plain is an http.ResponseWriter.
type plain struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (p *plain) Header() http.Header  { return p.header }
func (p *plain) WriteHeader(code int) { p.code = code }
func (p *plain) Write(b []byte) (int, error) {
	if p.code == 0 {
		p.code = http.StatusOK
	}
	return p.body.Write(b)
}
