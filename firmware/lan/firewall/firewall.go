// Package firewall is the appliance's own table of nftables, inet appliance. It stays
// when the programs end, and lets nothing pass that it does not name. What the mesh may do
// is decided in subnetd's table, beside it.
//
//	input     the home and the mesh may talk to the router, the internet only where it must
//	forward   the home may begin connections to the internet; the mesh to and fro
//	nat       what leaves for the internet by IPv4 has the router's address
package firewall

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Name is that of the table.
const Name = "appliance"

// Config is what the table depends on.
type Config struct {
	WAN  string       // "": there is none
	LAN  string       // the home's bridge
	Mesh string       // how the mesh's interfaces begin
	Home netip.Prefix // of IPv4
	UDP  []uint16     // ports of the router for the internet
	TCP  []uint16
}

const (
	pings = 10 // per second, of the internet
	burst = 20
)

// meshAddresses leave for the internet through a home that is an exit.
var meshAddresses = netip.MustParsePrefix("100.64.0.0/10")

// Set puts the table in force, all at once: there is no moment without one.
func Set(cfg Config) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("firewall: %w", err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: Name}
	c.AddTable(t) // so that there is one to delete
	c.DelTable(t)
	t = c.AddTable(t)
	for _, ch := range chains(cfg) {
		policy := ch.policy
		chain := c.AddChain(&nftables.Chain{Name: ch.name, Table: t, Type: ch.kind, Hooknum: ch.hook, Priority: ch.priority, Policy: &policy})
		for _, r := range ch.rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: r})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("firewall: %w", err)
	}
	return nil
}

type chain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	policy   nftables.ChainPolicy
	rules    [][]expr.Any
}

func chains(cfg Config) []chain {
	return []chain{
		{"input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, nftables.ChainPolicyDrop, input(cfg)},
		{"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, nftables.ChainPolicyDrop, forward(cfg)},
		{"postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, nftables.ChainPolicyAccept, nat(cfg)},
	}
}

func input(cfg Config) [][]expr.Any {
	out := append(begun(),
		rule(from("lo"), accept()),
		rule(from(cfg.LAN), accept()),
		rule(from(cfg.Mesh+"*"), accept()),
	)
	out = append(out, neighbours()...)
	out = append(out,
		rule(icmp4(8), atMost(pings, burst), accept()), // echo request
		rule(icmp6(128), atMost(pings, burst), accept()),
	)
	if cfg.WAN == "" {
		return out
	}
	out = append(out,
		rule(from(cfg.WAN), port(unix.IPPROTO_UDP, 68), accept()),               // DHCP
		rule(from(cfg.WAN), linkLocal(), port(unix.IPPROTO_UDP, 546), accept()), // DHCPv6
		rule(from(cfg.WAN), proto(unix.IPPROTO_IGMP), accept()),                 // the provider's switches ask
	)
	for _, p := range cfg.UDP {
		out = append(out, rule(from(cfg.WAN), port(unix.IPPROTO_UDP, p), accept()))
	}
	for _, p := range cfg.TCP {
		out = append(out, rule(from(cfg.WAN), port(unix.IPPROTO_TCP, p), accept()))
	}
	return out
}

// neighbours are what IPv6 cannot do without (RFC 4890, 4.4.1): the kernel verifies that
// they come from the link, where that is so. Errors belong to connections, see begun.
func neighbours() [][]expr.Any {
	var out [][]expr.Any
	for _, kind := range []byte{133, 134, 135, 136, 130, 131, 132, 143, 2} { // 2: of paths with a smaller MTU
		out = append(out, rule(icmp6(kind), accept()))
	}
	return out
}

func forward(cfg Config) [][]expr.Any {
	var out [][]expr.Any
	if cfg.WAN != "" {
		out = append(out, rule(to(cfg.WAN), syn(), clamp()))
	}
	out = append(out, begun()...)
	if cfg.WAN != "" {
		out = append(out,
			rule(from(cfg.LAN), to(cfg.WAN), accept()),
			rule(from(cfg.Mesh+"*"), to(cfg.WAN), accept()), // members by an exit
		)
	}
	return append(out,
		rule(from(cfg.LAN), to(cfg.Mesh+"*"), accept()),
		rule(from(cfg.Mesh+"*"), to(cfg.LAN), accept()),
		rule(from(cfg.Mesh+"*"), to(cfg.Mesh+"*"), accept()),
		rule(from(cfg.LAN), to(cfg.LAN), accept()),
	)
}

func nat(cfg Config) [][]expr.Any {
	if cfg.WAN == "" {
		return nil
	}
	return [][]expr.Any{
		rule(to(cfg.WAN), source(cfg.Home), []expr.Any{&expr.Masq{}}),
		rule(to(cfg.WAN), source(meshAddresses), []expr.Any{&expr.Masq{}}),
	}
}

// begun: what belongs to a connection passes, what belongs to none and should does not.
func begun() [][]expr.Any {
	return [][]expr.Any{
		rule(state(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept()),
		rule(state(expr.CtStateBitINVALID), []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}),
	}
}
