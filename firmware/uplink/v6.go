package uplink

import (
	"cmp"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// lease6 is what a server of DHCPv6 has given.
type lease6 struct {
	server    dhcpv6.DUID
	addrs     []given6
	prefixes  []given6
	resolvers []netip.Addr
	clocks    []netip.Addr
	t1, t2    time.Duration
	until     time.Duration // when all of it is over
}

// given6 is an address, as a prefix of 128 bits, or a delegated prefix.
type given6 struct {
	net              netip.Prefix
	preferred, valid time.Duration // until
}

// timing is how a message is sent again: RFC 8415, 7.6 and 15.
type timing struct {
	first, most time.Duration
	count       int // times; 0: without end
}

var timings = map[stage]timing{
	selecting:  {time.Second, time.Hour, 0}, // SOL_MAX_RT: RFC 8415
	requesting: {time.Second, 30 * time.Second, 10},
	renewing:   {10 * time.Second, 10 * time.Minute, 0},
	rebinding:  {10 * time.Second, 10 * time.Minute, 0},
}

const (
	most6      = 8 // addresses and prefixes each
	bestServer = 255
)

// v6 is a client of DHCPv6 for an address and a delegated prefix: pure, as v4 is.
type v6 struct {
	mac  net.HardwareAddr
	rand func(time.Duration) time.Duration
	hint netip.Prefix // that was delegated before; none, if it is not valid

	stage stage
	xid   dhcpv6.TransactionID
	offer *dhcpv6.Message // the best so far
	lease lease6
	asks  int
	wait  time.Duration // RT of the last message
	began time.Duration
	wake  time.Duration
}

type say6 struct {
	send    *dhcpv6.Message
	trouble string
}

func newV6(mac net.HardwareAddr, rand func(time.Duration) time.Duration) *v6 {
	return &v6{mac: mac, rand: rand, wake: never}
}

func (c *v6) holds() bool { return c.stage == bound || c.stage == renewing || c.stage == rebinding }

// up: the link has come. What was given is asked for again at once, of any server: the link
// may be another (RFC 8415, 18.2.12).
func (c *v6) up(now time.Duration) {
	if c.stage != off {
		return
	}
	if c.lease.server != nil && now < c.lease.until {
		c.enter(rebinding, now)
	} else {
		c.enter(selecting, now)
		c.wake = now + c.rand(time.Second) // SOL_MAX_DELAY
	}
}

func (c *v6) down() { c.stage, c.wake = off, never }

func (c *v6) enter(s stage, now time.Duration) {
	n := uint64(c.rand(1 << 24))
	c.xid = dhcpv6.TransactionID{byte(n >> 16), byte(n >> 8), byte(n)}
	c.stage, c.asks, c.wait, c.began, c.wake = s, 0, 0, now, now
	if s == selecting {
		c.offer = nil
	}
}

// tick does what is due.
func (c *v6) tick(now time.Duration) say6 {
	if c.stage == off || now < c.wake {
		return say6{}
	}
	switch {
	case c.holds() && now >= c.lease.until:
		c.lease = lease6{}
		c.enter(selecting, now)
		say := c.ask(now)
		say.trouble = "the prefix is over: no server has renewed it"
		return say
	case c.holds() && now >= c.lease.t2 && c.stage != rebinding:
		c.enter(rebinding, now)
	case c.stage == bound && now >= c.lease.t1:
		c.enter(renewing, now)
	case c.stage == selecting && c.offer != nil:
		c.enter(requesting, now)
	case c.stage == requesting && c.asks >= timings[requesting].count:
		c.enter(selecting, now)
	}
	if c.stage == bound { // something has run out, but not all
		c.settle(now)
		return say6{}
	}
	return c.ask(now)
}

// settle sets when a client that is bound wakes: to renew, or when a part runs out.
func (c *v6) settle(now time.Duration) {
	c.wake = c.lease.t1
	for _, g := range slices.Concat(c.lease.addrs, c.lease.prefixes) {
		if g.valid > now {
			c.wake = min(c.wake, g.valid)
		}
	}
}

func (c *v6) ask(now time.Duration) say6 {
	t := timings[c.stage]
	c.asks++
	c.wait = min(max(t.first, 2*c.wait), t.most)
	wait := c.wait - c.wait/10 + c.rand(c.wait/5) // RAND: ±0.1
	if c.stage == selecting && c.asks == 1 {
		wait = c.wait + c.rand(c.wait/10) // 18.2.1
	}
	c.wake = now + wait
	if c.stage == renewing {
		c.wake = min(c.wake, c.lease.t2)
	}
	if c.stage == rebinding {
		c.wake = min(c.wake, c.lease.until)
	}
	return say6{send: c.message(now)}
}

func (c *v6) message(now time.Duration) *dhcpv6.Message {
	kinds := map[stage]dhcpv6.MessageType{selecting: dhcpv6.MessageTypeSolicit, requesting: dhcpv6.MessageTypeRequest,
		renewing: dhcpv6.MessageTypeRenew, rebinding: dhcpv6.MessageTypeRebind}
	m := &dhcpv6.Message{MessageType: kinds[c.stage], TransactionID: c.xid}
	m.AddOption(dhcpv6.OptClientID(c.duid()))
	m.AddOption(dhcpv6.OptElapsedTime(min(now-c.began, 65535*10*time.Millisecond)))
	m.AddOption(dhcpv6.OptRequestedOption(dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionNTPServer, dhcpv6.OptionSolMaxRT))
	switch c.stage {
	case requesting:
		m.AddOption(dhcpv6.OptServerID(c.offer.Options.ServerID()))
		c.want(m, offerOf(c.offer, c.id(), now))
	case renewing:
		m.AddOption(dhcpv6.OptServerID(c.lease.server))
		c.want(m, c.lease)
	case rebinding:
		c.want(m, c.lease)
	default:
		c.want(m, lease6{})
	}
	return m
}

// want says which address and which prefix are asked for: those of the lease, if any.
func (c *v6) want(m *dhcpv6.Message, l lease6) {
	na, pd := &dhcpv6.OptIANA{IaId: c.id()}, &dhcpv6.OptIAPD{IaId: c.id()}
	for _, a := range l.addrs {
		na.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.net.Addr().AsSlice()})
	}
	for _, p := range l.prefixes {
		pd.Options.Add(&dhcpv6.OptIAPrefix{Prefix: &net.IPNet{IP: p.net.Addr().AsSlice(), Mask: net.CIDRMask(p.net.Bits(), 128)}})
	}
	if len(l.prefixes) == 0 { // a wish (18.2.1): the one of before, or a size, as a home has more than one network
		wish := netip.PrefixFrom(netip.IPv6Unspecified(), 56)
		if c.hint.IsValid() {
			wish = c.hint
		}
		pd.Options.Add(&dhcpv6.OptIAPrefix{Prefix: &net.IPNet{IP: wish.Addr().AsSlice(), Mask: net.CIDRMask(wish.Bits(), 128)}})
	}
	m.AddOption(na)
	m.AddOption(pd)
}

