package netns_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// thing is a device at home as `subnetd devices --json` prints it.
type thing struct {
	MAC       string
	Name      string
	Addresses []netip.Addr
	Interface string
	Online    bool
	Exit      string
	Mesh      *struct {
		Name      string
		Addresses []netip.Addr
		Ports     []string
		Wake, All bool
		Missing   string
	}
}

// things is all of them, and what the mesh may reach.
func things(t *testing.T, d *netns.Subnetd) (all struct {
	Expose  string
	Devices []thing
}) {
	t.Helper()
	askJSON(t, d, &all, "devices")
	return all
}

// thingAt gives the thing with that MAC.
func thingAt(t *testing.T, d *netns.Subnetd, mac string) thing {
	t.Helper()
	for _, x := range things(t, d).Devices {
		if x.MAC == mac {
			return x
		}
	}
	t.Fatalf("%s is not among the things at home", mac)
	return thing{}
}

// askJSON runs a command that prints JSON.
func askJSON(t *testing.T, d *netns.Subnetd, into any, args ...string) {
	t.Helper()
	out, err := d.CLI(append(args, "--json")...)
	if err == nil {
		err = json.Unmarshal([]byte(out), into)
	}
	if err != nil {
		t.Fatalf("subnetd %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// say runs a command and gives what it prints.
func say(t *testing.T, d *netns.Subnetd, args ...string) string {
	t.Helper()
	out, err := d.CLI(args...)
	if err != nil {
		t.Fatalf("subnetd %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// dhcp is dnsmasq as the DHCP server of a home, which gives a MAC an address.
func dhcp(t *testing.T, home *netns.Home, mac string, to netip.Addr) *netns.Process {
	t.Helper()
	return home.Router.Start("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--port=0",
		"--interface=lan0", "--bind-interfaces", "--dhcp-authoritative", "--dhcp-range="+to.String()+",static,1h", "--dhcp-host="+mac+","+to.String(),
		"--dhcp-leasefile="+filepath.Join(home.Router.Lab().Dir(), "leases"))
}

// lease has a device ask for an address as any does.
func lease(t *testing.T, h *netns.Host, script string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if out, err := h.Run(ctx, "busybox", "udhcpc", "-i", "eth0", "-f", "-n", "-q", "-t", "20", "-T", "1", "-s", script); err != nil {
		t.Fatalf("%s gets no lease: %v\n%s", h.Name, err, out)
	}
}

const leaseScript = `#!/bin/sh
[ "$1" = bound ] || exit 0
ip -4 addr flush dev eth0
ip addr add $ip/24 dev eth0
ip route add default via $router
`

// speak has a thing speak IPv6 to its router, as any does.
func speak(t *testing.T, h *netns.Host, home *netns.Home) {
	t.Helper()
	if err := h.Ping(t.Context(), home.LAN6.Addr().Next()); err != nil {
		t.Fatal(err)
	}
}

// within waits until a TCP connection comes about, and gives how long that took since start.
func within(t *testing.T, h *netns.Host, to netip.AddrPort, start time.Time, limit time.Duration) time.Duration {
	t.Helper()
	netns.Eventually(t, limit, fmt.Sprintf("%s reaches %v", h.Name, to), func() error {
		if !answers(t.Context(), h, to) {
			return errors.New("no connection")
		}
		return nil
	})
	return time.Since(start)
}

// echo answers every connection with what it is sent.
func echo(t *testing.T, h *netns.Host, addr string) {
	t.Helper()
	l, err := h.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

// alive sends a word over a connection, and reports whether it comes back in time.
func alive(c net.Conn, limit time.Duration) bool {
	_ = c.SetDeadline(time.Now().Add(limit))
	b := make([]byte, 4)
	if _, err := c.Write([]byte("word")); err != nil {
		return false
	}
	_, err := io.ReadFull(c, b)
	return err == nil
}

// devicesScene is a home whose printer gets its address by DHCP, and a stock phone elsewhere.
type devicesScene struct {
	*homeScene
	phone   *netns.StockPeer
	printer *netns.Host
	mac     string
	script  string
	server  *netns.Process
}

// TestDevices: a thing at home that runs nothing is reached by members of the mesh as one of them, for as long as its
// owner wants it, wherever it is.
func TestDevices(t *testing.T) {
	s := &devicesScene{homeScene: openHome(t, netns.HomeOptions{Expose: "chosen"})}
	s.printer = s.lab.Device(s.home, "printer", 51)
	s.printer.IP("addr flush dev eth0 scope global", "addr add fd77:77::51/64 dev eth0 nodad", "route replace ::/0 via fd77:77::1")
	s.mac = s.printer.MAC("eth0")
	s.script = filepath.Join(s.lab.Dir(), "lease.sh")
	s.printer.WriteFile(s.script, leaseScript)
	if out, err := s.printer.Run(t.Context(), "chmod", "755", s.script); err != nil {
		t.Fatal(out)
	}
	s.server = dhcp(t, s.home, s.mac, netip.MustParseAddr("192.168.77.151"))
	lease(t, s.printer, s.script)
	speak(t, s.printer, s.home)
	s.printer.ServePayload("[::]:80", 9, 10_000)
	echo(t, s.printer, "[::]:7")
	s.phone = s.client("phone", netns.Easy, netns.StockVersions()[0])
	s.letIn(s.phone)
	for _, part := range []struct {
		name string
		do   func(*devicesScene, *testing.T)
	}{
		{"exposed", (*devicesScene).exposed}, {"followed", (*devicesScene).followed}, {"who was it", (*devicesScene).asked}, {"ports", (*devicesScene).ports},
		{"flooded", (*devicesScene).flooded}, {"hidden", (*devicesScene).hidden}, {"policy", (*devicesScene).policy}, {"woken", (*devicesScene).woken}, {"all", (*devicesScene).all},
	} {
		if !s.lab.Run(part.name, func(t *testing.T) { part.do(s, t) }) {
			return
		}
	}
}

// at is the printer's addresses in the mesh.
func (s *devicesScene) at(t *testing.T) (v4, v6 netip.Addr) {
	t.Helper()
	x := thingAt(t, s.mesh.Subnetd, s.mac)
	if x.Mesh == nil || x.Mesh.Missing != "" || len(x.Mesh.Addresses) != 2 {
		t.Fatalf("the printer is not reached: %+v %+v", x, x.Mesh)
	}
	return x.Mesh.Addresses[0], x.Mesh.Addresses[1]
}

// exposed: one line lets the phone open the printer's page by its name, in both families, with nothing set on it. What
// was not chosen is not reached.
func (s *devicesScene) exposed(t *testing.T) {
	netns.Eventually(t, 10*time.Second, "the printer is seen", func() error {
		if x := thingAt(t, s.mesh.Subnetd, s.mac); !x.Online || len(x.Addresses) < 2 || x.Mesh != nil {
			return fmt.Errorf("it is %+v", x)
		}
		return nil
	})
	start := time.Now()
	t.Log(say(t, s.mesh.Subnetd, "devices", "expose", s.mac, "--as", "printer"))
	v4, v6 := s.at(t)
	for _, a := range []netip.Addr{v4, v6} {
		t.Logf("reached at %v %v after it was chosen", a, within(t, s.phone.Host, netip.AddrPortFrom(a, 80), start, 10*time.Second).Round(time.Millisecond))
	}
	wantNames(t, s.phone.Host, "printer.mesh.internal", []netip.Addr{v4, v6})
	wantCurl(t, s.phone.Host, "http://printer.mesh.internal/", 9, 10_000)
	for _, a := range []netip.Addr{s.home.LAN.Addr4, s.home.LAN.Addr6, netip.MustParseAddr("192.168.77.151")} {
		if answers(t.Context(), s.phone.Host, netip.AddrPortFrom(a, 80)) {
			t.Errorf("%v is reached, which nobody chose", a)
		}
	}
	t.Log("\n" + say(t, s.mesh.Subnetd, "devices"))
}

// followed: with another lease, and another IPv6 address, it is where it was.
func (s *devicesScene) followed(t *testing.T) {
	v4, v6 := s.at(t)
	_ = s.server.Stop(5 * time.Second)
	s.server = dhcp(t, s.home, s.mac, netip.MustParseAddr("192.168.77.152"))
	lease(t, s.printer, s.script)
	start := time.Now()
	took := within(t, s.phone.Host, netip.AddrPortFrom(v4, 80), start, 3*time.Second)
	t.Logf("after a new lease it is reached in %v", took.Round(time.Millisecond))
	s.printer.IP("addr del fd77:77::51/64 dev eth0", "addr add fd77:77::251/64 dev eth0 nodad", "route replace ::/0 via fd77:77::1")
	start = time.Now()
	speak(t, s.printer, s.home)
	took = within(t, s.phone.Host, netip.AddrPortFrom(v6, 80), start, 10*time.Second) // the kernel asks at the old one for three
	t.Logf("after a new IPv6 address it is reached in %v", took.Round(time.Millisecond))
	if a, b := s.at(t); a != v4 || b != v6 {
		t.Errorf("in the mesh it is at %v %v, was at %v %v", a, b, v4, v6)
	}
}

// asked: the owner is told who reached it, and whose addresses are.
func (s *devicesScene) asked(t *testing.T) {
	v4, _ := s.at(t)
	var l struct {
		Reached []struct {
			Device, Who, User string
			From, To          netip.Addr
			Flows             int
			Last              time.Time
		}
	}
	flows := func() (n int) {
		askJSON(t, s.mesh.Subnetd, &l, "devices", "log")
		for _, r := range l.Reached {
			if r.Device == "printer.mesh.internal" && strings.HasPrefix(r.Who, "phone.") && r.To == netip.MustParseAddr("192.168.77.152") {
				if time.Since(r.Last).Abs() > time.Minute || r.User == "" {
					t.Errorf("%+v", r)
				}
				n += r.Flows
			}
		}
		return n
	}
	before := flows()
	for range 3 {
		c, err := s.phone.Host.Dial(t.Context(), "tcp", netip.AddrPortFrom(v4, 7).String())
		if err != nil {
			t.Fatal(err)
		}
		if !alive(c, 5*time.Second) {
			t.Error("no echo")
		}
		c.Close()
	}
	if after := flows(); after != before+3 {
		t.Errorf("%d flows were counted, 3 began: %+v", after-before, l)
	}
	var w struct {
		Kind, Name, User, Via string
		Owner                 bool
		Device                *thing
	}
	phone := s.addrs("phone")[0].String()
	if askJSON(t, s.mesh.Subnetd, &w, "whois", phone); w.Kind != "node" || w.Name != "phone.mesh.internal" || w.User != "home" || !w.Owner {
		t.Errorf("the phone: %+v", w)
	}
	for _, of := range []string{v4.String(), "192.168.77.152", "printer", "printer.mesh.internal", s.mac} {
		if askJSON(t, s.mesh.Subnetd, &w, "whois", of); w.Kind != "device" || w.Name != "printer.mesh.internal" || w.Device == nil || w.Device.MAC != s.mac || w.Via != "home.mesh.internal" {
			t.Errorf("%s: %+v", of, w)
		}
	}
	if out, err := s.mesh.CLI("whois", "100.99.99.99"); err == nil {
		t.Errorf("somebody has an address that nobody has: %s", out)
	}
	if out := say(t, s.mesh.Subnetd, "exit", "test", "printer"); !strings.Contains(out, s.mac) {
		t.Errorf("`exit test printer`: %s", out)
	}
}

// ports: what is limited is reached by these ports only, from then on, also over what runs.
func (s *devicesScene) ports(t *testing.T) {
	v4, v6 := s.at(t)
	for _, a := range []netip.Addr{v4, v6} {
		c, err := s.phone.Host.Dial(t.Context(), "tcp", netip.AddrPortFrom(a, 7).String())
		if err != nil || !alive(c, 5*time.Second) {
			t.Fatal("no echo", err)
		}
		defer c.Close()
		say(t, s.mesh.Subnetd, "devices", "expose", "printer", "--ports", "tcp/80,udp/9")
		if alive(c, time.Second) {
			t.Errorf("%v: port 7 goes on", a)
		}
		if answers(t.Context(), s.phone.Host, netip.AddrPortFrom(a, 7)) {
			t.Errorf("%v: port 7 is reached", a)
		}
		if !answers(t.Context(), s.phone.Host, netip.AddrPortFrom(a, 80)) {
			t.Errorf("%v: port 80 is not reached", a)
		}
		if err := s.phone.Host.Ping(t.Context(), a); err == nil {
			t.Errorf("%v answers pings", a)
		}
		say(t, s.mesh.Subnetd, "devices", "expose", "printer")
		within(t, s.phone.Host, netip.AddrPortFrom(a, 7), time.Now(), 3*time.Second)
	}
}

// crowd is what strangers with made-up MACs send: that each has an address of the LAN, and that it wants one of the DHCP
// server and is called like the printer.
func crowd(from, to int) (frames [][]byte) {
	everybody := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	for i := from; i < to; i++ {
		mac := []byte{2, 0xbe, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}
		arp := slices.Concat(everybody, mac, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, mac, []byte{192, 168, 77, byte(160 + i%90)}, make([]byte, 6), []byte{192, 168, 77, 1})
		bootp := slices.Concat([]byte{1, 1, 6, 0, byte(i >> 8), byte(i), 1, 1}, make([]byte, 20), mac, make([]byte, 10+64+128),
			[]byte{99, 130, 83, 99, 53, 1, 1, 12, 7}, []byte("printer"), []byte{255})
		udp := slices.Concat([]byte{0, 68, 0, 67, byte((8 + len(bootp)) >> 8), byte(8 + len(bootp)), 0, 0}, bootp)
		ip := []byte{0x45, 0, byte((20 + len(udp)) >> 8), byte(20 + len(udp)), 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255}
		sum := 0
		for j := 0; j < len(ip); j += 2 {
			sum += int(ip[j])<<8 | int(ip[j+1])
		}
		sum = sum&0xffff + sum>>16
		ip[10], ip[11] = ^byte(sum>>8), ^byte(sum)
		frames = append(frames, arp, slices.Concat(everybody, mac, []byte{8, 0}, ip, udp))
	}
	return frames
}

// flooded: ten thousand strangers on the LAN take no memory to speak of, and nobody's place.
func (s *devicesScene) flooded(t *testing.T) {
	v4, v6 := s.at(t)
	memory, cpu := s.mesh.Memory("VmRSS"), s.mesh.CPUSeconds()
	const strangers = 10_000
	for i := 0; i < strangers; i += 500 {
		if err := s.printer.SendFrames("eth0", crowd(i, i+500)); err != nil {
			t.Fatal(err)
		}
		for _, a := range []netip.Addr{v4, v6} {
			if !answers(t.Context(), s.phone.Host, netip.AddrPortFrom(a, 80)) {
				t.Errorf("%v is not reached after %d strangers", a, i+500)
			}
		}
	}
	all := things(t, s.mesh.Subnetd).Devices
	t.Logf("of %d strangers %d things are listed; %.1f MB more; %.1f s of CPU", strangers, len(all), s.mesh.Memory("VmRSS")-memory, s.mesh.CPUSeconds()-cpu)
	if len(all) > 2000 {
		t.Errorf("%d things are listed", len(all))
	}
	if more := s.mesh.Memory("VmRSS") - memory; more > 16 {
		t.Errorf("%.1f MB more", more)
	}
	if x := thingAt(t, s.mesh.Subnetd, s.mac); x.Name != "printer" || !slices.Contains(x.Addresses, netip.MustParseAddr("192.168.77.152")) {
		t.Errorf("the printer is %+v", x)
	}
	if a, b := s.at(t); a != v4 || b != v6 {
		t.Errorf("in the mesh it is at %v %v", a, b)
	}
}

// hidden: it is refused at once, and what runs is cut; the file keeps its comments.
func (s *devicesScene) hidden(t *testing.T) {
	v4, v6 := s.at(t)
	flows := map[netip.Addr]net.Conn{}
	for _, a := range []netip.Addr{v4, v6} {
		c, err := s.phone.Host.Dial(t.Context(), "tcp", netip.AddrPortFrom(a, 7).String())
		if err != nil || !alive(c, 5*time.Second) {
			t.Fatal("no echo", err)
		}
		defer c.Close()
		flows[a] = c
	}
	file, err := s.home.Router.ReadFile(s.mesh.Config)
	if err != nil {
		t.Fatal(err)
	}
	s.home.Router.WriteFile(s.mesh.Config, "# mine\n"+string(file))
	t.Log(say(t, s.mesh.Subnetd, "devices", "hide", "printer"))
	for a, c := range flows {
		if alive(c, time.Second) {
			t.Errorf("%v: a flow goes on", a)
		}
		if answers(t.Context(), s.phone.Host, netip.AddrPortFrom(a, 80)) {
			t.Errorf("%v is reached", a)
		}
	}
	if x := thingAt(t, s.mesh.Subnetd, s.mac); x.Mesh != nil || x.Name != "printer" {
		t.Errorf("it is %+v", x)
	}
	if file, err := s.home.Router.ReadFile(s.mesh.Config); err != nil || !strings.HasPrefix(string(file), "# mine\n") || strings.Contains(string(file), "devices = [\""+s.mac) {
		t.Errorf("%v\n%s", err, file)
	}
	if a, err := lookup(t.Context(), s.phone.Host, "printer.mesh.internal"); err == nil {
		t.Errorf("its name is still %v", a)
	}
}

// policy: a rule names the device, and nothing else is reached.
func (s *devicesScene) policy(t *testing.T) {
	say(t, s.mesh.Subnetd, "devices", "expose", s.mac)
	v4, v6 := s.at(t)
	o := s.mesh.Options
	o.Policy = `{"grants": [{"src": ["*"], "dst": ["device:printer"], "ip": ["tcp:80"]}]}`
	o.Devices = []string{"printer=" + s.mac}
	s.home.Router.WriteFile(s.mesh.Policy, o.Policy)
	s.mesh.SetOptions(o)
	for _, a := range []netip.Addr{v4, v6} {
		netns.Eventually(t, 10*time.Second, "the policy counts", func() error {
			if answers(t.Context(), s.phone.Host, netip.AddrPortFrom(a, 7)) {
				return errors.New("port 7 is reached")
			}
			return nil
		})
		within(t, s.phone.Host, netip.AddrPortFrom(a, 80), time.Now(), 5*time.Second)
	}
	o.Policy = ""
	s.mesh.SetOptions(o)
	within(t, s.phone.Host, netip.AddrPortFrom(v4, 7), time.Now(), 10*time.Second)
}

// woken: a device that is off is woken by the mesh if its owner wants that, once a minute at most, and by nothing else.
func (s *devicesScene) woken(t *testing.T) {
	v4, _ := s.at(t)
	ear, err := s.home.LAN.ListenPacket("0.0.0.0:9")
	if err != nil {
		t.Fatal(err)
	}
	defer ear.Close()
	packet := func(limit time.Duration) []byte {
		b := make([]byte, 200)
		_ = ear.SetReadDeadline(time.Now().Add(limit))
		n, _, err := ear.ReadFrom(b)
		if err != nil {
			return nil
		}
		return b[:n]
	}
	mac, err := net.ParseMAC(s.mac)
	if err != nil {
		t.Fatal(err)
	}
	want := slices.Concat(slices.Repeat([]byte{0xff}, 6), slices.Repeat([]byte(mac), 16))
	if say(t, s.mesh.Subnetd, "devices", "wake", "printer"); !slices.Equal(packet(2*time.Second), want) {
		t.Error("no magic packet by hand")
	}
	off := func(how string, magic bool) {
		t.Helper()
		s.home.Router.IP("neigh flush dev lan0")
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if c, err := s.phone.Host.Dial(ctx, "tcp", netip.AddrPortFrom(v4, 80).String()); err == nil {
			c.Close()
			t.Error("it is not off")
		}
		if got := packet(max(time.Second, 6*time.Second-time.Since(start))); (got != nil) != magic || magic && !slices.Equal(got, want) {
			t.Errorf("%s: a magic packet %x", how, got)
		}
	}
	s.printer.IP("link set eth0 down")
	defer func() {
		s.printer.IP("link set eth0 up")
		s.printer.IP("addr add fd77:77::251/64 dev eth0 nodad", "route replace ::/0 via fd77:77::1")
		lease(t, s.printer, s.script)
		within(t, s.phone.Host, netip.AddrPortFrom(v4, 80), time.Now(), 10*time.Second)
	}()
	off("nobody asked for it", false)
	say(t, s.mesh.Subnetd, "devices", "expose", "printer", "--wake")
	off("the mesh", true)
	off("the mesh, within a minute", false)
}

// all: to open all of the LAN is a choice, and shown as one.
func (s *devicesScene) all(t *testing.T) {
	lan := s.home.LAN.Addr4
	s.home.LAN.ServePayload("[::]:80", 8, 1000)
	if out := say(t, s.mesh.Subnetd, "devices", "mode", "all"); !strings.HasPrefix(out, "! ") || !strings.Contains(out, "as all of the LAN is") {
		t.Errorf("`devices` says nothing of it:\n%s", out)
	}
	if _, err := s.phone.CLI(t.Context(), "set", "--accept-routes"); err != nil {
		t.Fatal(err)
	}
	within(t, s.phone.Host, netip.AddrPortFrom(lan, 80), time.Now(), 10*time.Second)
	if x := thingAt(t, s.mesh.Subnetd, s.home.LAN.MAC("sw0")); x.Mesh == nil || !x.Mesh.All || x.Mesh.Missing != "" {
		t.Errorf("the LAN host is %+v, %+v", x, x.Mesh)
	}
	if x := thingAt(t, s.mesh.Subnetd, s.mac); x.Mesh == nil || x.Mesh.All {
		t.Errorf("the printer was chosen: %+v", x.Mesh)
	}
	say(t, s.mesh.Subnetd, "devices", "mode", "none")
	for _, a := range []netip.Addr{lan, s.printerMesh(t)} {
		if answers(t.Context(), s.phone.Host, netip.AddrPortFrom(a, 80)) {
			t.Errorf("%v is reached though nothing is", a)
		}
	}
	say(t, s.mesh.Subnetd, "devices", "mode", "chosen")
	at, _ := s.at(t)
	within(t, s.phone.Host, netip.AddrPortFrom(at, 80), time.Now(), 10*time.Second)
}

// printerMesh is where the coordinator has the printer, reached or not.
func (s *devicesScene) printerMesh(t *testing.T) netip.Addr {
	t.Helper()
	v4, _, err := s.mesh.MeshAddrs("printer")
	if err != nil {
		t.Fatal(err)
	}
	return v4
}

// TestDevicesTwoHomes: two homes with the same addresses, one of them the coordinator, each with a thing that is exposed.
// Each home reaches the other's by its name, and so do stock clients that accept no routes; also when both routers begin
// anew while the coordinator is gone.
func TestDevicesTwoHomes(t *testing.T) {
	lab := netns.New(t)
	spec := func(name string, nat netns.NAT) netns.HomeSpec {
		return netns.HomeSpec{Name: name, NAT: nat, LAN4: netip.MustParsePrefix("192.168.1.0/24"), LAN6: netip.MustParsePrefix("fd01:1::/64")}
	}
	s := &homeScene{t: t, lab: lab, home: lab.NewHome(spec("home", netns.Public))}
	s.mesh = lab.HomeMesh(s.home.Router, netns.HomeOptions{URL: "http://home.test", Expose: "chosen"})
	cabin := lab.NewHome(spec("cabin", netns.Easy))
	cabinD := lab.Subnetd(cabin.Router, "[lan]\ninterfaces = [\"lan0\"]\n[tunnel]\nengine = \"userspace\"\n")
	inv := s.mesh.Invite()
	say(t, cabinD, "up", "--control", inv.URL, "--auth-key", inv.Key, "--hostname", "cabin")
	at := map[string][]netip.Addr{}
	for name, x := range map[string]struct {
		home *netns.Home
		d    *netns.Subnetd
	}{"printer": {s.home, s.mesh.Subnetd}, "nas": {cabin, cabinD}} {
		x.home.LAN.ServePayload("[::]:80", name[0], 1000)
		speak(t, x.home.LAN, x.home)
		if err := x.home.LAN.Ping(t.Context(), x.home.LAN4.Addr().Next()); err != nil {
			t.Fatal(err)
		}
		mac := x.home.LAN.MAC("eth0")
		netns.Eventually(t, 10*time.Second, name+" is seen", func() error {
			for _, d := range things(t, x.d).Devices {
				if d.MAC == mac && len(d.Addresses) == 2 {
					return nil
				}
			}
			return errors.New("not yet")
		})
		t.Log(say(t, x.d, "devices", "expose", mac, "--as", name))
		netns.Eventually(t, 10*time.Second, name+" has its addresses", func() error {
			if m := thingAt(t, x.d, mac).Mesh; m == nil || m.Missing != "" || len(m.Addresses) != 2 || m.Name != name+".mesh.internal" {
				return fmt.Errorf("it is %+v", m)
			} else {
				at[name] = m.Addresses
			}
			return nil
		})
	}
	reach := func(what string) {
		t.Helper()
		for _, w := range []struct {
			from *netns.Home
			name string
		}{{s.home, "nas"}, {cabin, "printer"}} {
			for i, record := range []string{"A", "AAAA"} {
				netns.Eventually(t, 20*time.Second, w.from.LAN.Name+" finds "+w.name+what, func() error {
					if got := dig(t, w.from.LAN, gateway(w.from), namesPort, w.name+".mesh.internal", record); got != at[w.name][i].String() {
						return fmt.Errorf("it is %q, want %v", got, at[w.name][i])
					}
					return nil
				})
				within(t, w.from.LAN, netip.AddrPortFrom(at[w.name][i], 80), time.Now(), 20*time.Second)
				wantPayload(t, w.from.LAN, "http://"+netip.AddrPortFrom(at[w.name][i], 80).String()+"/", w.name[0], 1000)
			}
		}
	}
	reach("")
	for _, version := range netns.StockVersions() {
		phone := s.client("phone"+strings.ReplaceAll(version, ".", ""), netns.Easy, version)
		s.letIn(phone)
		for name, addrs := range at {
			wantNames(t, phone.Host, name+".mesh.internal", addrs)
			wantCurl(t, phone.Host, "http://"+name+".mesh.internal/", name[0], 1000)
		}
	}
	s.mesh.Kill()
	cabinD.Kill9()
	cabinD.Start()
	if m := thingAt(t, cabinD, cabin.LAN.MAC("eth0")).Mesh; m == nil || m.Missing != "" || !slices.Equal(m.Addresses, at["nas"]) {
		t.Errorf("without the coordinator nas is at %+v, was at %v", m, at["nas"])
	}
	s.mesh.Start()
	reach(", after both routers began anew")
	for name, addrs := range at {
		if now := s.addrs(name); !slices.Equal(now, addrs) {
			t.Errorf("%s is at %v, was at %v", name, now, addrs)
		}
	}
}

// TestDevicesHeadscale: at another coordinator a device is a route of one address, which its admin approves; it goes where
// the device goes, and of the rest of the LAN nothing is reached.
func TestDevicesHeadscale(t *testing.T) {
	lab := netns.New(t)
	hs, home := lab.Headscale(), lab.Home(netns.Public)
	printer := lab.Device(home, "printer", 51)
	d := lab.Subnetd(home.Router, "[lan]\ninterfaces = [\"lan0\"]\n[tunnel]\nengine = \"userspace\"\n")
	d.UpKey(hs, hs.PreAuthKey("ana", netns.KeyOptions{}), "home")
	phone := lab.StockPeer(lab.NAT(netns.Easy))
	phone.Up(hs.URL, hs.PreAuthKey("ana", netns.KeyOptions{}), "--accept-routes")
	printer.ServePayload("[::]:80", 1, 1000)
	home.LAN.ServePayload("[::]:80", 2, 1000)
	mac := printer.MAC("eth0")
	for i, addr := range []string{"192.168.77.51", "192.168.77.151"} {
		at := netip.MustParseAddr(addr)
		if i > 0 {
			printer.IP("addr flush dev eth0 scope global", "addr add 192.168.77.151/24 dev eth0", "route add default via 192.168.77.1")
		}
		if err := printer.Ping(t.Context(), home.LAN4.Addr().Next()); err != nil { // as any thing speaks to its router
			t.Fatal(err)
		}
		if i == 0 {
			netns.Eventually(t, 10*time.Second, "the printer is seen", func() error {
				for _, x := range things(t, d).Devices {
					if x.MAC == mac {
						return nil
					}
				}
				return errors.New("not yet")
			})
			say(t, d, "devices", "expose", mac, "--as", "printer")
			if m := thingAt(t, d, mac).Mesh; m == nil || !strings.Contains(m.Missing, "has not approved the route to "+addr) {
				t.Errorf("nothing is said of what is missing: %+v", m)
			}
		}
		hs.ApproveRoutes("home", netip.PrefixFrom(at, 32))
		within(t, phone.Host, netip.AddrPortFrom(at, 80), time.Now(), 20*time.Second)
		netns.Eventually(t, 10*time.Second, "it is said to be reached", func() error {
			if m := thingAt(t, d, mac).Mesh; m == nil || m.Missing != "" || !slices.Contains(m.Addresses, at) {
				return fmt.Errorf("it is %+v", m)
			}
			return nil
		})
		if answers(t.Context(), phone.Host, netip.AddrPortFrom(home.LAN.Addr4, 80)) {
			t.Error("the LAN host is reached, which nobody chose")
		}
	}
}
