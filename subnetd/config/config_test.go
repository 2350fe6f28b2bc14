package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var addrs = cmpopts.EquateComparable(netip.Addr{})

const sample = "../../packaging/subnetd.toml"

func TestSample(t *testing.T) {
	src, err := os.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Load(sample)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), c); diff != "" {
		t.Fatalf("the sample, all commented, is not the default: %s", diff)
	}
	// With its "#" removed it says the same, and names every key there is.
	plain := regexp.MustCompile(`(?m)^#([a-z_]+ = )`).ReplaceAll(src, []byte("$1"))
	c, err = Parse(strings.NewReader(string(plain)), "sample")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), c); diff != "" {
		t.Fatalf("the sample's values are not the default: %s", diff)
	}
	doc, err := scan(plain, "sample")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys() {
		if doc.line(k.section, k.key) == 0 {
			t.Errorf("%s.%s is missing in the sample", k.section, k.key)
		}
	}
}

func TestLoadMissing(t *testing.T) {
	c, err := Load(filepath.Join(t.TempDir(), "none.toml"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), c); diff != "" {
		t.Fatal(diff)
	}
}

func TestParse(t *testing.T) {
	src := `
mesh = { control = "https://control.example:8443/x", hostname = "door" }
tunnel.engine = "kernel"
tunnel.port = 41_111
[lan]
interfaces = ["br-lan", "eth0.2"]
expose = 'all'
devices = [ # the printer
  "192.168.1.20",
  "Printer=192.168.1.21", "printer=fd00::20 TCP/80  udp/5000-5010",
  "TV=02-00-00-00-00-0D tcp/9 wake", "02:00:00:00:00:0E",
]
names = ["Fridge=02-00-00-00-00-0E"]
web = ["Printer=80", "tv=HTTPS:8443", "nas=443"]
snat = false
[exit]
offer = true
use = "far"
devices = ["02:00:00:00:00:0A", "02-00-00-00-00-0b"]
rows = ["02-00-00-00-00-0C , br-guest->Cabin.Mesh., direct", "lan,router -> 100.64.0.7 , far"]
priority = 1280
[dns]
port = 5354
[home]
url = "https://home.example"
listen = "127.0.0.1:1"
domain = "x"
policy_file = "/etc/policy"
cert_file = "/etc/cert.pem"
key_file = "/etc/key.pem"
acme_directory = "https://acme.example/dir"
records = ["NAS=192.168.1.20", "Git.Example.com=fd00::20", "top.=192.168.1.22"]
split_dns = ["lan=192.168.1.1", "Corp.Example.=[fd00::1]:5353", "corp.example=10.0.0.1:53"]
stun = "0.0.0.0:3479"
[web]
listen = "[::1]:80"
[drop]
folder = "/mnt/usb"
quota = 5_000
keep_free = "2 GB"
from = ["02-00-00-00-00-0F", "NAS", "lan"]
`
	got, err := Parse(strings.NewReader(src), "f")
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Mesh: Mesh{Control: "https://control.example:8443/x", Hostname: "door"},
		LAN: LAN{Interfaces: []string{"br-lan", "eth0.2"}, Expose: ExposeAll, Devices: []Device{
			{Addr: netip.MustParseAddr("192.168.1.20")}, {Name: "printer", Addr: netip.MustParseAddr("192.168.1.21")},
			{Name: "printer", Addr: netip.MustParseAddr("fd00::20"), Ports: []Ports{{"tcp", 80, 80}, {"udp", 5000, 5010}}},
			{Name: "tv", MAC: "02:00:00:00:00:0d", Ports: []Ports{{"tcp", 9, 9}}, Wake: true}, {MAC: "02:00:00:00:00:0e"}},
			Names: []Named{{"fridge", "02:00:00:00:00:0e"}},
			Web:   []Served{{"printer", "http", 80}, {"tv", "https", 8443}, {"nas", "https", 443}}},
		Exit: Exit{Offer: true, Use: "far", Devices: []string{"02:00:00:00:00:0a", "02:00:00:00:00:0b"}, Priority: 1280, Rows: []ExitRow{
			{Sources{MACs: []string{"02:00:00:00:00:0c"}, Interfaces: []string{"br-guest"}}, []string{"cabin.mesh"}, true},
			{Sources{LAN: true, Router: true}, []string{"100.64.0.7", "far"}, false}}},
		DNS:    DNS{Port: 5354, Hook: true},
		Tunnel: Tunnel{Engine: "kernel", Port: 41111},
		Home: Home{URL: "https://home.example", Listen: "127.0.0.1:1", Domain: "x", PolicyFile: "/etc/policy",
			CertFile: "/etc/cert.pem", KeyFile: "/etc/key.pem", ACMEDirectory: "https://acme.example/dir", STUN: "0.0.0.0:3479",
			Records: []Record{{"nas.x", netip.MustParseAddr("192.168.1.20")}, {"git.example.com", netip.MustParseAddr("fd00::20")},
				{"top", netip.MustParseAddr("192.168.1.22")}},
			SplitDNS: []Split{{"lan", "192.168.1.1"}, {"corp.example", "[fd00::1]:5353"}, {"corp.example", "10.0.0.1:53"}}},
		Web:  Web{Listen: "[::1]:80"},
		Drop: Drop{Folder: "/mnt/usb", Quota: 5000, KeepFree: 2e9, From: []string{"02:00:00:00:00:0f", "nas", "lan"}},
	}
	if diff := cmp.Diff(want, got, addrs); diff != "" {
		t.Fatal(diff)
	}
}

