package netns_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/netip"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

const pagePassword = "a word of the house"

// browser is somebody's at a host. Its cookies are its own.
type browser struct {
	t    testing.TB
	at   string // address and port of the page
	http *http.Client
}

func newBrowser(t testing.TB, h *netns.Host, page netip.Addr) *browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) { return h.Dial(ctx, network, addr) }
	b := &browser{t: t, at: netip.AddrPortFrom(page, 8411).String(), http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Jar: jar}}
	return b
}

// ask sends a request, POST with a body if there is one, and decodes the answer if that is wanted.
func (b *browser) ask(path string, body, into any) int {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 20*time.Second)
	defer cancel()
	method, in := http.MethodGet, io.Reader(nil)
	if body != nil {
		j, err := json.Marshal(body)
		if err != nil {
			b.t.Fatal(err)
		}
		method, in = http.MethodPost, bytes.NewReader(j)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+b.at+path, in)
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := b.http.Do(req)
	if err != nil {
		b.t.Logf("%s: %v", path, err)
		return 0
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatalf("%s: %v", path, err)
	}
	if into != nil && res.StatusCode == http.StatusOK {
		if err := json.Unmarshal(data, into); err != nil {
			b.t.Fatalf("%s: %v: %s", path, err, data)
		}
	}
	if res.StatusCode >= 400 {
		b.t.Logf("%s: %d %s", path, res.StatusCode, bytes.TrimSpace(data))
	}
	return res.StatusCode
}

func (b *browser) must(path string, body, into any) {
	b.t.Helper()
	if code := b.ask(path, body, into); code != http.StatusOK {
		b.t.Fatalf("%s: %d", path, code)
	}
}

// await asks until the answer has that code.
func (b *browser) await(path string, body any, want int) {
	b.t.Helper()
	netns.Eventually(b.t, 15*time.Second, fmt.Sprintf("%s at %s answers %d", path, b.at, want), func() error {
		if code := b.ask(path, body, nil); code != want {
			return fmt.Errorf("%d", code)
		}
		return nil
	})
}

type pageState struct {
	State, Over, Who, Member, Boot string
	Owner                          bool
}

type pageTrial struct {
	ID   string
	What []string
}

func (tr pageTrial) id() map[string]string { return map[string]string{"id": tr.ID} }

// pageEvent is an event as far as these tests look.
type pageEvent struct {
	Boot  string
	Whole bool
	House *struct {
		Expose string
		Home   bool
		Trial  *pageTrial
		Status struct{ Phase, Name string }
	}
}

// firstEvent is the first of a new stream.
func (b *browser) firstEvent() (e pageEvent) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.at+"/v1/events", nil)
	if err != nil {
		b.t.Fatal(err)
	}
	res, err := b.http.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				b.t.Fatal(err)
			}
			return e
		}
	}
	b.t.Fatalf("no event: %d %v", res.StatusCode, lines.Err())
	return e
}

// wantNoPage proves that nothing of the page is at an address for a host: not even a refusal in words.
func wantNoPage(t testing.TB, h *netns.Host, page netip.Addr) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	c, err := h.Dial(ctx, "tcp", netip.AddrPortFrom(page, 8411).String())
	if err != nil {
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	_, _ = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", page)
	if said, _ := io.ReadAll(c); len(said) > 0 {
		t.Errorf("the page at %s tells %s: %q", page, h.Name, said)
	}
}

