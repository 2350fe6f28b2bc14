package control

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"subnetd/subnetd/status"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// withKey makes a client join by the good key.
func withKey(cfg *Config) { cfg.AuthKey = "good" }

// bubble runs f with a coordinator in fake time. It fails if any goroutine is
// left at the end.
func bubble(t *testing.T, f func(t *testing.T, c *coordinator)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, inMemory(t)) })
}

func TestJoinByKey(t *testing.T) {
	for name, early := range map[string][]byte{
		"without early payload": nil,
		"with early payload":    earlyPayload(`{"nodeKeyChallenge": "chalpub:00"}`),
		"with an empty one":     earlyPayload(""),
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *coordinator) {
				c.does(func(a *acts) { a.early = early })
				m := c.member(withKey).run()
				pass(0)
				m.expect(status.PhaseJoined)
				pass(time.Hour)
				m.expect(status.PhaseJoined)
				if late := time.Since(m.now().LastContact); late > time.Minute {
					t.Errorf("last contact %v ago, with a keep-alive each 50 s", late)
				}
				c.expectCalls("", 5, 5) // key, upgrade, register twice, stream
			})
		})
	}
}

// What the coordinator is told when a node joins.
func TestJoinSays(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		m := c.member(withKey)
		host := someHost()
		m.SetHost(host)
		m.run()
		pass(0)
		calls := c.got("register")
		if len(calls) != 2 || calls[0].reg.Auth != nil || calls[1].reg.Auth == nil || calls[1].reg.Auth.AuthKey != "good" {
			t.Fatalf("want a registration without the key, then one with it; got %d", len(calls))
		}
		r := calls[1].reg
		ids := m.identities()
		if len(ids) != 1 || ids[0].Node.Public() != r.NodeKey || ids[0].Server != c.noiseKey().Public() {
			t.Errorf("saved %d identities; want one with the node's and the server's key", len(ids))
		}
		if r.Version != capVersion || !r.OldNodeKey.IsZero() || r.Followup != "" || !r.Expiry.IsZero() || r.Hostinfo.Hostname != "box" || r.Hostinfo.OS != "linux" {
			t.Errorf("registered with %+v", r)
		}
		if calls[1].machine != m.cfg.Machine.Public() {
			t.Error("another machine key over Noise")
		}
		q := c.got("stream")[0].req
		checkMapRequest(t, q, host)
		if !q.Stream || q.OmitPeers || !q.KeepAlive || q.Compress != "" || q.NodeKey != r.NodeKey || q.DiscoKey != m.cfg.Disco || q.Version != capVersion {
			t.Errorf("stream asked for with %+v", q)
		}
		if nms := m.seenNetmaps(); len(nms) != 1 || nms[0].Self.Key != r.NodeKey || !m.keys[0].Equal(ids[0].Node) {
			t.Errorf("%d netmaps told", len(nms))
		}
	})
}

func someHost() Host {
	return Host{
		Hostname: "box", Routes: prefixes("10.0.0.0/24", "fd00::/64"), HomeRelay: 901, UDP: true, MappingVaries: true,
		Endpoints: []Endpoint{{netip.MustParseAddrPort("192.0.2.1:41641"), 2}, {netip.MustParseAddrPort("10.0.0.1:41641"), 1}},
		Latency:   map[string]float64{"901-v4": 0.01},
	}
}

func checkMapRequest(t *testing.T, q *tailcfg.MapRequest, h Host) {
	t.Helper()
	hi := q.Hostinfo
	if hi == nil || hi.NetInfo == nil {
		t.Fatal("nothing said about the host")
	}
	if hi.Hostname != h.Hostname || len(hi.RoutableIPs) != len(h.Routes) || hi.NetInfo.PreferredDERP != h.HomeRelay ||
		hi.NetInfo.WorkingUDP.EqualBool(!h.UDP) || hi.NetInfo.WorkingIPv6.EqualBool(!h.V6) || hi.NetInfo.MappingVariesByDestIP.EqualBool(!h.MappingVaries) ||
		len(hi.NetInfo.DERPLatency) != len(h.Latency) || hi.IPNVersion != "1.2.3" {
		t.Errorf("host told as %+v, %+v", hi, hi.NetInfo)
	}
	if len(q.Endpoints) != len(h.Endpoints) || len(q.EndpointTypes) != len(h.Endpoints) {
		t.Fatalf("endpoints told as %v, %v", q.Endpoints, q.EndpointTypes)
	}
	for i, e := range h.Endpoints {
		if q.Endpoints[i] != e.Addr || int(q.EndpointTypes[i]) != e.Type {
			t.Errorf("endpoint %d told as %v, %v", i, q.Endpoints[i], q.EndpointTypes[i])
		}
	}
}

