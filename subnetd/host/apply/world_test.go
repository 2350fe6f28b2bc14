package apply

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"subnetd/subnetd/host"
	"subnetd/subnetd/host/firewall"
	"subnetd/subnetd/host/route"
	"subnetd/subnetd/mesh"

	"golang.org/x/sys/unix"
)

// The tests with packets run in a network and a mount namespace of their own, in which
// the test binary runs itself again.
const inside = "SUBNETD_TEST_NETNS"

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(inside) != "" {
		if err := privateNames(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	if testing.Short() || os.Getuid() != 0 && os.Getenv("CI") != "true" {
		os.Exit(m.Run())
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), inside+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := c.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func privateNames() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "size=1m"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	return os.Mkdir("/run/netns", 0o755)
}

// patience bounds waits for what must come; nothing waits for what must not.
const patience = 30 * time.Second

// run executes lines of commands and fails the test if one fails.
func run(t testing.TB, lines ...string) string {
	t.Helper()
	out := ""
	for _, line := range lines {
		args := strings.Fields(line)
		b, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", line, err, b)
		}
		out += string(b)
	}
	return out
}

func load(t testing.TB, ns, rules string) {
	t.Helper()
	args := []string{"nft", "-f", "-"}
	if ns != "" {
		args = append([]string{"ip", "netns", "exec", ns}, args...)
	}
	c := exec.Command(args[0], args[1:]...)
	c.Stdin = strings.NewReader(rules)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
}

// The internet's web host. It tells who asks from which address.
const web4, web6 = "203.0.113.5", "2001:db8:aaaa::5"

