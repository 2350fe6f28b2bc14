package underlay

import (
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/host"
)

// behind are the facts of a machine whose router is at an address.
func behind(gateway netip.Addr) host.Facts {
	return host.Facts{
		Interfaces: []host.Interface{{Index: 1, Name: "lo", Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8")}}},
		Defaults:   []host.Default{{Interface: "lo", Gateway: gateway}},
	}
}

// mappedAt is the port mapping among the node's endpoints, which must be the first.
func (n *node) mappedAt() netip.AddrPort {
	i := slices.IndexFunc(n.State().Endpoints, func(e Endpoint) bool { return e.Type == EndpointPortMap })
	if i > 0 {
		n.t.Errorf("the mapping is endpoint %d", i)
	}
	if i < 0 {
		return netip.AddrPort{}
	}
	return n.State().Endpoints[i].Addr
}

// nextRequest waits for the router to be asked something.
func nextRequest(t *testing.T, r *mapRouter) string {
	t.Helper()
	select {
	case s := <-r.asked:
		return s
	case <-time.After(patience):
		t.Fatal("the router was not asked")
		panic("not reached")
	}
}

// Over real sockets: the mapping becomes an endpoint, follows the gateway and
// is deleted at the end.
func TestPortMapSockets(t *testing.T) {
	for name, setup := range map[string]func(*mapRouter){"PCP": onlyPCP, "NAT-PMP": onlyPMP} {
		t.Run(name, func(t *testing.T) {
			noLeak(t)
			r := newMapRouter()
			setup(r)
			at := r.listen(t)
			n := startNode(t, func(u *Underlay) { u.mapPort = at.Port() })
			want := netip.MustParseAddrPort(granted)
			n.SetFacts(behind(at.Addr()))
			n.until("a mapping", func() bool { return n.mappedAt() == want })
			n.SetFacts(host.Facts{})
			n.until("no mapping", func() bool { return !n.mappedAt().IsValid() })
			n.SetFacts(behind(at.Addr()))
			n.until("a mapping again", func() bool { return n.mappedAt() == want })
			for len(r.asked) > 0 {
				<-r.asked
			}
			n.end()
			for s := ""; !strings.HasSuffix(s, " 0 0"); {
				s = nextRequest(t, r)
			}
		})
	}
}

// Whoever is not the router is not heard, even with the right answer.
func TestPortMapStranger(t *testing.T) {
	noLeak(t)
	router, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer router.Close()
	stranger, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	at := router.LocalAddr().(*net.UDPAddr).AddrPort()
	n := startNode(t, func(u *Underlay) { u.mapPort = at.Port() })
	n.SetFacts(behind(at.Addr()))

	evil, good := newMapRouter(), newMapRouter()
	evil.outer = netip.MustParseAddr("203.0.113.66")
	b := make([]byte, 2000)
	for {
		size, from, err := router.ReadFromUDPAddrPort(b)
		if err != nil {
			t.Fatal(err)
		}
		// The stranger's answer is there before the router's own.
		if out := evil.answer(b[:size]); out != nil {
			if _, err := stranger.WriteToUDPAddrPort(out, from); err != nil {
				t.Fatal(err)
			}
		}
		if out := good.answer(b[:size]); out != nil {
			if _, err := router.WriteToUDPAddrPort(out, from); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	n.until("a mapping", func() bool { return n.mappedAt().IsValid() })
	if got := n.mappedAt(); got != netip.MustParseAddrPort(granted) {
		t.Fatalf("mapped at %s", got)
	}
}

// A router that does not listen yet answers by ICMP. That must not end the
// socket, nor the round.
func TestPortMapRouterComesLater(t *testing.T) {
	noLeak(t)
	free, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	at := free.LocalAddr().(*net.UDPAddr).AddrPort()
	d := net.Dialer{}
	conn, err := d.DialContext(t.Context(), "udp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	l := newMapLink(conn)
	defer l.close()
	if _, err := conn.Write(pmpExternal()); err != nil {
		t.Fatal(err)
	}
	router, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Skipf("the port was taken by another: %v", err)
	}
	defer router.Close()
	m := portMapper{link: l, log: slog.New(slog.DiscardHandler)}
	m.send(pmpExternal())
	b := make([]byte, 100)
	_, from, err := router.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := router.WriteToUDPAddrPort([]byte("here"), from); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-l.incoming():
		if string(got) != "here" {
			t.Fatalf("got %q", got)
		}
	case <-time.After(patience):
		t.Fatal("nothing is read after an ICMP answer")
	}
}
