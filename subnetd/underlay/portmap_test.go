package underlay

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

const mapTestPort = 41651

var errNoRouter = errors.New("network is unreachable")

// mapTest is a port mapper in a bubble of fake time, and the network around it.
type mapTest struct {
	t       *testing.T
	gateway chan netip.Addr
	stop    func()

	mu      sync.Mutex // guards all below
	routers map[netip.Addr]*mapRouter
	local   string
	got     []netip.AddrPort // every report; invalid: none
}

var (
	router1 = netip.MustParseAddr("192.168.1.1")
	router2 = netip.MustParseAddr("192.168.2.1")
)

// startMapper runs a port mapper that can reach routers.
func startMapper(t *testing.T, routers map[netip.Addr]*mapRouter) *mapTest {
	return startMapperUPnP(t, routers, nil)
}

// startMapperUPnP is the same with a network for UPnP.
func startMapperUPnP(t *testing.T, routers map[netip.Addr]*mapRouter, upnp *upnpNet) *mapTest {
	mt := &mapTest{t: t, gateway: make(chan netip.Addr, 1), routers: routers, local: "192.168.1.2"}
	mapped := make(chan []netip.AddrPort)
	m := portMapper{port: mapTestPort, log: slog.New(slog.DiscardHandler), gateway: mt.gateway, mapped: mapped, dial: mt.dial, upnp: upnp}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { m.run(ctx) })
	wg.Go(func() { mt.collect(ctx, mapped) })
	mt.stop = func() { cancel(); wg.Wait() }
	t.Cleanup(mt.stop)
	return mt
}

func (mt *mapTest) dial(_ context.Context, a netip.Addr) (net.Conn, error) {
	mt.mu.Lock()
	defer mt.mu.Unlock()
	r := mt.routers[a]
	if r == nil {
		return nil, errNoRouter
	}
	return r.connect(mt.local), nil
}

func (mt *mapTest) collect(ctx context.Context, mapped <-chan []netip.AddrPort) {
	for {
		select {
		case all := <-mapped:
			mt.mu.Lock()
			mt.got = append(mt.got, append(all, netip.AddrPort{})[0])
			mt.mu.Unlock()
		case <-ctx.Done():
			return
		}
	}
}

// after lets time pass until nobody has anything to do.
func (mt *mapTest) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// reports are those since the last call, "none" for a mapping lost.
func (mt *mapTest) reports() string {
	mt.mu.Lock()
	defer mt.mu.Unlock()
	var all []string
	for _, a := range mt.got {
		if a.IsValid() {
			all = append(all, a.String())
		} else {
			all = append(all, "none")
		}
	}
	mt.got = nil
	return strings.Join(all, " ")
}

func (mt *mapTest) want(reports string) {
	mt.t.Helper()
	if got := mt.reports(); got != reports {
		mt.t.Fatalf("reported %q, want %q", got, reports)
	}
}

func (mt *mapTest) wantRequests(r *mapRouter, want ...string) {
	mt.t.Helper()
	if diff := cmp.Diff(want, r.requests()); diff != "" {
		mt.t.Fatalf("requests (-want +got):\n%s", diff)
	}
}

// bubble runs a test against one router that is the gateway from the start.
func bubble(t *testing.T, setup func(*mapRouter), test func(*mapTest, *mapRouter)) {
	synctest.Test(t, func(t *testing.T) {
		r := newMapRouter()
		setup(r)
		mt := startMapper(t, map[netip.Addr]*mapRouter{router1: r})
		mt.gateway <- router1
		synctest.Wait()
		test(mt, r)
	})
}

func onlyPMP(r *mapRouter) { r.pcp = false }
func onlyPCP(r *mapRouter) { r.pmp = false }
func both(*mapRouter)      {}

const granted = "203.0.113.7:700"

