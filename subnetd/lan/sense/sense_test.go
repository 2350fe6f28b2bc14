package sense

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"subnetd/subnetd/lan"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// dnsmasq serves these addresses of the LAN until the test ends or stop is called.
func dnsmasq(t testing.TB, leases, addrs string) (stop func()) {
	t.Helper()
	c := exec.Command("/usr/sbin/dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=lan0", "--bind-interfaces", "--user=root",
		"--dhcp-range="+addrs+",1h", "--dhcp-authoritative", "--no-ping", "--dhcp-leasefile="+leases)
	c.Stderr = testWriter{t}
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	t.Cleanup(stop)
	return stop
}

// udhcpc gets an address for dev0.
func udhcpc(t testing.TB, on, options string) {
	t.Helper()
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte(`#!/bin/sh
case $1 in bound | renew) ip addr flush dev $interface; ip addr add $ip/24 dev $interface ;; deconfig) ip addr flush dev $interface ;; esac
`), 0o755); err != nil {
		t.Fatal(err)
	}
	sh(t, on+"busybox udhcpc -i dev0 -f -q -n -t 20 -T 1 -s "+script+" "+options)
}

// A device gets an address, speaks, gets another address, falls silent.
func TestDHCP(t *testing.T) {
	tool(t, "dnsmasq")
	tool(t, "busybox")
	router(t)
	on := device(t)
	leases := filepath.Join(t.TempDir(), "dhcp.leases")
	stop := dnsmasq(t, leases, "192.168.77.50,192.168.77.69")
	r := start(t, Config{LeaseFiles: []string{leases}, Names: map[string]string{"02:00:00:00:00:77": "spaeter"}})
	udhcpc(t, on, "-x hostname:BRN1 -V MFG=Brother -r 192.168.77.60")
	r.wait("the first address is there", func(all []lan.Thing) bool {
		d := thing(all, deviceMAC)
		return first(d) == "192.168.77.60" && d.Addresses[0].Leased && d.Name == "BRN1" && d.NameFrom == lan.Lease && d.Kind == lan.KindPrinter &&
			d.Online && d.Maker == "Brother" && d.Interface == "lan0"
	})
	sh(t, on+"ping -c 1 -W 5 192.168.77.1")
	r.wait("the kernel knows it", func(all []lan.Thing) bool { return thing(all, deviceMAC).Addresses[0].Known })
	if d := thing(r.Things(), "02:00:00:00:00:77"); d.Name != "spaeter" || !d.Pinned {
		t.Errorf("what the owner speaks of: %+v", d)
	}

	// the LAN gets other addresses, and it one of them
	stop()
	dnsmasq(t, leases, "192.168.77.90,192.168.77.90")
	udhcpc(t, on, "-x hostname:BRN1 -r 192.168.77.60")
	r.wait("the second address is there", func(all []lan.Thing) bool { return first(thing(all, deviceMAC)) == "192.168.77.90" })

	// somebody looks: all that is known of it is asked for, and nobody answers
	sh(t, on+"ping -c 1 -W 5 192.168.77.1")
	r.wait("the kernel knows the new one", func(all []lan.Thing) bool { return thing(all, deviceMAC).Addresses[0].Known })
	sh(t, on+"ip addr flush dev dev0; "+on+"sysctl -qw net.ipv6.conf.dev0.disable_ipv6=1")
	time.Sleep(2 * rest) // what the kernel told before that is written down now
	r.later(time.Minute)
	r.Look()
	r.wait("it is off", func(all []lan.Thing) bool { return !thing(all, deviceMAC).Online })
	d := thing(r.Things(), deviceMAC)
	if first(d) != "192.168.77.90" || !d.Addresses[0].Silent {
		t.Errorf("where it was is forgotten: %+v", d)
	}
	// each time that somebody wants to reach it is told
	r.wait("silence is told", func([]lan.Thing) bool { return slices.Contains(r.silent, "192.168.77.90%lan0") })
	r.mu.Lock()
	n := len(r.silent)
	r.mu.Unlock()
	_ = exec.Command("ping", "-c", "1", "-W", "2", "192.168.77.90").Run()
	r.wait("silence is told again", func([]lan.Thing) bool { return len(r.silent) > n })
}

