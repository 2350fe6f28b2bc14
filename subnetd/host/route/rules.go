package route

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sort"

	"subnetd/subnetd/host"

	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A packet passes our rules in this order, each at its distance from the first:
//
//	RuleMark       our own packets: the main table
//	RuleMesh       the mesh's prefixes, those of exit nodes included
//	RuleLocal      the home: the main table but for its default routes
//	RuleWay + i    marked for a way: its table
//	RuleDirect     marked as if there were no exits, or for a way that has none now
//	               and does not block: on at RuleEnd
//	RuleFrom       no mark: whose address has a way
//	RuleInterface  no mark: what came in by an interface that has a way
//	RuleEnd        nothing of ours any more; rules of others follow
//
// Without ways there are only the first two. Who does as if there were no exits does
// not look up the main table here: rules of others (pbr's) decide about him, too.

// notLocal is how long a prefix of the main table may be and still be a default
// route: 0.0.0.0/1 with 128.0.0.0/1, and 2000::/3, are how other VPNs write one.
const notLocal = 3

// rule is what we compare of a policy rule; everything else must be unset.
type rule struct {
	Family      uint8
	Priority    uint32
	Action      uint8 // FR_ACT_*
	Table, Goto uint32
	Mark, Mask  uint32
	From        netip.Prefix // invalid: from all
	Incoming    string       // interface; "": by any
	Suppress    uint32       // 1 + the length of prefixes that do not count; 0: all count
	Conditional bool         // it has conditions we never write
}

// rulesFor gives the rules of one family, in the order in which they have to come.
// The mark rule comes before that of the mesh: a moment with the other one alone
// would send our own packets into the tunnel. None goes on at RuleEnd before it is
// there.
func rulesFor(f uint8, want host.Route) []rule {
	at := func(priority uint32) uint32 { return priority - host.RuleMark + base(want) }
	table := func(priority, table uint32) rule {
		return rule{Family: f, Priority: at(priority), Action: unix.FR_ACT_TO_TBL, Table: table}
	}
	own := table(host.RuleMark, unix.RT_TABLE_MAIN)
	own.Mark, own.Mask = host.Mark, host.MarkMask
	out := []rule{own, table(host.RuleMesh, host.RouteTable)}
	if len(want.Ways) == 0 {
		return out
	}
	local := table(host.RuleLocal, unix.RT_TABLE_MAIN)
	local.Suppress = 1 + notLocal
	out = append(out, rule{Family: f, Priority: at(host.RuleEnd), Action: unix.FR_ACT_NOP}, local)
	for i := range want.Ways {
		r := table(host.RuleWay+uint32(i), tableOf(i))
		r.Mark, r.Mask = host.WayMark(i), host.MarkMask
		out = append(out, r)
	}
	way := func(priority uint32, i int) rule {
		if i >= 0 && (want.Ways[i].Interface != "" || want.Ways[i].Block) {
			return table(priority, tableOf(i))
		}
		return rule{Family: f, Priority: at(priority), Action: unix.FR_ACT_GOTO, Goto: at(host.RuleEnd)}
	}
	direct, thrown := way(host.RuleDirect, -1), way(host.RuleDirect, -1)
	direct.Mark, direct.Mask = host.DirectMark, host.MarkMask
	thrown.Mark, thrown.Mask = host.WayMark(0), host.WayMark(0) // the bit that all ways have
	out = append(out, direct, thrown)
	var last []rule // by interface
	for _, s := range want.Sources {
		switch {
		case s.Interface == "lo" && s.Way >= 0:
			first, rest := routerRules(f, s.Way, want.Addresses, way)
			out, last = append(out, first...), append(last, rest...)
		case s.Interface != "" && s.Interface != "lo":
			r := way(host.RuleInterface, s.Way)
			r.Incoming = s.Interface
			last = append(last, r)
		case s.From.IsValid() && s.From.Is4() == (f == unix.AF_INET):
			r := way(host.RuleFrom, s.Way)
			r.From = netip.PrefixFrom(s.From, s.From.BitLen())
			out = append(out, r)
		}
	}
	return append(out, last...)
}

