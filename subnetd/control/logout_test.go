package control

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/status"
	"tailscale.com/types/key"
)

func TestLogout(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		m := c.member(withKey).run()
		pass(time.Minute)
		m.expect(status.PhaseJoined)
		if err := m.Logout(t.Context()); err != nil {
			t.Fatal(err)
		}
		pass(0)
		m.expect(status.PhaseNeedsLogin)
		calls, ids := c.got("register"), m.identities()
		if last := calls[len(calls)-1].reg; !last.Expiry.Equal(time.Unix(123, 0)) || last.NodeKey != calls[0].reg.NodeKey || last.Auth != nil {
			t.Errorf("logged out by %+v", last)
		}
		if len(ids) != 2 || !ids[1].Node.IsZero() || !ids[1].Server.IsZero() {
			t.Errorf("identities saved: %v; want the last one empty", ids)
		}
		n := len(c.got(""))
		pass(24 * time.Hour)
		c.expectCalls("", n, n)

		m.Login("good")
		pass(0)
		m.expect(status.PhaseJoined)
		calls = c.got("register")
		if last := calls[len(calls)-1].reg; last.NodeKey == calls[0].reg.NodeKey || !last.OldNodeKey.IsZero() {
			t.Errorf("joined again by %+v; want a new key", last)
		}
	})
}

// The auth key of before is gone after a logout: an empty login is interactive.
func TestLogoutForgetsKey(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		m := c.member(withKey).run()
		pass(0)
		if err := m.Logout(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.Login("")
		pass(time.Second)
		m.expect(status.PhaseNeedsLogin)
		if u := m.now().LoginURL; u == "" {
			t.Error("no login URL")
		}
		for _, x := range c.got("register")[3:] {
			if x.reg.Auth != nil {
				t.Error("the old key was used after the logout")
			}
		}
	})
}

// The identity is forgotten even if nobody can be told.
func TestLogoutWhileDisconnected(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		m := c.member(withKey).run()
		pass(0)
		c.setDown(true)
		pass(time.Minute)
		m.expect(status.PhaseJoined, "refused the connection")
		err := m.Logout(t.Context())
		if err == nil || !strings.Contains(err.Error(), "was not told") {
			t.Errorf("Logout: %v", err)
		}
		pass(0)
		m.expect(status.PhaseNeedsLogin)
		if ids := m.identities(); !ids[len(ids)-1].Node.IsZero() {
			t.Error("the identity was not forgotten")
		}
	})
}

// A login does not wait for the end of a pause.
func TestLoginWhileDisconnected(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		c.setDown(true)
		m := c.member(nil).run()
		pass(10 * time.Minute)
		m.expect(status.PhaseConnecting, "refused the connection")
		m.Login("good")
		pass(0)
		c.setDown(false)
		pass(longestPause)
		m.expect(status.PhaseJoined)
		if r := c.got("register")[0].reg; r.Auth == nil {
			t.Error("the key of the login was not used at once")
		}
	})
}

// A login while joined registers again, with the same node key.
func TestLoginWhileJoined(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		m := c.member(withKey).run()
		pass(0)
		m.Login("good")
		pass(0)
		m.expect(status.PhaseJoined)
		calls := c.got("register")
		if last := calls[len(calls)-1].reg; len(calls) != 3 || last.Auth == nil || last.NodeKey != calls[0].reg.NodeKey {
			t.Errorf("%d registrations, the last %+v", len(calls), last)
		}
		c.expectCalls("stream", 2, 2)
		if n := len(m.seenNetmaps()); n != 1 {
			t.Errorf("%d netmaps told; want one, for nothing changed", n)
		}
	})
}

func TestLogoutWithoutRun(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		node := key.NewNode()
		c.approve(node.Public())
		m := c.member(func(cfg *Config) { cfg.Node, cfg.Server = node, c.noiseKey().Public() })
		if err := m.Logout(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r := c.got("register"); len(r) != 1 || r[0].reg.NodeKey != node.Public() || r[0].reg.Expiry.IsZero() {
			t.Errorf("%d registrations", len(r))
		}
		if err := m.Logout(t.Context()); err != nil {
			t.Errorf("a second Logout: %v", err)
		}
		c.expectCalls("register", 1, 1)
	})
}

// A logout that nobody can carry out any more gets an answer too.
func TestLogoutAtTheEnd(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		c.does(func(a *acts) {
			a.key = func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
		})
		m := c.member(func(cfg *Config) { cfg.Node = key.NewNode() }).run()
		pass(time.Second)
		told := make(chan error, 1)
		go func() { told <- m.Logout(t.Context()) }()
		pass(time.Second)
		m.stop()
		if err := <-told; err == nil {
			t.Error("a logout that was not told to anybody: no error")
		}
	})
}
