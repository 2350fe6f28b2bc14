package web

import (
	"context"
	"errors"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"subnetd/subnetd/api"
	"subnetd/subnetd/status"
)

// TestImage: who may send an image, how, and from where. It comes through in no more memory than any request.
func TestImage(t *testing.T) {
	r := newRig(t)
	home := r.loggedIn()
	in := func(q request) string { q.path, q.body = "/v1/page/login", "{}"; return r.do(q).cookie() }
	mine, hers := in(request{from: owner}), in(request{from: friend})
	const path = api.SystemPath + "image/ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	for _, tt := range []struct {
		name   string
		q      request
		header map[string]string
		size   int64
		want   int
	}{
		{"at home", request{cookie: home}, nil, 64 << 20, 200},
		{"from our page", request{cookie: home}, map[string]string{"Origin": "http://192.168.1.1:8411"}, 1000, 200},
		{"nobody", request{}, nil, 1000, 401},
		{"a friend", request{from: friend, cookie: hers}, nil, 1000, 403},
		{"the owner, over the mesh", request{from: owner, cookie: mine}, nil, 1000, 403},
		{"another site", request{cookie: home}, map[string]string{"Origin": "http://evil.example"}, 1000, 403},
		{"another site, by fetch", request{cookie: home}, map[string]string{"Sec-Fetch-Site": "cross-site"}, 1000, 403},
		{"as JSON", request{cookie: home}, map[string]string{"Content-Type": "application/json"}, 1000, 415},
		{"by POST", request{cookie: home, method: http.MethodPost}, map[string]string{"Content-Type": "application/json"}, 1000, 405},
		{"size not told", request{cookie: home}, nil, -1, 411},
		{"elsewhere", request{cookie: home, path: "/v1/status"}, nil, 1000, 405},
		{"to the page", request{cookie: home, path: "/index.html"}, nil, 1000, 405},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := tt.q
			if q.path == "" {
				q.path = path
			}
			if q.method == "" {
				q.method = http.MethodPut
			}
			q.header = map[string]string{"Content-Type": "application/octet-stream"}
			for k, v := range tt.header {
				q.header[k] = v
			}
			z := &zeros{}
			q.body = io.LimitReader(z, max(tt.size, 1000))
			q.size = tt.size
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			a := r.do(q)
			runtime.ReadMemStats(&after)
			if a.code != tt.want || a.code != 200 && !strings.HasPrefix(string(a.body), `{"error":"`) {
				t.Errorf("%d %s, want %d", a.code, a.body, tt.want)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
				t.Errorf("%d kB were allocated", n>>10)
			}
		})
	}
	if a := r.do(request{path: api.SystemPath + "restart", cookie: hers, from: friend, body: "{}"}); a.code != 403 {
		t.Error("a friend restarts this router:", a.code)
	}
	if a := r.do(request{path: api.SystemPath + "restart", cookie: mine, from: owner, body: "{}"}); a.code != 200 {
		t.Error("the owner does not:", a.code)
	}
}

// TestImageEnds: an image is no longer taken from who is no longer logged in.
func TestImageEnds(t *testing.T) {
	begun, ended := make(chan struct{}), make(chan error, 1)
	r := newRig(t, func(c *Config) {
		c.Funcs.System.Update = func(ctx context.Context, _ string, image io.Reader, _ int64) (status.Updated, error) {
			close(begun)
			<-ctx.Done()
			ended <- ctx.Err()
			return status.Updated{}, ctx.Err()
		}
	})
	cookie := r.loggedIn()
	rest, more := io.Pipe()
	defer more.Close()
	answer := make(chan int, 1)
	go func() {
		answer <- r.do(request{method: http.MethodPut, path: api.SystemPath + "image/" + strings.Repeat("0a", 32), cookie: cookie, size: 2000,
			header: map[string]string{"Content-Type": "application/octet-stream"}, body: io.MultiReader(strings.NewReader(strings.Repeat("x", 1000)), rest)}).code
	}()
	<-begun
	r.do(request{path: "/v1/page/logout", cookie: cookie, body: "{}"})
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := more.Write(make([]byte, 1000)); err != nil {
		t.Error(err)
	}
	_ = more.Close() // of a pipe in memory
	if code := <-answer; code == http.StatusOK {
		t.Error("it was taken")
	}
}
