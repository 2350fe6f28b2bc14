package control

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"tailscale.com/tailcfg"
)

// pings lets the coordinator send ps, one message each, and settles.
func pings(t *testing.T, c *coordinator, ps ...*tailcfg.PingRequest) {
	t.Helper()
	c.does(func(a *acts) {
		a.stream = func(p *poll) {
			p.say(&tailcfg.MapResponse{Node: self(p.req.NodeKey)})
			for _, r := range ps {
				p.say(&tailcfg.MapResponse{KeepAlive: true, PingRequest: r})
				p.wait(time.Second)
			}
			p.keepAlive()
		}
	})
	c.member(withKey).run()
	pass(time.Duration(len(ps)+1) * time.Second)
}

func TestPings(t *testing.T) {
	tests := []struct {
		name string
		ping tailcfg.PingRequest
		want string // the call that answers it; none: no answer
		body string // part of it
	}{
		{"echo", tailcfg.PingRequest{URL: "https://unused/c2n/7", Types: "c2n", Payload: []byte("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")},
			"noise POST /c2n/7", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"},
		{"another question", tailcfg.PingRequest{URL: "https://unused/c2n/8", Types: "c2n", Payload: []byte("GET /debug/prefs HTTP/1.1\r\nHost: x\r\n\r\n")},
			"noise POST /c2n/8", "404 Not Found"},
		{"a question that is none", tailcfg.PingRequest{URL: "https://unused/c2n/9", Types: "c2n", Payload: []byte("?")},
			"noise POST /c2n/9", "400 Bad Request"},
		{"an echo cut off", tailcfg.PingRequest{URL: "https://unused/c2n/9", Types: "c2n", Payload: []byte("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nhello")},
			"noise POST /c2n/9", "400 Bad Request"},
		{"over Noise", tailcfg.PingRequest{URL: "https://unused/ping/1", URLIsNoise: true}, "noise HEAD /ping/1", ""},
		{"over the web", tailcfg.PingRequest{URL: "http://coordinator.test/ping/2"}, "web HEAD /ping/2", ""},
		{"another host", tailcfg.PingRequest{URL: "http://elsewhere.test/ping/3"}, "", ""},
		{"no address", tailcfg.PingRequest{}, "", ""},
		{"not an address", tailcfg.PingRequest{URL: "://"}, "", ""},
		{"another scheme", tailcfg.PingRequest{URL: "file://coordinator.test/etc/passwd"}, "", ""},
		{"probes of peers", tailcfg.PingRequest{URL: "http://coordinator.test/ping/4", Types: "TSMP,disco"}, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *coordinator) {
				pings(t, c, &tt.ping, &tt.ping) // the second time is the same one
				calls := c.got("")[5:]          // after key, upgrade, register twice and stream
				if tt.want == "" {
					if len(calls) > 0 {
						t.Errorf("answered by %s", calls[0].what)
					}
					return
				}
				if len(calls) != 1 || calls[0].what != tt.want || !strings.Contains(calls[0].body, tt.body) {
					t.Errorf("answered by %+v; want one %s with %q", calls, tt.want, tt.body)
				}
			})
		})
	}
}

// Nor does the coordinator's own address lead elsewhere.
func TestPingRedirect(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		c.does(func(a *acts) {
			a.other = func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/ping" {
					http.Redirect(w, r, "http://192.168.0.1/admin", http.StatusFound)
				}
			}
		})
		pings(t, c, &tailcfg.PingRequest{URL: "http://coordinator.test/ping"})
		c.expectCalls("web HEAD /ping", 1, 1)
		c.expectCalls("web HEAD /admin", 0, 0)
	})
}

// Many pings at once do not become many requests at once, nor a list without end.
func TestPingLog(t *testing.T) {
	var g pingLog
	if !g.admit("a") || g.admit("a") || !g.admit("b") {
		t.Error("two pings must run at once, each only once")
	}
	if g.admit("c") {
		t.Error("a third runs at the same time")
	}
	g.done()
	if !g.admit("c") {
		t.Error("no new ping when one is done")
	}
	for i := range 10 * pingsKept {
		g.done()
		g.admit(fmt.Sprint(i))
	}
	if len(g.seen) != pingsKept {
		t.Errorf("%d addresses remembered; want %d", len(g.seen), pingsKept)
	}
}

func FuzzAnswerC2N(f *testing.F) {
	f.Add([]byte("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"))
	f.Add([]byte("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(string(answerC2N(b)))), nil)
		if err != nil {
			t.Fatalf("the answer is no answer: %v", err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			t.Errorf("the answer is cut off: %v", err)
		}
		res.Body.Close()
	})
}