func TestAllMistakesAtOnce(t *testing.T) {
	src := `[mesh]
control = 7
color = "red"
[lan]
expose = "some"
devices = [
  "192.168.1.0/24"]
snat = "yes"
[tunnel]
port = 65536
[colour]
x = 1
`
	_, err := Parse(strings.NewReader(src), "/etc/subnetd.toml")
	if err == nil {
		t.Fatal("no error")
	}
	want := []string{
		`/etc/subnetd.toml:2: mesh.control is 7; allowed is "home" or a URL like "https://control.example"`,
		`/etc/subnetd.toml:3: mesh.color is no key of this section; allowed is control, hostname, auth_key_file`,
		`/etc/subnetd.toml:5: lan.expose is "some"; allowed is "all", "chosen" or "none"`,
		`/etc/subnetd.toml:6: lan.devices is ["192.168.1.0/24"]; allowed is a list of MAC or single IP addresses, with or without a name, ports and wake, like ["192.168.1.20", "printer=02:00:00:00:00:01 tcp/80 wake"]`,
		`/etc/subnetd.toml:8: lan.snat is "yes"; allowed is true or false`,
		`/etc/subnetd.toml:10: tunnel.port is 65536; allowed is a number from 0 to 65535; 0: picked once and kept`,
		`/etc/subnetd.toml:11: colour is no section; allowed is [mesh], [lan], [exit], [tunnel], [home], [dns], [web], [drop]`,
	}
	if diff := cmp.Diff(want, strings.Split(err.Error(), "\n")); diff != "" {
		t.Fatal(diff)
	}
	var e *Error
	if !errors.As(err, &e) || e.Line != 2 {
		t.Fatalf("%+v", e)
	}
}

