package underlay

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

const grantedUPnP = "203.0.113.7:41651"

// upnpBubble is a port mapper before a router that speaks UPnP, and perhaps
// the others.
func upnpBubble(t *testing.T, setup func(*mapRouter, *igdRouter), test func(*mapTest, *mapRouter, *igdRouter)) {
	synctest.Test(t, func(t *testing.T) {
		r, g := newMapRouter(), newIGD(func(*igdRouter) {})
		r.silent = true
		setup(r, g)
		mt := startMapperUPnP(t, map[netip.Addr]*mapRouter{router1: r}, g.memory())
		mt.gateway <- router1
		synctest.Wait()
		test(mt, r, g)
	})
}

func wantAsked(t *testing.T, g *igdRouter, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, slices.DeleteFunc(g.requests(), func(s string) bool { return s == "search" })); diff != "" {
		t.Fatalf("UPnP requests (-want +got):\n%s", diff)
	}
}

func TestPortMapUPnPGrant(t *testing.T) {
	wantMapped := map[string]string{"41651": "192.168.1.2 41651 7200"}
	tests := []struct {
		name   string
		setup  func(*mapRouter, *igdRouter)
		within time.Duration
	}{
		{"silent otherwise", func(*mapRouter, *igdRouter) {}, 3 * time.Second},
		{"NAT-PMP refused", func(r *mapRouter, _ *igdRouter) { r.silent = false; onlyPMP(r); r.pmpResult = 2 }, time.Second},
		{"PCP refused, no NAT-PMP", func(r *mapRouter, _ *igdRouter) { r.silent = false; onlyPCP(r); r.pcpResult = 2 }, 3 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			upnpBubble(t, tt.setup, func(mt *mapTest, r *mapRouter, g *igdRouter) {
				mt.after(tt.within)
				mt.want(grantedUPnP)
				if diff := cmp.Diff(wantMapped, g.mappings()); diff != "" {
					mt.t.Fatal(diff)
				}
				wantAsked(mt.t, g, "describe", "GetExternalIPAddress", "AddPortMapping 41651 7200")
				r.requests()
				mt.after(59 * time.Minute)
				wantAsked(mt.t, g)
				mt.wantRequests(r) // the round in the other protocols is over
				mt.after(time.Minute)
				wantAsked(mt.t, g, "GetExternalIPAddress", "AddPortMapping 41651 7200")
				mt.after(24 * time.Hour)
				mt.want("")
				mt.stop()
				if left := g.mappings(); len(left) > 0 {
					mt.t.Fatalf("left behind: %v", left)
				}
			})
		})
	}
}

// Who speaks PCP or NAT-PMP is not asked by UPnP at all.
func TestPortMapUPnPNotNeeded(t *testing.T) {
	for name, setup := range map[string]func(*mapRouter){"PCP": onlyPCP, "NAT-PMP": onlyPMP,
		"double NAT": func(r *mapRouter) { r.outer = netip.MustParseAddr("10.0.0.2") }} {
		t.Run(name, func(t *testing.T) {
			upnpBubble(t, func(r *mapRouter, _ *igdRouter) { r.silent = false; setup(r) }, func(mt *mapTest, _ *mapRouter, g *igdRouter) {
				mt.after(25 * time.Hour)
				if seen := g.requests(); len(seen) > 0 {
					mt.t.Fatalf("asked %v", seen)
				}
			})
		})
	}
}

func TestPortMapUPnPInVain(t *testing.T) {
	tests := map[string]func(*igdRouter){
		"silence":     func(g *igdRouter) { g.silent = true },
		"refusal":     func(g *igdRouter) { g.refuse = 606 },
		"double NAT":  func(g *igdRouter) { g.outer = "192.168.0.2" },
		"no answers":  func(g *igdRouter) { g.deaf = true },
		"no services": func(g *igdRouter) { g.device = device("") },
	}
	for name, setup := range tests {
		t.Run(name, func(t *testing.T) {
			upnpBubble(t, func(_ *mapRouter, g *igdRouter) { setup(g) }, func(mt *mapTest, r *mapRouter, g *igdRouter) {
				mt.after(3 * time.Minute)
				if len(g.requests()) == 0 {
					mt.t.Fatal("not asked")
				}
				r.requests()
				mt.after(26 * time.Minute)
				mt.wantRequests(r)
				wantAsked(mt.t, g)
				mt.after(5 * time.Minute)
				if len(g.requests()) == 0 || len(r.requests()) == 0 {
					mt.t.Fatal("it never asks again")
				}
				mt.want("")
			})
		})
	}
}

