package policy

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"

	"github.com/tailscale/hujson"
	"tailscale.com/tailcfg"
)

// idle are sections that have no meaning here and open nothing when left out.
const idle = "ssh sshTests derpMap disableIPv4 OneCGNATRoute postures ipsets"

const noPosture = "device posture is not supported, so this would not restrict anything"

// policy reads the whole source: first what others refer to.
func (r *reader) policy() *Policy {
	p := &Policy{text: r.src, groups: map[string][]string{}, hosts: map[string]set{}, tags: map[string][]selector{}}
	v := r.tree()
	if v == nil {
		return p
	}
	top := r.record(v, "the policy", "", "acls grants groups hosts tagOwners autoApprovers nodeAttrs tests "+
		"randomizeClientPort defaultSrcPosture "+idle)
	for _, name := range strings.Fields(idle) {
		if top[name] != nil {
			p.ignored = append(p.ignored, name)
		}
	}
	r.refuse(top["defaultSrcPosture"], noPosture)
	r.groups(p, top["groups"])
	r.hosts(p, top["hosts"])
	r.tagOwners(p, top["tagOwners"])
	r.autoApprovers(p, top["autoApprovers"])
	r.rules(p, top["acls"], top["grants"])
	r.nodeAttrs(p, top["nodeAttrs"], top["randomizeClientPort"])
	r.tests(p, top["tests"])
	return p
}

func (r *reader) groups(p *Policy, v *hujson.Value) {
	for _, f := range r.object(v, "groups") {
		if name, ok := strings.CutPrefix(f.name.text, groupPrefix); !ok || name == "" {
			r.fail(f.name.at, `%q must begin with "group:"`, f.name.text)
		}
		logins := []string{}
		for _, w := range r.words(f.value, f.name.text) {
			login, err := parseLogin(w.text)
			if err != nil {
				r.fail(w.at, "%q cannot be in a group: %v", w.text, err)
			}
			logins = append(logins, login)
		}
		slices.Sort(logins)
		p.groups[f.name.text] = slices.Compact(logins)
	}
}

func (r *reader) hosts(p *Policy, v *hujson.Value) {
	for _, f := range r.object(v, "hosts") {
		name := f.name.text
		if _, err := parseSpan(name); err == nil || name == "" || strings.ContainsAny(name, "@:*/[] ") {
			r.fail(f.name.at, "%q cannot be the name of a host", name)
		}
		w := r.text(f.value, "the address of "+name)
		sp, err := parseSpan(w.text)
		if err != nil {
			r.fail(w.at, "host %s, %q: %v", name, w.text, err)
		}
		p.hosts[strings.ToLower(name)] = set{sp}
	}
}

func (r *reader) tagOwners(p *Policy, v *hujson.Value) {
	fields := r.object(v, "tagOwners")
	for _, f := range fields {
		if err := tailcfg.CheckTag(f.name.text); err != nil {
			r.fail(f.name.at, "%q: %v", f.name.text, err)
		}
		p.tags[f.name.text] = nil
	}
	for _, f := range fields {
		p.tags[f.name.text] = r.selectors(p, f.value, "the owners of "+f.name.text, "tag owner")
	}
}

func (r *reader) autoApprovers(p *Policy, v *hujson.Value) {
	fields := r.record(v, "autoApprovers", "", "routes exitNode")
	for _, f := range r.object(fields["routes"], "routes") {
		prefix, err := netip.ParsePrefix(f.name.text)
		if a, single := netip.ParseAddr(f.name.text); err != nil && single == nil {
			prefix, err = a.Prefix(a.BitLen())
		}
		if err != nil || prefix != prefix.Masked() || prefix.Addr().Is4In6() {
			r.fail(f.name.at, "%q is no route; write it like 192.168.1.0/24", f.name.text)
		}
		who := r.selectors(p, f.value, "the approvers of "+f.name.text, "approver")
		p.routes = append(p.routes, approval{prefix, who})
	}
	p.exits = r.selectors(p, fields["exitNode"], "exitNode", "approver")
}

