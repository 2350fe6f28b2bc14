package policy

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// everyOther is the ports 2, 4 ... n.
func everyOther(n int) string {
	var out []string
	for i := 2; i <= n; i += 2 {
		out = append(out, fmt.Sprint(i))
	}
	return strings.Join(out, ",")
}

// TestRefused: each mistake is told with its line, its place and its reason.
func TestRefused(t *testing.T) {
	const head = "{\n\"groups\": {\"group:kids\": [\"ben@\"], \"group:empty\": []},\n\"hosts\": {\"nas\": \"100.64.0.9\", \"lan\": \"192.168.1.0/24\"},\n" +
		"\"tagOwners\": {\"tag:cam\": []},\n" // the next line is 5
	acl := func(src, dst string) string {
		return head + `"acls": [{"action": "accept", "src": ["` + src + `"], "dst": ["` + dst + `"]}]}`
	}
	grant := func(rest string) string { return head + `"grants": [{` + rest + `}]}` }
	test := func(rest string) string {
		return head + "\"acls\": [{\"action\": \"accept\", \"src\": [\"anna@\"], \"dst\": [\"nas:22\"]}],\n\"tests\": [{" + rest + "}]}"
	}
	for _, tt := range []struct {
		name, text string
		line       int
		want       string
	}{
		{"empty", "", 1, "not HuJSON"},
		{"only a comment", "// nothing\n", 2, "not HuJSON"},
		{"no object", "[]", 1, "must be an object"},
		{"rest", "{}\n{}", 2, "not HuJSON"},
		{"syntax", "{\n  \"acls\": [}\n", 2, "not HuJSON"},
		{"not UTF-8", "{\n\"acls\": [\"\xff\"]}", 2, "UTF-8"},
		{"too long", strings.Repeat(" ", maxText) + "{}", 1, "at most 1048576"},
		{"too deep", "{\n\"derpMap\": " + strings.Repeat("[", 1<<19), 2, "brackets are open"},
		{"too many", "{\n\"derpMap\": [" + strings.Repeat("0,", maxItems+1) + "]}", 2, "more than 50000 items"},
		{"unknown section", "{\n\n\"aclz\": []}", 3, `has no "aclz"`},
		{"section twice", "{\n\"acls\": [],\n\"ACLs\": []}", 3, "twice"},
		{"section twice by odd letters", "{\n\"acls\": [],\n\"acl\u017f\": []}", 3, "twice"},
		{"long list", "{\"tagOwners\": {\"tag:a\":\n[" + strings.Repeat("\"anna\",", maxList+1) + "]}}", 2, "more than 4096"},
		{"long object", "{\"derpMap\": {}, \"hosts\":\n{" + strings.Repeat("\"a\": \"10.0.0.1\",", maxList+1) + "}}", 2, "more than 4096"},
		{"mapped prefix", "{\"hosts\": {\"a\":\n\"::ffff:10.0.0.0/104\"}}", 2, "not an address with a prefix"},
		{"null section", "{\n\"acls\": null}", 2, "must be a list"},
		{"default posture", "{\n\"defaultSrcPosture\": [\"posture:x\"]}", 2, "would not restrict"},
		{"group name", "{\"groups\": {\n\"kids\": []}}", 2, `must begin with "group:"`},
		{"group in a group", "{\"groups\": {\"group:a\": [\n\"group:b\"]}}", 2, "cannot be in a group"},
		{"group twice", "{\"groups\": {\"group:a\": [],\n\"group:a\": []}}", 2, "twice"},
		{"group no list", "{\"groups\": {\"group:a\":\n\"anna@\"}}", 2, "must be a list"},
		{"group number", "{\"groups\": {\"group:a\": [\n7]}}", 2, "must be a string"},
		{"host name", "{\"hosts\": {\n\"a@b\": \"10.0.0.1\"}}", 2, "cannot be the name of a host"},
		{"host like an address", "{\"hosts\": {\n\"10.0.0.1\": \"10.0.0.2\"}}", 2, "cannot be the name of a host"},
		{"host address", "{\"hosts\": {\"a\":\n\"10.0.0\"}}", 2, "not an address"},
		{"host bits", "{\"hosts\": {\"a\":\n\"10.0.0.1/8\"}}", 2, "write 10.0.0.0/8"},
		{"tag name", "{\"tagOwners\": {\n\"cam\": []}}", 2, "must start with 'tag:'"},
		{"tag owner group", "{\"tagOwners\": {\"tag:a\": [\n\"group:x\"]}}", 2, "no such group"},
		{"tag owner tag", "{\"tagOwners\": {\"tag:a\": [\n\"tag:b\"]}}", 2, "no such tag"},
		{"tag owner star", "{\"tagOwners\": {\"tag:a\": [\n\"*\"]}}", 2, `cannot be used as tag owner`},
		{"route", "{\"autoApprovers\": {\"routes\": {\n\"lan\": []}}}", 2, "is no route"},
		{"route bits", "{\"autoApprovers\": {\"routes\": {\n\"10.0.0.1/8\": []}}}", 2, "is no route"},
		{"approver", "{\"autoApprovers\": {\"exitNode\": [\n\"tag:b\"]}}", 2, "no such tag"},
		{"approver self", "{\"autoApprovers\": {\"exitNode\": [\n\"autogroup:self\"]}}", 2, "cannot be used as approver"},
		{"approver address", "{\"autoApprovers\": {\"exitNode\": [\n\"10.0.0.0/8\"]}}", 2, "a user is written like"},

		{"action", head + "\"acls\": [{\"action\":\n\"deny\", \"src\": [], \"dst\": []}]}", 6, "rules only allow"},
		{"no action", head + "\"acls\": [\n{\"src\": [], \"dst\": []}]}", 6, `needs "action"`},
		{"no src", head + "\"acls\": [\n{\"action\": \"accept\", \"dst\": []}]}", 6, `needs "src"`},
		{"old names", head + "\"acls\": [{\"action\": \"accept\",\n\"users\": [], \"ports\": []}]}", 6, `has no "users"`},
		{"posture", head + "\"acls\": [{\"action\": \"accept\", \"src\": [], \"dst\": [],\n\"srcPosture\": [\"posture:x\"]}]}", 6, "would not restrict"},
		{"unknown group", acl("group:gone", "*:*"), 5, "no such group"},
		{"unknown tag", acl("tag:gone", "*:*"), 5, "no such tag"},
		{"unknown host", acl("gone", "*:*"), 5, `no such name in hosts; a user is written with @`},
		{"unknown host dst", acl("*", "gone:22"), 5, `"gone": there is no such name in hosts`},
		{"autogroup", acl("autogroup:shared", "*:*"), 5, "not supported"},
		{"ipset", acl("ipset:x", "*:*"), 5, "not an address"},
		{"domain", acl("user:*@example.com", "*:*"), 5, "a user is written like"},
		{"admin", acl("autogroup:admin", "*:*"), 5, "cannot be used as src: no login is an admin here"},
		{"self as src", acl("autogroup:self", "*:*"), 5, "cannot be used as src"},
		{"internet as src", acl("autogroup:internet", "*:*"), 5, "cannot be used as src"},
		{"device as src", acl("device:printer", "*:*"), 5, "cannot be used as src"},
		{"everything by prefix", acl("*", "0.0.0.0/0:*"), 5, `write "*"`},
		{"everything by prefix 6", acl("::/0", "*:*"), 5, `write "*"`},
		{"mapped", acl("::ffff:10.0.0.1", "*:*"), 5, "not an address"},
		{"zone", acl("fe80::1%eth0", "*:*"), 5, "not an address"},
		{"range backwards", acl("10.0.0.9-10.0.0.1", "*:*"), 5, "from the lower to the higher"},
		{"range of two families", acl("10.0.0.9-fd00::1", "*:*"), 5, "one family"},
		{"no ports", acl("*", "nas"), 5, "the ports are missing"},
		{"no ports of a tag", acl("*", "tag:cam"), 5, `"cam" is no port`},
		{"empty ports", acl("*", "nas:"), 5, "the ports are missing"},
		{"port 0", acl("*", "nas:0"), 5, "is no port"},
		{"port 65536", acl("*", "nas:65536"), 5, "is no port"},
		{"port list", acl("*", "nas:22,,80"), 5, "is no port"},
		{"many ports", acl("*", "nas:"+everyOther(2*maxPorts+2)), 5, "more than 100 ranges"},
		{"port range", acl("*", "nas:90-80"), 5, "is no port"},
		{"port name", acl("*", "nas:ssh"), 5, "is no port"},
		{"IPv6 without brackets", acl("*", "fd00::1:80"), 5, "in brackets: [fd00::1]:80"},
		{"bracket", acl("*", "[fd00::1:80"), 5, "bracket is missing"},
		{"device name", acl("*", "device:a b:80"), 5, "letters, digits and hyphens"},
		{"self from a tag", acl("tag:cam", "autogroup:self:*"), 5, "only users, groups and autogroup:member"},
		{"self from all", acl("*", "autogroup:self:*"), 5, "only users, groups and autogroup:member"},
		{"proto", head + "\"acls\": [{\"action\": \"accept\", \"src\": [], \"dst\": [],\n\"proto\": \"tpc\"}]}", 6, "is no protocol"},
		{"proto star", head + "\"acls\": [{\"action\": \"accept\", \"src\": [], \"dst\": [],\n\"proto\": \"*\"}]}", 6, "is no protocol"},
		{"proto 0", head + "\"acls\": [{\"action\": \"accept\", \"src\": [], \"dst\": [],\n\"proto\": \"0\"}]}", 6, "is no protocol"},
		{"proto 256", head + "\"acls\": [{\"action\": \"accept\", \"src\": [], \"dst\": [],\n\"proto\": 256}]}", 6, "is no protocol"},
		{"ports of ICMP", head + "\"acls\": [{\"action\": \"accept\", \"proto\": \"icmp\", \"src\": [],\n\"dst\": [\"nas:22\"]}]}", 6, "has no ports"},
		{"rules", head + "\"acls\": [" + strings.Repeat("{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:*\"]},\n", maxRules+1) + "]}", 5 + maxRules, "more than 1000 rules"},

		{"grant of nothing", grant("\"src\": [\"*\"], \"dst\": [\"*\"]"), 5, "needs ip or app"},
		{"via", grant("\"src\": [\"*\"], \"dst\": [\"*\"], \"ip\": [\"*\"],\n\"via\": [\"tag:cam\"]"), 6, "via is not supported"},
		{"grant posture", grant("\"src\": [\"*\"], \"dst\": [\"*\"], \"ip\": [\"*\"],\n\"srcPosture\": [\"posture:x\"]"), 6, "would not restrict"},
		{"ip", grant("\"src\": [\"*\"], \"dst\": [\"*\"], \"ip\": [\n\"tpc:80\"]"), 6, "is no protocol"},
		{"ip ports", grant("\"src\": [\"*\"], \"dst\": [\"*\"], \"ip\": [\n\"icmp:80\"]"), 6, "has no ports"},
		{"ip colon", grant("\"src\": [\"*\"], \"dst\": [\"*\"], \"ip\": [\n\":80\"]"), 6, "before the colon is missing"},
		{"ip empty", grant("\"src\": [\"*\"], \"dst\": [\"*\"], \"ip\": [\n\"\"]"), 6, "is no port"},
		{"grant with ports", grant("\"src\": [\"*\"], \"ip\": [\"*\"], \"dst\": [\n\"nas:22\"]"), 6, "not an address"},
		{"grant self", grant("\"src\": [\"*\"], \"ip\": [\"*\"],\n\"dst\": [\"autogroup:self\"]"), 6, "only users, groups"},
		{"capability", grant("\"src\": [\"*\"], \"dst\": [\"*\"], \"app\": {\n\"drive\": [{}]}"), 6, "is no capability"},
		{"capability no list", grant("\"src\": [\"*\"], \"dst\": [\"*\"], \"app\": {\"a.b/c\":\n{}}"), 6, "must be a list"},
		{"capability internet", grant("\"src\": [\"*\"], \"dst\": [\"autogroup:internet\"],\n\"app\": {\"a.b/c\": [{}]}"), 6, "autogroup:internet has none"},

		{"attr target", head + "\"nodeAttrs\": [{\"target\": [\n\"autogroup:self\"], \"attr\": [\"x\"]}]}", 6, "cannot be used as target"},
		{"ipPool", head + "\"nodeAttrs\": [{\"target\": [\"*\"],\n\"ipPool\": [\"100.81.0.0/16\"]}]}", 6, "cannot be followed"},
		{"random port", "{\n\"randomizeClientPort\": 1}", 2, "true or false"},

		{"test src star", test("\n\"src\": \"*\", \"accept\": [\"nas:22\"]"), 7, "cannot be used as test source"},
		{"test src range", test("\n\"src\": \"lan\", \"accept\": [\"nas:22\"]"), 7, "names one address"},
		{"test src unknown", test("\n\"src\": \"tag:gone\", \"accept\": [\"nas:22\"]"), 7, "no such tag"},
		{"test no src", test("\"accept\": [\"nas:22\"]"), 6, `needs "src"`},
		{"test of nothing", test("\"src\": \"anna@\""), 6, "needs accept or deny"},
		{"test ports", test("\"src\": \"anna@\", \"accept\": [\n\"nas:22,80\"]"), 7, "names one port"},
		{"test any port", test("\"src\": \"anna@\", \"accept\": [\n\"nas:*\"]"), 7, "names one port"},
		{"test net", test("\"src\": \"anna@\", \"accept\": [\n\"lan:22\"]"), 7, "names one address"},
		{"test internet", test("\"src\": \"anna@\", \"accept\": [\n\"autogroup:internet:22\"]"), 7, "cannot be used as test destination"},
		{"test ICMP port", test("\"src\": \"anna@\", \"proto\": \"icmp\", \"accept\": [\n\"nas:22\"]"), 7, "has no ports"},
		{"test families", test("\"src\": \"100.64.0.1\", \"deny\": [\n\"[fd00::1]:22\"]"), 7, "different families"},
		{"test empty group", test("\"src\": \"group:empty\", \"deny\": [\n\"nas:22\"]"), 7, "proves nothing"},
		{"test accept fails", test("\"src\": \"ben@\", \"accept\": [\n\"nas:22\"]"), 7, "ben@ -> nas:22: it must be let through"},
		{"test deny fails", test("\"src\": \"anna@\", \"deny\": [\"nas:80\",\n\"nas:22\"]"), 7, "anna@ -> nas:22: it must be denied"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := Parse([]byte(tt.text))
			var e *Error
			if !errors.As(err, &e) || p != nil {
				t.Fatalf("no *Error but %v", err)
			}
			if e.Line != tt.line || !strings.Contains(e.Text, tt.want) {
				t.Errorf("line %d, want %d; text %q, want %q", e.Line, tt.line, e.Text, tt.want)
			}
			if e.Column < 1 || strings.ContainsAny(e.Text, "\n") {
				t.Errorf("column %d, text %q", e.Column, e.Text)
			}
		})
	}
}
