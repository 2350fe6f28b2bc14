package uplink

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// lease4 is what a server of DHCP has given; times since the machine has started.
type lease4 struct {
	addr      netip.Prefix
	gateway   netip.Addr // zero: none
	resolvers []netip.Addr
	clocks    []netip.Addr
	server    netip.Addr
	t1, t2    time.Duration // when to renew, when to ask any server
	until     time.Duration
}

// stage is where a client of RFC 2131 is, figure 5.
type stage int

const (
	off stage = iota // no link
	selecting
	requesting
	rebooting // the link was gone: is the lease still good?
	bound
	renewing
	rebinding
)

// Times of RFC 2131, 4.1 and 4.4.5.
const (
	firstAsk4  = 4 * time.Second
	mostAsk4   = 64 * time.Second
	leastRenew = time.Minute
	requests4  = 4             // until it begins anew
	reboots4   = 2             // until the old lease is given up
	leastLease = time.Minute   // what is shorter is taken as this
	most4      = math.MaxInt32 // seconds of a lease
	never      = time.Duration(math.MaxInt64)
	mostOwn    = 4 // resolvers and clocks of one family
)

// v4 is a client of DHCP for one interface: pure, told the time and given chance. It is
// woken at wake, told what it hears, and says what to send.
type v4 struct {
	mac  net.HardwareAddr
	rand func(time.Duration) time.Duration // from 0 to below it

	stage stage
	xid   dhcpv4.TransactionID
	offer lease4
	lease lease4 // valid from bound to rebinding, and while rebooting
	asks  int    // of this stage
	began time.Duration
	wake  time.Duration
}

// say4 is what a client wants done.
type say4 struct {
	send    *dhcpv4.DHCPv4
	direct  bool   // to the server of the lease, from the lease's address; else to all
	trouble string // for the log
}

func newV4(mac net.HardwareAddr, rand func(time.Duration) time.Duration) *v4 {
	return &v4{mac: mac, rand: rand, wake: never}
}

// holds reports whether there is a lease to use.
func (c *v4) holds() bool { return c.stage == bound || c.stage == renewing || c.stage == rebinding }

// up: the link has come. An old lease is asked for again (RFC 2131, 4.3.2).
func (c *v4) up(now time.Duration) say4 {
	if c.stage != off {
		return say4{}
	}
	if c.lease.addr.IsValid() && now < c.lease.until {
		c.enter(rebooting, now)
	} else {
		c.enter(selecting, now)
	}
	return c.tick(now)
}

// down: the link is gone. The lease is not used meanwhile, as the link may be another
// when it comes back.
func (c *v4) down() { c.stage, c.wake = off, never }

func (c *v4) enter(s stage, now time.Duration) {
	if s != requesting { // the same conversation goes on
		n := uint64(c.rand(1 << 32))
		c.xid = dhcpv4.TransactionID{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
		c.began = now
	}
	c.stage, c.asks, c.wake = s, 0, now
}

// tick does what is due.
func (c *v4) tick(now time.Duration) say4 {
	if c.stage == off || now < c.wake {
		return say4{}
	}
	switch {
	case c.holds() && now >= c.lease.until:
		c.lease = lease4{}
		c.enter(selecting, now)
		say := c.ask(now)
		say.trouble = "the lease is over: no server has renewed it"
		return say
	case c.holds() && now >= c.lease.t2 && c.stage != rebinding:
		c.enter(rebinding, now)
	case c.stage == bound && now >= c.lease.t1:
		c.enter(renewing, now)
	case c.stage == requesting && c.asks >= requests4, c.stage == rebooting && c.asks >= reboots4:
		c.lease = lease4{}
		c.enter(selecting, now)
	}
	return c.ask(now)
}

// ask sends the message of this stage and sets when to send it again.
func (c *v4) ask(now time.Duration) say4 {
	c.asks++
	say := say4{direct: c.stage == renewing}
	switch c.stage {
	case selecting:
		say.send = c.message(now, dhcpv4.MessageTypeDiscover)
		c.wake = now + c.patience()
	case requesting:
		say.send = c.message(now, dhcpv4.MessageTypeRequest)
		say.send.UpdateOption(dhcpv4.OptRequestedIPAddress(c.offer.addr.Addr().AsSlice()))
		say.send.UpdateOption(dhcpv4.OptServerIdentifier(c.offer.server.AsSlice()))
		c.wake = now + c.patience()
	case rebooting:
		say.send = c.message(now, dhcpv4.MessageTypeRequest)
		say.send.UpdateOption(dhcpv4.OptRequestedIPAddress(c.lease.addr.Addr().AsSlice()))
		c.wake = min(now+c.patience(), c.lease.until)
	case renewing:
		say.send = c.message(now, dhcpv4.MessageTypeRequest)
		c.wake = min(now+max(leastRenew, (c.lease.t2-now)/2), c.lease.t2)
	case rebinding:
		say.send = c.message(now, dhcpv4.MessageTypeRequest)
		c.wake = min(now+max(leastRenew, (c.lease.until-now)/2), c.lease.until)
	}
	if c.holds() {
		say.send.ClientIPAddr = c.lease.addr.Addr().AsSlice()
	}
	return say
}

// patience doubles, and is off by a second, so that a street does not ask all at once.
func (c *v4) patience() time.Duration {
	return min(firstAsk4<<min(c.asks-1, 10), mostAsk4) - time.Second + c.rand(2*time.Second)
}

func (c *v4) message(now time.Duration, kind dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	m := &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest, HWType: iana.HWTypeEthernet, TransactionID: c.xid, ClientHWAddr: c.mac,
		NumSeconds: uint16(min((now-c.began)/time.Second, math.MaxUint16)), Options: dhcpv4.Options{},
		ClientIPAddr: net.IPv4zero, YourIPAddr: net.IPv4zero, ServerIPAddr: net.IPv4zero, GatewayIPAddr: net.IPv4zero}
	m.UpdateOption(dhcpv4.OptMessageType(kind))
	m.UpdateOption(dhcpv4.OptMaxMessageSize(1472))
	m.UpdateOption(dhcpv4.OptParameterRequestList(dhcpv4.OptionSubnetMask, dhcpv4.OptionClasslessStaticRoute, dhcpv4.OptionRouter,
		dhcpv4.OptionDomainNameServer, dhcpv4.OptionNTPServers))
	return m
}

