package control

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"subnetd/subnetd/mesh"
)

// from is a filter that lets one source reach one address at one port.
func from(src string, port uint16) string {
	return fmt.Sprintf(`{"SrcIPs": [%q], "DstPorts": [{"IP": "10.0.0.1", "Ports": {"First": %d, "Last": %d}}]}`, src, port, port)
}

func rule(port uint16, srcs ...string) mesh.Rule {
	return mesh.Rule{Srcs: ranges(srcs...), Dsts: []mesh.Dest{{Range: ranges("10.0.0.1-10.0.0.1")[0], Ports: ports(port)}}}
}

// TestSessionFilters starts with the unnamed filter of the first message.
func TestSessionFilters(t *testing.T) {
	base := firstMap().Filter[0]
	a, b := from("192.0.2.1", 1), from("192.0.2.2", 2)
	ruleA, ruleB := rule(1, "192.0.2.1-192.0.2.1"), rule(2, "192.0.2.2-192.0.2.2")
	tests := []struct {
		name string
		say  []string
		want []mesh.Rule
	}{
		{"unnamed replaces base", []string{`{"PacketFilter": [` + a + `]}`}, []mesh.Rule{ruleA}},
		{"unnamed and empty denies all", []string{`{"PacketFilter": []}`}, nil},
		{"unnamed and null says nothing", []string{`{"PacketFilter": null}`}, []mesh.Rule{base}},
		{"named joins base", []string{`{"PacketFilters": {"z": [` + a + `]}}`}, []mesh.Rule{base, ruleA}},
		{"names in order", []string{`{"PacketFilters": {"z": [` + a + `], "a": [` + b + `]}}`}, []mesh.Rule{ruleB, base, ruleA}},
		{"named set again", []string{`{"PacketFilters": {"z": [` + a + `]}}`, `{"PacketFilters": {"z": [` + b + `]}}`}, []mesh.Rule{base, ruleB}},
		{"named deleted", []string{`{"PacketFilters": {"z": [` + a + `]}}`, `{"PacketFilters": {"z": null}}`}, []mesh.Rule{base}},
		{"base deleted", []string{`{"PacketFilters": {"base": null}}`}, nil},
		{"base emptied", []string{`{"PacketFilters": {"base": [], "z": [` + a + `]}}`}, []mesh.Rule{ruleA}},
		{"unknown name deleted", []string{`{"PacketFilters": {"y": null}}`}, []mesh.Rule{base}},
		{"star clears all", []string{`{"PacketFilters": {"z": [` + a + `]}}`, `{"PacketFilters": {"*": null}}`}, nil},
		{"star clears first", []string{`{"PacketFilters": {"a": [` + b + `], "*": null, "z": [` + a + `]}}`}, []mesh.Rule{ruleB, ruleA}},
		{"star as a name", []string{`{"PacketFilters": {"*": [` + a + `]}}`}, []mesh.Rule{ruleA, base}},
		{"both forms in one message", []string{`{"PacketFilter": [` + a + `], "PacketFilters": {"y": [` + b + `]}}`}, []mesh.Rule{ruleA, ruleB}},
		{"the named base counts over the unnamed", []string{`{"PacketFilter": [` + a + `], "PacketFilters": {"base": [` + b + `]}}`}, []mesh.Rule{ruleB}},
		{"a grant of capabilities is no rule", []string{`{"PacketFilter": [{"SrcIPs": ["*"], "CapGrant": [{"Dsts": ["10.0.0.1/32"], "CapMap": {"x": null}}]}]}`}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSession(func() time.Time { return now }, nil)
			nm, err := s.apply(said(t, first))
			if err != nil {
				t.Fatal(err)
			}
			was := freeze(t, nm)
			for _, text := range tt.say {
				if nm, err = s.apply(said(t, text)); err != nil {
					t.Fatal(err)
				}
			}
			was.check(t)
			want := firstMap()
			want.Filter = tt.want
			if d := cmp.Diff(want, nm, equal); d != "" {
				t.Errorf("want -, got +:\n%s", d)
			}
		})
	}
}

