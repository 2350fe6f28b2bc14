package lan

import "encoding/binary"

// Offsets in a message of BOOTP (RFC 951, 2131), which options follow.
const (
	bootpHtype   = 1
	bootpHlen    = 2
	bootpChaddr  = 28
	bootpSname   = 44
	bootpFile    = 108
	bootpCookie  = 236
	bootpOptions = 240
	dhcpCookie   = 0x63825363
)

// Options of DHCP that tell of a client (RFC 2132, 4702).
const (
	optPad      = 0
	optName     = 12
	optOverload = 52
	optType     = 53
	optParams   = 55
	optClass    = 60
	optFQDN     = 81
	optEnd      = 255
)

// ParseDHCP reads what a client says of itself when it asks for an address. It reports
// false for everything else, answers of servers too. (insomniacslk/dhcp does more, and
// would cost 80 kB of program.)
func ParseDHCP(b []byte) (Heard, bool) {
	if len(b) < bootpOptions || b[0] != 1 || b[bootpHtype] != 1 || b[bootpHlen] != 6 ||
		binary.BigEndian.Uint32(b[bootpCookie:]) != dhcpCookie {
		return Heard{}, false
	}
	h := Heard{MAC: MAC(b[bootpChaddr : bootpChaddr+6]), Source: DHCP}
	var o options
	o.read(b[bootpOptions:])
	if o.overload&1 != 0 {
		o.read(b[bootpFile:bootpCookie])
	}
	if o.overload&2 != 0 {
		o.read(b[bootpSname:bootpFile])
	}
	const discover, request, inform = 1, 3, 8
	if h.MAC == "" || o.kind != discover && o.kind != request && o.kind != inform {
		return Heard{}, false
	}
	h.Name, h.VendorClass, h.Params = string(o.name), string(o.class), o.params
	if h.Name == "" {
		h.Name = o.fqdn
	}
	h.Name, h.VendorClass = text(h.Name), text(h.VendorClass)
	return h, true
}

// options are those that we read. One that is given more than once is one that was too
// long for its length's byte (RFC 3396).
type options struct {
	kind, overload byte
	name, class    []byte
	params         []byte
	fqdn           string
}

// read goes through options until their end, or what is not one.
func (o *options) read(b []byte) {
	for len(b) > 0 && b[0] != optEnd {
		if b[0] == optPad {
			b = b[1:]
			continue
		}
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return
		}
		value := b[2 : 2+int(b[1])]
		switch b[0] {
		case optType:
			if len(value) == 1 {
				o.kind = value[0]
			}
		case optOverload:
			if len(value) == 1 {
				o.overload = value[0]
			}
		case optName:
			o.name = append(o.name, value...)
		case optClass:
			o.class = append(o.class, value...)
		case optParams:
			o.params = append(o.params, value...)
		case optFQDN:
			o.fqdn = fqdn(value)
		}
		b = b[2+int(b[1]):]
	}
}

// fqdn is the first label of the name in option 81, which has three bytes before it. It
// is either text, or as on the wire of DNS.
func fqdn(b []byte) string {
	if len(b) <= 3 {
		return ""
	}
	const wire = 1 << 2
	flags, name := b[0], b[3:]
	if flags&wire != 0 {
		if n := int(name[0]); n < 64 && n < len(name) {
			return string(name[1 : 1+n])
		}
		return ""
	}
	for i, c := range name {
		if c == '.' {
			return string(name[:i])
		}
	}
	return string(name)
}