// world makes this namespace a home router, with others around it:
//
//	tv, pc, nas   192.168.77.50, .60, .70   -- lan0   192.168.77.1      a bridge
//	cam           192.168.78.50             -- lan0.7 192.168.78.1      a VLAN
//	peer          100.64.0.9                -- mesh0
//	x, y          100.64.0.20, .21          -- mesh-x, mesh-y            exits
//	world         198.51.100.2, web         -- wan0   198.51.100.1, and x .10, y .11
//
// and the same with IPv6: fd77::, fd78::, fd7a::, 2001:db8::.
func world(t testing.TB) {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("needs root")
	}
	spaces := []string{"tv", "pc", "nas", "cam", "peer", "x", "y", "world"}
	clean := func() {
		_ = hands().Set(context.Background(), host.Config{})
		_ = exec.Command("nft", "flush", "ruleset").Run()
		for _, l := range []string{"lan0.7", "lan0", "lan1", "lan2", "lan3", "lan4", "mesh0", "mesh-x", "mesh-y", "wan0"} {
			_ = exec.Command("ip", "link", "del", l).Run()
		}
		for _, ns := range spaces {
			_ = exec.Command("ip", "netns", "del", ns).Run()
		}
	}
	t.Cleanup(clean)
	run(t, "ip link set lo up", "ip link add lan0 type bridge mcast_snooping 0")
	for _, ns := range spaces {
		run(t, "ip netns add "+ns, "ip -n "+ns+" link set lo up")
	}
	cable := func(here, ns, far string) {
		run(t, "ip link add "+here+" type veth peer name "+far+" netns "+ns, "ip link set "+here+" addrgenmode none up", "ip -n "+ns+" link set "+far+" addrgenmode none up")
	}
	for i, ns := range spaces[:3] {
		port := fmt.Sprintf("lan%d", i+1)
		cable(port, ns, "e0")
		run(t, "ip link set "+port+" master lan0")
		run(t, "ip -n "+ns+" link set e0 address "+macs[ns])
	}
	run(t, "ip link set lan0 address 02:00:00:00:00:01 addrgenmode none up")
	cable("lan4", "cam", "e0")
	run(t, "ip -n cam link set e0 address "+macs["cam"])
	if exec.Command("ip", "link", "add", "link", "lan4", "name", "lan0.7", "type", "vlan", "id", "7").Run() == nil {
		run(t, "ip -n cam link add link e0 name e7 type vlan id 7", "ip link set lan0.7 addrgenmode none up", "ip -n cam link set e7 addrgenmode none up")
	} else {
		t.Log("this kernel has no VLANs: a cable instead")
		cable("lan0.7", "cam", "e7")
		run(t, "ip -n cam link set e7 address "+macs["cam"])
	}
	run(t, "ip -n world link add net0 type bridge mcast_snooping 0", "ip -n world link set net0 addrgenmode none up")
	cable("wan0", "world", "n0")
	for i, ns := range []string{"x", "y"} {
		far := fmt.Sprintf("n%d", i+1)
		run(t, "ip -n "+ns+" link add e1 type veth peer name "+far+" netns world", "ip -n "+ns+" link set e1 addrgenmode none up", "ip -n world link set "+far+" addrgenmode none up")
	}
	run(t, "ip -n world link set n0 master net0", "ip -n world link set n1 master net0", "ip -n world link set n2 master net0")
	tunnels := map[string]string{"mesh0": "peer", "mesh-x": "x", "mesh-y": "y"}
	for here, ns := range tunnels { // no neighbour discovery: all goes to the one at the other end
		cable(here, ns, "e0")
		mac := "02:00:00:00:01:" + fmt.Sprintf("%02x", len(here)+int(here[len(here)-1]))
		run(t, "ip link set "+here+" address "+mac+" arp off", "ip -n "+ns+" link set e0 address "+mac+" arp off")
	}
	address := func(ns, dev string, addrs ...string) {
		for _, a := range addrs {
			line := "ip"
			if ns != "" {
				line += " -n " + ns
			}
			line += " address add " + a + " dev " + dev
			if strings.Contains(a, ":") {
				line += " nodad"
			}
			run(t, line)
		}
	}
	// Who asks for a neighbour has an address on the link, and no time for its detection.
	address("", "lan0", "192.168.77.1/24", "fd77::1/64", "fe80::1/64")
	address("", "lan0.7", "192.168.78.1/24", "fd78::1/64", "fe80::1/64")
	address("", "wan0", "198.51.100.1/24", "2001:db8::1/64", "fe80::1/64")
	address("tv", "e0", "192.168.77.50/24", "fd77::50/64", "fe80::50/64")
	address("pc", "e0", "192.168.77.60/24", "fd77::60/64", "fe80::60/64")
	address("nas", "e0", "192.168.77.70/24", "fd77::70/64", "fe80::70/64")
	address("cam", "e7", "192.168.78.50/24", "fd78::50/64", "fe80::50/64")
	address("peer", "e0", "100.64.0.9/32", "fd7a::9/128")
	address("x", "e0", "100.64.0.20/32", "fd7a::20/128")
	address("y", "e0", "100.64.0.21/32", "fd7a::21/128")
	address("x", "e1", "198.51.100.10/24", "2001:db8::10/64", "fe80::10/64")
	address("y", "e1", "198.51.100.11/24", "2001:db8::11/64", "fe80::11/64")
	address("world", "net0", "198.51.100.2/24", "2001:db8::2/64", "fe80::2/64")
	address("world", "lo", web4+"/32", web6+"/128")
	run(t, "ip route add default via 198.51.100.2", "ip route add default via 2001:db8::2")
	for ns, gw := range map[string]string{"tv": "77", "pc": "77", "nas": "77", "cam": "78"} {
		run(t, "ip -n "+ns+" route add default via 192.168."+gw+".1", "ip -n "+ns+" route add default via fd"+gw+"::1")
	}
	run(t, "ip -n peer route add default dev e0", "ip -n peer -6 route add default dev e0")
	for _, ns := range []string{"x", "y"} {
		run(t, "ip -n "+ns+" route add 100.64.0.0/10 dev e0", "ip -n "+ns+" route add fd7a::/48 dev e0", "ip -n "+ns+" route add 192.168.0.0/16 dev e0",
			"ip -n "+ns+" route add fd77::/64 dev e0", "ip -n "+ns+" route add default via 198.51.100.2", "ip -n "+ns+" route add default via 2001:db8::2",
			"ip netns exec "+ns+" sysctl -q net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
		load(t, ns, `table inet x { chain postrouting { type nat hook postrouting priority srcnat; oifname "e1" masquerade; }; }`)
	}
	sysctl(t, "ipv4/ip_forward", "1")
	sysctl(t, "ipv6/conf/all/forwarding", "1")
	for _, all := range []string{"all", "wan0", "mesh0", "mesh-x", "mesh-y"} {
		sysctl(t, "ipv4/conf/"+all+"/rp_filter", "1") // the strictest there is
	}
	// The home's own firewall, as everywhere.
	load(t, "", theirs)
	answer(t, "world", "udp4", web4+":7")
	answer(t, "world", "udp6", "["+web6+"]:7")
	answer(t, "", "udp4", "192.168.77.1:7")
	answer(t, "", "udp6", "[fd77::1]:7")
}

