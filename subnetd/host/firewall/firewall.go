// Package firewall is the hand that keeps our nftables table: the policy at the
// edge between mesh and home. It talks to the kernel by netlink only and touches
// no table but `inet subnetd`.
package firewall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"subnetd/subnetd/host"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
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

// Set makes our table the one for cfg, in one transaction of the kernel: at no
// time is there no policy or half of one. If the table is already that, nothing
// is changed. A value without an interface and a redirect removes the table. On error the kernel keeps what
// it had.
func (f *Firewall) Set(ctx context.Context, cfg host.Firewall) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	conn, err := f.dial()
	if err != nil {
		return err
	}
	if cfg.Interface == "" && !redirects(cfg.Redirect) {
		return f.remove(conn)
	}
	t, err := compile(cfg)
	if err != nil {
		return err
	}
	want, err := t.digest()
	if err != nil {
		return err
	}
	have, err := marker(conn)
	if err != nil {
		return err
	}
	if have == want {
		whole, err := t.intact(conn)
		if err != nil || whole {
			return err
		}
		f.log.Warn("somebody changed the firewall table of subnetd, it is loaded again")
	}
	if err := t.enqueue(conn, want); err != nil {
		return err
	}
	if err := conn.Flush(); err != nil {
		return explain("replace table", err)
	}
	f.log.Info("firewall policy applied", "rules", len(cfg.Rules), "sets", len(t.sets), "was", have, "is", want)
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

func ours() *nftables.Table {
	return &nftables.Table{Name: host.NftTable, Family: nftables.TableFamilyINet}
}

// marker returns the digest of the table in the kernel, "" if there is none.
func marker(conn *nftables.Conn) (string, error) {
	exists, err := tableExists(conn)
	if err != nil || !exists {
		return "", err
	}
	rules, err := conn.GetRules(ours(), &nftables.Chain{Name: markerChain})
	if err != nil {
		return "", explain("read marker", err)
	}
	if len(rules) != 1 {
		return "", nil
	}
	digest, _ := userdata.GetString(rules[0].UserData, userdata.TypeComment)
	return digest, nil
}

// intact reports whether the kernel's table has as many rules and set elements
// as t in each place. It finds what others flushed, added or deleted, not an
// exchange of one for another.
func (t *table) intact(conn *nftables.Conn) (bool, error) {
	for _, c := range t.chains {
		rules, err := conn.GetRules(ours(), &nftables.Chain{Name: c.name})
		if errors.Is(err, unix.ENOENT) || err == nil && len(rules) != len(c.rules) {
			return false, nil
		}
		if err != nil {
			return false, explain("read rules", err)
		}
	}
	for _, s := range t.sets {
		elements, err := conn.GetSetElements(s.nft(ours()))
		if errors.Is(err, unix.ENOENT) || err == nil && len(elements) != len(s.values) {
			return false, nil
		}
		if err != nil {
			return false, explain("read sets", err)
		}
	}
	return true, nil
}

func tableExists(conn *nftables.Conn) (bool, error) {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, explain("list tables", err)
	}
	for _, t := range tables {
		if t.Name == host.NftTable {
			return true, nil
		}
	}
	return false, nil
}

func (f *Firewall) remove(conn *nftables.Conn) error {
	exists, err := tableExists(conn)
	if err != nil || !exists {
		return err
	}
	conn.DelTable(ours())
	if err := conn.Flush(); err != nil {
		return explain("remove table", err)
	}
	f.log.Info("firewall policy removed")
	return nil
}

// enqueue puts the whole table into conn's next transaction.
func (t *table) enqueue(conn *nftables.Conn, digest string) error {
	tab := ours()
	conn.AddTable(tab) // so that the next line finds one
	conn.DelTable(tab)
	conn.AddTable(tab)
	chains := make([]*nftables.Chain, len(t.chains))
	for i, c := range t.chains {
		chains[i] = conn.AddChain(c.nft(tab))
	}
	for _, s := range t.sets {
		if err := s.enqueue(conn, tab); err != nil {
			return fmt.Errorf("firewall: set %s: %w", s.name, err)
		}
	}
	for i, c := range t.chains {
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{Table: tab, Chain: chains[i], Exprs: r})
		}
	}
	mark := conn.AddChain(&nftables.Chain{Table: tab, Name: markerChain})
	conn.AddRule(&nftables.Rule{Table: tab, Chain: mark,
		Exprs:    verdict(expr.VerdictReturn, ""),
		UserData: userdata.AppendString(nil, userdata.TypeComment, digest)})
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

func (s set) enqueue(conn *nftables.Conn, tab *nftables.Table) error {
	out := s.nft(tab)
	if err := conn.AddSet(out, nil); err != nil {
		return err
	}
	for rest := s.values; len(rest) > 0; {
		n := min(chunk, len(rest))
		if err := conn.SetAddElements(out, rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}
