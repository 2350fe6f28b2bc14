package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"go4.org/mem"
	"golang.org/x/sys/unix"
	"tailscale.com/types/key"
)

// The kernel's WireGuard as its netlink family "wireguard" tells it: what there
// is, how it is changed, and the bytes of both (linux/uapi/linux/wireguard.h).
// Numbers are in the machine's byte order, a port within an address in that of
// the network.

const (
	wgName    = "wireguard" // the netlink family, and the kind of link
	wgVersion = 1
)

// wgDevice is what a WireGuard interface is, its peers apart.
type wgDevice struct {
	private [32]byte // zero: none
	port    uint16
	mark    uint32
}

// wgPeer is a peer as the kernel has it.
type wgPeer struct {
	key      key.NodePublic
	endpoint netip.AddrPort // invalid: none
	allowed  []netip.Prefix
	foreign  bool // has a preshared key or keepalives: never by us
	stat     Stat
}

// wgChange says what shall become of one peer.
type wgChange struct {
	key     key.NodePublic
	remove  bool // it goes, and its session keys with it
	add     bool // it shall be there (again, after remove); else only one that is there changes
	replace bool // allowed is all there shall be; else it is more
	allowed []netip.Prefix
	// aim: endpoint is given. Who sends the change may fill it in at the last
	// moment.
	aim      bool
	endpoint netip.AddrPort
	session  string // of an added peer, for the next comparison
	nudge    bool   // alone: have it shake hands, if it has no session
}

// wgSet is one WG_CMD_SET_DEVICE.
type wgSet struct {
	device *wgDevice // nil: stays as it is
	bare   bool      // first all peers go
	peers  []wgChange
}

var errShort = errors.New("the kernel's answer is cut short")

// attributes is a list of netlink attributes being written.
type attributes []byte

func (a *attributes) put(kind uint16, value []byte) {
	*a = binary.NativeEndian.AppendUint16(*a, uint16(4+len(value)))
	*a = binary.NativeEndian.AppendUint16(*a, kind)
	*a = append(*a, value...)
	for len(*a)%4 != 0 {
		*a = append(*a, 0)
	}
}

func (a *attributes) put16(kind, v uint16) {
	a.put(kind, binary.NativeEndian.AppendUint16(nil, v))
}

func (a *attributes) put32(kind uint16, v uint32) {
	a.put(kind, binary.NativeEndian.AppendUint32(nil, v))
}

func (a *attributes) text(kind uint16, s string) { a.put(kind, append([]byte(s), 0)) }

// nest writes an attribute that holds those which inner writes.
func (a *attributes) nest(kind uint16, inner func()) {
	at := len(*a)
	a.put(kind|unix.NLA_F_NESTED, nil)
	inner()
	binary.NativeEndian.PutUint16((*a)[at:], uint16(len(*a)-at))
}

// wgRequest begins a message about the interface of that name.
func wgRequest(command byte, name string) attributes {
	a := attributes{command, wgVersion, 0, 0}
	a.text(unix.WGDEVICE_A_IFNAME, name)
	return a
}

// encode is the message for the interface of that name. It fits the 64 kB of a
// nest: see batchPeers and maxAllowed.
func (s *wgSet) encode(name string) []byte {
	a := wgRequest(unix.WG_CMD_SET_DEVICE, name)
	if s.bare {
		a.put32(unix.WGDEVICE_A_FLAGS, unix.WGDEVICE_F_REPLACE_PEERS)
	}
	if d := s.device; d != nil {
		a.put(unix.WGDEVICE_A_PRIVATE_KEY, d.private[:])
		a.put16(unix.WGDEVICE_A_LISTEN_PORT, d.port)
		a.put32(unix.WGDEVICE_A_FWMARK, d.mark)
	}
	if len(s.peers) > 0 {
		a.nest(unix.WGDEVICE_A_PEERS, func() {
			for i := range s.peers {
				s.peers[i].encode(&a)
			}
		})
	}
	return a
}

