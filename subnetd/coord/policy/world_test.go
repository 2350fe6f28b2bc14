package policy

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"tailscale.com/tailcfg"
)

// Small worlds, made so that most selectors hit something.

func randomOracle(rng *rand.Rand) *oracle {
	pick := func(ss ...string) string { return ss[rng.IntN(len(ss))] }
	o := &oracle{
		groups: map[string][]string{"group:x": {"anna@", "ben"}, "group:y": {"ben@"}, "group:z": {}},
		hosts:  map[string]string{"one": "100.64.0.2", "lan": "192.168.1.0/24", "far": "10.9.0.0/16"},
	}
	for i := range 1 + rng.IntN(5) {
		n := Node{ID: tailcfg.NodeID(i*i + 1), Addrs: addrs(fmt.Sprintf("100.64.0.%d", i+1), fmt.Sprintf("fd7a:115c:a1e0::%d", i+1))}
		switch rng.IntN(8) {
		case 0, 1:
			n.Tags = []string{pick("tag:a", "tag:b")}
		case 2:
			n.Tags, n.User = []string{"tag:b", "tag:a"}, pick("", "anna")
		case 3: // of no one
		default:
			n.User = pick("anna", "ben", "cleo@example.com")
		}
		for d := range rng.IntN(3) {
			n.Devices = append(n.Devices, Device{pick("tv", "radio"), addrs(fmt.Sprintf("100.64.%d.%d", i+1, d))})
		}
		if rng.IntN(2) == 0 {
			n.Routes = prefixes(fmt.Sprintf("192.168.%d.0/24", i), fmt.Sprintf("fd00:%d::/64", i))
		}
		n.Exit = rng.IntN(3) == 0
		o.nodes = append(o.nodes, n)
	}
	rng.Shuffle(len(o.nodes), func(i, j int) { o.nodes[i], o.nodes[j] = o.nodes[j], o.nodes[i] })
	who := []string{"anna@", "ben@", "cleo@example.com", "zoe@", "group:x", "group:y", "group:z", "tag:a", "tag:b", "autogroup:member", "autogroup:tagged"}
	where := []string{"*", "one", "lan", "far", "100.64.0.1", "100.64.0.0/30", "100.64.0.2-100.64.2.1", "192.168.0.0/16", "192.168.1.128/25", "8.8.0.0/16", "100.64.0.0/10", "8.0.0.0/5"}
	where6 := []string{"fd7a:115c:a1e0::2", "fd00::/16", "fd7a:115c:a1e0::1-fd7a:115c:a1e0::3"}
	some := func(max int, from ...string) (out []string) {
		for range 1 + rng.IntN(max) {
			out = append(out, pick(from...))
		}
		return out
	}
	for range rng.IntN(8) {
		r := oracleRule{src: some(3, slices.Concat(who, where, where6)...)}
		dst := append(slices.Concat(who, where), "autogroup:internet", "device:tv", "device:radio")
		if rng.IntN(3) == 0 {
			r.src = some(2, "anna@", "ben@", "group:x", "autogroup:member")
			dst = append(dst, "autogroup:self", "autogroup:self", "autogroup:self", "autogroup:self", "autogroup:self")
		}
		if rng.IntN(2) == 0 { // an acl
			r.proto = pick("", "", "tcp", "udp", "icmp", "47")
			ports := []string{"*"}
			if r.proto == "" || r.proto == "tcp" || r.proto == "udp" {
				ports = []string{"*", "22", "80,443", "20-90", "81,80,443"}
			}
			for _, s := range where6 {
				dst = append(dst, "["+s+"]")
			}
			for _, d := range some(3, dst...) {
				r.dst = append(r.dst, d+":"+pick(ports...))
			}
		} else {
			r.dst = some(3, append(dst, where6...)...)
			if rng.IntN(3) > 0 {
				r.ip = some(3, "*", "tcp:22", "udp:*", "80-90", "icmp", "47:*", "tcp:80,443", "22")
			}
			if r.ip == nil || rng.IntN(3) == 0 {
				r.dst = slices.DeleteFunc(r.dst, func(s string) bool { return s == "autogroup:internet" })
				r.app = pick("example.com/cap/x", "example.com/cap/y")
			}
		}
		o.rules = append(o.rules, r)
	}
	return o
}
