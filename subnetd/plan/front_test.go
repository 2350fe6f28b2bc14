package plan

import (
	"net/netip"
	"testing"

	"subnetd/subnetd/config"
	"subnetd/subnetd/host"

	"github.com/google/go-cmp/cmp"
)

func addrPorts(all ...string) (out []netip.AddrPort) {
	for _, s := range all {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}

func TestFront(t *testing.T) {
	own := []string{"100.64.0.1:80", "100.64.0.1:443", "[fd7a:115c:a1e0::1]:80", "[fd7a:115c:a1e0::1]:443"}
	with := func(more ...string) []netip.AddrPort { return sortPorts(addrPorts(append(more, own...)...)) }
	served := func(scheme string, port uint16) func(*Inputs) {
		return func(in *Inputs) { in.Config.LAN.Web = []config.Served{{Name: "printer", Scheme: scheme, Port: port}} }
	}
	limited := func(ports config.Ports) func(*Inputs) {
		return func(in *Inputs) {
			served("http", 5000)(in)
			in.Config.LAN.Devices[0].Ports = []config.Ports{ports}
		}
	}
	for _, tt := range []struct {
		name          string
		change        func(*Inputs)
		doors, behind []netip.AddrPort
		problems      []string
	}{
		{"nowhere", func(in *Inputs) { in.Front = 0 }, nil, nil, nil},
		{"the router alone", func(*Inputs) {}, with(), nil, nil},
		{"a device", served("http", 5000),
			with("100.64.5.5:80", "100.64.5.5:443", "100.64.5.5:5000", "[fd7a:115c:a1e0::5:5]:80", "[fd7a:115c:a1e0::5:5]:443", "[fd7a:115c:a1e0::5:5]:5000"),
			addrPorts("192.168.77.50:5000", "[fd77:77::50]:5000"), nil},
		{"its own port is that of https", served("https", 443),
			with("100.64.5.5:80", "100.64.5.5:443", "[fd7a:115c:a1e0::5:5]:80", "[fd7a:115c:a1e0::5:5]:443"),
			addrPorts("192.168.77.50:443", "[fd77:77::50]:443"), nil},
		{"its own port is shut to the mesh, as is its IPv4 address only", limited(config.Ports{Proto: "tcp", First: 631, Last: 631}),
			with("100.64.5.5:80", "100.64.5.5:443", "[fd7a:115c:a1e0::5:5]:80", "[fd7a:115c:a1e0::5:5]:443", "[fd7a:115c:a1e0::5:5]:5000"),
			addrPorts("[fd77:77::50]:5000"), nil},
		{"it is among those that are open", limited(config.Ports{Proto: "tcp", First: 5000, Last: 5010}),
			with("100.64.5.5:80", "100.64.5.5:443", "100.64.5.5:5000", "[fd7a:115c:a1e0::5:5]:80", "[fd7a:115c:a1e0::5:5]:443", "[fd7a:115c:a1e0::5:5]:5000"),
			addrPorts("192.168.77.50:5000", "[fd77:77::50]:5000"), nil},
		{"unknown", func(in *Inputs) { in.Config.LAN.Web = []config.Served{{Name: "tv", Scheme: "http", Port: 80}} }, with(), nil, []string{"web-device"}},
		{"without addresses", func(in *Inputs) {
			served("http", 80)(in)
			in.Devices[0].Mesh = nil
		}, with(), nil, []string{"routes-unapproved", "web-address"}},
		{"nothing is exposed", func(in *Inputs) {
			served("http", 80)(in)
			in.Config.LAN.Expose = config.ExposeNone
		}, with(), nil, nil},
		{"the name of a service", func(in *Inputs) { in.Devices[0].Name = "drop" }, with(), nil, []string{"device-name"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := rented()
			in.Front = 8412
			tt.change(&in)
			p := Compile(in)
			want := host.Front{Port: in.Front, Doors: tt.doors, Behind: tt.behind}
			if d := cmp.Diff(want, p.Host.Firewall.Front, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
				t.Error(d)
			}
			var codes []string
			for _, x := range p.Problems {
				codes = append(codes, x.Code)
			}
			if d := cmp.Diff(tt.problems, codes); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestNamesOfServed(t *testing.T) {
	in := rented()
	in.Front, in.Config.LAN.Web = 8412, []config.Served{{Name: "printer", Scheme: "http", Port: 80}}
	long := "printer." + folded(in.Netmap.Self.Name)
	if d := cmp.Diff([]string{long}, Compile(in).Web[0].Names); d != "" {
		t.Error(d)
	}
	in.Devices[0].Full = "Printer.mesh"
	if d := cmp.Diff([]string{"printer.mesh", long}, Compile(in).Web[0].Names); d != "" {
		t.Error(d)
	}
}
