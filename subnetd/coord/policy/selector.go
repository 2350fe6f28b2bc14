package policy

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/tailscale/hujson"
	"tailscale.com/tailcfg"
)

// kind is how a selector selects.
type kind uint

const (
	anyone    kind = 1 << iota // *
	byUser                     // nodes of the users in names
	byTag                      // nodes with the tag names[0]
	members                    // nodes of users
	tagged                     // nodes with tags
	owner                      // the owner of the home: no node, no login
	self                       // nodes of the same user as the source
	internet                   // what exit nodes reach
	addresses                  // addrs
	device                     // devices with the name names[0]
)

// allowed is what may stand where.
func allowed(where string) kind {
	const who = byUser | byTag | members
	switch where {
	case "src", "target":
		return who | tagged | anyone | addresses
	case "dst":
		return who | tagged | anyone | addresses | self | internet | device
	case "tag owner":
		return who | owner
	case "approver":
		return who | owner | tagged
	case "test source":
		return who | tagged | addresses
	case "test destination":
		return who | tagged | addresses | device
	}
	return 0
}

// selector is one entry of a src, dst, target or owner list.
type selector struct {
	kind  kind
	names []string // users: sorted
	addrs set
}

const (
	tagPrefix    = "tag:"
	groupPrefix  = "group:"
	autoPrefix   = "autogroup:"
	devicePrefix = "device:"
)

// selector understands text, found at the offset.
func (r *reader) selector(p *Policy, text string, at int, where string) selector {
	s, err := p.selector(text, allowed(where)&owner != 0)
	if err != nil {
		r.fail(at, "%q: %v", text, err)
	} else if allowed(where)&s.kind == 0 {
		r.fail(at, "%q cannot be used as %s%s", text, where, map[kind]string{owner: ": no login is an admin here; name the users"}[s.kind])
	}
	p.named = append(p.named, s.addrs...)
	return s
}

func (r *reader) selectors(p *Policy, v *hujson.Value, what, where string) []selector {
	out := []selector{}
	for _, w := range r.words(v, what) {
		out = append(out, r.selector(p, w.text, w.at, where))
	}
	return out
}

// selector understands text. Where there are no hosts, plain words are users.
func (p *Policy) selector(text string, plain bool) (selector, error) {
	switch name, isDevice := strings.CutPrefix(text, devicePrefix); {
	case text == "*":
		return selector{kind: anyone}, nil
	case strings.HasPrefix(text, autoPrefix):
		return autogroup(strings.TrimPrefix(text, autoPrefix))
	case strings.HasPrefix(text, groupPrefix):
		logins, ok := p.groups[text]
		if !ok {
			return selector{}, errors.New("there is no such group in groups")
		}
		return selector{kind: byUser, names: logins}, nil
	case strings.HasPrefix(text, tagPrefix):
		if !p.KnowsTag(text) {
			return selector{}, errors.New("there is no such tag in tagOwners")
		}
		return selector{kind: byTag, names: []string{text}}, nil
	case isDevice:
		if !isLabel(name) {
			return selector{}, errors.New("a device has a name of letters, digits and hyphens")
		}
		return selector{kind: device, names: []string{strings.ToLower(name)}}, nil
	case strings.Contains(text, "@") || plain:
		login, err := parseLogin(text)
		return selector{kind: byUser, names: []string{login}}, err
	}
	if addrs, ok := p.hosts[strings.ToLower(text)]; ok {
		return selector{kind: addresses, addrs: addrs}, nil
	}
	sp, err := parseSpan(text)
	if err != nil && isLabel(strings.ReplaceAll(text, ".", "")) && strings.Trim(text, "0123456789.-") != "" {
		err = errors.New(`there is no such name in hosts; a user is written with @, like "anna@"`)
	}
	return selector{kind: addresses, addrs: set{sp}}, err
}

func autogroup(name string) (selector, error) {
	k := map[string]kind{
		"member": members, "members": members, "tagged": tagged, "self": self, "internet": internet,
		"owner": owner, "admin": owner, "network-admin": owner, "it-admin": owner,
	}[name]
	if k == 0 {
		return selector{}, errors.New("this autogroup is not supported; there are member, tagged, self, internet, owner and admin")
	}
	return selector{kind: k}, nil
}

// parseLogin returns the form in which logins are compared.
func parseLogin(text string) (string, error) {
	login := canonical(text)
	if _, notAddr := parseSpan(login); notAddr == nil || login == "" || strings.ContainsAny(login, ":*,/ \t\r\n") {
		return "", errors.New(`a user is written like "anna@" or "anna@example.com"`)
	}
	return login, nil
}

func canonical(login string) string {
	return strings.ToLower(strings.TrimSuffix(strings.TrimSpace(login), "@"))
}