// TestPage: the page in a home router is there for the home and for members, each by what they may, and for nobody else. A
// change that nobody confirms is undone, also by a restart; a backup brings all back.
func TestPage(t *testing.T) {
	lab := netns.New(t)
	home := lab.Home(netns.Public)
	mesh := lab.HomeMesh(home.Router, netns.HomeOptions{URL: "http://home.test", Expose: "chosen"})
	neighbour := lab.Client("neighbour", netns.Public) // of the WAN
	lan4, lan6 := home.LAN4.Addr().Next(), home.LAN6.Addr().Next()
	tv := newBrowser(t, home.LAN, lan4)

	lab.Run("nobody outside", func(t *testing.T) {
		neighbour.IP(fmt.Sprintf("route add %s via %s", home.LAN4, home.Router.Addr4), fmt.Sprintf("route add %s via %s", home.LAN6, home.Router.Addr6))
		for _, a := range []netip.Addr{home.Router.Addr4, home.Router.Addr6, lan4, lan6} {
			wantNoPage(t, neighbour, a)
		}
		wantNoPage(t, home.LAN, home.Router.Addr4) // nor by the WAN's address for the home
		for _, a := range []netip.Addr{lan4, lan6} {
			var p pageState
			newBrowser(t, home.LAN, a).must("/v1/page", nil, &p)
			if p.State != "setup" || p.Over != "lan" {
				t.Errorf("%s: %+v", a, p)
			}
		}
	})

	tv.must("/v1/page/setup", map[string]string{"password": pagePassword}, nil)
	first := tv.firstEvent()
	if !first.Whole || first.House == nil || !first.House.Home || first.House.Status.Phase != "joined" || first.House.Expose != "chosen" {
		t.Fatalf("%+v", first)
	}

	lab.Run("members", func(t *testing.T) {
		v4, v6, err := mesh.MeshAddrs("home")
		if err != nil {
			t.Fatal(err)
		}
		for user, owner := range map[string]bool{"home": true, "anna": false} {
			p := lab.StockPeer(lab.Client("of-"+user, netns.Easy))
			i := mesh.Invite("--user", user)
			p.Up(i.URL, i.Key)
			for _, a := range []netip.Addr{v4, v6} {
				b, is := newBrowser(t, p.Host, a), pageState{}
				netns.Eventually(t, 10*time.Second, "the page over the mesh", func() error {
					if code := b.ask("/v1/page/login", struct{}{}, &is); code != http.StatusOK {
						return fmt.Errorf("%d", code)
					}
					return nil
				})
				if is.Over != "mesh" || is.Owner != owner || is.Who != user || is.State != "in" {
					t.Errorf("%s at %s: %+v", user, a, is)
				}
				b.must("/v1/status", nil, nil)
				want := map[bool]int{true: http.StatusOK, false: http.StatusForbidden}[owner]
				if code := b.ask("/v1/settings", nil, nil); code != want {
					t.Errorf("%s looks at the settings: %d", user, code)
				}
				if code := b.ask("/v1/backup", struct{}{}, nil); code != http.StatusForbidden {
					t.Errorf("%s backs up over the mesh: %d", user, code)
				}
				if code := b.ask("/v1/settings", map[string]bool{"snat": false}, nil); !owner && code != want {
					t.Errorf("%s changes: %d", user, code)
				} else if owner {
					var e pageEvent
					if e = b.firstEvent(); e.House.Trial == nil {
						t.Fatalf("no trial: %+v", e.House)
					}
					b.must("/v1/settings/undo", e.House.Trial.id(), nil)
				}
			}
		}
	})

	lab.Run("behind another home", func(t *testing.T) { // whose router is the owner's, and the guests at its LAN are not
		cabin := lab.NewHome(south)
		i := mesh.Invite("--user", "home")
		d := lab.Subnetd(cabin.Router, strings.Replace(siteConfig, "all", "none", 1))
		if out, err := d.CLI("up", "--control", i.URL, "--auth-key", i.Key, "--hostname", "cabin"); err != nil {
			t.Fatal(err, out)
		}
		v4, v6, err := mesh.MeshAddrs("home")
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range []netip.Addr{v4, v6} {
			guest, is := newBrowser(t, cabin.LAN, a), pageState{}
			netns.Eventually(t, 15*time.Second, "the page over the mesh", func() error {
				if code := guest.ask("/v1/page", nil, &is); code != http.StatusOK {
					return fmt.Errorf("%d", code)
				}
				return nil
			})
			if is.State != "login" || is.Owner || is.Who != "" || is.Over != "mesh" {
				t.Errorf("a guest at the cabin is %+v", is)
			}
			if code := guest.ask("/v1/page/login", struct{}{}, nil); code != http.StatusUnauthorized {
				t.Errorf("a guest at the cabin is in: %d", code)
			}
		}
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
	})

	lab.Run("a trial", func(t *testing.T) {
		var tr pageTrial
		tv.must("/v1/settings", map[string]any{"listen": ":8412", "expose": "none"}, &tr)
		if len(tr.What) != 2 {
			t.Fatalf("%+v", tr)
		}
		moved := newBrowser(t, home.LAN, lan4)
		moved.at = netip.AddrPortFrom(lan4, 8412).String()
		moved.await("/v1/page/login", map[string]string{"password": pagePassword}, http.StatusOK)
		wantNoPage(t, home.LAN, lan4)
		if out, err := mesh.CLI("exit", "offer", "on"); err == nil || !strings.Contains(out, "90 seconds") {
			t.Errorf("another change meanwhile: %v %s", err, out)
		}
		if e := moved.firstEvent(); e.House.Trial == nil || e.House.Trial.ID != tr.ID || e.House.Expose != "none" {
			t.Errorf("%+v", e.House)
		}
		moved.must("/v1/settings/undo", tr.id(), nil)
		tv.await("/v1/status", nil, http.StatusOK)
		tv.must("/v1/settings", map[string]any{"listen": ":8412"}, &tr)
		mesh.Kill() // the owner pulls the plug
		mesh.Start()
		tv.await("/v1/status", nil, http.StatusUnauthorized) // the page is where it was, and its sessions are gone
		tv.must("/v1/page/login", map[string]string{"password": pagePassword}, nil)
		e := tv.firstEvent()
		if !e.Whole || e.Boot == first.Boot || e.House.Trial != nil || e.House.Expose != "chosen" {
			t.Errorf("after the restart: %+v %+v", e, e.House)
		}
		var again pageTrial
		tv.must("/v1/settings", map[string]any{"snat": false}, &again)
		tv.must("/v1/settings/confirm", again.id(), nil)
		if e := tv.firstEvent(); e.House.Trial != nil {
			t.Errorf("%+v", e.House.Trial)
		}
	})

	lab.Run("a backup", func(t *testing.T) {
		var file json.RawMessage
		tv.must("/v1/backup", struct{}{}, &file)
		var tr pageTrial
		tv.must("/v1/settings", map[string]any{"expose": "none", "hostname": "other"}, &tr)
		tv.must("/v1/settings/confirm", tr.id(), nil)
		i := mesh.Invite() // more than there was
		boot, pid := tv.firstEvent().Boot, mesh.Pid()
		tv.must("/v1/restore", file, nil)
		var p pageState
		netns.Eventually(t, 20*time.Second, "the next life", func() error {
			if code := tv.ask("/v1/page", nil, &p); code != http.StatusOK || p.Boot == boot {
				return fmt.Errorf("%d, %+v", code, p)
			}
			return nil
		})
		tv.must("/v1/page/login", map[string]string{"password": pagePassword}, nil)
		if e := tv.firstEvent(); e.House.Expose != "chosen" || mesh.Pid() != pid {
			t.Errorf("%+v, process %d, was %d", e.House, mesh.Pid(), pid)
		}
		netns.Eventually(t, 20*time.Second, "its mesh serves", func() error { _, err := mesh.Nodes(); return err })
		keys, err := mesh.Keys()
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			if k.ID == i.ID {
				t.Errorf("a key of after the backup is known: %+v", k)
			}
		}
	})

	lab.Run("calm", func(t *testing.T) {
		mallory := newBrowser(t, lab.OnLAN(home, "mallory", 66), lan4)
		rss, cpu := mesh.Memory("VmRSS"), mesh.CPUSeconds()
		codes := map[int]int{}
		quiet := mallory.quiet()
		for range 1000 {
			codes[quiet("/v1/page/login", strings.NewReader(`{"password":"not that"}`))]++
		}
		wrong := mesh.CPUSeconds() - cpu
		if codes[http.StatusOK] > 0 || codes[http.StatusUnauthorized] > 10 {
			t.Errorf("1,000 wrong passwords: %v", codes)
		}
		cpu = mesh.CPUSeconds()
		big := tv.quiet()("/v1/restore", io.LimitReader(nothing{}, 100<<20))
		t.Logf("1,000 wrong passwords: %v, %.2f s of CPU; a body of 100 MB: %d, %.2f s; resident before %.1f MB, after %.1f MB, at most %.1f MB",
			codes, wrong, big, mesh.CPUSeconds()-cpu, rss, mesh.Memory("VmRSS"), mesh.Memory("VmHWM"))
		if big != http.StatusLengthRequired && big != 0 { // 0: the connection was closed before all was sent
			t.Errorf("a body of 100 MB: %d", big)
		}
		if after := mesh.Memory("VmRSS"); after > rss+20 {
			t.Errorf("%.1f MB resident, were %.1f", after, rss)
		}
		tv.must("/v1/status", nil, nil)
		cmd := mesh.Cmd(t.Context(), "web", "password")
		cmd.Stdin = strings.NewReader("another word\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if code := tv.ask("/v1/status", nil, nil); code != http.StatusUnauthorized {
			t.Errorf("by a password of before: %d", code)
		}
		tv.must("/v1/page/login", map[string]string{"password": "another word"}, nil)
	})
}

// nothing is a body without end.
type nothing struct{}

func (nothing) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// quiet asks without a word to the log; 0: the connection broke.
func (b *browser) quiet() func(path string, body io.Reader) int {
	return func(path string, body io.Reader) int {
		req, err := http.NewRequestWithContext(b.t.Context(), http.MethodPost, "http://"+b.at+path, body)
		if err != nil {
			b.t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		res, err := b.http.Do(req)
		if err != nil {
			return 0
		}
		_ = res.Body.Close()
		return res.StatusCode
	}
}