// duid is the same for ever without being kept (RFC 8415, 11.4), and so is id.
func (c *v6) duid() dhcpv6.DUID {
	return &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: c.mac}
}

func (c *v6) id() [4]byte { return [4]byte(c.mac[len(c.mac)-4:]) }

// heard takes a message of a server, or of one who says so (RFC 8415, 16.3 and 16.10).
func (c *v6) heard(m *dhcpv6.Message, now time.Duration) say6 {
	if c.stage == off || c.stage == bound || m.TransactionID != c.xid {
		return say6{}
	}
	client, server := m.Options.ClientID(), m.Options.ServerID()
	if client == nil || !client.Equal(c.duid()) || server == nil {
		return say6{trouble: "a message of DHCPv6 does not say of whom, or for whom it is"}
	}
	switch {
	case m.MessageType == dhcpv6.MessageTypeAdvertise && c.stage == selecting:
		return c.advertised(m, now)
	case m.MessageType == dhcpv6.MessageTypeReply && c.stage == requesting && server.Equal(c.offer.Options.ServerID()),
		m.MessageType == dhcpv6.MessageTypeReply && c.stage == renewing && server.Equal(c.lease.server),
		m.MessageType == dhcpv6.MessageTypeReply && c.stage == rebinding:
		return c.replied(m, now)
	}
	return say6{}
}

