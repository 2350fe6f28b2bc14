package netns_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// TestNoDrift tells one story to every pair of a node and a coordinator of which at least one is ours: what works with
// the stranger works with our own, and the other way round.
func TestNoDrift(t *testing.T) {
	for _, pair := range []struct {
		name  string
		coord func(*testing.T, *netns.Lab) coordinator
		node  func(*netns.Lab, *netns.Host) member
	}{
		{"subnetd-at-Headscale", headscaleCoordinator, subnetdMember},
		{"stock-at-home", homeCoordinator, stockMember},
		{"subnetd-at-home", homeCoordinator, subnetdMember},
	} {
		t.Run(pair.name, func(t *testing.T) {
			lab := netns.New(t)
			coord := pair.coord(t, lab)
			site := lab.NewHome(netns.HomeSpec{Name: "site", NAT: netns.Easy,
				LAN4: netip.MustParsePrefix("192.168.88.0/24"), LAN6: netip.MustParsePrefix("fd88:88::/64")})
			p := &play{t: t, coord: coord, site: site, node: pair.node(lab, site.Router),
				phone: lab.StockPeer(lab.Client("phone", netns.Easy))} // Headscale's certificate is of the lab's authority
			p.perform()
		})
	}
}

// coordinator is what the story asks of one.
type coordinator interface {
	URL() string
	Key() string
	Addrs(name string) (v4, v6 netip.Addr, err error)
	ApproveRoutes(name string, prefixes ...netip.Prefix)
	Rename(name, to string)
	Expire(name string)
	Remove(name string)
}

// member is what the story asks of the node at the site, which offers the site's LAN.
type member interface {
	Join(t *testing.T, url, key string, site *netns.Home)
	NeedsLogin() error
	Ping(ctx context.Context, name string) error
}

// play is one performance.
type play struct {
	t     *testing.T
	coord coordinator
	site  *netns.Home
	node  member
	phone *netns.StockPeer
}

func (p *play) perform() {
	t, last := p.t, time.Now()
	scene := func(what string) {
		t.Logf("%s: %v", what, time.Since(last).Round(time.Millisecond))
		last = time.Now()
	}
	p.node.Join(t, p.coord.URL(), p.coord.Key(), p.site)
	p.phone.Up(p.coord.URL(), p.coord.Key(), "--accept-routes")
	first := p.reaches("site")
	scene("joined, reached by name and address")
	netns.Eventually(t, 20*time.Second, "the site reaches the phone by name", func() error { return p.node.Ping(t.Context(), "phone") })
	if p.phone.Host.Ping(t.Context(), p.site.LAN.Addr4) == nil {
		t.Error("the phone reaches the LAN before its route is approved")
	}
	p.coord.ApproveRoutes("site", p.site.LAN4, p.site.LAN6)
	wantReach(t, p.phone.Host, p.site.LAN.Addr4, p.site.LAN.Addr6)
	scene("route approved, the LAN is reached")

	p.coord.Rename("site", "cabin")
	p.reaches("cabin")
	p.gone("site")
	scene("renamed")

	p.coord.Expire("cabin")
	p.loggedOut()
	netns.Eventually(t, 10*time.Second, "an expired node is not reached", p.unreachable(first))
	scene("expired")
	p.node.Join(t, p.coord.URL(), p.coord.Key(), p.site)
	if again := p.reaches("cabin"); again != first {
		t.Errorf("address %v after the new login, %v before", again, first)
	}
	wantReach(t, p.phone.Host, p.site.LAN.Addr4, p.site.LAN.Addr6)
	scene("logged in again")

	p.coord.Remove("cabin")
	p.loggedOut()
	p.gone("cabin")
	netns.Eventually(t, 10*time.Second, "a removed node is not reached", p.unreachable(first))
	scene("removed")
	p.node.Join(t, p.coord.URL(), p.coord.Key(), p.site)
	p.coord.ApproveRoutes("site", p.site.LAN4, p.site.LAN6)
	p.reaches("site")
	wantReach(t, p.phone.Host, p.site.LAN.Addr4, p.site.LAN.Addr6)
	scene("joined again as another node")
}

// reaches wants the phone to reach a node by name and by both addresses, and gives the first.
func (p *play) reaches(name string) netip.Addr {
	p.t.Helper()
	v4, v6, err := p.coord.Addrs(name)
	if err != nil {
		p.t.Fatal(err)
	}
	netns.Eventually(p.t, 20*time.Second, "the phone reaches "+name+" by name", func() error {
		out, err := p.phone.CLI(p.t.Context(), "ping", "-c", "1", "--timeout", "2s", "--until-direct=false", name)
		if err == nil && !strings.Contains(out, v4.String()) {
			err = errors.New(out)
		}
		return err
	})
	wantReach(p.t, p.phone.Host, v4, v6)
	return v4
}

