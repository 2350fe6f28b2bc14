package netns_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// guestPolicy lets members reach everything, and guests what the rest says.
func guestPolicy(hosts string, guests ...string) string {
	rules := ""
	for _, g := range guests {
		rules += "\t\t" + g + ",\n"
	}
	return `// Who may what at home.
{
	"groups": {"group:family": ["ana@"]},
	"tagOwners": {"tag:guest": ["autogroup:member"]},
	"hosts": {` + hosts + `},
	"acls": [
		{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:member:*", "printer4:*", "printer6:*"]},
` + rules + `	],
}
`
}

// printersOnly is what a guest gets: one port of one thing.
const printersOnly = `{"action": "accept", "proto": "tcp", "src": ["tag:guest"], "dst": ["printer4:631", "printer6:631"]}`

// policyScene is a home with a printer that has mesh addresses, a member, and a guest.
type policyScene struct {
	*homeScene
	laptop, guest *netns.StockPeer
	printer       []netip.Addr // in the mesh
	hosts         string       // the printer's addresses, for a policy
}

func openPolicyScene(t *testing.T) *policyScene {
	t.Helper()
	s := &policyScene{homeScene: openHome(t, netns.HomeOptions{Expose: "chosen",
		Devices: []string{"printer=192.168.77.50", "printer=fd77:77::50"}})}
	s.printer = s.addrs("printer")
	s.hosts = fmt.Sprintf(`"printer4": %q, "printer6": %q`, s.printer[0], s.printer[1])
	if err := s.mesh.SetPolicy(guestPolicy(s.hosts, printersOnly)); err != nil {
		t.Fatal(err)
	}
	s.laptop = s.stock("laptop", netns.Easy)
	s.guest = s.stock("guest", netns.Easy, "--tags", "tag:guest")
	return s
}

// TestHomePolicy: a guest reaches one port of one thing; edits apply at once; a broken edit changes nothing.
func TestHomePolicy(t *testing.T) {
	s := openPolicyScene(t)
	for _, port := range []string{"631", "80"} {
		s.home.LAN.ServePayload("[::]:"+port, 1, 1000)
	}
	s.laptop.Host.ServePayload("[::]:631", 2, 1000)
	t.Run("only-one-port", s.onlyOnePort)
	t.Run("edits", s.edits)
	t.Run("broken-edits", s.brokenEdits)
	t.Run("check", s.check)
}

func (s *policyScene) onlyOnePort(t *testing.T) {
	guest, laptop := s.guest.Host, s.laptop.Host
	wantReach(t, laptop, s.printer...) // members may everything
	for _, a := range s.printer {
		wantPayload(t, laptop, "http://"+netip.AddrPortFrom(a, 80).String()+"/", 1, 1000)
		wantPayload(t, guest, "http://"+netip.AddrPortFrom(a, 631).String()+"/", 1, 1000)
	}
	router, member := s.addrs("home"), s.addrs("laptop")
	for i, a := range s.printer {
		if letsIn(guest, netip.AddrPortFrom(a, 80)) {
			t.Errorf("the guest reaches tcp/80 of the printer at %v", a)
		}
		if udpArrives(t, guest, s.home.LAN, netip.AddrPortFrom(a, 631)) {
			t.Errorf("the guest reaches udp/631 of the printer at %v", a)
		}
		// A rule that names protocols lets echo requests in only if ICMP is among them.
		if guest.Ping(t.Context(), a) == nil {
			t.Errorf("the guest pings the printer at %v", a)
		}
		for what, addr := range map[string]netip.Addr{"the router": router[i], "a member": member[i]} {
			if letsIn(guest, netip.AddrPortFrom(addr, 631)) {
				t.Errorf("the guest reaches tcp/631 of %s at %v", what, addr)
			}
			if guest.Ping(t.Context(), addr) == nil {
				t.Errorf("the guest pings %s at %v", what, addr)
			}
		}
	}
	// To be sure that the above is the policy's work: the same packets of a member come through.
	for _, a := range s.printer {
		if !udpArrives(t, laptop, s.home.LAN, netip.AddrPortFrom(a, 631)) {
			t.Errorf("a member does not reach udp/631 of the printer at %v", a)
		}
	}
	status, err := s.guest.Status()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := status.PeerNamed("laptop"); err == nil || len(status.Peer) != 1 {
		t.Errorf("the guest sees %d nodes, and of them needs one: %+v", len(status.Peer), status.Peer)
	}
}

// udpArrives says whether one of a few datagrams sent to an address arrives at a host's port of that number.
func udpArrives(t *testing.T, from, at *netns.Host, to netip.AddrPort) bool {
	t.Helper()
	server, err := at.ListenPacket(fmt.Sprintf("[::]:%d", to.Port()))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := from.ListenPacket("[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for range 3 {
		if _, err := client.WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(to)); err != nil {
			t.Fatal(err)
		}
		_ = server.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		if _, _, err := server.ReadFrom(make([]byte, 64)); err == nil {
			return true
		}
	}
	return false
}

// edits measures how long after the daemon is told of a policy the first packet is judged by it.
func (s *policyScene) edits(t *testing.T) {
	member := s.addrs("laptop")
	for _, e := range []struct {
		what  string
		rules []string
		to    netip.AddrPort
		in    bool
	}{
		{"a stock member lets a guest in", []string{printersOnly, toMember(631)}, netip.AddrPortFrom(member[0], 631), true},
		{"a stock member keeps a guest out", []string{printersOnly}, netip.AddrPortFrom(member[0], 631), false},
		{"and in by IPv6", []string{printersOnly, toMember(631)}, netip.AddrPortFrom(member[1], 631), true},
		{"and out by IPv6", []string{printersOnly}, netip.AddrPortFrom(member[1], 631), false},
		{"the printer keeps a guest out", nil, netip.AddrPortFrom(s.printer[0], 631), false},
		{"the printer lets a guest in", []string{printersOnly}, netip.AddrPortFrom(s.printer[0], 631), true},
	} {
		told := s.rewritePolicy(guestPolicy(s.hosts, e.rules...))
		took := judged(t, s.guest.Host, e.to, e.in, 10*time.Second).Sub(told)
		t.Logf("%s: %v after the daemon was told", e.what, took.Round(time.Millisecond))
		if took > 5*time.Second {
			t.Errorf("%s: only after %v", e.what, took)
		}
	}
}

