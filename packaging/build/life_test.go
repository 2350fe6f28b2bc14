package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// machine is a root file system with the shell and tools of busybox, in which packages
// live: what their scripts call beyond these is noted in /log, and in /refused if it is
// not known.
type machine struct {
	t    *testing.T
	root string
}

func newMachine(t *testing.T, standIns string) machine {
	t.Helper()
	if os.Getuid() != 0 {
		lacking(t, "a package's scripts run in a root of their own, which needs root")
	}
	m := machine{t, t.TempDir()}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		lacking(t, "there is no busybox")
	}
	m.copy(busybox, "/bin/busybox")
	for _, lib := range regexp.MustCompile(`/\S+`).FindAllString(tool(t, "ldd", busybox), -1) {
		m.copy(lib, lib)
	}
	for _, applet := range strings.Fields(tool(t, "busybox", "--list")) {
		if !strings.HasPrefix(applet, "busybox") && applet != "init" && applet != "dpkg" {
			if err := os.Symlink("busybox", m.at("/bin/"+applet)); err != nil {
				t.Fatal(err)
			}
		}
	}
	m.copyTree(standIns)
	m.write("/usr/sbin/other", "", 0o755) // folders that others use are not ours to remove
	m.write("/usr/lib/other", "", 0o644)
	for _, dir := range []string{"/tmp", "/var/run", "/etc/rc.d", "/dev"} {
		if err := os.MkdirAll(m.at(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mknod(m.at(os.DevNull), syscall.S_IFCHR|0o666, 1<<8|3); err != nil { // null(4)
		t.Fatal(err)
	}
	return m
}

func (m machine) at(path string) string { return filepath.Join(m.root, path) }

func (m machine) copy(from, to string) {
	m.t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		m.t.Fatal(err)
	}
	m.write(to, string(b), 0o755)
}

// copyTree puts stand-ins in the place of what is there.
func (m machine) copyTree(from string) {
	m.t.Helper()
	err := filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		to := strings.TrimPrefix(path, from)
		_ = os.Remove(m.at(to)) // an applet's link
		m.copy(path, to)
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m machine) write(path, text string, mode fs.FileMode) {
	m.t.Helper()
	if err := os.MkdirAll(filepath.Dir(m.at(path)), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(m.at(path), []byte(text), mode); err != nil {
		m.t.Fatal(err)
	}
}

// read is a file's text; "" if it is not there.
func (m machine) read(path string) string {
	b, err := os.ReadFile(m.at(path))
	if err != nil && !os.IsNotExist(err) {
		m.t.Fatal(err)
	}
	return string(b)
}

// run runs a program of the machine. What it said must hold no complaint of the shell.
func (m machine) run(env []string, args ...string) string {
	m.t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Path, cmd.Err = args[0], nil
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: m.root}
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		m.t.Fatalf("%q: %v\n%s", args, err, out)
	}
	if regexp.MustCompile(`not found|syntax error|bad |No such file`).Match(out) {
		m.t.Fatalf("%q complains:\n%s", args, out)
	}
	return string(out)
}

// told gives what the scripts have done since it was last asked.
func (m machine) told() string {
	m.t.Helper()
	if refused := m.read("/refused"); refused != "" {
		m.t.Fatalf("unknown calls:\n%s", refused)
	}
	log := m.read("/log")
	if log != "" {
		if err := os.Remove(m.at("/log")); err != nil {
			m.t.Fatal(err)
		}
	}
	return log
}

// forget takes away what a removal leaves to the owner of an OpenWrt router.
func (m machine) forget() {
	m.t.Helper()
	for _, path := range []string{"/etc/subnetd", "/etc/config", "/run"} {
		if err := os.RemoveAll(m.at(path)); err != nil {
			m.t.Fatal(err)
		}
	}
}

func (m machine) want(what, got, want string) {
	m.t.Helper()
	if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")); diff != "" {
		m.t.Errorf("%s (- is missing, + is too much):\n%s", what, diff)
	}
}