// A node that is known needs no key, and its identity is not written again.
func TestRejoin(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		node := key.NewNode()
		c.approve(node.Public())
		m := c.member(func(cfg *Config) {
			cfg.AuthKey, cfg.Node, cfg.Server = "used long ago", node, c.noiseKey().Public()
		}).run()
		pass(0)
		m.expect(status.PhaseJoined)
		c.expectCalls("register", 1, 1)
		if r := c.got("register")[0].reg; r.Auth != nil || r.NodeKey != node.Public() {
			t.Errorf("registered with %+v", r)
		}
		if n := len(m.identities()); n != 0 {
			t.Errorf("%d identities saved", n)
		}
	})
}

func TestWrongKey(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		m := c.member(func(cfg *Config) { cfg.AuthKey = "bad" }).run()
		pass(0)
		m.expect(status.PhaseNeedsLogin, "refuses this node (invalid auth key)", "subnetd up --auth-key")
		if u := m.now().LoginURL; u != "" {
			t.Errorf("login URL %q", u)
		}
		pass(time.Hour)
		c.expectCalls("register", 2*6, 2*13) // a try each 5 to 10 minutes
		c.expectCalls("stream", 0, 0)
		m.Login("good")
		pass(0)
		m.expect(status.PhaseJoined)
	})
}

// A refusal by HTTP status is a refusal as well.
func TestRefusedByStatus(t *testing.T) {
	for _, code := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		bubble(t, func(t *testing.T, c *coordinator) {
			c.does(func(a *acts) {
				a.register = func(_ context.Context, w http.ResponseWriter, _ *tailcfg.RegisterRequest) {
					http.Error(w, "go\x1b[31m away", code)
				}
			})
			m := c.member(withKey).run()
			pass(10 * time.Minute)
			m.expect(status.PhaseNeedsLogin, "refuses this node", "go [31m away")
			c.expectCalls("register", 2, 3)
		})
	}
}

// logins answers registrations as a coordinator with a login page does.
type logins struct {
	urls     []string // given out one after another; the last stays
	approved chan struct{}
	given    int
}

func (l *logins) register(c *coordinator) func(context.Context, http.ResponseWriter, *tailcfg.RegisterRequest) {
	return func(ctx context.Context, w http.ResponseWriter, r *tailcfg.RegisterRequest) {
		last := l.urls[len(l.urls)-1]
		if r.Followup != last {
			l.given = min(l.given+1, len(l.urls))
			answer(w, tailcfg.RegisterResponse{AuthURL: l.urls[l.given-1]})
			return
		}
		select {
		case <-l.approved:
			c.approve(r.NodeKey)
			answer(w, tailcfg.RegisterResponse{MachineAuthorized: true})
		case <-ctx.Done():
		}
	}
}

func TestInteractive(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		l := &logins{urls: []string{"https://coordinator.test/a/1"}, approved: make(chan struct{})}
		c.does(func(a *acts) { a.register = l.register(c) })
		m := c.member(nil).run()
		pass(14 * time.Minute) // the owner is slow
		m.expect(status.PhaseNeedsLogin)
		if u := m.now().LoginURL; u != l.urls[0] {
			t.Errorf("login URL %q", u)
		}
		c.expectCalls("register", 2, 2)
		calls := c.got("register")
		if a, b := calls[0].reg, calls[1].reg; a.Followup != "" || b.Followup != l.urls[0] || a.NodeKey != b.NodeKey {
			t.Errorf("followed up by %+v", b)
		}
		close(l.approved)
		pass(0)
		m.expect(status.PhaseJoined)
		if u := m.now().LoginURL; u != "" {
			t.Errorf("login URL %q after the login", u)
		}
	})
}

