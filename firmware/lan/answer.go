package lan

import (
	"net"
	"net/netip"
	"time"

	"subnetd/firmware/lan/leases"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// facts are what a device is told beside its address.
type facts struct {
	router netip.Prefix
	domain string
}

// answered is what becomes of one message of a device.
type answered struct {
	reply   *dhcpv4.DHCPv4 // nil: silence
	trouble string         // worth a line in the log; the same text for the same cause
}

// answer is what a server of RFC 2131, 4.3 says to a message. It does not speak for other
// servers, nor through relays: this is one home.
func answer(pool *leases.Pool, f facts, m *dhcpv4.DHCPv4, now time.Time) answered {
	if m.OpCode != dhcpv4.OpcodeBootRequest || m.HWType != iana.HWTypeEthernet || len(m.ClientHWAddr) != 6 {
		return answered{}
	}
	if m.GatewayIPAddr != nil && !m.GatewayIPAddr.IsUnspecified() {
		return answered{trouble: "a message of DHCP by a relay is passed over"}
	}
	mac := leases.MAC(m.ClientHWAddr)
	if mac[0]&1 != 0 || mac == (leases.MAC{}) {
		return answered{trouble: "a message of DHCP for no single device is passed over"}
	}
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		return discover(pool, f, m, mac, now)
	case dhcpv4.MessageTypeRequest:
		return request(pool, f, m, mac, now)
	case dhcpv4.MessageTypeDecline:
		if addr := addrOf(m.RequestedIPAddress()); ours(f, m) && pool.Decline(mac, addr, now) {
			return answered{trouble: "a device has found its address in use by another"}
		}
	case dhcpv4.MessageTypeRelease:
		if ours(f, m) {
			pool.Release(mac, addrOf(m.ClientIPAddr), now)
		}
	case dhcpv4.MessageTypeInform:
		return answered{reply: told(f, m, dhcpv4.MessageTypeAck)}
	}
	return answered{}
}

// ours reports whether a message is meant for this server.
func ours(f facts, m *dhcpv4.DHCPv4) bool {
	return addrOf(m.ServerIdentifier()) == f.router.Addr()
}

func discover(pool *leases.Pool, f facts, m *dhcpv4.DHCPv4, mac leases.MAC, now time.Time) answered {
	addr, ok := pool.Offer(mac, addrOf(m.RequestedIPAddress()), now)
	if !ok {
		return answered{trouble: "no address is left for a new device: the pool is full of leases that run"}
	}
	return answered{reply: lent(f, m, dhcpv4.MessageTypeOffer, addr, leases.Short)}
}

// request tells the four kinds of RFC 2131, 4.3.2 apart: to an offer of ours, or of
// another server; after a restart; to renew.
func request(pool *leases.Pool, f facts, m *dhcpv4.DHCPv4, mac leases.MAC, now time.Time) answered {
	id, wish, has := addrOf(m.ServerIdentifier()), addrOf(m.RequestedIPAddress()), addrOf(m.ClientIPAddr)
	switch {
	case id.IsValid() && id != f.router.Addr():
		return answered{} // it has chosen another server
	case !wish.IsValid():
		wish = has
	}
	if !wish.IsValid() || wish.IsUnspecified() {
		return answered{trouble: "a device asks for no address"}
	}
	// A lease that we know nothing of is not passed over in silence: we are the only server here,
	// and short leases are not on disk.
	length, ok := pool.Take(mac, wish, leases.Name(m.HostName()), now)
	if !ok {
		return answered{reply: told(f, m, dhcpv4.MessageTypeNak)}
	}
	return answered{reply: lent(f, m, dhcpv4.MessageTypeAck, wish, length)}
}

// told is a reply without an address.
func told(f facts, m *dhcpv4.DHCPv4, kind dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	r := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootReply, HWType: m.HWType, TransactionID: m.TransactionID, Flags: m.Flags,
		ClientHWAddr: m.ClientHWAddr, ClientIPAddr: net.IPv4zero, YourIPAddr: net.IPv4zero, ServerIPAddr: net.IPv4zero, GatewayIPAddr: net.IPv4zero,
		Options: dhcpv4.Options{},
	}
	r.UpdateOption(dhcpv4.OptMessageType(kind))
	router := f.router.Addr().AsSlice()
	r.UpdateOption(dhcpv4.OptServerIdentifier(router))
	if id := m.Options.Get(dhcpv4.OptionClientIdentifier); len(id) > 0 && len(id) < 256 {
		r.UpdateOption(dhcpv4.OptClientIdentifier(id)) // RFC 6842
	}
	if kind == dhcpv4.MessageTypeNak {
		r.SetBroadcast()
		return r
	}
	if kind == dhcpv4.MessageTypeAck {
		r.ClientIPAddr = m.ClientIPAddr
	}
	r.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(f.router.Bits(), 32)))
	r.UpdateOption(dhcpv4.OptRouter(router))
	r.UpdateOption(dhcpv4.OptDNS(router))
	if f.domain != "" {
		r.UpdateOption(dhcpv4.OptDomainName(f.domain))
	}
	return r
}

// lent is a reply with an address.
func lent(f facts, m *dhcpv4.DHCPv4, kind dhcpv4.MessageType, addr netip.Addr, length time.Duration) *dhcpv4.DHCPv4 {
	r := told(f, m, kind)
	r.YourIPAddr = addr.AsSlice()
	r.UpdateOption(dhcpv4.OptIPAddressLeaseTime(length))
	r.UpdateOption(dhcpv4.OptRenewTimeValue(length / 2))
	r.UpdateOption(dhcpv4.OptRebindingTimeValue(length / 8 * 7))
	return r
}

// addrOf is an address of the message; the zero Addr: it has none.
func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip.To4())
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}
