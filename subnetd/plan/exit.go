package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"time"

	"subnetd/subnetd/config"
	"subnetd/subnetd/exit"
	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/status"

	"tailscale.com/types/key"
)

// The ways out to the internet, from the rows of the configuration to what the
// hands shall do:
//
//	findExits   the nodes that rows name, and what stands against each
//	peers       gives them interfaces of their own (plan.go)
//	wayOut      which exit each list uses now, and whose traffic goes there
//
// Sources are LAN interfaces, MAC addresses there, and the router itself. What
// comes from the mesh is none of them and never takes a row: who uses this
// router as an exit leaves here, though the router itself uses another. So no
// ring of exits carries a packet round, A by B by A.

// maxFrom bounds the policy rules by address, which the kernel walks for each packet.
const maxFrom = 256

var (
	all4 = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	all6 = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
)

// Exit is what is known of an exit beside the netmap.
type Exit struct {
	exit.Health
	At netip.Addr // where it is reached directly; invalid: it is not
}

// exitNode is a node that rows name.
type exitNode struct {
	name     string // for people
	key      key.NodePublic
	link     string // interface of its tunnel; "": it has none
	no4, no6 bool   // it does not carry that family
	bad      string // why it cannot be used, what follows its name; "": it can
	fix      string // what to do about that
}

// findExits looks for every node that a row names.
func (p *Plan) findExits(in Inputs, rows []config.ExitRow, now time.Time) map[string]*exitNode {
	found, links := map[string]*exitNode{}, map[string]key.NodePublic{}
	for _, r := range rows {
		for _, name := range r.Exits {
			if found[name] != nil {
				continue
			}
			x := findExit(in.Netmap, name, now)
			if x.bad == "" {
				x.link = host.ExitInterface(x.key)
				if k, taken := links[x.link]; taken && k != x.key { // of 2^32 names one was chosen to hit another
					x.link, x.bad = "", "has a key whose digest is that of another exit's"
					x.fix = "Let it log in with a new key."
				}
				links[x.link] = x.key
			}
			found[name] = x
		}
	}
	for _, x := range found {
		if x.bad == "" {
			x.loops(in, rows, found, p.LANs)
		}
	}
	return found
}

// findExit finds a node by its full name, the first label of it, or an address.
func findExit(nm *mesh.Netmap, name string, now time.Time) *exitNode {
	x := &exitNode{name: name, fix: "Correct exit.rows or exit.use; `subnetd exit` lists the exits there are."}
	n, several := nodeOf(nm, name)
	switch {
	case several != "":
		x.bad = "is the name of several nodes, " + several
		x.fix = "Write the whole name, or a mesh address, in exit.rows or exit.use."
		return x
	case n == nil:
		x.bad = "is no node of this mesh"
		return x
	case n == &nm.Self:
		x.bad = "is this router itself"
		return x
	}
	x.name, x.key = strings.TrimSuffix(n.Name, "."), n.Key
	x.no4, x.no6 = !slices.Contains(n.AllowedIPs, all4), !slices.Contains(n.AllowedIPs, all6)
	switch {
	case n.Key.IsZero() || n.ExpiredAt(now):
		x.bad, x.fix = "must log in again, as its key has expired", "Log in at that node."
	case x.no4 && x.no6:
		x.bad, x.fix = "offers no exit", "Let it offer one, and let the coordinator approve that, or name another node."
	}
	return x
}

// nodeOf gives the node of that name or address, or the names of several.
func nodeOf(nm *mesh.Netmap, name string) (found *mesh.Node, several string) {
	addr, err := netip.ParseAddr(name)
	var names []string
	for i := -1; i < len(nm.Peers); i++ {
		n := &nm.Self
		if i >= 0 {
			n = &nm.Peers[i]
		}
		full := strings.ToLower(strings.TrimSuffix(n.Name, "."))
		first, _, _ := strings.Cut(full, ".")
		if full == name || err == nil && n.HasAddr(addr) {
			return n, ""
		}
		if first == name {
			found, names = n, append(names, full)
		}
	}
	if len(names) > 1 {
		return nil, strings.Join(names, " and ")
	}
	return found, ""
}

