package lan

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Said is what an answer of mDNS says of its sender (RFC 6762, 6763).
type Said struct {
	Name     string   // the best that it calls itself
	Model    string   // "": not told
	Services []string // types that it has
	Ended    []string // types that it no longer has
	Addrs    []netip.Addr
}

const (
	maxRecords = 256 // that are looked at in one message
	maxJumps   = 16  // of compression in one name

	typeA    = 1
	typePTR  = 12
	typeTXT  = 16
	typeAAAA = 28
	typeSRV  = 33
	classIN  = 1
)

// ParseMDNS reads an answer. Names of mDNS are labels of any bytes, dots too, so they stay
// labels here. It reports false for questions, and for what is not of DNS; of a damaged
// answer it keeps what was before the damage.
func ParseMDNS(b []byte) (Said, bool) {
	if len(b) < 12 || b[2]&0xf8 != 0x80 {
		return Said{}, false
	}
	questions := int(binary.BigEndian.Uint16(b[4:]))
	records := int(binary.BigEndian.Uint16(b[6:])) + int(binary.BigEndian.Uint16(b[8:])) + int(binary.BigEndian.Uint16(b[10:]))
	at := 12
	for range min(questions, maxRecords) {
		_, end, ok := labels(b, at)
		if !ok || end+4 > len(b) {
			return Said{}, false
		}
		at = end + 4
	}
	var a answer
	for range min(records, maxRecords) {
		name, end, ok := labels(b, at)
		if !ok || end+10 > len(b) {
			break
		}
		data := end + 10
		at = data + int(binary.BigEndian.Uint16(b[end+8:]))
		if at > len(b) {
			break
		}
		if binary.BigEndian.Uint16(b[end+2:])&0x7fff == classIN { // the highest bit flushes caches
			a.record(b, name, binary.BigEndian.Uint16(b[end:]), binary.BigEndian.Uint32(b[end+4:]) > 0, data, at)
		}
	}
	return a.said(), true
}

// labels reads the name at an offset, and where it ends.
func labels(b []byte, at int) (name []string, end int, ok bool) {
	for jumps := 0; at < len(b) && len(name) < 128; {
		n := int(b[at])
		switch {
		case n == 0:
			return name, max(end, at+1), true
		case n&0xc0 == 0xc0:
			if at+2 > len(b) || jumps >= maxJumps {
				return nil, 0, false
			}
			if end == 0 {
				end = at + 2
			}
			at = int(binary.BigEndian.Uint16(b[at:]) & 0x3fff)
			jumps++
		case n&0xc0 != 0 || at+1+n > len(b):
			return nil, 0, false
		default:
			name = append(name, string(b[at+1:at+1+n]))
			at += 1 + n
		}
	}
	return nil, 0, false
}

// answer is what was read of one.
type answer struct {
	Said
	friendly  string // said to be for people
	hosts     []string
	instances []string // of services, which people may name
}

// record reads one, whose data are b[data:end].
func (a *answer) record(b []byte, name []string, kind uint16, lives bool, data, end int) {
	switch {
	case kind == typeA && end-data == 4 || kind == typeAAAA && end-data == 16:
		if host, ok := hostOf(name); ok && lives && len(a.Addrs) < perThing {
			addr, _ := netip.AddrFromSlice(b[data:end])
			a.Addrs = append(a.Addrs, addr)
			a.hosts = append(a.hosts, host)
		}
	case kind == typePTR:
		target, _, ok := labels(b[:end], data)
		if ok {
			a.pointer(name, target, lives)
		}
	case kind == typeSRV && end-data > 6:
		a.service(name, lives)
		target, _, ok := labels(b[:end], data+6)
		if host, is := hostOf(target); ok && is && lives {
			a.hosts = append(a.hosts, host)
		}
	case kind == typeTXT && lives:
		a.service(name, true)
		a.text(name, b[data:end])
	}
}

// pointer reads a PTR: a service's instance, a type of services, or a host's name.
func (a *answer) pointer(name, target []string, lives bool) {
	n := len(name)
	switch {
	case strings.EqualFold(strings.Join(name, "."), "_services._dns-sd._udp.local"):
		a.service(append([]string{""}, target...), lives)
	case n > 1 && strings.EqualFold(name[n-1], "arpa"):
		if host, ok := hostOf(target); ok && lives {
			a.hosts = append(a.hosts, host)
		}
	default:
		a.service(target, lives)
	}
}

// service reads the name of an instance: INSTANCE _TYPE _tcp local.
func (a *answer) service(name []string, lives bool) {
	if len(name) != 4 || !strings.EqualFold(name[3], "local") {
		return
	}
	s := strings.ToLower(name[1] + "." + name[2])
	if !serviceType(s) {
		return
	}
	list := &a.Services
	if !lives {
		list = &a.Ended
	}
	if !slices.Contains(*list, s) && len(*list) < maxServices {
		*list = append(*list, s)
	}
	if lives && name[0] != "" && s != "_device-info._tcp" {
		a.instances = append(a.instances, instance(name[0]))
	}
}