// Keys that are right one by one and wrong together: file, line and what would be right.
func TestTogether(t *testing.T) {
	long := strings.Repeat(strings.Repeat("a", 62)+".", 3) + strings.Repeat("b", 60)
	tests := []struct{ src, want string }{
		{`home.cert_file = "/c"` + "\n" + `home.key_file = "/k"`, ""},
		{"\n" + `home.cert_file = "/c"`, "f:2: home.cert_file is set without home.key_file; allowed is both of them or none"},
		{`[home]` + "\n" + `key_file = "/k"`, "f:2: home.key_file is set without home.cert_file; allowed is both of them or none"},
		{`lan.devices = ["p=10.0.0.1", "p=fd00::1", "q=10.0.0.2", "10.0.0.3", "10.0.0.4"]`, ""},
		{`lan.devices = ["p=10.0.0.1", "p=fd00::1", "P=10.0.0.2"]`,
			"f:1: lan.devices has p at 10.0.0.1 and at 10.0.0.2; allowed is one MAC address, or one IPv4 and one IPv6 address, for a name"},
		{`lan.devices = ["p=fd00::1", "p=fd00::1"]`,
			"f:1: lan.devices has p at fd00::1 and at fd00::1; allowed is one MAC address, or one IPv4 and one IPv6 address, for a name"},
		{`lan.devices = ["p=02:00:00:00:00:01", "q=02:00:00:00:00:02", "02:00:00:00:00:03", "r=10.0.0.1 tcp/1", "r=fd00::1 tcp/2"]`, ""},
		{`lan.devices = ["p=02:00:00:00:00:01", "q=02-00-00-00-00-01"]`,
			"f:1: lan.devices has 02:00:00:00:00:01 twice; allowed is one entry for a MAC address"},
		{`lan.devices = ["p=02:00:00:00:00:01", "p=10.0.0.1"]`,
			"f:1: lan.devices has p at 02:00:00:00:00:01 and at 10.0.0.1; allowed is one MAC address, or one IPv4 and one IPv6 address, for a name"},
		{`lan.devices = ["02:00:00:00:00:01"]` + "\n" + `lan.names = ["p=02:00:00:00:00:01", "q=02:00:00:00:00:02"]`, ""},
		{`lan.devices = ["p=02:00:00:00:00:01"]` + "\n" + `lan.names = ["q=02:00:00:00:00:01"]`,
			"f:2: lan.names has another name for 02:00:00:00:00:01; allowed is one name for a MAC address, here or in lan.devices"},
		{`lan.names = ["p=02:00:00:00:00:01", "q=02:00:00:00:00:01"]`,
			"f:1: lan.names has another name for 02:00:00:00:00:01; allowed is one name for a MAC address, here or in lan.devices"},
		{`lan.devices = ["p=10.0.0.1"]` + "\n" + `lan.names = ["p=02:00:00:00:00:01"]`,
			"f:2: lan.names has p, which is the name of another thing; allowed is one MAC address for a name"},
		{`lan.web = ["p=80", "q=80", "p=81"]`, "f:1: lan.web has p twice; allowed is one web server for a device"},
		{`home.domain = "` + long + `"` + "\n" + `home.records = ["a=10.0.0.1"]`, ""},
		{`home.domain = "` + long + `"` + "\n" + `home.records = ["aaaaa=10.0.0.1"]`,
			`f:2: home.records has "aaaaa.` + long[:70] + `...; allowed is at most 253 characters for a name with home.domain`},
		// A wrong one is told alone: what it was to be with the other is not known.
		{`home.cert_file = "c"` + "\n" + `home.key_file = "/k"`, `f:1: home.cert_file is "c"; allowed is "" or the absolute path of a file`},
	}
	for _, tt := range tests {
		got := ""
		if _, err := Parse(strings.NewReader(tt.src), "f"); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.src, got, tt.want)
		}
	}
}

// Every key refuses every value of another type, and some of its own.
func TestEveryKeyRefuses(t *testing.T) {
	bad := []string{"1.5", "1979-05-27", "{a=1}", "[[1]]", "[1]", "-1", `"\u0000"`, `"a b/c"`, `["\u0000"]`}
	for _, k := range keys() {
		for _, v := range bad {
			_, err := Parse(strings.NewReader("["+k.section+"]\n"+k.key+" = "+v+"\n"), "f")
			var e *Error
			if !errors.As(err, &e) || e.Line != 2 || e.Key != k.section+"."+k.key || e.Allowed != k.allowed {
				t.Errorf("%s.%s = %s: %v", k.section, k.key, v, err)
			}
		}
	}
}

