package netns_test

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// TestStockPeersReachTheLAN proves the lab with strangers only: a stock subnet router at home, a stock client behind a NAT.
func TestStockPeersReachTheLAN(t *testing.T) {
	lab := netns.New(t)
	hs := lab.Headscale()
	home, phone := lab.Home(netns.Public), lab.NAT(netns.Easy)
	router, client := lab.StockPeer(home.Router), lab.StockPeer(phone)
	key := hs.PreAuthKey("ana", netns.KeyOptions{Reusable: true})
	router.Up(hs.URL, key, "--advertise-routes="+home.LAN4.String()+","+home.LAN6.String(), "--accept-routes")
	client.Up(hs.URL, key, "--accept-routes")
	hs.ApproveRoutes("home", home.LAN4, home.LAN6)

	wantReach(t, phone, home.LAN.Addr4, home.LAN.Addr6)
	const size = 20 << 20
	home.LAN.ServePayload("[::]:80", 1, size)
	wantPayload(t, phone, "http://"+home.LAN.Addr4.String()+"/", 1, size)
	wantPayload(t, phone, "http://["+home.LAN.Addr6.String()+"]/", 1, size)
	v4, _, err := hs.MeshAddrs("home")
	if err != nil {
		t.Fatal(err)
	}
	if reach, out := client.Ping(context.Background(), v4, 10); reach != netns.Direct {
		t.Errorf("an easy NAT gives a direct path; got %s:\n%s", reach, out)
	}
}

// wantReach waits until every address answers a ping from h.
func wantReach(t *testing.T, h *netns.Host, addrs ...netip.Addr) {
	t.Helper()
	for _, a := range addrs {
		netns.Eventually(t, 20*time.Second, fmt.Sprintf("%s reaches %s", h.Name, a), func() error {
			return h.Ping(context.Background(), a)
		})
	}
}

// wantPayload downloads a payload and compares its sum; it prints the speed.
func wantPayload(t *testing.T, h *netns.Host, url string, seed byte, size int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute+time.Duration(size)*time.Microsecond) // 8 Mbit/s
	defer cancel()
	start := time.Now()
	n, sum, err := h.Fetch(ctx, url)
	took := time.Since(start)
	if err != nil {
		t.Fatalf("%s fetches %s: %v after %d bytes", h.Name, url, err, n)
	}
	if want := netns.PayloadSum(seed, size); n != size || sum != want {
		t.Fatalf("%s fetches %s: %d bytes with SHA-256 %s, want %d with %s", h.Name, url, n, sum, size, want)
	}
	t.Logf("%s fetched %s: %d bytes in %v, %.0f Mbit/s", h.Name, url, n, took.Round(time.Millisecond), float64(n)*8e-6/took.Seconds())
}
