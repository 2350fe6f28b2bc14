package config

import (
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	uciSample = "../../packaging/openwrt/root/etc/config/subnetd"
	uciFile   = "/etc/config/subnetd"
)

// TestUCISample: all of it commented it is the default; without its "#" too, and then
// it names every key there is but lists, which UCI cannot have empty.
func TestUCISample(t *testing.T) {
	src, err := os.ReadFile(uciSample)
	if err != nil {
		t.Fatal(err)
	}
	plain := regexp.MustCompile(`(?m)^\t#(option|list) `).ReplaceAllString(string(src), "\t$1 ")
	for what, text := range map[string]string{"commented": string(src), "plain": regexp.MustCompile(`(?m)^\tlist .*$`).ReplaceAllString(plain, "")} {
		c, err := Parse(strings.NewReader(text), uciFile)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(Default(), c); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	if _, err := Parse(strings.NewReader(plain), uciFile); err != nil {
		t.Errorf("its examples of lists: %v", err)
	}
	doc, err := read([]byte(plain), uciFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys() {
		if doc.line(k.section, k.key) == 0 {
			t.Errorf("%s.%s is missing in the sample", k.section, k.key)
		}
	}
}

func TestParseUCI(t *testing.T) {
	src := `# a comment
package subnetd

config subnetd 'main'
	option enabled '0'
config mesh
	option control "https://control.example:8443/\x" # behind
	option hostname d'oo'"r"
config lan 'home'
	list interfaces br-lan
	option expose all
	list devices 'printer=192.168.1.21 tcp/80'
	option snat off
	list devices 02:00:00:00:00:0E#no space needed
config tunnel tunnel
	option port 41111
config exit
	option offer '1'
	option devices '02-00-00-00-00-0b'
	list rows 'lan,
router -> far'
config web
	option listen [::1]:80` // and no newline
	src = strings.Replace(src, `\x`, `x`, 1)
	got, err := Parse(strings.NewReader(src), "f")
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Mesh = Mesh{Control: "https://control.example:8443/x", Hostname: "door"}
	want.LAN = LAN{Interfaces: []string{"br-lan"}, Expose: ExposeAll, Devices: []Device{
		{Name: "printer", Addr: netip.MustParseAddr("192.168.1.21"), Ports: []Ports{{"tcp", 80, 80}}}, {MAC: "02:00:00:00:00:0e"}}}
	want.Tunnel.Port = 41111
	want.Exit = Exit{Offer: true, Devices: []string{"02:00:00:00:00:0b"}, Rows: []ExitRow{{Sources: Sources{LAN: true, Router: true}, Exits: []string{"far"}}}}
	want.Web.Listen = "[::1]:80"
	if diff := cmp.Diff(want, got, addrs); diff != "" {
		t.Fatal(diff)
	}
}

func TestUCIRefuses(t *testing.T) {
	for src, want := range map[string]string{
		"config lan\n\toption snat 'maybe'\n":                            `f:2: lan.snat is "maybe"; allowed is true or false`,
		"config lan\n\toption colour 'red'\n":                            "f:2: lan.colour is no key of this section; allowed is interfaces, expose, devices, names, web, snat",
		"config hoem\n":                                                  "f:1: hoem is no section; allowed is [mesh], [lan], [exit], [tunnel], [home], [dns], [web]",
		"config lan\n\toption snat 1\n\n\toption snat 0\n":               "f:4: is not UCI: snat is there twice",
		"config lan\nconfig lan\n":                                       "f:2: is not UCI: there are two sections lan",
		"config lan\n\tlist devices 10.0.0.1\n\tlist devices 10.0.0.x":   `f:2: lan.devices is ["10.0.0.1", "10.0.0.x"]; allowed is a list of MAC`,
		"config exit\n\tlist rows 'lan -> far'\n\n\tlist rows 'lan -'\n": "f:4: exit.rows ",
		"config lan\n\toption expose 'all\n":                             "f:2: is not UCI: a ' has no other",
		"config lan\n\toption expose all; option snat 1\n":               `f:2: is not UCI: a ";" stands in quotes only`,
		"config lan\n\toption expose all\\\n\n":                          "f:2: is not UCI: a line ends in a backslash",
		"config lan\n\toption expose\n":                                  "f:2: is not UCI: a line is ",
		"config lan\n\toption expose a b\n":                              "f:2: is not UCI: a line is ",
		"config lan\n\toption expose \"\x00\"\n":                         "f:2: is not UCI: there is a NUL in it",
		"package x\noption expose all\n":                                 "f:2: is not UCI: a line is ",
		"config lan\npackage x\n":                                        "f:2: is not UCI: a line is ",
		"config mesh\n\tlist control home\n":                             `f:2: mesh.control is ["home"]; allowed is "home" or a URL`,
	} {
		_, err := Parse(strings.NewReader(src), "f")
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q:\n%v\nwant\n%s", src, err, want)
		}
	}
}

// TestWhichFormat: the place decides, or else the first word.
func TestWhichFormat(t *testing.T) {
	for _, tt := range []struct {
		src, file string
		uci       bool
	}{
		{"", uciFile, true}, {"[lan]\n", uciFile, true}, {"", "/etc/subnetd/subnetd.toml", false}, {"#x\n", "f", false},
		{"# x\n\n config lan\n", "f", true}, {"config = 3\n", "f", false}, {"config=3\n", "f", false}, {"[config]\n", "f", false}, {"package x\n", "f", true},
	} {
		if got := isUCI([]byte(tt.src), tt.file); got != tt.uci {
			t.Errorf("%q of %s: %v", tt.src, tt.file, got)
		}
	}
}

func TestEditUCI(t *testing.T) {
	const lan = "config lan\n\t# the printer\n\tlist devices '10.0.0.1'\t# one\n\toption snat '1'\n\tlist devices \"10.0.0.2\" # two\n\n\n# end\nconfig subnetd 'main'\n\toption x 'y'\n"
	for _, tt := range []struct {
		name, src, section, key string
		value                   any
		want                    string
	}{
		{"empty", "", "mesh", "control", "home", "config mesh 'mesh'\n\toption control 'home'\n"},
		{"replace keeps the rest", "# a\nconfig mesh  # b\n option  control  \"home\"#c\n\toption new 1\n", "mesh", "control", "https://x",
			"# a\nconfig mesh  # b\n option  control  'https://x'#c\n\toption new 1\n"},
		{"behind the last of its section", lan, "lan", "expose", "all",
			strings.Replace(lan, "# two\n", "# two\n\toption expose 'all'\n", 1)},
		{"truth", lan, "lan", "snat", false, strings.Replace(lan, "snat '1'", "snat '0'", 1)},
		{"number", lan, "tunnel", "port", uint16(7), lan + "\nconfig tunnel 'tunnel'\n\toption port '7'\n"},
		{"no newline at the end", "config lan", "lan", "snat", true, "config lan\n\toption snat '1'\n"},
		{"list, the last goes", lan, "lan", "devices", []string{"10.0.0.1"}, strings.Replace(lan, "\tlist devices \"10.0.0.2\" # two\n", "", 1)},
		{"list, one in front", lan, "lan", "devices", []string{"10.0.0.3", "10.0.0.1", "10.0.0.2"},
			strings.Replace(lan, "\tlist devices '10.0.0.1'", "\tlist devices '10.0.0.3'\n\tlist devices '10.0.0.1'", 1)},
		{"list, two behind", lan, "lan", "devices", []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"},
			strings.Replace(lan, "# two\n", "# two\n\tlist devices '10.0.0.3'\n\tlist devices '10.0.0.4'\n", 1)},
		{"list, another", lan, "lan", "devices", []string{"10.0.0.1", "10.0.0.9"}, strings.Replace(lan, "\"10.0.0.2\"", "'10.0.0.9'", 1)},
		{"list, none", lan, "lan", "devices", []string{}, strings.NewReplacer("\tlist devices '10.0.0.1'\t# one\n", "", "\tlist devices \"10.0.0.2\" # two\n", "").Replace(lan)},
		{"no list, none", lan, "lan", "names", []string{}, lan},
		{"list of an option", "config exit\n\toption devices '02:00:00:00:00:01'\n\toption use 'far'\n", "exit", "devices", []string{"02:00:00:00:00:01", "02:00:00:00:00:02"},
			"config exit\n\tlist devices '02:00:00:00:00:01'\n\tlist devices '02:00:00:00:00:02'\n\toption use 'far'\n"},
		{"new list", lan, "lan", "interfaces", []string{"br-lan", "eth1"}, strings.Replace(lan, "# two\n", "# two\n\tlist interfaces 'br-lan'\n\tlist interfaces 'eth1'\n", 1)},
		{"a quote in it", "", "dns", "dnsmasq_restart", []string{"sh", "-c", "echo 'x' \\"},
			"config dns 'dns'\n\tlist dnsmasq_restart 'sh'\n\tlist dnsmasq_restart '-c'\n\tlist dnsmasq_restart 'echo '\\''x'\\'' \\'\n"},
		{"the last line has no end", "config lan\n\tlist devices '10.0.0.1'", "lan", "devices", []string{"10.0.0.1", "10.0.0.2"},
			"config lan\n\tlist devices '10.0.0.1'\n\tlist devices '10.0.0.2'\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Edit([]byte(tt.src), uciFile, tt.section, tt.key, tt.value)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Fatal(diff)
			}
			again, err := Edit(got, uciFile, tt.section, tt.key, tt.value)
			if err != nil || string(again) != string(got) {
				t.Fatalf("the second time: %v\n%s", err, again)
			}
		})
	}
}

