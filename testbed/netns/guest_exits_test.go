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
	"subnetd/testbed/qemu"
)

// exitWG is an exit's interface as the kernel has it.
type exitWG struct {
	name, port string
	wgPeer
}

// exitOf asks the router's kernel for the interface that has the peer of that key as its exit.
func exitOf(h *netns.Host, key string) (x exitWG, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := h.Output(ctx, "wg", "show", "all", "dump")
	ports := map[string]string{}
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		switch {
		case len(f) == 5: // an interface
			ports[f[0]] = f[3]
		case len(f) == 9 && f[1] == key && f[0] != "mesh0":
			x.name, x.endpoint = f[0], f[3]
			var e1, e2, e3 error
			x.handshake, e1 = strconv.ParseInt(f[5], 10, 64)
			x.rx, e2 = strconv.ParseInt(f[6], 10, 64)
			x.tx, e3 = strconv.ParseInt(f[7], 10, 64)
			err = errors.Join(err, e1, e2, e3)
		}
	}
	x.port = ports[x.name]
	if err == nil && x.name == "" {
		err = fmt.Errorf("%s has no interface for the exit %s: %s", h.Name, key, out)
	}
	return x, err
}

// exitScene is a guest's home that uses stock nodes as exits.
type exitScene struct {
	*guestScene
	web *netns.Host
}

// rows sets the daemon's exits; what `up` wrote stays.
func (s *exitScene) rows(t *testing.T, rows ...string) {
	t.Helper()
	b, err := s.daemon.Host.ReadFile(s.daemon.Config)
	if err != nil {
		t.Fatal(err)
	}
	toml, _, _ := strings.Cut(string(b), "\n[exit]")
	for i := range rows {
		rows[i] = strconv.Quote(rows[i])
	}
	s.daemon.Reload(toml + "\n[exit]\nrows = [" + strings.Join(rows, ", ") + "]\n")
}

// wantOut waits until the web sees new flows of the LAN host as that node's, and gives how long it took.
func (s *exitScene) wantOut(t *testing.T, exit *netns.StockPeer) time.Duration {
	t.Helper()
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	select {
	case at := <-firstBy(ctx, s.home.LAN, s.web.Addr4, outside(exit.Host)[0]):
		return at.Sub(start)
	case <-ctx.Done():
		t.Fatalf("the LAN does not leave by %s", exit.Host.Name)
		return 0
	}
}

