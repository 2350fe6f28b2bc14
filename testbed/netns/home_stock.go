package netns

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// tailscaleOldVersion is a stock client that is more than a year older than tailscaleVersion.
const tailscaleOldVersion = "v1.82.0"

// StockVersions are the versions of stock clients that the testbed has, the newest first.
func StockVersions() []string { return []string{tailscaleVersion, tailscaleOldVersion} }

// StockPeerVersion starts tailscaled of a version on a host, as on a machine of its own: it trusts no authority of the
// lab, and may write its resolv.conf, which [Host.RunPlain] shows. It has no login yet.
func (l *Lab) StockPeerVersion(h *Host, version string) *StockPeer {
	l.t.Helper()
	dir := l.mkdir("ts-" + h.Name)
	plain := func(program string) string {
		script := fmt.Sprintf("#!/bin/sh\nexec %s %s \"$@\"\n", h.plainScript(), peer(l.t, "tailscale", version, program))
		path := filepath.Join(dir, program)
		if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
			l.t.Fatal(err)
		}
		return path
	}
	p := &StockPeer{t: l.t, Host: h, dir: dir, sock: filepath.Join(dir, "s"), cli: plain("tailscale"), bin: plain("tailscaled")}
	p.Start()
	return p
}

// RunPlain is Run as on a machine of its own: with its own /etc, and without SSL_CERT_FILE.
func (h *Host) RunPlain(ctx context.Context, name string, args ...string) (string, error) {
	return h.Run(ctx, h.plainScript(), append([]string{name}, args...)...)
}

// CmdPlain is Cmd as on a machine of its own.
func (h *Host) CmdPlain(ctx context.Context, name string, args ...string) *exec.Cmd {
	return h.Cmd(ctx, h.plainScript(), append([]string{name}, args...)...)
}

// Resolver makes what [Host.RunPlain] runs on a host ask a name server.
func (h *Host) Resolver(at netip.Addr) {
	h.lab.t.Helper()
	h.WriteFile(filepath.Join(filepath.Dir(h.plainScript()), "etc/resolv.conf"), "nameserver "+at.String()+"\n")
}

// plainScript is a program that runs what it is given as on a machine of its own. A stock client that manages DNS
// writes into /etc and asks the machine's D-Bus: each host has a small /etc of its own, no bus, and its own name.
func (h *Host) plainScript() string {
	h.lab.t.Helper()
	dir := filepath.Join(h.lab.dir, "plain-"+h.Name)
	path := filepath.Join(dir, "run")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	h.lab.mkdir("plain-" + h.Name + "/etc")
	mustRun(h.lab.t, "", "sh", "-c", `for f in passwd group nsswitch.conf ssl ld.so.cache protocols services fonts chromium chromium.d; do
		[ ! -e /etc/$f ] || cp -a /etc/$f "$1" || exit 1; done; cp "$2/resolv.conf" "$1"; touch "$1/hosts"; chmod 755 "$1"`,
		"sh", filepath.Join(dir, "etc"), h.lab.dir)
	script := fmt.Sprintf(`#!/bin/sh
set -e
if [ "$1" != named ]; then
	exec unshare --uts "$0" named "$@"
fi
shift
echo %s >/proc/sys/kernel/hostname
unset SSL_CERT_FILE SSL_CERT_DIR
mount --bind %s/etc /etc
mount --bind %s/hosts /etc/hosts
if [ -d /run/dbus ]; then mount -t tmpfs none /run/dbus; fi
exec "$@"
`, h.Name, dir, h.lab.dir)
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		h.lab.t.Fatal(err)
	}
	return path
}

// Trust makes stock clients on a host trust an authority, as one that is installed on the machine. path is a PEM file.
func (h *Host) Trust(path string) {
	h.lab.t.Helper()
	roots := filepath.Join(filepath.Dir(h.plainScript()), "etc/ssl/certs/ca-certificates.crt")
	mustRun(h.lab.t, "", "sh", "-c", `mkdir -p "$(dirname "$2")" && cat "$1" >>"$2"`, "sh", path, roots)
}

// StartCLI starts a tailscale command in the background.
func (p *StockPeer) StartCLI(args ...string) *Process {
	p.t.Helper()
	return p.Host.Start(p.cli, append([]string{"--socket=" + p.sock}, args...)...)
}

// Cmd is a tailscale command, not yet started.
func (p *StockPeer) Cmd(ctx context.Context, args ...string) *exec.Cmd {
	return p.Host.Cmd(ctx, p.cli, append([]string{"--socket=" + p.sock}, args...)...)
}

// UpWith runs `tailscale up` with exactly these arguments and gives what it printed, for at most limit.
func (p *StockPeer) UpWith(limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return p.CLI(ctx, append([]string{"up"}, args...)...)
}

// MakeRun starts `make run` of this checkout on a host, as the leader of a process group, with tmp for its temporary files.
func (l *Lab) MakeRun(h *Host, tmp string) *Process {
	l.t.Helper()
	return h.StartEnv([]string{"TMPDIR=" + tmp}, "setsid", "make", "-C", repoRoot(l.t), "run")
}

// Processes are the command lines of all that runs in the host.
func (h *Host) Processes() []string {
	h.lab.t.Helper()
	var all []string
	for _, pid := range strings.Fields(mustRun(h.lab.t, "", "ip", "netns", "pids", h.ns)) {
		line, _ := os.ReadFile(filepath.Join("/proc", pid, "cmdline")) // it may have ended since
		all = append(all, pid+" "+strings.ReplaceAll(string(line), "\x00", " "))
	}
	return all
}

// UDPBlockedRules is the ruleset of an easy NAT that forwards no UDP, for tests in which a network changes.
func UDPBlockedRules() string { return natRules(UDPBlocked) }

// OnLAN makes a further host on the LAN of a home, with the addresses that end in n, and n in hexadecimal. It is called
// before the daemon starts: the first call makes lan0 a bridge.
func (l *Lab) OnLAN(home *Home, name string, n byte) *Host {
	l.t.Helper()
	r, h := home.Router, l.newHost(name)
	gw4, gw6 := home.LAN4.Addr().Next(), home.LAN6.Addr().Next()
	if _, err := r.Run(context.Background(), "ip", "link", "show", "lanp0"); err != nil {
		r.ip("link set lan0 down", "addr flush dev lan0", "link set lan0 name lanp0", "link add lan0 address 02:00:00:00:00:01 type bridge",
			"link set lanp0 master lan0", "link set lanp0 up", "link set lan0 up",
			fmt.Sprintf("addr add %s/%d dev lan0", gw4, home.LAN4.Bits()), fmt.Sprintf("addr add %s/%d dev lan0 nodad", gw6, home.LAN6.Bits()))
	}
	port := fmt.Sprintf("lanp%d", n)
	l.link(r, port, h, "eth0")
	r.ip("link set " + port + " master lan0")
	b4, b6 := home.LAN4.Addr().As4(), home.LAN6.Addr().As16()
	b4[3], b6[15] = n, n
	h.Addr4, h.Addr6 = netip.AddrFrom4(b4), netip.AddrFrom16(b6)
	h.ip(fmt.Sprintf("addr add %s/%d dev eth0", h.Addr4, home.LAN4.Bits()), fmt.Sprintf("addr add %s/%d dev eth0 nodad", h.Addr6, home.LAN6.Bits()),
		fmt.Sprintf("route add default via %s", gw4), fmt.Sprintf("route add ::/0 via %s", gw6))
	return h
}

// Log is what tailscaled, since its last start, has logged.
func (p *StockPeer) Log() []string { return p.proc.Lines() }
