package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/mesh"
	"subnetd/subnetd/status"
)

// daemon is Funcs that remember what they were asked.
type daemon struct {
	asked chan string
	snaps chan status.Snapshot
	home  func() (Home, error)
	exit  Exit
	devs  Devices
	certs Certificates
}

func (d *daemon) funcs() Funcs {
	note := func(s string) { d.asked <- s }
	return Funcs{
		Status: func() status.Snapshot { return status.Snapshot{Name: "home", Phase: status.PhaseJoined} },
		Watch: func(ctx context.Context) <-chan status.Snapshot {
			out := make(chan status.Snapshot)
			go func() {
				defer close(out)
				for {
					select {
					case s := <-d.snaps:
						select {
						case out <- s:
						case <-ctx.Done():
							return
						}
					case <-ctx.Done():
						return
					}
				}
			}()
			return out
		},
		Up:     func(_ context.Context, r UpRequest) error { note("up " + r.String()); return nil },
		Down:   func(context.Context) error { note("down"); return nil },
		Logout: func(context.Context) error { note("logout"); return errors.New("logging out: it refused") },
		Ping: func(_ context.Context, to string) (PingResult, error) {
			if to != "phone" {
				return PingResult{}, fmt.Errorf("%w: %q", ErrUnknownPeer, to)
			}
			return PingResult{Name: "phone", Path: mesh.Path{Kind: mesh.PathDirect, RTT: time.Millisecond}}, nil
		},
		Netcheck: func(context.Context) (any, error) { return map[string]bool{"udp": true}, nil },
		Debug:    func(what string) (any, error) { return what, nil },
		Home:     d.home,
		Exit:     d.exit,
		Devices:  d.devs,

		Certificates: d.certs,
	}
}

// start runs a server on a socket of the test until the test ends.
func start(t *testing.T) (*daemon, string) {
	t.Helper()
	return startWith(t, nil)
}

func startWith(t *testing.T, home func() (Home, error)) (*daemon, string) {
	t.Helper()
	d := &daemon{home: home}
	return d, d.start(t)
}

func (d *daemon) start(t *testing.T) string {
	t.Helper()
	d.asked, d.snaps = make(chan string, 8), make(chan status.Snapshot)
	return serving(t, d.funcs())
}

// serving runs a server on a socket of the test until the test ends.
func serving(t *testing.T, f Funcs) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- NewServer(path, f, slog.New(slog.DiscardHandler)).Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("server: %v", err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket stays: %v", err)
		}
	})
	for {
		if c, err := net.Dial("unix", path); err == nil {
			c.Close()
			return path
		}
		select {
		case err := <-ended:
			t.Fatal(err)
		default:
			runtime.Gosched()
		}
	}
}