// Neighbours of IPv6, by their own words.
func TestIPv6(t *testing.T) {
	router(t)
	on := device(t)
	r := start(t, Config{})
	sh(t, on+"ip addr add fd77::2/64 dev dev0 nodad; "+on+"ping -6 -c 1 -W 5 fd77::1")
	r.wait("its address is there", func(all []lan.Thing) bool {
		d := thing(all, deviceMAC)
		return d.Online && slices.Equal(d.Addrs(), []netip.Addr{netip.MustParseAddr("fd77::2")})
	})
	sh(t, "ip neigh del fd77::2 dev lan0")
	r.wait("the kernel's table is followed", func(all []lan.Thing) bool {
		d := thing(all, deviceMAC)
		i := slices.IndexFunc(d.Addresses, func(a lan.Address) bool { return a.Addr == netip.MustParseAddr("fd77::2") })
		return i >= 0 && !d.Addresses[i].Known
	})
}

// What was in the table before, and what becomes of the interface.
func TestInterface(t *testing.T) {
	router(t)
	on := device(t)
	sh(t, on+"ip addr add 192.168.77.9/24 dev dev0; "+on+"ping -c 1 -W 5 192.168.77.1")
	r := start(t, Config{Interfaces: []string{"other"}})
	r.wait("nobody is there", func(all []lan.Thing) bool { return r.told > 0 && len(all) == 0 })
	r.SetInterfaces([]string{"other", "lan0"})
	r.wait("it was there before", func(all []lan.Thing) bool { return first(thing(all, deviceMAC)) == "192.168.77.9" })

	sh(t, "ip link del lan0")
	r.wait("the interface is gone", func(all []lan.Thing) bool {
		d := thing(all, deviceMAC)
		return first(d) != "" && !d.Addresses[0].Known
	})
	if err := r.Wake(context.Background(), deviceMAC, ""); err == nil {
		t.Error("woke somebody without an interface")
	}
	router(t)
	on = device(t)
	sh(t, on+"ip addr add 192.168.77.10/24 dev dev0; "+on+"ping -c 1 -W 5 192.168.77.1")
	r.wait("it is back", func(all []lan.Thing) bool { return first(thing(all, deviceMAC)) == "192.168.77.10" })
	r.SetInterfaces(nil)
	r.wait("it is none of ours", func(all []lan.Thing) bool { return !thing(all, deviceMAC).Addresses[0].Known })
}

// A thing that was quiet for long is taken to be off until somebody looks.
func TestLook(t *testing.T) {
	router(t)
	on := device(t)
	r := start(t, Config{})
	sh(t, on+"ip addr add 192.168.77.9/24 dev dev0; "+on+"ping -c 1 -W 5 192.168.77.1")
	online := func(all []lan.Thing) bool { return thing(all, deviceMAC).Online }
	r.wait("it is there", online)
	time.Sleep(2 * rest) // what the kernel told is written down now
	r.later(2 * lan.Fresh)
	r.mu.Lock()
	before := r.told
	r.mu.Unlock()
	r.Look()
	r.wait("it was only quiet", func(all []lan.Thing) bool { return r.told >= before+2 && online(all) })

	// not even the kernel remembers it
	sh(t, "ip link set lan0 down; ip link set lan0 up; ip addr add fd77::1/64 dev lan0 nodad")
	r.wait("the table is empty", func(all []lan.Thing) bool { return !thing(all, deviceMAC).Addresses[0].Known })
	r.later(2 * lan.Fresh)
	r.Look()
	r.wait("it is asked for", online)
}

