// Package firewall is the hand that keeps our nftables tables: `inet subnetd`, the
// policy at the edge between mesh and home, `inet subnetd_home`, the way to a
// coordinator here, `inet subnetd_port` and `inet subnetd_exits`, one UDP port for
// WireGuard in the kernel and for us, and `inet subnetd_guard`, the kill switch. It
// talks to the kernel by netlink only and touches no other table.
//
//	Set     policy -> compile -> names -> for each table: bring
//	Restore others were here -> bring what was brought, before anybody makes a plan
//	bring   equal digest and whole: nothing; ours but another: swap, by which no
//	        packet of an allowed flow is lost; else: replace
package firewall

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"

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

// Firewall applies packet policies. What is applied is read from the kernel, so that
// a restarted daemon adopts what it finds. For as long as nobody else touches nftables
// it is known, and need not be read again. Its methods may be called from several
// goroutines.
type Firewall struct {
	log  *slog.Logger
	dial func() (*nftables.Conn, error)

	mu     sync.Mutex // guards all below, and has all changes take turns
	exits  *table     // of SetExits
	wanted []*named   // all that were brought, the kill switch first
	gen    uint32     // the kernel's count of transactions when left was so
	left   map[string]left
	told   told // by Closed
}

// left is how a table was left.
type left struct {
	digest digest // zero: there is none
	stock  stock
}

// New returns the hand. It touches nothing.
func New(log *slog.Logger) *Firewall {
	return &Firewall{log: log, dial: dial, exits: &table{name: host.NftExitsTable}, left: map[string]left{}}
}

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
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bring(ctx, append(tables, f.exits)...)
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
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bring(ctx, t)
}

// bring makes the kernel's tables these; f.mu is held. The first error counts, and
// keeps none of the others from being brought.
func (f *Firewall) bring(ctx context.Context, tables ...*table) (err error) {
	f.recall()
	for _, t := range tables {
		err = cmp.Or(err, f.bringOne(ctx, t))
	}
	return err
}

func (f *Firewall) bringOne(ctx context.Context, t *table) error {
	want, err := f.name(t)
	if err != nil {
		return err
	}
	known, ok := f.left[t.name]
	if ok && known.digest == want.digest {
		return nil
	}
	conn, err := f.dial()
	if err != nil {
		return err
	}
	defer func() { _ = conn.CloseLasting() }()
	want.commits = 0
	if ok && known.digest != (digest{}) {
		err = f.exchange(ctx, conn, want, known.digest, &known.stock)
	} else {
		err = f.change(ctx, conn, want)
	}
	if err != nil {
		clear(f.left)
		return err
	}
	f.gen += want.commits
	f.left[t.name] = left{want.digest, want.stock()}
	f.keep(want)
	return nil
}

// name gives a table its names; those of what was brought last are known, and need not
// be found again.
func (f *Firewall) name(t *table) (*named, error) {
	if i := f.indexOf(t.name); i >= 0 && reflect.DeepEqual(f.wanted[i].of, t) {
		return f.wanted[i], nil
	}
	return t.named()
}

func (f *Firewall) indexOf(table string) int {
	return slices.IndexFunc(f.wanted, func(w *named) bool { return w.name == table })
}

// keep has Restore know of a table that was brought.
func (f *Firewall) keep(t *named) {
	switch i := f.indexOf(t.name); {
	case i >= 0:
		f.wanted[i] = t
	case t.name == host.NftGuardTable:
		f.wanted = slices.Insert(f.wanted, 0, t)
	default:
		f.wanted = append(f.wanted, t)
	}
}

// Restore looks at our tables again if others changed nftables since we last did, which
// it says: what is gone comes back, the kill switch first. Where nobody did it costs one
// question.
func (f *Firewall) Restore(ctx context.Context) (others bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.recall()
	for _, t := range slices.Clone(f.wanted) {
		if _, known := f.left[t.name]; !known {
			others, err = true, cmp.Or(err, f.bringOne(ctx, t.of))
		}
	}
	return others, err
}

// recall forgets what is not sure: where the kernel has counted other transactions, one
// was not ours.
func (f *Firewall) recall() {
	gen, err := transactions()
	if err != nil || gen != f.gen { // who asks the kernel next will hear why
		clear(f.left)
	}
	f.gen = gen
}

// change makes want of what the kernel has, which is to be found out.
func (f *Firewall) change(ctx context.Context, conn *nftables.Conn, want *named) error {
	if len(want.chains) == 0 {
		return f.remove(conn, want)
	}
	was, err := want.marker(conn)
	switch {
	case err != nil:
		return err
	case was == digest{}:
		err = want.load(conn)
	case was != want.digest:
		return f.exchange(ctx, conn, want, was, nil)
	default:
		there, flaw, err := want.inspect(conn, true)
		if err != nil {
			return err
		}
		if flaw == "" {
			return want.tidy(conn, there)
		}
		f.log.Warn("somebody changed the firewall table of subnetd, it is loaded again", "table", want.name, "what", flaw)
		if err := want.replace(conn); err != nil {
			return err
		}
	}
	if err == nil {
		f.tell(ctx, slog.LevelInfo, want, was)
	}
	return err
}

