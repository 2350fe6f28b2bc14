package firewall

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// markerChain holds one rule whose comment is the digest of the table. It goes
// when anybody flushes the table, so it tells both what is applied and that it
// still is.
const markerChain = "config"

// digest names the contents of a table: equal digests, equal tables.
type digest struct {
	rules string // chains and rules, what sets there are, and the classes' rights
	sets  string // elements of all other sets, as they are when a member comes or goes
}

func (d digest) String() string { return d.rules + "-" + d.sets }

// digest is that of t, of whose sets the names tell the contents.
func (n *namer) digest(t *table) digest {
	rules, sets := sha256.New(), sha256.New()
	for _, s := range t.sets {
		fmt.Fprintf(rules, "set %s %s %d\n", s.name, s.key.Name, s.kind)
		to := sets
		if s.kind == concat {
			to = rules
		}
		fmt.Fprintln(to, "set", n.set(s.name))
	}
	for _, c := range t.chains {
		fmt.Fprintf(rules, "chain %s\n", c.name)
		if c.hook != nil {
			fmt.Fprintln(rules, *c.hook)
		}
		n.hash(rules, c.rules)
	}
	text := func(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)[:16]) }
	return digest{text(rules), text(sets)}
}

// marker returns the digest of the table in the kernel, the zero one if there is
// none.
func (t *table) marker(conn *nftables.Conn) (digest, error) {
	exists, err := t.exists(conn)
	if err != nil || !exists {
		return digest{}, err
	}
	rules, err := conn.GetRules(t.nft(), &nftables.Chain{Name: markerChain})
	if err != nil {
		return digest{}, explain("read marker", err)
	}
	if len(rules) != 1 {
		return digest{}, nil
	}
	text, _ := userdata.GetString(rules[0].UserData, userdata.TypeComment)
	var d digest
	d.rules, d.sets, _ = strings.Cut(text, "-")
	return d, nil
}

// mark adds the marker to conn's next transaction.
func (d digest) mark(conn *nftables.Conn, tab *nftables.Table) {
	conn.AddRule(&nftables.Rule{Table: tab, Chain: &nftables.Chain{Table: tab, Name: markerChain},
		Exprs:    verdict(expr.VerdictReturn, ""),
		UserData: userdata.AppendString(nil, userdata.TypeComment, d.String())})
}
