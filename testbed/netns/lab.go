// Package netns is a small internet made of Linux network namespaces, for tests that let subnetd meet strangers:
// a stock Headscale on a public address, a home with a LAN, and stock Tailscale clients behind NATs of every kind.
//
// Nothing leaves the namespaces. Everything a [Lab] makes is named after the test process, dies with the test, and is
// swept by the next lab if the process was killed before it could clean up.
package netns

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// namePrefix begins the name of every namespace that a lab makes; the process id and a serial number follow.
const namePrefix = "subnetd-"

// folderPrefix begins the name of every lab's folder among the temporary files; the process id follows.
const folderPrefix = "snl"

// labSerial tells the labs of one test process apart.
var labSerial atomic.Int64

// Main is for a TestMain: it runs the tests and gives their exit code. If the test process is interrupted, or the go
// command asks it to end, its labs are removed first: Go runs no cleanups then.
func Main(m *testing.M) int {
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-c
		removeNamespaces(func(pid int) bool { return pid == os.Getpid() })
		removeFolders(func(pid int) bool { return pid == os.Getpid() })
		os.Exit(130) // what lives in the namespaces dies with this process
	}()
	return m.Run()
}

// Lab is one internet. It belongs to one test and is not safe for use by several goroutines while hosts are added.
type Lab struct {
	t    *turn
	id   string
	dir  string
	inet *Host
	ca   *authority

	nextPub int      // last byte of the next public address
	nextNet int      // third byte of the next private network
	far     int      // networks of Far
	guests  []*Guest // in the order of their boots
}

// turn is the test whose turn it is: the lab's own, or the subtest that [Lab.Run] runs.
type turn struct {
	testing.TB
	whole testing.TB
}

// lasting is a turn whose cleanups wait for the end of the lab's own test.
type lasting struct{ *turn }

func (l lasting) Cleanup(f func()) { l.whole.Cleanup(f) }
func (l lasting) Failed() bool     { return l.whole.Failed() }

// Run runs f as a subtest of the lab's test. What fails meanwhile fails the subtest. Hosts and servers of the test process
// that f makes are gone after it; processes that it starts on older hosts stay.
func (l *Lab) Run(name string, f func(t *testing.T)) bool {
	l.t.Helper()
	outer, ok := l.t.TB.(*testing.T)
	if !ok {
		l.t.Fatalf("a lab of a %T has no subtests", l.t.TB)
	}
	return outer.Run(name, func(t *testing.T) {
		t.Cleanup(func() { l.t.TB = outer }) // the first to be set is the last to run
		l.t.TB = t
		f(t)
	})
}

// RunBench is Run for a benchmark.
func (l *Lab) RunBench(name string, f func(b *testing.B)) bool {
	l.t.Helper()
	outer, ok := l.t.TB.(*testing.B)
	if !ok {
		l.t.Fatalf("a lab of a %T has no parts of a benchmark", l.t.TB)
	}
	return outer.Run(name, func(b *testing.B) {
		b.Cleanup(func() { l.t.TB = outer }) // the first to be set is the last to run
		l.t.TB = b
		f(b)
	})
}

// New makes an empty internet: one router namespace whose bridge carries 203.0.113.0/24 and 2001:db8::/64.
// Without root the test is skipped for a visitor and failed when CI=true. Everything is removed when t ends.
func New(t testing.TB) *Lab {
	t.Helper()
	needRoot(t)
	sweep()
	// Short: unix socket paths end at 107 bytes.
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", folderPrefix, os.Getpid()))
	if err != nil {
		t.Fatalf("lab folder: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := &Lab{t: &turn{TB: t, whole: t}, dir: dir, nextPub: 20, nextNet: 1}
	l.id = fmt.Sprintf("%s%d-%d-", namePrefix, os.Getpid(), labSerial.Add(1))
	l.writeEtc()
	l.ca = newAuthority(t, filepath.Join(dir, "ca.pem"))
	l.inet = l.newHost("inet")
	l.inet.forward()
	l.inet.ip("link add br0 type bridge", "link set br0 address 02:00:5e:00:53:01", "link set br0 up",
		"addr add 203.0.113.1/24 dev br0", "addr add 2001:db8::1/64 dev br0 nodad")
	return l
}

// Internet is the router in the middle: 203.0.113.1 and 2001:db8::1.
func (l *Lab) Internet() *Host { return l.inet }

// Dir is the lab's own folder; it is removed with the lab.
func (l *Lab) Dir() string { return l.dir }

// CACert is the path of the PEM file of the lab's certificate authority, for SSL_CERT_FILE.
func (l *Lab) CACert() string { return l.ca.path }

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("the testbed makes network namespaces and needs root")
	}
	t.Skip("the testbed makes network namespaces and needs root")
}

