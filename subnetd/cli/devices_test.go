package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/status"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// atHome is things of every kind, one with a name that wants to paint the screen.
func atHome() status.Devices {
	at := func(s ...string) (out []netip.Addr) {
		for _, a := range s {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	return status.Devices{Expose: "all", Devices: []status.Device{
		{MAC: "02:00:00:00:00:01", Name: "printer", Kind: "printer", Maker: "Epson", Addresses: at("192.168.1.50", "fd00::50"), Online: true, Exit: "direct",
			Mesh: &status.DeviceMesh{Name: "printer.lab", Addresses: at("100.64.5.5", "fd7a::5"), Ports: []string{"tcp/80", "tcp/631"}, Wake: true}},
		{MAC: "02:00:00:00:00:02", Name: "nas", Addresses: []netip.Addr{}, Mesh: &status.DeviceMesh{Name: "nas.lab", Missing: "It was not seen at home yet."}},
		{MAC: "02:00:00:00:00:03", Private: true, Name: "tv\x1b[2J", Kind: "tv", Addresses: at("192.168.1.51"), LastSeen: noon.Add(-3 * time.Hour), Exit: "cabin.lab",
			Mesh: &status.DeviceMesh{All: true, Addresses: at("192.168.1.51")}},
		{MAC: "02:00:00:00:00:04", Addresses: at("192.168.1.52"), LastSeen: noon.Add(-time.Minute)},
	}}
}

func TestDevices(t *testing.T) {
	d := &daemon{devs: api.Devices{List: atHome}}
	want := "! The mesh may reach all of the LAN: `subnetd devices mode chosen` leaves the devices that were exposed.\n" + `
DEVICE   WHAT              MAC                ADDRESS       SEEN       IN THE MESH                                         INTERNET
printer  printer (Epson)   02:00:00:00:00:01  192.168.1.50  online     100.64.5.5, fd7a::5, tcp/80 tcp/631 only, is woken  direct
nas                        02:00:00:00:00:02                never      not yet (It was not seen at home yet)
tv�[2J   tv (made-up MAC)  02:00:00:00:00:03  192.168.1.51  3 h ago    192.168.1.51, as all of the LAN is                  cabin.lab
?                          02:00:00:00:00:04  192.168.1.52  1 min ago  -
`
	code, out, stderr := callExit(t, d, "devices")
	if diff := cmp.Diff(want, out); code != 0 || stderr != "" || diff != "" {
		t.Errorf("%d, %q, %s", code, stderr, diff)
	}
	code, out, _ = callExit(t, d, "devices", "--json")
	var got status.Devices
	if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil || out != printable(out, "\n") {
		t.Errorf("%d, %v, %q", code, err, out)
	}
	if diff := cmp.Diff(atHome(), got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Error(diff)
	}
	d.devs.List = func() status.Devices { return status.Devices{Expose: "none"} }
	if _, out, _ = callExit(t, d, "devices"); out != "The mesh reaches nothing at home: `subnetd devices mode chosen` changes that.\n\nNothing was seen on the LAN yet.\n" {
		t.Errorf("%q", out)
	}
}

// What each verb asks for, and what it says then.
func TestDeviceVerbs(t *testing.T) {
	var asked any
	printer, tv := atHome().Devices[0], atHome().Devices[2]
	tv.Mesh = nil
	d := &daemon{devs: api.Devices{
		List:   atHome,
		Expose: func(_ context.Context, r status.DeviceExpose) (status.Device, error) { asked = r; return printer, nil },
		Hide:   func(_ context.Context, r status.DeviceRequest) (status.Device, error) { asked = r; return tv, nil },
		Name:   func(_ context.Context, r status.DeviceName) (status.Device, error) { asked = r; return tv, nil },
		Mode: func(_ context.Context, r status.DeviceMode) (status.Devices, error) {
			asked = r
			return status.Devices{}, nil
		},
		Wake: func(_ context.Context, r status.DeviceRequest) (status.Device, error) { asked = r; return tv, nil },
		Web: func(_ context.Context, r status.DeviceWebRequest) (status.Device, error) {
			if asked = r; r.Target == "" {
				return tv, nil
			}
			d, m := printer, *printer.Mesh
			d.Mesh, m.Web = &m, &status.DeviceWeb{URL: "https://printer.lab/", Target: "http:80"}
			return d, nil
		},
		Log: func(context.Context) (status.DeviceLog, error) {
			return status.DeviceLog{Full: true, Reached: []status.DeviceReach{
				{Device: "printer.lab", Who: "phone.lab", User: "anna", From: netip.MustParseAddr("100.64.0.2"), To: netip.MustParseAddr("192.168.1.50"), Flows: 12, Last: noon.Add(-time.Minute)},
				{Device: "192.168.1.9", From: netip.MustParseAddr("100.64.0.3"), Flows: 1, Last: noon.Add(-49 * time.Hour)},
			}}, nil
		},
		Whois: func(_ context.Context, of string) (status.Whois, error) {
			asked = of
			return status.Whois{Address: netip.MustParseAddr("100.64.5.5"), Kind: status.WhoisDevice, Name: "printer.lab", Via: "home.lab", Device: &printer}, nil
		},
	}}
	for _, tt := range []struct {
		args []string
		want any
		out  string
	}{
		{[]string{"devices", "expose", "a", "--as", "p", "--ports", "tcp/80,udp/9-10", "--wake"}, status.DeviceExpose{Device: "a", As: "p", Ports: []string{"tcp/80", "udp/9-10"}, Wake: true},
			"printer.lab: 100.64.5.5, fd7a::5, tcp/80 tcp/631 only, is woken\n"},
		{[]string{"devices", "expose", "a"}, status.DeviceExpose{Device: "a"}, "printer.lab: 100.64.5.5, fd7a::5, tcp/80 tcp/631 only, is woken\n"},
		{[]string{"devices", "hide", "a"}, status.DeviceRequest{Device: "a"}, "tv�[2J is hidden\n"},
		{[]string{"devices", "name", "a", "b"}, status.DeviceName{Device: "a", Name: "b"}, "a is called tv�[2J now\n"},
		{[]string{"devices", "name", "a"}, status.DeviceName{Device: "a"}, "a is called tv�[2J now\n"},
		{[]string{"devices", "mode", "chosen"}, status.DeviceMode{Expose: "chosen"}, "Nothing was seen on the LAN yet.\n"},
		{[]string{"devices", "web", "a", "80"}, status.DeviceWebRequest{Device: "a", Target: "80"}, "printer.lab: https://printer.lab/ (it is asked at http:80)\n"},
		{[]string{"devices", "web", "a", "off"}, status.DeviceWebRequest{Device: "a"}, "tv�[2J answers for its web pages itself\n"},
		{[]string{"devices", "wake", "a"}, status.DeviceRequest{Device: "a"}, "a magic packet for tv�[2J is sent\n"},
		{[]string{"devices", "log"}, nil, `WHO               FROM        REACHED      FLOWS  LAST
phone.lab (anna)  100.64.0.2  printer.lab  12     1 min ago
?                 100.64.0.3  192.168.1.9  1      2 days ago
More pairs than are counted reached one another: some are missing.
`},
		{[]string{"whois", "100.64.5.5"}, "100.64.5.5", `address  100.64.5.5
name     printer.lab
is       a device behind home.lab
mac      02:00:00:00:00:01
what     printer (Epson)
at home  192.168.1.50, fd00::50
mesh     100.64.5.5, fd7a::5, tcp/80 tcp/631 only, is woken
`},
	} {
		asked = nil
		code, out, stderr := callExit(t, d, tt.args...)
		if diff := cmp.Diff(tt.out, out); code != 0 || stderr != "" || diff != "" || fmt.Sprint(asked) != fmt.Sprint(tt.want) {
			t.Errorf("%q: %d, %q, asked %v, want %v %s", tt.args, code, stderr, asked, tt.want, diff)
		}
	}
}