// gone waits until the phone knows nobody of that name.
func (p *play) gone(name string) {
	p.t.Helper()
	netns.Eventually(p.t, 10*time.Second, "the phone knows no "+name, func() error {
		s, err := p.phone.Status()
		if err != nil {
			return err
		}
		for _, n := range s.Peer {
			if strings.HasPrefix(n.DNSName, name+".") {
				return fmt.Errorf("it knows %+v", n)
			}
		}
		return nil
	})
}

func (p *play) loggedOut() {
	p.t.Helper()
	netns.Eventually(p.t, 30*time.Second, "the site asks for a login", p.node.NeedsLogin)
}

func (p *play) unreachable(addr netip.Addr) func() error {
	return func() error {
		if p.phone.Host.Ping(p.t.Context(), addr) == nil {
			return fmt.Errorf("%v answers", addr)
		}
		return nil
	}
}

// atHeadscale is the stranger.
type atHeadscale struct {
	*netns.Headscale
	t *testing.T
}

func headscaleCoordinator(t *testing.T, lab *netns.Lab) coordinator {
	return &atHeadscale{lab.Headscale(), t}
}

func (h *atHeadscale) URL() string { return h.Headscale.URL }
func (h *atHeadscale) Key() string { return h.PreAuthKey("ana", netns.KeyOptions{}) }
func (h *atHeadscale) Addrs(name string) (v4, v6 netip.Addr, err error) {
	return h.MeshAddrs(name)
}

// Remove waits until nobody has asked for a netmap for two seconds: Headscale 0.29 does not tell a node of its removal
// whose stream begins in that moment.
func (h *atHeadscale) Remove(name string) {
	was, since := 0, time.Now()
	netns.Eventually(h.t, 20*time.Second, "the nodes are content", func() error {
		if n := h.Requests("/machine/map"); n != was {
			was, since = n, time.Now()
		}
		if quiet := time.Since(since); quiet < 2*time.Second {
			return fmt.Errorf("quiet for %v", quiet)
		}
		return nil
	})
	h.Delete(name)
}

func (h *atHeadscale) Rename(name, to string) {
	n, err := h.Node(name)
	if err == nil {
		_, err = h.CLI("nodes", "rename", "-i", n.ID.String(), to)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// atHomeMesh is our own.
type atHomeMesh struct{ *netns.HomeMesh }

func homeCoordinator(_ *testing.T, lab *netns.Lab) coordinator {
	return &atHomeMesh{lab.HomeMesh(lab.Home(netns.Public).Router, netns.HomeOptions{URL: "http://home.test"})}
}

func (h *atHomeMesh) URL() string { return h.Options.URL }
func (h *atHomeMesh) Key() string { return h.Invite().Key }
func (h *atHomeMesh) Addrs(name string) (v4, v6 netip.Addr, err error) {
	return h.MeshAddrs(name)
}
func (h *atHomeMesh) Rename(name, to string) { h.Must("nodes", "rename", name, to) }

// Expire asks by ID, so that it is tried too.
func (h *atHomeMesh) Expire(name string) {
	n, err := h.Node(name)
	if err != nil {
		h.Must("nodes", "expire", name)
		return
	}
	h.Must("nodes", "expire", strconv.FormatInt(n.ID, 10))
}

// subnetdNode is ours as a member.
type subnetdNode struct{ *netns.Subnetd }

func subnetdMember(lab *netns.Lab, h *netns.Host) member {
	return &subnetdNode{lab.Subnetd(h, daemonConfig)}
}

func (n *subnetdNode) Join(t *testing.T, url, key string, _ *netns.Home) {
	t.Helper()
	if out, err := n.CLI("up", "--control", url, "--auth-key", key, "--hostname", "site"); err != nil {
		t.Fatalf("subnetd up: %v\n%s", err, out)
	}
}

func (n *subnetdNode) NeedsLogin() error {
	m, err := n.StatusJSON()
	if err == nil && m["phase"] != "needs-login" {
		err = fmt.Errorf("phase %v, %v", m["phase"], m["error"])
	}
	return err
}

func (n *subnetdNode) Ping(ctx context.Context, name string) error {
	_, err := n.CLIContext(ctx, "ping", name)
	return err
}

// stockNode is the stranger as a member.
type stockNode struct{ *netns.StockPeer }

func stockMember(lab *netns.Lab, h *netns.Host) member {
	return &stockNode{lab.StockPeerVersion(h, netns.StockVersions()[0])}
}

func (n *stockNode) Join(t *testing.T, url, key string, site *netns.Home) {
	t.Helper()
	n.Up(url, key, "--advertise-routes="+site.LAN4.String()+","+site.LAN6.String())
}

func (n *stockNode) NeedsLogin() error {
	s, err := n.Status()
	if err == nil && s.BackendState != "NeedsLogin" {
		err = fmt.Errorf("state %s", s.BackendState)
	}
	return err
}

func (n *stockNode) Ping(ctx context.Context, name string) error {
	_, err := n.CLI(ctx, "ping", "-c", "1", "--timeout", "2s", "--until-direct=false", name)
	return err
}
