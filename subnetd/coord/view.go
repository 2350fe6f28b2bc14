package coord

import (
	"encoding/json"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"

	"subnetd/subnetd/coord/policy"

	"tailscale.com/tailcfg"
)

// shown is a node as its peers see it: built once for all of them.
type shown struct {
	node  *tailcfg.Node
	json  json.RawMessage
	old   json.RawMessage // for clients up to oldDevices; nil: the same
	gen   uint64          // of the snapshot that it was built for
	from  uint64          // gen of the one before, which most peers were told; 0: none
	same  bool            // there is no difference to that
	patch json.RawMessage
	given []tailcfg.RawMessage // to itself: what its devices have
}

// oldDevices is the last version of clients some of which take a single address
// for a route that their user must accept, unless it is one of the node's own
// (Tailscale 1.92 and before). To them devices are shown as such, last: their DNS
// answers with the first address of a family.
const oldDevices = 131

// text is the node for a client of that version.
func (s *shown) text(v tailcfg.CapabilityVersion) json.RawMessage {
	if v <= oldDevices && s.old != nil {
		return s.old
	}
	return s.json
}

// since gives the difference to what a peer was told, if a patch can say it.
func (s *shown) since(old *shown) (same bool, patch json.RawMessage) {
	if old.gen == s.from {
		return s.same, s.patch
	}
	return difference(old.node, s.node)
}

func difference(old, now *tailcfg.Node) (same bool, patch json.RawMessage) {
	same, p := patchOf(old, now)
	if p == nil || same {
		return same, nil
	}
	return false, mustJSON(p)
}

// mustJSON is for values whose fields are ours, and all marshal.
func mustJSON(v any) json.RawMessage {
	text, err := json.Marshal(v)
	if err != nil {
		panic("coord: this is no JSON: " + err.Error())
	}
	return text
}

// complete derives all that follows from the nodes of a draft. What the changes
// cannot have touched is taken over from the snapshot before.
func (d *draft) complete(domain string) {
	d.elect()
	d.order = d.sorted()
	ruled, devices := d.compiled == nil || d.compiled.of != d.policy, d.around || d.dns == nil
	for id := range d.touched {
		old, n := d.before.nodes[id], d.nodes[id]
		if n != nil {
			n.rules = d.rulesOf(n)
			d.show(n, old, domain)
		}
		ruled = ruled || !sameRules(old, n)
		devices = devices || !sameDevices(old, n)
	}
	d.recent = append(d.recent, recent{d.gen, sortIDs(slices.Collect(maps.Keys(d.touched)))})
	if ruled {
		d.compile()
	}
	if !devices {
		return
	}
	if dns := d.dnsConfig(domain, d.order); !reflect.DeepEqual(dns, d.dns) {
		d.dns = dns
	}
}

// compile has the policy judge all nodes anew.
func (d *draft) compile() {
	inputs := make([]policy.Node, 0, len(d.order))
	for _, n := range d.order {
		if !n.shown.node.Expired {
			inputs = append(inputs, n.rules)
		}
	}
	d.compiled = &compiled{d.policy.Compile(inputs), d.policy}
}

// sameRules reports whether two states of a node are the same to the policy.
func sameRules(a, b *node) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.shown.node.Expired == b.shown.node.Expired && a.rules.User == b.rules.User && a.rules.Exit == b.rules.Exit &&
		slices.Equal(a.rules.Tags, b.rules.Tags) && slices.Equal(a.rules.Addrs, b.rules.Addrs) &&
		slices.Equal(a.rules.Routes, b.rules.Routes) && slices.Equal(a.Devices, b.Devices)
}

// sameDevices reports whether a node's devices have the names that they had.
func sameDevices(a, b *node) bool {
	var was, is []device
	if a != nil {
		was = a.Devices
	}
	if b != nil {
		is = b.Devices
	}
	return slices.Equal(was, is) && (len(is) == 0 || a.Name == b.Name)
}

// compiled is a policy's answer for the nodes of a snapshot.
type compiled struct {
	*policy.Compiled
	of *policy.Policy
}

// approved is what n may serve: offered, and let by the owner, by the policy, or
// because n is the owner's own router.
func (s *snapshot) approved(n *node) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range n.Offers {
		if s.approves(n, p) {
			out = append(out, p)
		}
	}
	return out
}

func (s *snapshot) approves(n *node, p netip.Prefix) bool {
	return n.Self || slices.Contains(n.Approved, p) || s.policy.AutoApproves(s.userName(n), n.Tags, p)
}

// elect gives each prefix one node that serves it. Who has it keeps it while it
// is online; else an online one with the lowest ID has it; else whoever had it.
func (d *draft) elect() {
	claims := map[netip.Prefix][]*node{}
	for _, n := range d.sorted() {
		if n.expired(d.now) || len(n.Offers) == 0 {
			continue
		}
		for _, p := range d.approved(n) {
			if p.Bits() > 0 {
				claims[p] = append(claims[p], n)
			}
		}
	}
	next := make(map[netip.Prefix]tailcfg.NodeID, len(claims))
	for p, nodes := range claims {
		next[p] = best(nodes, d.primary[p])
		d.moved(d.primary[p], next[p])
	}
	for p, id := range d.primary {
		if next[p] == 0 {
			d.moved(id, 0)
		}
	}
	d.primary = next
}