func dial(t *testing.T, path string) *Client {
	t.Helper()
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestClientAndServer(t *testing.T) {
	d, path := start(t)
	c := dial(t, path)
	ctx := t.Context()
	if s, err := c.Status(ctx); err != nil || s.Name != "home" || s.Phase != status.PhaseJoined {
		t.Errorf("status: %+v, %v", s, err)
	}
	if err := c.Up(ctx, UpRequest{Control: "https://a.example", AuthKey: "secret", Hostname: "h"}); err != nil {
		t.Error(err)
	}
	if got := <-d.asked; got != "up control=https://a.example hostname=h" {
		t.Errorf("asked %q", got)
	}
	if err := c.Down(ctx); err != nil || <-d.asked != "down" {
		t.Error("down", err)
	}
	if err := c.Logout(ctx); err == nil || err.Error() != "logging out: it refused" {
		t.Errorf("an error comes as the daemon said it, not as %v", err)
	}
	if p, err := c.Ping(ctx, "phone"); err != nil || p.Name != "phone" || p.Path.RTT != time.Millisecond {
		t.Errorf("ping: %+v, %v", p, err)
	}
	if _, err := c.Ping(ctx, "no body & co"); err == nil || !strings.HasPrefix(err.Error(), ErrUnknownPeer.Error()) {
		t.Errorf("ping of nobody: %v", err)
	}
	if v, err := c.Netcheck(ctx); err != nil || string(bytes.TrimSpace(v)) != `{"udp":true}` {
		t.Errorf("netcheck: %s, %v", v, err)
	}
	if v, err := c.Debug(ctx, "plan"); err != nil || string(bytes.TrimSpace(v)) != `"plan"` {
		t.Errorf("debug: %s, %v", v, err)
	}
	if _, err := c.Debug(ctx, "../status"); err == nil {
		t.Error("debug of something else succeeds")
	}
}

func TestWatch(t *testing.T) {
	d, path := start(t)
	c := dial(t, path)
	go func() {
		for i := range 3 {
			d.snaps <- status.Snapshot{Generation: uint64(i)}
		}
	}()
	var got []uint64
	err := c.Watch(t.Context(), func(s status.Snapshot) bool {
		got = append(got, s.Generation)
		return len(got) < 3
	})
	if err != nil || fmt.Sprint(got) != "[0 1 2]" {
		t.Errorf("%v, %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Watch(ctx, func(status.Snapshot) bool { return true }); !errors.Is(err, context.Canceled) {
		t.Errorf("after the asker left: %v", err)
	}
}

// What is no proper request is refused with a sentence in JSON, and harms nobody.
func TestBadRequests(t *testing.T) {
	_, path := start(t)
	for _, tt := range []struct {
		method, path, body string
		code               int
	}{
		{"GET", "/", "", 404},
		{"GET", "/v1/nothing", "", 404},
		{"PUT", "/v1/status", "", 405},
		{"GET", "/v1/up", "", 405},
		{"POST", "/v1/up", "", 400},
		{"POST", "/v1/up", "{", 400},
		{"POST", "/v1/up", "[]", 400},
		{"POST", "/v1/up", `{"control": 7}`, 400},
		{"POST", "/v1/up", `{"unheard": "of"}`, 400},
		{"POST", "/v1/up", `{}{}`, 400},
		{"POST", "/v1/up", `{"control": "` + strings.Repeat("x", maxBody) + `"}`, 413},
		{"GET", "/v1/ping", "", 400},
		{"GET", "/v1/ping?to=" + strings.Repeat("x", 256), "", 400},
		{"GET", "/v1/ping?to=nobody", "", 404},
		{"GET", "/v1/debug/memory", "", 400},
	} {
		t.Run(tt.method+" "+tt.path[:min(len(tt.path), 20)], func(t *testing.T) {
			if code, text := raw(t, path, tt.method, tt.path, tt.body); code != tt.code || text == "" {
				t.Errorf("%d %q, want %d and a sentence", code, text, tt.code)
			}
		})
	}
}

// raw sends one request by hand, and gives the error that is answered.
func raw(t *testing.T, socket, method, path, body string) (code int, text string) {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	req, err := http.NewRequest(method, "http://x"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = req.Write(conn) }() // a server that has heard enough does not read on
	res, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var f failure
	if err := json.NewDecoder(res.Body).Decode(&f); err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, f.Error
}

// Many idle connections keep nobody else out for ever, and noise harms nothing.
func TestNoise(t *testing.T) {
	_, path := start(t)
	for _, b := range []string{"", "\x00\xff\xfe", "GET", "GET / HTTP/9.9\r\n\r\n", strings.Repeat("A: b\r\n", 10_000)} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, b)
		c.Close()
	}
	if _, err := dial(t, path).Status(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSocket(t *testing.T) {
	_, path := start(t)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v: only the owner may speak to the daemon", info.Mode(), err)
	}
	run := func(path string) error {
		return NewServer(path, (&daemon{}).funcs(), slog.New(slog.DiscardHandler)).Run(t.Context())
	}
	if err := run(path); err == nil || !strings.Contains(err.Error(), "another subnetd") {
		t.Errorf("a second daemon on the same socket: %v", err)
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(file); err == nil {
		t.Error("somebody's file was replaced by a socket")
	}
	if b, _ := os.ReadFile(file); string(b) != "mine" {
		t.Errorf("somebody's file is now %q", b)
	}
	if err := run("/" + strings.Repeat("x", 120)); err == nil {
		t.Error("a path that is too long is taken")
	}
}

// A daemon that was killed leaves its socket behind; the next one takes its place.
func TestSocketOfTheDead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := Dial(path); !errors.Is(err, ErrNotRunning) {
		t.Errorf("dial of the dead: %v", err)
	}
	if err := vacant(path); err != nil {
		t.Errorf("the dead one's socket cannot be taken over: %v", err)
	}
	if _, err := Dial(filepath.Join(t.TempDir(), "none")); !errors.Is(err, ErrNotRunning) {
		t.Errorf("dial of nothing: %v", err)
	}
}