const theirs = `table inet theirs { chain postrouting { type nat hook postrouting priority srcnat; oifname "wan0" masquerade; }; }`

var macs = map[string]string{"tv": "02:00:00:00:00:50", "pc": "02:00:00:00:00:60", "nas": "02:00:00:00:00:70", "cam": "02:00:00:00:00:80"}

func sysctl(t testing.TB, name, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// in does something in a network namespace; "": in the router.
func in[T any](ns string, f func() (T, error)) (T, error) {
	var out T
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		if ns != "" {
			runtime.LockOSThread() // never unlocked: the thread goes with this goroutine
			if err = enter(ns); err != nil {
				return
			}
		}
		out, err = f()
	}()
	<-done
	return out, err
}

func enter(ns string) error {
	f, err := os.Open("/run/netns/" + ns)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
}

// ear is a UDP server that answers with the address that it was asked from.
type ear struct {
	mu   sync.Mutex
	said []string
}

func answer(t testing.TB, ns, network, addr string) *ear {
	t.Helper()
	c, err := in(ns, func() (net.PacketConn, error) { return net.ListenPacket(network, addr) })
	if err != nil {
		t.Fatal(err)
	}
	e := &ear{}
	var done sync.WaitGroup
	done.Go(func() {
		for b := make([]byte, 2048); ; {
			n, from, err := c.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // of an answer to somebody who is gone
				continue
			}
			e.mu.Lock()
			e.said = append(e.said, string(b[:n]))
			e.mu.Unlock()
			_, _ = c.WriteTo([]byte(from.(*net.UDPAddr).AddrPort().Addr().Unmap().WithZone("").String()), from)
		}
	})
	t.Cleanup(func() {
		_ = c.Close()
		done.Wait()
	})
	return e
}

// heard is what it was told besides questions.
func (e *ear) heard() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(e.said), func(s string) bool { return s == "ask" })
}

// flow is a UDP socket in a namespace that asks an address.
type flow struct{ net.Conn }

func dial(t testing.TB, ns, src, dst string, mark int) flow {
	t.Helper()
	c, err := in(ns, func() (net.Conn, error) {
		var d net.Dialer
		if src != "" {
			d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(src)}
		}
		d.Control = func(_, _ string, c syscall.RawConn) (err error) {
			failed := c.Control(func(fd uintptr) {
				if mark != 0 {
					err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark)
				}
				if strings.Contains(dst, "[") { // UDP is not told of an unreachable host unasked
					err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVERR, 1))
				} else {
					err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVERR, 1))
				}
			})
			return errors.Join(failed, err)
		}
		return d.Dial("udp", dst)
	})
	if err != nil {
		t.Fatalf("%s from %q: %v", dst, ns, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return flow{c}
}

// ask is who the other end believes to have asked, by the name that it has in who.
func (f flow) ask(t testing.TB) string {
	t.Helper()
	if _, err := io.WriteString(f, "ask"); err != nil {
		return fault(err)
	}
	_ = f.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 100)
	n, err := f.Read(b)
	if err != nil {
		return fault(err)
	}
	if name, ok := who[string(b[:n])]; ok {
		return name
	}
	return string(b[:n])
}

