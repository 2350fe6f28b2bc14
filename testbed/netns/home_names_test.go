package netns_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"subnetd/testbed/netns"
)

// TestHomeRecords: names that the owner writes down are found by stock clients, and edits of them at once; questions
// about a domain that has a resolver of its own go there.
func TestHomeRecords(t *testing.T) {
	lab := netns.New(t)
	corp := lab.Client("corp", netns.Public)
	serveDNS(t, corp, "www.corp.example.", netip.MustParseAddr("192.0.2.80"))
	o := netns.HomeOptions{URL: "http://home.test", Records: []string{"nas=192.168.77.9", "nas=fd77:77::9", "git.example.com=192.168.77.8"},
		SplitDNS: []string{"corp.example=" + corp.Addr4.String()}}
	s := &homeScene{t: t, lab: lab, home: lab.Home(netns.Public)}
	s.mesh = lab.HomeMesh(s.home.Router, o)
	for _, p := range s.oneOfEach("") {
		wantNames(t, p.Host, "nas.mesh.internal", addrs("192.168.77.9", "fd77:77::9"))
		wantNames(t, p.Host, "git.example.com", addrs("192.168.77.8"))
		wantNames(t, p.Host, "www.corp.example", addrs("192.0.2.80"))
	}
	phone := s.client("phone", netns.Easy, netns.StockVersions()[0])
	s.letIn(phone)
	o.Records = []string{"nas=192.168.77.10", "tv=192.168.77.11"}
	start := time.Now()
	s.mesh.SetOptions(o)
	wantNames(t, phone.Host, "tv.mesh.internal", addrs("192.168.77.11"))
	t.Logf("a new name is found %v after the edit", time.Since(start).Round(time.Millisecond))
	wantNames(t, phone.Host, "nas.mesh.internal", addrs("192.168.77.10"))
	if a, err := lookup(t.Context(), phone.Host, "git.example.com"); err == nil {
		t.Errorf("a name that was taken away is still %v", a)
	}
	if a, err := lookup(t.Context(), phone.Host, "nobody.mesh.internal"); err == nil {
		t.Errorf("a name that nobody has is %v", a)
	} else if e := new(net.DNSError); !errors.As(err, &e) || !e.IsNotFound {
		t.Errorf("a name that nobody has: %v, want that it does not exist", err)
	}
}

func addrs(text ...string) []netip.Addr {
	var all []netip.Addr
	for _, s := range text {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

// serveDNS answers questions for the IPv4 address of one name, and says of all others that there are none.
func serveDNS(t *testing.T, h *netns.Host, name string, a netip.Addr) {
	t.Helper()
	pc, err := h.ListenPacket("0.0.0.0:53")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			if answer, err := answerDNS(b[:n], name, a); err == nil {
				_, _ = pc.WriteTo(answer, from)
			}
		}
	}()
}

func answerDNS(question []byte, name string, a netip.Addr) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil {
		return nil, err
	}
	if len(m.Questions) != 1 {
		return nil, fmt.Errorf("%d questions", len(m.Questions))
	}
	q := m.Questions[0]
	m.Response, m.Authoritative, m.Additionals = true, true, nil
	switch {
	case !strings.EqualFold(q.Name.String(), name):
		m.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60},
			Body: &dnsmessage.AResource{A: a.As4()}}}
	}
	return m.Pack()
}

// lookup asks the stock client's resolver for the addresses of a name.
func lookup(ctx context.Context, h *netns.Host, name string) ([]netip.Addr, error) {
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return h.Dial(ctx, network, "100.100.100.100:53")
	}}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	got, err := resolver.LookupNetIP(ctx, "ip", name+".")
	for i := range got {
		got[i] = got[i].Unmap()
	}
	return got, err
}

// TestHomeRoutes: a network that a stock client offers is nobody's until the owner approves it, and at once; and no
// longer once he takes that back.
func TestHomeRoutes(t *testing.T) {
	s := openHome(t, netns.HomeOptions{})
	office := s.lab.NewHome(netns.HomeSpec{Name: "office", NAT: netns.Easy,
		LAN4: netip.MustParsePrefix("192.168.88.0/24"), LAN6: netip.MustParsePrefix("fd88:88::/64")})
	router := s.lab.StockPeerVersion(office.Router, netns.StockVersions()[0])
	i := s.mesh.Invite()
	router.Up(i.URL, i.Key, "--advertise-routes="+office.LAN4.String()+","+office.LAN6.String())
	phone := s.client("phone", netns.Easy, netns.StockVersions()[1])
	i = s.mesh.Invite()
	phone.Up(i.URL, i.Key, "--accept-routes")
	s.wantRoutes(t, phone, office, false)

	start := time.Now()
	s.mesh.ApproveRoutes("office", office.LAN4, office.LAN6)
	s.wantRoutes(t, phone, office, true)
	t.Logf("approved: the client knows after %v", time.Since(start).Round(time.Millisecond))
	wantReach(t, phone.Host, office.LAN.Addr4, office.LAN.Addr6)
	wantReach(t, s.home.Router, office.LAN.Addr4)
	printed := s.mesh.Must("nodes", "routes", "office")
	t.Logf("subnetd nodes routes office:\n%s", printed)
	if !strings.Contains(printed, office.LAN4.String()) || !strings.Contains(printed, office.LAN6.String()) {
		t.Error("it does not show the routes")
	}
	start = time.Now()
	s.mesh.Must("nodes", "routes", "office", "none")
	s.wantRoutes(t, phone, office, false)
	t.Logf("taken back: the client knows after %v", time.Since(start).Round(time.Millisecond))
	for _, bad := range []string{"192.168.88.0", "rubbish", "100.64.0.0/10"} {
		if out, err := s.mesh.CLI("nodes", "routes", "office", bad); exitCode(err) == 0 || !plainSentence(out) {
			t.Errorf("approving %s: %v\n%s", bad, err, out)
		}
	}
}

// wantRoutes waits until a client knows, or no longer knows, the office's networks.
func (s *homeScene) wantRoutes(t *testing.T, p *netns.StockPeer, office *netns.Home, want bool) {
	t.Helper()
	netns.Eventually(t, atOnce, fmt.Sprintf("the client has the routes: %v", want), func() error {
		st, err := p.Status()
		if err != nil {
			return err
		}
		n, err := st.PeerNamed("office")
		if err != nil {
			return err
		}
		out, err := p.Host.Run(t.Context(), "ip", "route", "get", office.LAN.Addr4.String())
		if tunnel := strings.Contains(out, "dev tailscale0"); err == nil && (tunnel != want || (len(n.PrimaryRoutes) == 2) != want) {
			err = fmt.Errorf("it has %v, and %s", n.PrimaryRoutes, out)
		}
		return err
	})
}
