package policy

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"tailscale.com/tailcfg"
)

// home is a router with a printer and a LAN, which is also an exit node; two
// phones of different people; and a camera.
func home() []Node {
	return []Node{
		{ID: 1, User: "anna@example.com", Addrs: addrs("100.64.0.1", "fd7a:115c:a1e0::1"), Exit: true,
			Devices: []Device{{"printer", addrs("100.64.0.9", "fd7a:115c:a1e0::9")}, {"tv", addrs("100.64.0.10")}},
			Routes:  prefixes("192.168.1.0/24", "fd00:1::/64")},
		{ID: 2, User: "anna@example.com", Addrs: addrs("100.64.0.2", "fd7a:115c:a1e0::2")},
		{ID: 3, User: "Ben", Addrs: addrs("100.64.0.3", "fd7a:115c:a1e0::3")},
		{ID: 4, Tags: []string{"tag:cam"}, Addrs: addrs("100.64.0.4", "fd7a:115c:a1e0::4")},
	}
}

const defs = `"groups": {"group:kids": ["ben@"]}, "hosts": {"nas": "192.168.1.50", "office": "172.16.0.0/24"}, "tagOwners": {"tag:cam": [], "tag:none": []},`

// show writes a filter in short lines: sources -> destinations, protocols.
func show(rules []tailcfg.FilterRule) string {
	var out []string
	for _, r := range rules {
		var dst []string
		for _, d := range r.DstPorts {
			ports := fmt.Sprintf("%d-%d", d.Ports.First, d.Ports.Last)
			if d.Ports == tailcfg.PortRangeAny {
				ports = "*"
			} else if d.Ports.First == d.Ports.Last {
				ports = fmt.Sprint(d.Ports.First)
			}
			dst = append(dst, d.IP+" "+ports)
		}
		for _, g := range r.CapGrant {
			caps, _ := json.Marshal(g.CapMap)
			dst = append(dst, fmt.Sprintf("%v %s", g.Dsts, caps))
		}
		s := strings.Join(r.SrcIPs, " ") + " -> " + strings.Join(dst, ", ")
		if r.IPProto != nil {
			s += fmt.Sprint(" ", r.IPProto)
		}
		out = append(out, s)
	}
	return strings.Join(out, "\n")
}

const mesh = "100.64.0.0/10 fd7a:115c:a1e0::/48"

