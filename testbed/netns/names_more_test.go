package netns_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// wantAnswer waits until a server answers so, with patience for a mesh that settles.
func wantAnswer(t *testing.T, h *netns.Host, server, port, want string, args ...string) {
	t.Helper()
	netns.Eventually(t, 20*time.Second, fmt.Sprintf("%s hears from %s of %s", h.Name, server, args), func() error {
		if got := dig(t, h, server, port, args...); got != want {
			return fmt.Errorf("%q, want %q", got, want)
		}
		return nil
	})
}

// wantPage opens a web page by a name that a server knows, in both families, and gives the addresses.
func wantPage(t *testing.T, h *netns.Host, server, port, name string, seed byte) (out []netip.Addr) {
	t.Helper()
	for _, family := range []string{"a", "aaaa"} {
		netns.Eventually(t, 20*time.Second, fmt.Sprintf("%s opens %s (%s)", h.Name, name, family), func() error {
			a, err := netip.ParseAddr(dig(t, h, server, port, name, family))
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			_, sum, err := h.Fetch(ctx, "http://"+netip.AddrPortFrom(a, 80).String()+"/")
			if err == nil && sum != netns.PayloadSum(seed, pageSize) {
				err = fmt.Errorf("%v shows another page", a)
			}
			if err == nil {
				out = append(out, a)
			}
			return err
		})
	}
	return out
}

const pageSize = 1000

