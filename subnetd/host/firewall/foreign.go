package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"subnetd/subnetd/host"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The rulesets of others, as the kernel tells them: read only, chain by chain as far as
// a packet gets, and of sets no more than the one element asked for. The nftables
// library leaves out expressions that it does not know, so that a rule would seem to
// say something else.

// Closed gives the openings that chains of others shut. While nobody touches nftables,
// nothing is read again.
func (f *Firewall) Closed(ctx context.Context, o host.Openings) ([]host.Shut, error) {
	if err := ctx.Err(); err != nil || len(o.At) == 0 {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	gen, err := transactions()
	if err != nil {
		return nil, explain("read", err)
	}
	if f.told.gen == gen && f.told.about.Equal(o) {
		return f.told.shut, nil
	}
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, explain("open netlink", err)
	}
	defer c.Close()
	k := &kernelRules{conn: c, known: map[place][][]expression{}, sizes: map[place]int{}}
	out := shut(o, k)
	if k.err != nil {
		return nil, fmt.Errorf("firewall: rules of others: %w", k.err)
	}
	f.told = told{gen, o, out}
	return out, nil
}

// told is what Closed said last.
type told struct {
	gen   uint32
	about host.Openings
	shut  []host.Shut
}

// kernelRules reads from the kernel. It says nothing more once something failed.
type kernelRules struct {
	conn  *netlink.Conn
	known map[place][][]expression
	sizes map[place]int // of sets, by their names
	err   error
}

func (k *kernelRules) bases() []base {
	var out []base
	for _, m := range k.ask(unix.NFT_MSG_GETCHAIN, place{}, netlink.Dump) {
		a := attributesOf(m.Data[nfgenmsg:])
		hook := a.nested(unix.NFTA_CHAIN_HOOK)
		table := a.text(unix.NFTA_CHAIN_TABLE)
		if hook == nil || hook.u32(unix.NFTA_HOOK_HOOKNUM) != unix.NF_INET_LOCAL_IN || a.text(unix.NFTA_CHAIN_TYPE) != "filter" || isOurs(m.Data[0], table) {
			continue
		}
		out = append(out, base{place{m.Data[0], table, a.text(unix.NFTA_CHAIN_NAME)},
			int32(hook.u32(unix.NFTA_HOOK_PRIORITY)), a.has(unix.NFTA_CHAIN_POLICY) && a.u32(unix.NFTA_CHAIN_POLICY) == policyDrop})
	}
	sortBases(out)
	return out
}

// isOurs reports whether a table is one of ours.
func isOurs(family uint8, table string) bool {
	return family == unix.NFPROTO_INET && (table == host.NftTable || strings.HasPrefix(table, host.NftTable+"_"))
}

func (k *kernelRules) rules(at place) [][]expression {
	if all, ok := k.known[at]; ok {
		return all
	}
	var all [][]expression
	for _, m := range k.ask(unix.NFT_MSG_GETRULE, at, netlink.Dump, text{unix.NFTA_RULE_TABLE, at.table}, text{unix.NFTA_RULE_CHAIN, at.chain}) {
		all = append(all, expressionsOf(attributesOf(m.Data[nfgenmsg:])[unix.NFTA_RULE_EXPRESSIONS]))
	}
	k.known[at] = all
	return all
}

// keySize is the length of a set's keys in registers.
func (k *kernelRules) keySize(at place, set string) int {
	at.chain = set
	if n, ok := k.sizes[at]; ok {
		return n
	}
	n := 0
	for _, m := range k.ask(unix.NFT_MSG_GETSET, at, 0, text{unix.NFTA_SET_TABLE, at.table}, text{unix.NFTA_SET_NAME, set}) {
		n = int(attributesOf(m.Data[nfgenmsg:]).u32(unix.NFTA_SET_KEY_LEN))
	}
	k.sizes[at] = n
	return n
}