// tree lists all that is in the machine with what it holds, but for folders that are
// named.
func (m machine) tree(but ...string) string {
	m.t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(m.root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		at := strings.TrimPrefix(path, m.root)
		for _, skip := range but {
			if at == skip && e.IsDir() {
				return fs.SkipDir
			} else if at == skip {
				return nil
			}
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		size := int64(0)
		if info.Mode().IsRegular() {
			size = info.Size()
		}
		fmt.Fprintln(&b, info.Mode(), size, at)
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return b.String()
}

// dpkg does what Debian's package manager does, which runs the scripts in the machine.
func (m machine) dpkg(args ...string) {
	m.t.Helper()
	tool(m.t, "dpkg", append([]string{"--root=" + m.root, "--log=" + m.at("/var/log/dpkg.log"), "--force-confold"}, args...)...)
}

// uciPath is the configuration on OpenWrt.
const uciPath = "/etc/config/subnetd"

const ourKeys = "/var/lib/subnetd/identity"

// TestDebLife: a package comes, is replaced by the next, and goes; what is its owner's
// stays until he says that it shall go, too.
func TestDebLife(t *testing.T) {
	m := newMachine(t, "testdata/deb")
	m.write("/var/lib/dpkg/status", "Package: init-system-helpers\nStatus: install ok installed\nMaintainer: none\nArchitecture: all\nVersion: 1.65\nDescription: stand-in\n\n", 0o644)
	m.write("/var/lib/dpkg/available", "", 0o644)
	for _, dir := range []string{"/var/lib/dpkg/info", "/var/lib/dpkg/updates", "/run/systemd/system", "/var/log"} {
		if err := os.MkdirAll(m.at(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	arch := strings.TrimSpace(tool(t, "dpkg", "--print-architecture"))
	standIn, err := os.ReadFile("testdata/subnetd")
	if err != nil {
		t.Fatal(err)
	}
	first := filepath.Join(built(t), "subnetd_"+version+"_"+arch+".deb")
	next := filepath.Join(builtOf(t, append(standIn, "# newer\n"...), "v1.3.0"), "subnetd_1.3.0_"+arch+".deb")
	bookkeeping := []string{"/var/lib/dpkg", "/var/log", "/log"}
	before := m.tree(bookkeeping...)

	m.dpkg("--install", first)
	m.want("an installation", m.told(), `deb-systemd-helper unmask subnetd-guard.service
deb-systemd-helper --quiet was-enabled subnetd-guard.service
deb-systemd-helper enable subnetd-guard.service
deb-systemd-helper unmask subnetd-web.socket
deb-systemd-helper --quiet was-enabled subnetd-web.socket
deb-systemd-helper enable subnetd-web.socket
deb-systemd-helper unmask subnetd.service
deb-systemd-helper --quiet was-enabled subnetd.service
deb-systemd-helper enable subnetd.service
systemctl --system daemon-reload
deb-systemd-invoke start subnetd-web.socket
deb-systemd-invoke restart subnetd.service
`)
	tool(t, "dpkg", "--root="+m.root, "--verify", "subnetd")

	const wishes = "[lan]\nexpose = \"all\"\n"
	m.write(wishesPath, wishes, 0o600)
	m.write(ourKeys, "keys", 0o600)
	m.write("/disabled", "", 0o600) // by its owner
	m.dpkg("--install", next)
	m.want("an upgrade", m.told(), `deb-systemd-helper unmask subnetd-guard.service
deb-systemd-helper --quiet was-enabled subnetd-guard.service
deb-systemd-helper update-state subnetd-guard.service
deb-systemd-helper unmask subnetd-web.socket
deb-systemd-helper --quiet was-enabled subnetd-web.socket
deb-systemd-helper update-state subnetd-web.socket
deb-systemd-helper unmask subnetd.service
deb-systemd-helper --quiet was-enabled subnetd.service
deb-systemd-helper update-state subnetd.service
systemctl --system daemon-reload
deb-systemd-invoke start subnetd-web.socket
deb-systemd-invoke restart subnetd.service
`)
	m.want("wishes after an upgrade", m.read(wishesPath), wishes)
	m.want("keys after an upgrade", m.read(ourKeys), "keys")
	if !strings.HasSuffix(m.read(daemonPath), "# newer\n") {
		t.Error("the daemon is the old one")
	}

	m.dpkg("--remove", "subnetd")
	m.want("a removal", m.told(), `deb-systemd-invoke start subnetd.service
subnetd down
deb-systemd-invoke stop subnetd-web.socket subnetd.service subnetd-guard.service
systemctl --system daemon-reload
`)
	m.want("wishes after a removal", m.read(wishesPath), wishes)
	m.want("keys after a removal", m.read(ourKeys), "keys")

	m.dpkg("--purge", "subnetd")
	m.want("a purge", m.told(), "deb-systemd-helper purge subnetd-guard.service subnetd-web.socket subnetd.service\n")
	if err := os.Remove(m.at("/disabled")); err != nil {
		t.Fatal(err)
	}
	m.want("what is left", m.tree(bookkeeping...), before)
}

// TestDebRemovalGoesOn: a daemon that does not answer holds nobody's removal back.
func TestDebRemovalGoesOn(t *testing.T) {
	m := newMachine(t, "testdata/deb")
	m.copy("testdata/subnetd", daemonPath)
	m.copy(checkout+"/packaging/deb/control/prerm", "/prerm")
	m.write("/daemon-fails", "", 0o600)
	if err := os.MkdirAll(m.at("/run/systemd/system"), 0o755); err != nil {
		t.Fatal(err)
	}
	m.run(nil, "/prerm", "remove")
	m.want("a removal", m.told(), "deb-systemd-invoke start subnetd.service\n"+
		strings.Repeat("subnetd down\nsleep 1\n", 9)+"subnetd down\ndeb-systemd-invoke stop subnetd-web.socket subnetd.service subnetd-guard.service\n")
	m.run(nil, "/prerm", "upgrade", "1.3.0")
	m.want("an upgrade", m.told(), "")
}

// opkg does what OpenWrt's package manager does with the package in a file.
type opkg struct {
	machine
	info string // where it keeps what it knows of packages
}

func newOpkg(t *testing.T) opkg {
	m := newMachine(t, "testdata/openwrt")
	m.write("/uci/subnetd", uciShow(t, checkout+"/packaging/openwrt/root/etc/config/subnetd"), 0o644)
	return opkg{m, "/usr/lib/opkg/info/subnetd."}
}

// uciShow turns a file of UCI into what `uci show` prints of it.
func uciShow(t *testing.T, file string) string {
	t.Helper()
	src, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	section := ""
	for line := range strings.Lines(string(src)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0 || strings.HasPrefix(f[0], "#"):
		case f[0] == "config" && len(f) == 3:
			section = "subnetd." + strings.Trim(f[2], "'")
			fmt.Fprintf(&b, "%s=%s\n", section, f[1])
		case (f[0] == "option" || f[0] == "list") && len(f) == 3:
			fmt.Fprintf(&b, "%s.%s=%s\n", section, f[1], f[2])
		default:
			t.Fatalf("%s: %q", file, line)
		}
	}
	return b.String()
}

// unpack puts the package's files in their places; configuration that its owner has
// changed stays.
func (o opkg) unpack(file string) {
	o.t.Helper()
	dir := unpackIPK(o.t, file)
	about, data := o.t.TempDir(), filepath.Join(dir, "data.tar.gz")
	tool(o.t, "tar", "-xzf", filepath.Join(dir, "control.tar.gz"), "-C", about)
	for _, name := range names(o.t, about) {
		o.copy(filepath.Join(about, name), o.info+name)
	}
	args := []string{"-xzf", data, "-C", o.root}
	for conf := range strings.FieldsSeq(o.read(o.info + "conffiles")) {
		if o.read(conf) != "" {
			args = append(args, "--exclude=."+conf)
		}
	}
	tool(o.t, "tar", args...)
	o.write(o.info+"list", strings.ReplaceAll(regexp.MustCompile(`(?m)^.*/\n`).ReplaceAllString(tool(o.t, "tar", "-tzf", data), ""), "./", "/"), 0o644)
}

func (o opkg) install(file string, upgrade bool) string {
	o.t.Helper()
	if upgrade {
		o.run([]string{"PKG_UPGRADE=1"}, o.info+"prerm", "upgrade", "1.3.0")
	}
	o.unpack(file)
	return o.run([]string{"PKG_UPGRADE=" + map[bool]string{true: "1", false: "0"}[upgrade]}, o.info+"postinst", "configure")
}

// remove runs the scripts and deletes the package's files but for configuration that its
// owner has changed, and folders that are empty.
func (o opkg) remove() string {
	o.t.Helper()
	said := o.run([]string{"PKG_UPGRADE=0"}, o.info+"prerm", "remove")
	all := strings.Fields(o.read(o.info + "list"))
	for _, f := range all {
		if f == uciPath && o.read(f) != packaged(o.t, f) {
			continue
		}
		if err := os.Remove(o.at(f)); err != nil && !os.IsNotExist(err) {
			o.t.Fatal(err)
		}
		for dir := filepath.Dir(f); os.Remove(o.at(dir)) == nil; dir = filepath.Dir(dir) {
		}
	}
	if err := os.RemoveAll(o.at("/usr/lib/opkg")); err != nil {
		o.t.Fatal(err)
	}
	return said
}

// packaged is a file of the package for OpenWrt.
func packaged(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(checkout + "/packaging/openwrt/root" + path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// ourFirewall is what UCI has of the firewall for a home in which nothing is special.
const ourFirewall = `firewall.subnetd_mesh=zone
firewall.subnetd_mesh.name='mesh'
firewall.subnetd_mesh.input='ACCEPT'
firewall.subnetd_mesh.output='ACCEPT'
firewall.subnetd_mesh.forward='REJECT'
firewall.subnetd_mesh.device='mesh0' 'mesh-+'
firewall.subnetd_from_lan=forwarding
firewall.subnetd_from_lan.src='lan'
firewall.subnetd_from_lan.dest='mesh'
firewall.subnetd_to_lan=forwarding
firewall.subnetd_to_lan.src='mesh'
firewall.subnetd_to_lan.dest='lan'
firewall.subnetd_internet=forwarding
firewall.subnetd_internet.src='mesh'
firewall.subnetd_internet.dest='wan'
firewall.subnetd_udp=rule
firewall.subnetd_udp.name='subnetd-udp'
firewall.subnetd_udp.src='wan'
firewall.subnetd_udp.proto='udp'
firewall.subnetd_udp.target='ACCEPT'
firewall.subnetd_udp.dest_port='31188 3478'
firewall.subnetd_tcp=rule
firewall.subnetd_tcp.name='subnetd-tcp'
firewall.subnetd_tcp.src='wan'
firewall.subnetd_tcp.proto='tcp'
firewall.subnetd_tcp.target='ACCEPT'
firewall.subnetd_tcp.dest_port='8410'
`

// started is what procd is told when the service starts.
const started = `subnetd: instance
subnetd: command /usr/sbin/subnetd run --config /etc/config/subnetd --state /etc/subnetd/state --log-level info
subnetd: file /usr/sbin/subnetd
subnetd: respawn 3600 5 0
subnetd: limits core=0 nofile=16384 16384
subnetd: no_new_privs 1
subnetd: stderr 1
subnetd: end
subnetd: reload at a change of subnetd
subnetd debug plan
`

// TestIPKLife is the same as for Debian; the files below /etc/subnetd are the owner's. The
// steps of opkg are done by what is known of them, and by opkg itself where it is.
func TestIPKLife(t *testing.T) {
	notes := []string{"/log", "/log.uci", "/uci/firewall"}
	t.Run("its steps", func(t *testing.T) {
		o := newOpkg(t)
		same := func(s string) string { return s }
		ipkLife(t, o.machine, o, notes, same, same)
	})
	t.Run("itself", func(t *testing.T) {
		o := newOpkg(t)
		// It starts services in any order, and leaves empty folders.
		own := []string{"/usr/lib/opkg", "/var/lock", "/var/opkg-lists", "/tmp"}
		ipkLife(t, o.machine, newOpkgItself(o.machine), append(own, notes...), sortedLines, withoutFolders)
	})
}

// opkgManager is what installs and removes a package of opkg.
type opkgManager interface {
	install(file string, upgrade bool) string
	remove() string // subnetd
}

func sortedLines(s string) string {
	all := strings.Split(s, "\n")
	slices.Sort(all)
	return strings.Join(all, "\n")
}

func withoutFolders(tree string) string {
	return regexp.MustCompile(`(?m)^d.*\n`).ReplaceAllString(tree, "")
}

func ipkLife(t *testing.T, o machine, opkg opkgManager, notes []string, order, kept func(string) string) {
	standIn, err := os.ReadFile("testdata/subnetd")
	if err != nil {
		t.Fatal(err)
	}
	first := filepath.Join(built(t), "subnetd_"+version+"_x86_64.ipk")
	next := filepath.Join(builtOf(t, append(standIn, "# newer\n"...), "v1.3.0"), "subnetd_1.3.0_x86_64.ipk")
	theirs := o.read("/uci/firewall")
	before := kept(o.tree(notes...))

	opkg.install(first, false)
	o.want("an installation", order(o.told()), order("commit firewall\nfirewall reload\ncommit firewall\n"+started+
		"commit firewall\nfirewall reload\nsubnetd guard --state /etc/subnetd/state\n"))
	o.want("the firewall", o.read("/uci/firewall"), theirs+ourFirewall)
	if _, err := os.Stat(o.at("/etc/uci-defaults/90-subnetd")); !os.IsNotExist(err) {
		t.Errorf("the defaults would be set again: %v", err)
	}
	for _, link := range []string{"S96subnetd", "K10subnetd", "S19subnetd-guard"} {
		if to, err := os.Readlink(o.at("/etc/rc.d/" + link)); err != nil || to != "../init.d/"+link[3:] {
			t.Errorf("%s -> %s, %v", link, to, err)
		}
	}
	if to, err := os.Readlink(o.at("/run")); err != nil || to != "/var/run" {
		t.Errorf("/run -> %s, %v: the socket would be on flash", to, err)
	}

	const wishes = "config lan 'lan'\n\toption expose 'all'\n"
	o.write(uciPath, wishes, 0o600)
	o.write("/etc/subnetd/state/identity", "keys", 0o600)
	opkg.install(next, true)
	o.want("an upgrade", order(o.told()), order("subnetd: killed\ncommit firewall\n"+started+"subnetd guard --state /etc/subnetd/state\n")) // no reload, no flash
	o.want("the firewall after an upgrade", o.read("/uci/firewall"), theirs+ourFirewall)
	o.want("wishes after an upgrade", o.read(uciPath), wishes)
	o.want("keys after an upgrade", o.read("/etc/subnetd/state/identity"), "keys")

	if !strings.HasSuffix(o.read(daemonPath), "# newer\n") {
		t.Error("the daemon is the old one")
	}

	said := opkg.remove()
	o.want("a removal", o.told(), started+"subnetd down\nsubnetd: killed\ncommit firewall\nfirewall reload\nsubnetd: killed\n")
	o.want("the firewall after a removal", o.read("/uci/firewall"), theirs)
	if !strings.Contains(said, "stay in /etc/subnetd") {
		t.Errorf("the owner does not read that his keys stay: %q", said)
	}
	o.want("wishes after a removal", o.read(uciPath), wishes)
	o.forget()
	o.want("what is left", kept(o.tree(notes...)), before)
}

// opkgItself is the program, which Debian does not have, in the machine.
type opkgItself struct{ machine }

func newOpkgItself(m machine) opkgItself {
	m.t.Helper()
	program, err := exec.LookPath("opkg")
	if err != nil {
		m.t.Skip("there is no opkg")
	}
	m.copy(program, "/bin/opkg")
	for _, lib := range regexp.MustCompile(`/\S+`).FindAllString(tool(m.t, "ldd", program), -1) {
		m.copy(lib, lib)
	}
	m.write("/etc/opkg.conf", "dest root /\nlists_dir ext /var/opkg-lists\narch all 1\narch x86_64 10\n", 0o644)
	var status strings.Builder
	for _, name := range openwrtDepends() {
		fmt.Fprintf(&status, "Package: %s\nVersion: 1\nStatus: install user installed\nArchitecture: all\n\n", name)
		m.write("/usr/lib/opkg/info/"+name+".list", "", 0o644)
	}
	m.write("/usr/lib/opkg/status", status.String(), 0o644)
	m.write("/var/lock/other", "", 0o644)
	return opkgItself{m}
}

func (o opkgItself) install(file string, _ bool) string {
	o.t.Helper()
	o.copy(file, "/tmp/subnetd.ipk")
	said := o.run(nil, "/bin/opkg", "install", "/tmp/subnetd.ipk")
	o.t.Log(said)
	return said
}

func (o opkgItself) remove() string {
	o.t.Helper()
	said := o.run(nil, "/bin/opkg", "remove", "subnetd")
	o.t.Log(said)
	return said
}

// TestSysupgradeKeeps: what is listed is kept, and nothing else of ours matters.
func TestSysupgradeKeeps(t *testing.T) {
	o := newOpkg(t)
	o.unpack(filepath.Join(built(t), "subnetd_"+version+"_x86_64.ipk"))
	kept := strings.Fields(o.read("/lib/upgrade/keep.d/subnetd") + o.read(o.info+"conffiles"))
	for _, file := range []string{uciPath, wishesPath, "/etc/subnetd/state/identity", "/etc/subnetd/policy.hujson"} {
		found := false
		for _, k := range kept {
			found = found || file == k || strings.HasSuffix(k, "/") && strings.HasPrefix(file, k)
		}
		if !found {
			t.Errorf("%s is lost in a sysupgrade", file)
		}
	}
}

// TestFirewallScript: each case begins with a router on which the package was never
// started.
func TestFirewallScript(t *testing.T) {
	fwd := func(name, src, dest string) string {
		return fmt.Sprintf("firewall.%s=forwarding\nfirewall.%s.src='%s'\nfirewall.%s.dest='%s'\n", name, name, src, name, dest)
	}
	for name, tc := range map[string]struct {
		ours  func(string) string // of /etc/config/subnetd
		had   string              // more of /etc/config/firewall
		plan  string              // "": none
		verbs []string
		want  []string // lines of the firewall
		not   []string
		log   string
	}{
		"a mesh of 802.11s": {
			had: "firewall.wifi=zone\nfirewall.wifi.name='mesh'\n", verbs: []string{"zone"},
			want: []string{"firewall.subnetd_mesh.name='subnetd'", "firewall.subnetd_from_lan.dest='subnetd'", "firewall.wifi.name='mesh'"},
			log:  "commit firewall\nfirewall reload\n",
		},
		"two homes, and one of them no more": {
			ours:  func(s string) string { return strings.Replace(s, "lan='lan'", "lan='lan' 'guest-wifi'", 1) },
			had:   fwd("subnetd_from_old", "old", "mesh") + fwd("subnetd_to_old", "mesh", "old"),
			verbs: []string{"zone", "zone"},
			want:  []string{"firewall.subnetd_from_guest_wifi.src='guest-wifi'", "firewall.subnetd_to_guest_wifi.dest='guest-wifi'", "firewall.subnetd_from_lan.src='lan'"},
			not:   []string{"firewall.subnetd_from_old", "firewall.subnetd_to_old"},
			log:   "commit firewall\nfirewall reload\n", // once
		},
		"the owner's own zone": {
			had: "firewall.subnetd_mesh=zone\nfirewall.subnetd_mesh.name='tunnel'\nfirewall.subnetd_mesh.input='REJECT'\n", verbs: []string{"zone"},
			want: []string{"firewall.subnetd_mesh.input='REJECT'", "firewall.subnetd_to_lan.src='tunnel'"},
			not:  []string{"firewall.subnetd_mesh.device"},
			log:  "commit firewall\nfirewall reload\n",
		},
		"not ours to manage": {
			ours: func(s string) string { return strings.Replace(s, "manage='1'", "manage='0'", 1) }, plan: "testdata/openwrt/plan.json",
			verbs: []string{"zone", "open"}, not: []string{"firewall.subnetd"},
		},
		"nobody outside is to come in": { // no home.url: the daemon asks for no TCP
			had:  "firewall.subnetd_tcp=rule\nfirewall.subnetd_tcp.dest_port='8410'\n",
			plan: `{"Host":{"Firewall":{"Openings":{"At":null,"UDP":[40000],"TCP":null,"Translated":false}}}}`, verbs: []string{"open"},
			want: []string{"firewall.subnetd_udp.dest_port='40000'"}, not: []string{"firewall.subnetd_tcp"},
			log: "subnetd debug plan\ncommit firewall\nfirewall reload\n",
		},
		"another uplink": {
			ours: func(s string) string { return strings.Replace(s, "wan='wan'", "wan='lte'", 1) },
			plan: `{"Host":{"Firewall":{"Openings":{"UDP":[40000],"TCP":[8410]}}}}`, verbs: []string{"zone", "open"},
			want: []string{"firewall.subnetd_udp.src='lte'", "firewall.subnetd_tcp.src='lte'", "firewall.subnetd_internet.dest='lte'"},
			log:  "commit firewall\nfirewall reload\nsubnetd debug plan\ncommit firewall\nfirewall reload\n",
		},
		"a daemon that is down": {
			plan: `{"Host":{"Firewall":{"Openings":{"At":null,"UDP":null,"TCP":null,"Translated":false}}}}`, verbs: []string{"open"},
			not: []string{"firewall.subnetd"},
			log: "subnetd debug plan\n" + strings.Repeat("sleep 1\nsubnetd debug plan\n", 9) +
				"logger -t subnetd -p daemon.warn the WAN is not opened: the daemon has named no port in 10 seconds\n",
		},
		"nothing to remove": {verbs: []string{"remove"}, want: []string{"firewall.@zone[0].name='lan'"}},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOpkg(t)
			o.copy(checkout+"/packaging/openwrt/root/usr/libexec/subnetd/firewall", "/usr/libexec/subnetd/firewall")
			o.copy("testdata/subnetd", daemonPath)
			if tc.ours != nil {
				o.write("/uci/subnetd", tc.ours(o.read("/uci/subnetd")), 0o644)
			}
			theirs := o.read("/uci/firewall") + tc.had
			o.write("/uci/firewall", theirs, 0o644)
			if strings.HasPrefix(tc.plan, "{") {
				o.write("/plan.json", tc.plan, 0o644)
			}
			for _, verb := range tc.verbs {
				o.run(nil, "/usr/libexec/subnetd/firewall", verb)
			}
			got := o.read("/uci/firewall")
			for _, line := range tc.want {
				if !strings.Contains(got, line+"\n") {
					t.Errorf("no %s", line)
				}
			}
			for _, start := range tc.not {
				if strings.Contains(got, "\n"+start) {
					t.Errorf("%s is there", start)
				}
			}
			o.want("what was done", o.told(), tc.log)
			o.run(nil, "/usr/libexec/subnetd/firewall", "remove")
			o.told()
			if strings.Contains(o.read("/uci/firewall"), "\nfirewall.subnetd_") {
				t.Errorf("left:\n%s", o.read("/uci/firewall"))
			}
		})
	}
}

// TestServiceOnOpenWrt: what the owner sets of the service, and what a reload does.
func TestServiceOnOpenWrt(t *testing.T) {
	o := newOpkg(t)
	o.unpack(filepath.Join(built(t), "subnetd_"+version+"_x86_64.ipk"))
	ours := o.read("/uci/subnetd")
	const service = "/etc/init.d/subnetd"

	o.write("/uci/subnetd", strings.Replace(ours, "log_level='info'", "log_level='debug'", 1), 0o644)
	o.run(nil, service, "start")
	if log := o.told(); !strings.Contains(log, "run --config /etc/config/subnetd --state /etc/subnetd/state --log-level debug\n") {
		t.Errorf("the log level is not the owner's:\n%s", log)
	}

	o.write("/uci/subnetd", ours, 0o644)
	o.run(nil, service, "reload")
	o.want("a reload", o.told(), "subnetd: signal subnetd * HUP\n"+started)

	o.write(wishesPath, "", 0o600) // whoever has that keeps to it
	o.run(nil, service, "start")
	if log := o.told(); !strings.Contains(log, "run --config "+wishesPath+" --state") {
		t.Errorf("the configuration is not the owner's:\n%s", log)
	}

	o.write("/uci/subnetd", strings.Replace(ours, "enabled='1'", "enabled='0'", 1), 0o644)
	o.run(nil, service, "start")
	if log := o.told(); strings.Contains(log, "instance") {
		t.Errorf("it is started against its owner's will:\n%s", log)
	}
}

// TestLoginOnOpenWrt: the page's door is root's password, and a router without one is
// not open.
func TestLoginOnOpenWrt(t *testing.T) {
	const asked = "ubus -t 5 list session\n"
	const login = "ubus -t 5 call session login \n"
	for name, tc := range map[string]struct {
		shadow, question, log string
		code                  int
	}{
		"right":        {"toor", `{"password":"toor","username":"root"}`, asked + login + login, 0},
		"wrong":        {"toor", `{"password":"root","username":"root"}`, asked + login, 1},
		"another user": {"toor", `{"password":"toor","username":"admin"}`, asked + login, 1},
		"none is set":  {"", `{"password":"toor","username":"root"}`, asked + login + login, 3},
		"no rpcd":      {"no rpcd", `{"password":"no rpcd","username":"root"}`, asked, 2},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOpkg(t)
			o.copy(checkout+"/packaging/openwrt/root/usr/libexec/subnetd/login", "/login")
			o.write("/proc/sys/kernel/random/uuid", "11111111-1111-1111-1111-111111111111\n", 0o644)
			o.write("/shadow", tc.shadow, 0o600)
			if tc.shadow == "no rpcd" {
				o.write("/no-rpcd", "", 0o600)
			}
			o.write("/question", tc.question, 0o600)
			if got := o.run(nil, "/bin/sh", "-c", "/login </question 2>/dev/null; echo $?"); got != fmt.Sprintln(tc.code) {
				t.Errorf("exit code %s", got)
			}
			o.want("what was asked", o.told(), tc.log)
		})
	}
}