// loops refuses an exit that is a thing of our own LAN and whose traffic its own row
// would bring back to it.
func (x *exitNode) loops(in Inputs, rows []config.ExitRow, found map[string]*exitNode, lans []string) {
	at := in.Exits[x.key].At
	for _, i := range in.Facts.Interfaces {
		if !at.IsValid() || !slices.Contains(lans, i.Name) || !slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Contains(at) && p.Addr() != at }) {
			continue
		}
		mac := ""
		for _, n := range in.Facts.Neighbours {
			if n.Addr == at && n.Interface == i.Name {
				mac = n.MAC
			}
		}
		r := slices.IndexFunc(rows, func(r config.ExitRow) bool {
			return mac != "" && slices.Contains(r.MACs, mac) || slices.Contains(r.Interfaces, i.Name) || r.LAN
		})
		if r >= 0 && slices.ContainsFunc(rows[r].Exits, func(name string) bool { return found[name].key == x.key }) {
			x.bad = fmt.Sprintf("is in this LAN, at %s, and row %d would bring its own traffic back to it", at, r+1)
			x.fix = fmt.Sprintf("Let it go directly: `subnetd exit off %s`.", at)
		}
	}
}

// exitKeys are the peers with interfaces of their own.
func exitKeys(found map[string]*exitNode) map[key.NodePublic]*exitNode {
	out := map[key.NodePublic]*exitNode{}
	for _, x := range found {
		if x.link != "" {
			out[x.key] = x
		}
	}
	return out
}

// withInternet is the allowed IPs of an exit on an interface of its own.
func (x *exitNode) withInternet(own []netip.Prefix) []netip.Prefix {
	out := slices.Clone(own)
	if !x.no4 {
		out = append(out, all4)
	}
	if !x.no6 {
		out = append(out, all6)
	}
	return sortPrefixes(out)
}

// wayOut sends the sources of the rows their ways. Without a mesh no exit is at
// hand: found is nil then, and why says it.
func (p *Plan) wayOut(in Inputs, rows []config.ExitRow, found map[string]*exitNode, why string) {
	if len(rows) == 0 {
		return
	}
	numbers := p.number(rows, in.Ways)
	p.Host.Route.Ways, p.Uses = make([]host.Way, len(p.Ways)), make([]exit.Use, len(p.Ways))
	for i := range p.Ways {
		p.Host.Route.Ways[i].Block = true // a number that is nobody's just now leads nowhere
	}
	told := map[string]bool{}
	for i, r := range rows {
		s := status.ExitRow{Row: i + 1, Sources: r.List(), Exits: r.To(), Now: status.ExitDirect}
		src := p.sourceOf(in.Facts, r)
		src.Way = numbers[i]
		if src.Way >= 0 {
			src.Block = !r.Direct
			p.Host.Route.Ways[src.Way], p.Uses[src.Way] = way(in, r, found, why, &s)
			p.tellExits(r, found, s, told)
		}
		p.Sources = append(p.Sources, src)
		p.Exits = append(p.Exits, s)
	}
	p.Host.Firewall.Sources = p.Sources
}

// number gives each list of exits a way; -1: it needs none. One that a plan before
// had keeps its number: packets under way carry it.
func (p *Plan) number(rows []config.ExitRow, before []string) []int {
	lists := make([]string, len(rows))
	for i, r := range rows {
		if r.Way() {
			lists[i] = strings.Join(r.To(), ",")
		}
	}
	ways := make([]string, min(len(before), host.MaxWays))
	for i := range ways {
		if slices.Contains(lists, before[i]) {
			ways[i] = before[i]
		}
	}
	out := make([]int, len(rows))
	for i, list := range lists {
		out[i] = slices.Index(ways, list)
		if list == "" {
			out[i] = -1
		} else if out[i] < 0 {
			if out[i] = slices.Index(ways, ""); out[i] < 0 {
				out[i], ways = len(ways), append(ways, "") // there are no more lists than ways: see config
			}
			ways[out[i]] = list
		}
	}
	for len(ways) > 0 && ways[len(ways)-1] == "" {
		ways = ways[:len(ways)-1]
	}
	p.Ways = ways
	return out
}