// sweep removes what test processes left that no longer exist.
func sweep() {
	gone := func(pid int) bool {
		_, err := os.Stat("/proc/" + strconv.Itoa(pid))
		return os.IsNotExist(err)
	}
	removeNamespaces(gone)
	removeFolders(gone)
}

// removeNamespaces removes the namespaces of the test processes that which picks.
func removeNamespaces(which func(pid int) bool) {
	entries, err := os.ReadDir("/run/netns")
	if err != nil {
		return // no namespace was ever named on this machine
	}
	for _, e := range entries {
		if pid, ok := owner(e.Name(), namePrefix); ok && which(pid) {
			_ = exec.Command("ip", "netns", "del", e.Name()).Run()
		}
	}
}

// removeFolders removes the folders of the test processes that which picks.
func removeFolders(which func(pid int) bool) {
	entries, err := os.ReadDir(os.TempDir())
	if err != nil {
		return
	}
	for _, e := range entries {
		if pid, ok := owner(e.Name(), folderPrefix); ok && which(pid) {
			dir := filepath.Join(os.TempDir(), e.Name())
			disks, _ := filepath.Glob(filepath.Join(dir, "sd-*", "state")) // some are mounted
			for _, d := range disks {
				_ = unix.Unmount(d, unix.MNT_DETACH)
			}
			_ = os.RemoveAll(dir)
		}
	}
}

// owner is the process id in a name of the form PREFIXpid-REST.
func owner(name, prefix string) (pid int, ok bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return 0, false
	}
	digits, _, ok := strings.Cut(rest, "-")
	pid, err := strconv.Atoi(digits)
	return pid, ok && err == nil && pid > 0
}

// writeEtc makes the resolv.conf and hosts that processes of the lab see instead of the machine's.
func (l *Lab) writeEtc() {
	l.write("resolv.conf", "# no resolver in the lab\n")
	l.write("hosts", "127.0.0.1 localhost\n::1 localhost\n203.0.113.10 headscale.test\n2001:db8::10 headscale.test\n")
}

// write puts a file into the lab's folder and gives its path.
func (l *Lab) write(name, content string) string {
	l.t.Helper()
	path := filepath.Join(l.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		l.t.Fatal(err)
	}
	return path
}

// mkdir makes a folder in the lab's folder and gives its path.
func (l *Lab) mkdir(name string) string {
	l.t.Helper()
	path := filepath.Join(l.dir, name)
	if err := os.MkdirAll(path, 0o700); err != nil {
		l.t.Fatal(err)
	}
	return path
}

// newHost makes a namespace with a working loopback.
func (l *Lab) newHost(name string) *Host {
	l.t.Helper()
	h := &Host{lab: l, Name: name, ns: l.id + name}
	mustRun(l.t, "", "ip", "netns", "add", h.ns)
	l.t.Cleanup(func() {
		h.killAll()
		if out, err := exec.Command("ip", "netns", "del", h.ns).CombinedOutput(); err != nil {
			l.t.Errorf("removing namespace %s: %v: %s", h.ns, err, out)
		}
	})
	h.ip("link set lo up")
	h.trustAddresses()
	return h
}

// link joins two hosts by a veth pair; both ends are up.
func (l *Lab) link(a *Host, aIf string, b *Host, bIf string) {
	l.t.Helper()
	from, to := a.socket(aIf), b.socket(bIf)
	from.host.ip(fmt.Sprintf("link add %s type veth peer name %s netns %s", from.ifname, to.ifname, to.host.ns))
	from.plug()
	to.plug()
}

// socket is where a cable ends.
type socket struct {
	host   *Host
	ifname string
	plug   func() // makes the interface work, once the cable is there
}

// socket is where the cable to an interface of the host ends: there itself, if the host is a namespace.
func (h *Host) socket(ifname string) socket {
	if h.guest != nil {
		return h.guest.socket(h, ifname)
	}
	return socket{h, ifname, func() { h.ip("link set " + ifname + " up") }}
}

// public plugs interface ifname of h into the internet with 203.0.113.n and 2001:db8::n.
func (l *Lab) public(h *Host, ifname string, n int) {
	l.t.Helper()
	port := "p" + strconv.Itoa(n)
	l.link(h, ifname, l.inet, port)
	l.inet.ip("link set " + port + " master br0")
	h.Addr4 = netip.AddrFrom4([4]byte{203, 0, 113, byte(n)})
	h.Addr6 = netip.MustParseAddr("2001:db8::" + strconv.Itoa(n))
	h.ip(fmt.Sprintf("addr add %s/24 dev %s", h.Addr4, ifname), fmt.Sprintf("addr add %s/64 dev %s nodad", h.Addr6, ifname),
		"route add default via 203.0.113.1", "route add ::/0 via 2001:db8::1")
}

