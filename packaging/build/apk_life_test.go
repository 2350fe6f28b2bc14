package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// apkManager is what installs and removes a package of apk.
type apkManager interface {
	add(file string)
	del() // subnetd
}

// TestAPKLife is the same as for the ipk. The steps of apk are done by what is known of
// them, and by apk itself where it is.
func TestAPKLife(t *testing.T) {
	t.Run("its steps", func(t *testing.T) {
		o := newOpkg(t)
		apkLife(t, o.machine, &apkSteps{machine: o.machine}, []string{"/log", "/log.uci", "/uci/firewall"})
	})
	t.Run("itself", func(t *testing.T) {
		o := newOpkg(t)
		own := []string{"/lib/apk/db", "/lib/apk/exec", "/etc/apk", "/var/cache", "/var/log", "/dev", "/proc", "/tmp"}
		apkLife(t, o.machine, newAPKItself(o.machine, realAPK(t)), append(own, "/log", "/log.uci", "/uci/firewall"))
	})
}

func apkLife(t *testing.T, m machine, apk apkManager, notes []string) {
	standIn, err := os.ReadFile("testdata/subnetd")
	if err != nil {
		t.Fatal(err)
	}
	first := filepath.Join(built(t), "subnetd_"+apkVersion+"_x86_64.apk")
	next := filepath.Join(builtOf(t, append(standIn, "# newer\n"...), "v1.3.0"), "subnetd_1.3.0-r0_x86_64.apk")
	theirs := m.read("/uci/firewall")
	before := m.tree(notes...)

	apk.add(first)
	m.want("an installation", m.told(), "commit firewall\nfirewall reload\ncommit firewall\n"+started+
		"commit firewall\nfirewall reload\nsubnetd guard --state /etc/subnetd/state\n")
	m.want("the firewall", m.read("/uci/firewall"), theirs+ourFirewall)
	for path, mode := range map[string]fs.FileMode{daemonPath: 0o755, uciPath: 0o600, "/etc/init.d/subnetd": 0o755} {
		st, err := os.Stat(m.at(path))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != mode {
			t.Errorf("%s is %v", path, st.Mode())
		}
	}

	const wishes = "config lan 'lan'\n\toption expose 'all'\n"
	m.write(uciPath, wishes, 0o600)
	m.write("/etc/subnetd/state/identity", "keys", 0o600)
	apk.add(next)
	m.want("an upgrade", m.told(), "commit firewall\n"+started+"subnetd guard --state /etc/subnetd/state\n") // no reload, nothing is stopped
	m.want("the firewall after an upgrade", m.read("/uci/firewall"), theirs+ourFirewall)
	m.want("wishes after an upgrade", m.read(uciPath), wishes)
	m.want("keys after an upgrade", m.read("/etc/subnetd/state/identity"), "keys")
	if !strings.HasSuffix(m.read(daemonPath), "# newer\n") {
		t.Error("the daemon is the old one")
	}

	apk.del()
	m.want("a removal", m.told(), started+"subnetd down\nsubnetd: killed\ncommit firewall\nfirewall reload\nsubnetd: killed\n")
	m.want("the firewall after a removal", m.read("/uci/firewall"), theirs)
	m.want("keys after a removal", m.read("/etc/subnetd/state/identity"), "keys")
	m.want("wishes after a removal", m.read(uciPath), wishes)
	m.forget()
	m.want("what is left", m.tree(notes...), before)
}

// apkSteps does what apk does, without its database.
type apkSteps struct {
	machine
	has read
}

func (a *apkSteps) add(file string) {
	a.t.Helper()
	p := readAPKFile(a.t, file)
	script := "post-install"
	if a.has.info != nil {
		script = "post-upgrade"
	}
	for _, f := range p.files {
		conf := strings.Contains(p.conffiles(), f.path+"\n") && a.read(f.path) != "" // else it would be FILE.apk-new
		if !f.dir && !conf {
			a.write(f.path, f.body, fs.FileMode(f.mode))
			if err := os.Chmod(a.at(f.path), fs.FileMode(f.mode)); err != nil {
				a.t.Fatal(err)
			}
		}
	}
	a.has = p
	a.script(script)
}

func (r read) conffiles() string {
	for _, f := range r.files {
		if f.path == "/lib/apk/packages/subnetd.conffiles" {
			return f.body
		}
	}
	return ""
}

func (a *apkSteps) script(name string) {
	a.t.Helper()
	a.write("/tmp/script", a.has.scripts[name], 0o755)
	a.run(nil, "/tmp/script")
	if err := os.Remove(a.at("/tmp/script")); err != nil {
		a.t.Fatal(err)
	}
}

func (a *apkSteps) del() {
	a.t.Helper()
	a.script("pre-deinstall")
	for _, f := range a.has.files {
		if f.dir || f.path == uciPath && a.read(f.path) != f.body {
			continue
		}
		if err := os.Remove(a.at(f.path)); err != nil && !os.IsNotExist(err) {
			a.t.Fatal(err)
		}
		for dir := filepath.Dir(f.path); os.Remove(a.at(dir)) == nil; dir = filepath.Dir(dir) {
		}
	}
}

// apkItself is the program.
type apkItself struct {
	machine
	program string
}

// newAPKItself makes its database, with stand-ins for what the package depends on.
func newAPKItself(m machine, program string) apkItself {
	m.t.Helper()
	a := apkItself{m, program}
	dir := m.t.TempDir()
	var files []string
	for _, name := range openwrtDepends() {
		p := pack{version: "1-r0", arch: "x86_64", at: time.Unix(epoch, 0)}
		b, err := p.apk(apkInfo{name: name})
		if err != nil {
			m.t.Fatal(err)
		}
		files = append(files, filepath.Join(dir, name+".apk"))
		if err := os.WriteFile(files[len(files)-1], b, 0o600); err != nil {
			m.t.Fatal(err)
		}
	}
	a.call("add", append([]string{"--initdb"}, files...)...)
	return a
}

func (a apkItself) call(verb string, args ...string) {
	a.t.Helper()
	a.t.Log(tool(a.t, a.program, append([]string{verb, "--root", a.root, "--arch", "x86_64", "--allow-untrusted", "--no-network",
		"--repositories-file", os.DevNull}, args...)...))
}

func (a apkItself) add(file string) { a.t.Helper(); a.call("add", file) }
func (a apkItself) del()            { a.t.Helper(); a.call("del", "subnetd") }