func TestEditUCIRefuses(t *testing.T) {
	for _, tt := range []struct {
		src, section, key string
		value             any
	}{
		{"", "mesh", "colour", "red"}, {"", "main", "enabled", true}, {"", "lan", "expose", "some"}, {"[lan]\nsnat = true\n", "lan", "snat", true},
		{"config lan\n\tlist snat 1\n", "lan", "snat", []string{"1"}}, {"config lan\nconfig lan\n", "lan", "snat", true},
	} {
		if out, err := Edit([]byte(tt.src), uciFile, tt.section, tt.key, tt.value); err == nil || out != nil {
			t.Errorf("%q %s.%s = %v: %q, %v", tt.src, tt.section, tt.key, tt.value, out, err)
		}
	}
}

// FuzzEditUCI: what is set is read again, and of the lines that were there all stay in
// their order, but for those of that key.
func FuzzEditUCI(f *testing.F) {
	src, err := os.ReadFile(uciSample)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(src), "a", "b")
	f.Add("config lan\n\tlist interfaces 'a' # x\n\toption snat 0\r\n\tlist interfaces \"b\"", "b", "c")
	f.Add("config lan\noption interfaces a\nconfig web\n\toption x 'y\nz'", "", "")
	f.Fuzz(func(t *testing.T, src, a, b string) {
		var want []string
		for _, s := range []string{a, b} {
			if s != "" {
				want = append(want, s)
			}
		}
		if want == nil {
			want = []string{}
		}
		out, err := Edit([]byte(src), uciFile, "lan", "interfaces", want)
		if err != nil {
			return
		}
		doc, err := scanUCI(out, "f")
		if err != nil {
			t.Fatalf("%q is not UCI: %v", out, err)
		}
		table, _ := doc.raw["lan"].(map[string]any)
		got, _ := textsOf(table["interfaces"])
		if diff := cmp.Diff(strings.Join(want, "\n"), strings.Join(got, "\n")); diff != "" {
			t.Fatalf("%q: %s", out, diff)
		}
		left := strings.Split(string(out), "\n")
		for line := range strings.SplitSeq(src, "\n") {
			if strings.Contains(line, "interfaces") {
				continue
			}
			for i := 0; ; i++ {
				if i == len(left) {
					t.Fatalf("lost of %q: %q in %q", src, line, out)
				}
				if strings.TrimRight(left[i], "\r") == strings.TrimRight(line, "\r") {
					left = left[i+1:]
					break
				}
			}
		}
	})
}