// send sends without a wait for an answer.
func (f flow) send(text string) { _, _ = io.WriteString(f, text) }

func fault(err error) string {
	for errno, word := range map[unix.Errno]string{unix.EHOSTUNREACH: "unreachable", unix.ENETUNREACH: "unreachable", unix.ECONNREFUSED: "refused", unix.EACCES: "unreachable"} {
		if errors.Is(err, errno) {
			return word
		}
	}
	return err.Error()
}

var who = map[string]string{
	"198.51.100.1": "wan", "198.51.100.10": "x", "198.51.100.11": "y", "100.64.0.1": "mesh",
	"2001:db8::1": "wan", "2001:db8::10": "x", "2001:db8::11": "y", "fd7a::1": "mesh",
}

// webs are the web host's addresses, as are others' below, v4 and v6.
var webs = [2]string{web4 + ":7", "[" + web6 + "]:7"}

// wants asks the web from namespaces, in both families: by which way did it get there?
func wants(t testing.TB, name string, want map[string]string) {
	t.Helper()
	for ns, way := range want {
		for _, dst := range webs {
			if got := dial(t, strings.TrimPrefix(ns, "router"), "", dst, 0).ask(t); got != way {
				t.Errorf("%s: %s to %s: by %q, want %q", name, ns, dst, got, way)
			}
		}
	}
}

// tap hears what leaves by an interface of the router.
type tap struct {
	fd   int
	done sync.WaitGroup
	mu   sync.Mutex
	seen [][]byte
}

