package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/status"

	"github.com/google/go-cmp/cmp"
)

var noon = time.Date(2026, 11, 1, 12, 0, 0, 0, time.Local)

// members is a small mesh with one name that wants to paint the screen.
func members() status.HomeNodes {
	addrs := func(as ...string) (out []netip.Addr) {
		for _, a := range as {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	route := func(p string, offered, approved, primary bool) status.HomeRoute {
		return status.HomeRoute{Prefix: netip.MustParsePrefix(p), Offered: offered, Approved: approved, Primary: primary}
	}
	return status.HomeNodes{
		Nodes: []status.HomeNode{
			{ID: 3, Name: "cabin.lab", User: "anna", Addresses: addrs("100.64.0.3", "fd7a::3"), OS: "linux", Online: true,
				Routes: []status.HomeRoute{route("192.168.7.0/24", true, true, true), route("10.0.0.0/8", true, false, false),
					route("10.1.0.0/16", false, true, false), route("10.2.0.0/16", true, true, false)}},
			{ID: 1, Name: "home.lab", User: "anna", Addresses: addrs("100.64.0.1", "fd7a::1"), OS: "linux", Self: true, Online: true,
				Devices: []status.HomeDevice{{Name: "printer.lab", Addresses: addrs("100.64.0.9")}}},
			{ID: 4, Name: "nas.lab", Tags: []string{"tag:a", "tag:b"}, Addresses: addrs("100.64.0.4"), OS: "\x1b]0;pwned\a", LastSeen: noon.Add(-3 * time.Hour), Expired: true},
			{ID: 5, Name: "new.lab", User: "anna"},
		},
		Pending: []status.HomePending{{Code: "ABCD-EFGH", Hostname: "pho\tne\n\u202e\u009b2J", OS: "android", From: "192.168.1.7", Since: noon.Add(-2 * time.Minute)}},
	}
}

// coordinator remembers what it was asked, and changes nothing.
type coordinator struct {
	asked    any
	invite   status.Invite
	keys     []status.HomeKey
	policy   status.HomePolicy
	expiring time.Time
}

func (c *coordinator) home() (api.Home, error) {
	change := func(name string) func(context.Context, status.NodeRequest) (status.HomeNode, error) {
		return func(_ context.Context, r status.NodeRequest) (status.HomeNode, error) {
			c.asked = r
			if r.Node == "nobody" {
				return status.HomeNode{}, fmt.Errorf("%w: %q", api.ErrUnknownNode, r.Node)
			}
			n := members().Nodes[0]
			n.Name, n.KeyExpiry = name, c.expiring
			if r.Node == "bare" {
				n.Routes = nil
			}
			return n, nil
		}
	}
	return api.Home{
		Invite: func(_ context.Context, r status.InviteRequest) (status.Invite, error) {
			c.asked = r
			if r.User == "ghost" {
				return status.Invite{}, api.BadRequest(errors.New("there is no user \"ghost\"\x1b"))
			}
			return c.invite, nil
		},
		Keys: func() []status.HomeKey { return c.keys },
		RevokeKey: func(_ context.Context, id string) error {
			c.asked = id
			if id != "3" {
				return fmt.Errorf("%w: %q", api.ErrUnknownKey, id)
			}
			return nil
		},
		Nodes:   members,
		Approve: change("phone.lab"), Rename: change("hut.lab"), Expire: change("cabin.lab"), Probe: change("cabin.lab"), Remove: change("cabin.lab"), Routes: change("cabin.lab"),
		Policy: func() status.HomePolicy { return c.policy },
		CheckPolicy: func(text string) status.PolicyVerdict {
			c.asked = text
			if text != "good" {
				return status.PolicyVerdict{Error: "line 3: no such host \"nas\""}
			}
			return status.PolicyVerdict{}
		},
	}, nil
}

// callHome runs one command line against the coordinator at noon.
func callHome(t *testing.T, c *coordinator, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	socket := (&daemon{home: c.home}).serve(t)
	var out, err bytes.Buffer
	p := &program{in: strings.NewReader(stdin), out: &out, err: &err, now: func() time.Time { return noon }, build: build}
	return p.exit(t.Context(), append(args, "--socket", socket)), out.String(), err.String()
}

func TestNodes(t *testing.T) {
	want := `NAME           ADDRESS     USER/TAGS    OS          SEEN                        ROUTES
cabin.lab      100.64.0.3  anna         linux       online                      192.168.7.0/24, 10.0.0.0/8 (not approved), 10.1.0.0/16 (not offered), 10.2.0.0/16 (not in use)
home.lab       100.64.0.1  anna         linux       this router
  printer.lab  100.64.0.9
nas.lab        100.64.0.4  tag:a,tag:b  �]0;pwned�  3 h ago, must log in again
new.lab                    anna                     never

These wait to be let in; ` + "`subnetd nodes approve CODE`" + ` does that:

CODE       NAME         OS       FROM         SINCE
ABCD-EFGH  pho�ne���2J  android  192.168.1.7  2 min ago
`
	code, out, stderr := callHome(t, &coordinator{}, "", "nodes")
	if d := cmp.Diff(want, out); code != 0 || stderr != "" || d != "" {
		t.Errorf("%d, %q, %s", code, stderr, d)
	}
	code, out, _ = callHome(t, &coordinator{}, "", "nodes", "--json")
	var got status.HomeNodes
	if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	if d := cmp.Diff(members(), got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Error(d)
	}
	if out != printable(out, "\n") || strings.Contains(out, "�") {
		t.Errorf("JSON with control characters, or with less than was told: %q", out)
	}
}

// What each verb asks for, and what it says then.
func TestVerbs(t *testing.T) {
	prefixes := func(ps ...string) (out []netip.Prefix) {
		for _, p := range ps {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	const table = "192.168.7.0/24  in use\n10.0.0.0/8      not approved\n10.1.0.0/16     not offered\n10.2.0.0/16     not in use\n"
	for _, tt := range []struct {
		args           string
		code           int
		asked          any
		stdout, stderr string
	}{
		{"nodes approve AB --user anna", 0, status.NodeRequest{Code: "AB", User: "anna"}, "phone.lab (100.64.0.3, fd7a::3) is let in\n", ""},
		{"nodes approve --user anna AB", 0, status.NodeRequest{Code: "AB", User: "anna"}, "phone.lab (100.64.0.3, fd7a::3) is let in\n", ""},
		{"nodes approve", 2, nil, "", "subnetd: usage: subnetd nodes approve CODE\n"},
		{"nodes rename cabin hut", 0, status.NodeRequest{Node: "cabin", Name: "hut"}, "cabin is hut.lab (100.64.0.3, fd7a::3) now\n", ""},
		{"nodes rename cabin", 2, nil, "", "subnetd: usage: subnetd nodes rename NODE NAME\n"},
		{"nodes rename nobody hut", 1, status.NodeRequest{Node: "nobody", Name: "hut"}, "", "subnetd: no node has that name, address or ID: \"nobody\"\n"},
		{"nodes probe cabin", 0, status.NodeRequest{Node: "cabin"}, "cabin.lab (100.64.0.3, fd7a::3) answers in -\n", ""},
		{"nodes expire cabin", 0, status.NodeRequest{Node: "cabin"}, "cabin.lab (100.64.0.3, fd7a::3) must log in again\n", ""},
		{"nodes expire cabin --in 1d12h", 0, status.NodeRequest{Node: "cabin", In: 36 * time.Hour}, "cabin.lab (100.64.0.3, fd7a::3) must log in again after 2026-11-01 12:00\n", ""},
		{"nodes expire cabin --in 0s", 2, nil, "", "subnetd: nodes expire: invalid value \"0s\" for flag -in: a time like 12h or 30d is wanted, more than 0 and at most 10 years; `subnetd help nodes expire` lists its flags\n"},
		{"nodes remove cabin", 0, status.NodeRequest{Node: "cabin"}, "cabin.lab (100.64.0.3, fd7a::3) is out\n", ""},
		{"nodes remove cabin hut", 2, nil, "", "subnetd: usage: subnetd nodes remove NODE\n"},
		{"nodes routes CABIN", 0, nil, table, ""},
		{"nodes routes cabin.lab.", 0, nil, table, ""},
		{"nodes routes fd7a::3", 0, nil, table, ""},
		{"nodes routes 3", 0, nil, table, ""},
		{"nodes routes new", 0, nil, "new.lab offers no routes, and none are approved\n", ""},
		{"nodes routes nobody", 1, nil, "", "subnetd: no node has that name, address or ID: \"nobody\"; `subnetd nodes` lists them\n"},
		{"nodes routes cabin 192.168.7.0/24 fd07::/64", 0, status.NodeRequest{Node: "cabin", Routes: prefixes("192.168.7.0/24", "fd07::/64")}, table, ""},
		{"nodes routes cabin none", 0, status.NodeRequest{Node: "cabin"}, table, ""},
		{"nodes routes bare none", 0, status.NodeRequest{Node: "bare"}, "cabin.lab (100.64.0.3, fd7a::3) offers no routes, and none are approved\n", ""},
		{"nodes routes cabin none 10.0.0.0/8", 2, nil, "", "subnetd: nodes routes: \"none\" is no prefix: write it as 192.168.7.0/24 or fd07::/64, or none alone\n"},
		{"nodes routes cabin 192.168.7.1/24", 2, nil, "", "subnetd: nodes routes: 192.168.7.1/24 is an address in a network: the network is 192.168.7.0/24\n"},
		{"nodes aprove AB", 2, nil, "", "subnetd: nodes knows approve, rename, expire, remove, probe, routes, not \"aprove\"\n"},
		{"nodes --json approve AB", 2, nil, "", "subnetd: nodes: flags stand behind the verb, as in `subnetd nodes approve --help`\n"},
		{"keys revoke 3", 0, "3", "key 3 lets nobody in any more\n", ""},
		{"keys revoke 4", 1, "4", "", "subnetd: no key has that ID: \"4\"\n"},
		{"keys revoke", 2, nil, "", "subnetd: usage: subnetd keys revoke ID\n"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			c := &coordinator{expiring: noon}
			code, stdout, stderr := callHome(t, c, "", strings.Fields(tt.args)...)
			if d := cmp.Diff([]any{tt.code, tt.stdout, tt.stderr}, []any{code, stdout, stderr}); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(tt.asked, c.asked, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
				t.Errorf("asked: %s", d)
			}
		})
	}
}

func TestKeys(t *testing.T) {
	c := &coordinator{keys: []status.HomeKey{
		{ID: "1", User: "anna", Created: noon, Expires: noon.Add(24 * time.Hour), Uses: 1, State: "used"},
		{ID: "2", Tags: []string{"tag:a"}, Reusable: true, Ephemeral: true, Created: noon, Expires: noon.Add(720 * time.Hour), State: "good"},
	}}
	want := `ID  USER/TAGS  KIND                 USES  CREATED           EXPIRES           STATE
1   anna       one use              1     2026-11-01 12:00  2026-11-02 12:00  used
2   tag:a      reusable, ephemeral  0     2026-11-01 12:00  2026-12-01 12:00  good
`
	if code, out, stderr := callHome(t, c, "", "keys"); code != 0 || stderr != "" || out != want {
		t.Errorf("%d, %q, %s", code, stderr, cmp.Diff(want, out))
	}
	var got []status.HomeKey
	if code, out, _ := callHome(t, c, "", "keys", "--json"); code != 0 || json.Unmarshal([]byte(out), &got) != nil || !cmp.Equal(got, c.keys) {
		t.Errorf("%d, %s", code, out)
	}
	if _, out, _ := callHome(t, &coordinator{}, "", "keys", "--json"); out != "[]\n" {
		t.Errorf("no keys are %q", out)
	}
}

func TestPolicy(t *testing.T) {
	file := func(text string) string {
		name := filepath.Join(t.TempDir(), "p")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	good, bad, big, binary := file("good"), file("bad"), file(strings.Repeat("x", api.MaxPolicy+1)), file("\xff\xfe{}")
	for _, tt := range []struct {
		file, stdin    string
		code           int
		stdout, stderr string
	}{
		{good, "", 0, good + " is good\n", ""},
		{"-", "good", 0, "standard input is good\n", ""},
		{bad, "", 1, "", "subnetd: " + bad + ": line 3: no such host \"nas\"\n"},
		{"-", "bad", 1, "", "subnetd: standard input: line 3: no such host \"nas\"\n"},
		{big, "", 1, "", "subnetd: " + big + " is too big: a policy may have 1048576 bytes\n"},
		{binary, "", 1, "", "subnetd: " + binary + " is no policy: it is not text in UTF-8\n"},
		{"/nonexistent/p", "", 1, "", "subnetd: the policy cannot be read: open /nonexistent/p: no such file or directory\n"},
	} {
		code, out, stderr := callHome(t, &coordinator{}, tt.stdin, "policy", "check", tt.file)
		if d := cmp.Diff([]any{tt.code, tt.stdout, tt.stderr}, []any{code, out, stderr}); d != "" {
			t.Errorf("check %s: %s", tt.file, d)
		}
	}
	for _, tt := range []struct {
		policy         status.HomePolicy
		stdout, stderr string
	}{
		{status.HomePolicy{Text: "{\n\t// all\n}"}, "{\n\t// all\n}\n", ""},
		{status.HomePolicy{File: "/p", Text: "{}\n", Error: "line 7: no"}, "{}\n", "! /p is not in force: line 7: no\n"},
	} {
		code, out, stderr := callHome(t, &coordinator{policy: tt.policy}, "", "policy", "show")
		if d := cmp.Diff([]any{0, tt.stdout, tt.stderr}, []any{code, out, stderr}); d != "" {
			t.Errorf("show: %s", d)
		}
	}
}

// Where another is the coordinator, every command about ours says so and fails.
func TestNotHome(t *testing.T) {
	socket := (&daemon{}).serve(t)
	for _, args := range []string{"invite", "nodes", "nodes --json", "nodes approve AB", "nodes rename a b", "nodes expire a", "nodes remove a",
		"nodes routes a", "nodes routes a none", "keys", "keys revoke 1", "policy show", "policy check /dev/null"} {
		code, out, stderr := call(build, append(strings.Fields(args), "--socket", socket)...)
		if code != 1 || out != "" || stderr != "subnetd: this router is not the coordinator: set mesh.control = \"home\"\n" {
			t.Errorf("%s: %d, %q, %q", args, code, out, stderr)
		}
	}
}
