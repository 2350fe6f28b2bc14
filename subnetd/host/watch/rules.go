package watch

import (
	"cmp"
	"fmt"
	"sort"

	"subnetd/subnetd/host"

	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// maxRules bounds how many policy rules are looked at.
const maxRules = 1024

// rules reads the policy rules of both families but the three that the kernel
// begins with.
func rules(c *netlink.Conn) ([]host.PolicyRule, error) {
	var out []host.PolicyRule
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		some, err := dump(c, unix.RTM_GETRULE, &rtnetlink.RuleMessage{Family: family}, parseRule)
		if err != nil && family == unix.AF_INET6 {
			continue // a kernel without IPv6, or without its rules
		}
		if err != nil {
			return nil, err
		}
		for _, r := range some {
			if r.Priority != 0 && r.Priority < 32766 && len(out) < maxRules {
				out = append(out, r)
			}
		}
	}
	sort.SliceStable(out, func(i, j int) bool {
		a, b := out[i], out[j]
		if a.V6 != b.V6 {
			return b.V6
		}
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Table, b.Table), cmp.Compare(a.Mark, b.Mark)) < 0
	})
	return out, nil
}

// parseRule reads a fib_rule_hdr (12 bytes) and the attributes behind it: only the
// few we need, as rules of others carry attributes of any kind.
func parseRule(b []byte) (host.PolicyRule, error) {
	const header = 12
	if len(b) < header {
		return host.PolicyRule{}, fmt.Errorf("rule of %d bytes", len(b))
	}
	r := host.PolicyRule{V6: b[0] == unix.AF_INET6, Table: uint32(b[4])}
	if b[7] != unix.FR_ACT_TO_TBL {
		r.Table = 0
	}
	ad, err := netlink.NewAttributeDecoder(b[header:])
	if err != nil {
		return host.PolicyRule{}, err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.FRA_PRIORITY:
			r.Priority = ad.Uint32()
		case unix.FRA_TABLE:
			r.Table = ad.Uint32()
		case unix.FRA_FWMARK:
			r.Mark = ad.Uint32()
		case unix.FRA_FWMASK:
			r.Mask = ad.Uint32()
		}
	}
	return r, ad.Err()
}