// exchange puts want in the place of a table of ours. Without there, what the kernel
// has of that is to be found out.
func (f *Firewall) exchange(ctx context.Context, conn *nftables.Conn, want *named, was digest, there *stock) error {
	if len(want.chains) == 0 {
		return f.remove(conn, want)
	}
	if why := want.swap(conn, there); why != nil {
		f.log.Debug("the firewall table is loaded again as a whole", "table", want.name, "why", why)
		if err := f.reload(want); err != nil {
			return err
		}
	}
	level := slog.LevelInfo
	if was.rules == want.digest.rules {
		level = slog.LevelDebug
	}
	f.tell(ctx, level, want, was)
	return nil
}

func (f *Firewall) tell(ctx context.Context, level slog.Level, t *named, was digest) {
	f.log.Log(ctx, level, "firewall policy applied", "table", t.name, "chains", len(t.chains), "sets", len(t.sets), "was", was, "is", t.digest)
}

// reload is replace with a connection of its own: nothing is left of what went wrong
// on another.
func (f *Firewall) reload(t *named) error {
	conn, err := f.dial()
	if err != nil {
		return err
	}
	defer func() { _ = conn.CloseLasting() }()
	return t.replace(conn)
}

func dial() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
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
	case errors.Is(err, unix.ENOENT) && slices.Contains([]string{"add table", "replace table", "add sets", "exchange rules"}, doing):
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

func (f *Firewall) remove(conn *nftables.Conn, t *named) error {
	exists, err := t.exists(conn)
	if err != nil || !exists {
		return err
	}
	conn.DelTable(t.nft())
	if err := conn.Flush(); err != nil {
		return explain("remove table", err)
	}
	t.commits++
	f.log.Info("firewall policy removed", "table", t.name)
	return nil
}

// load makes a table where there is none of ours: all of it but the rules, then these.
func (t *named) load(conn *nftables.Conn) error {
	exists, err := t.exists(conn)
	if err != nil {
		return err
	}
	if exists { // without its marker, it may be anything
		return t.replace(conn)
	}
	tab := conn.AddTable(t.nft())
	if err := t.frame(conn, tab); err != nil {
		return err
	}
	for _, c := range t.chains {
		if sealed(c.name) {
			c.fill(conn, tab)
		}
	}
	if err := t.commit(conn, true, "add table"); err != nil {
		return err
	}
	return t.turn(conn, t.frames())
}

// frame adds chains, without rules, and sets to conn's next transaction.
func (t *named) frame(conn *nftables.Conn, tab *nftables.Table) error {
	for _, c := range t.chains {
		conn.AddChain(c.nft(tab))
	}
	for _, s := range t.sets {
		if err := s.add(conn, tab); err != nil {
			return err
		}
	}
	conn.AddChain(&nftables.Chain{Table: tab, Name: markerChain})
	return nil
}

// replace puts t in the place of whatever the kernel's table is, in one transaction,
// so that there is always one. The kernel makes the rules count before what the sets
// hold: for that moment they are asked while empty.
func (t *named) replace(conn *nftables.Conn) error {
	tab := t.nft()
	conn.AddTable(tab) // so that the next line finds one
	conn.DelTable(tab)
	conn.AddTable(tab)
	if err := t.frame(conn, tab); err != nil {
		return err
	}
	for _, c := range t.chains {
		c.fill(conn, tab)
	}
	t.digest.mark(conn, tab)
	return t.commit(conn, true, "replace table")
}

// fill adds the rules of c to conn's next transaction.
func (c chain) fill(conn *nftables.Conn, tab *nftables.Table) {
	for _, r := range c.rules {
		conn.AddRule(&nftables.Rule{Table: tab, Chain: &nftables.Chain{Table: tab, Name: c.name}, Exprs: r})
	}
}

// add adds s with what is in it to conn's next transaction.
func (s set) add(conn *nftables.Conn, tab *nftables.Table) error {
	out := s.nft(tab)
	if err := cmp.Or(conn.AddSet(out, nil), inChunks(conn.SetAddElements, out, s.values)); err != nil {
		return fmt.Errorf("firewall: set %s: %w", s.name, err)
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
		Interval:      slices.Contains([]setKind{interval, concat, verdicts}, s.kind),
		Concatenation: slices.Contains([]setKind{concat, ports, counted, pairs}, s.kind)}
	switch s.kind {
	case counted:
		out.Dynamic, out.HasTimeout, out.Timeout, out.Size = true, true, reachLasts, maxReach
	case verdicts, cases:
		out.IsMap, out.DataType = true, nftables.TypeVerdict
	case addresses:
		out.IsMap, out.DataType = true, s.key
	case ports:
		out.IsMap, out.DataType = true, nftables.TypeInetService
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
