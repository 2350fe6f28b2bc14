package uplink

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

var (
	serverA = &dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: net.HardwareAddr{2, 0, 0, 0, 0, 0xa}}
	serverB = &dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: net.HardwareAddr{2, 0, 0, 0, 0, 0xb}}
)

// gives is a message of a server that gives an address and a prefix.
func gives(c *v6, kind dhcpv6.MessageType, server dhcpv6.DUID, change func(na *dhcpv6.OptIANA, pd *dhcpv6.OptIAPD)) *dhcpv6.Message {
	m := &dhcpv6.Message{MessageType: kind, TransactionID: c.xid}
	m.AddOption(dhcpv6.OptClientID(c.duid()))
	m.AddOption(dhcpv6.OptServerID(server))
	m.AddOption(dhcpv6.OptDNS(net.ParseIP("2001:db8::53"), net.ParseIP("ff02::1")))
	na := &dhcpv6.OptIANA{IaId: c.id(), T1: 30 * time.Minute, T2: 48 * time.Minute}
	na.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP("2001:db8::100"), PreferredLifetime: time.Hour, ValidLifetime: 2 * time.Hour})
	pd := &dhcpv6.OptIAPD{IaId: c.id(), T1: 30 * time.Minute, T2: 48 * time.Minute}
	pd.Options.Add(&dhcpv6.OptIAPrefix{Prefix: &net.IPNet{IP: net.ParseIP("2001:db8:1::"), Mask: net.CIDRMask(56, 128)}, PreferredLifetime: time.Hour, ValidLifetime: 2 * time.Hour})
	if change != nil {
		change(na, pd)
	}
	m.AddOption(na)
	m.AddOption(pd)
	return m
}

func bind6(t *testing.T) *v6 {
	t.Helper()
	c := newV6(ourMAC, least)
	c.up(0)
	if say := c.tick(0); say.send.MessageType != dhcpv6.MessageTypeSolicit || len(say.send.Options.IAPD()) != 1 {
		t.Fatalf("first it says %v", say.send)
	}
	if say := c.heard(gives(c, dhcpv6.MessageTypeAdvertise, serverA, nil), 0); say.send != nil || say.trouble != "" {
		t.Fatalf("it does not wait for other servers: %+v", say)
	}
	say := c.tick(c.wake)
	if say.send == nil || say.send.MessageType != dhcpv6.MessageTypeRequest || !say.send.Options.ServerID().Equal(serverA) || len(say.send.Options.OneIAPD().Options.Prefixes()) != 1 {
		t.Fatalf("then it says %+v", say)
	}
	c.heard(gives(c, dhcpv6.MessageTypeReply, serverA, nil), 0)
	if c.stage != bound || len(c.lease.prefixes) != 1 || len(c.lease.addrs) != 1 || len(c.lease.resolvers) != 1 {
		t.Fatalf("%v with %+v", c.stage, c.lease)
	}
	return c
}

// TestLife6 is a prefix that nobody renews: RFC 8415, 18.2.4, 18.2.5 and 15.
func TestLife6(t *testing.T) {
	c := bind6(t)
	var story []string
	for len(story) < 200 && (len(story) == 0 || !strings.Contains(story[len(story)-1], "SOLICIT")) {
		now := c.wake
		if say := c.tick(now); say.send != nil {
			story = append(story, fmt.Sprintf("%v %v %v", now, say.send.MessageType, say.send.Options.ServerID() != nil))
		}
	}
	has := func(want string) {
		t.Helper()
		for _, s := range story {
			if s == want {
				return
			}
		}
		t.Errorf("no %q in\n%s", want, strings.Join(story, "\n"))
	}
	has("30m0s RENEW true")
	has("30m9s RENEW true") // 10 s, less a tenth
	has("48m0s REBIND false")
	has("2h0m0s SOLICIT false")
	if c.holds() || len(c.lease.prefixes) != 0 {
		t.Error("it still holds what is over")
	}
	if len(story) > 40 {
		t.Errorf("%d messages in two hours", len(story))
	}
}

func TestBest6(t *testing.T) {
	c := newV6(ourMAC, least)
	c.up(0)
	c.tick(0)
	c.heard(gives(c, dhcpv6.MessageTypeAdvertise, serverB, func(_ *dhcpv6.OptIANA, pd *dhcpv6.OptIAPD) {
		pd.Options = dhcpv6.PDOptions{}
		pd.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoPrefixAvail})
	}), 0)
	c.heard(gives(c, dhcpv6.MessageTypeAdvertise, serverA, nil), 0)
	if say := c.tick(c.wake); !say.send.Options.ServerID().Equal(serverA) {
		t.Error("the server without a prefix is asked")
	}
	asked := 1
	for c.stage == requesting {
		c.tick(c.wake)
		asked++
	}
	if asked != timings[requesting].count+1 || c.stage != selecting || c.offer != nil {
		t.Errorf("a server that offers and does not give is asked %d times, then %v", asked, c.stage)
	}
}

func TestTaken6(t *testing.T) {
	c := bind6(t)
	c.tick(c.wake)
	c.heard(gives(c, dhcpv6.MessageTypeReply, serverB, nil), c.wake)
	if c.stage != renewing {
		t.Error("another server renews")
	}
	say := c.heard(gives(c, dhcpv6.MessageTypeReply, serverA, func(na *dhcpv6.OptIANA, pd *dhcpv6.OptIAPD) {
		na.Options.Addresses()[0].ValidLifetime, na.Options.Addresses()[0].PreferredLifetime = 0, 0
		pd.Options = dhcpv6.PDOptions{}
		pd.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoBinding})
	}), c.wake)
	if c.holds() || c.stage != selecting || say.trouble == "" {
		t.Errorf("what was taken back is held: %v", c.stage)
	}
}