// TestGuestExits: the kernel engine with stock exits, each behind an interface of its own and all behind one UDP port; then
// what is wanted of exits with any engine.
func TestGuestExits(t *testing.T) {
	s := &exitScene{guestScene: bootScene(t, qemu.AMD64, 512, 0, netns.Easy)}
	tv, laptop := s.lab.Device(s.home, "tv", 51), s.lab.Device(s.home, "laptop", 52)
	s.web = s.lab.Far("web")
	serveSource(t, s.web)
	s.home.LAN.ServePayload("[::]:80", 1, lanPayload)
	s.home.Router.Start("iperf3", "-s", "-p", "8080")
	s.begin(t, "kernel")
	easy, public := stockExit(t, s.lab, s.hs, "exit-easy", netns.Easy), stockExit(t, s.lab, s.hs, "parents", netns.Public)
	relayed, cabin := stockExit(t, s.lab, s.hs, "exit-udp-blocked", netns.UDPBlocked), stockExit(t, s.lab, s.hs, "cabin", netns.Public)
	defer func() {
		if t.Failed() {
			out, _ := s.home.Router.Run(context.Background(), "sh", "-c", "wg show all dump | cut -f1,2,4-; ip rule; ip route show table all | grep -v local; nft list table inet subnetd_exits")
			t.Logf("the router:\n%s", out)
			out, _ = s.daemon.CLI("exit")
			t.Logf("the daemon says:\n%s", out)
		}
	}()
	key := func(p *netns.StockPeer) string { return wgKey(t, s.hs, p.Host.Name) }
	wantKernel(t, s.daemon)
	wantDirect(t, &s.scene)
	phone := watchEndpoint(t, s.home.Router, wgKey(t, s.hs, s.phone.Host.Name), nil, "")
	down, up := s.streams(t)

	s.rows(t, "lan -> exit-easy", "router -> parents")
	t.Logf("the LAN leaves by the first exit %v after the wish", s.wantOut(t, easy).Round(time.Millisecond))
	x, err := exitOf(s.home.Router, key(easy))
	if err != nil {
		t.Fatal(err)
	}
	y, err := exitOf(s.home.Router, key(public))
	if err != nil {
		t.Fatal(err)
	}
	s.home.Router.NFT(fmt.Sprintf(`table inet watch { chain post { type filter hook postrouting priority 300;
		oifname "wan0" udp sport { %s, %s } counter
	}
	}
	`, x.port, y.port))
	direct := func(p *netns.StockPeer) {
		t.Helper()
		netns.Eventually(t, 30*time.Second, "the path to "+p.Host.Name+" is direct", func() error {
			if x, err := exitOf(s.home.Router, key(p)); err != nil || x.isLoopback() || x.handshake == 0 {
				return fmt.Errorf("%+v, %v", x, err)
			}
			return nil
		})
	}
	direct(easy)
	flow := startStream(t, s.home.LAN, s.web, s.web.Addr4, 7001)

	// A NAT that moves.
	box := easy.Host.Behind()
	box.NFT(`flush chain inet nat post
		add rule inet nat post oifname "wan" meta l4proto udp masquerade to :50000-50999
		add rule inet nat post oifname "wan" masquerade`)
	if out, err := box.Run(t.Context(), "conntrack", "-D", "-p", "udp"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	rebound := time.Now()
	netns.Eventually(t, 20*time.Second, "the kernel follows the exit", func() error {
		x, err := exitOf(s.home.Router, key(easy))
		if ap, perr := netip.ParseAddrPort(x.endpoint); err != nil || perr != nil || ap.Port() < 50000 || ap.Port() > 50999 {
			return fmt.Errorf("%+v, %v", x, err)
		}
		return nil
	})
	t.Logf("the exit is followed %v after its NAT rebound", time.Since(rebound).Round(time.Millisecond))
	s.wantOut(t, easy)

	// The daemon is killed, and starts again.
	before, err := exitOf(s.home.Router, key(easy))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	hide(t, s.hs, s.home.Router)
	s.daemon.Kill9()
	s.wantOut(t, easy)
	s.daemon.Start()
	away := time.Since(began)
	t.Logf("the daemon was away for %v", away.Round(time.Millisecond))
	wantPhase(t, s.daemon, "joined")
	netns.Eventually(t, 20*time.Second, "the daemon has heard of the exit itself", func() error {
		p, err := peerStatus(s.daemon, easy.Host.Name)
		if rtt, _ := p["rtt"].(float64); err == nil && (p["path"] != "direct" || rtt == 0) {
			err = fmt.Errorf("path %v, %v ms", p["path"], rtt)
		}
		return err
	})
	s.wantOut(t, easy)
	if after, err := exitOf(s.home.Router, key(easy)); err != nil || after.port != before.port || after.name != before.name || after.handshake-before.handshake > 0 && time.Since(began) < time.Minute {
		t.Errorf("%+v, before %+v, %v", after, before, err)
	}
	sent, holes := flow.end()
	t.Logf("%s: %d datagrams sent, missing %s", flow.what, sent, tell(holes))

	// Another exit, a relayed one, and none.
	s.rows(t, "lan -> parents")
	t.Logf("by another after %v", s.wantOut(t, public).Round(time.Millisecond))
	direct(public)
	s.rows(t, "lan -> exit-udp-blocked")
	t.Logf("by a relayed one after %v", s.wantOut(t, relayed).Round(time.Millisecond))
	if x, err := exitOf(s.home.Router, key(relayed)); err != nil || !x.isLoopback() {
		t.Errorf("%+v, %v", x, err)
	}
	s.rows(t)
	netns.Eventually(t, 10*time.Second, "no trace of exits", func() error {
		out, err := s.home.Router.Run(t.Context(), "sh", "-c", "ip -br link; nft list tables")
		if err != nil || strings.Contains(out, "mesh-") || strings.Contains(out, "subnetd_exits") {
			return fmt.Errorf("%s (%v)", out, err)
		}
		return nil
	})

	out, err := s.home.Router.Run(t.Context(), "nft", "list", "table", "inet", "watch")
	if err != nil || !strings.Contains(out, "counter packets 0 ") {
		t.Errorf("packets left from an exit's port: %s (%v)", out, err)
	}
	wantWhole(t, down)
	wantWholeUnless(t, up, away)
	phone.wantSteady(t)

	all := &exitHome{scene: &s.scene, lab: s.lab, web: s.web, a: tv, b: laptop, c: s.home.LAN, x: public, y: cabin}
	s.lab.Run("per-device", all.perDevice)
	s.lab.Run("pppoe", func(t *testing.T) {
		all.pppoe(t)
		for _, a := range []netip.Addr{s.home.LAN.Addr4, s.home.LAN.Addr6} { // and by the route to the home
			wantPayload(t, s.phone.Host, "http://"+netip.AddrPortFrom(a, 80).String()+"/", 1, lanPayload)
		}
	})
	s.lab.Run("offered", s.offered)
}

// lanPayload is what the LAN host serves, in bytes.
const lanPayload = 2_000_000

// offered: a stock client behind a NAT leaves by home, whose LAN was open to it until a moment ago, and is not any more.
func (s *exitScene) offered(t *testing.T) {
	homes := []netip.AddrPort{netip.AddrPortFrom(s.home.LAN.Addr4, 80), netip.AddrPortFrom(s.home.LAN.Addr6, 80),
		netip.AddrPortFrom(s.home.LAN4.Addr().Next(), 8080), netip.AddrPortFrom(s.home.LAN6.Addr().Next(), 8080)}
	for _, a := range homes {
		netns.Eventually(t, 10*time.Second, "the home is open", func() error {
			if !letsIn(s.phone.Host, a) {
				return fmt.Errorf("the phone does not reach %v", a)
			}
			return nil
		})
	}
	b, err := s.daemon.Host.ReadFile(s.daemon.Config)
	if err != nil {
		t.Fatal(err)
	}
	toml, _, _ := strings.Cut(string(b), "\n[exit]")
	s.daemon.Reload(strings.Replace(toml, `expose = "all"`, `expose = "none"`, 1))
	for _, a := range homes {
		netns.Eventually(t, 10*time.Second, "nothing of the home is exposed", func() error {
			if letsIn(s.phone.Host, a) {
				return fmt.Errorf("the phone reaches %v", a)
			}
			return nil
		})
	}
	wantExitOffered(t, &s.scene, s.web)
}