func TestPortMapGrant(t *testing.T) {
	tests := []struct {
		name  string
		setup func(*mapRouter)
		want  []string
	}{
		{"a router of both is asked for one mapping only", both,
			[]string{"0 pcp map 192.168.1.2 41651 7200", "0 pmp outer"}},
		{"PCP", onlyPCP,
			[]string{"0 pcp map 192.168.1.2 41651 7200", "0 pmp outer"}},
		{"NAT-PMP, silent to PCP", onlyPMP,
			[]string{"0 pcp map 192.168.1.2 41651 7200", "0 pmp outer", "0 pmp map 41651 7200"}},
		{"NAT-PMP that says so", func(r *mapRouter) { r.pcp, r.toldPCP = false, true },
			[]string{"0 pcp map 192.168.1.2 41651 7200", "0 pmp outer", "0 pmp outer", "0 pmp map 41651 7200"}},
		{"PCP refused, NAT-PMP not", func(r *mapRouter) { r.pcpResult = 2 },
			[]string{"0 pcp map 192.168.1.2 41651 7200", "0 pmp outer", "0 pmp outer", "0 pmp map 41651 7200"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, tt.setup, func(mt *mapTest, r *mapRouter) {
				mt.after(time.Second)
				mt.want(granted)
				mt.wantRequests(r, tt.want...)
				mt.after(4 * time.Minute)
				mt.want("")
				mt.wantRequests(r)
			})
		})
	}
}

func TestPortMapSilence(t *testing.T) {
	bubble(t, func(r *mapRouter) { r.silent = true }, func(mt *mapTest, r *mapRouter) {
		mt.after(5 * time.Minute)
		pcp, pmp := gaps(mt.t, r.requests())
		wantPMP := []float64{0.25, 0.5, 1, 2, 4, 8, 16, 32}
		if len(pmp) != len(wantPMP) {
			mt.t.Fatalf("%d waits, want %d: %v", len(pmp), len(wantPMP), pmp)
		}
		for i, want := range wantPMP { // the log has whole seconds, and the waits 10 % of jitter
			if d := pmp[i] - want; d < -want/10-1 || d > want/10+1 {
				mt.t.Errorf("wait %d was %.0f s, want about %.2f s", i, pmp[i], want)
			}
		}
		for _, g := range pcp {
			if g < 2 {
				mt.t.Errorf("PCP was asked again after %.0f s: %v", g, pcp)
			}
		}
		mt.after(24 * time.Minute)
		mt.wantRequests(r)
		mt.after(5 * time.Minute)
		if len(r.requests()) == 0 {
			mt.t.Error("it never asks again")
		}
		mt.want("")
	})
}

// gaps are the waits between the requests of each protocol, in seconds.
func gaps(t *testing.T, seen []string) (pcp, pmp []float64) {
	t.Helper()
	last := map[bool]float64{}
	for _, s := range seen {
		at, what, _ := strings.Cut(s, " ")
		d, err := time.ParseDuration(at + "s")
		if err != nil {
			t.Fatal(err)
		}
		isPCP := strings.HasPrefix(what, "pcp")
		was, again := last[isPCP]
		last[isPCP] = d.Seconds()
		switch {
		case again && isPCP:
			pcp = append(pcp, d.Seconds()-was)
		case again:
			pmp = append(pmp, d.Seconds()-was)
		}
	}
	return pcp, pmp
}

// afterGrant is a bubble in which the mapping was granted already.
func afterGrant(t *testing.T, setup func(*mapRouter), test func(*mapTest, *mapRouter)) {
	bubble(t, setup, func(mt *mapTest, r *mapRouter) {
		mt.after(time.Second)
		mt.want(granted)
		r.requests()
		test(mt, r)
	})
}

func TestPortMapRenew(t *testing.T) {
	tests := []struct {
		name  string
		setup func(*mapRouter)
		want  string
	}{
		{"PCP", onlyPCP, "pcp map 192.168.1.2 700 7200"},
		{"NAT-PMP", onlyPMP, "pmp map 700 7200"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			afterGrant(t, func(r *mapRouter) { tt.setup(r); r.life = time.Hour }, func(mt *mapTest, r *mapRouter) {
				mt.after(29 * time.Minute)
				if maps := mapsOf(r); len(maps) != 0 {
					mt.t.Fatalf("renewed too early: %v", maps)
				}
				mt.after(time.Minute)
				if diff := cmp.Diff([]string{tt.want}, mapsOf(r)); diff != "" {
					mt.t.Fatal(diff)
				}
				mt.want("") // the same: nobody is told
				mt.after(24 * time.Hour)
				mt.want("")
				if n := len(mapsOf(r)); n != 48 {
					mt.t.Fatalf("%d renewals a day, want 48", n)
				}
			})
		})
	}
}

