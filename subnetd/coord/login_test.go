package coord

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// ask registers without a key and gives the page's URL.
func (c *client) ask(edit ...registering) string {
	c.m.t.Helper()
	res := c.mustRegister(edit...)
	if res.AuthURL == "" || res.MachineAuthorized || res.Error != "" {
		c.m.t.Fatalf("want a login page, got %+v", res)
	}
	return res.AuthURL
}

// code is that of a login page's URL.
func code(url string) string { return url[strings.LastIndex(url, "/")+1:] }

// wait follows a login up; its answer comes over the channel.
func (c *client) wait(ctx context.Context, url string) <-chan *tailcfg.RegisterResponse {
	out := make(chan *tailcfg.RegisterResponse, 1)
	go func() {
		defer close(out)
		if res, err := c.register(ctx, followingUp(url)); err == nil {
			out <- res
		}
	}()
	return out
}

// page is what a browser gets.
func (m *mesh) page(path string) (int, http.Header, string) {
	w := httptest.NewRecorder()
	m.c.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://home.test:8410"+path, nil))
	b, err := io.ReadAll(w.Result().Body)
	m.must(err)
	return w.Code, w.Result().Header, string(b)
}

func TestLogin(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c := m.client("<b>phone</b>", "192.0.2.1")
		url := c.ask()
		if want := "http://home.test:8410/a/"; !strings.HasPrefix(url, want) || len(code(url)) != codeLength+1 {
			t.Fatalf("login page %q", url)
		}
		answer := c.wait(t.Context(), url)
		pass(14 * time.Minute) // the owner is slow
		status, head, text := m.page("/a/" + code(url))
		if status != http.StatusOK || !strings.Contains(text, code(url)) || !strings.Contains(text, "&lt;b&gt;phone") || strings.Contains(text, "<b>phone") ||
			!strings.Contains(head.Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("page %d %v\n%s", status, head, text)
		}
		ps := m.c.Pending()
		if len(ps) != 1 || ps[0].Code != code(url) || ps[0].From != "192.0.2.1" || ps[0].OS != "linux" {
			t.Fatalf("there wait %+v", ps)
		}
		if n := len(m.c.Nodes()); n != 0 {
			t.Fatalf("%d nodes before the owner's word", n)
		}
		changes := m.changes.Load()
		_, err := m.c.Approve(t.Context(), " "+strings.ToLower(strings.ReplaceAll(code(url), "-", ""))+" ", "anna")
		m.must(err)
		if res := <-answer; res == nil || !res.MachineAuthorized || res.Login.LoginName != "anna" {
			t.Fatalf("answered %+v", res)
		}
		if len(m.c.Pending()) != 0 || len(m.c.Nodes()) != 1 || m.changes.Load() == changes {
			t.Errorf("there wait %+v; %d calls of Changed", m.c.Pending(), m.changes.Load()-changes)
		}
		if status, _, _ := m.page("/a/" + code(url)); status != http.StatusNotFound {
			t.Errorf("the page of one who is in: %d", status)
		}
		m.invariants()
	})
}

// The answer to the follow-up gets lost: the client asks once more, and is in.
func TestLoginAnswerLost(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c := m.client("phone", "192.0.2.1")
		url := c.ask()
		_, err := m.c.Approve(t.Context(), code(url), "")
		m.must(err)
		if res := c.mustRegister(); !res.MachineAuthorized {
			t.Errorf("a client that began anew is answered %+v", res)
		}
		for range 2 {
			if res := c.mustRegister(followingUp(url)); !res.MachineAuthorized {
				t.Fatalf("answered %+v", res)
			}
		}
	})
}

// Nobody waits longer than a code is good; then there is another.
func TestLoginExpires(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c := m.client("phone", "192.0.2.1")
		url := c.ask()
		answer := c.wait(t.Context(), url)
		pass(pendingFor - time.Second)
		if len(answer) != 0 || len(m.c.Pending()) != 1 {
			t.Fatal("over too early")
		}
		pass(2 * time.Second)
		res := <-answer
		if res == nil || res.AuthURL == "" || res.AuthURL == url {
			t.Fatalf("answered %+v", res)
		}
		if _, err := m.c.Approve(t.Context(), code(url), "nobody"); !errors.Is(err, ErrUnknownCode) {
			t.Errorf("approval of an old code: %v", err)
		}
		if us := m.c.snap.Load().users; len(us) != 1 {
			t.Errorf("an approval of nobody made the user %+v", us)
		}
		if status, _, _ := m.page("/a/" + code(url)); status != http.StatusNotFound {
			t.Errorf("old page: %d", status)
		}
		if ps := m.c.Pending(); len(ps) != 1 || ps[0].Code != code(res.AuthURL) {
			t.Errorf("there wait %+v", ps)
		}
	})
}