// freePublic hands out the next unused last byte of a public address.
func (l *Lab) freePublic() int {
	l.nextPub++
	return l.nextPub - 1
}

// Client makes a host of the given name with one interface, wan0, behind a NAT of the given kind.
func (l *Lab) Client(name string, kind NAT) *Host {
	l.t.Helper()
	h := l.newHost(name)
	l.ClientAt(h, kind)
	return h
}

// ClientAt is Client with a host that is there, without any cable. In a guest it takes one of its cards.
func (l *Lab) ClientAt(h *Host, kind NAT) {
	l.t.Helper()
	l.uplink(h, "wan0", kind)
}

// NAT makes the usual client, "phone", behind a NAT of the given kind.
func (l *Lab) NAT(kind NAT) *Host {
	l.t.Helper()
	return l.Client("phone", kind)
}

// HomeSpec describes one home.
type HomeSpec struct {
	Name       string       // namespace of the router; the LAN host is Name+"lan"
	NAT        NAT          // what stands between the router's WAN and the internet
	LAN4, LAN6 netip.Prefix // the router has .1 and ::1, the LAN host .50 and ::50
}

// Home is a router and a thing on its LAN that can run no client.
type Home struct {
	Router *Host // interfaces wan0 and lan0; masquerades the LAN
	LAN    *Host // interface eth0; Addr4 and Addr6 are its LAN addresses
	LAN4   netip.Prefix
	LAN6   netip.Prefix
}

// Home makes the usual home: LAN 192.168.77.0/24 and fd77:77::/64, with one host 192.168.77.50 and fd77:77::50.
func (l *Lab) Home(kind NAT) *Home {
	l.t.Helper()
	return l.NewHome(usualHome(kind))
}

// GuestHome is Home with a guest as the router.
func (l *Lab) GuestHome(g *Guest, kind NAT) *Home {
	l.t.Helper()
	return l.HomeAt(g.Host("home"), usualHome(kind))
}

func usualHome(kind NAT) HomeSpec {
	return HomeSpec{Name: "home", NAT: kind,
		LAN4: netip.MustParsePrefix("192.168.77.0/24"), LAN6: netip.MustParsePrefix("fd77:77::/64")}
}

// NewHome makes a home as described.
func (l *Lab) NewHome(s HomeSpec) *Home {
	l.t.Helper()
	return l.HomeAt(l.newHost(s.Name), s)
}

// HomeAt is NewHome with a router that is there: a host without any cable. In a guest it takes two of its cards.
func (l *Lab) HomeAt(router *Host, s HomeSpec) *Home {
	l.t.Helper()
	home := &Home{Router: router, LAN: l.newHost(s.Name + "lan"), LAN4: s.LAN4, LAN6: s.LAN6}
	r, d := home.Router, home.LAN
	r.forward()
	l.uplink(r, "wan0", s.NAT)
	l.link(r, "lan0", d, "eth0")
	gw4, gw6 := s.LAN4.Addr().Next(), s.LAN6.Addr().Next()
	b4, b6 := s.LAN4.Addr().As4(), s.LAN6.Addr().As16()
	b4[3], b6[15] = 50, 0x50
	d.Addr4, d.Addr6 = netip.AddrFrom4(b4), netip.AddrFrom16(b6)
	r.ip(fmt.Sprintf("addr add %s/%d dev lan0", gw4, s.LAN4.Bits()), fmt.Sprintf("addr add %s/%d dev lan0 nodad", gw6, s.LAN6.Bits()))
	d.ip(fmt.Sprintf("addr add %s/%d dev eth0", d.Addr4, s.LAN4.Bits()), fmt.Sprintf("addr add %s/%d dev eth0 nodad", d.Addr6, s.LAN6.Bits()),
		fmt.Sprintf("route add default via %s", gw4), fmt.Sprintf("route add ::/0 via %s", gw6))
	r.nft(homeRules(s.LAN4, s.LAN6))
	return home
}

// Eventually calls check until it answers nil, at most for limit; it fails the test with the last error.
func Eventually(t testing.TB, limit time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
		<-tick.C
	}
}

// mustRun runs a command of the machine and fails the test with its output.
func mustRun(t testing.TB, stdin, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v: %s%s", name, strings.Join(args, " "), err, out.String(), stdin)
	}
	return out.String()
}