// When a login page is too old, the coordinator gives another one.
func TestInteractiveNewPage(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		l := &logins{urls: []string{"https://coordinator.test/a/1", "https://coordinator.test/a/2"}, approved: make(chan struct{})}
		c.does(func(a *acts) { a.register = l.register(c) })
		m := c.member(nil).run()
		pass(time.Minute)
		m.expect(status.PhaseNeedsLogin)
		if u := m.now().LoginURL; u != l.urls[1] {
			t.Errorf("login URL %q; want the new one", u)
		}
		close(l.approved)
		pass(0)
		m.expect(status.PhaseJoined)
	})
}

// A coordinator that answers the follow-up at once, without approval, is not
// asked without pause.
func TestInteractiveNoStorm(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		m := c.member(nil).run() // the usual answer is always the same page
		pass(10 * time.Minute)
		m.expect(status.PhaseNeedsLogin)
		c.expectCalls("register", 10, 60)
		c.approve(c.got("register")[0].reg.NodeKey)
		pass(longestPause)
		m.expect(status.PhaseJoined)
	})
}

// A restart of the coordinator while the owner is at the page does not lose the login.
func TestInteractiveBroken(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		l := &logins{urls: []string{"https://coordinator.test/a/1"}, approved: make(chan struct{})}
		c.does(func(a *acts) { a.register = l.register(c) })
		m := c.member(nil).run()
		pass(time.Minute)
		c.approve(c.got("register")[0].reg.NodeKey)
		c.does(func(a *acts) { a.register = nil })
		c.hangUp()
		pass(time.Second)
		m.expect(status.PhaseJoined)
		if u := m.now().LoginURL; u != "" {
			t.Errorf("login URL %q after the login", u)
		}
	})
}

// expires makes the coordinator refuse one node key as expired.
func expires(c *coordinator, old key.NodePublic) {
	c.does(func(a *acts) {
		a.register = func(ctx context.Context, w http.ResponseWriter, r *tailcfg.RegisterRequest) {
			if r.NodeKey == old {
				answer(w, tailcfg.RegisterResponse{NodeKeyExpired: true, MachineAuthorized: true})
				return
			}
			c.usualRegister(ctx, w, r)
		}
	})
}

// The new key names the old one, and is saved only when it was taken.
func TestExpiredAtStart(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		old := key.NewNode()
		expires(c, old.Public())
		m := c.member(func(cfg *Config) { cfg.Node, cfg.Server = old, c.noiseKey().Public() }).run()
		pass(0)
		m.expect(status.PhaseNeedsLogin) // no auth key
		if n := len(m.identities()); n != 0 {
			t.Fatalf("%d identities saved before the new key was taken", n)
		}
		m.Login("good")
		pass(0)
		m.expect(status.PhaseJoined)
		calls := c.got("register")
		last, ids := calls[len(calls)-1].reg, m.identities()
		if last.OldNodeKey != old.Public() || last.NodeKey == old.Public() || last.Auth == nil {
			t.Errorf("registered anew with %+v", last)
		}
		if len(ids) != 1 || ids[0].Node.Public() != last.NodeKey || !m.keys[0].Equal(ids[0].Node) {
			t.Errorf("%d identities saved; want the new key, and the netmap with it", len(ids))
		}
	})
}

// The key runs out while the stream is open: nothing but time says so.
func TestExpiryWhileJoined(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		end := time.Now().Add(10 * time.Minute)
		m := c.member(withKey)
		c.does(func(a *acts) {
			a.stream = func(p *poll) {
				n := self(p.req.NodeKey)
				if p.req.NodeKey == c.got("stream")[0].req.NodeKey {
					n.KeyExpiry = end
				}
				p.say(&tailcfg.MapResponse{Node: n})
				p.keepAlive()
			}
		})
		m.run()
		pass(9 * time.Minute)
		m.expect(status.PhaseJoined)
		if !m.now().KeyExpiry.Equal(end) {
			t.Errorf("key expiry told as %v", m.now().KeyExpiry)
		}
		old := c.got("stream")[0].req.NodeKey
		expires(c, old)
		pass(3 * time.Minute)
		m.expect(status.PhaseJoined)
		calls := c.got("register")
		if last := calls[len(calls)-1].reg; last.NodeKey == old || last.OldNodeKey != old {
			t.Errorf("registered anew with %+v", last)
		}
		if !m.now().KeyExpiry.IsZero() {
			t.Errorf("key expiry told as %v", m.now().KeyExpiry)
		}
	})
}

