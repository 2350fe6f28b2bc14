package drop

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/mesh"
)

// TestGateway: a thing at home sends by one PUT, if it may.
func TestGateway(t *testing.T) {
	here, there, full := newRig(t, Settings{}), newRig(t, Settings{}), newRig(t, Settings{Quota: 1})
	self := here.nm.Load().Self
	nas, tv, nobody := netip.MustParseAddr("192.168.1.2"), netip.MustParseAddr("192.168.1.3"), netip.MustParseAddr("192.0.2.1")
	asks := map[string]netip.Addr{"nas": nas, "tv": tv, "": nobody}
	srv := httptest.NewUnstartedServer(&Gateway{
		Store: here.s,
		From: func(a netip.Addr) (string, bool) {
			return map[netip.Addr]string{nas: "nas", tv: "tv"}[a], a == nas
		},
		To: func(name string) *mesh.Node {
			return map[string]*mesh.Node{"phone": node(t, there.url), "full": node(t, full.url), "home": &self}[name]
		},
		Asker: func(r *http.Request) netip.Addr { return asks[r.Header.Get("From")] },
	})
	srv.Config.WriteTimeout, srv.Config.ReadTimeout = 20*time.Second, 20*time.Second
	srv.Start()
	defer srv.Close()
	do := func(method, from, path, body string, chunked bool) (int, string) {
		var r io.Reader = bytes.NewReader([]byte(body))
		if chunked {
			r = io.MultiReader(r)
		}
		q, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, r)
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("From", from)
		if strings.HasPrefix(body, "page:") {
			q.Header.Set("Origin", "http://evil.example")
		}
		res, err := http.DefaultClient.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(b)
	}
	for _, c := range []struct {
		method, from, path, body string
		chunked                  bool
		code                     int
		say                      string
	}{
		{"PUT", "nas", "/phone/photo.jpg", "1", false, 201, "there.mesh has photo.jpg, 1 bytes\n"},
		{"PUT", "nas", "/phone/Zo%C3%AB%20%2B.txt", "22", true, 201, "there.mesh has Zoë +.txt, 2 bytes\n"},
		{"PUT", "nas", "/home/scan.pdf", "333", false, 201, "home.mesh has scan.pdf, 3 bytes\n"},
		{"PUT", "nas", "/home/scan.pdf", "4444", false, 201, "home.mesh has scan (1).pdf, 4 bytes\n"},
		{"PUT", "tv", "/phone/f", "x", false, 403, "tv may not"},
		{"PUT", "", "/phone/f", "x", false, 403, "at home"},
		{"GET", "", "/", "", false, 403, "at home"},
		{"GET", "tv", "/", "", false, 200, "curl -T FILE"},
		{"POST", "nas", "/phone/f", "x", false, 405, "PUT"},
		{"PUT", "nas", "/phone/f", "page: x", false, 403, "pages"},
		{"PUT", "nas", "/nobody/f", "x", false, 404, "nobody"},
		{"PUT", "nas", "/full/f", "xx", false, 507, "quota"},
		{"PUT", "nas", "/phone/", "x", false, 400, "name"},
		{"PUT", "nas", "/phone", "x", false, 400, "name"},
		{"PUT", "nas", "//f", "x", false, 400, "name"},
		{"PUT", "nas", "/phone/..%2Ff", "x", false, 400, "name"},
		{"PUT", "nas", "/phone/a/f", "x", false, 400, "name"},
		{"PUT", "nas", "/phone/a%00b", "x", false, 400, "name"},
		{"PUT", "nas", "/home/..%2Ff", "x", false, 400, "name"},
		{"PUT", "nas", "/home/", "x", false, 400, "name"},
	} {
		code, text := do(c.method, c.from, c.path, c.body, c.chunked)
		if code != c.code || !strings.Contains(text, c.say) || c.method != "HEAD" && strings.Count(text, "\n") != 1 {
			t.Errorf("%s %s %s: %d %q, want %d %q", c.from, c.method, c.path, code, text, c.code, c.say)
		}
	}
	there.only(there.inbox, map[string]string{"photo.jpg": "1", "Zoë +.txt": "22"})
	here.only(here.inbox, map[string]string{"scan.pdf": "333", "scan (1).pdf": "4444"})
}
