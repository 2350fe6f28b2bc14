package dns

import (
	"os"
	"path/filepath"
	"strings"

	"subnetd/subnetd/host"
)

const (
	resolvConf  = "/etc/resolv.conf"
	ownFile     = "subnetd.conf" // in dnsmasq's directory
	mostText    = 1 << 20        // of a file of the machine that is read
	processName = "dnsmasq"
)

// machine is the files below a root.
type machine struct{ root string }

// choice is where to hook in, and why there.
type choice struct {
	record
	why          string
	trouble, fix string
}

// choose looks what answers for names here. A dnsmasq that was hooked in and is not
// seen at this moment is taken as restarting.
func (m machine) choose(d host.DNS, was record) choice {
	if d.DnsmasqDir == "" && !m.own() {
		return choice{why: "nothing: this program is in a network namespace of its own, and the machine's resolver is in another"}
	}
	var c choice
	var dirs, restart []string
	if m.own() {
		dirs, restart = m.dnsmasq()
	}
	if d.DnsmasqDir != "" {
		dirs = []string{d.DnsmasqDir}
	}
	if len(d.DnsmasqRestart) > 0 {
		restart = d.DnsmasqRestart
	}
	switch {
	case len(dirs) > 0 && len(restart) == 0:
		c.trouble = "dnsmasq runs here, but how to restart it was not found, so it does not know the names of the mesh."
		c.fix = "Set dns.dnsmasq_restart to the command."
	case len(dirs) > 0:
		for _, dir := range dirs {
			c.Files = append(c.Files, filepath.Join(dir, ownFile))
		}
		c.Restart = restart
	case m.haveAll(was.Files):
		c.Files, c.Restart = was.Files, was.Restart
	}
	var why []string
	if len(c.Files) > 0 {
		why = append(why, "dnsmasq, by "+strings.Join(c.Files, ", "))
	}
	if m.own() && d.Link != "" && m.resolved() {
		c.Link = d.Link
		why = append(why, "systemd-resolved, by the link "+d.Link)
	}
	if c.why = strings.Join(why, "; "); c.why == "" && c.trouble == "" {
		m.plain(&c)
	}
	if c.why == "" {
		c.why = "nothing: see the problems"
	}
	return c
}

// plain hooks into resolv.conf if that is nobody's.
func (m machine) plain(c *choice) {
	why := m.taken()
	switch why {
	case "":
		c.Replaced, c.why = true, resolvConf+": nothing else answers here"
	case nobody:
		c.why = "nothing: " + resolvConf + " names no resolver"
	default:
		c.trouble = "The programs of this machine do not know the names of the mesh: " + why + "."
		c.fix = "Have its resolver ask 127.0.0.1, port dns.port, for the mesh's domain, or 100.100.100.100; or set dns.hook = false."
	}
}

const nobody = "it names no resolver"

// taken says whose resolv.conf is; "": nobody's, it is plain text.
func (m machine) taken() string {
	if m.openWrt() {
		return "no dnsmasq was found, and on OpenWrt resolv.conf is not ours to write"
	}
	st, err := os.Lstat(m.path(resolvConf))
	if err != nil || !st.Mode().IsRegular() {
		return resolvConf + " is no plain file"
	}
	text := m.read(resolvConf)
	if strings.HasPrefix(text, header) {
		return ""
	}
	there := false
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		low := strings.ToLower(line)
		switch {
		case len(f) == 0:
		case f[0][0] == '#' || f[0][0] == ';':
			if strings.Contains(low, "generated") || strings.Contains(low, "managed") || strings.Contains(low, "do not edit") {
				return "another program writes " + resolvConf
			}
		case f[0] == "nameserver" && len(f) > 1:
			there = true
			if strings.HasPrefix(f[1], "127.") || f[1] == "::1" {
				return "a resolver that subnetd does not know runs here"
			}
		}
	}
	if !there {
		return nobody
	}
	return ""
}

func (m machine) path(file string) string { return filepath.Join(m.root, file) }

func (m machine) read(file string) string {
	text, err := os.ReadFile(m.path(file))
	if err != nil || len(text) > mostText {
		return ""
	}
	return string(text)
}

func (m machine) have(file string) bool {
	_, err := os.Stat(m.path(file))
	return err == nil
}

// haveAll reports whether there are files, and all of them are there.
func (m machine) haveAll(files []string) bool {
	for _, f := range files {
		if !m.have(f) {
			return false
		}
	}
	return len(files) > 0
}

// own reports whether the machine's services are in our network namespace: what they
// would ask at 127.0.0.1 is not us otherwise.
func (m machine) own() bool {
	ours, err := os.Readlink(m.path("/proc/self/ns/net"))
	if err != nil {
		return false
	}
	theirs, err := os.Readlink(m.path("/proc/1/ns/net"))
	return err == nil && ours == theirs
}