// Lease files come, are written in place, are replaced, and go; so do their folders.
func TestLeaseFiles(t *testing.T) {
	dir := t.TempDir()
	inPlace, replaced := filepath.Join(dir, "dnsmasq.leases"), filepath.Join(dir, "hosts", "deep", "odhcpd")
	r := start(t, Config{Interfaces: []string{}, LeaseFiles: []string{inPlace, replaced, "/dev/zero", dir}})
	r.wait("nothing is there", func(all []lan.Thing) bool { return r.told > 0 && len(all) == 0 })
	line := func(n int) string { return fmt.Sprintf("0 00:80:77:00:00:%02x 192.168.77.%d n%d *\n", n, n, n) }
	has := func(n int, leased bool) func([]lan.Thing) bool {
		return func(all []lan.Thing) bool {
			d := thing(all, fmt.Sprintf("00:80:77:00:00:%02x", n))
			return leased && len(d.Addresses) == 1 && d.Addresses[0].Leased || !leased && d.MAC != "" && len(d.Addresses) == 0
		}
	}
	f, err := os.Create(inPlace)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	put := func(s string) {
		if _, err := f.WriteAt([]byte(s), 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(int64(len(s))); err != nil {
			t.Fatal(err)
		}
	}
	put(line(1))
	r.wait("a new file", has(1, true))
	put(line(1) + line(2))
	r.wait("one more", has(2, true))
	put(line(2))
	r.wait("one less", has(1, false))

	odhcpd := func(n int) {
		if err := os.MkdirAll(filepath.Dir(replaced), 0o755); err != nil {
			t.Fatal(err)
		}
		s := fmt.Sprintf("# lan0 0080770000%02x ipv4 n%d -1 0 32 192.168.77.%d/32\n", n, n, n)
		if err := os.WriteFile(replaced+".tmp", []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(replaced+".tmp", replaced); err != nil {
			t.Fatal(err)
		}
	}
	for n := 10; n < 14; n++ {
		odhcpd(n)
		r.wait("a file in place of another", has(n, true))
	}
	sh(t, "rm -r "+filepath.Join(dir, "hosts"))
	r.wait("the folder is gone", has(13, false))
	odhcpd(20)
	r.wait("the folder is back", has(20, true))
	sh(t, "mv "+inPlace+" "+inPlace+".old")
	r.wait("the file is gone", has(2, false))
}

// frame is one of UDP, as dev0 sends it.
func frame(from net.HardwareAddr, to net.HardwareAddr, src, dst netip.AddrPort, data []byte) []byte {
	udp := binary.BigEndian.AppendUint16(nil, src.Port())
	udp = binary.BigEndian.AppendUint16(udp, dst.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(data)))
	udp = append(append(udp, 0, 0), data...)
	if src.Addr().Is6() {
		ip := append([]byte{0x60, 0, 0, 0, byte(len(udp) >> 8), byte(len(udp)), unix.IPPROTO_UDP, 255}, src.Addr().AsSlice()...)
		return slices.Concat(to, from, []byte{0x86, 0xdd}, ip, dst.Addr().AsSlice(), udp)
	}
	ip := []byte{0x45, 0, byte((20 + len(udp)) >> 8), byte(20 + len(udp)), 0, 0, 0, 0, 255, unix.IPPROTO_UDP, 0, 0}
	ip = slices.Concat(ip, src.Addr().AsSlice(), dst.Addr().AsSlice())
	sum := uint32(0)
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum&0xffff+sum>>16))
	return slices.Concat(to, from, []byte{8, 0}, ip, udp)
}

// wire sends and hears on dev0 whole frames.
func wire(t testing.TB) (*socket.Conn, func([]byte)) {
	t.Helper()
	sh(t, "ip link set dev0 up")
	i, err := net.InterfaceByName("dev0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := socket.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0, "packet", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.Bind(&unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: i.Index}); err != nil {
		t.Fatal(err)
	}
	return c, func(b []byte) {
		if err := c.Sendto(context.Background(), b, 0, &unix.SockaddrLinklayer{Ifindex: i.Index, Halen: 6}); err != nil {
			t.Error(err)
		}
	}
}

var (
	everybody = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	mdnsMAC4  = net.HardwareAddr{1, 0, 0x5e, 0, 0, 0xfb}
	mdnsMAC6  = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 0xfb}
)

// dhcpDiscover is a question for an address by the MAC.
func dhcpDiscover(mac net.HardwareAddr, name string) []byte {
	b := make([]byte, 240)
	b[0], b[1], b[2] = 1, 1, 6
	copy(b[28:], mac)
	copy(b[236:], []byte{0x63, 0x82, 0x53, 0x63, 53, 1, 1})
	b = append(b, 53, 1, 1, 12, byte(len(name)))
	return append(append(b, name...), 255)
}

