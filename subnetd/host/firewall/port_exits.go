package firewall

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sort"

	"subnetd/subnetd/host"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// The interfaces of exits are behind the outer port of WireGuard, too. What comes
// from where their peers are known to be is brought to them, before the sharing of
// the port sees it; a packet of ours among it (disco, STUN) is left to that. What
// they send says the outer port. A router without exits has none of this.
//
//	in    input, one step before the sharing: to the outer port -> peers
//	out   output, before conntrack: one hole, one flow, as for the main interface
const beforeSharing = behindFilters - 1

// SetExits makes the table of the exits' interfaces, all else stays. It is kept,
// and Set makes it again where it was lost. No exits are no table.
func (f *Firewall) SetExits(ctx context.Context, outer uint16, exits []host.ShareExit) error {
	t, err := sharingExits(outer, exits)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.exits = t
	return f.bring(ctx, t)
}

// sharingExits is the table that brings exits' peers to their interfaces.
func sharingExits(outer uint16, exits []host.ShareExit) (*table, error) {
	t := &table{name: host.NftExitsTable}
	if len(exits) == 0 {
		return t, nil
	}
	var ports []uint16
	for _, e := range exits {
		if outer == 0 || e.Port == 0 || e.Port == outer || slices.Contains(ports, e.Port) {
			return nil, fmt.Errorf("firewall: UDP port %d of an exit cannot be behind port %d", e.Port, outer)
		}
		ports = append(ports, e.Port)
	}
	t.sets = []set{portSet("inner", ports)}
	peers := []match{rule(isUDP(), notWireGuard(), accept())}
	for _, f := range families() {
		from := fromMap(f, exits)
		t.sets = append(t.sets, from)
		if !f.v6 { // a datagram without a checksum: see ours
			peers = append(peers, rule(isUDP(), udpIs(checksum, 0, 0), f.bringTo(from.name), setUDP(checksum, 0), accept()))
		}
		peers = append(peers, rule(isUDP(), f.bringTo(from.name), accept()))
	}
	t.chains = []chain{
		{name: "peers", rules: peers},
		{"in", &hook{nftables.ChainTypeFilter, *nftables.ChainHookInput, beforeSharing}, []match{
			rule(udpPort(dport, outer), goTo("peers")),
			rule(notIifname("lo"), udpPortIn(dport, "inner"), drop()),
		}},
		{"out", &hook{nftables.ChainTypeFilter, *nftables.ChainHookOutput, beforeConntrack}, []match{
			rule(udpPortIn(sport, "inner"), setUDP(sport, outer)),
		}},
	}
	return t, nil
}

// notWireGuard holds unless three zeros follow the first byte.
func notWireGuard() match {
	return match{loadUDP(payload+1, 3), &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0, 0}}}
}

// fromMap is, of one family, where packets from the exits' peers belong. Of an
// address that two of them have, the first one's port counts.
func fromMap(f family, exits []host.ShareExit) set {
	s := set{name: "from" + f.digit, kind: ports, key: nftables.MustConcatSetType(f.addrType, nftables.TypeInetService)}
	for _, e := range exits {
		for _, a := range e.From {
			if ip := a.Addr().Unmap(); ip.IsValid() && ip.Is6() == f.v6 {
				k := append(ip.AsSlice(), byte(a.Port()>>8), byte(a.Port()), 0, 0)
				s.values = append(s.values, nftables.SetElement{Key: k, Val: []byte{byte(e.Port >> 8), byte(e.Port)}})
			}
		}
	}
	sort.SliceStable(s.values, func(i, j int) bool { return bytes.Compare(s.values[i].Key, s.values[j].Key) < 0 })
	s.values = slices.CompactFunc(s.values, func(a, b nftables.SetElement) bool { return bytes.Equal(a.Key, b.Key) })
	return s
}

// bringTo writes the destination port that the map has for the packet's source.
func (f family) bringTo(set string) match {
	return rule(f.addr(f.src), match{
		&expr.Payload{DestRegister: f.l4, Base: expr.PayloadBaseTransportHeader, Offset: sport, Len: 2},
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: set},
		writeUDP(dport),
	})
}

// udpPortIn holds for UDP with the port at the offset in the set.
func udpPortIn(offset uint32, set string) match {
	return rule(isUDP(), match{loadUDP(offset, 2), &expr.Lookup{SourceRegister: 1, SetName: set}})
}
