package underlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// wish is a mapping of port 41651 that is to be asked of a router on loopback.
// Nobody is in its group: multicast is not for tests.
func wish(port uint16) upnpMapping {
	return upnpMapping{net: newUPnPNet(port, netip.AddrPortFrom(loopback, port), 0, nil), router: loopback, local: loopback, port: mapTestPort}
}

func TestUPnPAcquire(t *testing.T) {
	lease := func(s string) map[string]string { return map[string]string{"41651": "127.0.0.1 41651 " + s} }
	tests := []struct {
		name   string
		setup  func(*igdRouter)
		want   error // nil: granted; also an *upnpRefusal
		mapped map[string]string
	}{
		{"WANIPConnection:1", func(*igdRouter) {}, nil, lease("7200")},
		{"WANIPConnection:2", func(r *igdRouter) { r.kind = kindIP2 }, nil, lease("7200")},
		{"WANPPPConnection:1", func(r *igdRouter) { r.kind = kindPPP }, nil, lease("7200")},
		{"only permanent", func(r *igdRouter) { r.permanentOnly = true }, nil, lease("0")},
		{"the first uplink is of no use", func(r *igdRouter) {
			r.device = device(service(kindPPP, "/other") + service(kindIP1, "/ctl"))
		}, nil, lease("7200")},
		{"private outer address", func(r *igdRouter) { r.outer = "192.168.0.2" }, errUPnPUseless, nil},
		{"carrier's NAT", func(r *igdRouter) { r.outer = "100.64.0.2" }, errUPnPUseless, nil},
		{"no outer address", func(r *igdRouter) { r.outer = "" }, errUPnPUseless, nil},
		{"refused", func(r *igdRouter) { r.refuse = 606 }, &upnpRefusal{"AddPortMapping", 606}, nil},
		{"refuses even permanent ones", func(r *igdRouter) { r.refuse = 725 }, &upnpRefusal{"AddPortMapping", 725}, nil},
		{"all ports are taken", func(r *igdRouter) { r.taken = 100 }, &upnpRefusal{"AddPortMapping", 718}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			noLeak(t)
			r := newIGD(tt.setup)
			m := wish(r.listen(t))
			err := m.acquire(t.Context())
			if fmt.Sprint(err) != fmt.Sprint(tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if diff := cmp.Diff(tt.mapped, r.mappings(), cmp.Transformer("", func(m map[string]string) []string {
				return strings.Fields(fmt.Sprint(m))
			})); diff != "" {
				t.Fatal(diff)
			}
			if err != nil {
				if m.external.IsValid() {
					t.Fatalf("refused, but %s remains to be deleted", m.external)
				}
				return
			}
			if want := netip.MustParseAddrPort("203.0.113.7:41651"); m.external != want || m.lifetime != mapLifetime {
				t.Fatalf("got %s for %s", m.external, m.lifetime)
			}
			if err := m.release(t.Context()); err != nil || len(r.mappings()) > 0 {
				t.Fatalf("not deleted: %v, %v", err, r.mappings())
			}
		})
	}
}

func TestUPnPConflict(t *testing.T) {
	noLeak(t)
	r := newIGD(func(r *igdRouter) { r.taken, r.permanentOnly = upnpConflicts, true })
	m := wish(r.listen(t))
	if err := m.acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := r.mappings()
	if m.external.Port() < 1<<15 || got[fmt.Sprint(m.external.Port())] != "127.0.0.1 41651 0" {
		t.Fatalf("%s of %v", m.external, got)
	}
	r.requests()
	if err := m.acquire(t.Context()); err != nil { // renews it, at the service that is known
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, r.mappings()); diff != "" {
		t.Fatal(diff)
	}
	if seen := r.requests(); slices.Contains(seen, "search") {
		t.Fatalf("asked %v", seen)
	}
}