// mapsOf are the requests for mappings, without their times.
func mapsOf(r *mapRouter) []string {
	var all []string
	for _, s := range r.requests() {
		if _, what, _ := strings.Cut(s, " "); strings.Contains(what, "map") {
			all = append(all, what)
		}
	}
	return all
}

func TestPortMapChanges(t *testing.T) {
	changed := "203.0.113.99:700"
	tests := []struct {
		name    string
		setup   func(*mapRouter)
		change  func(*mapRouter)
		within  time.Duration
		reports string
		mapped  bool // at the router, at last
	}{
		{"NAT-PMP: another outer address", onlyPMP,
			func(r *mapRouter) { r.outer = netip.MustParseAddr("203.0.113.99") }, mapCheckEvery, changed, true},
		{"PCP: another outer address is seen at renewal", onlyPCP,
			func(r *mapRouter) { r.outer = netip.MustParseAddr("203.0.113.99") }, mapLifetime / 2, changed, true},
		{"PCP: another outer port", onlyPCP, func(r *mapRouter) { r.port = 701 }, mapLifetime / 2, "203.0.113.7:701", true},
		{"NAT-PMP: reboot", onlyPMP, (*mapRouter).reboot, mapCheckEvery, "", true},
		{"PCP: reboot", onlyPCP, (*mapRouter).reboot, mapCheckEvery, "", true},
		{"PCP: reboot with another address", onlyPCP,
			func(r *mapRouter) { r.reboot(); r.outer = netip.MustParseAddr("203.0.113.99") }, mapCheckEvery, changed, true},
		{"NAT-PMP: refused after a reboot", onlyPMP, func(r *mapRouter) { r.reboot(); r.pmpResult = 2 }, mapLifetime / 2, "none", false},
		{"PCP: refused after a reboot", onlyPCP, func(r *mapRouter) { r.reboot(); r.pcpResult = 2 }, mapCheckEvery, "none", false},
		{"NAT-PMP: behind another NAT now", onlyPMP,
			func(r *mapRouter) { r.reboot(); r.outer = netip.MustParseAddr("10.1.2.3") }, mapCheckEvery, "none", false},
		{"PCP: behind another NAT now", onlyPCP,
			func(r *mapRouter) { r.reboot(); r.outer = netip.MustParseAddr("10.1.2.3") }, mapCheckEvery, "none", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			afterGrant(t, tt.setup, func(mt *mapTest, r *mapRouter) {
				mt.after(time.Minute)
				r.set(tt.change)
				mt.after(tt.within)
				mt.want(tt.reports)
				r.set(func(r *mapRouter) {
					if r.mapped[mapTestPort] != tt.mapped {
						mt.t.Errorf("mapped at the router: %t, want %t", r.mapped[mapTestPort], tt.mapped)
					}
				})
			})
		})
	}
}

// A router whose epoch stands still looks rebooted at every look. That must
// cost one request each, not a storm.
func TestPortMapFrozenEpoch(t *testing.T) {
	for name, setup := range map[string]func(*mapRouter){"PCP": onlyPCP, "NAT-PMP": onlyPMP} {
		t.Run(name, func(t *testing.T) {
			afterGrant(t, func(r *mapRouter) { setup(r); r.frozen = true }, func(mt *mapTest, r *mapRouter) {
				mt.after(time.Hour)
				if n := len(mapsOf(r)); n < 10 || n > 12 {
					mt.t.Fatalf("%d requests in an hour", n)
				}
				mt.want("")
			})
		})
	}
}

func TestPortMapLost(t *testing.T) {
	for name, setup := range map[string]func(*mapRouter){"PCP": onlyPCP, "NAT-PMP": onlyPMP} {
		t.Run(name, func(t *testing.T) {
			afterGrant(t, setup, func(mt *mapTest, r *mapRouter) {
				r.set(func(r *mapRouter) { r.silent = true })
				mt.after(mapLifetime - 5*time.Second)
				mt.want("") // it may be there still
				mt.after(10 * time.Second)
				mt.want("none")
				r.set(func(r *mapRouter) { r.silent = false })
				mt.after(mapRetrySoon)
				mt.want(granted)
			})
		})
	}
}

