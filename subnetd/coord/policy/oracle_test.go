package policy

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"tailscale.com/tailcfg"
)

// The oracle answers whether a packet passes by walking through the rules as they
// are written, with no sets, no merging and nothing of this package. It judges
// what a node would do with the filter it is sent.

type oracleRule struct {
	src, dst []string // dst: with :ports if it is an acl
	proto    string   // acl
	ip       []string // grant
	app      string   // grant: one capability
}

type oracle struct {
	nodes  []Node
	groups map[string][]string
	hosts  map[string]string
	rules  []oracleRule
}

func (o *oracle) text() string {
	quote := func(ss []string) string {
		b, _ := json.Marshal(ss)
		return string(b)
	}
	var acls, grants []string
	for _, r := range o.rules {
		if r.ip == nil && r.app == "" {
			acls = append(acls, fmt.Sprintf(`{"action": "accept", "src": %s, "dst": %s, "proto": %q}`, quote(r.src), quote(r.dst), r.proto))
			continue
		}
		s := fmt.Sprintf(`{"src": %s, "dst": %s`, quote(r.src), quote(r.dst))
		if r.ip != nil {
			s += `, "ip": ` + quote(r.ip)
		}
		if r.app != "" {
			s += fmt.Sprintf(`, "app": {%q: [1]}`, r.app)
		}
		grants = append(grants, s+"}")
	}
	groups, _ := json.Marshal(o.groups)
	hosts, _ := json.Marshal(o.hosts)
	return fmt.Sprintf("{\"groups\": %s, \"hosts\": %s, \"tagOwners\": {\"tag:a\": [], \"tag:b\": []},\n\"acls\": [%s],\n\"grants\": [%s]}",
		groups, hosts, strings.Join(acls, ",\n"), strings.Join(grants, ",\n"))
}

// sender is the node that an address belongs to, as its own, as a device's or by a route.
func (o *oracle) sender(a netip.Addr) *Node {
	for i := range o.nodes {
		n := &o.nodes[i]
		if isOwn(n, a) || deviceName(n, a) != "" || inRoutes(n, a) {
			return n
		}
	}
	return nil
}

func isOwn(n *Node, a netip.Addr) bool { return slices.Contains(n.Addrs, a) }

func deviceName(n *Node, a netip.Addr) string {
	for _, d := range n.Devices {
		if slices.Contains(d.Addrs, a) {
			return d.Name
		}
	}
	return ""
}

func inRoutes(n *Node, a netip.Addr) bool {
	return slices.ContainsFunc(n.Routes, func(p netip.Prefix) bool { return p.Contains(a) })
}

func isPublic(a netip.Addr) bool {
	if a.Is4() {
		return !a.IsPrivate() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && a.As4()[0] < 224 &&
			!netip.MustParsePrefix("100.64.0.0/10").Contains(a)
	}
	return a.As16()[0]>>5 == 1
}

func (o *oracle) literal(sel string, a netip.Addr) bool {
	if h, ok := o.hosts[sel]; ok {
		sel = h
	}
	return inText(strings.Trim(sel, "[]"), a)
}

// inText reports whether a is in an address, a prefix or a range.
func inText(s string, a netip.Addr) bool {
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		return err == nil && p.Contains(a)
	}
	if strings.Contains(s, ":") != a.Is6() {
		return false
	}
	from, to, isRange := strings.Cut(s, "-")
	if !isRange {
		to = from
	}
	f, err1 := netip.ParseAddr(from)
	t, err2 := netip.ParseAddr(to)
	return err1 == nil && err2 == nil && f.BitLen() == a.BitLen() && f.Compare(a) <= 0 && a.Compare(t) <= 0
}

// is reports whether the node is what the selector names.
func (o *oracle) is(sel string, n *Node) bool {
	if n == nil {
		return false
	}
	isMember := n.User != "" && len(n.Tags) == 0
	switch {
	case strings.HasPrefix(sel, "group:"):
		return isMember && slices.ContainsFunc(o.groups[sel], func(u string) bool { return strings.TrimSuffix(u, "@") == n.User })
	case strings.HasPrefix(sel, "tag:"):
		return slices.Contains(n.Tags, sel)
	case sel == "autogroup:member":
		return isMember
	case sel == "autogroup:tagged":
		return len(n.Tags) > 0
	case strings.Contains(sel, "@"):
		return isMember && strings.TrimSuffix(sel, "@") == n.User
	}
	return false
}

func (o *oracle) fromMatches(sel string, a netip.Addr, from *Node) bool {
	return sel == "*" && from != nil || o.is(sel, from) || o.literal(sel, a)
}

