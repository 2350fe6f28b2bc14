// Package firewall is the hand that keeps our nftables tables: `inet subnetd`, the
// policy at the edge between mesh and home, `inet subnetd_home`, the way to a
// coordinator here, and `inet subnetd_port`, one UDP port for WireGuard in the
// kernel and for us. It talks to the kernel by netlink only and touches no other
// table.
//
//	Set     policy -> compile -> for each table: bring
//	bring   equal digest and intact: nothing; only sets differ: update;
//	        else: replace
package firewall

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"subnetd/subnetd/host"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	chunk      = 256     // set elements per netlink message: an attribute holds 64 KiB
	socketSize = 8 << 20 // bytes: one transaction goes out in one piece, its answers come at once
)

// Firewall applies packet policies. It keeps no state: what is applied is read
// from the kernel, so that a restarted daemon adopts what it finds.
type Firewall struct {
	log  *slog.Logger
	dial func() (*nftables.Conn, error)
}

// New returns the hand. It touches nothing.
func New(log *slog.Logger) *Firewall { return &Firewall{log: log, dial: dial} }

// Set makes our tables the ones for cfg, each in one transaction of the kernel,
// and changes nothing where that is so already. A value without an interface has
// no table of the edge, one without a redirect none of the coordinator, one without
// a share none of the port. On error the kernel keeps the table it had; the others
// are brought nevertheless.
func (f *Firewall) Set(ctx context.Context, cfg host.Firewall) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	tables, err := compile(cfg)
	if err != nil {
		return err
	}
	for _, t := range tables {
		err = cmp.Or(err, f.bring(ctx, t))
	}
	return err
}

// SetShare is Set for the sharing of the port alone, all else stays: whether the
// kernel can do that has to be known before there is anything to guard.
func (f *Firewall) SetShare(ctx context.Context, s host.PortShare) error {
	t, err := sharing(s)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	return f.bring(ctx, t)
}

// bring makes the kernel's table t.
func (f *Firewall) bring(ctx context.Context, t *table) error {
	conn, err := f.dial()
	if err != nil {
		return err
	}
	if len(t.chains) == 0 {
		return f.remove(conn, t)
	}
	want, err := t.digest()
	if err != nil {
		return err
	}
	have, err := t.marker(conn)
	if err != nil {
		return err
	}
	log := f.log.With("table", t.name)
	level := slog.LevelInfo
	switch {
	case have == want:
		whole, broken := t.intact(conn)
		if broken != nil || whole {
			return broken
		}
		log.Warn("somebody changed the firewall table of subnetd, it is loaded again")
		err = t.replace(conn, want)
	case have.rules == want.rules:
		level = slog.LevelDebug
		if why := t.update(conn, want); why != nil {
			log.Debug("firewall sets not changed in place, the table is loaded again", "why", why)
			if conn, err = f.dial(); err == nil { // a new one: nothing is left of what update queued
				err = t.replace(conn, want)
			}
		}
	default:
		err = t.replace(conn, want)
	}
	if err != nil {
		return err
	}
	log.Log(ctx, level, "firewall policy applied", "chains", len(t.chains), "sets", len(t.sets), "was", have, "is", want)
	return nil
}

func dial() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		if err := c.SetWriteBuffer(socketSize); err != nil {
			return fmt.Errorf("write buffer: %w", err)
		}
		if err := c.SetReadBuffer(socketSize); err != nil {
			return fmt.Errorf("read buffer: %w", err)
		}
		return nil
	}))
	if err != nil {
		return nil, explain("open netlink", err)
	}
	return conn, nil
}

// explain says in one sentence why the kernel refused.
func explain(doing string, err error) error {
	why := ""
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		why = "not permitted, root (CAP_NET_ADMIN) is needed: "
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT),
		errors.Is(err, unix.EINVAL) && doing == "list tables": // nfnetlink without nf_tables behind it
		why = "this kernel has no nftables (nf_tables): "
	case errors.Is(err, unix.ENOENT) && doing == "replace table":
		why = "this kernel lacks a part of nftables (kernel 5.7 or newer with nft_ct, nft_nat, nft_masq is needed): "
	}
	return fmt.Errorf("firewall: %s: %s%w", doing, why, err)
}

