package firewall

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds waits for what must come; nothing waits for what must not.
const patience = 30 * time.Second

// neighbourhood makes this namespace a router, with others around it:
//
//	peer  100.64.0.9, .10, 100.64.5.6 (a liar)  -- mesh0  100.64.0.1
//	tv    192.168.77.50                         -- lan0   192.168.77.1
//	near  192.168.77.60                         -- lan0
//	world 198.51.100.2                          -- wan0   198.51.100.1
//
// and the same with IPv6: fd7a::, fd77::, 2001:db8::.
func neighbourhood(t *testing.T) {
	fresh(t)
	links := []string{"mesh0", "wan0", "lan1", "lan2", "lan0"}
	spaces := []string{"peer", "world", "tv", "near"}
	trustAddresses(t, "")
	for _, ns := range spaces {
		run(t, "ip netns add "+ns)
		trustAddresses(t, ns)
		run(t, "ip -n "+ns+" link set lo up")
	}
	t.Cleanup(func() {
		for _, l := range links {
			run(t, "ip link del "+l)
		}
		for _, ns := range spaces {
			run(t, "ip netns del "+ns)
		}
	})
	run(t, "ip link set lo up")
	run(t, "ip link add lan0 type bridge mcast_snooping 0")
	for i, ns := range spaces {
		run(t, fmt.Sprintf("ip link add %s type veth peer name e0 netns %s", links[i], ns))
		run(t, "ip link set "+links[i]+" up")
		run(t, "ip -n "+ns+" link set e0 up")
	}
	run(t, "ip link set lan1 master lan0")
	run(t, "ip link set lan2 master lan0")
	run(t, "ip link set lan0 up")
	address := func(where string, addrs ...string) {
		for _, a := range addrs {
			run(t, "ip "+strings.Replace(where, "DEV", "address add "+a+" dev", 1))
		}
	}
	address("DEV mesh0", "100.64.0.1/32", "fd7a::1/128")
	address("DEV lan0", "192.168.77.1/24", "fd77::1/64")
	address("DEV wan0", "198.51.100.1/24", "2001:db8::1/64")
	address("-n peer DEV e0", "100.64.0.9/32", "100.64.0.10/32", "100.64.5.6/32", "fd7a::9/128", "fd7a::a/128", "fd7a::5:6/128")
	address("-n tv DEV e0", "192.168.77.50/24", "fd77::50/64")
	address("-n near DEV e0", "192.168.77.60/24", "fd77::60/64")
	address("-n world DEV e0", "198.51.100.2/24", "2001:db8::2/64")
	// A tunnel has no neighbour discovery, and the firewall lets none in.
	run(t, "ip link set mesh0 address 02:00:00:00:00:01")
	run(t, "ip -n peer link set e0 address 02:00:00:00:00:02")
	for _, p := range []string{"100.64.0.9", "100.64.0.10", "fd7a::9", "fd7a::a"} {
		run(t, "ip route add "+p+" dev mesh0")
		run(t, "ip neigh add "+p+" lladdr 02:00:00:00:00:02 dev mesh0")
	}
	for _, gw := range []string{"100.64.0.1", "fd7a::1"} {
		run(t, "ip -n peer route add "+gw+" dev e0")
		run(t, "ip -n peer neigh add "+gw+" lladdr 02:00:00:00:00:01 dev e0")
		run(t, "ip -n peer route add default via "+gw+" dev e0")
	}
	for ns, gws := range map[string][2]string{"tv": {"192.168.77.1", "fd77::1"}, "near": {"192.168.77.1", "fd77::1"}, "world": {"198.51.100.1", "2001:db8::1"}} {
		for _, gw := range gws {
			run(t, "ip -n "+ns+" route add default via "+gw)
		}
	}
	sysctl(t, "ipv4/ip_forward", "1")
	sysctl(t, "ipv6/conf/all/forwarding", "1")
	if _, err := os.Stat("/proc/sys/net/bridge"); err == nil { // a kernel that can take bridged packets through the firewall
		sysctl(t, "bridge/bridge-nf-call-iptables", "0")
		sysctl(t, "bridge/bridge-nf-call-ip6tables", "0")
	}
}

func sysctl(t *testing.T, name, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// trustAddresses has nobody doubt an address of the links that a namespace gets, "": the router. Who doubts its own, which on a
// busy machine takes seconds, asks for no neighbour meanwhile: what is sent to that is lost.
func trustAddresses(t *testing.T, ns string) {
	t.Helper()
	in(t, ns, func() (struct{}, error) {
		return struct{}{}, errors.Join(os.WriteFile("/proc/sys/net/ipv6/conf/all/accept_dad", []byte("0"), 0),
			os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0))
	})
}

// in does something in a network namespace; "": in the router.
func in[T any](t *testing.T, ns string, f func() (T, error)) T {
	t.Helper()
	var out T
	done := make(chan error, 1)
	go func() {
		if ns != "" {
			runtime.LockOSThread() // never unlocked: the thread goes with this goroutine
			if err := enter(ns); err != nil {
				done <- err
				return
			}
		}
		var err error
		out, err = f()
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("in %q: %v", ns, err)
	}
	return out
}

func enter(ns string) error {
	f, err := os.Open("/run/netns/" + ns)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
}

// serve answers TCP connections with a word and who it believes the client is.
func serve(t *testing.T, ns, addr, word string) {
	t.Helper()
	l := in(t, ns, func() (net.Listener, error) { return net.Listen("tcp", addr) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			from, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			_, _ = io.WriteString(c, word+" "+from)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
}

// call is what a TCP server says to a client in ns that sends from an address;
// "": any.
func call(t *testing.T, ns, src, dst string) string {
	t.Helper()
	return in(t, ns, func() (string, error) {
		d := net.Dialer{Timeout: patience}
		if src != "" {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(src)}
		}
		c, err := d.Dial("tcp", dst)
		if err != nil {
			return "", err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return "", err
		}
		b, err := io.ReadAll(c)
		return string(b), err
	})
}

// ear hears all UDP of a family that reaches a host, in its order, whether or
// not somebody listens on the port.
func ear(t *testing.T, ns, network string) *net.IPConn {
	t.Helper()
	c := in(t, ns, func() (*net.IPConn, error) { return net.ListenIP(network, nil) })
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// hear returns what was sent up to the datagram "last": "text port".
func hear(t *testing.T, c *net.IPConn) []string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	var out []string
	for b := make([]byte, 2048); ; {
		n, _, err := c.ReadFromIP(b)
		if err != nil {
			t.Fatalf("after %q: %v", out, err)
		}
		const header = 8
		text := string(b[header:n])
		if text == "last" {
			return out
		}
		out = append(out, text+" "+strconv.Itoa(int(b[2])<<8|int(b[3])))
	}
}

// say sends one datagram from an address of the peer.
func say(t *testing.T, src, dst, text string) net.Conn {
	t.Helper()
	c := in(t, "peer", func() (net.Conn, error) {
		d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(src), 0))}
		c, err := d.Dial("udp", dst)
		if err != nil {
			return nil, err
		}
		_, err = io.WriteString(c, text)
		return c, err
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}
