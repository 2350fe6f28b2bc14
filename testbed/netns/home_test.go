package netns_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// client makes a stock client of a version behind a NAT. It has no login yet.
func (s *homeScene) client(name string, kind netns.NAT, version string) *netns.StockPeer {
	s.t.Helper()
	return s.lab.StockPeerVersion(s.lab.Client(name, kind), version)
}

// letIn runs the join line of a new invitation on a client.
func (s *homeScene) letIn(p *netns.StockPeer, inviteFlags ...string) {
	s.t.Helper()
	i := s.mesh.Invite(inviteFlags...)
	if out, err := p.UpWith(time.Minute, "--login-server="+i.URL, "--auth-key="+i.Key); err != nil {
		s.t.Fatalf("%s joins: %v\n%s", p.Host.Name, err, out)
	}
}

// joinLine finds the line to be typed on a computer in what `invite` prints, and takes `tailscale up` off it.
func joinLine(t *testing.T, printed string) []string {
	t.Helper()
	for line := range strings.Lines(printed) {
		if i := strings.Index(line, "tailscale up "); i >= 0 {
			return strings.Fields(line[i:])[2:]
		}
	}
	t.Fatalf("no join line in:\n%s", printed)
	return nil
}

// TestHomeJoinLine: the line that `subnetd invite` prints, typed on a computer elsewhere, is all it takes: the computer
// reaches the router, and the LAN once it accepts routes. Nobody approves anything.
func TestHomeJoinLine(t *testing.T) {
	for _, version := range netns.StockVersions() {
		t.Run(version, func(t *testing.T) {
			s := openHome(t, netns.HomeOptions{})
			laptop := s.client("laptop", netns.Easy, version)
			printed := s.mesh.Must("invite")
			t.Logf("subnetd invite:\n%s", printed)
			if !strings.ContainsAny(printed, "█▀▄") {
				t.Error("there is no QR code")
			}
			start := time.Now()
			if out, err := laptop.UpWith(60*time.Second, joinLine(t, printed)...); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			t.Logf("joined in %v", time.Since(start).Round(time.Millisecond))
			wantReach(t, laptop.Host, s.addrs("home")...)
			if _, err := s.mesh.Node("laptop"); err != nil {
				t.Error(err)
			}
			if _, err := laptop.CLI(t.Context(), "set", "--accept-routes"); err != nil {
				t.Fatal(err)
			}
			wantReach(t, laptop.Host, s.home.LAN.Addr4, s.home.LAN.Addr6)
			wantReach(t, s.home.LAN, s.addrs("laptop")...)
			if out := s.mesh.Must("invite", "--no-qr"); strings.ContainsAny(out, "█▀▄") {
				t.Error("--no-qr prints a QR code")
			}
		})
	}
}

// TestHomeInviteAtHome: without a URL the invitation is good at home, says so, and works there.
func TestHomeInviteAtHome(t *testing.T) {
	s := atHome(t, netns.StockVersions()[0])
	i := s.mesh.Invite()
	if i.Outside || len(i.Missing) == 0 {
		t.Errorf("nothing is said of what is missing outside: %+v", i)
	}
	if want := "http://" + s.home.LAN4.Addr().Next().String() + ":8410"; i.URL != want {
		t.Errorf("the URL is %s, want %s", i.URL, want)
	}
	printed := s.mesh.Must("invite", "--no-qr")
	t.Logf("subnetd invite --no-qr:\n%s", printed)
	for _, m := range i.Missing {
		if !strings.Contains(printed, m) {
			t.Errorf("`invite` does not print %q", m)
		}
	}
	wantReach(t, s.clients[0].Host, s.addrs("home")...)
}

// atHomeScene is a mesh that is reachable on the LAN only, with a laptop there for each version.
type atHomeScene struct {
	*homeScene
	clients []*netns.StockPeer
}

// atHome makes a mesh without a URL and lets laptops on its LAN join.
func atHome(t *testing.T, versions ...string) *atHomeScene {
	t.Helper()
	s := &atHomeScene{homeScene: &homeScene{t: t, lab: netns.New(t)}}
	s.home = s.lab.Home(netns.Public)
	for i, v := range versions {
		h := s.lab.OnLAN(s.home, fmt.Sprintf("laptop%d", i), byte(60+i))
		s.clients = append(s.clients, s.lab.StockPeerVersion(h, v))
	}
	s.mesh = s.lab.HomeMesh(s.home.Router, netns.HomeOptions{})
	for _, c := range s.clients {
		s.letIn(c)
	}
	return s
}

