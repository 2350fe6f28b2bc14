package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"subnetd/subnetd/host"

	"golang.org/x/sys/unix"
	"tailscale.com/types/key"
)

// realDoors shares realPort1 by rules of the nft tool, so that this test does not
// depend on package firewall.
type realDoors struct {
	fakeWays
	from  map[key.NodePublic]netip.AddrPort
	ports map[key.NodePublic]uint16
}

func (d *realDoors) Served(_ context.Context, ports map[key.NodePublic]uint16) error {
	d.ports = ports
	rules := "table inet doors\ndelete table inet doors\n"
	if len(ports) > 0 {
		var all, from []string
		for k, p := range ports {
			all = append(all, fmt.Sprint(p))
			from = append(from, fmt.Sprintf("%s . %d : %d", d.from[k].Addr(), d.from[k].Port(), p))
		}
		rules += fmt.Sprintf(`table inet doors {
			map from { type ipv4_addr . inet_service : inet_service; elements = { %s }; }
			chain in { type filter hook input priority 199; udp dport %d udp dport set ip saddr . udp sport map @from; }
			chain out { type filter hook output priority -310; udp sport { %s } udp sport set %[2]d; }
		}`, strings.Join(from, ", "), realPort1, strings.Join(all, ", "))
	}
	c := exec.Command("nft", "-f", "-")
	c.Stdin = strings.NewReader(rules + "\n")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// testRealExits has a router with two peers, either of which becomes its exit, both
// at once too. Their interfaces are in another namespace each, all sockets here.
func testRealExits(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	own, web := key.NewNode(), "192.0.2.80"
	all := host.Tunnel{Name: "mesh0", Key: own}
	d := &realDoors{from: map[key.NodePublic]netip.AddrPort{}}
	var peers []net.PacketConn // each at web, behind a peer
	for i, port := range []uint16{realPort4, realPort5} {
		k, name, addr := key.NewNode(), fmt.Sprint("peer", i), fmt.Sprint("100.64.0.", 2+i)
		p := newRealSide(name, port, k, own.Public(), "100.64.0.1/32")
		p.ways.point(own.Public(), outside(realPort1))
		d.point(k.Public(), outside(port))
		d.from[k.Public()] = outside(port)
		first := newWGKernel()
		if err := errors.Join(first.create(name), first.close()); err != nil { // its sockets stay here
			t.Fatal(err)
		}
		s := newSpace(t)
		var ns string
		s.do(func() { ns = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid()) })
		moveLink(t, name, ns)
		s.do(func() {
			mustSet(t, p.Kernel, p.want)
			ip(t, "link set lo up", "addr add "+web+"/32 dev lo", "addr add "+addr+"/32 dev "+name, "route add 100.64.0.1/32 dev "+name)
			c, err := net.ListenPacket("udp", web+":7000")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			peers = append(peers, c)
		})
		all.Peers = append(all.Peers, host.Peer{Key: k.Public(), Session: "1", AllowedIPs: []netip.Prefix{netip.MustParsePrefix(addr + "/32")}})
	}
	k := NewKernels(slog.New(slog.DiscardHandler), realPort1, host.Mark, d)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- k.Run(ctx) }()
	var want host.Tunnel
	choose := func(exits ...int) {
		t.Helper()
		want = chosen(all, exits...)
		if err := k.Set(t.Context(), want); err != nil {
			t.Fatal(err)
		}
	}
	// pass sends to the web by an exit's interface and hears the answer, over
	// and over, since the end of the old session is lost.
	pass := func(i int) time.Duration {
		t.Helper()
		name := host.ExitInterface(all.Peers[i].Key)
		c, err := (&net.ListenConfig{Control: onDevice(name)}).ListenPacket(t.Context(), "udp", "100.64.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		start, b := time.Now(), make([]byte, 100)
		until(t, "an answer by "+name, func() bool {
			if _, err := c.WriteTo([]byte("hello"), &net.UDPAddr{IP: net.ParseIP(web), Port: 7000}); err != nil {
				return false
			}
			peers[i].SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			_, from, err := peers[i].ReadFrom(b)
			if err != nil {
				return false
			}
			peers[i].WriteTo([]byte("answer"), from)
			c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			_, _, err = c.ReadFrom(b)
			return err == nil
		})
		return time.Since(start)
	}
	route := func(i int) {
		name := host.ExitInterface(all.Peers[i].Key)
		ip(t, "route append "+web+"/32 dev "+name)
	}
	choose()
	ip(t, "addr add 100.64.0.1/32 dev mesh0")
	choose(0)
	route(0)
	t.Logf("the first exit answers after %v", pass(0).Round(time.Millisecond))
	choose(0, 1)
	route(1)
	t.Logf("the second after %v, the first still after %v", pass(1).Round(time.Millisecond), pass(0).Round(time.Millisecond))
	if ps := []uint16{d.ports[all.Peers[0].Key], d.ports[all.Peers[1].Key]}; ps[0] == ps[1] || slices.Contains(ps, 0) || slices.Contains(ps, realPort1) {
		t.Errorf("ports %v", ps)
	}

	// The next life adopts all, with the ports; sessions go on.
	shook := k.Stats()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	left, err := Find("mesh0")
	if err != nil || len(left.Exits) != 2 || len(left.Direct) != 2 {
		t.Fatalf("left %+v, %v", left, err)
	}
	ports := d.ports
	k = NewKernels(slog.New(slog.DiscardHandler), realPort1, host.Mark, d)
	k.Adopt(left)
	ctx, cancel = context.WithCancel(t.Context())
	go func() { ended <- k.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	choose(0, 1)
	for i := range peers {
		pass(i)
		p := all.Peers[i].Key
		if d.ports[p] != ports[p] || !k.Stats()[p].Handshake.Equal(shook[p].Handshake) {
			t.Errorf("peer %d: port %d, was %d; shaken hands at %v, before at %v", i, d.ports[p], ports[p], k.Stats()[p].Handshake, shook[p].Handshake)
		}
	}
	choose(1)
	pass(1)
	if _, err := net.InterfaceByName(host.ExitInterface(all.Peers[0].Key)); err == nil {
		t.Error("an exit's interface stayed")
	}
	start := time.Now()
	until(t, "a session on mesh0 by itself", func() bool {
		hs := time.Time{}
		k.main.mu.Lock()
		defer k.main.mu.Unlock()
		_, err := k.main.wg.dump("mesh0", func(p *wgPeer) { hs = p.stat.Handshake })
		return err == nil && !hs.IsZero()
	})
	t.Logf("back on mesh0 there is a session after %v", time.Since(start).Round(time.Millisecond))
	if err := k.Set(t.Context(), host.Tunnel{}); err != nil {
		t.Fatal(err)
	}
	left, err = Find("mesh0")
	if err != nil || left.Name != "" || len(left.Exits) != 0 {
		t.Errorf("left %+v, %v", left, err)
	}
}

// onDevice binds a socket to an interface.
func onDevice(name string) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) (err error) {
		e := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), name) })
		if e != nil {
			return e
		}
		return err
	}
}