// printerSays is an answer of mDNS: _ipp._tcp.local has the instance "Laser", and TXT says
// of which model.
func printerSays() []byte {
	b := []byte{0, 0, 0x84, 0, 0, 0, 0, 2, 0, 0, 0, 0}
	b = append(b, "\x04_ipp\x04_tcp\x05local\x00\x00\x0c\x00\x01\x00\x00\x11\x94\x00\x08\x05Laser\xc0\x0c"...)
	return append(b, "\xc0\x27\x00\x10\x80\x01\x00\x00\x11\x94\x00\x09\x08ty=HL-1x"...)
}

// Packets that are heard, and those that are not: for one host, questions, and our own.
func TestPackets(t *testing.T) {
	router(t)
	_, send := wire(t)
	r := start(t, Config{})
	r.wait("it hears", func([]lan.Thing) bool { return r.told > 0 })
	lanMAC, err := net.InterfaceByName("lan0")
	if err != nil {
		t.Fatal(err)
	}
	mac := func(n byte) net.HardwareAddr { return net.HardwareAddr{0, 0, 0x5e, 0, 1, n} }
	v4, v6 := netip.MustParseAddr("192.168.77.9"), netip.MustParseAddr("fe80::9")
	to4, to6 := netip.AddrPortFrom(groupV4, portMDNS), netip.AddrPortFrom(groupV6, portMDNS)
	bootp := netip.MustParseAddrPort("255.255.255.255:67")
	question := lan.AskMDNS(netip.Addr{})
	router := netip.MustParseAddr("192.168.77.1")

	send(frame(mac(1), lanMAC.HardwareAddr, netip.AddrPortFrom(v4, 68), netip.AddrPortFrom(router, 67), dhcpDiscover(mac(1), "one")))
	send(frame(mac(2), mdnsMAC4, netip.AddrPortFrom(v4, portMDNS), to4, question))
	send(frame(mac(3), mdnsMAC4, netip.AddrPortFrom(v4, 9999), to4, printerSays()))
	send(frame(mac(4), mdnsMAC6, netip.AddrPortFrom(v6, 9999), to6, printerSays()))
	send(frame(mac(5), everybody, netip.MustParseAddrPort("0.0.0.0:68"), bootp, dhcpDiscover(mac(6), "six")))
	send(frame(mac(7), mdnsMAC4, netip.AddrPortFrom(v4, portMDNS), to4, printerSays()))
	send(frame(mac(8), mdnsMAC6, netip.AddrPortFrom(v6, portMDNS), to6, printerSays()))
	send(frame(mac(9), everybody, netip.MustParseAddrPort("0.0.0.0:68"), bootp, dhcpDiscover(mac(9), "last")))
	r.wait("the last is heard", func(all []lan.Thing) bool { return thing(all, mac(9).String()).Name == "last" && len(all) == 4 })
	for _, n := range []byte{7, 8} {
		if d := thing(r.Things(), mac(n).String()); d.Name != "Laser" || d.Kind != lan.KindPrinter || !slices.Equal(d.Services, []string{"_ipp._tcp"}) || !d.Online || len(d.Addresses) > 0 {
			t.Errorf("%+v", d)
		}
	}
	if d := thing(r.Things(), mac(6).String()); d.Name != "six" || d.NameFrom != lan.DHCP {
		t.Errorf("%+v", d)
	}
}

// A thing is asked when it is new, and answers to the port that asked.
func TestAsked(t *testing.T) {
	router(t)
	on := device(t)
	r := start(t, Config{})
	r.wait("it hears", func([]lan.Thing) bool { return r.told > 0 })
	sh(t, on+"ip addr add 192.168.77.9/24 dev dev0; "+on+"ip addr add fd77::9/64 dev dev0 nodad")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(on + self)
	c := exec.Command(words[0], words[1:]...)
	c.Env = append(os.Environ(), role+"=printer")
	c.Stderr = testWriter{t}
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ready, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}()
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	sh(t, on+"ping -c 1 -W 5 192.168.77.1")
	r.wait("it answered", func(all []lan.Thing) bool {
		d := thing(all, deviceMAC)
		return d.Name == "Laser" && d.NameFrom == lan.MDNS && slices.Equal(d.Services, []string{"_ipp._tcp"})
	})
}