func TestValues(t *testing.T) {
	tests := []struct {
		line string
		ok   bool
	}{
		{`mesh.control = "home"`, true}, {`mesh.control = ""`, false}, {`mesh.control = "ftp://x"`, false},
		{`mesh.control = "https://"`, false}, {`mesh.control = "https://a:b@c"`, false},
		{`mesh.control = "http://[::1]:8080"`, true}, {`mesh.hostname = "a-1"`, true},
		{`mesh.hostname = "-a"`, false}, {`mesh.hostname = "a.b"`, false}, {`mesh.auth_key_file = "rel"`, false},
		{`lan.interfaces = ["this-is-far-too-long"]`, false}, {`lan.interfaces = []`, true},
		{`lan.devices = ["fe80::1"]`, false}, {`lan.devices = ["127.0.0.1"]`, false},
		{`lan.devices = ["a.b=192.168.1.2"]`, false}, {`lan.devices = ["=192.168.1.2"]`, false}, {`lan.devices = ["a="]`, false},
		{`lan.devices = ["a=fe80::1"]`, false}, {`lan.devices = ["a=b=192.168.1.2"]`, false}, {`lan.devices = ["tv=192.168.1.2"]`, true},
		{`lan.devices = [""]`, false}, {`lan.devices = ["01:00:5e:00:00:01"]`, false}, {`lan.devices = ["02:00:00:00:00"]`, false},
		{`lan.devices = ["10.0.0.1 wake"]`, false}, {`lan.devices = ["02:00:00:00:00:01 wake wake"]`, false}, {`lan.devices = ["02:00:00:00:00:01 wake"]`, true},
		{`lan.devices = ["10.0.0.1 tcp/0"]`, false}, {`lan.devices = ["10.0.0.1 tcp/2-1"]`, false}, {`lan.devices = ["10.0.0.1 icmp/1"]`, false},
		{`lan.devices = ["10.0.0.1 tcp/1 tcp/1"]`, false}, {`lan.devices = ["10.0.0.1 tcp/65536"]`, false}, {`lan.devices = ["10.0.0.1 tcp/1-65535"]`, true},
		{`lan.devices = ["tcp/1"]`, false}, {`lan.devices = ["a=10.0.0.1 b=10.0.0.2"]`, false},
		{`lan.devices = ["10.0.0.1` + strings.Repeat(" tcp/1 udp/1", MaxPorts) + `"]`, false},
		{`lan.web = ["tv"]`, false}, {`lan.web = ["tv="]`, false}, {`lan.web = ["=80"]`, false}, {`lan.web = ["tv=0"]`, false}, {`lan.web = ["tv=65536"]`, false},
		{`lan.web = ["tv=ftp:80"]`, false}, {`lan.web = ["tv=http:"]`, false}, {`lan.web = ["a.b=80"]`, false}, {`lan.web = ["tv=http:80:80"]`, false}, {`lan.web = ["tv=http:80"]`, true},
		{`lan.names = ["tv"]`, false}, {`lan.names = ["=02:00:00:00:00:01"]`, false}, {`lan.names = ["tv=10.0.0.1"]`, false}, {`lan.names = ["a.b=02:00:00:00:00:01"]`, false},
		{`lan.devices = ["::ffff:1.2.3.4"]`, false}, {`lan.devices = ["fe80::1%eth0"]`, false},
		{`exit.devices = ["02:00:00:00:00"]`, false}, {`tunnel.engine = "magic"`, false}, {`tunnel.port = 0x1F`, true},
		{`home.listen = "8410"`, false}, {`home.listen = ":0"`, false}, {`home.listen = "name:80"`, false},
		{`home.domain = ""`, false}, {`home.domain = "a..b"`, false}, {`web.listen = ":65536"`, false}, {`lan = 3`, false},
		{`home.acme_directory = "acme"`, false}, {`home.key_file = "rel"`, false}, {`home.stun = ""`, false}, {`home.stun = ":0"`, false},
		{`home.records = ["a"]`, false}, {`home.records = ["a_b=10.0.0.1"]`, false}, {`home.records = [".=10.0.0.1"]`, false},
		{`home.records = ["a=10.0.0.0/8"]`, false}, {`home.records = ["a=127.0.0.1"]`, false}, {`home.records = ["a.b=10.0.0.1"]`, true},
		{`home.split_dns = ["lan=10.0.0.1:0"]`, false}, {`home.split_dns = ["lan=dns.example"]`, false}, {`home.split_dns = ["=10.0.0.1"]`, false},
		{`home.split_dns = ["lan=127.0.0.1"]`, false}, {`home.split_dns = ["lan=fd00::1"]`, true}, {`home.split_dns = ["lan=fd00::1:53"]`, true},
		{`[[lan]]`, false}, {`[lan.devices]`, false}, {`"mesh".'control' = "home"`, true}, {`"me\nsh" = 1`, false},
	}
	for _, tt := range tests {
		_, err := Parse(strings.NewReader(tt.line), "f")
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.line, err)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than one line: %v", tt.line, err)
		}
	}
}