// isLabel reports whether s is like a DNS label.
func isLabel(s string) bool {
	return s != "" && len(s) <= 63 && !strings.ContainsFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_'
	})
}

// owns reports whether the node itself is selected, as what it is, not by address.
func (s *selector) owns(n *compiledNode) bool {
	switch s.kind {
	case anyone:
		return true
	case byUser:
		_, ok := slices.BinarySearch(s.names, n.User)
		return ok && n.member
	case byTag:
		return slices.Contains(n.Tags, s.names[0])
	case members:
		return n.member
	case tagged:
		return len(n.Tags) > 0
	}
	return false
}

func anyOwns(ss []selector, n *compiledNode) bool {
	return slices.ContainsFunc(ss, func(s selector) bool { return s.owns(n) })
}

// splitPorts splits host:ports. An IPv6 address stands in brackets, with or
// without its prefix length; with one the brackets may be missing.
func splitPorts(text string) (host, ports string, err error) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 || i == len(text)-1 {
		return "", "", errors.New(`the ports are missing, like in "host:443" or "host:*"`)
	}
	host, ports = text[:i], text[i+1:]
	if rest, ok := strings.CutPrefix(host, "["); ok {
		addr, bits, ok := strings.Cut(rest, "]")
		if !ok || (bits != "" && bits[0] != '/') {
			return "", "", errors.New(`a bracket is missing, like in "[fd00::1]:443"`)
		}
		return addr + bits, ports, nil
	}
	if _, err := parseSpan(host); err == nil && strings.Contains(host, ":") && !strings.Contains(host, "/") {
		return "", "", fmt.Errorf("write the IPv6 address in brackets: [%s]:%s", host, ports)
	}
	return host, ports, nil
}

// parsePorts reads *, 80, 80-90 or a list of these with commas.
func parsePorts(text string) ([]tailcfg.PortRange, error) {
	if text == "*" || text == "0-65535" {
		return []tailcfg.PortRange{tailcfg.PortRangeAny}, nil
	}
	var out []tailcfg.PortRange
	for part := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 16)
		to, err2 := strconv.ParseUint(last, 10, 16)
		if err != nil || err2 != nil || from == 0 || to < from {
			return nil, fmt.Errorf(`%q is no port: write 1 to 65535, a range 80-90, a list 80,443 or "*"`, part)
		}
		out = append(out, tailcfg.PortRange{First: uint16(from), Last: uint16(to)})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].First < out[j].First })
	merged := out[:1]
	for _, p := range out[1:] {
		if l := &merged[len(merged)-1]; int(p.First) <= int(l.Last)+1 {
			l.Last = max(l.Last, p.Last)
		} else {
			merged = append(merged, p)
		}
	}
	if len(merged) > maxPorts {
		return nil, fmt.Errorf("there are more than %d ranges of ports", maxPorts)
	}
	return merged, nil
}

const protocols = "icmp:1 igmp:2 ipv4:4 ip-in-ip:4 tcp:6 egp:8 igp:9 udp:17 gre:47 esp:50 ah:51 ipv6-icmp:58 sctp:132 fc:133"

// parseProto reads the name or number of a protocol; ported says that it has
// ports. The empty string is the usual ones: TCP, UDP and ICMP.
func parseProto(text string) (protos []int, ported bool, err error) {
	number := text
	for _, f := range strings.Fields(protocols) {
		if name, n, _ := strings.Cut(f, ":"); strings.EqualFold(name, text) {
			number = n
		}
	}
	n, err := strconv.ParseUint(number, 10, 8)
	switch {
	case text == "":
		return nil, true, nil
	case err != nil || number[0] == '0':
		return nil, false, fmt.Errorf("%q is no protocol: write a name like tcp, udp or icmp, or a number from 1 to 255", text)
	case strings.EqualFold(text, "icmp"):
		return []int{1, 58}, false, nil
	}
	return []int{int(n)}, n == 6 || n == 17 || n == 132, nil
}

// parseIP reads an entry of ip: *, ports, protocol:ports or the name of a protocol.
func parseIP(text string) (protos []int, ports []tailcfg.PortRange, err error) {
	name, list, both := strings.Cut(text, ":")
	if !both {
		list = "*"
		if strings.Trim(text, "0123456789-,* ") == "" { // no name
			name, list = "", text
		}
	} else if name == "" {
		return nil, nil, errors.New("the protocol before the colon is missing")
	}
	protos, ported, err := parseProto(name)
	if err == nil {
		ports, err = portsOf(list, ported)
	}
	return protos, ports, err
}

// portsOf reads the ports of a protocol that may have none.
func portsOf(text string, ported bool) ([]tailcfg.PortRange, error) {
	if !ported && text != "*" {
		return nil, errors.New(`this protocol has no ports; write "*" for them`)
	}
	return parsePorts(text)
}