func listen(t testing.TB, name string) *tap {
	t.Helper()
	link, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index})
	}
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20_000})
	}
	if err != nil {
		t.Fatal(err)
	}
	p := &tap{fd: fd}
	stop := make(chan struct{})
	p.done.Go(func() {
		for b := make([]byte, 65536); ; {
			n, from, err := unix.Recvfrom(fd, b, 0)
			if ll, ok := from.(*unix.SockaddrLinklayer); err == nil && ok && ll.Pkttype == unix.PACKET_OUTGOING {
				p.mu.Lock()
				p.seen = append(p.seen, slices.Clone(b[:n]))
				p.mu.Unlock()
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	t.Cleanup(func() {
		close(stop)
		p.done.Wait()
		_ = unix.Close(fd)
	})
	return p
}

// heard counts packets with the text.
func (p *tap) heard(text string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, b := range p.seen {
		if strings.Contains(string(b), text) {
			n++
		}
	}
	return n
}

// silent reports nothing of text left, once a word of a witness, sent afterwards, did.
func (p *tap) silent(t testing.TB, name, text string, witness flow) {
	t.Helper()
	word := fmt.Sprintf("witness-%d", time.Now().UnixNano())
	witness.send(word)
	for deadline := time.Now().Add(patience); p.heard(word) == 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%s: the witness was not heard", name)
		}
		time.Sleep(time.Millisecond) // a packet tap has no event that a test could wait for
	}
	if n := p.heard(text); n > 0 {
		t.Errorf("%s: %d packets of %q left by the WAN", name, n, text)
	}
}

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func anyone(dst string) mesh.Dest {
	p := netip.MustParsePrefix(dst)
	last := p.Addr().AsSlice()
	for i := range last {
		for bit := range 8 {
			if 8*i+bit >= p.Bits() {
				last[i] |= 0x80 >> bit
			}
		}
	}
	to, _ := netip.AddrFromSlice(last)
	return mesh.Dest{Range: mesh.Range{From: p.Addr(), To: to}, Ports: mesh.PortRange{Last: 65535}}
}

func from(addrs ...string) []mesh.Range {
	var out []mesh.Range
	for _, a := range addrs {
		out = append(out, mesh.Range{From: netip.MustParseAddr(a), To: netip.MustParseAddr(a)})
	}
	return out
}

// home is the world's router: tv by x, pc as if there were no exits, cam by y, the rest
// of the LAN by x, each blocked without it.
func home() host.Config {
	exits := []host.ExitRoute{
		{Interface: "mesh-x", Routes: prefixes("100.64.0.20/32", "fd7a::20/128")},
		{Interface: "mesh-y", Routes: prefixes("100.64.0.21/32", "fd7a::21/128")},
	}
	own := []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd7a::1")}
	members := prefixes("100.64.0.9/32", "fd7a::9/128", "100.64.0.20/31", "fd7a::20/127")
	source := func(a string, way int) host.RouteSource {
		return host.RouteSource{From: netip.MustParseAddr(a), Way: way}
	}
	return host.Config{
		Tunnel: host.Tunnel{Name: "mesh0"},
		Route: host.Route{
			Interface: "mesh0", Forward: true, Addresses: prefixes("100.64.0.1/32", "fd7a::1/128"), Routes: prefixes("100.64.0.9/32", "fd7a::9/128"), Exits: exits,
			Ways: []host.Way{{Interface: "mesh-x", Block: true}, {Interface: "mesh-y", Block: true}},
			Sources: []host.RouteSource{source("192.168.77.60", -1), source("fd77::60", -1), source("192.168.78.50", 1), source("fd78::50", 1),
				{Interface: "lan0", Way: 0}, {Interface: "lan0.7", Way: 0}},
		},
		Firewall: host.Firewall{
			Interface: "mesh0", Own: own, LANs: []string{"lan0", "lan0.7"}, MasqueradeLAN: true, Mesh: members, Exits: exits,
			Rules: []mesh.Rule{{Srcs: from("100.64.0.9", "100.64.0.20", "fd7a::9", "fd7a::20"), Dsts: []mesh.Dest{anyone("0.0.0.0/0"), anyone("::/0")}}},
			Local: prefixes("192.168.77.0/24", "192.168.78.0/24", "198.51.100.0/24", "fd77::/64", "fd78::/64", "2001:db8::/64"),
			Sources: []host.ExitSource{
				{MACs: []string{macs["tv"]}, Way: 0, Block: true}, {MACs: []string{macs["pc"]}, Way: -1}, {MACs: []string{macs["cam"]}, Way: 1, Block: true},
				{LAN: true, Way: 0, Block: true},
			},
		},
	}
}

// shut is c without exits at hand.
func shut(c host.Config) host.Config {
	c.Route.Ways = slices.Clone(c.Route.Ways)
	for i := range c.Route.Ways {
		c.Route.Ways[i].Interface = ""
	}
	return c
}

type nothing[T any] struct{}

func (nothing[T]) Set(context.Context, T) error { return nil }

// hands are the real ones, but for the tunnels, which the world has, and the resolver.
func hands() *Applier {
	quiet := slog.New(slog.DiscardHandler)
	fw := firewall.New(quiet)
	return New(firewall.Guard{F: fw}, nothing[host.Tunnel]{}, fw, route.New(quiet), nothing[host.DNS]{})
}

func set(t testing.TB, a *Applier, c host.Config) {
	t.Helper()
	if err := a.Set(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	for _, e := range c.Route.Exits {
		for _, p := range c.Route.Addresses {
			if _, err := net.InterfaceByName(e.Interface); err == nil && p.Addr().Is6() {
				receives(t, e.Interface, p.Addr())
			}
		}
	}
}

// receives waits until an interface receives for its new address: IPv6 leaves that to a worker, who may be late.
func receives(t testing.TB, name string, a netip.Addr) {
	t.Helper()
	want := fmt.Sprintf("local %s dev %s ", a, name)
	for deadline := time.Now().Add(patience); !strings.Contains(run(t, "ip -6 route show table local"), want); {
		if time.Now().After(deadline) {
			t.Fatalf("not there: %s", want)
		}
	}
}