// play is a thing on the LAN.
func play(string) int {
	for _, network := range []string{"udp4", "udp6"} {
		c, err := net.ListenPacket(network, fmt.Sprintf(":%d", portMDNS))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		go func() {
			buf := make([]byte, maxPacket)
			for {
				n, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				fmt.Fprintln(os.Stderr, "asked by", from, n)
				_, _ = c.WriteTo(printerSays(), from)
			}
		}()
	}
	fmt.Println("ready")
	select {}
}

// Both forms of Wake-on-LAN arrive.
func TestWake(t *testing.T) {
	router(t)
	c, _ := wire(t)
	r := start(t, Config{})
	r.wait("it hears", func([]lan.Thing) bool { return r.told > 0 })
	mac := net.HardwareAddr{0, 0x80, 0x77, 0, 0, 1}
	for _, bad := range []struct{ mac, iface string }{{"x", ""}, {"02:00:00:00:00:00:00:01", ""}, {deviceMAC, "other"}} {
		if err := r.Wake(context.Background(), bad.mac, bad.iface); err == nil {
			t.Errorf("woke %v", bad)
		}
	}
	for _, iface := range []string{"", "lan0"} {
		if err := r.Wake(context.Background(), deviceMAC, iface); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		buf := make([]byte, 2000)
		for frame, udp := false, false; !frame || !udp; {
			n, _, err := c.Recvfrom(ctx, buf, 0)
			if err != nil {
				t.Fatalf("frame %v, UDP %v: %v", frame, udp, err)
			}
			b := buf[:n]
			if !slices.Equal(b[:6], everybody) || !strings.HasSuffix(string(b), string(magic(mac))) {
				continue
			}
			frame = frame || b[12] == 8 && b[13] == 0x42 && n == 14+102
			udp = udp || b[12] == 8 && b[13] == 0 && n == 14+28+102 && binary.BigEndian.Uint16(b[36:]) == 9
		}
		cancel()
	}
}

// Ten thousand MACs by DHCP and as many by ARP.
func TestFlood(t *testing.T) {
	router(t)
	_, send := wire(t)
	r := start(t, Config{Names: map[string]string{deviceMAC: "drucker"}})
	r.wait("it hears", func([]lan.Thing) bool { return r.told > 0 })
	before := cpu(t)
	begun := time.Now()
	mac := func(n int) net.HardwareAddr { return net.HardwareAddr{0, 0, 0x5e, 1, byte(n >> 8), byte(n)} }
	for n := range 10000 {
		m := mac(n)
		send(frame(m, everybody, netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67"), dhcpDiscover(m, "x")))
		sender := []byte{192, 168, 77, byte(n)}
		arp := slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, 1}, m, sender, make([]byte, 6), []byte{192, 168, 77, 1})
		send(slices.Concat(everybody, m, []byte{8, 6}, arp))
	}
	t.Logf("20,000 frames in %v", time.Since(begun).Round(time.Millisecond))
	sh(t, "ip addr add 192.168.77.200/24 dev dev0")
	m := net.HardwareAddr{0, 0x80, 0x77, 0, 0, 1}
	// the owner's device is heard again when the flood is over
	limit := time.Now().Add(time.Minute)
	for !thing(r.Things(), deviceMAC).Online && time.Now().Before(limit) {
		send(frame(m, everybody, netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67"), dhcpDiscover(m, "x")))
		select {
		case <-r.news:
		case <-time.After(100 * time.Millisecond):
		}
	}
	things := r.Things()
	r.mu.Lock()
	told := r.told
	r.mu.Unlock()
	t.Logf("after %v: %d things, told %d times, %v of processor (with the sender's), the device is known again",
		time.Since(begun).Round(time.Millisecond), len(things), told, cpu(t)-before)
	if d := thing(things, deviceMAC); !d.Online || d.Name != "drucker" {
		t.Errorf("%+v", d)
	}
	if len(things) > 2000 {
		t.Errorf("%d things", len(things))
	}
}

func cpu(t testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
