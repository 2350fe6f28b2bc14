package netns_test

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
	"subnetd/testbed/qemu"
)

// ours measures the daemon with an engine.
func (r *routerBench) ours(engine string) {
	r.b.Helper()
	r.peers()
	daemon := func() *netns.Subnetd { // also after a reboot, which takes the file that `up` writes
		d := r.lab.SubnetdIdle(r.home.Router, strings.Replace(daemonConfig, `"userspace"`, strconv.Quote(engine), 1)+
			"[mesh]\nhostname = \"home\"\ncontrol = "+strconv.Quote(r.hs.URL)+"\n")
		d.State = "/data/subnetd"
		return d
	}
	d := daemon()
	cli := func(args ...string) {
		r.b.Helper()
		if out, err := d.CLIContext(r.b.Context(), args...); err != nil {
			r.b.Fatalf("%v\n%s", err, out)
		}
	}
	start := time.Now()
	d.Launch()
	r.whenOpen(d.Socket, d.Binary(), "up", "--control", r.hs.URL, "--auth-key", r.key, "--hostname", "home", "--socket", d.Socket)
	r.note("exec to joined, s", time.Since(start).Seconds())
	r.note("program, MB", megabytes(r.b, filepath.Join(guestPrograms(), "subnetd-"+string(r.table.arch))))
	r.hs.ApproveRoutes("home", r.home.LAN4, r.home.LAN6)
	netns.Eventually(r.b, time.Minute, "the daemon says that its engine is "+engine, func() error {
		s, err := d.StatusJSON()
		if err == nil && s["engine"] != engine {
			err = fmt.Errorf("it is %v, %v", s["engine"], s["engineReason"])
		}
		return err
	})
	if engine == "kernel" {
		r.bared = func(measure func()) { r.bare(d.Pid(), measure) }
	}
	r.ofMesh(d.Pid())
	r.part("as-exit", func() {
		cli("exit", "offer", "on")
		r.offered()
		cli("exit", "offer", "off")
	})
	r.part("by-exit", func() {
		r.offering()
		netns.Eventually(r.b, time.Minute, "the exit is known", func() error {
			out, err := d.CLIContext(r.b.Context(), "exit", "use", "near", "lan")
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			return err
		})
		r.used()
		cli("exit", "off")
	})
	r.part("boot", func() {
		r.reboot()
		d = daemon()
		start := time.Now()
		d.Launch()
		r.joined()
		r.note("boot to joined, s", (r.guest.BootTime() + time.Since(start)).Seconds())
	})
}

// bare measures what is left when the daemon holds still and a masquerade alone stands where its tables were: the same
// WireGuard in the kernel, with the same peer.
func (r *routerBench) bare(daemon int, measure func()) {
	r.b.Helper()
	sh := func(script string) error {
		_, err := r.home.Router.Run(r.b.Context(), "sh", "-ec", script)
		return err
	}
	if err := sh(fmt.Sprintf("kill -STOP %d\nnft -f - <<'END'\ndelete table inet subnetd\ndelete table inet subnetd_port\n%s\nEND", daemon, masquerading("mesh0"))); err != nil {
		r.b.Fatal(err)
	}
	measure()
	if err := sh(fmt.Sprintf("nft delete table inet plain\nkill -CONT %d", daemon)); err != nil {
		r.b.Fatal(err)
	}
	netns.Eventually(r.b, time.Minute, "the daemon's tables are back", func() error {
		return sh("nft list table inet subnetd && nft list table inet subnetd_port")
	})
	r.direct()
	r.settle()
}

// masquerading is the least that leads from a tunnel into the LAN and back.
func masquerading(tunnel string) string {
	return strings.ReplaceAll(`table inet plain {
	chain post {
		type nat hook postrouting priority srcnat; policy accept;
		iifname "TUNNEL" oifname "lan0" masquerade
		iifname "lan0" oifname "TUNNEL" masquerade
	}
}`, "TUNNEL", tunnel)
}

// guestPrograms is where the daemon's programs for guests are.
func guestPrograms() string {
	if dir := os.Getenv("SUBNETD_GUESTS"); dir != "" {
		return dir
	}
	return "../../bin/guests"
}

// stock measures tailscaled.
func (r *routerBench) stock() {
	r.b.Helper()
	r.peers()
	const state, socket = "/data/tailscale", "/run/tailscale.sock"
	program := stockRouter(r.b, r.table.arch)
	launch := func() *netns.Process {
		return r.home.Router.StartEnv([]string{"TS_DEBUG_FIREWALL_MODE=nftables"}, "/usr/bin/tailscaled", "--tun=tailscale0",
			"--statedir="+state, "--state="+state+"/state", "--socket="+socket)
	}
	cli := func(args ...string) []string {
		return append([]string{"env", "TS_BE_CLI=1", "/usr/bin/tailscaled", "--socket=" + socket}, args...)
	}
	start := time.Now()
	p := launch()
	r.whenOpen(socket, cli("up", "--login-server="+r.hs.URL, "--auth-key="+r.key, "--hostname=home",
		"--accept-dns=false", "--accept-routes", "--advertise-routes="+r.home.LAN4.String()+","+r.home.LAN6.String())...)
	r.note("exec to joined, s", time.Since(start).Seconds())
	r.note("program, MB", megabytes(r.b, program))
	r.hs.ApproveRoutes("home", r.home.LAN4, r.home.LAN6)
	r.ofMesh(p.Pid())
	r.part("as-exit", func() {
		r.whenOpen(socket, cli("set", "--advertise-exit-node")...)
		r.offered()
		r.whenOpen(socket, cli("set", "--advertise-exit-node=false")...)
	})
	r.part("by-exit", func() {
		r.offering()
		near, _, err := r.hs.MeshAddrs("near")
		if err != nil {
			r.b.Fatal(err)
		}
		r.home.Router.NFT(masquerading("tailscale0")) // as OpenWrt's zone for it does
		netns.Eventually(r.b, time.Minute, "the exit is known", func() error {
			c := cli("set", "--exit-node="+near.String(), "--exit-node-allow-lan-access")
			_, err := r.home.Router.Run(r.b.Context(), c[0], c[1:]...)
			return err
		})
		r.used()
		r.whenOpen(socket, cli("set", "--exit-node=")...)
	})
	r.part("boot", func() {
		r.reboot()
		start := time.Now()
		launch()
		r.joined()
		r.note("boot to joined, s", (r.guest.BootTime() + time.Since(start)).Seconds())
	})
}

