package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/config"
	"subnetd/subnetd/coord"
	"subnetd/subnetd/host"
	"subnetd/subnetd/lan"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/plan"
	"subnetd/subnetd/status"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const (
	printerMAC = "02:00:00:00:00:01"
	tvMAC      = "02:00:00:00:00:02"
	nasMAC     = "02:00:00:00:00:03"
)

func ips(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

var sameAddrs = cmpopts.EquateComparable(netip.Addr{})

func seenAt(mac, name string, addrs ...string) lan.Thing {
	t := lan.Thing{MAC: mac, Name: name, NameFrom: lan.DHCP, Interface: "br-lan", Online: true}
	for _, a := range ips(addrs...) {
		t.Addresses = append(t.Addresses, lan.Address{Addr: a, Interface: "br-lan", Known: true})
	}
	return t
}

// atHome is a home with a printer that is exposed, a tv that is not, and a nas that was
// never seen.
func atHome() *shown {
	p, _ := joined()
	p.Host.Firewall.Devices = []host.DeviceMap{{Mesh: ips("100.64.5.5")[0], LAN: ips("192.168.1.50")[0]}}
	p.Sources = []host.ExitSource{{MACs: []string{tvMAC}, Way: 0}}
	p.Exits = []status.ExitRow{{Row: 1, Now: "cabin.lab"}}
	return &shown{
		config: config.Config{Mesh: config.Mesh{Control: homeControl}, LAN: config.LAN{Expose: config.ExposeChosen, Devices: []config.Device{
			{Name: "printer", MAC: printerMAC, Ports: []config.Ports{{Proto: "tcp", First: 80, Last: 80}}, Wake: true}, {Name: "nas", MAC: nasMAC}}}},
		things: []lan.Thing{seenAt(printerMAC, "EPSON", "192.168.1.50", "fe80::1"), seenAt(tvMAC, "tv", "192.168.1.51"), seenAt("02:00:00:00:00:09", "TV", "192.168.1.52")},
		list: []mesh.Device{{Name: "printer", MAC: printerMAC, Full: "printer.lab", LAN: ips("192.168.1.50"), Mesh: ips("100.64.5.5", "fd7a:115c:a1e0::5")},
			{Name: "nas", MAC: nasMAC, Full: "nas.lab", Mesh: ips("100.64.5.6")}},
		plan: p, lans: prefixes("192.168.1.0/24"), joined: true, gives: true,
	}
}

func TestThingsAtHome(t *testing.T) {
	d := atHome().all()
	var names []string
	for _, x := range d.Devices {
		names = append(names, x.Name)
	}
	if want := []string{"EPSON", "nas", "tv", "TV"}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
	printer := &status.DeviceMesh{Name: "printer.lab", Addresses: ips("100.64.5.5"), Ports: []string{"tcp/80"}, Wake: true}
	if diff := cmp.Diff(printer, d.Devices[0].Mesh, sameAddrs); diff != "" || len(d.Devices[0].Addresses) != 1 {
		t.Errorf("%s %v", diff, d.Devices[0].Addresses)
	}
	if x := d.Devices[1]; x.MAC != nasMAC || x.Mesh.Missing != "It was not seen at home yet." {
		t.Errorf("%+v %+v", x, x.Mesh)
	}
	if x := d.Devices[2]; x.Mesh != nil || x.Exit != "cabin.lab" || x.ExitRow != 1 || d.Devices[3].Exit != status.ExitDirect {
		t.Errorf("%+v, %+v", x, d.Devices[3])
	}
}

// Whose web pages are served is told by the name of lan.devices, also where a device is
// exposed by its address, and known by its MAC.
func TestServedDevices(t *testing.T) {
	s := atHome()
	s.list = append(s.list, mesh.Device{Name: "tv", LAN: ips("192.168.1.51")})
	s.config.LAN.Web = []config.Served{{Name: "tv", Scheme: "http", Port: 80}, {Name: "printer", Scheme: "https", Port: 5001}}
	s.plan.Web = []plan.Served{{Served: s.config.LAN.Web[1], Names: []string{"printer.lab", "printer.home.lab"}}}
	for who, want := range map[string]struct {
		label string
		web   *status.DeviceWeb
	}{
		printerMAC:          {"printer", &status.DeviceWeb{URL: "https://printer.lab/", Target: "https:5001"}},
		tvMAC:               {"tv", &status.DeviceWeb{Target: "http:80"}},
		"192.168.1.51":      {"tv", &status.DeviceWeb{Target: "http:80"}},
		nasMAC:              {"nas", nil},
		"02:00:00:00:00:09": {"", nil},
	} {
		d, err := s.find(who)
		if err != nil {
			t.Fatal(err)
		}
		var web *status.DeviceWeb
		if d.Mesh != nil {
			web = d.Mesh.Web
		}
		if diff := cmp.Diff(want.web, web); diff != "" || s.labelOf(d) != want.label {
			t.Errorf("%s is %q, want %q %s", who, s.labelOf(d), want.label, diff)
		}
	}
}

// What stands between a device and the mesh is said in a sentence.
func TestMissing(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*shown)
		mac    string
		want   status.DeviceMesh // Missing and Addresses
	}{
		{"nothing is exposed", func(s *shown) {
			s.config.LAN.Expose, s.plan.Host.Firewall.Devices = config.ExposeNone, nil
			s.plan.Approved = nil
		}, printerMAC,
			status.DeviceMesh{Missing: `lan.expose is "none": nothing at home is reached.`}},
		{"no mesh", func(s *shown) { s.joined, s.plan.Host.Firewall = false, host.Firewall{} }, printerMAC, status.DeviceMesh{Missing: "This router is in no mesh."}},
		{"no address yet", func(s *shown) { s.plan.Host.Firewall.Devices, s.plan.Approved = nil, prefixes("192.168.1.50/32") }, printerMAC, status.DeviceMesh{Missing: "It waits for its address in the mesh."}},
		{"another coordinator", func(s *shown) { s.plan.Host.Firewall.Devices, s.gives = nil, false }, printerMAC,
			status.DeviceMesh{Missing: "The coordinator has not approved the route to 192.168.1.50."}},
		{"and it has approved", func(s *shown) {
			s.plan.Host.Firewall.Devices, s.gives, s.plan.Approved = nil, false, prefixes("192.168.1.50/32")
		}, printerMAC, status.DeviceMesh{Addresses: ips("192.168.1.50")}},
		{"in no LAN", func(s *shown) { s.plan.Host.Firewall.Devices, s.lans = nil, prefixes("10.0.0.0/8") }, printerMAC, status.DeviceMesh{Missing: "It is in no LAN of this router."}},
		{"all of the LAN", func(s *shown) {
			s.config.LAN.Expose, s.plan.Approved = config.ExposeAll, prefixes("0.0.0.0/0", "192.168.1.0/24")
		}, tvMAC,
			status.DeviceMesh{Addresses: ips("192.168.1.51"), All: true}},
		{"all of the LAN, not approved", func(s *shown) { s.config.LAN.Expose, s.plan.Approved = config.ExposeAll, prefixes("0.0.0.0/0") }, tvMAC,
			status.DeviceMesh{Missing: "The coordinator has not approved the route to the LAN.", All: true}},
	} {
		s := atHome()
		tt.change(s)
		d, err := s.find(tt.mac)
		if err != nil || d.Mesh == nil {
			t.Errorf("%s: %+v, %v", tt.name, d, err)
			continue
		}
		if got := (status.DeviceMesh{Missing: d.Mesh.Missing, Addresses: d.Mesh.Addresses, All: d.Mesh.All}); cmp.Diff(tt.want, got, sameAddrs) != "" {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestFindThing(t *testing.T) {
	s := atHome()
	for who, want := range map[string]string{
		printerMAC: printerMAC, strings.ToUpper(strings.ReplaceAll(printerMAC, ":", "-")): printerMAC, "epson": printerMAC, "printer": printerMAC, "printer.lab.": printerMAC,
		"100.64.5.5": printerMAC, "192.168.1.50": printerMAC, "nas": nasMAC, "02:00:00:00:00:77": "02:00:00:00:00:77", "192.168.1.99": "",
	} {
		if d, err := s.find(who); err != nil || d.MAC != want {
			t.Errorf("%s: %+v, %v", who, d, err)
		}
	}
	for _, stranger := range []string{"printer", "nas", "printer.lab"} { // that calls itself like one of the owner's
		s.things = append(s.things, seenAt("02:00:00:00:00:66", stranger, "192.168.1.66"))
		if d, err := s.find(stranger); err != nil || d.MAC != printerMAC && d.MAC != nasMAC {
			t.Errorf("%s: %+v, %v", stranger, d, err)
		}
	}
	for who, want := range map[string]string{"tv": "are 2 devices", "nobody": "no device at home", "": "no device at home", "10.9.9.9": "no device at home"} {
		if d, err := s.find(who); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v", who, d, err)
		}
	}
}

func TestExposingByItsName(t *testing.T) {
	l := config.LAN{Devices: []config.Device{{Name: "tv", MAC: nasMAC}}, Names: []config.Named{{Name: "screen", MAC: tvMAC}}}
	for _, tt := range []struct {
		d        status.Device
		as, want string
	}{
		{status.Device{MAC: tvMAC, Name: "tv"}, "", "screen=" + tvMAC},
		{status.Device{MAC: tvMAC, Name: "tv"}, "Big", "big=" + tvMAC},
		{status.Device{MAC: printerMAC, Name: "TV"}, "", "tv-2=" + printerMAC},
		{status.Device{MAC: printerMAC, Name: "Anna's Phone_x.lan"}, "", "annas-phone-x=" + printerMAC},
		{status.Device{MAC: printerMAC, Name: "日本"}, "", printerMAC},
		{status.Device{Addresses: ips("10.0.0.1")}, "", "10.0.0.1"},
	} {
		want := config.Device{MAC: tt.d.MAC}
		if want.MAC == "" {
			want.Addr = tt.d.Addresses[0]
		}
		next, err := exposing(l, want, tt.d, tt.as)
		if err != nil || next.Devices[len(next.Devices)-1].String() != tt.want {
			t.Errorf("%+v: %v, %v, want %s", tt.d, next.Devices, err, tt.want)
		}
	}
	if _, err := exposing(l, config.Device{MAC: printerMAC}, status.Device{MAC: printerMAC}, "tv"); err == nil {
		t.Error("two are called the same")
	}
}

func TestWanted(t *testing.T) {
	got := wanted([]mesh.Device{
		{Name: "a", MAC: printerMAC, LAN: ips("10.0.0.1", "fd00::1")}, {Name: "b", LAN: ips("10.0.0.2"), Mesh: ips("100.64.0.9", "fd7a::9")},
		{Name: "off", MAC: tvMAC, Mesh: ips("100.64.0.9", "fd7a::9")}, {Name: "new", MAC: nasMAC},
	})
	want := []coord.Device{{Name: "a", ID: printerMAC, V6: true}, {Name: "b"}, {Name: "off", ID: tvMAC, V6: true}, {Name: "new", ID: nasMAC}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// members is a mesh with a phone, another home's router, its LAN and its printer.
func members() *mesh.Netmap {
	return &mesh.Netmap{
		Self:  mesh.Node{Name: "home.lab.", User: 1, Addresses: prefixes("100.64.0.1/32")},
		Users: map[int64]string{1: "home@", 2: "anna@example.org"},
		Peers: []mesh.Node{
			{ID: 2, Name: "phone.lab.", User: 1, Addresses: prefixes("100.64.0.2/32")},
			{ID: 3, Name: "cabin.lab.", User: 1, Router: true, Addresses: prefixes("100.64.0.3/32", "100.64.7.8/32"), AllowedIPs: prefixes("100.64.0.3/32", "100.64.7.7/32", "10.9.0.0/16", "0.0.0.0/0")},
			{ID: 4, Name: "guest.lab.", User: 2, Addresses: prefixes("100.64.0.4/32"), AllowedIPs: prefixes("100.64.0.4/32")},
			{ID: 5, Name: "box.lab.", User: 1, Tags: []string{"tag:box"}, Addresses: prefixes("100.64.0.5/32")},
		},
		Names: mesh.Names{Records: []mesh.Record{{Name: "printer.cabin.lab", Addr: ips("100.64.7.7")[0]}}},
	}
}

func TestWhose(t *testing.T) {
	for at, want := range map[string]status.Whois{
		"100.64.0.1": {Kind: status.WhoisSelf, Name: "home.lab", User: "home", Owner: true},
		"100.64.0.2": {Kind: status.WhoisNode, Name: "phone.lab", User: "home", Owner: true},
		"100.64.0.3": {Kind: status.WhoisNode, Name: "cabin.lab", User: "home"},
		"100.64.0.4": {Kind: status.WhoisNode, Name: "guest.lab", User: "anna@example.org"},
		"100.64.0.5": {Kind: status.WhoisNode, Name: "box.lab", Tags: []string{"tag:box"}},
		"100.64.7.7": {Kind: status.WhoisDevice, Name: "printer.cabin.lab", Via: "cabin.lab"},
		"100.64.7.8": {Kind: status.WhoisDevice, Via: "cabin.lab"},
		"10.9.1.1":   {Kind: status.WhoisRoute, Via: "cabin.lab"},
	} {
		want.Address = ips(at)[0]
		got, err := whose(members(), want.Address)
		if diff := cmp.Diff(want, got, sameAddrs); err != nil || diff != "" {
			t.Errorf("%s: %v %s", at, err, diff)
		}
	}
	for _, at := range ips("192.0.2.1", "fd00::1") { // the internet is nobody's
		if w, err := whose(members(), at); err == nil {
			t.Errorf("%v is %+v", at, w)
		}
	}
	if _, err := whose(nil, ips("100.64.0.1")[0]); err == nil {
		t.Error("without a mesh somebody is in it")
	}
}

func TestLogOf(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	s := atHome()
	l := logOf([]host.Reach{
		{From: ips("100.64.0.4")[0], To: ips("192.168.1.51")[0], Flows: 1, Ago: time.Hour},
		{From: ips("100.64.0.2")[0], To: ips("192.168.1.50")[0], Flows: 7, Ago: time.Minute},
		{From: ips("100.64.9.9")[0], To: ips("192.168.1.77")[0], Flows: 2, Ago: time.Hour},
	}, true, members(), s.all().Devices, now)
	want := []status.DeviceReach{
		{Device: "printer.lab", To: ips("192.168.1.50")[0], Who: "phone.lab", User: "home", From: ips("100.64.0.2")[0], Flows: 7, Last: now.Add(-time.Minute)},
		{Device: "tv", To: ips("192.168.1.51")[0], Who: "guest.lab", User: "anna@example.org", From: ips("100.64.0.4")[0], Flows: 1, Last: now.Add(-time.Hour)},
		{Device: "192.168.1.77", To: ips("192.168.1.77")[0], From: ips("100.64.9.9")[0], Flows: 2, Last: now.Add(-time.Hour)},
	}
	if diff := cmp.Diff(status.DeviceLog{Reached: want, Full: true}, l, sameAddrs); diff != "" {
		t.Error(diff)
	}
}

func TestSpokenOf(t *testing.T) {
	c := config.Config{
		LAN:  config.LAN{Devices: []config.Device{{Name: "printer", MAC: printerMAC}, {Addr: ips("10.0.0.1")[0]}}, Names: []config.Named{{Name: "tv", MAC: tvMAC}}},
		Exit: config.Exit{Rows: []config.ExitRow{{Sources: config.Sources{MACs: []string{nasMAC, tvMAC}}, Direct: true}}},
	}
	if diff := cmp.Diff(map[string]string{printerMAC: "printer", tvMAC: "tv", nasMAC: ""}, spokenOf(c)); diff != "" {
		t.Error(diff)
	}
}

func TestAddressesOf(t *testing.T) {
	at := func(text string, silent bool) lan.Address {
		return lan.Address{Addr: netip.MustParseAddr(text), Silent: silent}
	}
	got := addressesOf([]lan.Thing{
		{MAC: printerMAC, Addresses: []lan.Address{at("10.0.0.1", true), at("169.254.0.1", false), at("fd00::1", true), at("fd00::2", false), at("fe80::1", false)}},
		{MAC: tvMAC, Addresses: []lan.Address{at("10.0.0.3", false), at("10.0.0.2", true), at("fe80::2", false)}},
	})
	if diff := cmp.Diff(map[string][]netip.Addr{printerMAC: ips("10.0.0.1", "fd00::2"), tvMAC: ips("10.0.0.3")}, got, sameAddrs); diff != "" {
		t.Error(diff)
	}
	list := []mesh.Device{{MAC: printerMAC}, {Name: "by address"}}
	for _, tt := range []struct {
		was, is []netip.Addr
		want    bool
	}{
		{nil, ips("10.0.0.1"), false}, {ips("10.0.0.1"), ips("10.0.0.1"), false}, {ips("10.0.0.1"), nil, false}, {ips("10.0.0.1"), ips("10.0.0.2"), true},
		{ips("10.0.0.1", "10.0.0.2"), ips("10.0.0.2"), false},
	} {
		if got := moved(list, map[string][]netip.Addr{printerMAC: tt.was, "": ips("10.9.9.9")}, map[string][]netip.Addr{printerMAC: tt.is, "": nil, tvMAC: ips("10.0.0.7")}); got != tt.want {
			t.Errorf("%v, then %v: %v", tt.was, tt.is, got)
		}
	}
}

// One device is woken: the one at that address, if its owner wants it, once a minute.
func TestSleeper(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	d := &daemon{cfg: config.Config{LAN: config.LAN{Devices: []config.Device{{MAC: nasMAC, Wake: true}, {MAC: tvMAC}, {Addr: ips("10.0.0.3")[0]}}}}}
	x := &devices{d: d, now: func() time.Time { return now }, woken: map[string]time.Time{},
		list: []mesh.Device{{MAC: nasMAC, LAN: ips("10.0.0.1", "fd00::1")}, {MAC: tvMAC, LAN: ips("10.0.0.2")}, {LAN: ips("10.0.0.3")}}}
	for at, want := range map[string]string{"10.0.0.1": nasMAC, "fd00::1": nasMAC, "10.0.0.2": "", "10.0.0.3": "", "10.0.0.4": ""} {
		if got := x.sleeper(ips(at)[0]); got != want {
			t.Errorf("%s: %q, want %q", at, got, want)
		}
	}
	x.woken[nasMAC] = now.Add(-wakePause + time.Second)
	if got := x.sleeper(ips("10.0.0.1")[0]); got != "" {
		t.Error("woken twice within a minute")
	}
	x.woken[nasMAC] = now.Add(-wakePause)
	if got := x.sleeper(ips("10.0.0.1")[0]); got != nasMAC {
		t.Error("woken never again")
	}
}
