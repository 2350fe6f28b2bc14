package netns_test

import (
	"strings"
	"testing"

	"subnetd/testbed/netns"
)

// TestClockIn1970: a router without a battery for its clock joins all the same: over http, and over https, where the
// date of the program stands in for the time. It does so again after a restart.
func TestClockIn1970(t *testing.T) {
	for name, headscale := range map[string]func(*netns.Lab) *netns.Headscale{
		"http": (*netns.Lab).HeadscaleHTTP, "https": (*netns.Lab).Headscale,
	} {
		t.Run(name, func(t *testing.T) {
			lab := netns.New(t)
			hs, home := headscale(lab), lab.Home(netns.Public)
			d := lab.SubnetdIn1970(home.Router, daemonConfig)
			d.UpKey(hs, hs.PreAuthKey("ana", netns.KeyOptions{}), "home")
			hs.ApproveRoutes("home", home.LAN4, home.LAN6)
			phone := lab.StockPeer(lab.NAT(netns.Public))
			phone.Up(hs.URL, hs.PreAuthKey("ana", netns.KeyOptions{}), "--accept-routes")
			wantReach(t, phone.Host, home.LAN.Addr4)
			if first := d.Log()[0]; !strings.HasPrefix(first, "time=197") {
				t.Errorf("the daemon does not live near 1970: %s", first)
			}
			d.Kill9()
			d.Start()
			wantReach(t, phone.Host, home.LAN.Addr4)
		})
	}
}
