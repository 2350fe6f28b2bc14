package netns_test

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
	"subnetd/testbed/qemu"
)

// BenchmarkGuestRouter measures an emulated router with each of what can lead from the mesh into its LAN, one after the
// other in the same guest: plain WireGuard in the kernel, the daemon with either engine, and stock tailscaled as routers
// have it. Peers and the LAN host are outside. How long a segment takes swings with what else the machine does; how many
// instructions of the guest it takes does not.
func BenchmarkGuestRouter(b *testing.B) {
	for _, arch := range []qemu.Arch{qemu.MIPSLE, qemu.ARM64} {
		b.Run(string(arch), func(b *testing.B) {
			for b.Loop() {
				r := newRouterBench(b, arch)
				r.contend("plain", r.plain)
				r.contend("kernel", func() figures { return r.ours("kernel") })
				r.contend("userspace", func() figures { return r.ours("userspace") })
				r.contend("tailscaled", r.stock)
				r.print()
			}
		})
	}
}

const (
	segment     = 1200 // bytes of payload
	segmentMSS  = segment + 12
	routerTurns = 3
	routerTake  = 6 * time.Second // for one transfer, about
)

var routerMeasures = []figureLine{
	{"peer to LAN, Mbit/s", "more is better"},
	{"LAN to peer, Mbit/s", "more is better"},
	{"peer to LAN, k instructions", "less is better"},
	{"LAN to peer, k instructions", "less is better"},
	{"relayed peer to LAN, Mbit/s", "more is better"},
	{"relayed LAN to peer, Mbit/s", "more is better"},
	{"relayed peer to LAN, k instructions", "less is better"},
	{"relayed LAN to peer, k instructions", "less is better"},
	{"idle, M instructions per s", "less is better"},
	{"a ping a second, M instructions per s", "less is better"},
	{"idle RSS, MB", "less is better"},
	{"loaded RSS, MB", "less is better"},
	{"exec to joined, s", "less is better"},
	{"boot to joined, s", "less is better"},
	{"program, MB", "less is better"},
}

// routerRatios are the columns that are divided by others.
var routerRatios = [][2]string{{"kernel", "bare"}, {"kernel", "tailscaled"}, {"userspace", "tailscaled"}}

// routerBench is a guest as a home's router, and who sends through it.
type routerBench struct {
	b         *testing.B
	arch      qemu.Arch
	lab       *netns.Lab
	hs        *netns.Headscale
	guest     *netns.Guest
	home      *netns.Home
	near, far *netns.StockPeer // with a direct path; where UDP does not pass
	key       string
	rules     string // the firewall of the home itself
	names     []string
	columns   map[string]figures
}

