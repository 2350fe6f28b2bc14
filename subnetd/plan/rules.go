package plan

import (
	"fmt"

	"subnetd/subnetd/host"
)

// Our policy rules among those of others.

const tableMain = 254 // unix.RT_TABLE_MAIN

// ruleSpan is how many priorities our rules take.
const ruleSpan = host.RuleLast - host.RuleMark + 1

// priority is that of the first of our rules: the owner's, or ours. mwan3 marks all
// that the LAN sends and routes it by rules at 2001 and behind, so that there we
// must be earlier.
func (p *Plan) priority(in Inputs) uint32 {
	base := in.Config.Exit.Priority
	if base == 0 {
		base = host.RuleMark
		for _, r := range in.Facts.Rules {
			if r.Mask != 0 && r.Mask&host.MarkMask == 0 && r.Table != 0 && r.Table != tableMain && r.Priority >= host.RuleEarly+ruleSpan && r.Priority < host.RuleMark {
				base = host.RuleEarly
			}
		}
	}
	p.clash(in.Facts.Rules, base)
	if base == host.RuleMark {
		return 0
	}
	return base
}

// clash tells of policy rules of others that use our table, mark or priorities.
func (p *Plan) clash(rules []host.PolicyRule, base uint32) {
	for _, r := range rules {
		what, fix := foreign(r, base)
		if what == "" {
			continue
		}
		p.problem("policy-rules", fmt.Sprintf("The policy rule %d of another program %s: what goes which way is uncertain.", r.Priority, what), fix)
		return // one says it
	}
}

// foreign says what of ours a rule of somebody else uses; "": it is ours, or uses
// nothing of ours. Rules of ours may still, or already, be at another base.
func foreign(r host.PolicyRule, base uint32) (what, fix string) {
	within := func(b uint32) bool { return r.Priority >= b && r.Priority-b < ruleSpan }
	own := within(base) || within(host.RuleMark) || within(host.RuleEarly)
	table := r.Table >= host.RouteTable && r.Table <= host.RouteTable+host.MaxWays
	mark := own && r.Mask&^host.MarkMask == 0
	switch {
	case table && !own:
		return fmt.Sprintf("uses the routing table %d, which is ours", r.Table), "Give that program another table."
	case r.Mask&host.MarkMask != 0 && !mark && (r.Mask != ^uint32(0) || r.Mark&host.MarkMask != 0):
		return fmt.Sprintf("looks at bits of the mark that are ours (0x%x/0x%x; ours are 0x%x)", r.Mark, r.Mask, host.MarkMask), "Give that program another mark."
	case within(base) && !table && r.Table != tableMain && r.Table != 0:
		return fmt.Sprintf("(table %d) stands among ours", r.Table), fmt.Sprintf("Move it, or set exit.priority so that %d numbers from there on are free.", ruleSpan)
	}
	return "", ""
}