// rules reads acls and grants.
func (r *reader) rules(p *Policy, acls, grants *hujson.Value) {
	if acls == nil && grants == nil {
		p.rules = (&reader{src: absentText}).policy().rules
		return
	}
	add := func(v *hujson.Value, rules ...rule) {
		if p.rules = append(p.rules, rules...); len(p.rules) > maxRules {
			r.fail(v.StartOffset, "acls and grants have more than %d rules", maxRules)
		}
	}
	p.rules = []rule{}
	for _, v := range r.list(acls, "acls") {
		add(&v, r.acl(p, &v)...)
	}
	for _, v := range r.list(grants, "grants") {
		add(&v, r.grant(p, &v)...)
	}
}

func (r *reader) acl(p *Policy, v *hujson.Value) []rule {
	f := r.record(v, "an entry of acls", "action src dst", "proto srcPosture")
	if r.refuse(f["srcPosture"], noPosture); r.err != nil {
		return nil
	}
	if w := r.text(f["action"], "action"); w.text != "accept" {
		r.fail(w.at, `the action %q does not exist; rules only allow, so write "accept"`, w.text)
	}
	protos, ported := r.proto(f["proto"])
	var allow []permit
	for _, w := range r.words(f["dst"], "dst") {
		to := permit{protos: protos}
		host, ports, err := splitPorts(w.text)
		if err == nil {
			to.ports, err = portsOf(ports, ported)
		}
		if err != nil {
			r.fail(w.at, "%q: %v", w.text, err)
		}
		to.dst = []selector{r.selector(p, host, w.at, "dst")}
		allow = append(allow, to)
	}
	return r.apart(r.selectors(p, f["src"], "src", "src"), allow, f["dst"].StartOffset)
}

// apart makes a rule of what is for all who are named as destinations, and one
// of what is for the source's own devices.
func (r *reader) apart(src []selector, allow []permit, at int) []rule {
	var out []rule
	for _, own := range []bool{false, true} {
		next := rule{src: src, self: own}
		for _, p := range allow {
			p.dst = slices.DeleteFunc(slices.Clone(p.dst), func(s selector) bool { return (s.kind == self) != own })
			if len(p.dst) > 0 {
				next.allow = append(next.allow, p)
			}
		}
		if len(next.allow) > 0 {
			out = append(out, next)
		}
		if own && next.allow != nil && slices.ContainsFunc(src, func(s selector) bool { return s.kind&(byUser|members) == 0 }) {
			r.fail(at, "with autogroup:self as dst, src may hold only users, groups and autogroup:member")
		}
	}
	return out
}

// proto reads an optional protocol, which may also be written as a number.
func (r *reader) proto(v *hujson.Value) (protos []int, ported bool) {
	if v == nil {
		return nil, true
	}
	l, isLiteral := v.Value.(hujson.Literal)
	name := l.String()
	if !isLiteral || l.Kind() != '0' {
		name = r.text(v, "proto").text
	}
	protos, ported, err := parseProto(name)
	if err != nil {
		r.fail(v.StartOffset, "%v", err)
	}
	return protos, ported
}

