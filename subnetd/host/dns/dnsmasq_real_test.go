package dns

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/host"

	"golang.org/x/net/dns/dnsmessage"
)

// answerer answers every question of the mesh, as ours does: private addresses, names for addresses.
func answerer(t *testing.T) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			r := dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60}}
			switch q.Type {
			case dnsmessage.TypeA:
				r.Body = &dnsmessage.AResource{A: [4]byte{192, 168, 77, 50}}
			case dnsmessage.TypeAAAA:
				r.Body = &dnsmessage.AAAAResource{AAAA: netip.MustParseAddr("fd7a:115c:a1e0::7").As16()}
			case dnsmessage.TypePTR:
				r.Body = &dnsmessage.PTRResource{PTR: dnsmessage.MustNewName("phone.mesh.internal.")}
			default:
				continue
			}
			m.Response, m.RecursionAvailable, m.Answers, m.Additionals = true, true, []dnsmessage.Resource{r}, nil
			if out, err := m.Pack(); err == nil {
				_, _ = pc.WriteTo(out, from)
			}
		}
	}()
	return netip.MustParseAddrPort(pc.LocalAddr().String())
}

// masq is a real dnsmasq on a loopback address of its own, and a port below those that the kernel gives to whoever asks for
// any: one that was free a moment ago may be another test's by now.
type masq struct {
	t    *testing.T
	at   netip.AddrPort
	args []string
	kill func()
}

func newMasq(t *testing.T, dir string) *masq {
	t.Helper()
	if _, err := exec.LookPath("dnsmasq"); err != nil {
		t.Skip("dnsmasq is not here")
	}
	n := rand.Uint32()
	m := &masq{t: t, at: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, byte(1 + n>>16%254), byte(n >> 8), byte(1 + n%254)}), 20056)}
	m.args = []string{"--keep-in-foreground", "--conf-file=/dev/null", "--conf-dir=" + dir, "--pid-file=", "--user=root", "--no-resolv", "--no-hosts", "--port=" + strconv.Itoa(int(m.at.Port())),
		"--stop-dns-rebind", "--bogus-priv", "--domain-needed", "--bind-interfaces", "--listen-address=" + m.at.Addr().String(), "--host-record=up.test,192.0.2.1"}
	t.Cleanup(m.stop)
	return m
}

func (m *masq) stop() {
	if m.kill != nil {
		m.kill()
		m.kill = nil
	}
}

// restart gives an error if dnsmasq ends instead of answering.
func (m *masq) restart(ctx context.Context, _ ...string) error {
	m.stop()
	cmd := exec.Command("dnsmasq", m.args...)
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait(); close(ended) }()
	m.kill = func() {
		_ = cmd.Process.Kill()
		<-ended
	}
	for {
		if m.ask("up.test.", dnsmessage.TypeA) == "192.0.2.1" {
			return nil
		}
		select {
		case err := <-ended:
			return fmt.Errorf("dnsmasq ended: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond): // until its port is open
		}
	}
}

// ask gives the first answer, or the status.
func (m *masq) ask(name string, kind dnsmessage.Type) string {
	c, err := net.Dial("udp4", m.at.String())
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	q := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}}}
	out, err := q.Pack()
	if err != nil {
		return err.Error()
	}
	b := make([]byte, 1500)
	n := 0
	if _, err = c.Write(out); err == nil {
		n, err = c.Read(b)
	}
	var r dnsmessage.Message
	if err == nil {
		err = r.Unpack(b[:n])
	}
	if err != nil {
		return "silence"
	}
	if len(r.Answers) == 0 {
		return strings.TrimPrefix(r.RCode.String(), "RCode")
	}
	switch body := r.Answers[0].Body.(type) {
	case *dnsmessage.AResource:
		return netip.AddrFrom4(body.A).String()
	case *dnsmessage.AAAAResource:
		return netip.AddrFrom16(body.AAAA).String()
	case *dnsmessage.PTRResource:
		return body.PTR.String()
	}
	return "something else"
}

// TestDnsmasqReal: a dnsmasq that guards against rebinding and keeps private reverse zones to itself, as OpenWrt's does, lets
// the mesh's names through, and forgets them; one that cannot start with our file starts without it.
func TestDnsmasqReal(t *testing.T) {
	dir := t.TempDir()
	m := newMasq(t, dir)
	if err := m.restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	f := newFake(t)
	f.hand = New(Config{Root: "/", Dir: f.dir, Run: m.restart, Tell: func(text, _ string) { f.told = text }, Log: f.hand.cfg.Log})
	d := host.DNS{Server: answerer(t), DnsmasqDir: dir, DnsmasqRestart: []string{"restart"},
		Domains: []string{"mesh.internal", "64.100.in-addr.arpa", "0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa"}}
	check := func(when string, want map[string]string) {
		t.Helper()
		for q, want := range want {
			name, kind, _ := strings.Cut(q, " ")
			types := map[string]dnsmessage.Type{"A": dnsmessage.TypeA, "AAAA": dnsmessage.TypeAAAA, "PTR": dnsmessage.TypePTR}
			if got := m.ask(name, types[kind]); got != want {
				t.Errorf("%s: %s is %q, want %q", when, q, got, want)
			}
		}
	}
	v6 := "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa. PTR"
	f.set(d)
	check("hooked in", map[string]string{"printer.mesh.internal. A": "192.168.77.50", "phone.mesh.internal. AAAA": "fd7a:115c:a1e0::7",
		"7.0.64.100.in-addr.arpa. PTR": "phone.mesh.internal.", v6: "phone.mesh.internal.", "up.test. A": "192.0.2.1"})
	if f.told != "" {
		t.Error(f.told)
	}
	f.set(host.DNS{})
	gone := m.ask("example.com.", dnsmessage.TypeA)
	check("gone", map[string]string{"printer.mesh.internal. A": gone, "7.0.64.100.in-addr.arpa. PTR": gone, "up.test. A": "192.0.2.1"})
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v (%v)", left, err)
	}
	// A second file of somebody has dnsmasq refuse while ours is there.
	f.hand.cfg.Run = func(ctx context.Context, _ ...string) error {
		if _, err := os.Stat(filepath.Join(dir, ownFile)); err == nil {
			if err := os.WriteFile(filepath.Join(dir, ownFile), []byte("no-such-option\n"), 0o600); err != nil {
				return err
			}
		}
		return m.restart(ctx)
	}
	f.set(d)
	if !strings.Contains(f.told, "dnsmasq ended") {
		t.Errorf("told %q", f.told)
	}
	check("refused", map[string]string{"up.test. A": "192.0.2.1"})
}
