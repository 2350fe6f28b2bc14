package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A table gives way to another in three transactions of the kernel. In each, rules
// count before the sets of the same transaction are sure to be filled, and until the
// sets that it takes away are gone (nf_tables_commit: the generation, then the sets);
// and while elements come and go, they hide others within which they lie. So no
// transaction changes a set that a rule asks at the time:
//
//	make   the sets that are not there yet, and the chains of classes: nobody asks them
//	turn   the rules of all other chains at once, but for those that are known to stay
//	       the same, and the marker; the hooks stay
//	tidy   what nobody asks any more goes
//
// In between, either the old or the new policy is in force as a whole. Where that is
// cut short, the next Set goes on from there.

// stock is what the kernel has of a table, but for the marker.
type stock struct {
	sets   map[string]*nftables.Set
	chains map[string]*nftables.Chain
	rules  map[string][]match // by chain; none of one whose rules are not known
}

// frames is what the kernel has once t is there, but for rules.
func (t *named) frames() stock {
	s := stock{map[string]*nftables.Set{}, map[string]*nftables.Chain{}, nil}
	tab := t.nft()
	for _, x := range t.sets {
		s.sets[x.name] = x.nft(tab)
	}
	for _, c := range t.chains {
		s.chains[c.name] = c.nft(tab)
	}
	return s
}

// stock is what the kernel has once t is there.
func (t *named) stock() stock {
	s := t.frames()
	s.rules = make(map[string][]match, len(t.chains))
	for _, c := range t.chains {
		s.rules[c.name] = c.rules
	}
	return s
}

// readStock finds out what the kernel has.
func (t *table) readStock(conn *nftables.Conn) (stock, error) {
	s := stock{map[string]*nftables.Set{}, map[string]*nftables.Chain{}, nil}
	sets, err := conn.GetSets(t.nft())
	if err != nil {
		return s, explain("read sets", err)
	}
	for _, x := range sets {
		s.sets[x.Name] = x
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return s, explain("read chains", err)
	}
	for _, c := range chains {
		if c.Table.Name == t.name && c.Name != markerChain {
			s.chains[c.Name] = c
		}
	}
	return s, nil
}

// transactions is how many of them the kernel has had in nftables, of anybody.
func transactions() (uint32, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	replies, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
		Data:   make([]byte, 4), // struct nfgenmsg
	})
	if err != nil {
		return 0, err
	}
	for _, r := range replies {
		ad, err := netlink.NewAttributeDecoder(r.Data[min(4, len(r.Data)):])
		if err != nil {
			return 0, err
		}
		ad.ByteOrder = binary.BigEndian
		for ad.Next() {
			if ad.Type() == unix.NFTA_GEN_ID {
				return ad.Uint32(), nil
			}
		}
	}
	return 0, errors.New("the kernel does not tell")
}

// swap makes the kernel's table t. Without there, what the kernel has is read first.
// On error nothing is certain but that the table has to be replaced.
func (t *named) swap(conn *nftables.Conn, there *stock) error {
	if there == nil {
		read, flaw, err := t.inspect(conn, false)
		if err != nil {
			return err
		}
		if flaw != "" {
			return errors.New("somebody changed it: " + flaw)
		}
		there = &read
	}
	for _, step := range []func(*nftables.Conn, stock) error{t.make, t.turn, t.tidy} {
		if err := step(conn, *there); err != nil {
			return err
		}
	}
	return nil
}

// inspect gives what the kernel has, and what is wrong with it: a set or chain of that
// name with another number of elements or rules, a base chain elsewhere; if all has to
// be there, also what is missing. It finds what others flushed, added or deleted, not
// an exchange of one for another.
func (t *named) inspect(conn *nftables.Conn, all bool) (there stock, flaw string, err error) {
	there, err = t.readStock(conn)
	for _, s := range t.sets {
		if err != nil || flaw != "" {
			return there, flaw, err
		}
		switch {
		case there.sets[s.name] != nil:
			flaw, err = t.flawOfSet(conn, s)
		case all:
			flaw = "set " + s.name + " is missing"
		}
	}
	for _, c := range t.chains {
		if err != nil || flaw != "" {
			return there, flaw, err
		}
		switch old := there.chains[c.name]; {
		case old == nil && all:
			flaw = "chain " + c.name + " is missing"
		case old != nil && !c.hook.is(old):
			flaw = "chain " + c.name + " has another hook"
		case old != nil && (sealed(c.name) || all):
			flaw, err = t.flawOfRules(conn, c)
		}
	}
	return there, flaw, err
}

