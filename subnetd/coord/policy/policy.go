// Package policy understands Tailscale's policy file (HuJSON): who may reach
// what, who may carry which tag, whose routes need no approval, and which
// attributes a node has. It is pure: Parse a text, Compile it for the nodes there
// are, ask for the filter of each. Whatever would restrict access and is not
// understood is a mistake, never ignored.
//
// Format: https://tailscale.com/docs/reference/syntax/policy-file. Where that
// leaves room, or a home differs from a company:
//
//   - Without both acls and grants everything is allowed, as Tailscale documents
//     it for an omitted acls section. An empty list in one of them denies everything.
//   - A node is of its tags, else of its user, never of both. Login names are
//     compared without regard to case; anna and anna@ are the same. In rules a
//     user has the @, since a plain word is a host; elsewhere both are right.
//   - What sends for a node as source: its addresses, its devices' and its routes,
//     since a router need not masquerade its LAN.
//   - What a user, group, tag or autogroup reaches as destination: the addresses of
//     its nodes and of the devices behind them, but not routes. autogroup:self
//     leaves the devices out. "*" is all that a node serves: addresses, devices,
//     routes and, on an exit node, the internet. Addresses, prefixes, ranges and
//     hosts mean the part of them that a node serves. "device:NAME" means the
//     devices of that name.
//   - autogroup:admin, owner, network-admin and it-admin are the owner of the home,
//     who acts by the command line and needs no permission there: as tag owner and
//     approver they name no login, in rules they are refused.
//   - "icmp" is ICMP of both families. A name alone, like "icmp", is allowed in ip.
//   - ssh, sshTests, derpMap, disableIPv4 and OneCGNATRoute have no meaning here,
//     unused postures and ipsets neither: see Policy.Ignored.
package policy

import (
	"net/netip"
	"slices"
	"strings"

	"tailscale.com/tailcfg"
)

// DefaultText is the policy of a home that has none: members reach everything,
// devices with tags reach nothing.
const DefaultText = `// Members, that is devices without tags, reach everything:
// each other, what the homes expose, and the internet through exit nodes.
{
	"acls": [
		{"action": "accept", "src": ["autogroup:member"], "dst": ["*:*"]},
	],
}
`

// absentText is what a policy without acls and grants means.
const absentText = `{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}`

// Policy is a policy that was understood and whose tests pass. It is never
// changed: any number of goroutines may use it.
type Policy struct {
	text    string
	ignored []string
	groups  map[string][]string   // logins, sorted
	hosts   map[string]set        // by lower-case name
	tags    map[string][]selector // owners of each tag
	routes  []approval
	exits   []selector // whose exit nodes need no approval
	rules   []rule
	attrs   []attr
	tests   []test
	named   []span // addresses that rules and tests name
}

// approval is whose routes inside prefix need no approval.
type approval struct {
	prefix netip.Prefix
	who    []selector
}

// rule lets src do what each of allow says.
type rule struct {
	src   []selector
	allow []permit
	self  bool // only with devices of the same user; the dst of each permit is autogroup:self
}

// permit is packets to dst, or capabilities there.
type permit struct {
	dst     []selector
	protos  []int               // IANA numbers; nil: TCP, UDP and ICMP
	ports   []tailcfg.PortRange // ascending, apart
	caps    tailcfg.PeerCapMap  // not nil: no packets, but these
	capsKey string              // caps in one canonical form
}

// attr is attributes for the nodes that target names.
type attr struct {
	target []selector
	caps   tailcfg.NodeCapMap
}

// Parse understands src, at most 1 MiB, and runs its tests. The error is an *Error.
func Parse(src []byte) (*Policy, error) {
	r := &reader{src: string(src)}
	p := r.policy()
	if r.err != nil {
		return nil, r.err
	}
	if err := p.Test(); err != nil {
		return nil, err
	}
	return p, nil
}

// Default is DefaultText, understood.
func Default() *Policy {
	p, err := Parse([]byte(DefaultText))
	if err != nil {
		panic("policy: the default: " + err.Error())
	}
	return p
}

// Text is the source as it was given.
func (p *Policy) Text() string { return p.text }

// Ignored names the sections that are there but have no meaning here.
func (p *Policy) Ignored() []string { return slices.Clone(p.ignored) }

// KnowsTag reports whether tagOwners has the tag.
func (p *Policy) KnowsTag(tag string) bool {
	_, ok := p.tags[tag]
	return ok
}

// MayTag reports whether user, a login name or a tag that a node carries already,
// may give a node the tag: as an owner, or as owner of a tag that is an owner.
func (p *Policy) MayTag(user, tag string) bool {
	asTag := strings.HasPrefix(user, tagPrefix)
	by := Node{User: user}
	if asTag {
		by = Node{Tags: []string{user}}
	}
	seen := map[string]bool{}
	for todo := []string{tag}; len(todo) > 0; todo = todo[1:] {
		if seen[todo[0]] {
			continue
		}
		seen[todo[0]] = true
		for _, owner := range p.tags[todo[0]] {
			if owner.owns(identity(by)) {
				return true
			}
			if owner.kind == byTag {
				todo = append(todo, owner.names[0])
			}
		}
	}
	return false
}

// AutoApproves reports whether route, advertised by a node of that user or with
// those tags, needs no approval: it lies in a prefix of autoApprovers.routes, or
// is a default route and exitNode names the node.
func (p *Policy) AutoApproves(user string, tags []string, route netip.Prefix) bool {
	if !route.IsValid() {
		return false
	}
	by := identity(Node{User: user, Tags: tags})
	if route.Bits() == 0 {
		return anyOwns(p.exits, by)
	}
	return slices.ContainsFunc(p.routes, func(a approval) bool {
		return a.prefix.Bits() <= route.Bits() && a.prefix.Contains(route.Addr()) && anyOwns(a.who, by)
	})
}
