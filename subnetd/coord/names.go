package coord

import (
	"net/netip"
	"sort"
	"strconv"
	"strings"

	"tailscale.com/tailcfg"
	"tailscale.com/types/dnstype"
)

// label makes of what a host calls itself a DNS label: RFC 1123, 2.1.
func label(s string) string {
	s, _, _ = strings.Cut(strings.ToLower(s), ".")
	out := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
			return r
		case r == ' ', r == '_', r == '\'', r == '’':
			return '-'
		}
		return -1
	}, s)
	out = strings.Trim(out[:min(len(out), 60)], "-")
	if out == "" {
		return "node"
	}
	return out
}

// checkLabel refuses what the owner cannot mean as a name.
func checkLabel(s string) (string, error) {
	l := strings.ToLower(s)
	if l != label(l) {
		return "", badf("%q is no name: letters, digits and hyphens are, at most 60", s)
	}
	return l, nil
}

// taken are the names of all nodes and devices, but for the name of one node, which
// does not stand in its own way.
func (d *draft) taken(but tailcfg.NodeID) map[string]bool {
	taken := make(map[string]bool, len(d.nodes))
	for id, n := range d.nodes {
		if id != but {
			taken[n.Name] = true
		}
		for _, dev := range n.Devices {
			taken[dev.Name] = true
		}
	}
	return taken
}

const maxLabel = 63 // RFC 1035, 2.3.4

// free makes a name another than those taken.
func free(want string, taken map[string]bool) string {
	name := want
	for i := 1; taken[name]; i++ {
		end := "-" + strconv.Itoa(i)
		name = want[:min(len(want), maxLabel-len(end))] + end
	}
	return name
}

// dnsConfig is the same for all members.
func (d *draft) dnsConfig(domain string, nodes []*node) *tailcfg.DNSConfig {
	c := &tailcfg.DNSConfig{Proxied: true, Domains: []string{domain}, Routes: map[string][]*dnstype.Resolver{domain: {}}}
	for _, zone := range reverseZones() {
		c.Routes[zone] = []*dnstype.Resolver{}
	}
	for suffix, resolvers := range d.names.Split {
		var rs []*dnstype.Resolver
		for _, r := range resolvers {
			rs = append(rs, &dnstype.Resolver{Addr: r.String()})
		}
		c.Routes[suffix] = rs
	}
	for _, n := range nodes {
		for _, dev := range n.Devices {
			for _, a := range dev.addresses() { // in the mesh, and in its home
				c.ExtraRecords = append(c.ExtraRecords, extra(dev.Name+"."+domain, a), extra(dev.Name+"."+n.Name+"."+domain, a))
			}
		}
	}
	for _, r := range d.names.Records {
		name := strings.ToLower(r.Name)
		if !strings.Contains(name, ".") {
			name += "." + domain
		}
		c.ExtraRecords = append(c.ExtraRecords, extra(name, r.Addr))
	}
	sort.SliceStable(c.ExtraRecords, func(i, j int) bool { return c.ExtraRecords[i].Name < c.ExtraRecords[j].Name })
	return c
}

func extra(name string, a netip.Addr) tailcfg.DNSRecord {
	return tailcfg.DNSRecord{Name: name, Value: a.String()} // its type follows from the value
}

// reverseZones are those of the pools, which the members' resolvers answer.
func reverseZones() []string {
	var out []string
	for b := 64; b < 128; b++ {
		out = append(out, strconv.Itoa(b)+".100.in-addr.arpa")
	}
	return append(out, "0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa")
}
