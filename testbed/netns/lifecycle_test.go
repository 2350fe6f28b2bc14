package netns_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// wantPhase waits until the daemon says it stands there.
func wantPhase(t *testing.T, d *netns.Subnetd, phase string) {
	t.Helper()
	netns.Eventually(t, 30*time.Second, "phase "+phase, func() error {
		m, err := d.StatusJSON()
		if err == nil && m["phase"] != phase {
			err = fmt.Errorf("phase %v, %v", m["phase"], m["error"])
		}
		return err
	})
}

// TestLogout: the coordinator no longer takes the node's key, nothing stays on the machine, and another key brings it
// back.
func TestLogout(t *testing.T) {
	s := join(t, netns.Public, netns.Public)
	wantReach(t, s.phone.Host, s.home.LAN.Addr4)
	if out, err := s.daemon.CLI("logout"); err != nil {
		t.Fatalf("logout: %v\n%s", err, out)
	}
	wantPhase(t, s.daemon, "down")
	if left := traces(t, s.home.Router); strings.Contains(left, "mesh0") || strings.Contains(left, "inet subnetd") {
		t.Errorf("left on the machine:\n%s", left)
	}
	out, err := s.daemon.CLI("up", "--timeout", "3s")
	if err == nil || !strings.Contains(out, s.hs.URL) {
		t.Errorf("after a logout `up` asks for a login; got %v:\n%s", err, out)
	}
	s.daemon.UpKey(s.hs, s.hs.PreAuthKey("ana", netns.KeyOptions{}), "home")
	s.hs.ApproveRoutes("home", s.home.LAN4, s.home.LAN6)
	wantReach(t, s.phone.Host, s.home.LAN.Addr4)
}

// TestDeletedByAdmin: a node that the coordinator's admin deletes asks for a login, without a storm, and a key brings
// it back.
func TestDeletedByAdmin(t *testing.T) {
	s := join(t, netns.Public, netns.Public)
	wantReach(t, s.phone.Host, s.home.LAN.Addr4)
	s.hs.Delete("home")
	wantPhase(t, s.daemon, "needs-login")
	was := s.hs.Requests("/machine/register")
	time.Sleep(3 * time.Second) // whoever storms does it in any second
	if n := s.hs.Requests("/machine/register") - was; n > 5 {
		t.Errorf("%d registrations in three seconds", n)
	}
	s.daemon.UpKey(s.hs, s.hs.PreAuthKey("ana", netns.KeyOptions{}), "home")
	s.hs.ApproveRoutes("home", s.home.LAN4, s.home.LAN6)
	wantReach(t, s.phone.Host, s.home.LAN.Addr4)
}

// TestRestarts: whoever restarts is reachable again within seconds: the stock peer, and the daemon.
func TestRestarts(t *testing.T) {
	s := join(t, netns.Easy, netns.Easy)
	wantReach(t, s.phone.Host, s.home.LAN.Addr4)
	for _, w := range []struct {
		name    string
		restart func()
	}{
		{"peer", func() { s.phone.Kill(); s.phone.Start() }},
		{"daemon", func() { s.daemon.Kill9(); s.daemon.Start() }},
	} {
		w.restart()
		start := time.Now()
		wantReach(t, s.phone.Host, s.home.LAN.Addr4)
		t.Logf("%s restarted: the LAN answers again after %v", w.name, time.Since(start).Round(time.Millisecond))
	}
}

// TestPingTypes: the stock client's own pings of us are answered.
func TestPingTypes(t *testing.T) {
	s := join(t, netns.Public, netns.Public)
	wantReach(t, s.phone.Host, s.home.LAN.Addr4)
	for _, flag := range []string{"--until-direct=false", "--icmp"} {
		out, err := s.phone.CLI(t.Context(), "ping", "-c", "1", "--timeout", "5s", flag, "home")
		if err != nil || !strings.Contains(out, "pong from home") {
			t.Errorf("tailscale ping %s: %v\n%s", flag, err, out)
		}
	}
}

// TestRelayRestarts: two peers that only have a relay find each other again after it restarted; and are direct once the
// network lets UDP through.
func TestRelayRestarts(t *testing.T) {
	s := join(t, netns.Public, netns.UDPBlocked)
	wantReach(t, s.phone.Host, s.home.LAN.Addr4)
	conn := dialEcho(t, s)
	s.hs.Kill()
	s.hs.Start()
	start := time.Now()
	netns.Eventually(t, 60*time.Second, "the LAN answers through the relay", func() error {
		return s.phone.Host.Ping(context.Background(), s.home.LAN.Addr4)
	})
	t.Logf("relay restarted: the LAN answers again after %v", time.Since(start).Round(time.Millisecond))
	if err := echoOnce(conn, "across the restart"); err != nil {
		t.Errorf("a flow broke: %v", err)
	}
	s.phone.Host.Behind().NFT("delete table inet nat")
	s.phone.Host.Behind().NFT(netns.EasyRules())
	start = time.Now()
	netns.Eventually(t, 90*time.Second, "the path is direct", func() error {
		out, err := s.phone.CLI(t.Context(), "ping", "-c", "1", "--timeout", "2s", "home")
		if err == nil && strings.Contains(out, "via DERP") {
			err = errors.New(out)
		}
		return err
	})
	t.Logf("UDP unblocked: direct after %v", time.Since(start).Round(time.Millisecond))
	if err := echoOnce(conn, "and direct"); err != nil {
		t.Errorf("a flow broke: %v", err)
	}
}

// TestEphemeral: a node that joined by an ephemeral key is gone from the coordinator once it logs out.
func TestEphemeral(t *testing.T) {
	lab := netns.New(t)
	hs, home := lab.Headscale(), lab.Home(netns.Public)
	d := lab.Subnetd(home.Router, daemonConfig)
	d.UpKey(hs, hs.PreAuthKey("ana", netns.KeyOptions{Ephemeral: true}), "home")
	if out, err := d.CLI("logout"); err != nil {
		t.Fatalf("logout: %v\n%s", err, out)
	}
	netns.Eventually(t, 10*time.Second, "the coordinator has forgotten the node", func() error {
		nodes, err := hs.Nodes()
		if err == nil && len(nodes) > 0 {
			err = fmt.Errorf("%d nodes", len(nodes))
		}
		return err
	})
}

// TestRouteFailover: two routers offer the same prefix; when the one that serves it dies, the other takes over.
func TestRouteFailover(t *testing.T) {
	s := join(t, netns.Public, netns.Public)
	wantReach(t, s.phone.Host, s.home.LAN.Addr4)
	lab := s.home.Router.Lab()
	spare := lab.NewHome(netns.HomeSpec{Name: "spare", NAT: netns.Public, LAN4: s.home.LAN4, LAN6: s.home.LAN6})
	d := lab.Subnetd(spare.Router, daemonConfig)
	d.UpKey(s.hs, s.hs.PreAuthKey("ana", netns.KeyOptions{}), "spare")
	s.hs.ApproveRoutes("spare", spare.LAN4, spare.LAN6)
	s.daemon.Kill9()
	start := time.Now()
	netns.Eventually(t, 90*time.Second, "the other router serves the prefix", func() error {
		return s.phone.Host.Ping(t.Context(), spare.LAN.Addr4)
	})
	t.Logf("the other router serves the prefix after %v", time.Since(start).Round(time.Millisecond))
}