func TestPortMapRefused(t *testing.T) {
	outer := func(addr string, setup func(*mapRouter)) func(*mapRouter) {
		return func(r *mapRouter) { setup(r); r.outer = netip.MustParseAddr(addr) }
	}
	pmp := func(result uint16) func(*mapRouter) {
		return func(r *mapRouter) { onlyPMP(r); r.pmpResult = result }
	}
	pmpMap := func(result byte) func(*mapRouter) { // the outer address it tells
		return func(r *mapRouter) {
			onlyPMP(r)
			r.mangle = func(b []byte) []byte {
				if b[1] == 0x81 {
					b[3] = result
				}
				return b
			}
		}
	}
	tests := []struct {
		name  string
		setup func(*mapRouter)
		maps  bool          // it comes to asking for a mapping by NAT-PMP
		over  time.Duration // it has given up by then
		again time.Duration // after giving up
	}{
		{"NAT-PMP: not authorized", pmp(2), false, time.Second, mapRetry},
		{"NAT-PMP: no network now", pmp(3), false, time.Second, mapRetrySoon},
		{"NAT-PMP: unsupported", pmp(5), false, time.Second, mapRetry},
		{"NAT-PMP: mapping not authorized", pmpMap(2), true, time.Second, mapRetry},
		{"NAT-PMP: no resources now", pmpMap(4), true, time.Second, mapRetrySoon},
		{"NAT-PMP: double NAT", outer("192.168.0.2", onlyPMP), false, time.Second, mapRetry},
		{"NAT-PMP: carrier's NAT", outer("100.64.0.2", onlyPMP), false, time.Second, mapRetry},
		{"NAT-PMP: no address", outer("0.0.0.0", onlyPMP), false, time.Second, mapRetry},
		{"PCP: double NAT, 10/8", outer("10.0.0.2", onlyPCP), false, time.Second, mapRetry},
		{"PCP: double NAT, 172.16/12", outer("172.20.0.2", onlyPCP), false, time.Second, mapRetry},
		{"PCP: carrier's NAT", outer("100.127.0.2", onlyPCP), false, time.Second, mapRetry},
		{"PCP refused, no NAT-PMP", func(r *mapRouter) { onlyPCP(r); r.pcpResult = 2 }, false, 140 * time.Second, mapRetry - 20*time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, tt.setup, func(mt *mapTest, r *mapRouter) {
				mt.after(tt.over)
				maps := slices.DeleteFunc(mapsOf(r), func(s string) bool { return strings.HasPrefix(s, "pcp") })
				if len(maps) > 0 != tt.maps {
					mt.t.Errorf("asked for %v", maps)
				}
				mt.after(tt.again - 3*time.Second)
				mt.wantRequests(r)
				mt.after(30 * time.Second)
				if len(r.requests()) == 0 {
					mt.t.Error("it never asks again")
				}
				mt.want("")
				r.set(func(r *mapRouter) {
					if !tt.maps && r.mapped[mapTestPort] {
						mt.t.Error("a useless mapping was not deleted")
					}
				})
			})
		})
	}
}

// A PCP refusal says how long it lasts; we believe it within bounds.
func TestRetryAfter(t *testing.T) {
	tests := []struct {
		name string
		a    mapAnswer
		want time.Duration
	}{
		{"PCP short", mapAnswer{proto: protoPCP, result: 8, lifetime: 30}, mapRetrySoon},
		{"PCP in between", mapAnswer{proto: protoPCP, result: 8, lifetime: 600}, 10 * time.Minute},
		{"PCP for ever", mapAnswer{proto: protoPCP, result: 2, lifetime: 1<<32 - 1}, mapRetry},
		{"NAT-PMP not authorized", mapAnswer{result: 2}, mapRetry},
		{"NAT-PMP network", mapAnswer{result: 3}, mapRetrySoon},
		{"NAT-PMP resources", mapAnswer{result: 4}, mapRetrySoon},
		{"NAT-PMP unknown", mapAnswer{result: 99}, mapRetry},
	}
	for _, tt := range tests {
		if got := retryAfter(tt.a); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestPortMapGarbage(t *testing.T) {
	tests := map[string]func([]byte) []byte{
		"cut":                func(b []byte) []byte { return b[:len(b)-1] },
		"another nonce":      func(b []byte) []byte { return flip(b, 24) },
		"another port":       func(b []byte) []byte { return flip(b, 41) },
		"another protocol":   func(b []byte) []byte { return flip(b, 36) },
		"a request":          func(b []byte) []byte { b[1] &= 0x7f; return b },
		"another version":    func(b []byte) []byte { b[0] = 3; return b },
		"outer port 0":       func(b []byte) []byte { b[42], b[43] = 0, 0; return b },
		"lifetime 0":         func(b []byte) []byte { clear(b[4:8]); return b },
		"noise":              func([]byte) []byte { return []byte("\x00\x00what is this") },
		"nothing in it":      func([]byte) []byte { return []byte{} },
		"a gratuitous PMP":   func([]byte) []byte { return []byte{0, 0x81, 0, 0, 0, 0, 0, 9, 0xa2, 0xb3, 2, 188, 0, 0, 9, 9} },
		"epoch of an absent": func([]byte) []byte { return append([]byte{2, 0x80}, make([]byte, 22)...) },
	}
	for name, mangle := range tests {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(r *mapRouter) { onlyPCP(r); r.mangle = mangle }, func(mt *mapTest, r *mapRouter) {
				mt.after(2 * time.Second)
				mt.want("")
				r.set(func(r *mapRouter) { r.mangle = nil })
				mt.after(10 * time.Second) // and it did not end the round
				mt.want(granted)
			})
		})
	}
}