// way is where a row's list leads now, and which exits it could lead to. It
// completes the status of the row.
func way(in Inputs, r config.ExitRow, found map[string]*exitNode, why string, s *status.ExitRow) (host.Way, exit.Use) {
	var nodes []*exitNode
	var list []exit.Health
	use := exit.Use{Direct: r.Direct}
	whys := []string{}
	for _, name := range r.Exits {
		x := found[name]
		if x == nil {
			continue
		}
		if x.bad != "" {
			whys = append(whys, x.name+" "+x.bad)
			continue
		}
		if !slices.Contains(use.Exits, x.key) {
			nodes, list, use.Exits = append(nodes, x), append(list, in.Exits[x.key].Health), append(use.Exits, x.key)
		}
	}
	at := exit.Choose(list, r.Direct)
	for i, h := range list {
		if at >= 0 && i >= at {
			break
		}
		switch {
		case h.State == exit.Dead:
			whys = append(whys, nodes[i].name+" does not answer")
		case h.State == exit.Back:
			whys = append(whys, nodes[i].name+" has only just come back")
		}
		if s.Since.Before(h.Since) {
			s.Since = h.Since
		}
	}
	if why != "" && len(r.Exits) > 0 {
		whys = append(whys, why)
	}
	s.Why = strings.Join(whys, "; ")
	w := host.Way{Block: !r.Direct}
	switch {
	case at >= 0:
		x := nodes[at]
		w.Interface, w.No4, w.No6 = x.link, x.no4, x.no6
		s.Now, s.No4, s.No6 = x.name, x.no4, x.no6
	case w.Block:
		s.Now = status.ExitBlocked
	}
	return w, use
}

// tellExits tells the owner what is not as he wished: who is blocked, which exits
// cannot be used at all, and which carry one family only. told are those of before.
func (p *Plan) tellExits(r config.ExitRow, found map[string]*exitNode, s status.ExitRow, told map[string]bool) {
	for _, name := range r.Exits {
		x := found[name]
		if x == nil || told[x.name] {
			continue
		}
		if x.bad != "" {
			told[x.name] = true
			p.problem("exit-unusable", fmt.Sprintf("The exit %s %s.", x.name, x.bad), x.fix)
		} else if family := x.misses(); family != "" && s.Now == x.name {
			told[x.name] = true
			p.problem("exit-family", fmt.Sprintf("The exit %s carries no %s: for who uses it, what has only %s is blocked.", x.name, family, family),
				"Let it offer both families, and let the coordinator approve them.")
		}
	}
	if s.Now != status.ExitBlocked || len(r.Exits) == 0 {
		return // as wished
	}
	sources := strings.Join(s.Sources, ", ")
	p.Problems = append(p.Problems, status.Problem{
		Code: "exit-blocked", Since: s.Since,
		Text: fmt.Sprintf("Blocked from the internet: %s. %s.", sources, firstUpper(s.Why)),
		Fix: fmt.Sprintf("It goes on by itself with the first exit that answers. `subnetd exit off %s` lets it go without one.",
			strings.Join(s.Sources, " ")),
	})
}

// misses is the family that the exit does not carry; "": it carries both.
func (x *exitNode) misses() string {
	switch {
	case x.no4:
		return "IPv4"
	case x.no6:
		return "IPv6"
	}
	return ""
}

// firstUpper begins a sentence. A name is left as it is.
func firstUpper(s string) string {
	if rest, ok := strings.CutPrefix(s, "this "); ok {
		return "This " + rest
	}
	return s
}

