package uplink

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

var (
	ourMAC = net.HardwareAddr{2, 0, 0, 0, 0, 9}
	good4  = map[string]any{"yiaddr": "198.51.100.50", "server": "198.51.100.1", "router": "198.51.100.1", "mask": 24, "lease": time.Hour}
)

// least is chance that always falls low.
func least(time.Duration) time.Duration { return 0 }

// from4 is a message of a server to a client; change is what differs from good4.
func from4(c *v4, kind dhcpv4.MessageType, change map[string]any) *dhcpv4.DHCPv4 {
	m := &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootReply, HWType: 1, TransactionID: c.xid, ClientHWAddr: c.mac, Options: dhcpv4.Options{}}
	m.UpdateOption(dhcpv4.OptMessageType(kind))
	for key := range good4 {
		v, changed := change[key]
		if !changed {
			v = good4[key]
		}
		switch v := v.(type) {
		case nil:
		case int:
			m.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(v, 32)))
		case time.Duration:
			m.UpdateOption(dhcpv4.OptIPAddressLeaseTime(v))
		case string:
			ip := net.ParseIP(v)
			switch key {
			case "yiaddr":
				m.YourIPAddr = ip
			case "server":
				m.UpdateOption(dhcpv4.OptServerIdentifier(ip))
			case "router":
				m.UpdateOption(dhcpv4.OptRouter(ip))
			}
		}
	}
	return m
}

// bind leads a client to its lease.
func bind(t *testing.T, now time.Duration) *v4 {
	t.Helper()
	c := newV4(ourMAC, least)
	if say := c.up(now); say.send.MessageType() != dhcpv4.MessageTypeDiscover {
		t.Fatalf("first it says %v", say.send)
	}
	say := c.heard(from4(c, dhcpv4.MessageTypeOffer, nil), now)
	if say.send == nil || say.send.MessageType() != dhcpv4.MessageTypeRequest || !say.send.RequestedIPAddress().Equal(net.IPv4(198, 51, 100, 50)) || !say.send.ServerIdentifier().Equal(net.IPv4(198, 51, 100, 1)) {
		t.Fatalf("to an offer it says %+v", say)
	}
	if say := c.heard(from4(c, dhcpv4.MessageTypeAck, nil), now); say.trouble != "" || c.stage != bound || !c.holds() {
		t.Fatalf("with a lease: %+v, %v", say, c.stage)
	}
	return c
}

// TestLife4 is a lease that nobody renews: RFC 2131, 4.4.5.
func TestLife4(t *testing.T) {
	c := bind(t, 0)
	var story []string
	for now := time.Duration(0); len(story) < 12; {
		now = c.wake
		say := c.tick(now)
		who := "all"
		if say.direct {
			who = "the server"
		}
		story = append(story, fmt.Sprintf("%v %v %s %v", now, say.send.MessageType(), who, say.send.ClientIPAddr))
	}
	want := `30m0s REQUEST the server 198.51.100.50
41m15s REQUEST the server 198.51.100.50
46m52.5s REQUEST the server 198.51.100.50
49m41.25s REQUEST the server 198.51.100.50
51m5.625s REQUEST the server 198.51.100.50
52m5.625s REQUEST the server 198.51.100.50
52m30s REQUEST all 198.51.100.50
56m15s REQUEST all 198.51.100.50
58m7.5s REQUEST all 198.51.100.50
59m7.5s REQUEST all 198.51.100.50
1h0m0s DISCOVER all 0.0.0.0
1h0m3s DISCOVER all 0.0.0.0`
	if got := strings.Join(story, "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if c.holds() {
		t.Error("it still holds a lease that is over")
	}
}

func TestAsk4(t *testing.T) {
	c := newV4(ourMAC, least)
	c.up(0)
	var waits []time.Duration
	for now := time.Duration(0); len(waits) < 7; {
		waits = append(waits, c.wake-now)
		now = c.wake
		c.tick(now)
	}
	if want := []time.Duration{3e9, 7e9, 15e9, 31e9, 63e9, 63e9, 63e9}; !slices.Equal(waits, want) {
		t.Errorf("it asks again after %v", waits)
	}
	c.heard(from4(c, dhcpv4.MessageTypeOffer, nil), 0)
	asked := 0
	for c.stage == requesting {
		c.tick(c.wake)
		asked++
	}
	if asked != requests4 || c.stage != selecting {
		t.Errorf("a server that offers and does not give is asked %d times, then %v", asked, c.stage)
	}
}