func (t *named) flawOfSet(conn *nftables.Conn, s set) (string, error) {
	elements, err := conn.GetSetElements(s.nft(t.nft()))
	switch {
	case err != nil:
		return "", explain("read sets", err)
	case s.kind != counted && len(elements) != len(s.values):
		return fmt.Sprintf("set %s has %d elements instead of %d", s.name, len(elements), len(s.values)), nil
	}
	return "", nil
}

func (t *named) flawOfRules(conn *nftables.Conn, c chain) (string, error) {
	rules, err := conn.GetRules(t.nft(), &nftables.Chain{Name: c.name})
	switch {
	case err != nil:
		return "", explain("read rules", err)
	case len(rules) != len(c.rules):
		return fmt.Sprintf("chain %s has %d rules instead of %d", c.name, len(rules), len(c.rules)), nil
	}
	return "", nil
}

// is reports whether the kernel's chain hangs on h.
func (h *hook) is(c *nftables.Chain) bool {
	if h == nil || c.Hooknum == nil || c.Priority == nil {
		return h == nil && c.Hooknum == nil
	}
	return c.Type == h.kind && *c.Hooknum == h.num && *c.Priority == h.priority
}

// make adds what is missing and asked by nobody yet.
func (t *named) make(conn *nftables.Conn, there stock) error {
	tab := t.nft()
	missing := false
	for _, c := range t.chains {
		if c.hook == nil && there.chains[c.name] == nil {
			missing = true
			conn.AddChain(c.nft(tab))
		}
	}
	for _, s := range t.sets {
		if there.sets[s.name] != nil {
			continue
		}
		missing = true
		if err := s.add(conn, tab); err != nil {
			return err
		}
	}
	for _, c := range t.chains {
		if sealed(c.name) && there.chains[c.name] == nil {
			c.fill(conn, tab)
		}
	}
	return t.commit(conn, missing, "add sets")
}

// turn puts the rules of t in force.
func (t *named) turn(conn *nftables.Conn, there stock) error {
	tab := t.nft()
	for _, c := range t.chains {
		if c.hook != nil && there.chains[c.name] == nil {
			conn.AddChain(c.nft(tab))
		}
	}
	wanted := map[string]bool{}
	for _, c := range t.chains {
		wanted[c.name] = true
		if was, known := there.rules[c.name]; sealed(c.name) || known && reflect.DeepEqual(was, c.rules) {
			continue
		}
		if there.chains[c.name] != nil {
			conn.FlushChain(c.nft(tab))
		}
		c.fill(conn, tab)
	}
	for name, c := range there.chains {
		if !wanted[name] && !sealed(name) {
			conn.FlushChain(c)
		}
	}
	conn.FlushChain(&nftables.Chain{Table: tab, Name: markerChain})
	t.digest.mark(conn, tab)
	return t.commit(conn, true, "exchange rules")
}

// tidy deletes what is none of t's, if there is anything: what leads to a chain before
// the chain.
func (t *named) tidy(conn *nftables.Conn, there stock) error {
	for _, s := range t.sets {
		delete(there.sets, s.name)
	}
	for _, c := range t.chains {
		delete(there.chains, c.name)
	}
	for _, c := range there.chains {
		conn.FlushChain(c)
	}
	for _, s := range there.sets {
		if s.IsMap {
			conn.FlushSet(s)
		}
		conn.DelSet(s)
	}
	for _, c := range there.chains {
		conn.DelChain(c)
	}
	return t.commit(conn, len(there.sets)+len(there.chains) > 0, "remove old sets")
}

// commit is for a transaction that may be empty.
func (t *named) commit(conn *nftables.Conn, any bool, doing string) error {
	if !any {
		return nil
	}
	if err := conn.Flush(); err != nil {
		return explain(doing, err)
	}
	t.commits++
	return nil
}