// TestNamesAndExitsWithoutCoordinator: a stock Headscale is switched off. The names of the mesh, in the house by dnsmasq and
// with a stock client on its way, and exits in both directions go on; also when our daemon was killed meanwhile.
func TestNamesAndExitsWithoutCoordinator(t *testing.T) {
	lab := netns.New(t)
	isp := newResolver(t, lab, "isp", "www.example.com.", netip.MustParseAddr("198.18.0.80"))
	systemResolver(t, lab, isp)
	s := &scene{hs: lab.Headscale(), home: lab.Home(netns.Public)}
	s.hs.Name("printer.home.lab.test A 192.168.77.50", "printer.home.lab.test AAAA fd77:77::50")
	tv, web := lab.Device(s.home, "tv", 51), lab.Far("web")
	serveSource(t, web)
	s.home.LAN.ServePayload("[::]:80", 1, pageSize)
	masq := newMasqService(t, s.home.Router, isp.Addr4)
	s.daemon = lab.Subnetd(s.home.Router, fmt.Sprintf("%s[dns]\ndnsmasq_dir = %q\ndnsmasq_restart = %s\n[exit]\noffer = true\nrows = [\"%s -> cabin\"]\n",
		daemonConfig, masq.dir, masq.restart(), tv.MAC("eth0")))
	s.daemon.UpKey(s.hs, s.hs.PreAuthKey("ana", netns.KeyOptions{}), "home")
	s.hs.ApproveRoutes("home", s.home.LAN4, s.home.LAN6, internet4, internet6)
	cabin := stockExit(t, lab, s.hs, "cabin", netns.Public)
	s.phone = lab.StockPeerVersion(lab.Client("phone", netns.Easy), netns.StockVersions()[0])
	s.phone.Host.Trust(lab.CACert())
	s.phone.Host.ServePayload("[::]:80", 2, pageSize)
	if out, err := s.phone.UpWith(50*time.Second, "--login-server="+s.hs.URL, "--auth-key="+s.hs.PreAuthKey("ana", netns.KeyOptions{}),
		"--hostname=phone", "--accept-dns=true", "--accept-routes"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p4, p6, err := s.hs.MeshAddrs("phone")
	if err != nil {
		t.Fatal(err)
	}
	h4, _, err := s.hs.MeshAddrs("home")
	if err != nil {
		t.Fatal(err)
	}

	all := func(t *testing.T) {
		const masqAt = "192.168.77.1"
		lan := s.home.LAN
		wantPage(t, lan, masqAt, "53", "phone.lab.test", 2)
		wantAnswer(t, lan, masqAt, "53", p4.String(), "phone.lab.test")
		wantAnswer(t, lan, masqAt, "53", p6.String(), "phone.lab.test", "aaaa")
		wantAnswer(t, lan, masqAt, "53", "phone.lab.test.", "-x", p4.String())
		wantAnswer(t, lan, masqAt, "53", "phone.lab.test.", "-x", p6.String())
		wantAnswer(t, lan, masqAt, "53", "192.168.77.50", "printer.home.lab.test")
		wantAnswer(t, lan, masqAt, "53", "NXDOMAIN", "nobody.lab.test")
		wantAnswer(t, lan, masqAt, "53", "198.18.0.80", "www.example.com")
		wantAnswer(t, tv, "100.100.100.100", "53", p4.String(), "phone.lab.test")
		wantNames(t, s.phone.Host, "printer.home.lab.test", addrs("192.168.77.50", "fd77:77::50"))
		wantCurl(t, s.phone.Host, "http://printer.home.lab.test/", 1, pageSize)
		wantOutBy(t, tv, web, cabin.Host, 20*time.Second)
		wantOutBy(t, lan, web, s.home.Router, 5*time.Second)
		leave := func(exit string) {
			if out, err := s.phone.CLI(t.Context(), "set", "--exit-node="+exit); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		leave(h4.String())
		netns.Eventually(t, 20*time.Second, "the phone leaves by home", func() error {
			if got, err := seenFrom(t.Context(), s.phone.Host, web.Addr4); err != nil || got != s.home.Router.Addr4 {
				return fmt.Errorf("the web sees %v (%v)", got, err)
			}
			return nil
		})
		leave("")
	}
	netns.Eventually(t, 30*time.Second, "the phone knows home's exit", func() error {
		_, err := s.phone.CLI(t.Context(), "set", "--exit-node="+h4.String())
		return err
	})
	lab.Run("all-there", all)
	starts := masq.started(t)
	s.hs.Kill()
	lab.Run("coordinator-off", all)
	s.daemon.Kill9()
	s.daemon.Start()
	lab.Run("and-restarted", all)
	if n := masq.started(t); n != starts {
		t.Errorf("dnsmasq was started %d times for nothing", n-starts)
	}
	if st, err := s.daemon.StatusJSON(); err != nil || st["phase"] != "cached" {
		t.Errorf("the coordinator is off, and status says %v (%v)", st["phase"], err)
	}
}

// twoSites are two homes whose LAN hosts know nothing of a mesh.
type twoSites struct {
	near, far *netns.Home
	nearGW    string // who is asked at near for names
	name      string // of the far LAN host
	seed      byte   // of its page
}

// wantAcross: a LAN host opens the page of the other home's by its name, and that sees the sender that it should.
func (s twoSites) wantAcross(t *testing.T, snat bool) {
	t.Helper()
	for i, a := range wantPage(t, s.near.LAN, s.nearGW, namesPort, s.name, s.seed) {
		want := []netip.Addr{s.near.LAN.Addr4, s.near.LAN.Addr6}[i]
		if snat {
			want = []netip.Addr{s.far.LAN4.Addr().Next(), s.far.LAN6.Addr().Next()}[i]
		}
		netns.Eventually(t, 10*time.Second, fmt.Sprintf("%s sees %v", s.name, want), func() error {
			got, err := seenFrom(t.Context(), s.near.LAN, a)
			if err == nil && got != want {
				err = fmt.Errorf("it sees %v", got)
			}
			return err
		})
	}
}

func gateway(h *netns.Home) string { return h.LAN4.Addr().Next().String() }

// setSNAT changes lan.snat in a daemon's configuration.
func setSNAT(t *testing.T, d *netns.Subnetd, on bool) {
	t.Helper()
	text, err := d.Host.ReadFile(d.Config)
	if err != nil {
		t.Fatal(err)
	}
	was, is := fmt.Sprintf("snat = %v\n", !on), fmt.Sprintf("snat = %v\n", on)
	if !strings.Contains(string(text), was) {
		t.Fatalf("no %q in\n%s", was, text)
	}
	d.Reload(strings.Replace(string(text), was, is, 1))
}

// TestNamesAcrossHomes: hosts of two homes open each other's pages by name in both families, with SNAT off and on. Headscale
// knows the names of the things on both LANs.
func TestNamesAcrossHomes(t *testing.T) {
	lab := netns.New(t)
	h := &homes{hs: lab.Headscale(), north: lab.NewHome(north), south: lab.NewHome(south)}
	h.hs.Name("printer.north.lab.test A 192.168.99.50", "printer.north.lab.test AAAA fd99:99::50",
		"nas.south.lab.test A 192.168.88.50", "nas.south.lab.test AAAA fd88:88::50")
	for i, home := range []*netns.Home{h.north, h.south} {
		serveSource(t, home.LAN)
		home.LAN.ServePayload("[::]:80", byte(1+i), pageSize)
	}
	h.join(lab, siteConfig)
	for _, d := range []*netns.Subnetd{h.northD, h.southD} {
		wantApproved(t, d)
	}
	ways := []twoSites{{h.north, h.south, gateway(h.north), "nas.south.lab.test", 2}, {h.south, h.north, gateway(h.south), "printer.north.lab.test", 1}}
	lab.Run("snat-off", func(t *testing.T) {
		for _, w := range ways {
			w.wantAcross(t, false)
		}
		v4, v6, err := h.hs.MeshAddrs("south")
		if err != nil {
			t.Fatal(err)
		}
		wantAnswer(t, h.north.LAN, "100.100.100.100", "53", "south.lab.test.", "-x", v4.String())
		wantAnswer(t, h.north.LAN, "fd7a:115c:a1e0::53", "53", "south.lab.test.", "-x", v6.String())
		wantAnswer(t, h.north.LAN, "100.100.100.100", "53", v4.String(), "south.lab.test")
	})
	lab.Run("snat-on", func(t *testing.T) {
		setSNAT(t, h.northD, true)
		setSNAT(t, h.southD, true)
		for _, w := range ways {
			w.wantAcross(t, true)
		}
	})
	lab.Run("snat-off-again", func(t *testing.T) {
		setSNAT(t, h.southD, false)
		ways[0].wantAcross(t, false)
		ways[1].wantAcross(t, true)
	})
}

// TestNamesAcrossHomesOfOne: the same where one home is the mesh of the other. Its own things have addresses in the mesh; those
// of the other home its owner has named by their addresses there.
func TestNamesAcrossHomesOfOne(t *testing.T) {
	lab := netns.New(t)
	spec := north
	spec.NAT = netns.Public
	n, s := lab.NewHome(spec), lab.NewHome(south)
	for i, home := range []*netns.Home{n, s} {
		serveSource(t, home.LAN)
		home.LAN.ServePayload("[::]:80", byte(1+i), pageSize)
	}
	o := netns.HomeOptions{URL: "http://north.test", Hostname: "north", Devices: []string{"printer=192.168.99.50", "printer=fd99:99::50"}, NoSNAT: true,
		Records: []string{"nas.south.mesh.internal=192.168.88.50", "nas.south.mesh.internal=fd88:88::50"}}
	mesh := lab.HomeMesh(n.Router, o)
	daemon := lab.Subnetd(s.Router, siteConfig)
	i := mesh.Invite()
	if out, err := daemon.CLI("up", "--control", i.URL, "--auth-key", i.Key, "--hostname", "south"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	mesh.ApproveRoutes("south", s.LAN4, s.LAN6)
	router, _, err := mesh.MeshAddrs("north")
	if err != nil {
		t.Fatal(err)
	}
	printer, _, err := mesh.MeshAddrs("printer")
	if err != nil {
		t.Fatal(err)
	}
	ways := []twoSites{{n, s, gateway(n), "nas.south.mesh.internal", 2}, {s, n, gateway(s), "printer.north.mesh.internal", 1}}
	lab.Run("snat-off", func(t *testing.T) {
		ways[0].wantAcross(t, false)
		wantPage(t, s.LAN, gateway(s), namesPort, ways[1].name, 1)
		wantAnswer(t, s.LAN, gateway(s), namesPort, printer.String(), ways[1].name)
		wantAnswer(t, s.LAN, gateway(s), namesPort, "printer.mesh.internal.", "-x", printer.String())
		wantAnswer(t, s.LAN, gateway(s), namesPort, router.String(), "north.mesh.internal")
		wantAnswer(t, n.LAN, gateway(n), namesPort, "192.168.99.50", ways[1].name) // at home by the shortest way
	})
	lab.Run("snat-on", func(t *testing.T) {
		o.NoSNAT = false
		mesh.SetOptions(o)
		setSNAT(t, daemon, true)
		ways[0].wantAcross(t, true)
		ways[1].wantAcross(t, true)
	})
}