func TestRenewed4(t *testing.T) {
	c := bind(t, 0)
	c.tick(c.wake)
	if say := c.heard(from4(c, dhcpv4.MessageTypeAck, map[string]any{"server": "198.51.100.2"}), 31*time.Minute); say.trouble == "" || c.stage != renewing {
		t.Errorf("another server renews: %+v", say)
	}
	if say := c.heard(from4(c, dhcpv4.MessageTypeAck, map[string]any{"yiaddr": "198.51.100.51"}), 31*time.Minute); say.trouble == "" {
		t.Error("another address is given for ours")
	}
	c.heard(from4(c, dhcpv4.MessageTypeAck, nil), 31*time.Minute)
	if c.stage != bound || c.lease.until != 91*time.Minute || c.wake != 61*time.Minute {
		t.Errorf("renewed: %v until %v, awake at %v", c.stage, c.lease.until, c.wake)
	}
}

func TestNak4(t *testing.T) {
	c := bind(t, 0)
	c.tick(c.wake)
	c.heard(from4(c, dhcpv4.MessageTypeNak, map[string]any{"server": "198.51.100.66"}), time.Hour/2)
	if c.stage != renewing {
		t.Error("a stranger took the lease away")
	}
	c.heard(from4(c, dhcpv4.MessageTypeNak, nil), time.Hour/2)
	if c.holds() || c.stage != selecting || c.wake <= time.Hour/2 {
		t.Errorf("refused: %v, awake at %v", c.stage, c.wake)
	}
}

func TestLink4(t *testing.T) {
	c := bind(t, 0)
	c.down()
	if c.holds() || c.wake != never {
		t.Error("it holds a lease without a link")
	}
	say := c.up(time.Minute)
	if c.stage != rebooting || !say.send.RequestedIPAddress().Equal(net.IPv4(198, 51, 100, 50)) || say.send.ServerIdentifier() != nil || c.holds() {
		t.Errorf("after the link was gone: %v, %v", c.stage, say.send)
	}
	c.tick(c.wake)
	c.tick(c.wake)
	if c.stage != selecting {
		t.Errorf("nobody knows the old lease: %v", c.stage)
	}
	c = bind(t, 0)
	c.down()
	c.up(time.Minute)
	c.heard(from4(c, dhcpv4.MessageTypeAck, map[string]any{"server": "198.51.100.9"}), time.Minute) // any server may confirm
	if c.stage != bound || c.lease.until != 61*time.Minute {
		t.Errorf("confirmed: %v", c.stage)
	}
	c.down()
	if say := c.up(2 * time.Hour); say.send.MessageType() != dhcpv4.MessageTypeDiscover {
		t.Error("a lease that is over is asked for again")
	}
}

