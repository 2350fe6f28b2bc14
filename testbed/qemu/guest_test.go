package qemu_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"subnetd/testbed/qemu"
)

// ruleset is of the kinds of rules that a router has.
const ruleset = `table inet t {
	flowtable f { hook ingress priority 0; devices = { wan0, wg0 }; }
	map names { type ipv4_addr . inet_service : verdict; flags interval; elements = { 192.0.2.0/24 . 1-9 : accept }; }
	chain forward { type filter hook forward priority filter; policy drop;
		ct state established,related counter accept
		ct state invalid drop
		tcp flags syn tcp option maxseg size set rt mtu
		ip protocol { tcp, udp } flow add @f
		ip saddr . th dport vmap @names
		limit rate 1/second log reject
	}
	chain late { type filter hook input priority 200; udp dport 41641 @th,64,48 0x5453f09f92ac udp dport set 41642; }
	chain early { type filter hook output priority -310; udp sport 41642 udp sport set 41641; }
	chain nat { type nat hook postrouting priority srcnat; oifname "wan0" masquerade; ip saddr 192.0.2.1 snat ip to 192.0.2.2; }
	chain pre { type nat hook prerouting priority dstnat; iifname "wan0" tcp dport 80 redirect to :8080; fib daddr type local mark set 0x80000; }
}
`

// TestGuests: every architecture boots, has a card in a namespace, WireGuard and nftables, and is a machine that can be
// driven. A router has 128 MB.
func TestGuests(t *testing.T) {
	for _, arch := range qemu.Archs() {
		t.Run(string(arch), func(t *testing.T) {
			ns := namespace(t)
			g := qemu.Boot(t, qemu.Options{Arch: arch, MemoryMB: 128, Count: true, DiskMB: 16,
				NICs:  []qemu.NIC{{Name: "wan0", Netns: ns, Tap: "guest0"}, {Name: "lan0", Netns: ns, Tap: "guest1"}, {Name: "dmz0", Netns: ns, Tap: "guest2"}},
				Files: map[string]string{"/opt/ruleset": write(t, ruleset)}})
			ip(t, ns, "addr add 192.0.2.1/24 dev guest0", "addr add 2001:db8::1/64 dev guest0 nodad")
			reaches(t, g)
			if now, err := strconv.ParseInt(strings.TrimSpace(g.Sh("date +%s")), 10, 64); err != nil || time.Since(time.Unix(now, 0)).Abs() > time.Minute {
				t.Errorf("the guest's clock says %v (%v): certificates would not hold", time.Unix(now, 0), err)
			}
			wireguard(t, g)
			drives(t, g)
			outlivesPower(t, g)
		})
	}
}

// reaches: the card leads into the namespace, and stays.
func reaches(t *testing.T, g *qemu.Guest) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	g.IP("addr add 192.0.2.2/24 dev wan0", "addr add 2001:db8::2/64 dev wan0 nodad")
	for _, addr := range []string{"192.0.2.1", "2001:db8::1"} {
		if err := g.Ping(ctx, netip.MustParseAddr(addr)); err != nil {
			t.Error(err)
		}
	}
}

func wireguard(t *testing.T, g *qemu.Guest) {
	t.Helper()
	before := g.Instructions()
	g.IP("link add wg0 type wireguard", "link set wg0 up")
	g.Sh("wg set wg0 listen-port 41641 private-key /dev/stdin <<EOF\n$(wg genkey)\nEOF")
	g.Sh("nft -f /opt/ruleset")
	if out := g.Sh("wg show wg0 listen-port; nft list ruleset"); !strings.HasPrefix(out, "41641\n") || !strings.Contains(out, "masquerade") {
		t.Errorf("the guest has\n%s", out)
	}
	t.Logf("WireGuard and a ruleset: %d million instructions", (g.Instructions()-before)/1e6)
	if n := g.Instructions() - before; n < 1e6 || n > 1e11 {
		t.Errorf("that cannot have been %d instructions", n)
	}
}

// drives: commands, their codes, inputs and signals; files.
func drives(t *testing.T, g *qemu.Guest) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if out, err := g.RunEnv(ctx, []string{"X=a b"}, "sh", "-c", `echo "$X"; hostname; exit 3`); err == nil || !strings.HasPrefix(out, "a b\n") || !strings.Contains(err.Error(), "exit code 3") {
		t.Errorf("printed %q, %v", out, err)
	}
	if _, err := g.Run(ctx, "no-such-program"); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("a program that is not there: %v", err)
	}
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
	g.WriteFile("/tmp/a/b", want, 0o640)
	if got, err := g.ReadFile("/tmp/a/b"); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
	if _, err := g.ReadFile("/tmp/none"); err == nil {
		t.Error("a file that is not there was read")
	}
	p := g.Start("sh", "-c", `trap 'echo bye; exit 4' TERM; echo begun; while :; do sleep 1; done`)
	eventually(t, "the process says something", func() bool { return p.Tail(1) == "begun" })
	if err := p.Stop(20 * time.Second); err == nil || !strings.Contains(err.Error(), "exit code 4") || p.Tail(1) != "bye" {
		t.Errorf("stopped with %v after saying %q", err, p.Lines())
	}
	p = g.Start("sleep", "1000")
	p.Kill()
	if err := p.Err(); err == nil || !strings.Contains(err.Error(), fmt.Sprint(128+int(unix.SIGKILL))) {
		t.Errorf("killed: %v", err)
	}
	short, cancelShort := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancelShort()
	if _, err := g.Run(short, "sleep", "1000"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command over its time: %v", err)
	}
}

// outlivesPower: what was synced to the disk is there after a power cut, and the card; what ran is not.
func outlivesPower(t *testing.T, g *qemu.Guest) {
	t.Helper()
	g.WriteFile("/data/kept", []byte("kept"), 0o600)
	g.Sh("sync; echo lost >/root/lost")
	p := g.Start("sleep", "1000")
	g.Kill()
	if err := p.Err(); err == nil {
		t.Error("a process outlived the power")
	}
	if _, err := g.Run(context.Background(), "true"); err == nil {
		t.Error("a guest without power runs commands")
	}
	g.Reboot()
	if got, err := g.ReadFile("/data/kept"); err != nil || string(got) != "kept" {
		t.Errorf("on the disk: %q, %v", got, err)
	}
	if got, err := g.ReadFile("/root/lost"); err == nil {
		t.Errorf("memory outlived the power: %q", got)
	}
	reaches(t, g)
}

// namespace makes a namespace for the other end of cards; a lab of testbed/netns sweeps what a killed test leaves.
func namespace(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("the testbed makes network namespaces and needs root")
		}
		t.Skip("the testbed makes network namespaces and needs root")
	}
	ns := fmt.Sprintf("subnetd-%d-qemu", os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
	return ns
}

func ip(t *testing.T, ns string, lines ...string) {
	t.Helper()
	cmd := exec.Command("ip", "-n", ns, "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func write(t *testing.T, content string) string {
	t.Helper()
	name := t.TempDir() + "/file"
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); !ok(); <-tick.C {
		if time.Since(begin) > 30*time.Second {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}