// A router that starts anew has its service at another port.
func TestUPnPServiceMoved(t *testing.T) {
	noLeak(t)
	r := newIGD(func(*igdRouter) {})
	m := wish(r.listen(t))
	gone, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.service = upnpService{"http://" + gone.Addr().String() + "/ctl", kindIP1}
	m.external = netip.MustParseAddrPort("203.0.113.7:700")
	gone.Close()
	if err := m.acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"700": "127.0.0.1 41651 7200"}, r.mappings()); diff != "" {
		t.Fatal(diff)
	}
}

// Descriptions that are refused are as good as none: the search goes on to its end.
func TestUPnPHostile(t *testing.T) {
	tests := map[string]func(*igdRouter){
		"silent":                func(r *igdRouter) { r.silent = true },
		"location elsewhere":    func(r *igdRouter) { r.location = "http://127.0.0.2:80/desc.xml" },
		"too large":             func(r *igdRouter) { r.padding = strings.Repeat(" ", upnpLargest) },
		"no description":        func(r *igdRouter) { r.device = "<root></root>" },
		"control elsewhere":     func(r *igdRouter) { r.device = device(service(kindIP1, "http://127.0.0.2/ctl")) },
		"does nothing":          func(r *igdRouter) { r.deaf = true },
		"control not there":     func(r *igdRouter) { r.device = device(service(kindIP1, "http://127.0.0.1:1/ctl")) },
		"a page, not a service": func(r *igdRouter) { r.page = "<!DOCTYPE html>" },
	}
	for name, setup := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newIGD(setup)
				m := upnpMapping{net: r.memory(), router: router1, local: netip.MustParseAddr("192.168.1.2"), port: mapTestPort}
				began := time.Now()
				if err := m.acquire(t.Context()); err == nil {
					t.Fatalf("granted %s", m.external)
				}
				if took := time.Since(began); took > upnpWait+upnpStep {
					t.Fatalf("it took %s", took)
				}
				if m.external.IsValid() || len(r.mappings()) > 0 {
					t.Fatalf("mapped %v", r.mappings())
				}
			})
		})
	}
}

func TestUPnPNoRedirect(t *testing.T) {
	noLeak(t)
	r := newIGD(func(*igdRouter) {})
	m := wish(r.listen(t))
	if got := m.describe(t.Context(), "http://"+r.at.String()+"/moved"); got != nil {
		t.Fatalf("followed to %v", got)
	}
	if got := m.describe(t.Context(), "http://"+r.at.String()+"/desc.xml"); len(got) != 1 {
		t.Fatalf("no service without it: %v", got)
	}
}

// Answers count only from the router's address, even if they tell the truth.
func TestUPnPStranger(t *testing.T) {
	noLeak(t)
	r := newIGD(func(*igdRouter) {})
	stranger := netip.AddrFrom4([4]byte{127, 0, 0, 9})
	port := r.listenAt(t, stranger)
	m := wish(port)
	m.net.group = netip.AddrPortFrom(stranger, port)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for range 2 { // the answer to the first search was read before the second
			for nextAsked(t, r) != "search" {
			}
		}
		cancel()
	}()
	if s, err := m.discover(ctx); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("got %v, %v", s, err)
	}
}

func nextAsked(t *testing.T, r *igdRouter) string {
	select {
	case s := <-r.asked:
		return s
	case <-time.After(patience):
		t.Error("the router was not asked")
		return "search"
	}
}

func TestUPnPAborted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newIGD(func(r *igdRouter) { r.deaf = true })
		ctx, cancel := context.WithCancel(t.Context())
		m := upnpMapping{net: r.memory(), router: router1, service: upnpService{"http://192.168.1.1:5000/ctl", kindIP1}}
		ended := make(chan error, 1)
		go func() { ended <- m.acquire(ctx) }()
		synctest.Wait()
		began := time.Now()
		cancel()
		if err := <-ended; err == nil || time.Since(began) > 0 {
			t.Fatalf("got %v after %s", err, time.Since(began))
		}
	})
}
