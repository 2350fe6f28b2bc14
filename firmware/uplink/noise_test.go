package uplink

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"subnetd/firmware/notice"
	"subnetd/firmware/place"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
)

// TestNoise is a street full of rogues: what they say is told once per cause, and moves
// nothing.
func TestNoise(t *testing.T) {
	place.New(t, "wan0")
	place.Command(t, "ip", "link", "set", "wan0", "up")
	s, err := openSockets(context.Background(), "wan0")
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	var b bytes.Buffer
	log := slog.New(slog.NewTextHandler(&b, nil))
	u := &uplink{log: log, notice: notice.New(log, time.Now), sockets: s, v4: newV4(ourMAC, least), v6: newV6(ourMAC, least)}
	u.v4.up(0)
	u.v6.up(0)
	u.v6.tick(0)
	offer := from4(u.v4, dhcpv4.MessageTypeOffer, map[string]any{"yiaddr": "224.0.0.1"})
	advertise := gives(u.v6, dhcpv6.MessageTypeAdvertise, serverB, func(na *dhcpv6.OptIANA, pd *dhcpv6.OptIAPD) { na.IaId, pd.IaId = [4]byte{}, [4]byte{} })
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		u.hear4(offer.ToBytes())
		u.hear6(advertise.ToBytes())
		four, six := offer.ToBytes(), advertise.ToBytes()
		u.hear4(four[:r.IntN(len(four))])
		u.hear6(six[:r.IntN(len(six))])
	}
	if u.v4.stage != selecting || u.v6.stage != selecting || u.v6.offer != nil {
		t.Errorf("noise has moved the clients: %v, %v", u.v4.stage, u.v6.stage)
	}
	if lines := strings.Count(b.String(), "\n"); lines < 3 || lines > 6 {
		t.Errorf("8,000 messages made %d lines:\n%s", lines, &b)
	}
}