// element asks for one, which the kernel finds in intervals, too.
func (k *kernelRules) element(at place, set string, key []byte) (e element) {
	const list, value = unix.NLA_F_NESTED, unix.NFTA_DATA_VALUE
	nested := func(kind uint16, data []byte) []byte {
		b, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: kind, Data: data}})
		k.failed(err)
		return b
	}
	one := nested(list|unix.NFTA_LIST_ELEM, nested(list|unix.NFTA_SET_ELEM_KEY, nested(value, key)))
	for _, m := range k.ask(unix.NFT_MSG_GETSETELEM, at, 0, text{unix.NFTA_SET_ELEM_LIST_TABLE, at.table},
		text{unix.NFTA_SET_ELEM_LIST_SET, set}, text{list | unix.NFTA_SET_ELEM_LIST_ELEMENTS, string(one)}) {
		each(attributesOf(m.Data[nfgenmsg:])[unix.NFTA_SET_ELEM_LIST_ELEMENTS], func(a attributes) {
			e = element{true, a.verdict(unix.NFTA_SET_ELEM_DATA), a.value(unix.NFTA_SET_ELEM_DATA)}
		})
	}
	return e
}

const (
	nfgenmsg   = 4 // bytes: family, version, resource
	policyDrop = 0 // NF_DROP
)

// text is an attribute to send. What is nested has no zero at its end.
type text struct {
	kind  uint16
	value string
}

// ask gives the kernel's answers. What is not there is no failure: it may have gone
// meanwhile, and then who watches is told of the change.
func (k *kernelRules) ask(kind int, at place, flags netlink.HeaderFlags, about ...text) []netlink.Message {
	if k.err != nil {
		return nil
	}
	var all []netlink.Attribute
	for _, x := range about {
		data := []byte(x.value)
		if x.kind&unix.NLA_F_NESTED == 0 {
			data = append(data, 0)
		}
		all = append(all, netlink.Attribute{Type: x.kind, Data: data})
	}
	raw, err := netlink.MarshalAttributes(all)
	if k.failed(err) {
		return nil
	}
	got, err := k.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | flags},
		Data:   append([]byte{at.family, 0, 0, 0}, raw...),
	})
	if errors.Is(err, unix.ENOENT) || k.failed(err) {
		return nil
	}
	out := got[:0]
	for _, m := range got {
		if len(m.Data) >= nfgenmsg {
			out = append(out, m)
		}
	}
	return out
}

func (k *kernelRules) failed(err error) bool {
	if k.err == nil {
		k.err = err
	}
	return err != nil
}

// attributes are those of a netlink message by their kinds; of a kind that comes again
// the last. What is no attribute is none.
type attributes map[uint16][]byte

func attributesOf(b []byte) attributes {
	out := attributes{}
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return out
	}
	for ad.Next() {
		out[ad.Type()] = ad.Bytes()
	}
	return out
}

// each calls f for the elements of a list.
func each(list []byte, f func(attributes)) {
	ad, err := netlink.NewAttributeDecoder(list)
	if err != nil {
		return
	}
	for ad.Next() {
		f(attributesOf(ad.Bytes()))
	}
}

func expressionsOf(list []byte) []expression {
	var out []expression
	each(list, func(a attributes) {
		out = append(out, expression{a.text(unix.NFTA_EXPR_NAME), a.nested(unix.NFTA_EXPR_DATA)})
	})
	return out
}

func (a attributes) has(kind uint16) bool { return a[kind] != nil }

func (a attributes) text(kind uint16) string { return strings.TrimRight(string(a[kind]), "\x00") }

// u32 is a number as nf_tables writes it; 0: there is none.
func (a attributes) u32(kind uint16) uint32 {
	if len(a[kind]) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(a[kind])
}

// nested is nil if there is nothing of that kind.
func (a attributes) nested(kind uint16) attributes {
	if !a.has(kind) {
		return nil
	}
	return attributesOf(a[kind])
}

func (a attributes) value(kind uint16) []byte { return a.nested(kind)[unix.NFTA_DATA_VALUE] }

func (a attributes) verdict(kind uint16) attributes {
	return a.nested(kind).nested(unix.NFTA_DATA_VERDICT)
}
