package control

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"subnetd/subnetd/status"
	"tailscale.com/tailcfg"
)

// Wherever the client is, it ends at once with its context, and no goroutine of
// it stays: the bubble fails otherwise. No time passes after the end.
func TestEnd(t *testing.T) {
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	tests := map[string]struct {
		act    func(*acts)
		change func(*coordinator, *Config)
		at     string // the call in which it hangs; none: in no call
		wait   time.Duration
	}{
		"dialling": {change: func(c *coordinator, _ *Config) {
			c.dial = func(ctx context.Context, _, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
		}},
		"TLS": {change: func(c *coordinator, cfg *Config) {
			cfg.URL = "https://coordinator.test"
			c.dial = func(context.Context, string, string) (net.Conn, error) {
				near, far := net.Pipe()
				go io.Copy(io.Discard, far) // a server that never says a word
				return near, nil
			}
		}, wait: time.Hour},
		"key":       {act: func(a *acts) { a.key = hang }, at: "key"},
		"upgrade":   {act: func(a *acts) { a.upgrade = hang }, at: "upgrade"},
		"handshake": {act: func(a *acts) { a.upgrade = mute }, at: "upgrade"},
		"register": {act: func(a *acts) {
			a.register = func(ctx context.Context, _ http.ResponseWriter, _ *tailcfg.RegisterRequest) { <-ctx.Done() }
		}, at: "register"},
		"login":       {act: func(a *acts) { l := &logins{urls: []string{"https://x"}}; a.register = l.register(nil) }, at: "register"},
		"login pause": {change: func(_ *coordinator, cfg *Config) { cfg.AuthKey = "" }, wait: time.Minute},
		"map":         {act: func(a *acts) { a.stream = (*poll).hang }, at: "stream"},
		"stream":      {at: "stream", wait: time.Hour},
		"quiet": {act: func(a *acts) {
			a.stream = func(p *poll) {
				p.say(&tailcfg.MapResponse{Node: self(p.req.NodeKey), Debug: &tailcfg.Debug{SleepSeconds: 300}})
				p.hang()
			}
		}, at: "stream", wait: time.Minute},
		"update": {act: func(a *acts) { a.lite = hang }, at: "stream", wait: time.Second},
		"pause":  {act: func(a *acts) { a.key = status502 }, wait: time.Minute},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *coordinator) {
				if tt.act != nil {
					c.does(tt.act)
				}
				m := c.member(func(cfg *Config) {
					if cfg.AuthKey = "good"; tt.change != nil {
						tt.change(c, cfg)
						cfg.Dial = c.dial
					}
				}).run()
				pass(tt.wait)
				m.SetHost(someHost())
				pass(0)
				if tt.at != "" {
					c.expectCalls(tt.at, 1, 3)
				}
				end := time.Now()
				m.stop()
				synctest.Wait()
				if d := time.Since(end); d > 0 {
					t.Errorf("it took %v to end", d)
				}
			})
		})
	}
}

// mute agrees to the upgrade and says no more.
func mute(w http.ResponseWriter, _ *http.Request) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	conn.Write([]byte("HTTP/1.1 101 Switching Protocols\r\n\r\n"))
	conn.Read(make([]byte, 1)) // until the client leaves
	conn.Close()
}

// A client that has ended does not tell anything any more, and may run again.
func TestRunAgain(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		m := c.member(withKey).run()
		pass(time.Minute)
		m.stop()
		<-m.done
		states, n := len(m.states), len(c.got(""))
		m.SetHost(someHost())
		m.Login("good")
		pass(time.Hour)
		if len(m.states) != states || len(c.got("")) != n {
			t.Error("something went on after the end")
		}
		m.run()
		pass(time.Second)
		m.expect(status.PhaseJoined)
		checkMapRequest(t, c.got("stream")[1].req, someHost())
	})
}

// An address that can never work ends Run, with a plain word.
func TestBadAddress(t *testing.T) {
	for _, url := range []string{"", "coordinator.test", "ftp://coordinator.test", "https://", "https://:443", "://", "https://a b"} {
		var last State
		c := New(Config{URL: url, OnState: func(s State) { last = s }})
		err := c.Run(t.Context())
		if err == nil || last.Error != err.Error() {
			t.Errorf("%q: Run says %v, the state %q", url, err, last.Error)
		}
		if err := c.Logout(t.Context()); err != nil {
			t.Errorf("%q: Logout of nobody: %v", url, err)
		}
	}
}