func TestFilters(t *testing.T) {
	const public = "0.0.0.0-9.255.255.255 *, 11.0.0.0-100.63.255.255 *, "
	const annas = "100.64.0.1-100.64.0.2 100.64.0.9-100.64.0.10 192.168.1.0/24 fd00:1::/64 fd7a:115c:a1e0::1-fd7a:115c:a1e0::2 fd7a:115c:a1e0::9"
	const members = "100.64.0.1-100.64.0.3 100.64.0.9-100.64.0.10 192.168.1.0/24 fd00:1::/64 fd7a:115c:a1e0::1-fd7a:115c:a1e0::3 fd7a:115c:a1e0::9"
	acl := func(src, dst, more string) string {
		return `{` + defs + `"acls": [{"action": "accept", "src": [` + src + `], "dst": [` + dst + `]` + more + `}]}`
	}
	grant := func(src, dst, rest string) string {
		return `{` + defs + `"grants": [{"src": [` + src + `], "dst": [` + dst + `], ` + rest + `}]}`
	}
	for _, tt := range []struct {
		name, text string
		want       map[tailcfg.NodeID]string // others: nothing
	}{
		{"empty list", `{"acls": []}`, nil},
		{"empty grants", `{"grants": []}`, nil},
		{"no source", acl(``, `"*:*"`, ``), nil},
		{"no destination", acl(`"*"`, ``, ``), nil},
		{"user who has not joined", acl(`"zoe@"`, `"*:*"`, ``), nil},
		{"tag without nodes", acl(`"*"`, `"tag:none:*"`, ``), nil},
		{"subnet without router", acl(`"*"`, `"office:*"`, ``), nil},
		{"internet of no exit", acl(`"tag:cam"`, `"autogroup:internet:*"`, ``), map[tailcfg.NodeID]string{
			1: "100.64.0.4 fd7a:115c:a1e0::4 -> 0.0.0.0-9.255.255.255 *, 11.0.0.0-100.63.255.255 *, 100.128.0.0-126.255.255.255 *, " +
				"128.0.0.0-169.253.255.255 *, 169.255.0.0-172.15.255.255 *, 172.32.0.0-192.167.255.255 *, 192.169.0.0-223.255.255.255 *, 2000::/3 *",
		}},
		{"all of the default", DefaultText, map[tailcfg.NodeID]string{
			1: members + " -> " + public + "100.64.0.1 *, 100.64.0.9-100.64.0.10 *, 100.128.0.0-126.255.255.255 *, 128.0.0.0-169.253.255.255 *, " +
				"169.255.0.0-172.15.255.255 *, 172.32.0.0-192.167.255.255 *, 192.168.1.0/24 *, 192.169.0.0-223.255.255.255 *, " +
				"2000::/3 *, fd00:1::/64 *, fd7a:115c:a1e0::1 *, fd7a:115c:a1e0::9 *",
			2: members + " -> 100.64.0.2 *, fd7a:115c:a1e0::2 *",
			3: members + " -> 100.64.0.3 *, fd7a:115c:a1e0::3 *",
			4: members + " -> 100.64.0.4 *, fd7a:115c:a1e0::4 *",
		}},
		{"tag to one port", acl(`"tag:cam"`, `"nas:631"`, `, "proto": "tcp"`), map[tailcfg.NodeID]string{
			1: "100.64.0.4 fd7a:115c:a1e0::4 -> 192.168.1.50 631 [6]",
		}},
		{"devices belong to the router", acl(`"group:kids"`, `"anna@example.com:80,443,81"`, ``), map[tailcfg.NodeID]string{
			1: "100.64.0.3 fd7a:115c:a1e0::3 -> 100.64.0.1 80-81, 100.64.0.9-100.64.0.10 80-81, fd7a:115c:a1e0::1 80-81, fd7a:115c:a1e0::9 80-81, " +
				"100.64.0.1 443, 100.64.0.9-100.64.0.10 443, fd7a:115c:a1e0::1 443, fd7a:115c:a1e0::9 443",
			2: "100.64.0.3 fd7a:115c:a1e0::3 -> 100.64.0.2 80-81, fd7a:115c:a1e0::2 80-81, 100.64.0.2 443, fd7a:115c:a1e0::2 443",
		}},
		{"ports merge", acl(`"ben@"`, `"tag:cam:3-4,1-9,5,12,11,14"`, ``), map[tailcfg.NodeID]string{
			4: "100.64.0.3 fd7a:115c:a1e0::3 -> 100.64.0.4 1-9, fd7a:115c:a1e0::4 1-9, 100.64.0.4 11-12, fd7a:115c:a1e0::4 11-12, 100.64.0.4 14, fd7a:115c:a1e0::4 14",
		}},
		{"but not as own devices", acl(`"autogroup:member"`, `"autogroup:self:*"`, ``), map[tailcfg.NodeID]string{
			1: annas + " -> 100.64.0.1 *, fd7a:115c:a1e0::1 *",
			2: annas + " -> 100.64.0.2 *, fd7a:115c:a1e0::2 *",
			3: "100.64.0.3 fd7a:115c:a1e0::3 -> 100.64.0.3 *, fd7a:115c:a1e0::3 *",
		}},
		{"own devices of some", acl(`"group:kids"`, `"autogroup:self:22"`, ``), map[tailcfg.NodeID]string{
			3: "100.64.0.3 fd7a:115c:a1e0::3 -> 100.64.0.3 22, fd7a:115c:a1e0::3 22",
		}},
		{"device by name", acl(`"ben"`, `"device:printer:631"`, ``), nil}, // refused below: ben is no host
		{"device by its name", acl(`"ben@"`, `"device:Printer:631"`, ``), map[tailcfg.NodeID]string{
			1: "100.64.0.3 fd7a:115c:a1e0::3 -> 100.64.0.9 631, fd7a:115c:a1e0::9 631",
		}},
		{"device by address", acl(`"ben@"`, `"100.64.0.8/29:631"`, ``), map[tailcfg.NodeID]string{
			1: "100.64.0.3 fd7a:115c:a1e0::3 -> 100.64.0.9-100.64.0.10 631",
		}},
		{"wider than the subnet", acl(`"ben@"`, `"192.168.0.0/16:*", "[fd00::]/8:1-2"`, ``), map[tailcfg.NodeID]string{
			1: "100.64.0.3 fd7a:115c:a1e0::3 -> 192.168.1.0/24 *, fd00:1::/64 1-2, fd7a:115c:a1e0::1 1-2, fd7a:115c:a1e0::9 1-2",
			2: "100.64.0.3 fd7a:115c:a1e0::3 -> fd7a:115c:a1e0::2 1-2",
			3: "100.64.0.3 fd7a:115c:a1e0::3 -> fd7a:115c:a1e0::3 1-2",
			4: "100.64.0.3 fd7a:115c:a1e0::3 -> fd7a:115c:a1e0::4 1-2",
		}},
		{"public address by an exit", acl(`"ben@"`, `"8.8.8.0/24:53"`, ``), map[tailcfg.NodeID]string{
			1: "100.64.0.3 fd7a:115c:a1e0::3 -> 8.8.8.0/24 53",
		}},
		{"private address by no exit", acl(`"ben@"`, `"10.0.0.0/8:53"`, ``), nil},
		{"subnet as source", acl(`"192.168.1.64/26"`, `"tag:cam:80"`, ``), map[tailcfg.NodeID]string{
			4: "192.168.1.64/26 -> 100.64.0.4 80, fd7a:115c:a1e0::4 80",
		}},
		{"all as source", acl(`"*"`, `"tag:cam:80"`, ``), map[tailcfg.NodeID]string{
			4: "100.64.0.0/10 192.168.1.0/24 fd00:1::/64 fd7a:115c:a1e0::/48 -> 100.64.0.4 80, fd7a:115c:a1e0::4 80",
		}},
		{"all by two autogroups", acl(`"autogroup:tagged", "autogroup:member"`, `"tag:cam:80"`, ``), map[tailcfg.NodeID]string{
			4: "100.64.0.0/10 192.168.1.0/24 fd00:1::/64 fd7a:115c:a1e0::/48 -> 100.64.0.4 80, fd7a:115c:a1e0::4 80",
		}},
		{"all by addresses", acl(`"100.64.0.0/11", "fd7a:115c:a1e0::/64"`, `"tag:cam:80"`, ``), map[tailcfg.NodeID]string{
			4: mesh + " -> 100.64.0.4 80, fd7a:115c:a1e0::4 80",
		}},
		{"protocols", grant(`"ben@"`, `"tag:cam"`, `"ip": ["tcp:443", "udp:*", "80-90", "icmp", "47:*", "tcp:22,80"]`), map[tailcfg.NodeID]string{
			4: "100.64.0.3 fd7a:115c:a1e0::3 -> 100.64.0.4 22, fd7a:115c:a1e0::4 22, 100.64.0.4 80, fd7a:115c:a1e0::4 80, 100.64.0.4 443, fd7a:115c:a1e0::4 443 [6]\n" +
				"100.64.0.3 fd7a:115c:a1e0::3 -> 100.64.0.4 *, fd7a:115c:a1e0::4 * [17]\n" +
				"100.64.0.3 fd7a:115c:a1e0::3 -> 100.64.0.4 80-90, fd7a:115c:a1e0::4 80-90\n" +
				"100.64.0.3 fd7a:115c:a1e0::3 -> 100.64.0.4 *, fd7a:115c:a1e0::4 * [1 58]\n" +
				"100.64.0.3 fd7a:115c:a1e0::3 -> 100.64.0.4 *, fd7a:115c:a1e0::4 * [47]",
		}},
		{"acls and grants, one rule for equal sources", `{` + defs + `"grants": [{"src": ["group:kids"], "dst": ["tag:cam"], "ip": ["22"]}],
			"acls": [{"action": "accept", "src": ["ben@"], "dst": ["tag:cam:80"]}]}`, map[tailcfg.NodeID]string{
			4: "100.64.0.3 fd7a:115c:a1e0::3 -> 100.64.0.4 22, fd7a:115c:a1e0::4 22, 100.64.0.4 80, fd7a:115c:a1e0::4 80",
		}},
		{"capabilities", grant(`"ben@"`, `"*"`, `"ip": ["443"], "app": {"example.com/cap/x": [{"a": [1, 2,],}, 7], "example.com/cap/y": []}`), map[tailcfg.NodeID]string{
			1: "100.64.0.3 fd7a:115c:a1e0::3 -> " + "0.0.0.0-9.255.255.255 443, 11.0.0.0-100.63.255.255 443, 100.64.0.1 443, 100.64.0.9-100.64.0.10 443, 100.128.0.0-126.255.255.255 443, 128.0.0.0-169.253.255.255 443, " +
				"169.255.0.0-172.15.255.255 443, 172.32.0.0-192.167.255.255 443, 192.168.1.0/24 443, 192.169.0.0-223.255.255.255 443, 2000::/3 443, fd00:1::/64 443, fd7a:115c:a1e0::1 443, fd7a:115c:a1e0::9 443\n" +
				`100.64.0.3 fd7a:115c:a1e0::3 -> [100.64.0.1/32 100.64.0.9/32 100.64.0.10/32 192.168.1.0/24 fd00:1::/64 fd7a:115c:a1e0::1/128 fd7a:115c:a1e0::9/128] {"example.com/cap/x":[{"a":[1,2]},7],"example.com/cap/y":[]}`,
			2: "100.64.0.3 fd7a:115c:a1e0::3 -> 100.64.0.2 443, fd7a:115c:a1e0::2 443\n" +
				`100.64.0.3 fd7a:115c:a1e0::3 -> [100.64.0.2/32 fd7a:115c:a1e0::2/128] {"example.com/cap/x":[{"a":[1,2]},7],"example.com/cap/y":[]}`,
			3: "100.64.0.3 fd7a:115c:a1e0::3 -> 100.64.0.3 443, fd7a:115c:a1e0::3 443\n" +
				`100.64.0.3 fd7a:115c:a1e0::3 -> [100.64.0.3/32 fd7a:115c:a1e0::3/128] {"example.com/cap/x":[{"a":[1,2]},7],"example.com/cap/y":[]}`,
			4: "100.64.0.3 fd7a:115c:a1e0::3 -> 100.64.0.4 443, fd7a:115c:a1e0::4 443\n" +
				`100.64.0.3 fd7a:115c:a1e0::3 -> [100.64.0.4/32 fd7a:115c:a1e0::4/128] {"example.com/cap/x":[{"a":[1,2]},7],"example.com/cap/y":[]}`,
		}},
		{"capabilities of both sides", grant(`"ben@"`, `"tag:cam"`, `"app": {"tailscale.com/cap/drive": [{"shares": ["*"]}], "tailscale.com/cap/relay": []}`), map[tailcfg.NodeID]string{
			3: `100.64.0.4 fd7a:115c:a1e0::4 -> [100.64.0.3/32 fd7a:115c:a1e0::3/128] {"tailscale.com/cap/drive-sharer":null,"tailscale.com/cap/relay-target":null}`,
			4: `100.64.0.3 fd7a:115c:a1e0::3 -> [100.64.0.4/32 fd7a:115c:a1e0::4/128] {"tailscale.com/cap/drive":[{"shares":["*"]}],"tailscale.com/cap/relay":[]}`,
		}},
		{"capabilities of own devices", grant(`"ben@"`, `"autogroup:self"`, `"app": {"tailscale.com/cap/drive": []}`), map[tailcfg.NodeID]string{
			3: `100.64.0.3 fd7a:115c:a1e0::3 -> [100.64.0.3/32 fd7a:115c:a1e0::3/128] {"tailscale.com/cap/drive":[]}` + "\n" +
				`100.64.0.3 fd7a:115c:a1e0::3 -> [100.64.0.3/32 fd7a:115c:a1e0::3/128] {"tailscale.com/cap/drive-sharer":null}`,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := Parse([]byte(tt.text))
			if tt.name == "device by name" {
				if err == nil {
					t.Error("a plain word passed for a user")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			c := p.Compile(home())
			for _, n := range home() {
				got := c.Filter(n.ID)
				if got == nil {
					t.Errorf("node %d: nil is no filter", n.ID)
				}
				if show(got) != tt.want[n.ID] {
					t.Errorf("node %d:\n%s\nwant\n%s", n.ID, show(got), tt.want[n.ID])
				}
			}
		})
	}
}

// TestOmitted: without acls and grants all is allowed, as documented by Tailscale.
func TestOmitted(t *testing.T) {
	want := parse(t, absentText).Compile(home())
	for _, text := range []string{"{}", "{" + defs + "}"} {
		c := parse(t, text).Compile(home())
		for id := tailcfg.NodeID(1); id <= 4; id++ {
			if got := c.Filter(id); len(got) != 1 || c.FilterKey(id) != want.FilterKey(id) || !strings.HasPrefix(show(got), mesh[:13]) {
				t.Errorf("%s: node %d: %s", text, id, show(got))
			}
		}
	}
}

// TestKeys: whatever differs in a filter gives another key; nothing else does.
func TestKeys(t *testing.T) {
	seen := map[string]string{}
	for _, rest := range []string{
		`"ip": ["*"]`, `"ip": ["tcp:*"]`, `"ip": ["udp:*"]`, `"ip": ["icmp"]`, `"ip": ["1:*"]`, `"ip": ["22"]`, `"ip": ["22-23"]`, `"ip": ["21-22"]`,
		`"ip": ["22", "tcp:22"]`, `"ip": ["22,24"]`, `"app": {"a.b/c": []}`, `"app": {"a.b/c": [1]}`, `"app": {"a.b/d": [1]}`, `"ip": ["22"], "app": {"a.b/d": [1]}`,
	} {
		c := parse(t, `{`+defs+`"grants": [{"src": ["ben@"], "dst": ["100.64.0.4"], `+rest+`}]}`).Compile(home())
		key := c.FilterKey(4)
		if was, ok := seen[key]; ok {
			t.Errorf("%s and %s have one key", was, rest)
		}
		if c.FilterKey(4) != key || c.FilterKey(3) != c.FilterKey(2) || c.FilterKey(3) == key {
			t.Errorf("%s: keys are not those of the rules", rest)
		}
		seen[key] = rest
	}
}

// TestJoin: with the default no filter changes when a member joins or leaves.
func TestJoin(t *testing.T) {
	nodes := home()[:3]
	before := Default().Compile(nodes)
	after := Default().Compile(append(nodes, Node{ID: 9, User: "cleo", Addrs: addrs("100.99.0.1", "fd7a:115c:a1e0::99")}))
	tagged := Default().Compile(home())
	for id := tailcfg.NodeID(1); id <= 3; id++ {
		if before.FilterKey(id) != after.FilterKey(id) || !reflect.DeepEqual(before.Filter(id), after.Filter(id)) {
			t.Errorf("node %d: %s became %s", id, show(before.Filter(id)), show(after.Filter(id)))
		}
		if before.FilterKey(id) == tagged.FilterKey(id) {
			t.Errorf("node %d lets a tagged device in", id)
		}
	}
}
