package firewall

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// In the kernel the name of a set ends with a digest of what is in it, so that a set
// never changes: other contents are another set, which is made and filled before any
// rule asks it. So it is with the chain of a class, which is named like its set: the
// class that a map gives to a source stays what it is for as long as there is that
// map, whatever numbers the classes get with the next member.

// nameDigits is how much of a digest a name has. What differs only behind them, by a
// chance of 1 in 2^48, would not be exchanged.
const nameDigits = 12

// named is a table as the kernel gets it.
type named struct {
	table
	of      *table // whose names these are
	digest  digest
	commits uint32 // the kernel's transactions that bringing it took
}

// sealed reports whether the rules of a chain of that name never change. No other
// name has a hyphen.
func sealed(chain string) bool { return strings.Contains(chain, "-") }

// named gives the sets and chains of t their names. An error says that an
// expression cannot be.
func (t *table) named() (*named, error) {
	if len(t.chains) == 0 {
		return &named{table: *t, of: t}, nil
	}
	n := namer{sets: map[string]set{}, chains: map[string]chain{}, names: map[string]string{}}
	for _, s := range t.sets {
		n.sets[s.name] = s
	}
	for _, c := range t.chains {
		if _, class := n.sets[c.name]; class && c.hook == nil {
			n.chains[c.name] = c
		}
	}
	out := &named{table: table{name: t.name}, of: t}
	for _, s := range t.sets {
		out.sets = append(out.sets, set{n.set(s.name), s.key, s.kind, n.values(s.values)})
	}
	for _, c := range t.chains {
		out.chains = append(out.chains, chain{n.chain(c.name), c.hook, n.rules(c.rules)})
	}
	out.digest = n.digest(t)
	if n.err != nil {
		return nil, fmt.Errorf("firewall: table %s: %w", t.name, n.err)
	}
	return out, nil
}

// namer finds names, each once.
type namer struct {
	sets   map[string]set
	chains map[string]chain  // of classes
	names  map[string]string // found so far; a chain's begins with a blank
	err    error
}

// set is the name of a set in the kernel.
func (n *namer) set(name string) string {
	if n.names[name] == "" {
		s := n.sets[name]
		h := sha256.New()
		fmt.Fprintln(h, s.key.Name, s.kind)
		for _, v := range n.values(s.values) {
			h.Write(elementText(v))
		}
		n.names[name] = nameOf(name, h)
	}
	return n.names[name]
}

// chain is the name of a chain in the kernel.
func (n *namer) chain(name string) string {
	c, class := n.chains[name]
	if !class {
		return name
	}
	if n.names[" "+name] == "" {
		n.names[" "+name] = name // for a chain that leads to itself, which the kernel refuses
		h := sha256.New()
		n.hash(h, n.rules(c.rules))
		n.names[" "+name] = nameOf(name, h)
	}
	return n.names[" "+name]
}

// nameOf leaves out the number of a class.
func nameOf(name string, h hash.Hash) string {
	if i := strings.LastIndexByte(name, '_'); i > 0 && strings.Trim(name[i+1:], "0123456789") == "" {
		name = name[:i]
	}
	return name + "-" + hex.EncodeToString(h.Sum(nil))[:nameDigits]
}

// values are the elements of a set, with names for chains. Those that lead to none are
// the same.
func (n *namer) values(in []nftables.SetElement) []nftables.SetElement {
	if !slices.ContainsFunc(in, func(e nftables.SetElement) bool { return e.VerdictData != nil }) {
		return in
	}
	out := slices.Clone(in)
	for i := range out {
		if v := out[i].VerdictData; v != nil {
			out[i].VerdictData = &expr.Verdict{Kind: v.Kind, Chain: n.chain(v.Chain)}
		}
	}
	return out
}

// rules are rules with names for sets and chains.
func (n *namer) rules(in []match) []match {
	out := make([]match, len(in))
	for i, r := range in {
		out[i] = slices.Clone(r)
		for j, e := range r {
			switch e := e.(type) {
			case *expr.Lookup:
				as := *e
				as.SetName = n.set(e.SetName)
				out[i][j] = &as
			case *expr.Dynset:
				as := *e
				as.SetName = n.set(e.SetName)
				out[i][j] = &as
			case *expr.Verdict:
				out[i][j] = &expr.Verdict{Kind: e.Kind, Chain: n.chain(e.Chain)}
			}
		}
	}
	return out
}

// hash adds rules, each expression behind its length, and 0 behind the last of a rule.
func (n *namer) hash(h hash.Hash, rules []match) {
	var size [4]byte
	for _, r := range rules {
		for _, e := range r {
			b, err := expr.Marshal(byte(nftables.TableFamilyINet), e)
			if err != nil {
				n.err = err
			}
			h.Write(binary.BigEndian.AppendUint32(size[:0], uint32(len(b))))
			h.Write(b)
		}
		h.Write(binary.BigEndian.AppendUint32(size[:0], 0))
	}
}

// elementText has all of an element, no two the same.
func elementText(v nftables.SetElement) []byte {
	b := []byte{byte(len(v.Key)), byte(len(v.KeyEnd)), byte(len(v.Val)), 0}
	if v.IntervalEnd {
		b[3] = 1
	}
	b = append(append(append(b, v.Key...), v.KeyEnd...), v.Val...)
	if to := v.VerdictData; to != nil {
		b = binary.BigEndian.AppendUint64(b, uint64(to.Kind))
		b = append(append(b, to.Chain...), 0)
	}
	return b
}