// A code is good for the machine and the node key it was given to.
func TestLoginBound(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c, other := m.client("phone", "192.0.2.1"), m.client("other", "192.0.2.2")
		url := c.ask()
		began := time.Now()
		defer func() {
			if d := time.Since(began); d > 0 {
				t.Errorf("one of them waited %v for another's approval", d)
			}
		}()
		other.node = c.node
		if u := other.ask(followingUp(url)); u == url {
			t.Error("another machine got the same page")
		}
		key1 := c.node
		c.node = key.NewNode().Public()
		if u := c.ask(followingUp(url)); u == url {
			t.Error("another node key got the same page")
		}
		c.node = key1
		_, err := m.c.Approve(t.Context(), code(url), "")
		if !errors.Is(err, ErrUnknownCode) {
			t.Errorf("a code is good after its machine asked with another key: %v", err)
		}
		if n := len(m.c.Nodes()); n != 0 {
			t.Errorf("%d nodes", n)
		}
	})
}

// Who asks with a key that is another's meanwhile does not get it, whatever the owner says.
func TestLoginStealsNoKey(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		a := m.client("a", "192.0.2.1")
		thief := m.client("thief", "192.0.2.2")
		thief.node = a.node
		url := thief.ask()
		a.mustRegister(withAuth(m.invite()))
		var no refusal
		if _, err := m.c.Approve(t.Context(), code(url), ""); !errors.As(err, &no) {
			t.Errorf("the owner is told %v", err)
		}
		thief.refused("belongs to another machine", followingUp(url))
		m.invariants()
	})
}

// Who is approved is in at once and for good, though nobody asks for the answer
// and we are killed right after.
func TestApprovalLasts(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c := m.client("phone", "192.0.2.1")
		n, err := m.c.Approve(t.Context(), code(c.ask()), "anna")
		m.must(err)
		if n.User != "anna" || len(n.Addresses) != 2 {
			t.Errorf("let in as %+v", n)
		}
		next := m.restart()
		if res := c.at(next).mustRegister(); !res.MachineAuthorized || int64(next.node(c.node).ID) != n.ID {
			t.Errorf("answered %+v", res)
		}
	})
}

// A tagged device that logs in again stays what it was; only the owner's word
// makes it a person's.
func TestLoginKeepsTags(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c := m.client("printer", "192.0.2.1")
		c.mustRegister(withAuth(m.invite(tagged)))
		for _, user := range []string{"", "anna"} {
			c.node = key.NewNode().Public()
			n, err := m.c.Approve(t.Context(), code(c.ask()), user)
			m.must(err)
			if stays := len(n.Tags) == 1; stays != (user == "") {
				t.Errorf("approved as %q: %+v", user, n)
			}
		}
	})
}

// A machine that is a member keeps its place when it logs in with another key.
func TestLoginAgain(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c := m.member("c")
		was := m.node(c.node)
		c.node = key.NewNode().Public()
		url := c.ask()
		_, err := m.c.Approve(t.Context(), code(url), "")
		m.must(err)
		if res := c.mustRegister(followingUp(url)); !res.MachineAuthorized {
			t.Fatalf("answered %+v", res)
		}
		if n := m.node(c.node); n.ID != was.ID || n.Number != was.Number {
			t.Errorf("was %+v, is %+v", was.record, n.record)
		}
		m.invariants()
	})
}