func TestNotTOML(t *testing.T) {
	tests := map[string]string{
		"[lan]\nsnat = maybe\n":          "f:2: ",
		"[lan\n":                         "f:1: ",
		"[lan]\nsnat = true\nsnat = 1\n": "f:3: ",
		strings.Repeat("#", MaxSize+1):   "f: is too big",
		"a = \"\xff\"":                   "f:1: ",
	}
	for src, want := range tests {
		_, err := Parse(strings.NewReader(src), "f")
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%.20q: %v", src, err)
		}
	}
}

func TestManyMistakesAreBounded(t *testing.T) {
	var b strings.Builder
	for i := range 1000 {
		b.WriteString("x" + strings.Repeat("y", i) + " = 1\n")
	}
	_, err := Parse(strings.NewReader(b.String()), "f")
	if lines := strings.Split(err.Error(), "\n"); len(lines) != maxErrors+1 || lines[maxErrors] != "f: and 950 more mistakes" {
		t.Fatal(len(lines), lines[len(lines)-1])
	}
}

func TestEdit(t *testing.T) {
	tests := []struct {
		name, src, section, key string
		value                   any
		want                    string
	}{
		{"empty", "", "mesh", "control", "home", "[mesh]\ncontrol = \"home\"\n"},
		{"replace keeps the rest", "# a\n[mesh] # b\n control  =  'home'  # c\nnew = 1\n", "mesh", "control", "https://x",
			"# a\n[mesh] # b\n control  =  \"https://x\"  # c\nnew = 1\n"},
		{"new key after the last of its section", "[mesh]\nhostname = \"a\" # x\n\n[lan]\nsnat = true\n", "mesh", "control", "home",
			"[mesh]\nhostname = \"a\" # x\ncontrol = \"home\"\n\n[lan]\nsnat = true\n"},
		{"empty section", "[lan]\n[web]\n", "lan", "snat", false, "[lan]\nsnat = false\n[web]\n"},
		{"new section", "[lan]\nsnat = true", "tunnel", "port", 5, "[lan]\nsnat = true\n\n[tunnel]\nport = 5\n"},
		{"list over lines", "[lan]\ndevices = [\n \"10.0.0.1\", # one\n]\nsnat = true\n", "lan", "devices", []string{"10.0.0.2", "fd00::2"},
			"[lan]\ndevices = [\n \"10.0.0.2\", # one\n \"fd00::2\",\n]\nsnat = true\n"},
		{"empty list", "[lan]\ndevices = [\"10.0.0.1\"]\n", "lan", "devices", []string{}, "[lan]\ndevices = []\n"},
		{"dotted", "lan.snat = true\n[web]\n", "lan", "expose", "all", "lan.snat = true\nlan.expose = \"all\"\n[web]\n"},
		{"dotted replace", "lan.snat = true\n", "lan", "snat", false, "lan.snat = false\n"},
		{"inline replace", "lan = { snat = true, expose = \"all\" }\n", "lan", "snat", false, "lan = { snat = false, expose = \"all\" }\n"},
		{"crlf", "[lan]\r\nsnat = true\r\n", "lan", "expose", "all", "[lan]\r\nsnat = true\r\nexpose = \"all\"\r\n"},
		{"no newline at the end", "[lan]", "lan", "snat", true, "[lan]\nsnat = true\n"},
		{"sub-section first", "[lan.x]\ny = 1\n[lan]\nsnat = true\n", "lan", "expose", "all", "[lan.x]\ny = 1\n[lan]\nsnat = true\nexpose = \"all\"\n"},
		{"uint16", "", "tunnel", "port", uint16(7), "[tunnel]\nport = 7\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Edit([]byte(tt.src), "f", tt.section, tt.key, tt.value)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Fatal(diff)
			}
			again, err := Edit(got, "f", tt.section, tt.key, tt.value)
			if err != nil || string(again) != string(got) {
				t.Fatalf("the second time: %v\n%s", err, again)
			}
		})
	}
}

