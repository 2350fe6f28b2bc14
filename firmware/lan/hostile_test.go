package lan

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"subnetd/firmware/lan/leases"
	"subnetd/firmware/notice"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// server is a DHCP server with a clock of its own.
type server struct {
	*dhcp
	at  time.Time
	log *bytes.Buffer
}

func newServer(t testing.TB, dir string) *server {
	s := &server{at: time.Unix(1700000000, 0), log: &bytes.Buffer{}}
	log := slog.New(slog.NewTextHandler(s.log, nil))
	now := func() time.Time { return s.at }
	s.dhcp = &dhcp{facts: facts{Default().Router, ""}, keep: filepath.Join(dir, "leases"), tell: filepath.Join(dir, "running"), log: log, notice: notice.New(log, now), now: now}
	c := Default()
	s.open(leases.Config{Router: c.Router, First: c.First, Last: c.Last, Static: c.Static})
	return s
}

func mac(n int) net.HardwareAddr {
	return net.HardwareAddr{2, 0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}

func message(hw net.HardwareAddr, kind dhcpv4.MessageType, modifiers ...dhcpv4.Modifier) []byte {
	m, err := dhcpv4.New(append(modifiers, dhcpv4.WithHwAddr(hw), dhcpv4.WithMessageType(kind))...)
	if err != nil {
		panic(err)
	}
	return m.ToBytes()
}

// join has a device ask, as udhcpc does; the zero Addr: it got nothing.
func (s *server) join(hw net.HardwareAddr) netip.Addr {
	offer := s.reply(message(hw, dhcpv4.MessageTypeDiscover))
	if offer == nil {
		return netip.Addr{}
	}
	ack := s.reply(message(hw, dhcpv4.MessageTypeRequest, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(offer.YourIPAddr)), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(offer.ServerIdentifier()))))
	if ack == nil || ack.MessageType() != dhcpv4.MessageTypeAck {
		return netip.Addr{}
	}
	return addrOf(ack.YourIPAddr)
}

func (s *server) renews(hw net.HardwareAddr, addr netip.Addr) bool {
	ack := s.reply(message(hw, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(addr.AsSlice())))
	return ack != nil && ack.MessageType() == dhcpv4.MessageTypeAck && addrOf(ack.YourIPAddr) == addr
}

// writes does what the server does between two messages, and counts the writes.
func (s *server) writes() int {
	if !s.due() {
		return 0
	}
	if err := s.write(); err != nil {
		panic(err)
	}
	return 1
}

// TestIdleDay is a day in which nothing new comes: devices renew, one restarts, one is
// silent. Nothing is written to flash.
func TestIdleDay(t *testing.T) {
	s := newServer(t, t.TempDir())
	addrs := map[int]netip.Addr{}
	written := 0
	for i := range 20 {
		addrs[i] = s.join(mac(i))
		s.at = s.at.Add(leases.Short / 2)
		if !s.renews(mac(i), addrs[i]) {
			t.Fatalf("device %d does not renew", i)
		}
		written += s.writes()
	}
	if written == 0 || written > 20 {
		t.Errorf("20 new devices made %d writes", written)
	}
	s.at = s.at.Add(writeApart)
	s.writes()
	var before, after syscall.Stat_t
	if err := syscall.Stat(s.keep, &before); err != nil {
		t.Fatal(err)
	}
	for minute := range 24 * 60 {
		s.at = s.at.Add(time.Minute)
		for i := range 19 {
			if minute%360 == i*7 && !s.renews(mac(i), addrs[i]) {
				t.Errorf("device %d does not renew", i)
			}
		}
		if minute == 700 {
			if got := s.join(mac(3)); got != addrs[3] {
				t.Errorf("a device that restarts gets %v, not %v", got, addrs[3])
			}
		}
		if n := s.writes(); n != 0 {
			t.Errorf("minute %d writes to flash", minute)
		}
	}
	if err := syscall.Stat(s.keep, &after); err != nil || before.Ino != after.Ino || before.Mtim != after.Mtim {
		t.Errorf("the file is another: %v", err)
	}
	t.Logf("24 idle hours, 20 devices: 0 bytes written; %d bytes of leases before", before.Size)
}

// TestStarvation: ten thousand invented devices in an hour.
func TestStarvation(t *testing.T) {
	s := newServer(t, t.TempDir())
	known := map[int]netip.Addr{}
	for i := range 10 {
		known[i] = s.join(mac(i))
		s.at = s.at.Add(leases.Short / 2)
		if !s.renews(mac(i), known[i]) {
			t.Fatal("no lease")
		}
	}
	s.at = s.at.Add(writeApart)
	s.writes()
	got, written := 0, 0
	for i := range 10_000 {
		s.at = s.at.Add(360 * time.Millisecond)
		if s.join(mac(1000 + i)).IsValid() {
			got++
		}
		written += s.writes()
		if i%1_000 == 0 {
			for d, a := range known {
				if again := s.join(mac(d)); again != a {
					t.Fatalf("a known device gets %v, not its %v", again, a)
				}
			}
		}
	}
	if written != 0 || len(s.pool.All()) > s.pool.Size() {
		t.Errorf("%d writes to flash, %d leases in a pool of %d", written, len(s.pool.All()), s.pool.Size())
	}
	if lines := strings.Count(s.log.String(), "\n"); lines > 2 { // an hour: the cause is said again once
		t.Errorf("%d lines in the log:\n%s", lines, s.log)
	}
	t.Logf("10,000 invented devices, %d got a lease; 10 known ones kept theirs; 0 bytes written; the log: %s", got, s.log)
}