func (c *wgChange) encode(a *attributes) {
	raw := c.key.AppendTo(nil)
	if c.remove {
		a.nest(0, func() {
			a.put(unix.WGPEER_A_PUBLIC_KEY, raw)
			a.put32(unix.WGPEER_A_FLAGS, unix.WGPEER_F_REMOVE_ME)
		})
		if !c.add {
			return
		}
	}
	if c.nudge {
		c.encodeNudge(a)
		return
	}
	var flags uint32
	if !c.add {
		flags |= unix.WGPEER_F_UPDATE_ONLY
	}
	if c.replace {
		flags |= unix.WGPEER_F_REPLACE_ALLOWEDIPS
	}
	a.nest(0, func() {
		a.put(unix.WGPEER_A_PUBLIC_KEY, raw)
		a.put32(unix.WGPEER_A_FLAGS, flags)
		if c.aim && c.endpoint.IsValid() {
			a.put(unix.WGPEER_A_ENDPOINT, sockaddr(c.endpoint))
		}
		if len(c.allowed) > 0 {
			a.nest(unix.WGPEER_A_ALLOWEDIPS, func() {
				for _, p := range c.allowed {
					a.nest(0, func() { putPrefix(a, p) })
				}
			})
		}
	})
}

// encodeNudge turns keepalives on and off: the kernel sends one when they come
// on, and for that needs a session.
func (c *wgChange) encodeNudge(a *attributes) {
	raw := c.key.AppendTo(nil)
	for _, seconds := range []uint16{1, 0} {
		a.nest(0, func() {
			a.put(unix.WGPEER_A_PUBLIC_KEY, raw)
			a.put32(unix.WGPEER_A_FLAGS, unix.WGPEER_F_UPDATE_ONLY)
			a.put16(unix.WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, seconds)
		})
	}
}

func putPrefix(a *attributes, p netip.Prefix) {
	family := uint16(unix.AF_INET)
	if p.Addr().Is6() {
		family = unix.AF_INET6
	}
	a.put16(unix.WGALLOWEDIP_A_FAMILY, family)
	a.put(unix.WGALLOWEDIP_A_IPADDR, p.Addr().AsSlice())
	a.put(unix.WGALLOWEDIP_A_CIDR_MASK, []byte{byte(p.Bits())})
}

// sockaddr is the address as a sockaddr_in or sockaddr_in6.
func sockaddr(to netip.AddrPort) []byte {
	a := to.Addr().Unmap()
	family := uint16(unix.AF_INET)
	if a.Is6() {
		family = unix.AF_INET6
	}
	b := binary.NativeEndian.AppendUint16(nil, family)
	b = binary.BigEndian.AppendUint16(b, to.Port())
	if a.Is4() {
		b = append(b, a.AsSlice()...)
		return append(b, make([]byte, 8)...)
	}
	b = append(b, 0, 0, 0, 0) // flow label
	b = append(b, a.AsSlice()...)
	scope, _ := strconv.ParseUint(a.Zone(), 10, 32) // 0: none
	return binary.NativeEndian.AppendUint32(b, uint32(scope))
}

// parseSockaddr is the reverse of sockaddr. What it does not know is no address.
func parseSockaddr(b []byte) netip.AddrPort {
	if len(b) < 8 {
		return netip.AddrPort{}
	}
	port := binary.BigEndian.Uint16(b[2:])
	switch family := binary.NativeEndian.Uint16(b); {
	case family == unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:])), port)
	case family == unix.AF_INET6 && len(b) >= 28:
		a := netip.AddrFrom16([16]byte(b[8:]))
		if scope := binary.NativeEndian.Uint32(b[24:]); scope != 0 {
			a = a.WithZone(strconv.FormatUint(uint64(scope), 10))
		}
		return netip.AddrPortFrom(a, port)
	}
	return netip.AddrPort{}
}

// nextAttribute cuts the first attribute off b.
func nextAttribute(b []byte) (kind uint16, value, rest []byte, err error) {
	if len(b) < 4 {
		return 0, nil, nil, errShort
	}
	n := int(binary.NativeEndian.Uint16(b))
	kind = binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
	if n < 4 || n > len(b) {
		return 0, nil, nil, errShort
	}
	return kind, b[4:n], b[min((n+3)&^3, len(b)):], nil
}

// number reads a number of as many bytes as there are.
func number(b []byte) (uint64, error) {
	switch len(b) {
	case 2:
		return uint64(binary.NativeEndian.Uint16(b)), nil
	case 4:
		return uint64(binary.NativeEndian.Uint32(b)), nil
	case 8:
		return binary.NativeEndian.Uint64(b), nil
	}
	return 0, errShort
}

// wgDump puts a device together from the answers to WG_CMD_GET_DEVICE. A peer
// with many addresses begins in one message and goes on in the next.
type wgDump struct {
	device wgDevice
	each   func(*wgPeer) // gets each peer once it is whole; it is another's after the call
	peer   wgPeer        // being read; zero key: none
}

