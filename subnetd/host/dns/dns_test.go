package dns

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"subnetd/subnetd/host"
	"subnetd/subnetd/state"

	"github.com/google/go-cmp/cmp"
)

// fake is a machine of files that remembers the commands it was given.
type fake struct {
	t     *testing.T
	root  string
	dir   *state.Dir
	ran   []string
	fails func(command string) error
	told  string
	hand  *Hand
}

// files are by path; a content "-> x" is a symbolic link.
type files map[string]string

func newFake(t *testing.T, all ...files) *fake {
	t.Helper()
	f := &fake{t: t, root: t.TempDir()}
	f.put("/proc/self/ns/net", "-> net:[1]")
	f.put("/proc/1/ns/net", "-> net:[1]")
	for _, some := range all {
		for name, text := range some {
			f.put(name, text)
		}
	}
	var err error
	if f.dir, err = state.Open(filepath.Join(t.TempDir(), "state")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.dir.Close() })
	f.start()
	return f
}

// start is another process on the same machine.
func (f *fake) start() {
	f.hand = New(Config{Root: f.root, Dir: f.dir, Log: slog.New(slog.DiscardHandler),
		Run: func(_ context.Context, command ...string) error {
			f.ran = append(f.ran, strings.Join(command, " "))
			if f.fails != nil {
				return f.fails(strings.Join(command, " "))
			}
			return nil
		},
		Tell: func(text, _ string) { f.told = text },
	})
}