// TestNoise: what is no DHCP is told once, and answered never.
func TestNoise(t *testing.T) {
	s := newServer(t, t.TempDir())
	r := rand.New(rand.NewPCG(1, 2))
	whole := message(mac(1), dhcpv4.MessageTypeDiscover, dhcpv4.WithOption(dhcpv4.OptHostName("printer")))
	for i := range 5_000 {
		b := bytes.Clone(whole)
		for range 1 + r.IntN(8) {
			b[r.IntN(len(b))] = byte(r.Uint32())
		}
		s.reply(b[:r.IntN(len(b)+1)])
		_ = i
	}
	for _, strange := range [][]byte{
		message(net.HardwareAddr{1, 0, 0, 0, 0, 1}, dhcpv4.MessageTypeDiscover),
		message(net.HardwareAddr{0, 0, 0, 0, 0, 0}, dhcpv4.MessageTypeDiscover),
		message(mac(1), dhcpv4.MessageTypeDiscover, dhcpv4.WithGatewayIP(net.IPv4(10, 0, 0, 1))),
		message(mac(1), dhcpv4.MessageTypeOffer),
		message(mac(1), dhcpv4.MessageTypeRequest, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(192, 168, 77, 150))), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(192, 168, 77, 9)))),
		message(mac(1), dhcpv4.MessageTypeRequest),
	} {
		if a := s.reply(strange); a != nil {
			t.Errorf("answered: %v", a.Summary())
		}
	}
	if lines := strings.Count(s.log.String(), "\n"); lines > 6 {
		t.Errorf("%d lines in the log:\n%s", lines, s.log)
	}
	if len(s.pool.All()) > s.pool.Size() {
		t.Error("the pool has grown")
	}
}

func TestAnswers(t *testing.T) {
	s := newServer(t, t.TempDir())
	a := s.join(mac(1))
	outside := s.reply(message(mac(2), dhcpv4.MessageTypeRequest, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(10, 1, 2, 3)))))
	if outside == nil || outside.MessageType() != dhcpv4.MessageTypeNak || !outside.IsBroadcast() {
		t.Errorf("a device of another network is told %v", outside)
	}
	taken := s.reply(message(mac(2), dhcpv4.MessageTypeRequest, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(a.AsSlice()))))
	if taken == nil || taken.MessageType() != dhcpv4.MessageTypeNak {
		t.Errorf("a device that wants another's address is told %v", taken)
	}
	inform := s.reply(message(mac(3), dhcpv4.MessageTypeInform, dhcpv4.WithClientIP(net.IPv4(192, 168, 77, 5))))
	if inform == nil || !inform.YourIPAddr.IsUnspecified() || inform.IPAddressLeaseTime(0) != 0 || len(inform.DNS()) != 1 {
		t.Errorf("a device with an address of its own is told %v", inform)
	}
	id := []byte{1, 2, 3, 4}
	offer := s.reply(message(mac(4), dhcpv4.MessageTypeDiscover, dhcpv4.WithOption(dhcpv4.OptClientIdentifier(id))))
	if !bytes.Equal(offer.Options.Get(dhcpv4.OptionClientIdentifier), id) {
		t.Error("the client's identifier does not come back (RFC 6842)")
	}
	s.reply(message(mac(1), dhcpv4.MessageTypeDecline, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(a.AsSlice())), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(192, 168, 77, 1)))))
	if b := s.join(mac(1)); b == a || !b.IsValid() {
		t.Errorf("after it found %v in use, the device gets %v", a, b)
	}
}

func TestRestart(t *testing.T) {
	dir := t.TempDir()
	s := newServer(t, dir)
	a := s.join(mac(1))
	s.at = s.at.Add(leases.Short / 2)
	s.renews(mac(1), a)
	if err := s.write(); err != nil {
		t.Fatal(err)
	}
	s = newServer(t, dir)
	if !s.renews(mac(1), a) {
		t.Error("after a restart a known device loses its address")
	}
	if err := os.WriteFile(s.keep, []byte("\x00\xff"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = newServer(t, dir)
	if !strings.Contains(s.log.String(), "are not") || !s.join(mac(1)).IsValid() {
		t.Errorf("with a damaged file: %s", s.log)
	}
}

func FuzzReply(f *testing.F) {
	f.Add(message(mac(1), dhcpv4.MessageTypeDiscover))
	f.Add(message(mac(1), dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(net.IPv4(192, 168, 77, 120)), dhcpv4.WithOption(dhcpv4.OptHostName(fmt.Sprint("x", 1)))))
	s := newServer(f, f.TempDir())
	f.Fuzz(func(t *testing.T, b []byte) {
		s.at = s.at.Add(time.Second)
		if a := s.reply(b); a != nil {
			if _, err := dhcpv4.FromBytes(a.ToBytes()); err != nil {
				t.Errorf("an answer that nobody can read: %v", err)
			}
		}
		if len(s.pool.All()) > s.pool.Size() {
			t.Error("the pool has grown")
		}
	})
}