func TestSessionNoFilter(t *testing.T) {
	s := newSession(func() time.Time { return now }, nil)
	nm, err := s.apply(said(t, `{"Node": {"ID": 1, "Key": "#nodekey1"}, "Peers": [{"ID": 2, "Key": "#nodekey2"}]}`))
	if err != nil || len(nm.Filter) != 0 {
		t.Errorf("without any filter: %v, %v; want that nothing may enter", nm.Filter, err)
	}
}

// A source "cap:x" follows the peers that have x.
func TestSessionCapSources(t *testing.T) {
	s := newSession(func() time.Time { return now }, nil)
	filter := `{"PacketFilter": [{"SrcIPs": ["cap:is-nas"], "DstPorts": [{"IP": "10.0.0.1", "Ports": {"First": 1, "Last": 1}}]}]}`
	nas, tv := "100.64.0.2-100.64.0.2", "100.64.0.3-100.64.0.3"
	steps := []struct {
		say  string
		want []mesh.Rule
	}{
		{first, firstMap().Filter},
		{filter, []mesh.Rule{rule(1, nas)}},
		{`{"PeersChangedPatch": [{"NodeID": 3, "CapMap": {"is-nas": null}}]}`, []mesh.Rule{rule(1, nas, tv)}},
		{`{"PeersChangedPatch": [{"NodeID": 2, "CapMap": {"other": null}}]}`, []mesh.Rule{rule(1, tv)}},
		{`{"PeersRemoved": [3]}`, nil},
		{`{"PeersChanged": [{"ID": 3, "Key": "#nodekey3", "Addresses": ["100.64.0.3/32", "10.9.0.0/24"], "Capabilities": ["is-nas"]}]}`, []mesh.Rule{rule(1, tv)}},
		{`{"Peers": [{"ID": 8, "Key": "#nodekey8", "Addresses": ["fd7a::8/128"], "CapMap": {"is-nas": null}}]}`, []mesh.Rule{rule(1, "fd7a::8-fd7a::8")}},
		{`{"PacketFilters": {"*": null}}`, nil},
	}
	for _, step := range steps {
		nm, err := s.apply(said(t, step.say))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(step.want, nm.Filter, equal); d != "" {
			t.Errorf("after %s, want -, got +:\n%s", step.say, d)
		}
	}
}

// An unsigned peer must not be let in by any rule: then nobody is.
func TestSessionUnsigned(t *testing.T) {
	s := newSession(func() time.Time { return now }, nil)
	unsigned := `{"PeersChanged": [{"ID": 4, "Key": "#nodekey4", "Addresses": ["100.64.0.4/32"], "AllowedIPs": ["0.0.0.0/0"], "UnsignedPeerAPIOnly": true}]}`
	steps := []struct {
		say   string
		rules int
	}{
		{first, 1},
		{unsigned, 1}, // the filter does not admit it
		{`{"PacketFilter": [` + from("100.64.0.0/24", 1) + `]}`, 0},
		{`{"PeersRemoved": [4]}`, 1},
		{unsigned, 0},
		{`{"PeersChanged": [{"ID": 4, "Key": "#nodekey4", "Addresses": ["100.64.0.4/32"]}]}`, 1},
		{unsigned, 0},
		{`{"Peers": [{"ID": 2, "Key": "#nodekey2"}]}`, 1},
	}
	for _, step := range steps {
		nm, err := s.apply(said(t, step.say))
		if err != nil {
			t.Fatal(err)
		}
		if len(nm.Filter) != step.rules || (s.warning != nil) != (step.rules == 0) {
			t.Errorf("after %s: %d rules, warning %v; want %d rules", step.say, len(nm.Filter), s.warning, step.rules)
		}
		if p := nm.Peer(4); p != nil && len(p.AllowedIPs) != 1 {
			t.Errorf("an unsigned peer has %v", p.AllowedIPs)
		}
	}
}