// flip damages one bit, if there is that byte.
func flip(b []byte, i int) []byte {
	if i < len(b) {
		b[i] ^= 1
	}
	return b
}

func TestPortMapRouterChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r1, r2 := newMapRouter(), newMapRouter()
		onlyPCP(r1)
		onlyPMP(r2)
		r2.outer = netip.MustParseAddr("203.0.113.2")
		mt := startMapper(t, map[netip.Addr]*mapRouter{router1: r1, router2: r2})
		mt.gateway <- router1
		mt.after(time.Second)
		mt.want(granted)
		r1.requests()

		mt.gateway <- router1 // the facts changed, but nothing that concerns us
		mt.after(time.Second)
		mt.want("")
		mt.wantRequests(r1)

		mt.gateway <- router2
		mt.after(time.Second)
		mt.want("none 203.0.113.2:700")
		mt.wantRequests(r1, "2 pcp map 192.168.1.2 0 0")

		mt.gateway <- netip.Addr{}
		mt.after(time.Second)
		mt.want("none")
		if maps := mapsOf(r2); !slices.Contains(maps, "pmp map 0 0") {
			t.Fatalf("the mapping was left behind: %v", maps)
		}
		mt.after(24 * time.Hour)
		mt.wantRequests(r1)
		mt.wantRequests(r2)
	})
}

// Another network may have a router of the same address.
func TestPortMapOwnAddressChange(t *testing.T) {
	afterGrant(t, onlyPCP, func(mt *mapTest, r *mapRouter) {
		mt.mu.Lock()
		mt.local = "192.168.1.77"
		mt.mu.Unlock()
		mt.gateway <- router1
		mt.after(time.Second)
		if maps := mapsOf(r); !slices.Contains(maps, "pcp map 192.168.1.77 41651 7200") {
			mt.t.Fatalf("not asked from the new address: %v", maps)
		}
	})
}

func TestPortMapNoWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mt := startMapper(t, map[netip.Addr]*mapRouter{})
		mt.gateway <- router1
		mt.after(time.Minute)
		mt.want("")
		r := newMapRouter()
		mt.mu.Lock()
		mt.routers[router1] = r
		mt.mu.Unlock()
		mt.after(mapRetrySoon)
		mt.want(granted)
	})
}

func TestPortMapEnd(t *testing.T) {
	tests := []struct {
		name  string
		setup func(*mapRouter)
		want  []string // to the end
	}{
		{"PCP held", onlyPCP, []string{"1 pcp map 192.168.1.2 0 0"}},
		{"NAT-PMP held", onlyPMP, []string{"1 pmp map 0 0"}},
		{"asked, and it may yet be granted", func(r *mapRouter) { r.silent = true }, []string{"1 pcp map 192.168.1.2 0 0"}},
		{"refused", func(r *mapRouter) { r.outer = netip.MustParseAddr("10.0.0.1") }, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, tt.setup, func(mt *mapTest, r *mapRouter) {
				mt.after(time.Second)
				r.requests()
				mt.stop()
				mt.wantRequests(r, tt.want...)
			})
		})
	}
}
