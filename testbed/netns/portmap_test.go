package netns_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// TestPortMapping: two hard NATs give no direct path, but a router that forwards ports on request does. The router is
// Debian's miniupnpd.
func TestPortMapping(t *testing.T) {
	t.Run("PCP-and-NAT-PMP", func(t *testing.T) { mapPorts(t, false) })
	t.Run("UPnP", func(t *testing.T) { mapPorts(t, true) })
}

func mapPorts(t *testing.T, upnp bool) {
	t.Helper()
	lab := netns.New(t)
	hs, home := lab.Headscale(), lab.Home(netns.Hard)
	outer := lab.MapPorts(home.Router, upnp)
	d := lab.Subnetd(home.Router, daemonConfig)
	d.UpKey(hs, hs.PreAuthKey("ana", netns.KeyOptions{}), "home")
	hs.ApproveRoutes("home", home.LAN4, home.LAN6)
	start := time.Now()
	netns.Eventually(t, 30*time.Second, "the forwarded address is known", func() error {
		out, err := d.CLI("status")
		if err == nil && !strings.Contains(out, outer.String()+":") {
			err = errors.New(out)
		}
		return err
	})
	t.Logf("port forwarded after %v", time.Since(start).Round(time.Millisecond))
	phone := lab.StockPeer(lab.NAT(netns.Hard))
	phone.Up(hs.URL, hs.PreAuthKey("ana", netns.KeyOptions{}), "--accept-routes")
	wantReach(t, phone.Host, home.LAN.Addr4)
	netns.Eventually(t, 30*time.Second, "the path is direct", func() error {
		out, err := phone.CLI(t.Context(), "ping", "-c", "1", "--timeout", "2s", "home")
		if err == nil && !strings.Contains(out, "via "+outer.String()+":") {
			err = errors.New(out)
		}
		return err
	})
	forwards := func() string {
		out, err := home.Router.Behind().Run(t.Context(), "nft", "list", "chain", "inet", "nat", "upnp_pre")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if !strings.Contains(forwards(), "dnat") {
		t.Error("the router forwards nothing")
	}
	if err := d.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	netns.Eventually(t, 5*time.Second, "the router forwards nothing more", func() error {
		if out := forwards(); strings.Contains(out, "dnat") {
			return errors.New(out)
		}
		return nil
	})
}
