package web

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"subnetd/subnetd/api"
)

// TestFile: the owner sends a file from the page, larger than all else that it takes, at home and over the mesh; others see
// neither files nor their names.
func TestFile(t *testing.T) {
	r := newRig(t)
	home := r.loggedIn()
	in := func(q request) string { q.path, q.body = "/v1/page/login", "{}"; return r.do(q).cookie() }
	mine, hers := in(request{from: owner}), in(request{from: friend})
	const path = api.SendPath + "?to=phone&name=film.mkv"
	stream := map[string]string{"Content-Type": "application/octet-stream"}
	for _, tt := range []struct {
		name string
		q    request
		size int64
		want int
	}{
		{"at home", request{cookie: home, header: stream}, 64 << 20, 200},
		{"over the mesh", request{from: owner, cookie: mine, header: stream}, 1000, 200},
		{"nobody", request{header: stream}, 1000, 401},
		{"a friend", request{from: friend, cookie: hers, header: stream}, 1000, 403},
		{"another site", request{cookie: home, header: map[string]string{"Content-Type": "application/octet-stream", "Origin": "http://evil.example"}}, 1000, 403},
		{"a form of another site", request{cookie: home, header: map[string]string{"Content-Type": "multipart/form-data; boundary=x"}}, 1000, 415},
		{"to nobody", request{cookie: home, header: stream, path: api.SendPath}, 1000, 400},
		{"beside it", request{cookie: home, header: stream, path: api.SendPath + "/x"}, 1000, 405},
	} {
		q := tt.q
		if q.method = http.MethodPut; q.path == "" {
			q.path = path
		}
		q.body, q.size = io.LimitReader(&zeros{}, tt.size), tt.size
		a := r.do(q)
		if a.code != tt.want || a.code == 200 && !strings.Contains(string(a.body), `"to":"phone","name":"film.mkv"`) {
			t.Errorf("%s: %d %s, want %d", tt.name, a.code, a.body, tt.want)
		}
	}
	for _, path := range []string{"/v1/drop", "/v1/drop/file?name=x"} {
		if a := r.do(request{path: path, from: friend, cookie: hers}); a.code != 403 {
			t.Errorf("a friend gets %s: %d", path, a.code)
		}
	}
	if a := r.do(request{path: "/v1/drop", cookie: home}); a.code != 200 {
		t.Errorf("the owner does not see his files: %d", a.code)
	}
}