// routerRules are for what the router itself sends, if it has not chosen to send from
// an address of its own: answers on the WAN, and who watches the uplink, go where
// they went. The kernel also asks as if the router sent when it validates the source
// of a packet that came in (rp_filter): then the packet's destination is the source.
func routerRules(f uint8, i int, own []netip.Prefix, way func(uint32, int) rule) (first, last []rule) {
	lo := func(priority uint32, i int, from netip.Prefix) rule {
		r := way(priority, i)
		r.Incoming, r.From = "lo", from
		return r
	}
	if f == unix.AF_INET6 { // a lookup without a source fits no prefix there
		public := netip.MustParsePrefix("2000::/3")
		return []rule{lo(host.RuleFrom, -1, public)}, []rule{lo(host.RuleInterface, i, netip.Prefix{})}
	}
	last = []rule{lo(host.RuleInterface, i, netip.PrefixFrom(netip.IPv4Unspecified(), 32))}
	for _, p := range own {
		if p.Addr().Is4() {
			last = append(last, lo(host.RuleInterface, i, p))
		}
	}
	return nil, last
}

// base is the priority of the first of our rules.
func base(want host.Route) uint32 {
	if want.Priority == 0 {
		return host.RuleMark
	}
	return want.Priority
}

// tableOf is the table of way i.
func tableOf(i int) uint32 { return host.RouteTable + 1 + uint32(i) }

// setRules adds the rules that want has, and then removes what else is ours, also
// where another priority was wanted before.
func (k *kernel) setRules(want host.Route) error {
	var errs []error
	for _, f := range families() {
		have, err := k.rules(f)
		if err != nil {
			errs = append(errs, fmt.Errorf("read rules: %w", err))
			continue
		}
		var wanted []rule
		if want.Interface != "" {
			wanted = rulesFor(f, want)
		}
		for _, r := range wanted {
			if !slices.Contains(have, r) {
				errs = append(errs, k.changeRule(unix.RTM_NEWRULE, r))
			}
		}
		for _, r := range oldRules(have, wanted, base(want)) {
			errs = append(errs, k.changeRule(unix.RTM_DELRULE, r))
		}
	}
	return errors.Join(errs...)
}

// oldRules are those of have that are ours and wanted no more, in the order in which
// they have to go.
func oldRules(have, wanted []rule, now uint32) []rule {
	bases := []uint32{now, host.RuleMark, host.RuleEarly}
	for _, r := range have {
		if p := r.Priority - host.RuleMesh + host.RuleMark; r == (rule{Family: r.Family, Priority: r.Priority, Action: unix.FR_ACT_TO_TBL, Table: host.RouteTable}) {
			bases = append(bases, p)
		}
	}
	var out []rule
	for i, r := range have {
		again := slices.Contains(have[:i], r)
		if ours(r, bases) && (again || !slices.Contains(wanted, r)) {
			out = append(out, r)
		}
	}
	sort.SliceStable(out, func(i, j int) bool {
		if a, b := out[i].Action == unix.FR_ACT_NOP, out[j].Action == unix.FR_ACT_NOP; a != b {
			return b
		}
		return out[i].Priority > out[j].Priority
	})
	return out
}

// ours reports whether r is like one of ours: it leads to our tables or has our marks;
// or it stands among rules of ours, which begin at one of bases.
func ours(r rule, bases []uint32) bool {
	if r.Conditional {
		return false
	}
	if r.Mask == host.MarkMask && r.Action == unix.FR_ACT_TO_TBL && r.Mark == host.Mark && r.Table == unix.RT_TABLE_MAIN {
		return true
	}
	if r.Action == unix.FR_ACT_TO_TBL && r.Table >= host.RouteTable && r.Table <= tableOf(host.MaxWays-1) {
		return r.Mask == 0 || r.Mask == host.MarkMask
	}
	return slices.ContainsFunc(bases, func(base uint32) bool {
		end := base + host.RuleEnd - host.RuleMark
		switch r.Priority - base + host.RuleMark {
		case host.RuleLocal:
			return r == rule{Family: r.Family, Priority: r.Priority, Action: unix.FR_ACT_TO_TBL, Table: unix.RT_TABLE_MAIN, Suppress: 1 + notLocal}
		case host.RuleDirect, host.RuleFrom, host.RuleInterface:
			return r.Action == unix.FR_ACT_GOTO && r.Goto == end
		case host.RuleEnd:
			return r == rule{Family: r.Family, Priority: r.Priority, Action: unix.FR_ACT_NOP}
		}
		return false
	})
}

