package control

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"subnetd/subnetd/mesh"
	"subnetd/subnetd/status"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// silent is a stream that tells the first map and nothing more.
func silent(p *poll) {
	p.say(&tailcfg.MapResponse{Node: self(p.req.NodeKey)})
	p.hang()
}

// gaps are the times between calls.
func gaps(calls []call) []time.Duration {
	var out []time.Duration
	for i := 1; i < len(calls); i++ {
		out = append(out, calls[i].at.Sub(calls[i-1].at))
	}
	return out
}

// A stream that is silent for two keep-alives is opened anew, on a new
// connection, and the rest of the house hears nothing of it.
func TestSilence(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		c.does(func(a *acts) { a.stream = silent })
		m := c.member(withKey).run()
		pass(silence - time.Second)
		c.expectCalls("stream", 1, 1)
		pass(time.Second)
		m.expect(status.PhaseJoined, "silent for two minutes")
		pass(firstPause)
		m.expect(status.PhaseJoined)
		c.expectCalls("stream", 2, 2)
		c.expectCalls("upgrade", 2, 2)
		c.expectCalls("register", 2, 2)
		pass(2*silence + 2*firstPause)
		c.expectCalls("stream", 4, 4)
		if n := len(m.seenNetmaps()); n != 1 {
			t.Errorf("%d netmaps told; want one", n)
		}
	})
}

// So is one whose connection died without a word.
func TestSilentNet(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		m := c.member(withKey).run()
		pass(time.Second)
		c.cut()
		pass(silence + firstPause + time.Second)
		m.expect(status.PhaseJoined)
		c.expectCalls("stream", 2, 2)
	})
}

// And one that is not even answered.
func TestSilentAnswer(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		c.does(func(a *acts) { a.stream = (*poll).hang })
		m := c.member(withKey).run()
		pass(silence + time.Second)
		c.expectCalls("stream", 2, 2)
		c.does(func(a *acts) { a.stream = nil })
		pass(silence + 2*time.Second)
		m.expect(status.PhaseJoined)
	})
}

// A coordinator may ask for quiet; that is not the silence of a dead stream.
func TestSleepSeconds(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		c.does(func(a *acts) {
			a.stream = func(p *poll) {
				p.say(&tailcfg.MapResponse{Node: self(p.req.NodeKey), Debug: &tailcfg.Debug{SleepSeconds: 200}})
				p.say(&tailcfg.MapResponse{Domain: "after"})
				p.hang()
			}
		})
		m := c.member(withKey).run()
		pass(199 * time.Second)
		m.expect(status.PhaseJoined)
		c.expectCalls("stream", 1, 1)
		if n := len(m.seenNetmaps()); n != 1 {
			t.Errorf("%d netmaps told while quiet was asked for", n)
		}
		pass(2 * time.Second)
		if nms := m.seenNetmaps(); len(nms) != 2 || nms[1].Domain != "after" {
			t.Errorf("%d netmaps told after the quiet", len(nms))
		}
		pass(silence)
		c.expectCalls("stream", 2, 2)
	})
}

const away = 10 * time.Minute

// A coordinator that is away for long is asked with growing pauses, and found
// soon after it is back.
func TestBackoff(t *testing.T) {
	tests := map[string]struct {
		call string
		away func(*acts)
	}{
		"closes after the handshake": {"upgrade", func(a *acts) { a.drop = true }},
		"key answers 502":            {"key", func(a *acts) { a.key = status502; a.upgrade = status502 }},
		"map answers 500":            {"stream", func(a *acts) { a.stream = func(p *poll) { http.Error(p.w, "broken", http.StatusInternalServerError) } }},
		"map is garbage":             {"stream", func(a *acts) { a.stream = func(p *poll) { p.w.Write([]byte("this is no frame")) } }},
		"map ends at once":           {"stream", func(a *acts) { a.stream = func(*poll) {} }},
		"map without ourselves":      {"stream", func(a *acts) { a.stream = func(p *poll) { p.say(&tailcfg.MapResponse{Domain: "x"}); p.hang() } }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *coordinator) {
				m := c.member(withKey).run()
				pass(time.Minute)
				m.expect(status.PhaseJoined)
				before := len(c.got(tt.call))
				c.does(tt.away)
				c.hangUp()
				pass(away)
				m.expect(status.PhaseJoined, "coordinator") // the last netmap goes on
				checkBackoff(t, c.got(tt.call)[before:])
				c.does(func(a *acts) { *a = acts{} })
				pass(longestPause + time.Second)
				m.expect(status.PhaseJoined)
				if n := len(m.seenNetmaps()); n != 1 {
					t.Errorf("%d netmaps told; want one", n)
				}
			})
		})
	}
}

func status502(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "bad gateway", http.StatusBadGateway)
}

