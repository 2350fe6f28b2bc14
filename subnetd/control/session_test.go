package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go4.org/mem"
	"subnetd/subnetd/mesh"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// now is when all frames of the pure tests arrive.
var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func nodeKey(n byte) key.NodePublic {
	return key.NodePublicFromRaw32(mem.B(append(make([]byte, 31), n)))
}

func discoKey(n byte) key.DiscoPublic {
	return key.DiscoPublicFromRaw32(mem.B(append(make([]byte, 31), n)))
}

func ranges(ss ...string) []mesh.Range {
	var out []mesh.Range
	for _, s := range ss {
		from, to, _ := strings.Cut(s, "-")
		out = append(out, mesh.Range{From: netip.MustParseAddr(from), To: netip.MustParseAddr(to)})
	}
	return out
}

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// fill puts keys for #nodekey7 and #discokey7 into JSON that would be unreadable otherwise.
func fill(s string) string {
	for n := byte(9); n > 0; n-- {
		s = strings.ReplaceAll(s, fmt.Sprintf("#nodekey%d", n), nodeKey(n).String())
		s = strings.ReplaceAll(s, fmt.Sprintf("#discokey%d", n), discoKey(n).String())
	}
	return s
}

// said is a message as it comes out of a frame.
func said(t testing.TB, text string) *tailcfg.MapResponse {
	t.Helper()
	m := new(tailcfg.MapResponse)
	if err := json.Unmarshal([]byte(fill(text)), m); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return m
}

const first = `{
	"Node": {"ID": 1, "Name": "me.mesh.", "User": 10, "Key": "#nodekey1", "DiscoKey": "#discokey1",
		"Addresses": ["100.64.0.1/32", "fd7a::1/128"], "AllowedIPs": ["100.64.0.1/32", "fd7a::1/128"],
		"KeyExpiry": "2026-06-01T00:00:00Z", "MachineAuthorized": true},
	"Peers": [
		{"ID": 5, "Name": "cam.mesh.", "User": 10, "Key": "#nodekey5", "Addresses": ["100.64.0.5/32"]},
		{"ID": 2, "Name": "nas.mesh.", "User": 10, "Key": "#nodekey2", "DiscoKey": "#discokey2",
			"Addresses": ["100.64.0.2/32"], "AllowedIPs": ["100.64.0.2/32", "10.2.0.0/24"],
			"Endpoints": ["192.0.2.2:41641"], "HomeDERP": 901, "Online": true, "Cap": 119,
			"CapMap": {"is-nas": null}, "Tags": ["tag:nas"], "Hostinfo": {"OS": "linux"}, "MachineAuthorized": true},
		{"ID": 3, "Name": "tv.mesh.", "User": 11, "Key": "#nodekey3", "Addresses": ["100.64.0.3/32"],
			"Online": false, "LastSeen": "2026-01-01T00:00:00Z", "MachineAuthorized": true}],
	"PacketFilters": {"base": [{"SrcIPs": ["100.64.0.2"], "DstPorts": [{"IP": "*", "Ports": {"First": 22, "Last": 22}}]}]},
	"DERPMap": {"Regions": {"901": {"RegionID": 901, "RegionCode": "home", "RegionName": "Home",
		"Nodes": [{"Name": "901a", "RegionID": 901, "HostName": "relay.example", "IPv4": "192.0.2.9", "DERPPort": 8443}]}}},
	"DNSConfig": {"Proxied": true, "Domains": ["mesh"], "Resolvers": [{"Addr": "192.0.2.53"}]},
	"UserProfiles": [{"ID": 10, "LoginName": "ann@example"}, {"ID": 11, "DisplayName": "Bob"}],
	"Domain": "mesh", "Health": ["one thing"], "ControlTime": "2026-01-02T03:04:06Z"}`

func yes() *bool { b := true; return &b }
func no() *bool  { b := false; return &b }