func TestEditRefuses(t *testing.T) {
	tests := []struct {
		src, section, key string
		value             any
	}{
		{"", "mesh", "colour", "red"}, {"", "mash", "control", "home"}, {"", "lan", "expose", "some"},
		{"", "lan", "snat", "true"}, {"", "lan", "snat", 1.5}, {"[lan", "lan", "snat", true},
		{"lan = { snat = true }", "lan", "expose", "all"}, {"lan = 3", "lan", "snat", true}, {"[[lan]]\n", "lan", "snat", true},
	}
	for _, tt := range tests {
		if out, err := Edit([]byte(tt.src), "f", tt.section, tt.key, tt.value); err == nil || out != nil {
			t.Errorf("%q %s.%s = %v: %q, %v", tt.src, tt.section, tt.key, tt.value, out, err)
		}
	}
}

func TestEditSample(t *testing.T) {
	src, err := os.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	out, err := Edit(src, "f", "mesh", "control", "https://control.example")
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse(strings.NewReader(string(out)), "f")
	if err != nil || c.Mesh.Control != "https://control.example" {
		t.Fatal(err, c.Mesh)
	}
	// All the old lines are there, in order.
	left := strings.Split(string(out), "\n")
	for line := range strings.SplitSeq(string(src), "\n") {
		i := slices.Index(left, line)
		if i < 0 {
			t.Fatalf("lost: %q", line)
		}
		left = left[i+1:]
	}
}

func FuzzParse(f *testing.F) {
	src, err := os.ReadFile(sample)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(src))
	f.Add("[lan]\nsnat = \"yes\"\n")
	f.Add("lan = { snat = true, x.y = [1, {z = 2}] }\n[[a]]\n[a.b]\n")
	f.Add("\"\\u0000\" = '''x'''\r\n")
	f.Fuzz(func(t *testing.T, src string) {
		_, err := Parse(strings.NewReader(src), "f")
		var e *Error
		if err != nil && !errors.As(err, &e) {
			t.Fatalf("no *Error: %v", err)
		}
	})
}

func FuzzEdit(f *testing.F) {
	f.Add("[mesh]\nhostname = \"a\" # x\n\n[lan]\n", "door")
	f.Add("mesh.control = 'home'", "a")
	f.Add("mesh = { hostname = \"x\" }\r\n", "")
	f.Add("\"mesh\".\"host\\u006eame\" = \"\"\"\nx\"\"\" # y", "q")
	f.Fuzz(func(t *testing.T, src, value string) {
		out, err := Edit([]byte(src), "f", "mesh", "hostname", value)
		if err != nil {
			return
		}
		doc, err := scan(out, "f")
		if err != nil {
			t.Fatalf("%q does not parse: %v", out, err)
		}
		if got := doc.raw["mesh"].(map[string]any)["hostname"]; got != value {
			t.Fatalf("%q holds %q, want %q", out, got, value)
		}
	})
}
