package route

import (
	"context"
	"encoding"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"subnetd/subnetd/host"

	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	flagExcl    = netlink.Excl
	flagReplace = netlink.Replace
	flagAppend  = netlink.Append
)

// kernel is one netlink conversation; it counts the changes it asked for.
type kernel struct {
	conn    *netlink.Conn
	changes int
}

func dial(ctx context.Context) (*kernel, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, err
	}
	// Both are niceties of newer kernels (4.12, 4.20).
	_ = c.SetOption(netlink.ExtendedAcknowledge, true)
	_ = c.SetOption(netlink.GetStrictCheck, true)
	if d, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(d); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return &kernel{conn: c}, nil
}

func (k *kernel) close() { _ = k.conn.Close() }

// create gives the flags of an addition, or none for a deletion.
func create(add bool) netlink.HeaderFlags {
	if add {
		return netlink.Create | netlink.Excl
	}
	return 0
}

// change sends one message that changes the kernel.
func (k *kernel) change(kind int, flags netlink.HeaderFlags, m encoding.BinaryMarshaler) error {
	data, err := m.MarshalBinary()
	if err != nil {
		return err
	}
	k.changes++
	_, err = k.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | netlink.Acknowledge | flags}, Data: data,
	})
	return err
}

// dump reads a kernel table.
func (k *kernel) dump(kind int, m encoding.BinaryMarshaler) ([]netlink.Message, error) {
	data, err := m.MarshalBinary()
	if err != nil {
		return nil, err
	}
	return k.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | netlink.Dump}, Data: data,
	})
}

// done: the change was made already, by us before or by somebody else.
func done(err error) bool {
	return errors.Is(err, os.ErrExist) || errors.Is(err, unix.ESRCH) ||
		errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENOENT)
}

// routes reads our table, both families.
func (k *kernel) routes() ([]rtnetlink.RouteMessage, error) {
	var out []rtnetlink.RouteMessage
	for _, f := range families() {
		req := &rtnetlink.RouteMessage{Family: f, Attributes: rtnetlink.RouteAttributes{Table: host.RouteTable}}
		msgs, err := k.dump(unix.RTM_GETROUTE, req)
		if errors.Is(err, unix.ENOENT) { // strict kernels: the table does not exist yet
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, msg := range msgs {
			var m rtnetlink.RouteMessage
			if err := m.UnmarshalBinary(msg.Data); err != nil {
				return nil, err
			}
			if m.Attributes.Table == host.RouteTable && m.Flags&unix.RTM_F_CLONED == 0 {
				out = append(out, m)
			}
		}
	}
	return out, nil
}

// linksOfTable names the interfaces our table leads to.
func (k *kernel) linksOfTable() ([]string, error) {
	all, err := k.routes()
	if err != nil {
		return nil, fmt.Errorf("read routes: %w", err)
	}
	var out []string
	for _, m := range all {
		if _, ours := plainRoute(&m, m.Attributes.OutIface); !ours {
			continue
		}
		link, err := net.InterfaceByIndex(int(m.Attributes.OutIface))
		if err == nil && !slices.Contains(out, link.Name) {
			out = append(out, link.Name)
		}
	}
	return out, nil
}

// families is what this kernel speaks.
func families() []uint8 {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return []uint8{unix.AF_INET}
	}
	return []uint8{unix.AF_INET, unix.AF_INET6}
}

// rule is what we compare of a policy rule; everything else must be unset.
type rule struct {
	Family      uint8
	Priority    uint32
	Table       uint32
	Mark, Mask  uint32
	Conditional bool // it has conditions we never write
}

// rules gives our own rules. The mark rule comes first: a moment with the other
// one alone would send our own packets into the tunnel.
func rules(f uint8) []rule {
	return []rule{
		{Family: f, Priority: host.RuleMark, Table: unix.RT_TABLE_MAIN, Mark: host.Mark, Mask: host.MarkMask},
		{Family: f, Priority: host.RuleMesh, Table: host.RouteTable},
	}
}

// setRules adds our rules, or removes them in reverse order.
func (k *kernel) setRules(want bool) error {
	var errs []error
	for _, f := range families() {
		have, err := k.rules(f)
		if err != nil {
			errs = append(errs, fmt.Errorf("read rules: %w", err))
			continue
		}
		own := rules(f)
		kind := unix.RTM_NEWRULE
		if !want {
			slices.Reverse(own)
			kind = unix.RTM_DELRULE
		}
		for _, r := range own {
			for n := count(have, r); (want && n == 0) || (!want && n > 0); n-- {
				if err := k.change(kind, create(want), r.message()); err != nil && !done(err) {
					errs = append(errs, fmt.Errorf("rule %d: %w", r.Priority, err))
				}
				if want {
					break
				}
			}
		}
	}
	return errors.Join(errs...)
}

func count(have []rule, r rule) int {
	n := 0
	for _, h := range have {
		if h == r {
			n++
		}
	}
	return n
}

func (r rule) message() *rtnetlink.RuleMessage {
	a := &rtnetlink.RuleAttributes{Priority: &r.Priority, Table: &r.Table}
	if r.Mask != 0 {
		a.FwMark, a.FwMask = &r.Mark, &r.Mask
	}
	return &rtnetlink.RuleMessage{Family: r.Family, Action: unix.FR_ACT_TO_TBL, Attributes: a}
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
	r := rule{Family: b[0], Table: uint32(b[4])}
	r.Conditional = b[1] != 0 || b[2] != 0 || b[3] != 0 || b[7] != unix.FR_ACT_TO_TBL
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
		case unix.FRA_FWMARK:
			r.Mark = ad.Uint32()
		case unix.FRA_FWMASK:
			r.Mask = ad.Uint32()
		case unix.FRA_PROTOCOL, unix.FRA_PAD:
		case unix.FRA_SUPPRESS_PREFIXLEN, unix.FRA_SUPPRESS_IFGROUP:
			r.Conditional = r.Conditional || ad.Uint32() != ^uint32(0) // -1: not set
		default:
			r.Conditional = true
		}
	}
	return r, ad.Err()
}