func ports(p uint16) mesh.PortRange { return mesh.PortRange{First: p, Last: p} }

func everywhere(p uint16) []mesh.Dest {
	return []mesh.Dest{
		{Range: ranges("0.0.0.0-255.255.255.255")[0], Ports: ports(p)},
		{Range: ranges("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")[0], Ports: ports(p)},
	}
}

// firstMap is what the first message means.
func firstMap() *mesh.Netmap {
	return &mesh.Netmap{
		Self: mesh.Node{ID: 1, Name: "me.mesh.", User: 10, Key: nodeKey(1), Disco: discoKey(1),
			Addresses: prefixes("100.64.0.1/32", "fd7a::1/128"), AllowedIPs: prefixes("100.64.0.1/32", "fd7a::1/128"),
			KeyExpiry: time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC), Authorized: true},
		Peers: []mesh.Node{
			{ID: 2, Name: "nas.mesh.", User: 10, Key: nodeKey(2), Disco: discoKey(2),
				Addresses: prefixes("100.64.0.2/32"), AllowedIPs: prefixes("100.64.0.2/32", "10.2.0.0/24"),
				Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.2:41641")}, HomeRelay: 901, Online: yes(),
				Cap: 119, Caps: []string{"is-nas"}, Tags: []string{"tag:nas"}, OS: "linux", Authorized: true},
			{ID: 3, Name: "tv.mesh.", User: 11, Key: nodeKey(3), Addresses: prefixes("100.64.0.3/32"),
				AllowedIPs: prefixes("100.64.0.3/32"), Online: no(), Authorized: true,
				LastSeen: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)},
			{ID: 5, Name: "cam.mesh.", User: 10, Key: nodeKey(5), Addresses: prefixes("100.64.0.5/32"),
				AllowedIPs: prefixes("100.64.0.5/32")},
		},
		Relays: []mesh.RelayRegion{{ID: 901, Code: "home", Name: "Home", Nodes: []mesh.RelayNode{
			{Name: "901a", Host: "relay.example", IPv4: "192.0.2.9", Port: 8443}}}},
		Names:  mesh.Names{MagicDNS: true, Search: []string{"mesh"}, Upstream: []string{"192.0.2.53"}},
		Filter: []mesh.Rule{{Srcs: ranges("100.64.0.2-100.64.0.2"), Dsts: everywhere(22)}},
		Users:  map[int64]string{10: "ann@example", 11: "Bob"},
		Domain: "mesh", Health: []string{"one thing"},
	}
}

// equal compares netmaps with eyes other than those of equal.go.
var equal = cmp.Options{
	cmpopts.EquateEmpty(),
	cmpopts.EquateComparable(key.NodePublic{}, key.DiscoPublic{}, netip.Addr{}, netip.Prefix{}, netip.AddrPort{}),
}

// frozen is a netmap and what it looked like when it was handed out.
type frozen struct {
	nm   *mesh.Netmap
	text string
}