func checkBackoff(t *testing.T, calls []call) {
	t.Helper()
	ds := gaps(calls)
	if least := int(away / longestPause); len(ds) < least || len(ds) > 2*least+8 {
		t.Errorf("%d calls in %v", len(ds), away)
	}
	for i, d := range ds {
		longest := min(firstPause<<min(i+2, 10), longestPause) // there may be pauses before the first of these calls
		if least := min(firstPause<<min(i, 10), longestPause) / 2; d < least || d > longest+time.Second {
			t.Errorf("pause %d is %v; want %v to %v", i, d, least, longest)
		}
	}
}

// After a netmap the pauses begin small again.
func TestBackoffResets(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		m := c.member(withKey).run()
		pass(time.Minute)
		c.setDown(true)
		pass(time.Hour)
		c.setDown(false)
		pass(longestPause)
		m.expect(status.PhaseJoined)
		n := len(c.got("stream"))
		c.hangUp()
		pass(firstPause)
		c.expectCalls("stream", n+1, n+1)
	})
}

func TestRetryAfter(t *testing.T) {
	tests := []struct {
		name        string
		code        int
		header      func(now time.Time) string
		least, most time.Duration // until the next try
	}{
		{"seconds", 429, func(time.Time) string { return "90" }, 90 * time.Second, 91 * time.Second},
		{"date", 503, func(now time.Time) string { return now.Add(90 * time.Second).UTC().Format(http.TimeFormat) }, 89 * time.Second, 91 * time.Second},
		{"hour", 429, func(time.Time) string { return "3600" }, time.Hour, time.Hour + time.Second},
		{"more than an hour", 429, func(time.Time) string { return "3601" }, 0, firstPause},
		{"far too much", 429, func(time.Time) string { return "999999999999" }, 0, firstPause},
		{"past", 429, func(now time.Time) string { return now.Add(-time.Hour).UTC().Format(http.TimeFormat) }, 0, firstPause},
		{"negative", 429, func(time.Time) string { return "-5" }, 0, firstPause},
		{"words", 503, func(time.Time) string { return "soon" }, 0, firstPause},
		{"none", 500, func(time.Time) string { return "" }, 0, firstPause},
	}
	for _, where := range []string{"register", "stream"} {
		for _, tt := range tests {
			t.Run(where+" "+tt.name, func(t *testing.T) {
				bubble(t, func(t *testing.T, c *coordinator) {
					node := key.NewNode()
					c.approve(node.Public())
					busy := func(w http.ResponseWriter) bool {
						if len(c.got(where)) > 1 {
							return false
						}
						w.Header().Set("Retry-After", tt.header(time.Now()))
						http.Error(w, "busy", tt.code)
						return true
					}
					c.does(func(a *acts) {
						if where == "register" {
							a.register = func(ctx context.Context, w http.ResponseWriter, r *tailcfg.RegisterRequest) {
								if !busy(w) {
									c.usualRegister(ctx, w, r)
								}
							}
							return
						}
						a.stream = func(p *poll) {
							if !busy(p.w) {
								c.usualStream(p)
							}
						}
					})
					m := c.member(func(cfg *Config) { cfg.Node = node }).run()
					pass(0)
					m.expect(status.PhaseConnecting, fmt.Sprintf("HTTP status %d: busy", tt.code))
					pass(2 * time.Hour)
					m.expect(status.PhaseJoined)
					if d := gaps(c.got(where))[0]; d < tt.least || d > tt.most {
						t.Errorf("tried again after %v; want %v to %v", d, tt.least, tt.most)
					}
				})
			})
		}
	}
}

// A node that the coordinator has deleted registers again with the same key.
func TestDeletedNode(t *testing.T) {
	for _, code := range []int{http.StatusNotFound, http.StatusBadRequest} {
		bubble(t, func(t *testing.T, c *coordinator) {
			m := c.member(withKey).run()
			pass(time.Minute)
			m.expect(status.PhaseJoined)
			node := c.got("stream")[0].req.NodeKey
			c.forget()
			c.does(func(a *acts) {
				a.stream = func(p *poll) {
					if len(c.got("register")) > 2 {
						c.usualStream(p)
						return
					}
					http.Error(p.w, "node not found", code)
				}
			})
			c.hangUp()
			pass(10 * time.Second)
			m.expect(status.PhaseJoined)
			calls := c.got("register")
			if last := calls[len(calls)-1].reg; len(calls) != 4 || last.NodeKey != node || last.Auth == nil || !last.OldNodeKey.IsZero() {
				t.Errorf("%d registrations, the last %+v", len(calls), last)
			}
			pass(time.Hour)
			c.expectCalls("register", 4, 4)
			if n := len(m.identities()); n != 1 {
				t.Errorf("%d identities saved", n)
			}
		})
	}
}

// Without a key that is still good, its owner is asked.
func TestDeletedNodeNeedsLogin(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		m := c.member(withKey).run()
		pass(time.Minute)
		c.mu.Lock()
		clear(c.keys)
		c.mu.Unlock()
		c.forget()
		c.hangUp()
		pass(time.Minute)
		m.expect(status.PhaseNeedsLogin, "refuses this node")
		n := len(c.got("register"))
		pass(time.Hour)
		c.expectCalls("register", n+10, n+26)
	})
}