func (o *oracle) toMatches(sel string, a netip.Addr, n, from *Node, caps bool) bool {
	node := isOwn(n, a)
	dev := deviceName(n, a)
	exit := n.Exit && isPublic(a) && !caps
	serves := node || dev != "" || inRoutes(n, a) || exit
	switch {
	case sel == "*":
		return serves
	case sel == "autogroup:internet":
		return exit
	case sel == "autogroup:self":
		return node && from != nil && len(n.Tags) == 0 && len(from.Tags) == 0 && n.User != "" && n.User == from.User
	case strings.HasPrefix(sel, "device:"):
		return dev != "" && "device:"+dev == sel
	}
	return (node || dev != "") && o.is(sel, n) || serves && o.literal(sel, a)
}

func protoMatches(name string, proto int) bool {
	switch name {
	case "":
		return proto == 1 || proto == 6 || proto == 17 || proto == 58
	case "tcp":
		return proto == 6
	case "udp":
		return proto == 17
	case "icmp":
		return proto == 1 || proto == 58
	}
	return name == strconv.Itoa(proto)
}

func portMatches(list string, proto, port int) bool {
	if list == "*" || proto == 1 || proto == 58 {
		return true
	}
	for _, s := range strings.Split(list, ",") {
		from, to, isRange := strings.Cut(s, "-")
		if !isRange {
			to = from
		}
		f, _ := strconv.Atoi(from)
		t, _ := strconv.Atoi(to)
		if f <= port && port <= t {
			return true
		}
	}
	return false
}

func (o *oracle) passes(src, dst netip.Addr, n *Node, proto, port int) bool {
	from := o.sender(src)
	for _, r := range o.rules {
		if !slices.ContainsFunc(r.src, func(s string) bool { return o.fromMatches(s, src, from) }) {
			continue
		}
		for _, d := range r.dst {
			if r.ip != nil {
				for _, ip := range r.ip {
					name, list, both := strings.Cut(ip, ":")
					if !both {
						name, list = "", ip
						if ip == "icmp" {
							name, list = ip, "*"
						}
					}
					if o.toMatches(d, dst, n, from, false) && protoMatches(name, proto) && portMatches(list, proto, port) {
						return true
					}
				}
			} else if r.app == "" {
				i := strings.LastIndexByte(d, ':')
				if o.toMatches(d[:i], dst, n, from, false) && protoMatches(r.proto, proto) && portMatches(d[i+1:], proto, port) {
					return true
				}
			}
		}
	}
	return false
}

// holds reports whether src holds a capability on dst.
func (o *oracle) holds(src, dst netip.Addr, n *Node, cap string) bool {
	from := o.sender(src)
	return slices.ContainsFunc(o.rules, func(r oracleRule) bool {
		return r.app == cap && slices.ContainsFunc(r.src, func(s string) bool { return o.fromMatches(s, src, from) }) &&
			slices.ContainsFunc(r.dst, func(d string) bool { return o.toMatches(d, dst, n, from, true) })
	})
}

// What a client does with the filter it got.

func admitted(rules []tailcfg.FilterRule, src, dst netip.Addr, proto, port int) bool {
	for _, r := range rules {
		if !slices.ContainsFunc(r.SrcIPs, func(s string) bool { return inText(s, src) }) {
			continue
		}
		if len(r.IPProto) == 0 && !protoMatches("", proto) || len(r.IPProto) > 0 && !slices.Contains(r.IPProto, proto) {
			continue
		}
		for _, d := range r.DstPorts {
			if inText(d.IP, dst) && (proto == 1 || proto == 58 || int(d.Ports.First) <= port && port <= int(d.Ports.Last)) {
				return true
			}
		}
	}
	return false
}

func granted(rules []tailcfg.FilterRule, src, dst netip.Addr, cap string) bool {
	for _, r := range rules {
		if !slices.ContainsFunc(r.SrcIPs, func(s string) bool { return inText(s, src) }) {
			continue
		}
		for _, g := range r.CapGrant {
			_, has := g.CapMap[tailcfg.PeerCapability(cap)]
			if has && slices.ContainsFunc(g.Dsts, func(p netip.Prefix) bool { return p.Contains(dst) }) {
				return true
			}
		}
	}
	return false
}

