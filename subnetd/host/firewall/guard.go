package firewall

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sort"
	"strconv"

	"subnetd/subnetd/host"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The kill switch: what the owner sends through an exit never leaves otherwise. It has
// a table of its own, which neither members nor policies nor exits change, and drops
// where a packet leaves, whatever led it there:
//
//	forward      what a blocked source sends, known by its MAC or its interface,
//	             leaves by LANs, the mesh and exit tunnels only
//	postrouting  the same for the router, where it is blocked: behind others who
//	             send a packet another way at the output hook
//
// A blocked device may be called from the internet where the owner forwards a port
// to it, but its answers go nowhere: it speaks to the internet by its exit alone.
// Flows that it began before it was blocked end with the next packet of its own.
// The blocked router answers who calls it, for it is the router; and it may do what
// takes a network to be in one: DHCP, and what goes no further than the link.

// beforeAll: nobody hands a flow on to an offload before the guard has seen it.
const beforeAll nftables.ChainPriority = -300

// Guard is the hand that keeps the kill switch (host.NftGuardTable).
type Guard struct{ F *Firewall }

// Set makes the kernel hold back whom want holds back. On error the kernel keeps what
// it had.
func (g Guard) Set(ctx context.Context, want host.Guard) error {
	t, err := guarding(want)
	if err != nil {
		return err
	}
	return g.bring(ctx, t)
}

// SetAll holds everybody back who wants to go to the internet through this router: for
// a start at which it is not known who should be.
func (g Guard) SetAll(ctx context.Context) error {
	t := &table{name: host.NftGuardTable}
	t.chains = []chain{{"forward", guardHook(), t.toInternet(drop())}}
	return g.bring(ctx, t)
}

func (g Guard) bring(ctx context.Context, t *table) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	g.F.mu.Lock()
	defer g.F.mu.Unlock()
	return g.F.bring(ctx, t)
}

func guardHook() *hook {
	return &hook{nftables.ChainTypeFilter, *nftables.ChainHookForward, beforeAll}
}

// guarding is the table of the kill switch.
func guarding(g host.Guard) (*table, error) {
	t := &table{name: host.NftGuardTable}
	if !g.Blocks() {
		return t, nil
	}
	for _, name := range append([]string{g.Interface}, g.LANs...) {
		if err := checkName(name); err != nil {
			return nil, err
		}
	}
	t.sets = []set{ifaceSet("inside", append([]string{"lo", g.Interface}, g.LANs...))}
	held, err := t.heldBack(g)
	if err != nil {
		return nil, err
	}
	inside := []match{rule(oifIn("inside"), accept()), rule(oifTunnel(), accept())}
	t.chains = []chain{{"forward", guardHook(), append(slices.Clone(inside), held...)}}
	for _, s := range g.Sources {
		if s.Router && s.Block {
			t.chains = append(t.chains, t.routerChain(inside))
		}
		if s.Router { // the first decides
			break
		}
	}
	return t, nil
}

// heldBack are the rules about who sends to elsewhere than inside. All of the home is
// what comes in by one of its interfaces, and on its way to the internet whatever does
// not come from the mesh: an interface of the home may be one that nobody has told of.
func (t *table) heldBack(g host.Guard) ([]match, error) {
	held := func(s host.ExitSource) *expr.Verdict {
		if s.Block {
			return &expr.Verdict{Kind: expr.VerdictDrop}
		}
		return &expr.Verdict{Kind: expr.VerdictAccept}
	}
	sources, all := g.Sources, []match(nil)
	if i := slices.IndexFunc(sources, func(s host.ExitSource) bool { return s.LAN }); i >= 0 {
		sources = sources[:i+1]
		if sources[i].Block {
			all = append(all, rule(iifname(g.Interface), accept()), rule(iifTunnel(), accept()), rule(iifIn("inside"), drop()))
			all = append(all, t.toInternet(drop())...)
		}
	}
	out, err := t.bySource(sources, held)
	return append(out, all...), err
}

// toInternet are rules for what goes to the internet.
func (t *table) toInternet(then match) []match {
	var out []match
	for _, f := range families() {
		t.sets = append(t.sets, rangeSet(f, "internet", publicRanges(f.v6)))
		out = append(out, rule(f.addrIn(f.dst, "internet"+f.digit), then))
	}
	return out
}