func (m machine) openWrt() bool { return m.have("/etc/openwrt_release") }

// resolved reports whether programs here ask systemd-resolved.
func (m machine) resolved() bool {
	if to, err := os.Readlink(m.path(resolvConf)); err == nil && strings.Contains(to, "/systemd/resolve/") {
		return true
	}
	for line := range strings.Lines(m.read(resolvConf)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" && f[1] == "127.0.0.53" {
			return true
		}
	}
	return false
}

// dnsmasq finds the directories whose files dnsmasq reads when it starts, one for each
// instance, and the command that restarts it.
func (m machine) dnsmasq() (dirs, restart []string) {
	if m.openWrt() {
		confs, _ := filepath.Glob(m.path("/var/etc/dnsmasq.conf*")) // the pattern is good
		for _, conf := range confs {
			rel, _ := filepath.Rel(m.path("/"), conf) // it is below
			if dir := m.confDir([]string{"--conf-file=/" + rel}); dir != "" && !contains(dirs, dir) {
				dirs = append(dirs, dir)
			}
		}
		return dirs, []string{"/etc/init.d/dnsmasq", "restart"}
	}
	entries, _ := os.ReadDir(m.path("/proc")) // without it, no process is found
	for _, e := range entries {
		proc := "/proc/" + e.Name()
		if strings.Trim(e.Name(), "0123456789") != "" {
			continue
		}
		if strings.TrimSpace(m.read(proc+"/comm")) != processName || !m.sameNet(proc) {
			continue
		}
		args := strings.Split(strings.TrimRight(m.read(proc+"/cmdline"), "\x00"), "\x00")
		dir := m.confDir(args[1:])
		if dir == "" || contains(dirs, dir) {
			continue
		}
		dirs = append(dirs, dir)
		if restart == nil {
			restart = m.restart(m.read(proc + "/cgroup"))
		}
	}
	return dirs, restart
}

func (m machine) sameNet(proc string) bool {
	theirs, err := os.Readlink(m.path(proc + "/ns/net"))
	ours, mine := os.Readlink(m.path("/proc/self/ns/net"))
	return err == nil && mine == nil && ours == theirs
}

// restart is how a service is restarted whose process is in a control group.
func (m machine) restart(cgroup string) []string {
	for line := range strings.Lines(cgroup) {
		unit := strings.TrimSpace(line[strings.LastIndexByte(line, '/')+1:])
		if strings.HasPrefix(unit, processName) && strings.HasSuffix(unit, ".service") {
			return []string{"systemctl", "restart", unit}
		}
	}
	if !m.have("/run/systemd/system") && m.have("/etc/init.d/dnsmasq") {
		return []string{"/etc/init.d/dnsmasq", "restart"}
	}
	return nil
}

// confDir is the directory in which a dnsmasq with these arguments reads what is
// called ownFile, a volatile one if there are several; "": none, or it answers nobody.
func (m machine) confDir(args []string) string {
	conf, given := "/etc/dnsmasq.conf", []string(nil)
	for i := 0; i < len(args); i++ {
		name, value, ok := strings.Cut(args[i], "=")
		if !ok && contains([]string{"-C", "-7", "-p", "--conf-file", "--conf-dir", "--port"}, name) && i+1 < len(args) {
			i++
			value = args[i]
		}
		switch name {
		case "-C", "--conf-file":
			conf = value
		case "-7", "--conf-dir":
			given = append(given, value)
		case "-p", "--port":
			if value == "0" {
				return ""
			}
		}
	}
	for line := range strings.Lines(m.read(conf)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch name, value = strings.TrimSpace(name), strings.TrimSpace(value); {
		case name == "conf-dir":
			given = append(given, value)
		case name == "port" && value == "0":
			return ""
		}
	}
	best := ""
	for _, g := range given {
		dir, filters, _ := strings.Cut(g, ",")
		dir = filepath.Clean(dir)
		if !filepath.IsAbs(dir) || !reads(filters) || !m.have(dir) {
			continue
		}
		if best == "" || volatile(dir) && !volatile(best) {
			best = dir
		}
	}
	return best
}

// reads reports whether the filters of a conf-dir let ownFile in: "*.x" are the only
// names that count, others are names that do not.
func reads(filters string) bool {
	only := false
	for f := range strings.SplitSeq(filters, ",") {
		if f == "*" || f == "*.conf" {
			return true
		}
		only = only || strings.HasPrefix(f, "*")
	}
	return !only
}

func volatile(dir string) bool {
	return strings.HasPrefix(dir, "/tmp/") || strings.HasPrefix(dir, "/var/") || strings.HasPrefix(dir, "/run/")
}