// TestUCIItself: what is written is read by OpenWrt's own program, where it is, and what
// that writes is read here, with the same meaning. Debian does not have it.
func TestUCIItself(t *testing.T) {
	program, err := exec.LookPath("uci")
	if err != nil {
		t.Skip("there is no uci")
	}
	dir, staged := t.TempDir(), t.TempDir()
	uci := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(program, append([]string{"-c", dir, "-p", staged, "-t", staged}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("uci %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	src, err := os.ReadFile(uciSample)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []struct {
		section, key string
		value        any
	}{
		{"mesh", "control", "https://control.example/a"}, {"lan", "snat", false}, {"tunnel", "port", 41111}, {"exit", "offer", true},
		{"lan", "devices", []string{"printer=10.0.0.1 tcp/80", "nas=02:00:00:00:00:02 wake"}}, {"exit", "rows", []string{"lan, router -> far, direct"}},
		{"dns", "dnsmasq_restart", []string{"sh", "-c", `echo "it's" \ ; # $x`, " \t"}}, {"lan", "devices", []string{"nas=02:00:00:00:00:02 wake"}},
	} {
		if src, err = Edit(src, uciFile, e.section, e.key, e.value); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(dir+"/subnetd", src, 0o600); err != nil {
		t.Fatal(err)
	}
	ours, err := Parse(strings.NewReader(string(src)), uciFile)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := Parse(strings.NewReader(uci("export", "subnetd")), uciFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ours, theirs, addrs); diff != "" {
		t.Error(diff)
	}
	uci("set", "subnetd.mesh.hostname=door")
	uci("add_list", "subnetd.lan.devices=tv=02:00:00:00:00:03")
	uci("commit", "subnetd")
	theirs, err = Load(dir + "/subnetd")
	if err != nil {
		t.Fatal(err)
	}
	ours.Mesh.Hostname = "door"
	ours.LAN.Devices = append(ours.LAN.Devices, Device{Name: "tv", MAC: "02:00:00:00:00:03"})
	if diff := cmp.Diff(ours, theirs, addrs); diff != "" {
		t.Error(diff)
	}
}