func (f *fake) put(name, text string) {
	f.t.Helper()
	file := filepath.Join(f.root, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		f.t.Fatal(err)
	}
	err := os.Remove(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.t.Fatal(err)
	}
	if to, ok := strings.CutPrefix(text, "-> "); ok {
		err = os.Symlink(to, file)
	} else {
		err = os.WriteFile(file, []byte(text), 0o640)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// tree is every file of the machine with its content, and its time if that counts.
func (f *fake) tree(times bool) map[string]string {
	f.t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(f.root, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		st, err := os.Lstat(name)
		if err != nil {
			return err
		}
		text := st.Mode().String() + " "
		if st.Mode().IsRegular() {
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			text += string(b)
		}
		if times {
			text += st.ModTime().String()
		}
		out[strings.TrimPrefix(name, f.root)] = text
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return out
}

func (f *fake) set(d host.DNS) {
	f.t.Helper()
	if err := f.hand.Set(f.t.Context(), d); err != nil {
		f.t.Fatal(err)
	}
}

// commands are those since the last time.
func (f *fake) commands() string {
	out := strings.Join(f.ran, "; ")
	f.ran = nil
	return out
}

var names = host.DNS{
	Server: netip.MustParseAddrPort("127.0.0.1:5335"), Link: "mesh0",
	Domains: []string{"64.100.in-addr.arpa", "mesh.internal"},
}

const restart = "/etc/init.d/dnsmasq restart"

var (
	openWrt = files{"/etc/openwrt_release": "", "/etc/resolv.conf": "-> /tmp/resolv.conf", "/tmp/resolv.conf": "search lan\nnameserver 127.0.0.1\n",
		"/var/etc/dnsmasq.conf.cfg01411c": "# auto-generated\nconf-file=/etc/dnsmasq.conf\nconf-dir=/tmp/dnsmasq.cfg01411c.d\n", "/tmp/dnsmasq.cfg01411c.d/theirs.conf": "x"}
	debian = files{"/proc/77/comm": "dnsmasq\n", "/proc/77/ns/net": "-> net:[1]", "/proc/77/cgroup": "0::/system.slice/dnsmasq.service\n",
		"/proc/77/cmdline":  "/usr/sbin/dnsmasq\x00-x\x00/run/dnsmasq.pid\x00-7\x00/etc/dnsmasq.d,.dpkg-dist,.dpkg-old\x00--local-service\x00",
		"/etc/dnsmasq.conf": "# all commented\n#conf-dir=/etc/other\n", "/etc/dnsmasq.d/README": "", "/etc/resolv.conf": "nameserver 127.0.0.1\n"}
	alpine = files{"/proc/8/comm": "dnsmasq\n", "/proc/8/ns/net": "-> net:[1]", "/proc/8/cgroup": "0::/\n", "/etc/init.d/dnsmasq": "",
		"/proc/8/cmdline": "/usr/sbin/dnsmasq\x00-k\x00", "/etc/dnsmasq.conf": "conf-dir=/etc/dnsmasq.d/,*.conf\n", "/etc/dnsmasq.d/README": "", "/etc/resolv.conf": "nameserver 192.0.2.1\n"}
	resolved = files{"/etc/resolv.conf": "-> ../run/systemd/resolve/stub-resolv.conf", "/sys/class/net/mesh0/ifindex": "7\n", "/run/systemd/resolve/stub-resolv.conf": "nameserver 127.0.0.53\n"}
	plain    = files{"/etc/resolv.conf": "# my own\nsearch home.example\nnameserver 192.0.2.1\noptions edns0\nnameserver 192.0.2.2"}
)

// TestChoice: what is chosen on which machine, and that the rest of it is not touched.
func TestChoice(t *testing.T) {
	for _, tt := range []struct {
		name          string
		machine       []files
		dir           string
		restart       []string
		writes, runs  string
		chosen, trust string // beginnings
	}{
		{name: "OpenWrt", machine: []files{openWrt}, writes: "/tmp/dnsmasq.cfg01411c.d/subnetd.conf", runs: restart, chosen: "dnsmasq"},
		{name: "OpenWrt without dnsmasq", machine: []files{{"/etc/openwrt_release": "", "/etc/resolv.conf": "nameserver 192.0.2.1\n"}}, chosen: "nothing", trust: "The programs"},
		{name: "Debian", machine: []files{debian}, writes: "/etc/dnsmasq.d/subnetd.conf", runs: "systemctl restart dnsmasq.service", chosen: "dnsmasq"},
		{name: "Alpine", machine: []files{alpine}, writes: "/etc/dnsmasq.d/subnetd.conf", runs: restart, chosen: "dnsmasq"},
		{name: "dnsmasq of others", machine: []files{debian, {"/proc/77/ns/net": "-> net:[2]"}}, chosen: "nothing", trust: "The programs"},
		{name: "dnsmasq for DHCP alone", machine: []files{debian, {"/etc/dnsmasq.conf": "port=0\n"}}, chosen: "nothing", trust: "The programs"},
		{name: "dnsmasq with other names", machine: []files{alpine, {"/etc/dnsmasq.conf": "conf-dir=/etc/dnsmasq.d,*.cnf\n"}}, writes: "/etc/resolv.conf", chosen: "/etc/resolv.conf"},
		{name: "dnsmasq, restarted who knows how", machine: []files{debian, {"/proc/77/cgroup": "0::/user.slice\n", "/run/systemd/system/x": ""}}, chosen: "nothing", trust: "dnsmasq runs here"},
		{name: "by the owner's word", machine: []files{{"/proc/1/ns/net": "-> net:[2]", "/etc/resolv.conf": "nameserver 192.0.2.1\n", "/lab/x": ""}}, dir: "/lab", restart: []string{"again"}, writes: "/lab/subnetd.conf", runs: "again", chosen: "dnsmasq"},
		{name: "resolved", machine: []files{resolved}, chosen: "systemd-resolved",
			runs: "resolvectl dns mesh0 127.0.0.1:5335; resolvectl default-route mesh0 no; resolvectl domain mesh0 ~mesh.internal ~64.100.in-addr.arpa"},
		{name: "resolved and dnsmasq", machine: []files{alpine, resolved}, chosen: "dnsmasq", writes: "/etc/dnsmasq.d/subnetd.conf",
			runs: restart + "; resolvectl dns mesh0 127.0.0.1:5335; resolvectl default-route mesh0 no; resolvectl domain mesh0 ~mesh.internal ~64.100.in-addr.arpa"},
		{name: "plain", machine: []files{plain}, writes: "/etc/resolv.conf", chosen: "/etc/resolv.conf"},
		{name: "another namespace", machine: []files{plain, openWrt, {"/proc/1/ns/net": "-> net:[2]"}}, chosen: "nothing: this program is in a network namespace"},
		{name: "no /proc", machine: []files{plain, {"/proc/1/ns/net": ""}}, chosen: "nothing: this program is in a network namespace"},
		{name: "somebody's link", machine: []files{{"/etc/resolv.conf": "-> /run/resolvconf/resolv.conf"}}, chosen: "nothing", trust: "The programs"},
		{name: "NetworkManager's", machine: []files{{"/etc/resolv.conf": "# Generated by NetworkManager\nnameserver 192.0.2.1\n"}}, chosen: "nothing", trust: "The programs"},
		{name: "an unknown resolver", machine: []files{{"/etc/resolv.conf": "nameserver ::1\n"}}, chosen: "nothing", trust: "The programs"},
		{name: "no resolver at all", machine: []files{{"/etc/resolv.conf": "# none\n"}}, chosen: "nothing: /etc/resolv.conf names"},
		{name: "no file", chosen: "nothing", trust: "The programs"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t, tt.machine...)
			before := f.tree(false)
			d := names
			d.DnsmasqDir, d.DnsmasqRestart = tt.dir, tt.restart
			f.set(d)
			wrote := ""
			for name, text := range f.tree(false) {
				if before[name] != text {
					wrote += name
				}
			}
			if wrote != tt.writes {
				t.Errorf("wrote %q, want %q", wrote, tt.writes)
			}
			if got := f.commands(); got != tt.runs {
				t.Errorf("ran %q, want %q", got, tt.runs)
			}
			if !strings.HasPrefix(f.hand.Chosen(), tt.chosen) || !strings.HasPrefix(f.told, tt.trust) || (f.told == "") != (tt.trust == "") {
				t.Errorf("chosen %q, told %q", f.hand.Chosen(), f.told)
			}
			// Once more, by this process and by the next: nothing.
			done := f.tree(true)
			f.set(d)
			if got := f.commands(); got != "" {
				t.Errorf("the second time ran %q", got)
			}
			f.start()
			f.set(d)
			if got := f.commands(); got != "" && !strings.Contains(tt.chosen+tt.name, "resolved") {
				t.Errorf("the next process ran %q", got)
			}
			if d := cmp.Diff(done, f.tree(true)); d != "" {
				t.Errorf("written again: %s", d)
			}
			// And away, by a process that knows nothing but the state.
			f.start()
			f.set(host.DNS{})
			if d := cmp.Diff(before, f.tree(false)); d != "" {
				t.Errorf("left behind: %s", d)
			}
			if left, _ := filepath.Glob(filepath.Join(f.dir.Path(), "res*")); len(left) > 0 {
				t.Errorf("left in the state: %s", left)
			}
			f.commands()
			f.set(host.DNS{})
			if got := f.commands(); got != "" || f.hand.Chosen() != "" || f.told != "" {
				t.Errorf("with nothing to undo: ran %q, chosen %q, told %q", got, f.hand.Chosen(), f.told)
			}
		})
	}
}

// TestText: dnsmasq takes our file, and a coordinator writes nothing else into it.
func TestText(t *testing.T) {
	d := names
	d.Domains = askable([]string{"64.100.in-addr.arpa", "0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa", "mesh.internal", "_x.corp-1.example", "a\nserver=/x/1", "a/b", "a b", "#", "", ".", "x..y", strings.Repeat("a", 64), "*"})
	want := `# Written by subnetd, which removes it when it goes (` + "`subnetd down`" + `).
server=/mesh.internal/127.0.0.1#5335
rebind-domain-ok=/mesh.internal/
server=/_x.corp-1.example/127.0.0.1#5335
rebind-domain-ok=/_x.corp-1.example/
server=/64.100.in-addr.arpa/127.0.0.1#5335
server=/0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa/127.0.0.1#5335
`
	if d := cmp.Diff(want, masqText(d)); d != "" {
		t.Error(d)
	}
	masq, err := exec.LookPath("dnsmasq")
	if err != nil {
		t.Skip("dnsmasq is not here")
	}
	file := filepath.Join(t.TempDir(), "x.conf")
	if err := os.WriteFile(file, []byte(want), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(masq, "--test", "--conf-file="+file).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// killed ends a process in the middle of a command.
type killed struct{}

func (f *fake) die(d host.DNS) {
	f.t.Helper()
	defer func() {
		if _, ok := recover().(killed); !ok {
			f.t.Error("no command was given")
		}
		f.fails = nil
		f.start()
	}()
	f.fails = func(string) error { panic(killed{}) }
	_ = f.hand.Set(f.t.Context(), d)
}

// TestDnsmasqKilled: whoever dies before dnsmasq has read what was written has his
// successor restart it, coming and going.
func TestDnsmasqKilled(t *testing.T) {
	f := newFake(t, openWrt)
	before := f.tree(false)
	f.die(names)
	f.commands()
	f.set(names)
	if got := f.commands(); got != restart {
		t.Errorf("after a death while coming: ran %q", got)
	}
	more := names
	more.Domains = append([]string{"corp.example"}, names.Domains...)
	f.die(more)
	f.commands()
	f.set(more)
	if got := f.commands(); got != restart {
		t.Errorf("after a death while changing: ran %q", got)
	}
	f.die(host.DNS{})
	f.commands()
	f.set(host.DNS{})
	if got := f.commands(); got != restart {
		t.Errorf("after a death while going: ran %q", got)
	}
	f.set(names)
	f.die(host.DNS{})
	f.set(host.DNS{})
	if d := cmp.Diff(before, f.tree(false)); d != "" {
		t.Error(d)
	}
}

// TestVolatile: after a reboot of OpenWrt the file is written again, and no flash.
func TestVolatile(t *testing.T) {
	f := newFake(t, openWrt)
	f.set(names)
	st, err := os.Stat(filepath.Join(f.dir.Path(), stateFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(f.root, "/tmp/dnsmasq.cfg01411c.d/subnetd.conf")); err != nil {
		t.Fatal(err)
	}
	f.commands()
	f.start()
	f.set(names)
	if got := f.commands(); got != restart {
		t.Errorf("ran %q", got)
	}
	if now, err := os.Stat(filepath.Join(f.dir.Path(), stateFile)); err != nil || !now.ModTime().Equal(st.ModTime()) {
		t.Errorf("the state was written again (%v)", err)
	}
}

// TestDnsmasqRefuses: a dnsmasq that does not start with our file runs without, at once
// and for good.
func TestDnsmasqRefuses(t *testing.T) {
	f := newFake(t, debian)
	before := f.tree(false)
	f.fails = func(string) error {
		if _, err := os.Stat(filepath.Join(f.root, "/etc/dnsmasq.d/subnetd.conf")); err == nil {
			return errors.New("bad option")
		}
		return nil
	}
	f.set(names)
	again := "systemctl restart dnsmasq.service"
	if got := f.commands(); got != again+"; "+again {
		t.Errorf("ran %q", got)
	}
	if !strings.Contains(f.told, "bad option") {
		t.Errorf("told %q", f.told)
	}
	if d := cmp.Diff(before, f.tree(false)); d != "" {
		t.Error(d)
	}
	f.set(names)
	if got := f.commands(); got != "" || f.told == "" {
		t.Errorf("tried again: %q, told %q", got, f.told)
	}
	f.fails = nil
	more := names
	more.Domains = []string{"other.internal"}
	f.set(more)
	if got := f.commands(); got != again || f.told != "" {
		t.Errorf("with another text: %q, told %q", got, f.told)
	}
}

// TestRestarting: a dnsmasq that is not seen at this moment is not forgotten.
func TestRestarting(t *testing.T) {
	f := newFake(t, debian)
	f.set(names)
	f.commands()
	f.put("/proc/77/comm", "sleep\n")
	f.set(names)
	if got := f.commands(); got != "" || !strings.HasPrefix(f.hand.Chosen(), "dnsmasq") {
		t.Errorf("ran %q, chosen %q", got, f.hand.Chosen())
	}
}

// TestResolvedLink: a link that was made anew is told anew.
func TestResolvedLink(t *testing.T) {
	f := newFake(t, resolved)
	f.fails = func(string) error { return errors.New("no bus") }
	f.set(names)
	if !strings.Contains(f.told, "no bus") {
		t.Errorf("told %q", f.told)
	}
	f.fails = nil
	f.set(names)
	all := len(f.ran)
	f.put("/sys/class/net/mesh0/ifindex", "8\n")
	f.set(names)
	if len(f.ran) != all+3 || f.told != "" {
		t.Errorf("ran %q, told %q", f.ran, f.told)
	}
	f.commands()
	f.set(host.DNS{})
	if got := f.commands(); got != "resolvectl revert mesh0" {
		t.Errorf("ran %q", got)
	}
}

// TestResolvConf: search and options stay, what others write counts, and it is back
// when the daemon ends.
func TestResolvConf(t *testing.T) {
	f := newFake(t, plain)
	before := f.tree(false)
	f.set(names)
	text := f.hand.m.read(resolvConf)
	if _, rest, _ := strings.Cut(text, "\n"); rest != "nameserver 100.100.100.100\nsearch home.example\noptions edns0\n" {
		t.Errorf("ours is %q", text)
	}
	if kept, err := os.ReadFile(Backup(f.dir.Path())); err != nil || string(kept) != plain[resolvConf] {
		t.Errorf("kept %q (%v)", kept, err)
	}
	if err := f.hand.Stop(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(before, f.tree(false)); d != "" {
		t.Errorf("after Stop: %s", d)
	}
	f.start()
	f.set(names)
	// A lease of another network, then the daemon dies.
	other := "nameserver 198.51.100.1\n"
	f.put(resolvConf, other)
	f.set(names)
	if kept, err := os.ReadFile(Backup(f.dir.Path())); err != nil || string(kept) != other {
		t.Errorf("kept %q (%v)", kept, err)
	}
	f.put(resolvConf, "nameserver 198.51.100.2\n")
	f.start()
	f.set(host.DNS{})
	if got := f.hand.m.read(resolvConf); got != "nameserver 198.51.100.2\n" {
		t.Errorf("what somebody else wrote is %q", got)
	}
}

// TestResolvConfKilled: a death at any step leaves a machine that is as before after
// `down`.
func TestResolvConfKilled(t *testing.T) {
	for name, step := range map[string]func(f *fake) error{
		"after the record": func(f *fake) error { return f.hand.keep(record{Replaced: true}) },
		"after the backup": func(f *fake) error {
			return errors.Join(f.hand.keep(record{Replaced: true}), replace(Backup(f.dir.Path()), plain[resolvConf], 0o600))
		},
		"while replacing": func(f *fake) error {
			return errors.Join(f.hand.keep(record{Replaced: true}), replace(Backup(f.dir.Path()), plain[resolvConf], 0o600),
				os.WriteFile(temporary(f.hand.m.path(resolvConf)), []byte(header), 0o600))
		},
		"after all":                       func(f *fake) error { return f.hand.Set(f.t.Context(), names) },
		"while undoing, before the state": func(f *fake) error { return errors.Join(f.hand.Set(f.t.Context(), names), f.hand.restoreResolvConf()) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, plain)
			before := f.tree(false)
			if err := step(f); err != nil {
				t.Fatal(err)
			}
			f.start()
			f.set(host.DNS{})
			if d := cmp.Diff(before, f.tree(false)); d != "" {
				t.Error(d)
			}
		})
	}
}