// text reads what a TXT says of its sender's name and model (RFC 6763, section 6).
func (a *answer) text(name []string, b []byte) {
	for len(b) > 0 && len(b) > int(b[0]) {
		key, value, ok := strings.Cut(string(b[1:1+int(b[0])]), "=")
		b = b[1+int(b[0]):]
		if !ok || len(name) != 4 {
			continue
		}
		switch k := strings.ToLower(key); {
		case k == "fn" && strings.EqualFold(name[1], "_googlecast"):
			a.friendly = text(value)
		case (k == "model" || k == "md" || k == "ty") && (a.Model == "" || k == "model"):
			a.Model = text(value)
		}
	}
}

// said chooses the name: what people named it, before what its maker counts.
func (a *answer) said() Said {
	out := a.Said
	for _, names := range [][]string{{a.friendly}, a.hosts, a.instances} {
		for _, n := range names {
			if n = text(n); out.Name == "" && spoken(n) {
				out.Name = n
			}
		}
	}
	if out.Name == "" && len(a.hosts) > 0 {
		out.Name = text(a.hosts[0])
	}
	return out
}

// hostOf is the host's own label of a name HOST local.
func hostOf(name []string) (string, bool) {
	if len(name) != 2 || !strings.EqualFold(name[1], "local") {
		return "", false
	}
	return name[0], true
}

// instance takes away what some put around a name: the MAC before an AirPlay speaker's,
// or behind a workstation's.
func instance(s string) string {
	if _, after, ok := strings.Cut(s, "@"); ok {
		s = after
	}
	s, _, _ = strings.Cut(s, " [")
	return s
}

// spoken reports whether people could have given the name: it holds no long number in hex.
func spoken(s string) bool {
	run, digits := 0, 0
	for i := range len(s) {
		switch c := s[i]; {
		case hexDigit(c) < 16:
			run++
			if c <= '9' {
				digits++
			}
			if run >= 6 && digits >= 2 {
				return false
			}
		case c != '-' && c != ':':
			run, digits = 0, 0
		}
	}
	return s != ""
}

// serviceType reports whether the text is a type of services: _NAME._tcp or _NAME._udp
// (RFC 6335, section 5.1; some are longer than its 15 letters).
func serviceType(s string) bool {
	name, proto, ok := strings.Cut(s, ".")
	if !ok || len(name) < 2 || len(name) > 32 || name[0] != '_' || proto != "_tcp" && proto != "_udp" {
		return false
	}
	for i := 1; i < len(name); i++ {
		if c := name[i]; !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return name != "_dns-sd" && name != "_services"
}

// asked are the types of services that tell what a thing is. Whoever has others tells by
// the general question.
var asked = [...]string{
	"_services._dns-sd._udp", "_ipp._tcp", "_pdl-datastream._tcp", "_uscan._tcp", "_googlecast._tcp", "_airplay._tcp", "_raop._tcp",
	"_sonos._tcp", "_spotify-connect._tcp", "_hap._tcp", "_smb._tcp", "_afpovertcp._tcp", "_adisk._tcp", "_companion-link._tcp",
	"_device-info._tcp", "_workstation._tcp", "_ssh._tcp", "_http._tcp", "_rtsp._tcp", "_androidtvremote2._tcp", "_amzn-wplay._tcp",
	"_nvstream._tcp", "_matter._tcp",
}

// AskMDNS is a question for all services, and for the name at an address if it is valid.
// It wants to be answered to the port that it comes from (RFC 6762, section 6.7).
func AskMDNS(addr netip.Addr) []byte {
	out := make([]byte, 12, 600)
	n := len(asked)
	for _, s := range asked {
		out = question(out, strings.Split(s+".local", "."))
	}
	if addr.IsValid() {
		n++
		out = question(out, reverse(addr))
	}
	binary.BigEndian.PutUint16(out[4:], uint16(n))
	return out
}

// question adds one for a PTR.
func question(out []byte, name []string) []byte {
	for _, l := range name {
		out = append(out, byte(len(l)))
		out = append(out, l...)
	}
	return append(out, 0, 0, typePTR, 0, classIN)
}

// reverse is the name under which an address's host is asked for.
func reverse(addr netip.Addr) []string {
	var out []string
	b := addr.AsSlice()
	for i := len(b) - 1; i >= 0; i-- {
		if addr.Is4() {
			out = append(out, strconv.Itoa(int(b[i])))
		} else {
			out = append(out, "0123456789abcdef"[b[i]&15:b[i]&15+1], "0123456789abcdef"[b[i]>>4:b[i]>>4+1])
		}
	}
	if addr.Is4() {
		return append(out, "in-addr", "arpa")
	}
	return append(out, "ip6", "arpa")
}