// TestRogue4 is what one who is no provider may say.
func TestRogue4(t *testing.T) {
	for name, change := range map[string]map[string]any{
		"no address":          {"yiaddr": "0.0.0.0"},
		"loopback":            {"yiaddr": "127.0.0.1"},
		"multicast":           {"yiaddr": "224.0.0.1"},
		"broadcast":           {"yiaddr": "255.255.255.255"},
		"no server":           {"server": nil},
		"a mask of nothing":   {"mask": 0},
		"the gateway is us":   {"router": "198.51.100.50"},
		"no time":             {"lease": nil},
		"a time that is over": {"lease": time.Duration(0)},
	} {
		c := newV4(ourMAC, least)
		c.up(0)
		if say := c.heard(from4(c, dhcpv4.MessageTypeOffer, change), 0); say.send != nil || say.trouble == "" || c.stage != selecting {
			t.Errorf("%s: %+v", name, say)
		}
	}
	c := newV4(ourMAC, least)
	c.up(0)
	other := from4(c, dhcpv4.MessageTypeOffer, nil)
	other.TransactionID[3] ^= 1
	others := from4(c, dhcpv4.MessageTypeOffer, nil)
	others.ClientHWAddr = net.HardwareAddr{2, 0, 0, 0, 0, 8}
	request := from4(c, dhcpv4.MessageTypeOffer, nil)
	request.OpCode = dhcpv4.OpcodeBootRequest
	for _, m := range []*dhcpv4.DHCPv4{other, others, request, from4(c, dhcpv4.MessageTypeAck, nil), from4(c, dhcpv4.MessageTypeNak, nil)} {
		if say := c.heard(m, 0); say.send != nil || c.stage != selecting {
			t.Errorf("it believes %v", m.Summary())
		}
	}
	c.heard(from4(c, dhcpv4.MessageTypeOffer, nil), 0)
	c.heard(from4(c, dhcpv4.MessageTypeAck, map[string]any{"server": "198.51.100.66"}), 0)
	c.heard(from4(c, dhcpv4.MessageTypeAck, map[string]any{"yiaddr": "198.51.100.66"}), 0)
	c.heard(from4(c, dhcpv4.MessageTypeNak, map[string]any{"server": "198.51.100.66"}), 0)
	if c.stage != requesting {
		t.Errorf("a stranger is believed: %v", c.stage)
	}
}

func TestLeaseOf(t *testing.T) {
	c := newV4(ourMAC, least)
	m := from4(c, dhcpv4.MessageTypeAck, map[string]any{"lease": time.Second})
	if l, err := leaseOf(m, 0); err != nil || l.until != leastLease || l.t1 >= l.t2 || l.t2 >= l.until {
		t.Errorf("a lease of a second: %+v, %v", l, err)
	}
	m = from4(c, dhcpv4.MessageTypeAck, map[string]any{"lease": time.Duration(1<<32-1) * time.Second})
	if l, err := leaseOf(m, 1<<60); err != nil || l.until <= 1<<60 || l.t2 >= l.until {
		t.Errorf("a lease for ever: %+v, %v", l, err)
	}
	m = from4(c, dhcpv4.MessageTypeAck, nil)
	m.UpdateOption(dhcpv4.OptRenewTimeValue(2 * time.Hour))
	m.UpdateOption(dhcpv4.OptRebindingTimeValue(time.Hour))
	if l, _ := leaseOf(m, 0); l.t1 != 30*time.Minute || l.t2 != 52*time.Minute+30*time.Second {
		t.Errorf("times that make no sense: %v, %v", l.t1, l.t2)
	}
	m.UpdateOption(dhcpv4.OptClasslessStaticRoute(&dhcpv4.Route{Dest: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Router: net.IPv4(198, 51, 100, 9)}))
	if l, _ := leaseOf(m, 0); l.gateway != netip.MustParseAddr("198.51.100.9") {
		t.Errorf("routes come first (RFC 3442): %v", l.gateway)
	}
}

func FuzzHeard4(f *testing.F) {
	c := newV4(ourMAC, least)
	c.up(0)
	f.Add(byte(selecting), from4(c, dhcpv4.MessageTypeOffer, nil).ToBytes())
	f.Add(byte(requesting), from4(c, dhcpv4.MessageTypeAck, nil).ToBytes())
	f.Fuzz(func(t *testing.T, at byte, b []byte) {
		m, err := dhcpv4.FromBytes(b)
		if err != nil {
			return
		}
		c := newV4(ourMAC, least)
		c.up(0)
		c.heard(from4(c, dhcpv4.MessageTypeOffer, nil), 0)
		c.stage = stage(at) % (rebinding + 1)
		c.offer = c.lease
		m.TransactionID, m.ClientHWAddr = c.xid, ourMAC
		c.heard(m, time.Hour)
		if c.holds() && (!unicast(c.lease.addr.Addr()) && c.lease.addr.IsValid() || c.lease.t1 > c.lease.t2 || c.lease.t2 > c.lease.until) {
			t.Errorf("%+v", c.lease)
		}
	})
}
