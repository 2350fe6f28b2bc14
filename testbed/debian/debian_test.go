// Package debian_test is a Debian board's life with the package: in a guest with Debian's kernel and systemd, and in it, behind
// a cable, a neighbour that is a member of its mesh.
//
// The guest's clock counts instructions (qemu.Options.Steady): its seconds are those of a CPU that does 1e9 instructions in
// one, whatever else this machine does.
package debian_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/qemu"
)

const (
	older = "1.0.0" // versions of the package
	newer = "1.1.0"
	// mostActive is how long the service may take from its start until it is of use.
	mostActive = time.Second
)

// board is the guest.
type board struct {
	*qemu.Guest
	t *testing.T
}

func TestDebian(t *testing.T) {
	b := boot(t)
	before := b.files()
	b.install()
	b.reload()
	b.page()
	b.journal()
	b.neighbour()
	b.watchdog()
	b.activation()
	b.upgrade()
	b.remove(before)
}

// boot gives a board that has booted, with the packages of two versions, and a LAN.
func boot(t *testing.T) *board {
	t.Helper()
	if os.Getuid() != 0 {
		lacking(t, "a Debian system is made by root")
	}
	files := map[string]string{"/debian": "boot.sh"}
	for _, version := range []string{older, newer} {
		files["/packages/"+version+".deb"] = pack(t, version)
	}
	b := &board{qemu.Boot(t, qemu.Options{Name: "debian", MemoryMB: 512, Disk: disk(t), Steady: true, Append: "rdinit=/debian", Files: files}), t}
	t.Cleanup(func() {
		if t.Failed() {
			said, _ := b.Run(context.Background(), "journalctl", "-u", "subnetd.service", "-u", "subnetd-web.socket", "-o", "short-monotonic", "--no-pager", "-n", "100")
			t.Logf("the journal of the service:\n%s", said)
		}
	})
	b.Sh("systemctl is-system-running --wait")
	b.Sh(`ip netns add neighbour
ip link add lan0 type veth peer name eth0 netns neighbour
ip address add 192.168.77.1/24 dev lan0
ip link set lan0 up
ip -n neighbour link set lo up
ip -n neighbour address add 192.168.77.2/24 dev eth0
ip -n neighbour link set eth0 up`)
	return b
}

func lacking(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// run runs a program of this machine and gives what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, complaints.Bytes())
	}
	return strings.TrimSpace(string(out))
}

// disk is the image of the Debian system.
func disk(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		lacking(t, "mmdebstrap is not installed: run testbed/provision.sh debian")
	}
	return run(t, "./build.sh")
}

// pack makes the package of a version as `make packages` does, of the daemon in SUBNETD_BIN or bin/subnetd.
func pack(t *testing.T, version string) string {
	t.Helper()
	daemon := os.Getenv("SUBNETD_BIN")
	if daemon == "" {
		daemon = "../../bin/subnetd"
	}
	program, err := os.ReadFile(daemon)
	if err != nil {
		t.Fatalf("the daemon is missing: run make, or set SUBNETD_BIN: %v", err)
	}
	bins, out := t.TempDir(), t.TempDir()
	for _, target := range []string{"mipsle", "mips", "armv5", "armv6", "armv7", "arm64", "riscv64", "amd64"} {
		var body []byte // no package but this one is looked at
		if target == "amd64" {
			body = program
		}
		if err := os.WriteFile(filepath.Join(bins, "subnetd-"+target), body, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "go", "run", "../../packaging/build", "-root", "../..", "-bin", bins, "-out", out, "-version", "v"+version)
	return filepath.Join(out, "subnetd_"+version+"_amd64.deb")
}

// Sh is a shell script in the guest, which may have much to do on a busy machine.
func (b *board) Sh(script string) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 5*time.Minute)
	defer cancel()
	out, err := b.Run(ctx, "sh", "-ec", script)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// property is one that systemd tells of the service.