func newRouterBench(b *testing.B, arch qemu.Arch) *routerBench {
	b.Helper()
	lab := netns.New(b)
	r := &routerBench{b: b, arch: arch, lab: lab, hs: lab.Headscale(), columns: map[string]figures{}}
	r.guest = lab.Guest(netns.GuestSpec{Arch: arch, DiskMB: 64, Cards: 2, Count: true,
		Files: map[string]string{"/usr/bin/tailscaled": stockRouter(b, arch)}})
	r.home = lab.GuestHome(r.guest, netns.Public)
	out, err := r.home.Router.Output(b.Context(), "nft", "list", "ruleset")
	if err != nil {
		b.Fatal(err)
	}
	r.rules = string(out)
	r.key = r.hs.PreAuthKey("ana", netns.KeyOptions{Reusable: true})
	r.near, r.far = lab.StockPeer(lab.Client("near", netns.Public)), lab.StockPeer(lab.Client("far", netns.UDPBlocked))
	for _, p := range []*netns.StockPeer{r.near, r.far} {
		p.Up(r.hs.URL, r.key, "--accept-routes")
	}
	r.home.LAN.Start("iperf3", "-s")
	// An emulated MIPS loses an interrupt now and then, and sleeps until the next: one comes soon.
	lab.Internet().Start("ping", "-n", "-q", "-i", "0.02", r.home.Router.Addr4.String())
	return r
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

// contend takes one turn, in a guest that has nothing of the one before.
func (r *routerBench) contend(name string, measure func() figures) {
	r.b.Helper()
	r.names = append(r.names, name)
	r.columns[name] = measure()
	for _, m := range routerMeasures {
		if v, ok := r.columns[name][m.name]; ok { // now, should the next one fail
			r.b.Logf("%s: %-37s %10.2f", name, m.name, v)
		}
	}
	r.reboot()
}

// reboot cuts the power, and gives the router its interfaces back.
func (r *routerBench) reboot() {
	r.b.Helper()
	r.guest.Reboot()
	h := r.home.Router
	h.IP("link set lo up",
		"link set card0 down", "link set card0 name wan0", "link set wan0 up",
		"link set card1 down", "link set card1 name lan0", "link set lan0 up",
		fmt.Sprintf("addr add %s/24 dev wan0", h.Addr4), fmt.Sprintf("addr add %s/64 dev wan0 nodad", h.Addr6),
		fmt.Sprintf("addr add %s/24 dev lan0", r.home.LAN4.Addr().Next()), fmt.Sprintf("addr add %s/64 dev lan0 nodad", r.home.LAN6.Addr().Next()),
		"route add default via 203.0.113.1", "route add ::/0 via 2001:db8::1")
	r.guest.Sysctl("net.ipv4.ip_forward", "1")
	r.guest.Sysctl("net.ipv6.conf.all.forwarding", "1")
	h.NFT(r.rules)
}

func (r *routerBench) print() {
	r.b.Helper()
	head := fmt.Sprintf("%-37s", fmt.Sprintf("%s, of %d bytes", r.arch, segment))
	for _, name := range r.names {
		head += fmt.Sprintf(" %10s", name)
	}
	for _, ratio := range routerRatios {
		head += fmt.Sprintf("  %s/%s", ratio[0], ratio[1])
	}
	r.b.Log(head)
	for _, m := range routerMeasures {
		line := fmt.Sprintf("%-37s", m.name)
		for _, name := range r.names {
			line += figureCell(10, r.columns[name][m.name])
		}
		for _, ratio := range routerRatios {
			over, under := r.columns[ratio[0]][m.name], r.columns[ratio[1]][m.name]
			v := 0.0
			if under > 0 {
				v = over / under
			}
			line += " " + figureCell(len(ratio[0])+1+len(ratio[1]), v)
		}
		r.b.Logf("%s  (%s)", line, m.better)
	}
}

// figureCell is a figure, or a dash for what was not measured.
func figureCell(width int, v float64) string {
	if v == 0 {
		return fmt.Sprintf(" %*s", width, "-")
	}
	return fmt.Sprintf(" %*.2f", width, v)
}

// ours measures the daemon with an engine.
func (r *routerBench) ours(engine string) figures {
	r.b.Helper()
	f := figures{}
	daemon := func() *netns.Subnetd { // also after a reboot, which takes the file that `up` writes
		d := r.lab.SubnetdIdle(r.home.Router, strings.Replace(daemonConfig, `"userspace"`, strconv.Quote(engine), 1)+
			"[mesh]\nhostname = \"home\"\ncontrol = "+strconv.Quote(r.hs.URL)+"\n")
		d.State = "/data/subnetd"
		return d
	}
	d := daemon()
	start := time.Now()
	d.Launch()
	r.whenOpen(d.Socket, d.Binary(), "up", "--control", r.hs.URL, "--auth-key", r.key, "--hostname", "home", "--socket", d.Socket)
	f["exec to joined, s"] = time.Since(start).Seconds()
	r.hs.ApproveRoutes("home", r.home.LAN4, r.home.LAN6)
	netns.Eventually(r.b, time.Minute, "the daemon says that its engine is "+engine, func() error {
		s, err := d.StatusJSON()
		if err == nil && s["engine"] != engine {
			err = fmt.Errorf("it is %v, %v", s["engine"], s["engineReason"])
		}
		return err
	})
	f["program, MB"] = megabytes(r.b, filepath.Join(guestPrograms(), "subnetd-"+string(r.arch)))
	if r.load(f, d.Pid()); engine == "kernel" {
		r.bare(d.Pid())
	}
	r.reboot()
	d = daemon()
	start = time.Now()
	d.Launch()
	r.joined()
	f["boot to joined, s"] = (r.guest.BootTime() + time.Since(start)).Seconds()
	r.leave("/data/subnetd")
	return f
}

// bare measures what is left when the daemon holds still and a masquerade alone stands where its tables were: the same
// WireGuard in the kernel, with the same peer. A stock peer leaves a path that has not answered its pings for some seconds,
// so each transfer is a short one of its own.
func (r *routerBench) bare(daemon int) {
	r.b.Helper()
	const size = 4 << 20
	sh := func(script string) error {
		_, err := r.home.Router.Run(r.b.Context(), "sh", "-ec", script)
		return err
	}
	f := figures{}
	for name, args := range map[string][]string{"peer to LAN": nil, "LAN to peer": {"-R"}} {
		var rates, costs []float64
		for range routerTurns {
			r.direct()
			r.transfer(r.near.Host, 1<<20, args...)
			if err := sh(fmt.Sprintf("kill -STOP %d\nnft -f - <<'END'\ndelete table inet subnetd\ndelete table inet subnetd_port\n%s\nEND", daemon, masquerading("mesh0"))); err != nil {
				r.b.Fatal(err)
			}
			rate, cost := r.transfer(r.near.Host, size, args...)
			rates, costs = append(rates, rate), append(costs, cost)
			if err := sh(fmt.Sprintf("nft delete table inet plain\nkill -CONT %d", daemon)); err != nil {
				r.b.Fatal(err)
			}
			netns.Eventually(r.b, time.Minute, "the daemon's tables are back", func() error {
				return sh("nft list table inet subnetd && nft list table inet subnetd_port")
			})
		}
		f[name+", Mbit/s"], f[name+", k instructions"] = middle(rates), middle(costs)
	}
	r.names, r.columns["bare"] = append(r.names, "bare"), f
}

func middle(all []float64) float64 {
	slices.Sort(all)
	return all[len(all)/2]
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
func (r *routerBench) stock() figures {
	r.b.Helper()
	const state, socket = "/data/tailscale", "/run/tailscale.sock"
	f := figures{"program, MB": megabytes(r.b, stockRouter(r.b, r.arch))}
	launch := func() *netns.Process {
		return r.home.Router.StartEnv([]string{"TS_DEBUG_FIREWALL_MODE=nftables"}, "/usr/bin/tailscaled", "--tun=tailscale0",
			"--statedir="+state, "--state="+state+"/state", "--socket="+socket)
	}
	start := time.Now()
	p := launch()
	r.whenOpen(socket, "env", "TS_BE_CLI=1", "/usr/bin/tailscaled", "--socket="+socket, "up", "--login-server="+r.hs.URL, "--auth-key="+r.key, "--hostname=home",
		"--accept-dns=false", "--accept-routes", "--advertise-routes="+r.home.LAN4.String()+","+r.home.LAN6.String())
	f["exec to joined, s"] = time.Since(start).Seconds()
	r.hs.ApproveRoutes("home", r.home.LAN4, r.home.LAN6)
	r.load(f, p.Pid())
	r.reboot()
	start = time.Now()
	launch()
	r.joined()
	f["boot to joined, s"] = (r.guest.BootTime() + time.Since(start)).Seconds()
	r.leave(state)
	return f
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

// joined waits until a peer gets through to the LAN.
func (r *routerBench) joined() {
	r.b.Helper()
	netns.Eventually(r.b, 2*time.Minute, "the peer reaches the LAN", func() error {
		return r.near.Host.Ping(r.b.Context(), r.home.LAN.Addr4)
	})
}

// direct waits until the near peer has a direct path.
func (r *routerBench) direct() {
	r.b.Helper()
	addr, _, err := r.hs.MeshAddrs("home")
	if err != nil {
		r.b.Fatal(err)
	}
	if reach, out := r.near.Ping(r.b.Context(), addr, 30); reach != netns.Direct {
		r.b.Fatalf("the path is %s, not direct:\n%s", reach, out)
	}
}

// leave makes the coordinator and the disk forget the router.
func (r *routerBench) leave(state string) {
	r.b.Helper()
	r.hs.Delete("home")
	if out, err := r.home.Router.Run(r.b.Context(), "sh", "-c", "rm -rf "+state+" && sync"); err != nil {
		r.b.Fatalf("%v\n%s", err, out)
	}
}

// load fills in what every router of the mesh is measured by.
func (r *routerBench) load(f figures, pid int) {
	r.b.Helper()
	r.joined()
	r.direct()
	time.Sleep(time.Minute) // peers keep a path warm for 45 s
	r.idle(f, r.near.Host)
	f["idle RSS, MB"] = r.memory(pid, "VmRSS")
	r.both(f, "", r.near.Host)
	r.both(f, "relayed ", r.far.Host)
	if s, err := r.far.Status(); err == nil {
		if n, err := s.PeerNamed("home"); err != nil || n.CurAddr != "" {
			r.b.Fatalf("the relayed path was %q: %v", n.CurAddr, err)
		}
	}
	f["loaded RSS, MB"] = r.memory(pid, "VmHWM")
}

// idle measures what the guest does when nobody wants anything, and when a peer keeps its path in use. Either has the
// ticks of its clock, and what wakes an emulated MIPS.
func (r *routerBench) idle(f figures, peer *netns.Host) {
	r.b.Helper()
	const quiet = 20 * time.Second
	before := r.guest.Instructions()
	time.Sleep(quiet)
	f["idle, M instructions per s"] = float64(r.guest.Instructions()-before) / 1e6 / quiet.Seconds()
	begin, before := time.Now(), r.guest.Instructions()
	if _, err := peer.Run(r.b.Context(), "ping", "-n", "-q", "-c", "20", "-i", "1", r.home.LAN.Addr4.String()); err != nil {
		r.b.Fatal(err)
	}
	f["a ping a second, M instructions per s"] = float64(r.guest.Instructions()-before) / 1e6 / time.Since(begin).Seconds()
}

func (r *routerBench) memory(pid int, field string) float64 {
	r.b.Helper()
	text, err := r.home.Router.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		r.b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), field+":")
	kB, err := strconv.ParseFloat(strings.Fields(rest + " -")[0], 64)
	if err != nil {
		r.b.Fatalf("process %d has no %s: %v", pid, field, err)
	}
	return kB / 1000
}

// both sends from a peer to the LAN and back.
func (r *routerBench) both(f figures, kind string, peer *netns.Host) {
	r.b.Helper()
	for name, args := range map[string][]string{"peer to LAN": nil, "LAN to peer": {"-R"}} {
		rate, _ := r.transfer(peer, 1<<20, args...) // and what is to be warm is warm
		size := min(max(int(rate*1e6/8*routerTake.Seconds()), 1<<20), 64<<20)
		var rates, costs []float64
		for range routerTurns {
			rate, cost := r.transfer(peer, size, args...)
			rates, costs = append(rates, rate), append(costs, cost)
		}
		f[kind+name+", Mbit/s"], f[kind+name+", k instructions"] = middle(rates), middle(costs)
	}
}

// transfer sends so many bytes in segments of one size by TCP, and gives Mbit/s and the guest's instructions per
// segment, in thousands.
func (r *routerBench) transfer(peer *netns.Host, size int, args ...string) (rate, cost float64) {
	r.b.Helper()
	ctx, cancel := context.WithTimeout(r.b.Context(), 5*time.Minute)
	defer cancel()
	before := r.guest.Instructions()
	out, err := peer.Output(ctx, "iperf3", append([]string{"-J", "-c", r.home.LAN.Addr4.String(), "-M", strconv.Itoa(segmentMSS), "-n", strconv.Itoa(size)}, args...)...)
	spent := float64(r.guest.Instructions() - before)
	var got struct {
		End struct {
			Received struct {
				Bytes float64 `json:"bytes"`
				Bits  float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if err == nil {
		err = json.Unmarshal(out, &got)
	}
	if err == nil && got.End.Received.Bytes == 0 {
		err = errors.New("nothing arrived")
	}
	if err != nil {
		r.b.Fatalf("iperf3 %v: %v\n%s", args, err, out)
	}
	return got.End.Received.Bits / 1e6, spent / (got.End.Received.Bytes / segment) / 1e3
}

// plain measures what the kernel's own WireGuard, masquerade and nothing else can do. The peer is WireGuard outside of
// a kernel: this machine's may have none.
func (r *routerBench) plain() figures {
	r.b.Helper()
	const port, router, other = 51820, "100.64.200.1", "100.64.200.2"
	ours, theirs := wireguardKey(r.b), wireguardKey(r.b)
	peer := r.lab.Client("wgpeer", netns.Public)
	r.home.Router.WriteFile("/run/wg", base64.StdEncoding.EncodeToString(ours.Bytes()))
	r.home.Router.IP("link add wg0 type wireguard")
	if out, err := r.home.Router.Run(r.b.Context(), "wg", "set", "wg0", "private-key", "/run/wg", "listen-port", strconv.Itoa(port), "peer",
		base64.StdEncoding.EncodeToString(theirs.PublicKey().Bytes()), "allowed-ips", other+"/32", "endpoint", netip.AddrPortFrom(peer.Addr4, port).String()); err != nil {
		r.b.Fatalf("%v\n%s", err, out)
	}
	r.home.Router.IP("addr add "+router+"/32 dev wg0", "link set wg0 mtu 1280 up", "route add "+other+"/32 dev wg0")
	r.home.Router.NFT(masquerading("wg0"))
	tun := fmt.Sprintf("wgb%d", os.Getpid())
	peer.StartEnv([]string{"LOG_LEVEL=error"}, wireguardGo(r.b), "-f", tun)
	tellWireGuard(r.b, "/var/run/wireguard/"+tun+".sock", fmt.Sprintf("set=1\nprivate_key=%x\nlisten_port=%d\npublic_key=%x\nendpoint=%s\nallowed_ip=0.0.0.0/0\n\n",
		theirs.Bytes(), port, ours.PublicKey().Bytes(), netip.AddrPortFrom(r.home.Router.Addr4, port)))
	peer.IP("addr add "+other+"/32 dev "+tun, "link set "+tun+" mtu 1280 up", "route add "+r.home.LAN4.String()+" dev "+tun)
	netns.Eventually(r.b, time.Minute, "the peer reaches the LAN", func() error { return peer.Ping(r.b.Context(), r.home.LAN.Addr4) })
	f := figures{}
	r.idle(f, peer)
	r.both(f, "", peer)
	return f
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