// TestHomeNamesDirectAndRelayed: two stock clients behind NATs, which trust nobody in particular, find each other by
// name: directly, and through the relay in the router when UDP is blocked.
func TestHomeNamesDirectAndRelayed(t *testing.T) {
	s := openHome(t, netns.HomeOptions{})
	phone := s.client("phone", netns.Easy, netns.StockVersions()[0])
	tablet := s.client("tablet", netns.Easy, netns.StockVersions()[1])
	s.letIn(phone)
	s.letIn(tablet)
	const name, size = "tablet.mesh.internal", 20_000_000
	want := s.addrs("tablet")
	tablet.Host.ServePayload("[::]:80", 3, size)
	wantNames(t, phone.Host, name, want)

	if reach, out := phone.Ping(t.Context(), want[0], 10); reach != netns.Direct {
		t.Errorf("two easy NATs give a direct path; got %s:\n%s", reach, out)
	}
	wantPayload(t, phone.Host, "http://"+want[0].String()+"/", 3, size)
	wantCurl(t, phone.Host, "http://"+name+"/", 3, size)

	for _, p := range []*netns.StockPeer{phone, tablet} {
		p.Host.Behind().NFT("delete table inet nat")
		p.Host.Behind().NFT(netns.UDPBlockedRules())
	}
	start := time.Now()
	netns.Eventually(t, 60*time.Second, "the relay carries", func() error {
		out, err := phone.CLI(t.Context(), "ping", "-c", "1", "--timeout", "2s", "--until-direct=false", "tablet")
		if err == nil && !strings.Contains(out, "via DERP(home)") {
			err = errors.New(out)
		}
		return err
	})
	t.Logf("relayed %v after UDP was blocked", time.Since(start).Round(time.Millisecond))
	wantNames(t, phone.Host, name, want)
	for _, a := range want {
		wantPayload(t, phone.Host, "http://"+netip.AddrPortFrom(a, 80).String()+"/", 3, size)
	}
	st, err := phone.Status()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := st.PeerNamed("tablet"); err != nil || n.CurAddr != "" {
		t.Errorf("the way to the tablet is %q, want the relay (%v)", n.CurAddr, err)
	}
	for _, p := range []*netns.StockPeer{phone, tablet} {
		if st, err := p.Status(); err != nil || len(st.Health) > 0 {
			t.Logf("%s complains: %q %v", p.Host.Name, st.Health, err)
		}
	}
}

// wantNames asks the stock client's resolver, and the machine's, for a name.
func wantNames(t *testing.T, h *netns.Host, name string, want []netip.Addr) {
	t.Helper()
	sort := func(s []netip.Addr) []netip.Addr { return slices.SortedFunc(slices.Values(s), netip.Addr.Compare) }
	netns.Eventually(t, 20*time.Second, h.Name+" finds "+name, func() error {
		got, err := lookup(t.Context(), h, name)
		if err == nil && !slices.Equal(sort(got), sort(want)) {
			err = fmt.Errorf("it is %v, want %v", got, want)
		}
		return err
	})
	out, err := h.RunPlain(t.Context(), "getent", "ahosts", name)
	if err != nil || !strings.Contains(out, want[0].String()+" ") {
		t.Errorf("the machine's own resolver: %v\n%s", err, out)
	}
}

// wantCurl downloads a payload as any program of the machine would, by name, and compares its sum.
func wantCurl(t *testing.T, h *netns.Host, url string, seed byte, size int64) {
	t.Helper()
	out, err := h.RunPlain(t.Context(), "sh", "-c", `curl -sS --max-time 60 "$1" | sha256sum`, "sh", url)
	if err != nil || !strings.HasPrefix(out, netns.PayloadSum(seed, size)) {
		t.Fatalf("%s fetches %s: %v\n%s", h.Name, url, err, out)
	}
}

// TestHomeDeviceAddress: a printer, which runs nothing, is reached by its name and under addresses of its own in the
// mesh, by stock clients that accept no routes.
func TestHomeDeviceAddress(t *testing.T) {
	s := openHome(t, netns.HomeOptions{Expose: "chosen", Devices: []string{"printer=192.168.77.50", "printer=fd77:77::50"}})
	s.home.LAN.ServePayload("[::]:80", 4, 5_000_000)
	for i, version := range netns.StockVersions() {
		t.Run(version, func(t *testing.T) {
			name := fmt.Sprintf("client%d", i)
			client := s.client(name, netns.Easy, version)
			s.letIn(client)
			printer := s.addrs("printer")
			t.Logf("the printer is %v", printer)
			wantReach(t, client.Host, printer...)
			for _, a := range printer {
				wantPayload(t, client.Host, "http://"+netip.AddrPortFrom(a, 80).String()+"/", 4, 5_000_000)
			}
			wantNames(t, client.Host, "printer.mesh.internal", printer)
			wantCurl(t, client.Host, "http://printer.mesh.internal/", 4, 5_000_000)
			for _, a := range []netip.Addr{s.home.LAN.Addr4, s.home.LAN.Addr6} {
				if letsIn(client.Host, netip.AddrPortFrom(a, 80)) {
					t.Errorf("%v is reached without --accept-routes: the test proves nothing", a)
				}
			}
			router := s.addrs("home")
			if got, err := lookup(t.Context(), client.Host, "home.mesh.internal"); err != nil || len(got) == 0 || !subset(got, router) {
				t.Errorf("the router's name leads to %v, want some of %v (%v)", got, router, err)
			}
			if _, err := s.mesh.Node("printer"); err == nil {
				t.Error("the printer is listed as a node")
			}
		})
	}
}

// subset says whether all of these addresses are among those.
func subset(these, those []netip.Addr) bool {
	return !slices.ContainsFunc(these, func(a netip.Addr) bool { return !slices.Contains(those, a) })
}
