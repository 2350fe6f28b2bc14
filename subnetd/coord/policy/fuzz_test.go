package policy

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
)

// FuzzParse: whatever the text, Parse does not panic; what it accepts compiles,
// can be sent, and means the same when it is read again.
func FuzzParse(f *testing.F) {
	_, many := big(1, 40)
	for _, s := range []string{
		"", "{}", "[", "{\"acls\": null}", "{/*", "{//", `{"a\"`, DefaultText, absentText, many,
		`{"groups": {"group:a": ["x@", "y@z"]}, "hosts": {"h": "10.0.0.0/8"}, "tagOwners": {"tag:t": ["tag:t", "group:a", "autogroup:admin"]},
		"acls": [{"action": "accept", "src": ["group:a", "h", "tag:t", "10.0.0.1-10.0.0.9"], "proto": "6", "dst": ["h:1-2,3", "[::1]:*", "autogroup:internet:443", "device:d:1"]}],
		"grants": [{"src": ["x@"], "dst": ["autogroup:self", "*"], "ip": ["udp:1", "icmp", "*"], "app": {"tailscale.com/cap/drive": [{"a": 1e9}]}}],
		"autoApprovers": {"routes": {"10.0.0.0/8": ["tag:t"]}, "exitNode": ["x"]},
		"nodeAttrs": [{"target": ["*"], "attr": ["a"], "app": {"b/c": ["\ud800"]}}], "randomizeClientPort": true,
		"tests": [{"src": "x@", "accept": ["x@:1"], "deny": ["h:0"]}, {"src": "tag:t", "proto": "icmp", "deny": ["x@:0"]}], "ssh": [], }`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		p, err := Parse(src)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Line < 1 || e.Column < 1 || p != nil {
				t.Fatalf("%v is no *Error with a place", err)
			}
			return
		}
		again, err := Parse([]byte(p.Text()))
		if err != nil || !reflect.DeepEqual(p, again) {
			t.Fatalf("read again it differs: %v", err)
		}
		nodes := home()
		c, d := p.Compile(nodes), again.Compile(nodes)
		for _, n := range nodes {
			rules := c.Filter(n.ID)
			if _, err := json.Marshal(rules); err != nil || rules == nil {
				t.Fatalf("the filter of %d cannot be sent: %v", n.ID, err)
			}
			if _, err := json.Marshal(c.Attrs(n.ID)); err != nil {
				t.Fatalf("the attributes of %d cannot be sent: %v", n.ID, err)
			}
			if c.FilterKey(n.ID) != d.FilterKey(n.ID) {
				t.Fatalf("node %d has two filters", n.ID)
			}
		}
	})
}