// TestHint6: after a boot the prefix of before is asked for; without one, a size.
func TestHint6(t *testing.T) {
	file := filepath.Join(t.TempDir(), "prefix")
	for text, want := range map[string]string{"": "::/56", "2001:db8:1::/56\n": "2001:db8:1::/56", "2001:db8:1:5::/60": "2001:db8:1::/60",
		"192.0.2.0/24": "::/56", "fe80::/64": "::/56", "2001:db8::1/128": "::/56", "nonsense": "::/56"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c := newV6(ourMAC, least)
		c.hint = readPrefix(file)
		c.up(0)
		asked := c.tick(0).send.Options.OneIAPD().Options.Prefixes()
		if len(asked) != 1 || asked[0].Prefix.String() != want {
			t.Errorf("%q: %v, want %s", text, asked, want)
		}
	}
}

func TestLink6(t *testing.T) {
	c := bind6(t)
	c.down()
	if c.holds() || c.wake != never {
		t.Error("it holds a prefix without a link")
	}
	c.up(time.Minute)
	if say := c.tick(c.wake); say.send.MessageType != dhcpv6.MessageTypeRebind || len(say.send.Options.OneIAPD().Options.Prefixes()) != 1 {
		t.Errorf("after the link was gone it says %v", say.send)
	}
}

func TestRogue6(t *testing.T) {
	for name, change := range map[string]func(*dhcpv6.OptIANA, *dhcpv6.OptIAPD){
		"preferred for longer than valid": func(_ *dhcpv6.OptIANA, pd *dhcpv6.OptIAPD) {
			pd.Options.Prefixes()[0].PreferredLifetime = 3 * time.Hour
		},
		"no lifetime": func(_ *dhcpv6.OptIANA, pd *dhcpv6.OptIAPD) { pd.Options.Prefixes()[0].ValidLifetime = 0 },
		"another's":   func(_ *dhcpv6.OptIANA, pd *dhcpv6.OptIAPD) { pd.IaId = [4]byte{9, 9, 9, 9} },
		"of the link": func(_ *dhcpv6.OptIANA, pd *dhcpv6.OptIAPD) {
			pd.Options.Prefixes()[0].Prefix.IP = net.ParseIP("fe80::")
		},
		"multicast": func(_ *dhcpv6.OptIANA, pd *dhcpv6.OptIAPD) {
			pd.Options.Prefixes()[0].Prefix.IP = net.ParseIP("ff00::")
		},
		"everything": func(_ *dhcpv6.OptIANA, pd *dhcpv6.OptIAPD) {
			pd.Options.Prefixes()[0].Prefix.Mask = net.CIDRMask(0, 128)
		},
	} {
		c := newV6(ourMAC, least)
		m := gives(c, dhcpv6.MessageTypeReply, serverA, change)
		if l := offerOf(m, c.id(), 0); len(l.prefixes) != 0 || len(l.addrs) != 1 {
			t.Errorf("%s: %+v", name, l)
		}
	}
	c := newV6(ourMAC, least)
	many := gives(c, dhcpv6.MessageTypeReply, serverA, func(_ *dhcpv6.OptIANA, pd *dhcpv6.OptIAPD) {
		for i := range 200 {
			p := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 9, byte(i)})
			pd.Options.Add(&dhcpv6.OptIAPrefix{Prefix: &net.IPNet{IP: p.AsSlice(), Mask: net.CIDRMask(56, 128)}, PreferredLifetime: time.Hour, ValidLifetime: time.Hour})
		}
	})
	if l := offerOf(many, c.id(), 0); len(l.prefixes) != most6 {
		t.Errorf("%d prefixes", len(l.prefixes))
	}
	c.up(0)
	c.tick(0)
	for name, m := range map[string]*dhcpv6.Message{
		"of another time":  {MessageType: dhcpv6.MessageTypeAdvertise, TransactionID: dhcpv6.TransactionID{9}},
		"of nobody":        {MessageType: dhcpv6.MessageTypeAdvertise, TransactionID: c.xid},
		"not asked for":    gives(c, dhcpv6.MessageTypeReply, serverA, nil),
		"of a reconfigure": gives(c, dhcpv6.MessageTypeReconfigure, serverA, nil),
	} {
		if say := c.heard(m, 0); say.send != nil || c.offer != nil || c.stage != selecting {
			t.Errorf("%s: %+v", name, say)
		}
	}
}

func FuzzHeard6(f *testing.F) {
	c := newV6(ourMAC, least)
	f.Add(byte(selecting), gives(c, dhcpv6.MessageTypeAdvertise, serverA, nil).ToBytes())
	f.Add(byte(renewing), gives(c, dhcpv6.MessageTypeReply, serverA, nil).ToBytes())
	f.Fuzz(func(t *testing.T, at byte, b []byte) {
		m, err := dhcpv6.MessageFromBytes(b)
		if err != nil {
			return
		}
		c := newV6(ourMAC, least)
		c.up(0)
		c.tick(0)
		c.offer = gives(c, dhcpv6.MessageTypeAdvertise, serverA, nil)
		c.lease = offerOf(c.offer, c.id(), 0)
		c.stage = stage(at) % (rebinding + 1)
		m.TransactionID = c.xid
		c.heard(m, time.Hour)
		for range 5 {
			c.tick(c.wake)
		}
		if len(c.lease.prefixes) > most6 || len(c.lease.addrs) > most6 {
			t.Errorf("%+v", c.lease)
		}
	})
}