// message reads one answer, its generic header included.
func (d *wgDump) message(b []byte) error {
	if len(b) < 4 {
		return errShort
	}
	for b = b[4:]; len(b) > 0; {
		kind, value, rest, err := nextAttribute(b)
		if err != nil {
			return err
		}
		b = rest
		var n uint64
		switch kind {
		case unix.WGDEVICE_A_PRIVATE_KEY:
			if len(value) != len(d.device.private) {
				return errShort
			}
			copy(d.device.private[:], value)
		case unix.WGDEVICE_A_LISTEN_PORT:
			n, err = number(value)
			d.device.port = uint16(n)
		case unix.WGDEVICE_A_FWMARK:
			n, err = number(value)
			d.device.mark = uint32(n)
		case unix.WGDEVICE_A_PEERS:
			err = d.peers(value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// end tells that there was the last message.
func (d *wgDump) end() {
	if !d.peer.key.IsZero() {
		d.each(&d.peer)
	}
	d.peer = wgPeer{}
}

func (d *wgDump) peers(b []byte) error {
	for len(b) > 0 {
		_, value, rest, err := nextAttribute(b)
		if err == nil {
			err = d.onePeer(value)
		}
		if err != nil {
			return err
		}
		b = rest
	}
	return nil
}

// onePeer reads a peer, or more of the one before. The key comes first.
func (d *wgDump) onePeer(b []byte) error {
	kind, value, b, err := nextAttribute(b)
	if err != nil {
		return err
	}
	if kind != unix.WGPEER_A_PUBLIC_KEY || len(value) != 32 {
		return errors.New("the kernel tells of a peer without its key")
	}
	if k := key.NodePublicFromRaw32(mem.B(value)); k != d.peer.key {
		allowed := d.peer.allowed[:0]
		d.end()
		d.peer = wgPeer{key: k, allowed: allowed}
	}
	p := &d.peer
	for len(b) > 0 {
		if kind, value, b, err = nextAttribute(b); err != nil {
			return err
		}
		switch kind {
		case unix.WGPEER_A_PRESHARED_KEY:
			p.foreign = p.foreign || len(value) == 32 && [32]byte(value) != [32]byte{}
		case unix.WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL:
			var n uint64
			n, err = number(value)
			p.foreign = p.foreign || n != 0
		case unix.WGPEER_A_ENDPOINT:
			p.endpoint = parseSockaddr(value)
		case unix.WGPEER_A_RX_BYTES:
			p.stat.Rx, err = number(value)
		case unix.WGPEER_A_TX_BYTES:
			p.stat.Tx, err = number(value)
		case unix.WGPEER_A_LAST_HANDSHAKE_TIME:
			p.stat.Handshake, err = parseTime(value)
		case unix.WGPEER_A_ALLOWEDIPS:
			err = p.addAllowed(value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// parseTime reads a __kernel_timespec; zero is never.
func parseTime(b []byte) (time.Time, error) {
	if len(b) != 16 {
		return time.Time{}, errShort
	}
	sec, nsec := int64(binary.NativeEndian.Uint64(b)), int64(binary.NativeEndian.Uint64(b[8:]))
	if sec == 0 && nsec == 0 {
		return time.Time{}, nil
	}
	return time.Unix(sec, nsec), nil
}

func (p *wgPeer) addAllowed(b []byte) error {
	for len(b) > 0 {
		_, value, rest, err := nextAttribute(b)
		if err != nil {
			return err
		}
		b = rest
		a, err := parsePrefix(value)
		if err != nil {
			return err
		}
		p.allowed = append(p.allowed, a)
	}
	return nil
}

func parsePrefix(b []byte) (netip.Prefix, error) {
	var addr netip.Addr
	bits := -1
	for len(b) > 0 {
		kind, value, rest, err := nextAttribute(b)
		if err != nil {
			return netip.Prefix{}, err
		}
		b = rest
		switch kind {
		case unix.WGALLOWEDIP_A_IPADDR:
			addr, _ = netip.AddrFromSlice(value)
		case unix.WGALLOWEDIP_A_CIDR_MASK:
			if len(value) > 0 {
				bits = int(value[0])
			}
		}
	}
	if p := netip.PrefixFrom(addr, bits); p.IsValid() {
		return p, nil
	}
	return netip.Prefix{}, fmt.Errorf("the kernel tells of allowed IPs %v/%d", addr, bits)
}