// heard takes a message of a server, or of one who says so.
func (c *v4) heard(m *dhcpv4.DHCPv4, now time.Duration) say4 {
	if c.stage == off || c.stage == bound || m.OpCode != dhcpv4.OpcodeBootReply || m.TransactionID != c.xid || m.ClientHWAddr.String() != c.mac.String() {
		return say4{} // for another, or of another time
	}
	switch kind := m.MessageType(); {
	case kind == dhcpv4.MessageTypeOffer && c.stage == selecting:
		return c.offered(m, now)
	case kind == dhcpv4.MessageTypeAck && c.stage != selecting:
		return c.acked(m, now)
	case kind == dhcpv4.MessageTypeNak && c.stage != selecting:
		return c.refused(m, now)
	}
	return say4{}
}

func (c *v4) offered(m *dhcpv4.DHCPv4, now time.Duration) say4 {
	l, err := leaseOf(m, now)
	if err != nil {
		return say4{trouble: "an offer of DHCP makes no sense: " + err.Error()}
	}
	c.offer = l
	c.enter(requesting, now)
	return c.ask(now)
}

func (c *v4) acked(m *dhcpv4.DHCPv4, now time.Duration) say4 {
	l, err := leaseOf(m, now)
	if err != nil {
		return say4{trouble: "a lease of DHCP makes no sense: " + err.Error()}
	}
	if c.stage == requesting && (l.server != c.offer.server || l.addr.Addr() != c.offer.addr.Addr()) ||
		c.stage == renewing && l.server != c.lease.server || c.stage != requesting && l.addr.Addr() != c.lease.addr.Addr() {
		return say4{trouble: "a server of DHCP that was not asked gives a lease"}
	}
	c.lease, c.stage, c.wake = l, bound, l.t1
	return say4{}
}

// refused: the address is not ours any more, says the one who gave it, or after a restart,
// or when all were asked, anybody.
func (c *v4) refused(m *dhcpv4.DHCPv4, now time.Duration) say4 {
	server := addr4(m.ServerIdentifier())
	if c.stage == requesting && server != c.offer.server || c.stage == renewing && server != c.lease.server {
		return say4{trouble: "a server of DHCP that was not asked refuses the address"}
	}
	c.lease = lease4{}
	c.enter(selecting, now)
	c.wake = now + time.Second + c.rand(time.Second) // a server that refuses always is not asked without end
	return say4{}
}

// leaseOf reads an offer or a lease.
func leaseOf(m *dhcpv4.DHCPv4, now time.Duration) (lease4, error) {
	l := lease4{server: addr4(m.ServerIdentifier()), resolvers: unicasts(m.DNS()), clocks: unicasts(m.NTPServers())}
	addr, ones := addr4(m.YourIPAddr), 32
	if mask := m.SubnetMask(); mask != nil {
		n, bits := mask.Size()
		if bits != 32 || n < 2 {
			return l, fmt.Errorf("the mask %v is none", mask)
		}
		ones = n
	}
	if !unicast(addr) || !l.server.IsValid() {
		return l, errors.New("it has no address of a host, or of its server")
	}
	l.addr = netip.PrefixFrom(addr, ones)
	l.gateway = gatewayOf(m)
	if l.gateway == addr {
		return l, errors.New("the gateway has the address that is ours")
	}
	length := m.IPAddressLeaseTime(0)
	if length == 0 {
		return l, errors.New("it does not say how long it lasts")
	}
	length = max(leastLease, min(length, most4*time.Second))
	t1, t2 := m.IPAddressRenewalTime(0), m.IPAddressRebindingTime(0)
	if t1 <= 0 || t1 >= t2 || t2 >= length {
		t1, t2 = length/2, length/8*7
	}
	l.t1, l.t2, l.until = now+max(t1, leastLease/2), now+max(t2, leastLease/4*3), now+length
	return l, nil
}

// gatewayOf is the way out: of the routes where there are some (RFC 3442), else the first
// router.
func gatewayOf(m *dhcpv4.DHCPv4) netip.Addr {
	if routes := m.ClasslessStaticRoute(); routes != nil {
		for _, r := range routes {
			if ones, _ := r.Dest.Mask.Size(); ones == 0 && unicast(addr4(r.Router)) {
				return addr4(r.Router)
			}
		}
		return netip.Addr{}
	}
	if all := unicasts(m.Router()); len(all) > 0 {
		return all[0]
	}
	return netip.Addr{}
}

func addr4(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip.To4())
	return a
}

// unicast reports whether a host may have the address.
func unicast(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && !(a.Is4() && (a.As4()[0] == 0 || a.As4()[0] >= 240))
}

func unicasts(ips []net.IP) (out []netip.Addr) {
	for _, ip := range ips {
		a, _ := netip.AddrFromSlice(ip)
		if a = a.Unmap(); unicast(a) && len(out) < mostOwn {
			out = append(out, a)
		}
	}
	return out
}
