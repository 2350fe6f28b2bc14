package firewall

import (
	"context"
	"net/netip"
	"time"

	"subnetd/subnetd/host"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Who of the mesh reached what of the LAN is counted by the kernel, at the first packet
// of each flow that all filters let pass. Nobody is woken for it, and what it takes is
// bounded: of more pairs, and of those that were quiet for long, nothing is known.

const (
	maxReach   = 1024               // pairs of one family
	reachLasts = 7 * 24 * time.Hour // since the last flow
)

// reachSet holds pairs of sources and destinations.
func reachSet(f family) set {
	return set{name: "reach" + f.digit, kind: counted, key: nftables.MustConcatSetType(f.addrType, f.addrType)}
}

// counting adds the sets, and gives the rules, that count what goes from the mesh to
// the LAN. In the postrouting hook of translations only first packets are seen.
func (t *table) counting(cfg host.Firewall) (rules []match) {
	for _, f := range families() {
		s := reachSet(f)
		t.sets = append(t.sets, s)
		rules = append(rules, rule(iifMesh(cfg), oifIn("lans"), f.addr(f.src), match{
			&expr.Payload{DestRegister: f.l4, Base: expr.PayloadBaseNetworkHeader, Offset: f.dst, Len: f.size},
			&expr.Dynset{SrcRegKey: unix.NFT_REG32_00, SetName: s.name, Operation: unix.NFT_DYNSET_OP_UPDATE, Exprs: []expr.Any{&expr.Counter{}}},
		}))
	}
	return rules
}

// Reached tells which members reached what lies on the LANs, how often and how long
// ago, in no order. full says that there may have been more. Without a table of the
// edge there is nothing to tell.
func (f *Firewall) Reached(ctx context.Context) (out []host.Reach, full bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	conn, err := f.dial()
	if err != nil {
		return nil, false, err
	}
	defer func() { _ = conn.CloseLasting() }()
	edge := &table{name: host.NftTable}
	exists, err := edge.exists(conn)
	if err != nil || !exists {
		return nil, false, err
	}
	there, err := edge.readStock(conn)
	if err != nil {
		return nil, false, err
	}
	for _, fam := range families() {
		s := reachSet(fam)
		n := namer{sets: map[string]set{s.name: s}, names: map[string]string{}}
		if s.name = n.set(s.name); there.sets[s.name] == nil {
			continue
		}
		elements, err := conn.GetSetElements(s.nft(edge.nft()))
		if err != nil {
			return nil, false, explain("read who reached what", err)
		}
		full = full || len(elements) >= maxReach
		for _, e := range elements {
			if r, ok := reachOf(e, int(fam.size)); ok {
				out = append(out, r)
			}
		}
	}
	return out, full, nil
}

// reachOf reads one pair, of addresses of that many bytes.
func reachOf(e nftables.SetElement, size int) (r host.Reach, ok bool) {
	if len(e.Key) != 2*size || e.Counter == nil {
		return r, false
	}
	r.From, _ = netip.AddrFromSlice(e.Key[:size])
	r.To, _ = netip.AddrFromSlice(e.Key[size:])
	r.Flows, r.Ago = e.Counter.Packets, max(reachLasts-e.Expires, 0)
	return r, true
}