func TestPortMapUPnPChanges(t *testing.T) {
	tests := []struct {
		name    string
		change  func(*igdRouter)
		within  time.Duration
		reports string
	}{
		{"another outer address", func(g *igdRouter) { g.outer = "203.0.113.99" }, time.Hour, "203.0.113.99:41651"},
		{"behind another NAT now", func(g *igdRouter) { g.outer = "10.0.0.1" }, time.Hour, "none"},
		{"refused now", func(g *igdRouter) { g.refuse = 606 }, time.Hour, "none"},
		{"no answer yet", func(g *igdRouter) { g.deaf = true }, 118 * time.Minute, ""},
		{"no answer", func(g *igdRouter) { g.deaf = true }, 121 * time.Minute, "none"},
		{"forgotten", func(g *igdRouter) { clear(g.mapped) }, time.Hour, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			upnpBubble(t, func(*mapRouter, *igdRouter) {}, func(mt *mapTest, _ *mapRouter, g *igdRouter) {
				mt.after(5 * time.Second)
				mt.want(grantedUPnP)
				g.set(tt.change)
				mt.after(tt.within)
				mt.want(tt.reports)
				held := tt.reports != "none" || tt.name == "refused now" || tt.name == "no answer"
				if mapped := len(g.mappings()) > 0; mapped != held {
					mt.t.Fatalf("mapped at the router: %t", mapped)
				}
			})
		})
	}
}

// PCP grants while UPnP waits for an answer that is lost. What UPnP got is
// deleted, unless it is the port that is held now.
func TestPortMapUPnPSecond(t *testing.T) {
	tests := []struct {
		name    string
		port    uint16 // by PCP; 0: never
		reports string
		left    int
	}{{"another port", 700, granted, 0}, {"the same port", mapTestPort, grantedUPnP, 1}, {"UPnP alone", 0, "", 0}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			upnpBubble(t, func(r *mapRouter, g *igdRouter) { onlyPCP(r); r.port, g.lose = tt.port, true },
				func(mt *mapTest, r *mapRouter, g *igdRouter) {
					mt.after(3 * time.Second)
					if len(g.mappings()) != 1 {
						mt.t.Fatalf("not mapped: %v", g.requests())
					}
					r.set(func(r *mapRouter) { r.silent = tt.port == 0 })
					mt.after(2 * time.Second)
					mt.want(tt.reports)
					mt.after(time.Minute)
					if left := g.mappings(); len(left) != tt.left {
						mt.t.Fatalf("left at the router: %v, asked %v", left, g.requests())
					}
					mt.want("")
				})
		})
	}
}

func TestPortMapUPnPRouterChange(t *testing.T) {
	upnpBubble(t, func(*mapRouter, *igdRouter) {}, func(mt *mapTest, r *mapRouter, g *igdRouter) {
		mt.after(5 * time.Second)
		mt.want(grantedUPnP)
		mt.mu.Lock()
		mt.local = "192.168.1.77"
		mt.mu.Unlock()
		mt.gateway <- router1
		mt.after(5 * time.Second)
		mt.want("none " + grantedUPnP)
		if diff := cmp.Diff(map[string]string{"41651": "192.168.1.77 41651 7200"}, g.mappings()); diff != "" {
			mt.t.Fatal(diff)
		}
		mt.gateway <- netip.Addr{}
		mt.after(time.Second)
		mt.want("none")
		if left := g.mappings(); len(left) > 0 {
			mt.t.Fatalf("left behind: %v", left)
		}
	})
}

// The end waits for a router that does not answer, but not for long.
func TestPortMapUPnPEnd(t *testing.T) {
	tests := []struct {
		name string
		wait time.Duration
		most time.Duration
	}{{"held", 5 * time.Second, upnpLeave}, {"renewing", time.Hour + 4*time.Second, upnpLeave}, {"never asked", 0, 0}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			upnpBubble(t, func(*mapRouter, *igdRouter) {}, func(mt *mapTest, _ *mapRouter, g *igdRouter) {
				mt.after(min(tt.wait, 5*time.Second))
				g.set(func(g *igdRouter) { g.deaf = true })
				mt.after(max(tt.wait-5*time.Second, 0))
				began := time.Now()
				mt.stop()
				if took := time.Since(began); took != tt.most {
					mt.t.Fatalf("it took %s", took)
				}
			})
		})
	}
}

// An answer that is lost may have been a grant.
func TestPortMapUPnPEndWhileAsking(t *testing.T) {
	upnpBubble(t, func(_ *mapRouter, g *igdRouter) { g.lose = true }, func(mt *mapTest, _ *mapRouter, g *igdRouter) {
		mt.after(3 * time.Second)
		if len(g.mappings()) != 1 {
			mt.t.Fatalf("not mapped: %v", g.requests())
		}
		mt.stop()
		if left := g.mappings(); len(left) > 0 {
			mt.t.Fatalf("left behind: %v", left)
		}
	})
}