func (b *board) property(name string) string {
	b.t.Helper()
	return strings.TrimSpace(b.Sh("systemctl show --value -p " + name + " subnetd.service"))
}

func (b *board) want(what, got, want string) {
	b.t.Helper()
	if got != want {
		b.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// took is what systemd measured from the service's start until it was active.
func (b *board) took() time.Duration {
	b.t.Helper()
	var at [2]int64
	for i, name := range []string{"InactiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic"} {
		var err error
		if at[i], err = strconv.ParseInt(b.property(name), 10, 64); err != nil || at[i] == 0 {
			b.t.Fatalf("%s: %d, %v", name, at[i], err)
		}
	}
	return time.Duration(at[1]-at[0]) * time.Microsecond
}

// cursor is where the journal ends now.
func (b *board) cursor() string {
	b.t.Helper()
	_, cursor, ok := strings.Cut(b.Sh("journalctl --sync; journalctl -n 0 --show-cursor"), "-- cursor: ")
	if !ok {
		b.t.Fatal("the journal has no end")
	}
	return strings.TrimSpace(cursor)
}

// await waits until the journal has a line of the service or about it, behind a cursor.
func (b *board) await(cursor, text string) {
	b.t.Helper()
	b.Sh(fmt.Sprintf(`exec timeout 60 bash -c 'grep -q -m1 -F -- "$1" < <(exec journalctl -f -u subnetd.service -o cat --after-cursor="$2")' - '%s' '%s'`, text, cursor))
}

// files is what is on the disk, and what else a package might leave: sockets, interfaces, tables, rules and units.
func (b *board) files() []string {
	b.t.Helper()
	return strings.Split(strings.TrimSpace(b.Sh(`find / -xdev \( -path /root -o -path /packages -o -path /var/log -o -path /tmp -o -path /var/tmp -o -path /var/lib/apt -o -path /var/cache \) -prune -o -print | grep -v -E '^/var/lib/dpkg/([a-z]+-old|lock.*|triggers/Lock)$' | grep -v '/sockets.target.wants$'
find /run -xdev -name '*subnetd*'
ls /sys/class/net | sed 's/^/interface /'
nft list tables
ip rule
ip -6 rule
ip route show table all | grep -v -e lan0 -e ' lo ' || true
systemctl list-unit-files --no-legend --no-pager | sed 's/ .*//; s/^/unit /'`)), "\n")
}

func (b *board) install() {
	b.t.Helper()
	b.Sh("DEBIAN_FRONTEND=noninteractive apt-get -q -y install /packages/" + older + ".deb 2>&1")
	for name, want := range map[string]string{
		"ActiveState": "active", "Type": "notify", "NRestarts": "0", "WatchdogUSec": "1min 30s", "UnitFileState": "enabled",
	} {
		b.want(name, b.property(name), want)
	}
	took := b.took()
	b.t.Logf("active %v after its start, by systemd, at 1e9 instructions a second, of which the daemon itself took %s ns of CPU time",
		took, b.property("CPUUsageNSec"))
	if took > mostActive {
		b.t.Errorf("active after %v, want %v at most", took, mostActive)
	}
	b.Sh("subnetd status")
	b.t.Log("systemctl status: " + b.property("StatusText"))
	b.t.Log(strings.TrimSpace(b.Sh("systemd-analyze security --no-pager subnetd.service | tail -n 1")))
}

// ask prints with what code a URL answers.
const ask = `curl -s -o /dev/null -w '%{http_code}' --max-time 20 `

// page is on its socket, and on the LAN.
func (b *board) page() {
	b.t.Helper()
	b.want("the page, here", b.Sh(ask+"http://127.0.0.1:8411/"), "200")
	b.want("the page, by IPv6", b.Sh(ask+"http://[::1]:8411/"), "200")
	b.want("the page, from the LAN", b.Sh("ip netns exec neighbour "+ask+"http://192.168.77.1:8411/"), "200")
}

// journal: lines of the daemon are messages with fields.
func (b *board) journal() {
	b.t.Helper()
	parts := map[string]bool{}
	dec := json.NewDecoder(strings.NewReader(b.Sh("journalctl --sync; journalctl -u subnetd.service _TRANSPORT=journal SYSLOG_IDENTIFIER=subnetd -o json --no-pager")))
	for {
		var m map[string]any
		if err := dec.Decode(&m); err == io.EOF {
			break
		} else if err != nil {
			b.t.Fatal(err)
		}
		if m["PRIORITY"] == nil || m["MESSAGE"] == nil {
			b.t.Errorf("a message without level or text: %v", m)
		}
		if part, ok := m["SUBNETD_PART"].(string); ok {
			parts[part] = true
		}
	}
	if len(parts) < 2 {
		b.t.Errorf("parts of the daemon, by their fields: %v", parts)
	}
	if out := b.Sh("journalctl -u subnetd.service _TRANSPORT=stdout -o cat --no-pager"); strings.TrimSpace(out) != "" {
		b.t.Errorf("lines without fields:\n%s", out)
	}
}

// neighbour is a member of the mesh in the board, behind the cable, and does not cease to ask it by the mesh.
func (b *board) neighbour() {
	b.t.Helper()
	key := regexp.MustCompile(`--auth-?key[= ](\S+)`).FindStringSubmatch(b.Sh("subnetd invite"))
	if key == nil {
		b.t.Fatal("no key in the invitation")
	}
	b.WriteFile("/root/neighbour.toml", []byte("[dns]\nhook = false\nport = 0\n"), 0o600)
	b.Start("ip", "netns", "exec", "neighbour", "subnetd", "run", "--config", "/root/neighbour.toml", "--state", "/root/neighbour", "--socket", "/root/neighbour.sock")
	const up = "subnetd up --socket /root/neighbour.sock --control http://192.168.77.1:8410 --auth-key "
	b.Sh("until [ -S /root/neighbour.sock ]; do sleep 0.1; done\n" + up + key[1])
	b.Sh("subnetd ping --socket /root/neighbour.sock debian")
	var status struct{ Engine string }
	if err := json.Unmarshal([]byte(b.Sh("subnetd status --json")), &status); err != nil {
		b.t.Fatal(err)
	}
	b.want("what carries packets", status.Engine, "kernel")
}

// kept counts what is lost of pings by the mesh while f runs.
func (b *board) kept(what string, f func()) {
	b.t.Helper()
	to := strings.Fields(b.Sh("ip -4 -o address show dev mesh0"))[3]
	to, _, _ = strings.Cut(to, "/")
	p := b.Start("ip", "netns", "exec", "neighbour", "ping", "-q", "-i", "0.1", to)
	f()
	_ = p.Signal(2)
	_ = p.Err()
	lost := regexp.MustCompile(`(\d+) packets transmitted, (\d+) received`).FindStringSubmatch(p.Tail(5))
	if lost == nil {
		b.t.Fatalf("%s: ping says %s", what, p.Tail(5))
	}
	b.t.Logf("%s: %s", what, lost[0])
	if lost[1] != lost[2] || lost[1] == "0" {
		b.t.Errorf("%s: the tunnel lost packets: %s", what, lost[0])
	}
}

// reload has an end, of which systemd is told: the owner says what his LAN is.
func (b *board) reload() {
	b.t.Helper()
	b.Sh(`sed -i 's/^#interfaces = .*/interfaces = ["lan0"]/' /etc/subnetd/subnetd.toml`)
	at, pid := b.cursor(), b.property("MainPID")
	b.Sh("systemctl reload subnetd.service")
	b.await(at, "configuration read again")
	b.await(at, "Reloaded subnetd.service")
	b.want("after a reload", b.property("ActiveState"), "active")
	b.await(at, "firewall policy applied")
	b.want("who runs", b.property("MainPID"), pid)
}

// watchdog: a daemon that hangs is ended and started anew, and packets go on meanwhile.
func (b *board) watchdog() {
	b.t.Helper()
	b.Sh(`mkdir -p /run/systemd/system/subnetd.service.d
printf '[Service]\nWatchdogSec=5\n' >/run/systemd/system/subnetd.service.d/soon.conf
systemctl daemon-reload
systemctl restart subnetd.service`)
	at, pid := b.cursor(), b.property("MainPID")
	b.kept("hung and restarted", func() {
		b.Sh("kill -STOP " + pid)
		b.await(at, "Watchdog timeout")
		b.await(at, "Started subnetd.service")
	})
	b.want("restarts", b.property("NRestarts"), "1")
	if now := b.property("MainPID"); now == pid {
		b.t.Errorf("the process that hung is still there: %s", now)
	}
	b.page()
	b.Sh(`rm -r /run/systemd/system/subnetd.service.d
systemctl daemon-reload
systemctl restart subnetd.service`)
}

// activation: the page's socket is there without the daemon, which comes when somebody calls.
func (b *board) activation() {
	b.t.Helper()
	b.Sh("systemctl stop subnetd.service")
	b.want("after its stop", b.property("ActiveState"), "inactive")
	b.want("the socket", strings.TrimSpace(b.Sh("systemctl is-active subnetd-web.socket")), "active")
	b.want("the page", b.Sh(ask+"http://127.0.0.1:8411/"), "200")
	if state := b.property("ActiveState"); state == "inactive" {
		b.t.Errorf("who has answered? The service is %s", state)
	}
	b.Sh("systemctl start subnetd.service") // it may have answered before it was of all use
	b.t.Logf("called for by the page's socket, it was active after %v", b.took())
}

// upgrade keeps what is its owner's, and the tunnels.
func (b *board) upgrade() {
	b.t.Helper()
	const digest = "sha256sum /etc/subnetd/subnetd.toml /var/lib/subnetd/identity*; wg show mesh0 public-key; subnetd nodes | awk '{print $1, $2}'"
	was := b.Sh(digest)
	b.kept("upgraded", func() { b.Sh("DEBIAN_FRONTEND=noninteractive apt-get -q -y install /packages/" + newer + ".deb 2>&1") })
	b.want("version", b.Sh("dpkg-query -f '${Version} ${db:Status-Status}' -W subnetd"), newer+" installed")
	b.want("service", b.property("ActiveState"), "active")
	b.want("configuration, keys and members", b.Sh(digest), was)
	b.Sh("subnetd ping --socket /root/neighbour.sock debian")
	b.page()
}

// remove leaves keys and configuration, and a purge not even those.
func (b *board) remove(before []string) {
	b.t.Helper()
	b.Sh("DEBIAN_FRONTEND=noninteractive apt-get -q -y remove subnetd 2>&1")
	for _, left := range b.left(before) {
		if !strings.HasPrefix(left, "/etc/subnetd") && !strings.HasPrefix(left, "/var/lib/subnetd") && !notes.MatchString(left) {
			b.t.Errorf("a removal leaves %s", left)
		}
	}
	b.Sh("test -s /var/lib/subnetd/identity* && test -s /etc/subnetd/subnetd.toml")
	b.Sh("DEBIAN_FRONTEND=noninteractive apt-get -q -y purge subnetd 2>&1")
	for _, left := range b.left(before) {
		b.t.Errorf("a purge leaves %s", left)
	}
}

// notes are what the package manager keeps of a package that may come back: what is started if it does.
var notes = regexp.MustCompile(`^/var/lib/dpkg/info/subnetd\.(list|postrm)$|^(/var/lib/systemd/deb-systemd-helper-enabled|/etc/systemd/system)/([\w-]+\.target\.wants/)?subnetd`)

// left is what was not there before.
func (b *board) left(before []string) []string {
	b.t.Helper()
	return slices.DeleteFunc(b.files(), func(f string) bool { return slices.Contains(before, f) })
}