// A coordinator that takes each registration and knows nobody is not stormed.
func TestDeletedForever(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		m := c.member(withKey).run()
		pass(time.Minute)
		c.does(func(a *acts) {
			a.stream = func(p *poll) { http.Error(p.w, "node not found", http.StatusNotFound) }
		})
		c.hangUp()
		pass(away)
		m.expect(status.PhaseJoined, "HTTP status 404: node not found")
		streams := c.got("stream")
		checkBackoff(t, streams[1:])
		c.expectCalls("register", len(streams), len(streams)+2)
	})
}

// Other trouble with the map is no reason to register again.
func TestNotDeleted(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		c.member(withKey).run()
		pass(time.Minute)
		c.does(func(a *acts) { a.stream = func(p *poll) { status502(p.w, nil) } })
		c.hangUp()
		pass(away)
		c.expectCalls("register", 2, 2)
	})
}

// Another key of the coordinator is refused: nothing is registered with it, and
// little is asked.
func TestServerKeyChanged(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		m := c.member(withKey).run()
		pass(time.Minute)
		registered, old := len(c.got("register")), c.noiseKey().Public()
		c.mu.Lock()
		c.noise = key.NewMachine()
		c.mu.Unlock()
		c.hangUp()
		pass(time.Minute)
		m.expect(status.PhaseJoined, "shows another key", c.noiseKey().Public().String(), old.String(), "subnetd logout")
		n := len(c.got(""))
		pass(time.Hour)
		c.expectCalls("", n+2, n+7) // a look each 10 to 20 minutes
		c.expectCalls("register", registered, registered)
		if ids := m.identities(); len(ids) != 1 || ids[0].Server != old {
			t.Errorf("identities %v; the pin must stay", ids)
		}
		// What the sentence says helps.
		if err := m.Logout(t.Context()); err == nil {
			t.Error("logged out by a coordinator that is another one")
		}
		m.Login("good")
		pass(0)
		m.expect(status.PhaseJoined)
	})
}

// The pin of an earlier run counts from the first contact.
func TestServerKeyPinned(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		m := c.member(func(cfg *Config) { cfg.AuthKey, cfg.Server = "good", key.NewMachine().Public() }).run()
		pass(time.Minute)
		m.expect(status.PhaseConnecting, "shows another key")
		c.expectCalls("upgrade", 0, 0)
	})
}

// tellPeers is a stream that says what the test hands in.
func tellPeers(say <-chan *tailcfg.MapResponse) func(*poll) {
	return func(p *poll) {
		p.say(&tailcfg.MapResponse{Node: self(p.req.NodeKey)})
		for {
			select {
			case m := <-say:
				p.say(m)
			case <-time.After(50 * time.Second):
				p.say(&tailcfg.MapResponse{KeepAlive: true})
			case <-p.ctx.Done():
				return
			}
		}
	}
}

// Netmaps come one per news, and none for keep-alives.
func TestNetmapsComeInOrder(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		say := make(chan *tailcfg.MapResponse)
		c.does(func(a *acts) { a.stream = tellPeers(say) })
		m := c.member(withKey).run()
		pass(time.Minute)
		for i := range 20 {
			say <- &tailcfg.MapResponse{Domain: fmt.Sprint(i)}
			say <- &tailcfg.MapResponse{Domain: fmt.Sprint(i)}
		}
		pass(time.Minute)
		var got []string
		for _, nm := range m.seenNetmaps() {
			got = append(got, nm.Domain)
		}
		want := []string{""}
		for i := range 20 {
			want = append(want, fmt.Sprint(i))
		}
		if !slices.Equal(got, want) {
			t.Errorf("netmaps %q; want %q", got, want)
		}
	})
}

// A client that has a netmap keeps it through a stream that ends in the middle of a frame.
func TestStreamBreaksInFrame(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		var once sync.Once
		c.does(func(a *acts) {
			a.stream = func(p *poll) {
				p.say(&tailcfg.MapResponse{Node: self(p.req.NodeKey), Peers: []*tailcfg.Node{{ID: 2, Key: nodeKey(2)}}})
				once.Do(func() { p.w.Write(framed(`{"PeersRemoved": [2]}`)[:9]) })
				if len(c.got("stream")) > 1 {
					p.keepAlive()
				}
			}
		})
		m := c.member(withKey).run()
		pass(time.Minute)
		m.expect(status.PhaseJoined)
		c.expectCalls("stream", 2, 2)
		var last *mesh.Netmap
		for _, nm := range m.seenNetmaps() {
			last = nm
		}
		if last.Peer(2) == nil || len(m.seenNetmaps()) != 1 {
			t.Errorf("%d netmaps, the last with peers %v", len(m.seenNetmaps()), last.Peers)
		}
	})
}