func text(t testing.TB, nm *mesh.Netmap) string {
	t.Helper()
	b, err := json.Marshal(nm)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func freeze(t testing.TB, nm *mesh.Netmap) frozen { t.Helper(); return frozen{nm, text(t, nm)} }

func (f frozen) check(t testing.TB) {
	t.Helper()
	if got := text(t, f.nm); got != f.text {
		t.Errorf("a netmap was changed after it was handed out:\nfrom %s\nto   %s", f.text, got)
	}
}

func TestSessionFirst(t *testing.T) {
	s := newSession(func() time.Time { return now }, nil)
	nm, err := s.apply(said(t, `{"KeepAlive": true}`))
	if nm != nil || err != nil {
		t.Errorf("keep-alive before the first map: %v, %v; want nothing", nm, err)
	}
	if nm, err = s.apply(said(t, first)); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(firstMap(), nm, equal); d != "" {
		t.Errorf("first map, want -, got +:\n%s", d)
	}
	if s.warning != nil {
		t.Errorf("warning %v", s.warning)
	}
	if p := nm.Peer(3); p == nil || p.Name != "tv.mesh." {
		t.Errorf("Peer(3) = %v", p)
	}
	if p := nm.Peer(4); p != nil {
		t.Errorf("Peer(4) = %v", p)
	}
}

func TestSessionWithoutSelf(t *testing.T) {
	for _, text := range []string{`{}`, `{"Peers": [{"ID": 2, "Key": "#nodekey2"}]}`, `{"ControlTime": "2026-01-01T00:00:00Z"}`} {
		s := newSession(func() time.Time { return now }, nil)
		if nm, err := s.apply(said(t, text)); !errors.Is(err, errNoSelf) || nm != nil {
			t.Errorf("%s as the first message: %v, %v; want errNoSelf", text, nm, err)
		}
	}
}

// deltas are messages after the first one, and all that may be different then.
var deltas = []struct {
	name string
	say  []string
	want func(*mesh.Netmap) // nil: the very same netmap
}{
	{"nothing", []string{`{}`}, nil},
	{"keep-alive", []string{`{"KeepAlive": true}`}, nil},
	{"keep-alive hides the rest", []string{`{"KeepAlive": true, "PeersRemoved": [2], "Domain": "other"}`}, nil},
	{"the first message again", []string{first}, nil},
	{"a later clock", []string{`{"ControlTime": "2026-01-02T03:04:30Z"}`}, nil},
	{"a ping", []string{`{"PingRequest": {"URL": "https://unused/x", "Types": "c2n"}}`}, nil},
	{"things of no use here", []string{`{"PopBrowserURL": "https://x", "MapSessionHandle": "h", "Seq": 3, "ClientVersion": {"RunningLatest": true},
		"ControlDialPlan": {}, "SSHPolicy": {}, "Debug": {"DisableLogTail": true}, "Unheard": {"Of": 1}}`}, nil},

	{"self", []string{`{"Node": {"ID": 1, "Name": "new.mesh.", "Key": "#nodekey1", "Addresses": ["100.64.0.1/32"],
		"AllowedIPs": ["100.64.0.1/32", "10.1.0.0/24"], "MachineAuthorized": true, "Expired": true}}`},
		func(nm *mesh.Netmap) {
			nm.Self = mesh.Node{ID: 1, Name: "new.mesh.", Key: nodeKey(1), Addresses: prefixes("100.64.0.1/32"),
				AllowedIPs: prefixes("100.64.0.1/32", "10.1.0.0/24"), Authorized: true, Expired: true}
		}},

	{"peers replace all", []string{`{"Peers": [{"ID": 9, "Key": "#nodekey9"}], "PeersRemoved": [9], "PeersChanged": [{"ID": 4, "Key": "#nodekey4"}],
		"OnlineChange": {"9": true}, "PeersChangedPatch": [{"NodeID": 9, "DERPRegion": 3}]}`},
		func(nm *mesh.Netmap) { nm.Peers = []mesh.Node{{ID: 9, Key: nodeKey(9)}} }},
	{"empty peers say nothing", []string{`{"Peers": []}`}, nil},
	{"peer removed", []string{`{"PeersRemoved": [3]}`}, func(nm *mesh.Netmap) { nm.Peers = slices.Delete(nm.Peers, 1, 2) }},
	{"all peers removed", []string{`{"PeersRemoved": [5, 3, 2, 2]}`}, func(nm *mesh.Netmap) { nm.Peers = nil }},
	{"unknown peer removed", []string{`{"PeersRemoved": [1, 4, 99, -1]}`}, nil},
	{"peer removed and back", []string{`{"PeersRemoved": [5]}`, `{"PeersChanged": [{"ID": 5, "Name": "cam.mesh.", "User": 10, "Key": "#nodekey5",
		"Addresses": ["100.64.0.5/32"]}]}`}, func(*mesh.Netmap) {}},
	{"peer changed", []string{`{"PeersChanged": [{"ID": 3, "Key": "#nodekey7", "Addresses": ["100.64.0.7/32"], "AllowedIPs": []}]}`},
		func(nm *mesh.Netmap) {
			nm.Peers[1] = mesh.Node{ID: 3, Key: nodeKey(7), Addresses: prefixes("100.64.0.7/32")}
		}},
	{"peer added", []string{`{"PeersChanged": [{"ID": 4, "Key": "#nodekey4"}]}`},
		func(nm *mesh.Netmap) { nm.Peers = slices.Insert(nm.Peers, 2, mesh.Node{ID: 4, Key: nodeKey(4)}) }},
	{"a peer twice, the last counts", []string{`{"PeersChanged": [{"ID": 4, "Key": "#nodekey8"}, null, {"ID": 4, "Key": "#nodekey4"}]}`},
		func(nm *mesh.Netmap) { nm.Peers = slices.Insert(nm.Peers, 2, mesh.Node{ID: 4, Key: nodeKey(4)}) }},
	{"ourselves among the peers", []string{`{"PeersChanged": [{"ID": 1, "Key": "#nodekey1"}]}`}, nil},
	{"a peer without a key", []string{`{"PeersChanged": [{"ID": 4}]}`}, nil},
	{"a peer that loses its key", []string{`{"PeersChanged": [{"ID": 3}]}`}, func(nm *mesh.Netmap) { nm.Peers = slices.Delete(nm.Peers, 1, 2) }},
	{"removed and changed at once", []string{`{"PeersRemoved": [3], "PeersChanged": [{"ID": 3, "Key": "#nodekey7"}]}`},
		func(nm *mesh.Netmap) { nm.Peers[1] = mesh.Node{ID: 3, Key: nodeKey(7)} }},
	{"changed and patched at once", []string{`{"PeersChanged": [{"ID": 3, "Key": "#nodekey7"}], "OnlineChange": {"3": false},
		"PeersChangedPatch": [{"NodeID": 3, "Online": true, "DERPRegion": 4}]}`},
		func(nm *mesh.Netmap) { nm.Peers[1] = mesh.Node{ID: 3, Key: nodeKey(7), Online: yes(), HomeRelay: 4} }},
	{"all of a node", []string{`{"PeersChanged": [{"ID": 3, "Key": "#nodekey3", "DERP": "127.3.3.40:7", "Capabilities": ["b", "a"], "CapMap": {"b": null, "c": [1]},
		"IsJailed": true, "Endpoints": ["192.0.2.3:0", "192.0.2.3:9"], "Addresses": ["100.64.0.3/32", ""], "AllowedIPs": ["10.3.0.9/24"],
		"SelfNodeV4MasqAddrForThisPeer": "100.99.0.1", "SelfNodeV6MasqAddrForThisPeer": "fd00::1"}]}`},
		func(nm *mesh.Netmap) {
			nm.Peers[1] = mesh.Node{ID: 3, Key: nodeKey(3), HomeRelay: 7, Caps: []string{"a", "b", "c"}, Jailed: true,
				Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.3:9")}, Addresses: prefixes("100.64.0.3/32"),
				AllowedIPs:   prefixes("10.3.0.0/24"),
				MasqueradeV4: netip.MustParseAddr("100.99.0.1"), MasqueradeV6: netip.MustParseAddr("fd00::1")}
		}},
	{"an old home relay that is none", []string{`{"PeersChanged": [{"ID": 3, "Key": "#nodekey3", "DERP": "127.3.3.40:x"}]}`},
		func(nm *mesh.Netmap) { nm.Peers[1] = mesh.Node{ID: 3, Key: nodeKey(3)} }},

	{"seen now", []string{`{"PeerSeenChange": {"2": true, "3": false, "99": true}}`},
		func(nm *mesh.Netmap) { nm.Peers[0].LastSeen, nm.Peers[1].LastSeen = now, time.Time{} }},
	{"online change", []string{`{"OnlineChange": {"2": false, "3": false, "5": true, "99": true}}`},
		func(nm *mesh.Netmap) { nm.Peers[0].Online, nm.Peers[2].Online = no(), yes() }},

	{"patch key", []string{`{"PeersChangedPatch": [{"NodeID": 2, "Key": "#nodekey7"}]}`}, func(nm *mesh.Netmap) { nm.Peers[0].Key = nodeKey(7) }},
	{"patch zero key", []string{`{"PeersChangedPatch": [{"NodeID": 2, "Key": "nodekey:0000000000000000000000000000000000000000000000000000000000000000"}]}`}, nil},
	{"patch disco key", []string{`{"PeersChangedPatch": [{"NodeID": 2, "DiscoKey": "#discokey7"}]}`}, func(nm *mesh.Netmap) { nm.Peers[0].Disco = discoKey(7) }},
	{"patch endpoints", []string{`{"PeersChangedPatch": [{"NodeID": 2, "Endpoints": ["192.0.2.7:1", "[2001:db8::7]:2"]}]}`},
		func(nm *mesh.Netmap) {
			nm.Peers[0].Endpoints = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:1"), netip.MustParseAddrPort("[2001:db8::7]:2")}
		}},
	{"patch no endpoints", []string{`{"PeersChangedPatch": [{"NodeID": 2, "Endpoints": []}]}`}, func(nm *mesh.Netmap) { nm.Peers[0].Endpoints = nil }},
	{"patch home relay", []string{`{"PeersChangedPatch": [{"NodeID": 2, "DERPRegion": 5}]}`}, func(nm *mesh.Netmap) { nm.Peers[0].HomeRelay = 5 }},
	{"patch capability version", []string{`{"PeersChangedPatch": [{"NodeID": 2, "Cap": 121}]}`}, func(nm *mesh.Netmap) { nm.Peers[0].Cap = 121 }},
	{"patch capabilities", []string{`{"PeersChangedPatch": [{"NodeID": 2, "CapMap": {"z": null, "y": [true]}}]}`},
		func(nm *mesh.Netmap) { nm.Peers[0].Caps = []string{"y", "z"} }},
	{"patch no capabilities", []string{`{"PeersChangedPatch": [{"NodeID": 2, "CapMap": {}}]}`}, func(nm *mesh.Netmap) { nm.Peers[0].Caps = nil }},
	{"patch key expiry", []string{`{"PeersChangedPatch": [{"NodeID": 2, "KeyExpiry": "2027-01-01T00:00:00Z"}]}`},
		func(nm *mesh.Netmap) { nm.Peers[0].KeyExpiry = time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC) }},
	{"patch online", []string{`{"PeersChangedPatch": [{"NodeID": 2, "Online": false}]}`}, func(nm *mesh.Netmap) { nm.Peers[0].Online = no() }},
	{"patch last seen", []string{`{"PeersChangedPatch": [{"NodeID": 2, "LastSeen": "2026-01-02T00:00:00Z"}]}`},
		func(nm *mesh.Netmap) { nm.Peers[0].LastSeen = time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC) }},
	{"patch with nothing new", []string{`{"PeersChangedPatch": [null, {"NodeID": 2}, {"NodeID": 2, "Online": true, "DERPRegion": 901, "KeySignature": "AQID"}]}`}, nil},
	{"patch of an unknown peer", []string{`{"PeersChangedPatch": [{"NodeID": 4, "Online": true, "Key": "#nodekey4"}, {"NodeID": 1, "DERPRegion": 2}]}`}, nil},
	{"two patches of one peer", []string{`{"PeersChangedPatch": [{"NodeID": 2, "DERPRegion": 5}, {"NodeID": 2, "DERPRegion": 6, "Cap": 1}]}`},
		func(nm *mesh.Netmap) { nm.Peers[0].HomeRelay, nm.Peers[0].Cap = 6, 1 }},

	{"relays replaced, null ones left out", []string{`{"DERPMap": {"Regions": {"5": null, "3": {"RegionCode": "c", "NoMeasureNoHome": true, "Nodes": [null,
		{"Name": "3a", "HostName": "h", "IPv6": "none", "STUNPort": -1, "STUNOnly": true, "CertName": "x", "InsecureForTests": true}]},
		"2": {"RegionCode": "b", "Avoid": true}}}}`},
		func(nm *mesh.Netmap) {
			nm.Relays = []mesh.RelayRegion{{ID: 2, Code: "b", NoMeasure: true}, {ID: 3, Code: "c", NoMeasure: true, Nodes: []mesh.RelayNode{
				{Name: "3a", Host: "h", IPv6: "none", STUNPort: -1, STUNOnly: true, CertName: "x", Insecure: true}}}}
		}},
	{"relay map without regions", []string{`{"DERPMap": {"HomeParams": {}}}`, `{"DERPMap": {"Regions": null}}`}, nil},
	{"no relays any more", []string{`{"DERPMap": {"Regions": {}}}`}, func(nm *mesh.Netmap) { nm.Relays = nil }},

	{"names replaced", []string{`{"DNSConfig": {"Routes": {"corp.": [{"Addr": "10.0.0.53"}, null, {}], "here.": []},
		"ExtraRecords": [{"Name": "a", "Value": "10.0.0.1"}, {"Name": "b", "Type": "AAAA", "Value": "fd00::2"},
		{"Name": "c", "Type": "A", "Value": "fd00::2"}, {"Name": "d", "Type": "TXT", "Value": "10.0.0.1"}, {"Name": "e", "Value": "no address"}]}}`},
		func(nm *mesh.Netmap) {
			nm.Names = mesh.Names{Routes: map[string][]string{"corp.": {"10.0.0.53"}, "here.": nil}, Records: []mesh.Record{
				{Name: "a", Addr: netip.MustParseAddr("10.0.0.1")}, {Name: "b", Addr: netip.MustParseAddr("fd00::2")}}}
		}},
	{"no names", []string{`{"DNSConfig": {}}`}, func(nm *mesh.Netmap) { nm.Names = mesh.Names{} }},
	{"users join the known ones", []string{`{"UserProfiles": [{"ID": 12, "LoginName": "cy"}, {"ID": 11, "LoginName": "bob@example", "DisplayName": "Bob"}]}`},
		func(nm *mesh.Netmap) {
			nm.Users[12], nm.Users[11], nm.People = "cy", "bob@example", map[int64]mesh.Person{11: {Name: "Bob"}}
		}},
	{"people, and one who is none any more", []string{
		`{"UserProfiles": [{"ID": 10, "LoginName": "ann@example", "DisplayName": "Ann", "ProfilePicURL": "https://example/a.png"}, {"ID": 12, "LoginName": "cy", "DisplayName": "Cy"}]}`,
		`{"UserProfiles": [{"ID": 12, "LoginName": "cy", "DisplayName": "cy"}]}`},
		func(nm *mesh.Netmap) {
			nm.Users[12], nm.People = "cy", map[int64]mesh.Person{10: {Name: "Ann", Picture: "https://example/a.png"}}
		}},
	{"domain", []string{`{"Domain": "other"}`, `{"Domain": ""}`}, func(nm *mesh.Netmap) { nm.Domain = "other" }},
	{"tailnet lock on", []string{`{"TKAInfo": {"Head": "x"}}`}, func(nm *mesh.Netmap) { nm.Locked = true }},
	{"tailnet lock on and off", []string{`{"TKAInfo": {"Head": "x"}}`, `{"TKAInfo": {"Disabled": true}}`}, func(*mesh.Netmap) {}},
	{"health cleared", []string{`{"Health": []}`}, func(nm *mesh.Netmap) { nm.Health = nil }},
	{"health null", []string{`{"Health": null}`}, nil},
	{"health replaced", []string{`{"Health": ["b", "a"]}`}, func(nm *mesh.Netmap) { nm.Health = []string{"b", "a"} }},
	{"messages come and go", []string{`{"DisplayMessages": {"y": {"Title": "Y"}, "x": {"Title": "X", "Text": "do so"}, "z": {"Title": "Z"}}}`, `{"DisplayMessages": {"z": null}}`},
		func(nm *mesh.Netmap) { nm.Health = []string{"one thing", "X: do so", "Y"} }},
	{"messages change under three health texts", []string{`{"Health": ["a", "b", "c"], "DisplayMessages": {"y": {"Title": "Y"}}}`, `{"DisplayMessages": {"y": {"Title": "Z"}}}`},
		func(nm *mesh.Netmap) { nm.Health = []string{"a", "b", "c", "Z"} }},
	{"messages all cleared, one new", []string{`{"DisplayMessages": {"y": {"Title": "Y"}}}`, `{"DisplayMessages": {"*": null, "n": {"Title": "N"}}}`},
		func(nm *mesh.Netmap) { nm.Health = []string{"one thing", "N"} }},

	{"another clock", []string{`{"ControlTime": "2026-01-02T04:04:05Z"}`}, func(nm *mesh.Netmap) { nm.ClockSkew = time.Hour }},
	{"another clock, wobbling", []string{`{"ControlTime": "2026-01-02T04:04:05Z"}`, `{"ControlTime": "2026-01-02T04:04:30Z", "KeepAlive": true}`},
		func(nm *mesh.Netmap) { nm.ClockSkew = time.Hour }},
	{"another clock, set right", []string{`{"ControlTime": "2026-01-02T02:04:05Z"}`, `{"ControlTime": "2026-01-02T03:04:00Z", "KeepAlive": true}`}, func(*mesh.Netmap) {}},
	{"no clock", []string{`{"ControlTime": "0001-01-01T00:00:00Z"}`}, nil},
}

