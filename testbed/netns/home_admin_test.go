package netns_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// TestHomePublicPortHasNoAdmin: nothing of the daemon's own API answers on any port, to strangers or members, however
// it is asked for.
func TestHomePublicPortHasNoAdmin(t *testing.T) {
	s := openHome(t, netns.HomeOptions{})
	c := s.crowd()
	w, err := func() (*wire, error) {
		n := newRawNode(c, 0)
		w, err := n.connect(t.Context())
		if err == nil {
			err = n.register(t.Context(), w, s.mesh.Invite().Key)
		}
		return w, err
	}()
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	tried := 0
	for _, path := range adminPaths() {
		for _, at := range s.listeners(t) {
			for _, secure := range []bool{false, true} {
				for _, method := range []string{"GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"} {
					tried++
					if code, body, err := askAt(t.Context(), c, at, secure, method, path); err == nil && code < 300 {
						t.Errorf("%s %s at %v, TLS %v: status %d: %.80q", method, path, at, secure, code, body)
					}
				}
			}
		}
		if strings.HasPrefix(path, "/") {
			if res, err := w.post(t.Context(), path, []byte(`{"Node":"home"}`)); err == nil {
				t.Errorf("a member asks for %s: status %d", path, res.StatusCode)
				res.Body.Close()
			}
		}
	}
	t.Logf("%d requests", tried)
}

// adminPaths are those of the daemon's API, and what a careless server might take for one.
func adminPaths() []string {
	names := []string{"status", "up", "down", "logout", "ping", "netcheck", "config", "debug", "events", "home/invite", "home/keys",
		"home/keys/revoke", "home/nodes", "home/nodes/approve", "home/nodes/rename", "home/nodes/expire", "home/nodes/remove",
		"home/nodes/routes", "home/policy", "home/policy/check"}
	var all []string
	for _, n := range names {
		all = append(all, "/v1/"+n)
	}
	return append(all, "//v1/home/nodes", "/./v1/home/nodes", "/key/../v1/home/nodes", "/%76%31/home/nodes", "http://subnetd/v1/home/nodes",
		"/a/../v1/home/keys", "/derp/../v1/status", "/v1", "/v1/", "/debug/pprof/", "/debug/vars", "/metrics")
}

// listeners are all TCP ports on which the router answers strangers.
func (s *homeScene) listeners(t *testing.T) []netip.AddrPort {
	t.Helper()
	out, err := s.home.Router.Run(t.Context(), "ss", "-Hltn")
	if err != nil {
		t.Fatal(err)
	}
	ports := map[uint16]bool{80: true, 443: true}
	for line := range strings.Lines(out) {
		var port uint16
		f := strings.Fields(line)
		if _, err := fmt.Sscan(f[3][strings.LastIndex(f[3], ":")+1:], &port); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		ports[port] = true
	}
	if !ports[8410] {
		t.Errorf("nobody listens on 8410:\n%s", out)
	}
	var all []netip.AddrPort
	for p := range ports {
		all = append(all, netip.AddrPortFrom(s.home.Router.Addr4, p))
	}
	return all
}

// askAt sends one request and gives the answer's status and the beginning of its body.
func askAt(ctx context.Context, c *rawCrowd, at netip.AddrPort, secure bool, method, path string) (int, string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	nc, err := c.DialAs(ctx, 1, at)
	if err != nil {
		return 0, "", err
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(2 * time.Second))
	if secure {
		nc = tls.Client(nc, &tls.Config{InsecureSkipVerify: true, ServerName: "home.test"})
	}
	if _, err := fmt.Fprintf(nc, "%s %s HTTP/1.1\r\nHost: home.test\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", method, path); err != nil {
		return 0, "", err
	}
	res, err := http.ReadResponse(bufio.NewReader(nc), &http.Request{Method: method})
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(res.Body, 1000))
	return res.StatusCode, string(body), nil
}