// stockRouter is tailscaled for a guest, which testbed/peers/guests.sh builds if need be.
func stockRouter(b *testing.B, arch qemu.Arch) string {
	b.Helper()
	out, err := exec.CommandContext(b.Context(), "../peers/guests.sh", string(arch)).Output()
	if err != nil {
		b.Fatalf("testbed/peers/guests.sh: %v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// whenOpen runs a command in the router as soon as there is a socket.
func (r *routerBench) whenOpen(socket string, command ...string) {
	r.b.Helper()
	ctx, cancel := context.WithTimeout(r.b.Context(), 3*time.Minute)
	defer cancel()
	out, err := r.home.Router.Run(ctx, "sh", append([]string{"-c", `while [ ! -S "$0" ]; do usleep 50000; done; exec "$@"`, socket}, command...)...)
	if err != nil {
		r.b.Fatalf("%v\n%s", err, out)
	}
}

// plain measures what the kernel's own WireGuard, masquerade and nothing else can do. The peer is WireGuard outside of
// a kernel: this machine's may have none. Their way is IPv6, as it is that of the others' direct paths.
func (r *routerBench) plain() {
	r.b.Helper()
	const port, router, other = 51820, "100.64.200.1", "100.64.200.2"
	ours, theirs := wireguardKey(r.b), wireguardKey(r.b)
	peer := r.lab.Client("wgpeer", netns.Public)
	r.home.Router.WriteFile("/run/wg", base64.StdEncoding.EncodeToString(ours.Bytes()))
	r.home.Router.IP("link add wg0 type wireguard")
	if out, err := r.home.Router.Run(r.b.Context(), "wg", "set", "wg0", "private-key", "/run/wg", "listen-port", strconv.Itoa(port), "peer",
		base64.StdEncoding.EncodeToString(theirs.PublicKey().Bytes()), "allowed-ips", other+"/32", "endpoint", netip.AddrPortFrom(peer.Addr6, port).String()); err != nil {
		r.b.Fatalf("%v\n%s", err, out)
	}
	r.home.Router.IP("addr add "+router+"/32 dev wg0", "link set wg0 mtu 1280 up", "route add "+other+"/32 dev wg0")
	r.home.Router.NFT(masquerading("wg0"))
	tun := fmt.Sprintf("wgb%d", os.Getpid())
	peer.StartEnv([]string{"LOG_LEVEL=error"}, wireguardGo(r.b), "-f", tun)
	tellWireGuard(r.b, "/var/run/wireguard/"+tun+".sock", fmt.Sprintf("set=1\nprivate_key=%x\nlisten_port=%d\npublic_key=%x\nendpoint=%s\nallowed_ip=0.0.0.0/0\n\n",
		theirs.Bytes(), port, ours.PublicKey().Bytes(), netip.AddrPortFrom(r.home.Router.Addr6, port)))
	peer.IP("addr add "+other+"/32 dev "+tun, "link set "+tun+" mtu 1280 up", "route add "+r.home.LAN4.String()+" dev "+tun)
	netns.Eventually(r.b, time.Minute, "the peer reaches the LAN", func() error { return peer.Ping(r.b.Context(), r.home.LAN.Addr4) })
	r.part("idle", func() { r.idle(peer) })
	r.part("direct", func() { r.both(directWay, peer, r.home.LAN) })
}

func wireguardKey(b *testing.B) *ecdh.PrivateKey {
	b.Helper()
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	return k
}

// wireguardGo builds WireGuard's own program of the version that the daemon has.
func wireguardGo(b *testing.B) string {
	b.Helper()
	bin := filepath.Join(b.TempDir(), "wireguard-go")
	cmd := exec.CommandContext(b.Context(), "go", "build", "-o", bin, "golang.zx2c4.com/wireguard")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

// tellWireGuard configures it, as soon as it listens.
func tellWireGuard(b *testing.B, socket, text string) {
	b.Helper()
	netns.Eventually(b, 10*time.Second, "WireGuard answers", func() error {
		c, err := net.Dial("unix", socket)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := io.WriteString(c, text); err != nil {
			return err
		}
		answer := make([]byte, 64)
		n, err := c.Read(answer)
		if err == nil && !strings.HasPrefix(string(answer[:n]), "errno=0\n") {
			err = fmt.Errorf("it answers %q", answer[:n])
		}
		return err
	})
}