// TestSessionDeltas asserts for each delta both what changes and that all else stays.
func TestSessionDeltas(t *testing.T) {
	for _, tt := range deltas {
		t.Run(tt.name, func(t *testing.T) {
			s := newSession(func() time.Time { return now }, nil)
			base, err := s.apply(said(t, first))
			if err != nil {
				t.Fatal(err)
			}
			was, got := []frozen{freeze(t, base)}, base
			for _, text := range tt.say {
				if got, err = s.apply(said(t, text)); err != nil {
					t.Fatalf("%s: %v", text, err)
				}
				was = append(was, freeze(t, got))
			}
			for _, w := range was {
				w.check(t)
			}
			want := firstMap()
			if tt.want != nil {
				tt.want(want)
			} else if got != base {
				t.Error("news without content made a new netmap")
			}
			if d := cmp.Diff(want, got, equal); d != "" {
				t.Errorf("want -, got +:\n%s", d)
			}
			again, err := s.apply(said(t, tt.say[len(tt.say)-1]))
			if err != nil || again != got {
				t.Errorf("the last frame once more made a new netmap (%v)", err)
			}
		})
	}
}

// A stream opened anew says all again; what is the same stays the same pointer,
// what it does not say is gone.
func TestSessionNewStream(t *testing.T) {
	clock := func() time.Time { return now }
	old, err := newSession(clock, nil).apply(said(t, first))
	if err != nil {
		t.Fatal(err)
	}
	same, err := newSession(clock, old).apply(said(t, first))
	if err != nil || same != old {
		t.Errorf("an equal first map made a new netmap (%v)", err)
	}
	alone, err := newSession(clock, old).apply(said(t, `{"Node": {"ID": 1, "Key": "#nodekey1"}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := &mesh.Netmap{Self: mesh.Node{ID: 1, Key: nodeKey(1)}}
	if d := cmp.Diff(want, alone, equal); d != "" {
		t.Errorf("a first map with ourselves only, want -, got +:\n%s", d)
	}
}

func TestSessionBounds(t *testing.T) {
	m := said(t, first)
	for i := range maxPeers {
		m.Peers = append(m.Peers, &tailcfg.Node{ID: tailcfg.NodeID(100 + i), Key: nodeKey(1)})
	}
	m.Health = slices.Repeat([]string{"x"}, 2*maxMessages)
	m.DisplayMessages = make(map[tailcfg.DisplayMessageID]*tailcfg.DisplayMessage)
	m.PacketFilters = make(map[string][]tailcfg.FilterRule)
	for i := range 2 * maxFilters {
		m.DisplayMessages[tailcfg.DisplayMessageID(fmt.Sprint(i))] = &tailcfg.DisplayMessage{Title: "t"}
		m.PacketFilters[fmt.Sprint(i)] = []tailcfg.FilterRule{}
	}
	s := newSession(func() time.Time { return now }, nil)
	if _, err := s.apply(m); err == nil {
		t.Error("too many peers were taken")
	}
	m.Peers = m.Peers[3:]
	s = newSession(func() time.Time { return now }, nil)
	nm, err := s.apply(m)
	if err != nil || len(nm.Peers) != maxPeers {
		t.Fatalf("%d peers: %v", maxPeers, err)
	}
	if len(nm.Health) != 2*maxMessages || len(s.filters) != maxFilters {
		t.Errorf("%d health texts and %d filters kept", len(nm.Health), len(s.filters))
	}
}

// TestEqual changes each field of a netmap alone: equalNetmaps must see each.
func TestEqual(t *testing.T) {
	changes := map[string]func(*mesh.Netmap){}
	for _, tt := range deltas {
		if tt.want != nil {
			changes[tt.name] = tt.want
		}
	}
	changes["tags"] = func(nm *mesh.Netmap) { nm.Peers[0].Tags = []string{"tag:x"} }
	changes["user"] = func(nm *mesh.Netmap) { nm.Peers[0].User = 99 }
	changes["name"] = func(nm *mesh.Netmap) { nm.Peers[0].Name = "x." }
	changes["os"] = func(nm *mesh.Netmap) { nm.Peers[0].OS = "plan9" }
	changes["authorized"] = func(nm *mesh.Netmap) { nm.Peers[0].Authorized = false }
	changes["jailed"] = func(nm *mesh.Netmap) { nm.Peers[0].Jailed = true }
	changes["protocols"] = func(nm *mesh.Netmap) { nm.Filter[0].Protos = []uint8{6} }
	changes["sources"] = func(nm *mesh.Netmap) { nm.Filter[0].Srcs = nil }
	changes["destinations"] = func(nm *mesh.Netmap) { nm.Filter[0].Dsts[1].Ports.Last++ }
	changes["relay node"] = func(nm *mesh.Netmap) { nm.Relays[0].Nodes[0].STUNPort = 9 }
	for name, change := range changes {
		a, b := firstMap(), firstMap()
		if !equalNetmaps(a, b) {
			t.Fatal("equal netmaps are not equal")
		}
		change(b)
		want := cmp.Equal(a, b, equal)
		if equalNetmaps(a, b) != want || equalNetmaps(b, a) != want {
			t.Errorf("%s: equalNetmaps is not %v", name, want)
		}
	}
	a := firstMap()
	b := *a
	b.Users = maps.Clone(a.Users)
	delete(b.Users, 11)
	if equalNetmaps(a, &b) {
		t.Error("a user less is not seen")
	}
	b = *a
	b.People = map[int64]mesh.Person{11: {Name: "Bob"}}
	if equalNetmaps(a, &b) {
		t.Error("what a user is called is not seen")
	}
}