// Few wait at a time, fewer from one address; the oldest go. In IPv6 a whole
// network is one address.
func TestLoginBounds(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		first := m.client("first", "192.0.2.1").ask()
		var urls []string
		for i := range 20 {
			pass(time.Second)
			urls = append(urls, m.client("c", fmt.Sprintf("2001:db8:1:2:%x::1", i)).ask())
		}
		ps := m.c.Pending()
		if len(ps) != 1+maxPendingFrom || ps[0].Code != code(first) || ps[8].Code != code(urls[19]) || ps[1].Code != code(urls[12]) {
			t.Errorf("there wait %d: %+v", len(ps), ps)
		}
		for i := range 100 {
			pass(time.Second)
			m.client("c", fmt.Sprintf("192.0.2.%d", i+2)).ask()
		}
		if ps := m.c.Pending(); len(ps) != maxPending {
			t.Errorf("there wait %d", len(ps))
		}
		pass(pendingFor)
		if ps := m.c.Pending(); len(ps) != 0 {
			t.Errorf("after a quarter of an hour there wait %+v", ps)
		}
	})
}

// The base of a login page is what the client calls us, unless that is our known name.
func TestLoginURL(t *testing.T) {
	for name, tt := range map[string]struct{ place, host, want string }{
		"no place":        {"", "192.168.1.1:8410", "http://192.168.1.1:8410"},
		"in the LAN":      {"https://mesh.example", "192.168.1.1:8410", "http://192.168.1.1:8410"},
		"by name":         {"https://mesh.example", "mesh.example", "https://mesh.example"},
		"by name, port":   {"https://mesh.example", "MESH.example:80", "https://mesh.example"},
		"IPv6":            {"", "[2001:db8::1]:8410", "http://[2001:db8::1]:8410"},
		"nothing":         {"https://mesh.example", "", "https://mesh.example"},
		"a user in it":    {"https://mesh.example", "a@b", "https://mesh.example"},
		"a path in it":    {"https://mesh.example", "b/c", "https://mesh.example"},
		"too long a name": {"https://mesh.example", strings.Repeat("a", 300), "https://mesh.example"},
		"a line break":    {"https://mesh.example", "a\nb", "https://mesh.example"},
	} {
		t.Run(name, func(t *testing.T) {
			c := &Coordinator{}
			c.snap.Store(&snapshot{place: Place{URL: tt.place}})
			if got := c.baseFor(&http.Request{Host: tt.host}); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

// What anybody may ask at the door.
func TestDoor(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		for path, want := range map[string]int{"/": 200, "/key?v=130": 200, "/generate_204": 204, "/a/NONE-SUCH": 404, "/x": 404, "/machine/map": 404, "/v1/home/nodes": 404, "/ts2021": 405} {
			if got, _, text := m.page(path); got != want {
				t.Errorf("%s: %d, want %d: %s", path, got, want, text)
			}
		}
		if _, _, text := m.page("/key"); !strings.Contains(text, m.c.noise.Public().String()) {
			t.Errorf("key: %s", text)
		}
		for challenge, want := range map[string]string{"ts_a.B-1": "response ts_a.B-1", "a b": "", strings.Repeat("a", 64): ""} {
			w := httptest.NewRecorder()
			r := httptest.NewRequest(http.MethodGet, "/generate_204", nil)
			r.Header.Set("X-Tailscale-Challenge", challenge)
			m.c.Handler().ServeHTTP(w, r)
			if got := w.Header().Get("X-Tailscale-Response"); got != want {
				t.Errorf("challenge %q: %q", challenge, got)
			}
		}
		for hello, want := range map[string]int{"": 400, "!": 400, "YQ==": 101, base64.StdEncoding.EncodeToString(make([]byte, 101)): 101} {
			near, far, err := m.dial(t.Context(), "192.0.2.1")
			m.must(err)
			_, err = fmt.Fprintf(near, "POST /ts2021 HTTP/1.1\r\nHost: x\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\nX-Tailscale-Handshake: %s\r\n\r\n", hello)
			m.must(err)
			r := bufio.NewReader(near)
			res, err := http.ReadResponse(r, nil)
			m.must(err)
			if res.StatusCode != want {
				t.Errorf("handshake %q: %s", hello, res.Status)
			}
			if want == http.StatusSwitchingProtocols {
				_, _ = io.Copy(io.Discard, r) // Noise's refusal
				if synctest.Wait(); !far.closed.Load() || far.established.Load() != 0 {
					t.Errorf("handshake %q: the connection stays", hello)
				}
			}
			m.must(near.Close())
		}
	})
}