func (t *table) nft() *nftables.Table {
	return &nftables.Table{Name: t.name, Family: nftables.TableFamilyINet}
}

func (t *table) exists(conn *nftables.Conn) (bool, error) {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, explain("list tables", err)
	}
	return slices.ContainsFunc(tables, func(x *nftables.Table) bool { return x.Name == t.name }), nil
}

// intact reports whether the kernel's table has as many rules and set elements
// as t in each place. It finds what others flushed, added or deleted, not an
// exchange of one for another.
func (t *table) intact(conn *nftables.Conn) (bool, error) {
	if whole, err := t.rulesIntact(conn); err != nil || !whole {
		return false, err
	}
	for _, s := range t.sets {
		elements, err := conn.GetSetElements(s.nft(t.nft()))
		if errors.Is(err, unix.ENOENT) || err == nil && len(elements) != len(s.values) {
			return false, nil
		}
		if err != nil {
			return false, explain("read sets", err)
		}
	}
	return true, nil
}

// rulesIntact is intact for the rules alone.
func (t *table) rulesIntact(conn *nftables.Conn) (bool, error) {
	for _, c := range t.chains {
		rules, err := conn.GetRules(t.nft(), &nftables.Chain{Name: c.name})
		if errors.Is(err, unix.ENOENT) || err == nil && len(rules) != len(c.rules) {
			return false, nil
		}
		if err != nil {
			return false, explain("read rules", err)
		}
	}
	return true, nil
}

func (f *Firewall) remove(conn *nftables.Conn, t *table) error {
	exists, err := t.exists(conn)
	if err != nil || !exists {
		return err
	}
	conn.DelTable(t.nft())
	if err := conn.Flush(); err != nil {
		return explain("remove table", err)
	}
	f.log.Info("firewall policy removed", "table", t.name)
	return nil
}

// replace puts t in the place of whatever the kernel's table is, in one
// transaction.
func (t *table) replace(conn *nftables.Conn, is digest) error {
	tab := t.nft()
	conn.AddTable(tab) // so that the next line finds one
	conn.DelTable(tab)
	conn.AddTable(tab)
	chains := make([]*nftables.Chain, len(t.chains))
	for i, c := range t.chains {
		chains[i] = conn.AddChain(c.nft(tab))
	}
	for _, s := range t.sets {
		out := s.nft(tab)
		if err := cmp.Or(conn.AddSet(out, nil), inChunks(conn.SetAddElements, out, s.values)); err != nil {
			return fmt.Errorf("firewall: set %s: %w", s.name, err)
		}
	}
	for i, c := range t.chains {
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{Table: tab, Chain: chains[i], Exprs: r})
		}
	}
	conn.AddChain(&nftables.Chain{Table: tab, Name: markerChain})
	is.mark(conn, tab)
	if err := conn.Flush(); err != nil {
		return explain("replace table", err)
	}
	return nil
}

func (c chain) nft(tab *nftables.Table) *nftables.Chain {
	out := &nftables.Chain{Table: tab, Name: c.name}
	if c.hook != nil {
		policy := nftables.ChainPolicyAccept
		out.Type, out.Hooknum, out.Priority, out.Policy = c.hook.kind, &c.hook.num, &c.hook.priority, &policy
	}
	return out
}

func (s set) nft(tab *nftables.Table) *nftables.Set {
	out := &nftables.Set{Table: tab, Name: s.name, KeyType: s.key,
		Interval: s.kind != plain && s.kind != addresses, Concatenation: s.kind == concat}
	switch s.kind {
	case verdicts:
		out.IsMap, out.DataType = true, nftables.TypeVerdict
	case addresses:
		out.IsMap, out.DataType = true, s.key
	}
	if s.key == nftables.TypeIFName {
		out.KeyByteOrder = binaryutil.NativeEndian
	}
	return out
}

// inChunks hands elements to an operation in pieces that fit into a message.
func inChunks(do func(*nftables.Set, []nftables.SetElement) error, s *nftables.Set, elements []nftables.SetElement) error {
	for c := range slices.Chunk(elements, chunk) {
		if err := do(s, c); err != nil {
			return err
		}
	}
	return nil
}
