package policy

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"tailscale.com/tailcfg"
)

func parse(t *testing.T, text string) *Policy {
	t.Helper()
	p, err := Parse([]byte(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return p
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// TestColumn: the place is that of the word, in bytes.
func TestColumn(t *testing.T) {
	const line = "  \"acls\": [{\"action\": \"accept\", \"src\": [\"ä@\", \"tag:x\"], \"dst\": []}]}"
	_, err := Parse([]byte("{\n" + line))
	want := fmt.Sprintf(`line 2, column %d: "tag:x": there is no such tag in tagOwners`, 1+strings.Index(line, `"tag:x"`))
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// TestAccepted: odd but right, most of it as Tailscale's own documentation writes it.
func TestAccepted(t *testing.T) {
	for _, text := range []string{
		"{}", "// a comment\n{ /* and */ }\n", DefaultText, absentText, `{"acls": []}`, `{"grants": [],}`,
		`{"ACLs": [], "Groups": {}, "TAGOWNERS": {}}`,
		`{"acls": [{"action": "accept", "src": [], "dst": []}]}`,
		`{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"], "srcPosture": []}]}`,
		`{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"], "via": null, "srcPosture": null}]}`,
		`{"acls": [{"action": "accept", "src": [" nobody-yet@example.com "], "dst": ["*:*"]}]}`,
		`{"acls": [{"action": "accept", "proto": 6, "src": ["*"], "dst": ["[fd00::1]:80", "[fd00::]/64:*", "fd00::/64:1-2", "[fd00::1-fd00::5]:9"]}]}`,
		`{"defaultSrcPosture": [], "postures": {"posture:x": ["node:os == 'linux'"]}, "ipsets": {}, "ssh": [{"action": "check"}]}`,
		`{"tests": [{"src": "anna@", "accept": ["192.168.1.9:80", "8.8.8.8:53", "device:tv:9", "ben@:1", "autogroup:member:1"], "srcPostureAttrs": {"node:os": "windows"}}]}`,
		`{"tests": [{"src": "anna@", "proto": "icmp", "accept": ["ben@:0"]}]}`,
		`{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:0-65535"]}], "randomizeClientPort": false}`,
		`{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:` + everyOther(2*maxPorts) + `"]}]}`,
	} {
		p := parse(t, text)
		if p.Text() != text {
			t.Errorf("text %q became %q", text, p.Text())
		}
	}
}

func TestIgnored(t *testing.T) {
	p := parse(t, `{"SSH": [], "derpMap": {"Regions": {}}, "acls": []}`)
	if got := p.Ignored(); !slices.Equal(got, []string{"ssh", "derpMap"}) {
		t.Errorf("ignored %q", got)
	}
}

func TestDefault(t *testing.T) {
	p := Default()
	if p.Text() != DefaultText || p.Test() != nil || p.KnowsTag("tag:x") || p.MayTag("anna", "tag:x") {
		t.Error("the default is not DefaultText, or lets someone tag")
	}
}

func TestTags(t *testing.T) {
	p := parse(t, `{
		"groups": {"group:kids": ["Ben@", "cleo@example.com"]},
		"tagOwners": {
			"tag:none": [], "tag:admin": ["autogroup:admin", "autogroup:owner"], "tag:all": ["autogroup:member"],
			"tag:anna": ["anna"], "tag:kids": ["group:kids"], "tag:ci": ["tag:ci", "tag:anna"], "tag:far": ["tag:ci"],
		},
	}`)
	for _, tt := range []struct {
		user, may string
	}{
		{"anna", "tag:all tag:anna tag:ci tag:far"}, {"ANNA@", "tag:all tag:anna tag:ci tag:far"},
		{"ben", "tag:all tag:kids"}, {"cleo@example.com", "tag:all tag:kids"}, {"cleo", "tag:all"},
		{"", ""}, {"@", ""}, {"tag:ci", "tag:ci tag:far"}, {"tag:anna", "tag:ci tag:far"}, {"tag:gone", ""}, {"group:kids", "tag:all"},
	} {
		var may []string
		for _, tag := range []string{"tag:none", "tag:admin", "tag:all", "tag:anna", "tag:kids", "tag:ci", "tag:far", "tag:gone", "all", ""} {
			if p.MayTag(tt.user, tag) {
				may = append(may, tag)
			}
			if p.KnowsTag(tag) != (strings.HasPrefix(tag, "tag:") && tag != "tag:gone") {
				t.Errorf("KnowsTag(%q)", tag)
			}
		}
		if got := strings.Join(may, " "); got != tt.may {
			t.Errorf("%q may give %q, want %q", tt.user, got, tt.may)
		}
	}
}

func TestAutoApproves(t *testing.T) {
	p := parse(t, `{
		"groups": {"group:kids": ["ben@"]},
		"tagOwners": {"tag:router": [], "tag:exit": []},
		"autoApprovers": {
			"routes": {
				"192.168.0.0/16": ["anna@", "tag:router"], "10.0.0.0/8": ["group:kids"], "10.9.0.0/16": ["autogroup:tagged"],
				"fd00::/8": ["autogroup:member", "autogroup:admin"], "172.16.0.1": ["anna"],
			},
			"exitNode": ["tag:exit"],
		},
	}`)
	for _, tt := range []struct {
		user, tag, route string
		want             bool
	}{
		{"anna", "", "192.168.0.0/16", true}, {"anna@", "", "192.168.7.0/24", true}, {"anna", "", "192.168.7.1/32", true},
		{"anna", "", "192.0.0.0/8", false}, {"anna", "", "192.168.0.0/15", false}, {"anna", "", "10.0.0.0/24", false}, {"ben", "", "10.0.0.0/24", true},
		{"anna", "tag:exit", "192.168.7.0/24", false}, {"", "tag:router", "192.168.7.0/24", true},
		{"", "tag:router", "10.9.1.0/24", true}, {"", "tag:router", "10.0.0.0/8", false}, {"ben", "tag:exit", "10.0.0.0/24", false},
		{"x", "", "fd00:1::/32", true}, {"", "", "fd00:1::/32", false}, {"x", "", "f000::/4", false},
		{"anna", "", "172.16.0.1/32", true}, {"anna", "", "172.16.0.0/31", false},
		{"", "tag:exit", "0.0.0.0/0", true}, {"", "tag:exit", "::/0", true}, {"anna", "", "0.0.0.0/0", false},
	} {
		var tags []string
		if tt.tag != "" {
			tags = []string{tt.tag}
		}
		if got := p.AutoApproves(tt.user, tags, netip.MustParsePrefix(tt.route)); got != tt.want {
			t.Errorf("%q %q %s: %v", tt.user, tt.tag, tt.route, got)
		}
	}
	if p.AutoApproves("", []string{"tag:exit"}, netip.Prefix{}) {
		t.Error("no route at all was approved")
	}
	if Default().AutoApproves("anna", nil, netip.MustParsePrefix("10.0.0.0/8")) {
		t.Error("the default approves routes")
	}
}

func TestAttrs(t *testing.T) {
	p := parse(t, `{
		"hosts": {"phone": "100.64.0.1"},
		"tagOwners": {"tag:cam": []},
		"randomizeClientPort": true,
		"nodeAttrs": [
			{"target": ["*"], "attr": ["all", "all"]},
			{"target": ["anna@"], "attr": ["anna"], "app": {"a.b/c": [{"n": 12345678901234567890, /* kept */ "m": "\ud800<"},],},},
			{"target": ["phone", "tag:cam"], "attr": [], "app": {"a.b/c": [2]}},
			{"target": ["autogroup:tagged"], "attr": ["tagged"]},
			{"target": ["192.168.1.0/24"], "attr": ["never"]},
		],
	}`)
	c := p.Compile([]Node{
		{ID: 1, User: "anna", Addrs: addrs("100.64.0.1"), Routes: prefixes("192.168.1.0/24")},
		{ID: 2, Tags: []string{"tag:cam"}, Addrs: addrs("100.64.0.2")},
		{ID: 3, User: "ben", Addrs: addrs("100.64.0.3")},
	})
	for id, want := range map[tailcfg.NodeID]tailcfg.NodeCapMap{
		1: {"all": nil, "anna": nil, "randomize-client-port": nil, "a.b/c": {`{"m":"\ufffd\u003c","n":12345678901234567890}`, "2"}},
		2: {"all": nil, "tagged": nil, "randomize-client-port": nil, "a.b/c": {"2"}},
		3: {"all": nil, "randomize-client-port": nil},
		4: nil,
	} {
		got := c.Attrs(id)
		for _, values := range got["a.b/c"] {
			if !json.Valid([]byte(values)) {
				t.Errorf("node %d: %s is no JSON", id, values)
			}
		}
		norm := func(m tailcfg.NodeCapMap) string { return strings.ReplaceAll(fmt.Sprint(m), "\ufffd", `\ufffd`) }
		if norm(got) != norm(want) || (got == nil) != (want == nil) {
			t.Errorf("node %d: %v, want %v", id, got, want)
		}
	}
	c.Attrs(1)["all"] = []tailcfg.RawMessage{"1"}
	if c.Attrs(1)["all"] != nil || c.Attrs(2)["all"] != nil {
		t.Error("the map of one caller is the map of another")
	}
}

// TestTests: what the tests section sees does not depend on who has joined, and
// names of users are not taken for addresses.
func TestTests(t *testing.T) {
	const head = `{
		"groups": {"group:kids": ["ben@", "cleo@"]},
		"hosts": {"nas": "192.168.1.9", "mesh": "100.64.0.0/10", "most": "100.64.0.1-100.127.255.255"},
		"tagOwners": {"tag:cam": [], "tag:nas": []},
	`
	for _, tt := range []struct {
		rules, src, dst string
		proto           string
		pass            bool
	}{
		{`"acls": [{"action": "accept", "src": ["anna@"], "dst": ["tag:nas:22"]}]`, "anna@", "tag:nas:22", "", true},
		{`"acls": [{"action": "accept", "src": ["anna@"], "dst": ["tag:nas:22"]}]`, "anna@", "tag:nas:23", "", false},
		{`"acls": [{"action": "accept", "src": ["anna@"], "dst": ["tag:nas:22"]}]`, "anna@", "tag:cam:22", "", false},
		{`"acls": [{"action": "accept", "src": ["anna@"], "dst": ["tag:nas:22"]}]`, "ben@", "tag:nas:22", "", false},
		{`"acls": [{"action": "accept", "src": ["anna@"], "dst": ["tag:nas:22"]}]`, "anna@", "tag:nas:0", "icmp", true},
		{`"acls": [{"action": "accept", "proto": "tcp", "src": ["anna@"], "dst": ["tag:nas:22"]}]`, "anna@", "tag:nas:0", "icmp", false},
		{`"acls": [{"action": "accept", "proto": "tcp", "src": ["anna@"], "dst": ["tag:nas:22"]}]`, "anna@", "tag:nas:22", "udp", false},
		{`"acls": [{"action": "accept", "proto": "udp", "src": ["anna@"], "dst": ["tag:nas:22"]}]`, "anna@", "tag:nas:22", "", true},
		{`"acls": [{"action": "accept", "proto": "icmp", "src": ["anna@"], "dst": ["tag:nas:*"]}]`, "anna@", "tag:nas:22", "", false},
		{`"acls": [{"action": "accept", "src": ["ben@"], "dst": ["*:*"]}]`, "ben@", "nas:80", "", true},
		{`"acls": [{"action": "accept", "src": ["ben@"], "dst": ["*:*"]}]`, "ben@", "8.8.8.8:80", "", true},
		{`"acls": [{"action": "accept", "src": ["ben@"], "dst": ["autogroup:internet:*"]}]`, "ben@", "8.8.8.8:80", "", true},
		{`"acls": [{"action": "accept", "src": ["ben@"], "dst": ["autogroup:internet:*"]}]`, "ben@", "nas:80", "", false},
		{`"acls": [{"action": "accept", "src": ["ben@"], "dst": ["autogroup:member:*"]}]`, "ben@", "nas:80", "", false},
		{`"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]`, "ben@", "ben@:80", "", true},
		{`"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]`, "ben@", "cleo@:80", "", false},
		{`"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:tagged:*"]}]`, "autogroup:member", "autogroup:tagged:80", "", true},
		{`"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:nas:*"]}]`, "autogroup:member", "autogroup:tagged:80", "", false},
		{`"acls": [{"action": "accept", "src": ["*"], "dst": ["device:tv:80"]}]`, "tag:cam", "device:TV:80", "", true},
		{`"acls": [{"action": "accept", "src": ["*"], "dst": ["device:tv:80"]}]`, "tag:cam", "device:radio:80", "", false},
		{`"acls": [{"action": "accept", "src": ["*"], "dst": ["100.64.0.0/10:80"]}]`, "tag:cam", "device:radio:80", "", true},
		// Who has which address is not known, except that it is in the mesh.
		{`"acls": [{"action": "accept", "src": ["mesh"], "dst": ["nas:80"]}]`, "anna@", "nas:80", "", true},
		{`"acls": [{"action": "accept", "src": ["most"], "dst": ["nas:80"]}]`, "anna@", "nas:80", "", false},
		{`"acls": [{"action": "accept", "src": ["100.127.255.0/24", "100.127.254.255"], "dst": ["nas:80"]}]`, "anna@", "nas:80", "", false},
		{`"acls": [{"action": "accept", "src": ["100.64.0.0/10"], "dst": ["nas:81"]}, {"action": "accept", "src": ["100.127.255.0/24"], "dst": ["nas:80"]}]`, "anna@", "nas:80", "", false},
		{`"acls": [{"action": "accept", "src": ["100.127.255.0/24"], "dst": ["nas:80"]}]`, "100.127.255.254", "nas:80", "", true},
		{`"acls": [{"action": "accept", "src": ["100.127.255.254"], "dst": ["nas:80"]}]`, "100.127.255.254", "nas:80", "", true},
		{`"acls": [{"action": "accept", "src": ["anna@"], "dst": ["nas:80"]}]`, "100.127.255.254", "nas:80", "", false},
		{`"grants": [{"src": ["anna@"], "dst": ["nas"], "app": {"a.b/c": [{}]}}]`, "anna@", "nas:80", "", false},
		{`"grants": [{"src": ["anna@"], "dst": ["nas"], "ip": ["47:*"]}]`, "anna@", "nas:0", "gre", true},
		{`"grants": []`, "anna@", "anna@:80", "", false},
	} {
		proto := ""
		if tt.proto != "" {
			proto = `"proto": "` + tt.proto + `", `
		}
		for _, name := range []string{"accept", "allow", "deny"} {
			text := head + tt.rules + `, "tests": [{` + proto + `"src": "` + tt.src + `", "` + name + `": ["` + tt.dst + `"]}]}`
			p, err := Parse([]byte(text))
			if want := tt.pass != (name == "deny"); (err == nil) != want {
				t.Errorf("%s: %s -> %s: %s: %v", tt.rules, tt.src, tt.dst, name, err)
			}
			if err == nil && p.Test() != nil {
				t.Errorf("Test fails where Parse did not: %v", p.Test())
			}
		}
	}
	// Of a group all must pass, or none.
	const rules = `"acls": [{"action": "accept", "src": ["ben@"], "dst": ["tag:nas:22"]}], "tests": [{"src": "group:kids", `
	for _, name := range []string{"accept", "deny"} {
		if _, err := Parse([]byte(head + rules + `"` + name + `": ["tag:nas:22"]}]}`)); err == nil {
			t.Errorf("half a group passes %q", name)
		}
	}
}

func TestManyTests(t *testing.T) {
	users := make([]string, 101)
	for i := range users {
		users[i] = fmt.Sprintf(`"u%d@"`, i)
	}
	_, err := Parse([]byte(`{"groups": {"group:g": [` + strings.Join(users, ",") + `]}, "tests": [{"src": "group:g", "accept": ["group:g:1"]}]}`))
	if err == nil || !strings.Contains(err.Error(), "more than 10000 connections") {
		t.Error(err)
	}
}

func TestSets(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.1 10.0.0.0":                          "10.0.0.0/31",
		"10.0.0.1 10.0.0.2":                          "10.0.0.1-10.0.0.2",
		"10.0.0.0/9 10.128.0.0/9 10.1.0.0/16":        "10.0.0.0/8",
		"0.0.0.0-255.255.255.255 ::1":                "0.0.0.0/0 ::1",
		"255.255.255.255 ::":                         "255.255.255.255 ::",
		"fd00::2 fd00::1 10.0.0.9 10.0.0.9":          "10.0.0.9 fd00::1-fd00::2",
		"128.0.0.0-255.255.255.255 255.0.0.0/8":      "128.0.0.0/1",
		"::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff": "::/0",
	} {
		s := constant(in)
		if got := strings.Join(s.strings(), " "); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
		var back []span
		for _, p := range s.prefixes() {
			back = append(back, spanOf(p))
		}
		if !reflect.DeepEqual(union(back), s) {
			t.Errorf("%s as prefixes: %v", in, s.prefixes())
		}
	}
}