func (k *kernel) changeRule(kind int, r rule) error {
	if err := k.change(kind, create(kind == unix.RTM_NEWRULE), r.message()); err != nil && !done(err) {
		return fmt.Errorf("rule %d: %w", r.Priority, err)
	}
	return nil
}

func (r rule) message() *rtnetlink.RuleMessage {
	a := &rtnetlink.RuleAttributes{Priority: &r.Priority}
	m := &rtnetlink.RuleMessage{Family: r.Family, Action: r.Action, Attributes: a}
	if r.Table != 0 {
		a.Table = &r.Table
	}
	if r.Goto != 0 {
		a.Goto = &r.Goto
	}
	if r.Mask != 0 {
		a.FwMark, a.FwMask = &r.Mark, &r.Mask
	}
	if r.From.IsValid() {
		ip := net.IP(r.From.Addr().AsSlice())
		a.Src, m.SrcLength = &ip, uint8(r.From.Bits())
	}
	if r.Incoming != "" {
		a.IIFName = &r.Incoming
	}
	if r.Suppress > 0 {
		longest := r.Suppress - 1
		a.SuppressPrefixLen = &longest
	}
	return m
}

// rules reads the policy rules of one family. It decodes them itself: other
// people's rules may carry attributes that no library knows yet.
func (k *kernel) rules(f uint8) ([]rule, error) {
	msgs, err := k.dump(unix.RTM_GETRULE, &rtnetlink.RuleMessage{Family: f})
	if err != nil {
		return nil, err
	}
	var out []rule
	for _, msg := range msgs {
		r, err := parseRule(msg.Data)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// parseRule reads a fib_rule_hdr (12 bytes) and the attributes behind it.
func parseRule(b []byte) (rule, error) {
	const header = 12
	if len(b) < header {
		return rule{}, fmt.Errorf("rule of %d bytes", len(b))
	}
	r := rule{Family: b[0], Table: uint32(b[4]), Action: b[7]}
	source := int(b[2])
	flags := binary.NativeEndian.Uint32(b[8:header])
	r.Conditional = b[1] != 0 || b[3] != 0 || flags&unix.FIB_RULE_INVERT != 0 ||
		r.Action != unix.FR_ACT_TO_TBL && r.Action != unix.FR_ACT_GOTO && r.Action != unix.FR_ACT_NOP
	ad, err := netlink.NewAttributeDecoder(b[header:])
	if err != nil {
		return rule{}, err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.FRA_PRIORITY:
			r.Priority = ad.Uint32()
		case unix.FRA_TABLE:
			r.Table = ad.Uint32()
		case unix.FRA_GOTO:
			r.Goto = ad.Uint32()
		case unix.FRA_FWMARK:
			r.Mark = ad.Uint32()
		case unix.FRA_FWMASK:
			r.Mask = ad.Uint32()
		case unix.FRA_SRC:
			if a, ok := netip.AddrFromSlice(ad.Bytes()); ok {
				r.From = netip.PrefixFrom(a, source)
			}
		case unix.FRA_IIFNAME:
			r.Incoming = ad.String()
		case unix.FRA_PROTOCOL, unix.FRA_PAD:
		case unix.FRA_SUPPRESS_PREFIXLEN:
			r.Suppress = 1 + ad.Uint32() // -1: not set
		case unix.FRA_SUPPRESS_IFGROUP:
			r.Conditional = r.Conditional || ad.Uint32() != ^uint32(0) // -1: not set
		default:
			r.Conditional = true
		}
	}
	return r, ad.Err()
}