// A node that the map has expired whatever it does makes no storm of keys.
func TestExpiredForever(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		c.does(func(a *acts) {
			a.stream = func(p *poll) {
				n := self(p.req.NodeKey)
				n.Expired = true
				p.say(&tailcfg.MapResponse{Node: n})
				p.keepAlive()
			}
		})
		m := c.member(withKey).run()
		pass(away)
		m.expect(status.PhaseNeedsLogin)
		c.expectCalls("stream", 10, 2*int(away/longestPause)+8)
	})
}

// A key that every registration calls expired is not tried for ever at once.
func TestAlwaysExpired(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		c.does(func(a *acts) {
			a.register = func(_ context.Context, w http.ResponseWriter, _ *tailcfg.RegisterRequest) {
				answer(w, tailcfg.RegisterResponse{NodeKeyExpired: true})
			}
		})
		m := c.member(withKey).run()
		pass(time.Minute)
		m.expect(status.PhaseNeedsLogin, "counts as expired")
		c.expectCalls("register", 4, 4)
	})
}

func TestWaitingForAdmin(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		admitted := make(chan struct{})
		c.does(func(a *acts) {
			a.register = func(_ context.Context, w http.ResponseWriter, _ *tailcfg.RegisterRequest) {
				answer(w, tailcfg.RegisterResponse{})
			}
			a.stream = func(p *poll) {
				n := self(p.req.NodeKey)
				n.MachineAuthorized = false
				p.say(&tailcfg.MapResponse{Node: n})
				<-admitted
				p.say(&tailcfg.MapResponse{Node: self(p.req.NodeKey)})
				p.keepAlive()
			}
		})
		m := c.member(nil).run()
		pass(0)
		m.expect(status.PhaseWaiting)
		close(admitted)
		pass(0)
		m.expect(status.PhaseJoined)
	})
}

func TestTailnetLock(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		c.does(func(a *acts) {
			a.register = func(_ context.Context, w http.ResponseWriter, _ *tailcfg.RegisterRequest) {
				answer(w, tailcfg.RegisterResponse{MachineAuthorized: true, NodeKeySignature: []byte{1}})
			}
		})
		m := c.member(withKey).run()
		pass(10 * time.Minute)
		m.expect(status.PhaseConnecting, "tailnet lock on")
		c.expectCalls("register", 10, 60)
	})
}

// An identity that cannot be saved is not used.
func TestSaveFails(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		m := c.member(withKey)
		m.saving = errors.New("disk full")
		m.run()
		pass(time.Minute)
		m.expect(status.PhaseConnecting, "could not be saved", "disk full")
		c.expectCalls("register", 0, 0)
		m.tell(func() { m.saving = nil })
		pass(time.Minute)
		m.expect(status.PhaseJoined)
	})
}

// Nor is a new key, though the coordinator has taken it already.
func TestSaveFailsAfterRekey(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		old := key.NewNode()
		expires(c, old.Public())
		m := c.member(func(cfg *Config) { cfg.AuthKey, cfg.Node, cfg.Server = "good", old, c.noiseKey().Public() })
		m.saving = errors.New("disk full")
		m.run()
		pass(time.Minute)
		m.expect(status.PhaseConnecting, "could not be saved")
		c.expectCalls("stream", 0, 0)
		m.tell(func() { m.saving = nil })
		pass(time.Minute)
		m.expect(status.PhaseJoined)
		if ids := m.identities(); len(ids) != 1 || ids[0].Node.Equal(old) {
			t.Errorf("%d identities saved", len(ids))
		}
	})
}