func TestCompileRule(t *testing.T) {
	to := func(d string) string { return `{"SrcIPs": ["192.0.2.1"], "DstPorts": [` + d + `]}` }
	all := func(ip string) string { return to(`{"IP": "` + ip + `", "Ports": {"First": 0, "Last": 65535}}`) }
	dest := func(r string) []mesh.Rule {
		return []mesh.Rule{{Srcs: ranges("192.0.2.1-192.0.2.1"), Dsts: []mesh.Dest{{Range: ranges(r)[0], Ports: mesh.PortRange{Last: 65535}}}}}
	}
	src := func(s string) string { return from(s, 1) }
	tests := []struct {
		name, rule string
		want       []mesh.Rule
		bad        string // part of the warning
	}{
		{"address", all("10.0.0.7"), dest("10.0.0.7-10.0.0.7"), ""},
		{"prefix", all("10.0.0.0/23"), dest("10.0.0.0-10.0.1.255"), ""},
		{"prefix of odd length", all("10.0.0.64/27"), dest("10.0.0.64-10.0.0.95"), ""},
		{"IPv6 prefix", all("fd00::/47"), dest("fd00::-fd00:0:1:ffff:ffff:ffff:ffff:ffff"), ""},
		{"range", all("10.0.0.7-10.0.1.2"), dest("10.0.0.7-10.0.1.2"), ""},
		{"bits behind the prefix", all("10.0.0.1/24"), nil, "bits set behind"},
		{"range of two families", all("10.0.0.1-fd00::1"), nil, "not a range"},
		{"range the wrong way round", all("10.0.0.9-10.0.0.1"), nil, "not a range"},
		{"range with a zone", all("fe80::1%eth0-fe80::2%eth0"), nil, "not a range"},
		{"not an address", all("router"), nil, `destination "router"`},
		{"half a range", all("10.0.0.1-"), nil, "destination"},
		{"no destination address", all(""), nil, "destination"},
		{"ports the wrong way round", to(`{"IP": "10.0.0.7", "Ports": {"First": 9, "Last": 1}}`), nil, "wrong way round"},
		{"destination bits of old", to(`{"IP": "10.0.0.7", "Bits": 24, "Ports": {"First": 1, "Last": 9}}`), nil, "SrcBits"},
		{"source bits of old", `{"SrcIPs": ["10.0.0.0"], "SrcBits": [8], "DstPorts": [{"IP": "*", "Ports": {"First": 1, "Last": 9}}]}`, nil, "SrcBits"},
		{"source star", src("*"), []mesh.Rule{rule(1, "0.0.0.0-255.255.255.255", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")}, ""},
		{"bad source", src("nobody"), nil, `source "nobody"`},
		{"a bad source next to a good one", `{"SrcIPs": ["nobody", "192.0.2.1"], "DstPorts": [{"IP": "10.0.0.1", "Ports": {"First": 1, "Last": 1}}]}`,
			[]mesh.Rule{rule(1, "192.0.2.1-192.0.2.1")}, "nobody"},
		{"capability that nobody has", src("cap:x"), nil, ""},
		{"unknown protocols only", `{"IPProto": [-1, 256], "SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 1, "Last": 9}}]}`, nil, "unknown protocols"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := said(t, `{"PacketFilter": [`+tt.rule+`]}`)
			got, err := compileFilter(m.PacketFilter, nil, nil)
			if d := cmp.Diff(tt.want, got, equal); d != "" {
				t.Errorf("want -, got +:\n%s", d)
			}
			if (err != nil) != (tt.bad != "") || err != nil && !strings.Contains(err.Error(), tt.bad) {
				t.Errorf("warning %v; want one with %q", err, tt.bad)
			}
		})
	}
}

func TestCompileProtocols(t *testing.T) {
	m := said(t, `{"PacketFilter": [{"IPProto": [6, 300, 17], "SrcIPs": ["192.0.2.1"], "DstPorts": [{"IP": "10.0.0.1", "Ports": {"First": 1, "Last": 1}}]},
		{"SrcIPs": ["nobody"], "DstPorts": [{"IP": "10.0.0.1", "Ports": {"First": 1, "Last": 1}}]}]}`)
	got, err := compileFilter(m.PacketFilter, nil, nil)
	want := rule(1, "192.0.2.1-192.0.2.1")
	want.Protos = []uint8{6, 17}
	if d := cmp.Diff([]mesh.Rule{want}, got, equal); d != "" {
		t.Errorf("want -, got +:\n%s", d)
	}
	if err == nil || errors.Is(err, errSrcBits) {
		t.Errorf("warning %v", err)
	}
}

// TestGrants: of what a peer is granted we keep what we know, by both ways to write it.
func TestGrants(t *testing.T) {
	rules := said(t, `{"PacketFilter": [
		{"SrcIPs": ["100.64.0.2", "fd7a::2"], "CapGrant": [{"Dsts": ["100.64.0.1/32", "fd7a::1/128"], "CapMap": {"https://tailscale.com/cap/file-send": null, "x.example/cap/y": null}}]},
		{"SrcIPs": ["cap:is-nas"], "CapGrant": [{"Dsts": ["100.64.0.0/10"], "Caps": ["https://tailscale.com/cap/file-sharing-target", "https://tailscale.com/cap/file-send"]}]},
		{"SrcIPs": ["100.64.0.3"], "CapGrant": [{"Dsts": ["100.64.0.1/32"], "CapMap": {"x.example/cap/y": null}}]},
		{"SrcIPs": ["nobody"], "CapGrant": [{"Dsts": ["100.64.0.1/32"], "Caps": ["https://tailscale.com/cap/file-send"]}]},
		{"SrcIPs": ["*"], "DstPorts": [{"IP": "10.0.0.1", "Ports": {"First": 1, "Last": 1}}]}]}`)
	got := compileGrants(rules.PacketFilter, firstMap().Peers)
	want := []mesh.Grant{
		{Srcs: ranges("100.64.0.2-100.64.0.2", "fd7a::2-fd7a::2"), Dsts: ranges("100.64.0.1-100.64.0.1", "fd7a::1-fd7a::1"), Caps: []string{mesh.CapSend}},
		{Srcs: ranges("100.64.0.2-100.64.0.2"), Dsts: ranges("100.64.0.0-100.127.255.255"), Caps: []string{mesh.CapSend, mesh.CapTarget}},
	}
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Error(diff)
	}
}

// TestGrantsFollow: a grant that comes or goes is another netmap, one that stays is not.
func TestGrantsFollow(t *testing.T) {
	s := newSession(func() time.Time { return now }, nil)
	before, err := s.apply(said(t, first))
	if err != nil {
		t.Fatal(err)
	}
	const grant = `{"PacketFilters": {"z": [{"SrcIPs": ["100.64.0.3"], "CapGrant": [{"Dsts": ["100.64.0.1/32"], "Caps": ["https://tailscale.com/cap/file-send"]}]}]}}`
	granted, err := s.apply(said(t, grant))
	if err != nil || granted == before || !granted.Granted(granted.Peer(3), mesh.CapSend) || granted.Granted(granted.Peer(2), mesh.CapSend) || before.Granted(before.Peer(3), mesh.CapSend) {
		t.Errorf("granted: %+v, %v", granted.Grants, err)
	}
	if again, err := s.apply(said(t, grant)); again != granted || err != nil {
		t.Errorf("said again it is another netmap, %v", err)
	}
	if gone, err := s.apply(said(t, `{"PacketFilters": {"z": null}}`)); err != nil || len(gone.Grants) != 0 {
		t.Errorf("taken back: %+v, %v", gone.Grants, err)
	}
}