// advertised keeps the best offer until the first wait is over, and takes any after that
// (18.2.1).
func (c *v6) advertised(m *dhcpv6.Message, now time.Duration) say6 {
	l := offerOf(m, c.id(), now)
	if len(l.addrs)+len(l.prefixes) == 0 {
		return say6{trouble: "a server of DHCPv6 has nothing to give"}
	}
	if c.offer == nil || better(m, c.offer, c.id(), now) {
		c.offer = m
	}
	if c.asks > 1 || m.Options.Preference() == bestServer {
		c.enter(requesting, now)
		return c.ask(now)
	}
	return say6{}
}

// better: who gives a prefix is better, then who says so.
func better(a, b *dhcpv6.Message, id [4]byte, now time.Duration) bool {
	has := func(m *dhcpv6.Message) int { return min(1, len(offerOf(m, id, now).prefixes)) }
	return cmp.Or(cmp.Compare(has(a), has(b)), cmp.Compare(a.Options.Preference(), b.Options.Preference())) > 0
}

func (c *v6) replied(m *dhcpv6.Message, now time.Duration) say6 {
	if s := m.Options.Status(); s != nil && s.StatusCode != iana.StatusSuccess {
		return say6{trouble: "a server of DHCPv6 refuses: " + s.StatusCode.String()} // asked again when it is due
	}
	l := offerOf(m, c.id(), now)
	if len(l.addrs)+len(l.prefixes) == 0 {
		c.lease = lease6{}
		c.enter(selecting, now)
		c.wake = now + timings[renewing].first
		return say6{trouble: "a server of DHCPv6 takes back what it gave"}
	}
	c.lease, c.stage = l, bound
	c.settle(now)
	return say6{}
}

// offerOf reads what a message gives for the one id that we use.
func offerOf(m *dhcpv6.Message, id [4]byte, now time.Duration) lease6 {
	l := lease6{server: m.Options.ServerID(), resolvers: unicasts(m.Options.DNS()), clocks: unicasts(m.Options.NTPServers())}
	t1, t2, shortest := never, never, never
	times := func(a, b time.Duration) {
		if a > 0 && a <= b {
			t1, t2 = min(t1, a), min(t2, b)
		}
	}
	take := func(into *[]given6, p netip.Prefix, preferred, valid time.Duration) {
		if valid <= 0 || preferred > valid || !p.IsValid() || !p.Addr().Is6() || !p.Addr().IsGlobalUnicast() || len(*into) >= most6 { // 21.6, 21.22
			return
		}
		shortest = min(shortest, preferred)
		*into = append(*into, given6{p, now + preferred, now + valid})
		l.until = max(l.until, now+valid)
	}
	for _, ia := range m.Options.IANA() {
		if ia.IaId == id && good(ia.Options.Status()) {
			times(ia.T1, ia.T2)
			for _, a := range ia.Options.Addresses() {
				addr, _ := netip.AddrFromSlice(a.IPv6Addr)
				take(&l.addrs, netip.PrefixFrom(addr, 128), a.PreferredLifetime, a.ValidLifetime)
			}
		}
	}
	for _, ia := range m.Options.IAPD() {
		if ia.IaId == id && good(ia.Options.Status()) {
			times(ia.T1, ia.T2)
			for _, p := range ia.Options.Prefixes() {
				if network, err := networkOf(p.Prefix); err == nil {
					take(&l.prefixes, network, p.PreferredLifetime, p.ValidLifetime)
				}
			}
		}
	}
	if t1 == never || t2 > shortest { // left to us, or too late (14.2, 21.4)
		t1, t2 = shortest/2, shortest/5*4
	}
	l.t1, l.t2 = now+max(t1, leastLease/2), now+max(t2, leastLease/4*3)
	return l
}

func good(s *dhcpv6.OptStatusCode) bool { return s == nil || s.StatusCode == iana.StatusSuccess }

func networkOf(n *net.IPNet) (netip.Prefix, error) {
	if n == nil {
		return netip.Prefix{}, errors.New("no prefix")
	}
	a, ok := netip.AddrFromSlice(n.IP.To16())
	ones, bits := n.Mask.Size()
	if !ok || bits != 128 || ones == 0 {
		return netip.Prefix{}, errors.New("no prefix")
	}
	return netip.PrefixFrom(a, ones).Masked(), nil
}