// routerChain holds back what has an address of ours as its source.
func (t *table) routerChain(inside []match) chain {
	near := []netip.Prefix{
		netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("255.255.255.255/32"),
		netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
	}
	const dhcp, dhcp6 = "\x00\x44\x00\x43", "\x02\x22\x02\x23" // from the client's port to the server's
	c := chain{"router", &hook{nftables.ChainTypeFilter, *nftables.ChainHookPostrouting, -10}, slices.Clone(inside)}
	c.rules = append(c.rules,
		rule(own(), accept()),
		rule(state(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), direction(reply), accept()),
		rule(isUDP(), udpIs(sport, []byte(dhcp)...), accept()),
		rule(isUDP(), udpIs(sport, []byte(dhcp6)...), accept()))
	for _, f := range families() {
		t.sets = append(t.sets, rangeSet(f, "near", rangesOf(near, f.v6)))
		c.rules = append(c.rules, rule(f.addrIn(f.dst, "near"+f.digit), accept()))
	}
	c.rules = append(c.rules, rule(fromUs(), drop()))
	return c
}

// bySource adds the maps of who sends, and gives the rules that ask them: a run of
// sources of one kind is one map, so that it does not matter how many they are.
func (t *table) bySource(sources []host.ExitSource, say func(host.ExitSource) *expr.Verdict) ([]match, error) {
	var out []match
	seen := map[string]bool{}
	var last nftables.SetDatatype
	add := func(kind nftables.SetDatatype, key []byte, v *expr.Verdict) {
		if seen[string(key)] { // the first that fits decides
			return
		}
		seen[string(key)] = true
		if kind != last {
			last = kind
			name, what := "macs_", srcMAC()
			if kind == nftables.TypeIFName {
				name, what = "interfaces_", iif()
			}
			name += strconv.Itoa(len(out))
			t.sets = append(t.sets, set{name: name, key: kind, kind: cases})
			out = append(out, rule(what, verdictBy(name)))
		}
		s := &t.sets[len(t.sets)-1]
		s.values = append(s.values, nftables.SetElement{Key: key, VerdictData: v})
	}
	for _, s := range sources {
		for _, m := range s.MACs {
			mac, err := net.ParseMAC(m)
			if err != nil || len(mac) != 6 {
				return nil, fmt.Errorf("firewall: %q is not a MAC address", m)
			}
			add(nftables.TypeEtherAddr, mac, say(s))
		}
		for _, name := range s.Interfaces {
			if err := checkName(name); err != nil {
				return nil, err
			}
			add(nftables.TypeIFName, ifnameKey(name), say(s))
		}
	}
	for _, s := range t.sets {
		if s.kind == cases {
			sortCases(s)
		}
	}
	return out, nil
}

func sortCases(s set) {
	sort.Slice(s.values, func(i, j int) bool { return bytes.Compare(s.values[i].Key, s.values[j].Key) < 0 })
}

// verdictBy takes the verdict that the map has for what was loaded.
func verdictBy(name string) match {
	return match{&expr.Lookup{SourceRegister: 1, IsDestRegSet: true, SetName: name}}
}

func checkName(name string) error {
	if name == "" || len(name) > 15 {
		return fmt.Errorf("firewall: %q is not an interface name", name)
	}
	return nil
}

// srcMAC loads the MAC address that the packet came from. Without the type of the
// interface nft would not know what it lists.
func srcMAC() match {
	const source, length = 6, 6
	ether := binaryutil.NativeEndian.PutUint16(unix.ARPHRD_ETHER)
	return match{
		&expr.Meta{Key: expr.MetaKeyIIFTYPE, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ether},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: source, Len: length},
	}
}

func iif() match { return match{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}} }

// oifIn holds if the packet goes out by an interface of the set.
func oifIn(set string) match {
	return match{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: set},
	}
}

func notOifIn(set string) match {
	return match{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: set, Invert: true},
	}
}

// oifTunnel holds if it goes out by an exit tunnel, iifTunnel if it came in by one.
func oifTunnel() match { return tunnel(expr.MetaKeyOIFNAME) }
func iifTunnel() match { return tunnel(expr.MetaKeyIIFNAME) }

func tunnel(key expr.MetaKey) match {
	return match{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(exitPrefix)},
	}
}

// exitPrefix begins the names of exit tunnels, host.ExitInterface.
const exitPrefix = "mesh-"

// fromUs holds if the source is an address of this machine.
func fromUs() match {
	return match{
		&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagSADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}