// grant returns the rules of an entry of grants, and what its capabilities need
// in the other direction.
func (r *reader) grant(p *Policy, v *hujson.Value) []rule {
	f := r.record(v, "an entry of grants", "src dst", "ip app via srcPosture")
	r.refuse(f["srcPosture"], noPosture)
	if r.refuse(f["via"], "via is not supported, so it would not restrict the way of packets"); r.err != nil {
		return nil
	}
	src, dst := r.selectors(p, f["src"], "src", "src"), r.selectors(p, f["dst"], "dst", "dst")
	var allow []permit
	for _, w := range r.words(f["ip"], "ip") {
		protos, ports, err := parseIP(w.text)
		if err != nil {
			r.fail(w.at, "%q: %v", w.text, err)
		}
		allow = append(allow, permit{dst: dst, protos: protos, ports: ports})
	}
	caps := r.app(f["app"])
	if len(allow)+len(caps) == 0 {
		r.fail(v.StartOffset, "a grant needs ip or app")
	}
	if len(caps) > 0 {
		if slices.ContainsFunc(dst, func(s selector) bool { return s.kind == internet }) {
			r.fail(f["app"].StartOffset, "capabilities are for nodes; autogroup:internet has none")
		}
		allow = append(allow, capPermit(dst, caps))
	}
	out := r.apart(src, allow, f["dst"].StartOffset)
	if back := companions(caps); len(back) > 0 {
		for _, x := range out {
			out = append(out, x.reverse(back))
		}
	}
	return out
}

// app reads capabilities and their values.
func (r *reader) app(v *hujson.Value) tailcfg.PeerCapMap {
	caps := tailcfg.PeerCapMap{}
	for _, f := range r.object(v, "app") {
		if domain, path, ok := strings.Cut(f.name.text, "/"); !ok || domain == "" || path == "" {
			r.fail(f.name.at, "%q is no capability; write it like example.com/cap/name", f.name.text)
		}
		caps[tailcfg.PeerCapability(f.name.text)] = r.values(f.value, f.name.text)
	}
	return caps
}

func capPermit(dst []selector, caps tailcfg.PeerCapMap) permit {
	key, _ := json.Marshal(caps) // strings and JSON only: cannot fail
	return permit{dst: dst, caps: caps, capsKey: string(key)}
}

// companions are what the other side must be granted for a capability to work.
func companions(caps tailcfg.PeerCapMap) tailcfg.PeerCapMap {
	out := tailcfg.PeerCapMap{}
	if _, ok := caps[tailcfg.PeerCapabilityTaildrive]; ok {
		out[tailcfg.PeerCapabilityTaildriveSharer] = nil
	}
	if _, ok := caps[tailcfg.PeerCapabilityRelay]; ok {
		out[tailcfg.PeerCapabilityRelayTarget] = nil
	}
	return out
}

// reverse grants caps on the sources of x to its destinations. Devices by name
// stand behind a router and hold no capabilities.
func (x rule) reverse(caps tailcfg.PeerCapMap) rule {
	dst := x.allow[len(x.allow)-1].dst
	if x.self {
		return rule{src: x.src, self: true, allow: []permit{capPermit(dst, caps)}}
	}
	from := slices.DeleteFunc(slices.Clone(dst), func(s selector) bool { return s.kind == device })
	return rule{src: from, allow: []permit{capPermit(x.src, caps)}}
}

func (r *reader) nodeAttrs(p *Policy, v, randomPort *hujson.Value) {
	for _, e := range r.list(v, "nodeAttrs") {
		f := r.record(&e, "an entry of nodeAttrs", "target", "attr app ipPool")
		if r.refuse(f["ipPool"], "the home gives out addresses by itself, so ipPool cannot be followed"); r.err != nil {
			return
		}
		a := attr{target: r.selectors(p, f["target"], "target", "target"), caps: tailcfg.NodeCapMap{}}
		for _, w := range r.words(f["attr"], "attr") {
			a.caps[tailcfg.NodeCapability(w.text)] = nil
		}
		for name, values := range r.app(f["app"]) {
			a.caps[tailcfg.NodeCapability(name)] = values
		}
		p.attrs = append(p.attrs, a)
	}
	if randomPort == nil {
		return
	}
	switch l, _ := randomPort.Value.(hujson.Literal); string(l) {
	case "true":
		p.attrs = append(p.attrs, attr{
			target: []selector{{kind: anyone}},
			caps:   tailcfg.NodeCapMap{tailcfg.NodeAttrRandomizeClientPort: nil},
		})
	case "false":
	default:
		r.fail(randomPort.StartOffset, "randomizeClientPort must be true or false")
	}
}
