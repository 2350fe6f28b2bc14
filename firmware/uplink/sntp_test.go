package uplink

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"subnetd/firmware/notice"
	"subnetd/firmware/place"
)

// ntpServer says that it is later by ahead than it is.
func ntpServer(t *testing.T, ahead time.Duration) string {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		b := make([]byte, 512)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			if n == ntpSize {
				nonce := binary.BigEndian.Uint64(b[40:])
				_, _ = pc.WriteTo(ntpSays(nonce+1, time.Now(), nil), from) // to a question that nobody asked
				_, _ = pc.WriteTo(ntpSays(nonce, time.Now().Add(ahead), nil), from)
			}
		}
	}()
	return pc.LocalAddr().String()
}

func TestClock(t *testing.T) {
	place.Command(t, "ip", "link", "set", "lo", "up")
	day := 24 * time.Hour
	for name, c := range map[string]struct {
		ahead []time.Duration
		set   bool
		by    time.Duration
	}{
		"a clock that is right":     {[]time.Duration{0, 0}, true, 0},
		"one that is late by a day": {[]time.Duration{day, day, -day}, true, day},
		"one server":                {[]time.Duration{day}, false, 0},
		"servers that disagree":     {[]time.Duration{day, 2 * day}, false, 0},
		"before it was built":       {[]time.Duration{-9999 * day, -9999 * day}, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			log := slog.New(slog.NewTextHandler(&b, nil))
			hand := &steps{make(chan time.Duration, 1)}
			s := &sntp{options: options{setTime: hand, built: builtAt}, log: log, notice: notice.New(log, time.Now)}
			for _, ahead := range c.ahead {
				s.ntp = append(s.ntp, ntpServer(t, ahead))
			}
			wait := s.once(context.Background(), servers{resolvers: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}, firstNTP)
			select {
			case by := <-hand.to:
				if !c.set || (by-c.by).Abs() > 5*time.Second || wait != calmNTP {
					t.Errorf("set by %v, then after %v", by, wait)
				}
			default:
				if c.set || wait != 2*firstNTP || !strings.Contains(b.String(), "no two servers") {
					t.Errorf("not set; then after %v:\n%s", wait, &b)
				}
			}
		})
	}
}