func TestOracle(t *testing.T) {
	seeds := 2000
	if testing.Short() { // on an emulated processor each takes as long as fifty here
		seeds = 100
	}
	places := append(addrs("8.8.8.8", "9.9.9.9", "10.9.0.1", "2000::1", "127.0.0.1", "224.0.0.1", "fd00:9::1", "0.0.0.0", "1.255.255.255", "192.168.200.1"),
		addrs("192.168.0.1", "192.168.1.1", "192.168.1.200", "192.168.2.1", "192.168.3.255", "192.168.4.0", "fd00:1::1", "fd00:2::1", "fd00:3::1")...)
	passed, denied := 0, 0
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(uint64(seed), 7))
		o := randomOracle(rng)
		text := o.text()
		c := parse(t, text).Compile(o.nodes)
		all := slices.Clone(places)
		for _, n := range o.nodes {
			all = append(all, n.Addrs...)
			for _, d := range n.Devices {
				all = append(all, d.Addrs...)
			}
		}
		for i := range o.nodes {
			n := &o.nodes[i]
			rules := c.Filter(n.ID)
			for range 40 {
				src, dst := all[rng.IntN(len(all))], all[rng.IntN(len(all))]
				if here := slices.Concat(n.Addrs, addrsOf(n.Devices)); rng.IntN(2) == 0 {
					dst = here[rng.IntN(len(here))]
				}
				proto := []int{6, 6, 17, 1, 58, 47, 132}[rng.IntN(7)]
				port := []int{22, 80, 81, 443, 65535, 1}[rng.IntN(6)]
				if o.sender(src) == nil {
					continue // WireGuard lets no one send with it
				}
				want := o.passes(src, dst, n, proto, port)
				if got := admitted(rules, src, dst, proto, port); got != want {
					t.Fatalf("seed %d, node %d: %v -> %v, protocol %d, port %d: %v, want %v\n%s\n%+v\n%s",
						seed, n.ID, src, dst, proto, port, got, want, text, o.nodes, show(rules))
				}
				if want {
					passed++
				} else {
					denied++
				}
				cap := []string{"example.com/cap/x", "example.com/cap/y"}[rng.IntN(2)]
				if got, want := granted(rules, src, dst, cap), o.holds(src, dst, n, cap); got != want {
					t.Fatalf("seed %d, node %d: %v -> %v: %s is %v, want %v\n%s\n%s", seed, n.ID, src, dst, cap, got, want, text, show(rules))
				}
			}
		}
		checkSees(t, seed, o, c)
		checkKeys(t, seed, o, c)
	}
	t.Logf("%d packets passed, %d were denied", passed, denied)
	if passed < 2*seeds || denied < seeds {
		t.Error("the worlds are too dull")
	}
}

// checkSees: peers are those of whom one has a rule by which the other may send.
func checkSees(t *testing.T, seed int, o *oracle, c *Compiled) {
	t.Helper()
	filters := map[tailcfg.NodeID][]tailcfg.FilterRule{}
	for _, n := range o.nodes {
		filters[n.ID] = c.Filter(n.ID)
	}
	mayReach := func(a, b *Node) bool {
		for _, r := range filters[b.ID] {
			for _, s := range r.SrcIPs {
				for _, n := range slices.Concat(a.Addrs, addrsOf(a.Devices)) {
					if inText(s, n) {
						return true
					}
				}
				// Routes and sources are nested or apart in these worlds.
				for _, p := range a.Routes {
					first, _, _ := strings.Cut(s, "-")
					first, _, _ = strings.Cut(first, "/")
					if inText(s, p.Addr()) || p.Contains(netip.MustParseAddr(first)) {
						return true
					}
				}
			}
		}
		return false
	}
	for i := range o.nodes {
		for j := range o.nodes {
			a, b := &o.nodes[i], &o.nodes[j]
			if want := i != j && (mayReach(a, b) || mayReach(b, a)); c.Sees(a.ID, b.ID) != want {
				t.Fatalf("seed %d: Sees(%d, %d) is not %v\n%s\n%+v\n%s\n%s", seed, a.ID, b.ID, want, o.text(), o.nodes, show(c.Filter(a.ID)), show(c.Filter(b.ID)))
			}
		}
	}
}

func addrsOf(ds []Device) (out []netip.Addr) {
	for _, d := range ds {
		out = append(out, d.Addrs...)
	}
	return out
}

// checkKeys: equal keys are equal rules.
func checkKeys(t *testing.T, seed int, o *oracle, c *Compiled) {
	t.Helper()
	rules := map[string]string{}
	keys := map[string]string{}
	for _, n := range o.nodes {
		b, err := json.Marshal(c.Filter(n.ID))
		if err != nil {
			t.Fatal(err)
		}
		key := c.FilterKey(n.ID)
		if was, ok := rules[key]; ok && was != string(b) {
			t.Fatalf("seed %d: one key for\n%s\nand\n%s", seed, was, b)
		}
		if was, ok := keys[string(b)]; ok && was != key {
			t.Fatalf("seed %d: two keys for\n%s", seed, b)
		}
		rules[key], keys[string(b)] = string(b), key
	}
}