// sourceOf is whose traffic a row is about.
func (p *Plan) sourceOf(f host.Facts, r config.ExitRow) host.ExitSource {
	s := host.ExitSource{MACs: r.MACs, LAN: r.LAN, Router: r.Router}
	for _, name := range r.Interfaces {
		if name == "lo" || isWAN(f, name) || isOurs(name) {
			p.problem("exit-interface", fmt.Sprintf("%s of exit.rows is no interface of the LAN: the row is not about what comes from there.", name),
				"Correct exit.rows; `router` is this router itself.")
			continue
		}
		s.Interfaces = append(s.Interfaces, name)
	}
	return s
}

// isOurs reports whether an interface is the mesh's.
func isOurs(name string) bool { return name == host.DefaultInterface || host.IsExitInterface(name) }

// SourceOf gives the first source that fits a device: its number is that of the row.
// -1: none does. lan says that it is behind an interface of the LAN; with "lo" it
// is the router itself.
func SourceOf(sources []host.ExitSource, mac, link string, lan bool) int {
	return slices.IndexFunc(sources, func(s host.ExitSource) bool {
		if link == "lo" {
			return s.Router
		}
		return mac != "" && slices.Contains(s.MACs, mac) || slices.Contains(s.Interfaces, link) || s.LAN && lan
	})
}

// routeSources is the same by addresses and interfaces, for packets that lost their
// marks.
func routeSources(sources []host.ExitSource, lans []string, f host.Facts) []host.RouteSource {
	way := func(mac, link string) int {
		if i := SourceOf(sources, mac, link, slices.Contains(lans, link)); i >= 0 {
			return sources[i].Way
		}
		return -1
	}
	var out []host.RouteSource
	seen := map[netip.Addr]bool{}
	for _, n := range f.Neighbours {
		if seen[n.Addr] || isWAN(f, n.Interface) || isOurs(n.Interface) || len(out) == maxFrom {
			continue
		}
		if w := way(n.MAC, n.Interface); w != way("", n.Interface) {
			seen[n.Addr] = true
			out = append(out, host.RouteSource{From: n.Addr, Way: w})
		}
	}
	links := slices.Clone(lans)
	for _, s := range sources {
		links = append(links, s.Interfaces...)
	}
	sort.Strings(links)
	for _, link := range append(slices.Compact(links), "lo") {
		if w := way("", link); w >= 0 {
			out = append(out, host.RouteSource{Interface: link, Way: w})
		}
	}
	return out
}

// offerExit asks the coordinator to let this router be an exit.
func (p *Plan) offerExit(c config.Exit) {
	if c.Offer {
		p.Offer = append(p.Offer, all4, all6)
	}
}

// lanOnly is prefixes without the internet: an exit never implies the LAN.
func lanOnly(ps []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(ps), func(p netip.Prefix) bool { return p.Bits() == 0 })
}

// serveExit opens the internet to those whom the coordinator lets.
func (p *Plan) serveExit(in Inputs) {
	if !in.Config.Exit.Offer {
		return
	}
	if !slices.Contains(p.Approved, all4) && !slices.Contains(p.Approved, all6) {
		if in.Config.Mesh.Control != "home" { // there it is a matter of moments
			p.problem("exit-unapproved", "The coordinator has not approved this router as an exit: nobody in the mesh can use the internet from here.",
				"Approve the routes 0.0.0.0/0 and ::/0 of this node on the coordinator.")
		}
		return
	}
	p.Host.Firewall.Internet = true
	p.Host.Route.Forward = true
	for _, i := range in.Facts.Interfaces {
		for _, a := range i.Addrs {
			if i.Name == "lo" || isOurs(i.Name) || a.Addr().IsLinkLocalUnicast() || slices.Contains(p.Host.Firewall.Local, a.Masked()) {
				continue
			}
			p.Host.Firewall.Local = append(p.Host.Firewall.Local, a.Masked())
		}
	}
	sortPrefixes(p.Host.Firewall.Local)
}