// best is who of the nodes, sorted by ID, serves what had served until now.
func best(nodes []*node, had tailcfg.NodeID) tailcfg.NodeID {
	rank := func(n *node) int {
		switch {
		case n.Online && n.ID == had:
			return 0
		case n.Online:
			return 1
		case n.ID == had:
			return 2
		}
		return 3
	}
	return slices.MinFunc(nodes, func(a, b *node) int { return rank(a) - rank(b) }).ID
}

// moved has both nodes shown anew when a prefix goes from one to the other.
func (d *draft) moved(from, to tailcfg.NodeID) {
	if from != to {
		d.edit(from)
		d.edit(to)
	}
}

// serves splits what n is approved for into prefixes it is primary for, and
// whether it is an exit.
func (d *draft) serves(n *node) (routes []netip.Prefix, exit bool) {
	var exits int
	for _, p := range d.approved(n) {
		switch {
		case p.Bits() == 0:
			exits++
		case d.primary[p] == n.ID:
			routes = append(routes, p)
		}
	}
	return routes, exits > 0
}

func (d *draft) rulesOf(n *node) policy.Node {
	out := policy.Node{ID: n.ID, User: d.userName(n), Tags: n.Tags}
	for _, p := range n.addrs {
		out.Addrs = append(out.Addrs, p.Addr())
	}
	for _, dev := range n.Devices {
		out.Devices = append(out.Devices, policy.Device{Name: dev.Name, Addrs: dev.addresses()})
	}
	out.Routes, out.Exit = d.serves(n)
	return out
}

// show builds the node as peers, and but for its capabilities itself, see it.
// old is the node before, nil if there was none.
func (d *draft) show(n, old *node, domain string) {
	w := &tailcfg.Node{
		ID: n.ID, StableID: stableID(n.ID), Name: n.Name + "." + domain + ".", User: n.User,
		Key: n.Key, KeyExpiry: n.Expiry, Machine: n.Machine, DiscoKey: n.Disco,
		Addresses: n.addrs, AllowedIPs: slices.Clone(n.addrs), Endpoints: n.Endpoints, HomeDERP: n.Home,
		Hostinfo: (&tailcfg.Hostinfo{OS: n.OS, Hostname: n.Hostname, Services: n.Services, IPNVersion: n.Client, RoutableIPs: n.Offers}).View(),
		Created:  n.Created, Cap: n.Cap, Tags: n.Tags, MachineAuthorized: true, Expired: n.expired(d.now),
		Online: new(n.Online),
	}
	if !n.Online && !n.Seen.IsZero() {
		w.LastSeen = new(n.Seen)
	}
	if len(n.Tags) > 0 {
		w.User = taggedID
	}
	all := []tailcfg.RawMessage{}
	for _, dev := range n.Devices {
		for _, a := range dev.addresses() {
			w.AllowedIPs = append(w.AllowedIPs, netip.PrefixFrom(a, a.BitLen()))
		}
		all = append(all, tailcfg.RawMessage(mustJSON(given{dev.Want, dev.ID, dev.Name + "." + domain, dev.addresses()})))
	}
	own := len(w.AllowedIPs)
	routes, exit := d.serves(n)
	w.PrimaryRoutes = routes
	w.AllowedIPs = append(w.AllowedIPs, routes...)
	if exit {
		w.AllowedIPs = append(w.AllowedIPs, allV4, allV6)
		w.CapMap = tailcfg.NodeCapMap{tailcfg.NodeAttrSuggestExitNode: nil}
	}
	n.shown = &shown{node: w, json: mustJSON(w), given: all, gen: d.gen}
	if len(n.Devices) > 0 {
		old := *w
		old.Addresses = w.AllowedIPs[:own]
		n.shown.old = mustJSON(&old)
	}
	n.ruled = d.gen
	if old == nil {
		return
	}
	n.shown.from = old.shown.gen
	n.shown.same, n.shown.patch = difference(old.shown.node, w)
	if sameRules(old, n) {
		n.ruled = old.ruled
	}
}

var (
	allV4 = netip.MustParsePrefix("0.0.0.0/0")
	allV6 = netip.MustParsePrefix("::/0")
)

func stableID(id tailcfg.NodeID) tailcfg.StableNodeID {
	return tailcfg.StableNodeID("n" + strconv.FormatInt(int64(id), 36))
}

// self is the node as it sees itself.
func (s *snapshot) self(n *node) *tailcfg.Node {
	w := *n.shown.node
	w.CapMap = tailcfg.NodeCapMap{
		tailcfg.CapabilityFileSharing:     nil,
		tailcfg.NodeAttrCacheNetworkMaps:  nil, // the mesh outlives its coordinator
		tailcfg.NodeAttrMagicDNSPeerAAAA:  nil,
		tailcfg.NodeAttrDefaultAutoUpdate: {"false"},
	}
	for k, v := range s.compiled.Attrs(n.ID) {
		w.CapMap[k] = v
	}
	w.CapMap[devicesCap] = n.shown.given
	return &w
}

// shownTo is what the member is told of another, nil if nothing.
func (s *snapshot) shownTo(member *node, other tailcfg.NodeID) *shown {
	if s == nil || member.ID == other {
		return nil
	}
	if n := s.nodes[other]; n != nil && s.compiled.Sees(member.ID, other) {
		return n.shown
	}
	return nil
}