// While UPnP holds, answers of the other protocols say nothing about it.
func TestPortMapUPnPNotDisturbed(t *testing.T) {
	m := portMapper{speaks: speaksUPnP, held: netip.MustParseAddrPort(grantedUPnP), log: slog.New(slog.DiscardHandler)}
	m.take(unhex(t, "00 80 0000 00000e10 cb007163")) // another outer address, by NAT-PMP
	if m.try != nil || m.epoch != 0 {
		t.Fatal("it began a round")
	}
}

// What is deleted is gone before anything is asked for anew.
func TestUPnPJobOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m portMapper
		gate, first := make(chan struct{}), false
		m.upnpJob(func() { <-gate; first = true })
		second := m.upnpJob(func() {
			if !first {
				t.Error("the second job ran beside the first")
			}
		})
		synctest.Wait()
		select {
		case <-second:
			t.Error("the second job did not wait")
		default:
		}
		close(gate)
		m.upnpJobs.Wait()
	})
}

func TestPortMapUPnPAtPublicAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, g := newMapRouter(), newIGD(func(*igdRouter) {})
		r.silent = true
		mt := startMapperUPnP(t, map[netip.Addr]*mapRouter{router1: r}, g.memory())
		mt.mu.Lock()
		mt.local = "203.0.113.50"
		mt.mu.Unlock()
		mt.gateway <- router1
		mt.after(10 * time.Minute)
		if seen := g.requests(); len(seen) > 0 {
			t.Fatalf("asked %v", seen)
		}
	})
}

// Over real sockets, with a port at which nobody listens for the other protocols.
func TestPortMapUPnPSockets(t *testing.T) {
	for name, permanent := range map[string]bool{"lease": false, "permanent": true} {
		t.Run(name, func(t *testing.T) {
			noLeak(t)
			closed, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			nobody := closed.LocalAddr().(*net.UDPAddr).AddrPort().Port()
			closed.Close()
			g := newIGD(func(g *igdRouter) { g.permanentOnly = permanent })
			at := g.listen(t)
			n := startNode(t, func(u *Underlay) {
				u.mapPort, u.ssdpPort, u.ssdpGroup = nobody, at, netip.AddrPortFrom(loopback, at)
			})
			n.SetFacts(behind(loopback))
			n.until("a mapping", func() bool { return n.mappedAt().Addr() == netip.MustParseAddr("203.0.113.7") })
			n.end()
			if left := g.mappings(); len(left) > 0 {
				t.Fatalf("left behind: %v", left)
			}
			if seen := g.requests(); !strings.HasPrefix(seen[len(seen)-1], "DeletePortMapping") {
				t.Fatalf("asked %v", seen)
			}
		})
	}
}

// A router at which nobody listens is asked a few times, not for two minutes.
func TestPortMapUnheard(t *testing.T) {
	noLeak(t)
	closed, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	at := closed.LocalAddr().(*net.UDPAddr).AddrPort()
	closed.Close()
	m := portMapper{port: mapTestPort, log: slog.New(slog.DiscardHandler), router: at.Addr(), ctx: t.Context(),
		dial: func(ctx context.Context, _ netip.Addr) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "udp4", at.String())
		}}
	m.begin(t.Context())
	defer func() { m.link.close() }()
	timeout := time.After(patience)
	for !m.resend.IsZero() {
		select {
		case <-m.link.unheard():
			m.takeRefusal()
		case <-time.After(m.wait()):
			m.due(t.Context())
		case <-timeout:
			t.Fatal("the round goes on")
		}
	}
	// A refusal that a busy machine tells after the next request, at first a quarter of a second later, begins the count anew.
	if m.tries > 2*mapRefusals || m.held.IsValid() {
		t.Fatalf("%d requests", m.tries)
	}
	if wait := time.Until(m.retry); wait < mapRetry-time.Minute || wait > mapRetry {
		t.Fatalf("asks again after %s", wait)
	}
}

// One silence between refusals, or an answer, begins the count anew.
func TestPortMapRefusalsInARow(t *testing.T) {
	upnpBubble(t, func(r *mapRouter, g *igdRouter) { g.silent = true }, func(mt *mapTest, r *mapRouter, _ *igdRouter) {
		mt.stop()
		m := portMapper{port: mapTestPort, log: slog.New(slog.DiscardHandler), router: router1, ctx: t.Context(), dial: mt.dial}
		m.begin(t.Context())
		defer func() { m.link.close() }()
		for range 2 {
			m.takeRefusal()
			m.takeRefusal() // of the other datagram
			m.ask()
		}
		if m.refusals != 2 || m.resend.IsZero() {
			mt.t.Fatalf("%d refusals", m.refusals)
		}
		m.ask()
		m.takeRefusal()
		if m.refusals != 1 || m.resend.IsZero() {
			mt.t.Fatalf("%d refusals after silence", m.refusals)
		}
		m.ask()
		m.takeRefusal()
		m.ask()
		m.takeRefusal()
		if !m.resend.IsZero() {
			mt.t.Fatal("the round goes on")
		}
	})
}