func toMember(port int) string {
	return fmt.Sprintf(`{"action": "accept", "proto": "tcp", "src": ["tag:guest"], "dst": ["autogroup:member:%d"]}`, port)
}

// brokenEdits: the old policy stays in force, and the owner is told where the mistake is, and which.
func (s *policyScene) brokenEdits(t *testing.T) {
	good := guestPolicy(s.hosts, printersOnly)
	if err := s.mesh.SetPolicy(good); err != nil {
		t.Fatal(err)
	}
	open := `{"action": "accept", "src": ["*"], "dst": ["*:*"]}`
	for _, b := range []struct{ what, policy, line, reason string }{
		{"syntax", strings.Replace(guestPolicy(s.hosts, open), `"groups": {`, `"groups": [`, 1), ": line 3", ""},
		{"unknown group", guestPolicy(s.hosts, open, `{"action": "accept", "src": ["group:nobody"], "dst": ["*:*"]}`), ": line 9", "group:nobody"},
		{"failing test", strings.Replace(guestPolicy(s.hosts, open), "\t],\n}", "\t],\n\t\"tests\": [\n\t\t{\"src\": \"tag:guest\", \"deny\": [\"printer4:80\"]},\n\t],\n}", 1), "", "printer4:80"},
		{"failing accept test", strings.Replace(good, "\t],\n}", "\t],\n\t\"tests\": [\n\t\t{\"src\": \"tag:guest\", \"accept\": [\"printer4:80\"]},\n\t],\n}", 1), "", "printer4:80"},
	} {
		s.rewritePolicy(b.policy)
		netns.Eventually(t, 5*time.Second, "status tells of the mistake: "+b.what, func() error {
			out, err := s.mesh.CLI("status")
			if err == nil && !(strings.Contains(out, s.mesh.Policy+b.line) && strings.Contains(out, b.reason)) {
				err = errors.New(out)
			}
			return err
		})
		p, err := s.mesh.PolicyInForce()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %s", b.what, p.Error)
		if p.Text != good || p.Error == "" {
			t.Errorf("%s: in force is\n%s\nwith error %q", b.what, p.Text, p.Error)
		}
		if out, err := s.mesh.CLI("policy", "show"); err != nil || !strings.Contains(out, printersOnly) || strings.Contains(out, open) {
			t.Errorf("%s: `policy show`: %v\n%s", b.what, err, out)
		}
		if letsIn(s.guest.Host, netip.AddrPortFrom(s.printer[0], 80)) {
			t.Errorf("%s: the broken policy is in force", b.what)
		}
		if !letsIn(s.guest.Host, netip.AddrPortFrom(s.printer[0], 631)) {
			t.Errorf("%s: the old policy is not in force", b.what)
		}
	}
	s.restartWithBrokenPolicy(t)
	if err := s.mesh.SetPolicy(good); err != nil {
		t.Fatal(err)
	}
	if out, err := s.mesh.CLI("status"); err != nil || strings.Contains(out, s.mesh.Policy) {
		t.Errorf("the mistake is corrected, and status still says: %v\n%s", err, out)
	}
}

// restartWithBrokenPolicy: with no good policy left nobody gets in who would not have before.
func (s *policyScene) restartWithBrokenPolicy(t *testing.T) {
	s.rewritePolicy(`{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}, ]`)
	s.mesh.Restart()
	out, err := s.mesh.CLI("status")
	if err != nil || !strings.Contains(out, s.mesh.Policy) {
		t.Errorf("started with a broken policy, status does not say so: %v\n%s", err, out)
	}
	if letsIn(s.guest.Host, netip.AddrPortFrom(s.printer[0], 80)) {
		t.Error("started with a broken policy, a guest reaches everything")
	}
}

// check tries `subnetd policy check`.
func (s *policyScene) check(t *testing.T) {
	good, bad := filepath.Join(s.lab.Dir(), "good.hujson"), filepath.Join(s.lab.Dir(), "bad.hujson")
	for path, text := range map[string]string{
		good: guestPolicy(s.hosts, printersOnly),
		bad:  guestPolicy(s.hosts, `{"action": "accept", "src": ["tag:unknown"], "dst": ["*:*"]}`),
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args []string
		code int
		says []string
	}{
		{[]string{good}, 0, nil},
		{[]string{bad}, 1, []string{"line 8", "tag:unknown"}},
		{[]string{filepath.Join(s.lab.Dir(), "missing.hujson")}, 1, []string{"missing.hujson"}},
		{nil, 2, []string{"policy"}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		out, err := s.mesh.CLIContext(ctx, append([]string{"policy", "check"}, c.args...)...)
		cancel()
		if got := exitCode(err); got != c.code {
			t.Errorf("policy check %v: exit code %d, want %d: %s", c.args, got, c.code, out)
		}
		for _, word := range c.says {
			if !strings.Contains(out, word) {
				t.Errorf("policy check %v does not say %q: %s", c.args, word, out)
			}
		}
	}
	if p, err := s.mesh.PolicyInForce(); err != nil || p.Error != "" {
		t.Errorf("a check has touched what is in force: %v %q", err, p.Error)
	}
}
