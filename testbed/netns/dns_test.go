package netns_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"subnetd/testbed/netns"
)

// resolver is a name server of the lab that remembers who asked it for what.
type resolver struct {
	*netns.Host
	mu    sync.Mutex
	asked []string // "address name", without questions for addresses of the testbed itself
}

// newResolver answers on a public host for one name, by UDP and TCP; by UDP it cuts answers for names with "long" in them.
func newResolver(t *testing.T, lab *netns.Lab, host, name string, a netip.Addr) *resolver {
	t.Helper()
	r := &resolver{Host: lab.Client(host, netns.Public)}
	pc, err := r.ListenPacket("0.0.0.0:53")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := r.Listen("0.0.0.0:53")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close(); ln.Close() })
	answer := func(q []byte, from net.Addr) []byte {
		var m dnsmessage.Message
		if err := m.Unpack(q); err != nil || len(m.Questions) != 1 {
			return nil
		}
		at, _ := netip.ParseAddrPort(from.String())
		r.mu.Lock()
		r.asked = append(r.asked, at.Addr().Unmap().String()+" "+strings.ToLower(m.Questions[0].Name.String()))
		r.mu.Unlock()
		out, err := answerDNS(q, name, a)
		if err != nil {
			return nil
		}
		return out
	}
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			out := answer(b[:n], from)
			if len(out) > 12 && strings.Contains(string(b[:n]), "long") {
				out[2] |= 2 // cut
			}
			_, _ = pc.WriteTo(out, from)
		}
	}()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 1500)
				if n, err := c.Read(b); err == nil && n > 2 {
					out := answer(b[2:n], c.RemoteAddr())
					_, _ = c.Write(append([]byte{byte(len(out) >> 8), byte(len(out))}, out...))
				}
			}()
		}
	}()
	return r
}

// askers are who asked for a name.
func (r *resolver) askers(name string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, a := range r.asked {
		if from, n, _ := strings.Cut(a, " "); n == name+"." && !slices.Contains(out, from) {
			out = append(out, from)
		}
	}
	return out
}

// systemResolver makes a host the resolver of every machine of the lab that is started from now on.
func systemResolver(t *testing.T, lab *netns.Lab, r *resolver) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(lab.Dir(), "resolv.conf"), []byte("nameserver "+r.Addr4.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

const namesPort = "5335"

// dig asks a server, and gives the answers, or the status if there are none.
func dig(t *testing.T, h *netns.Host, server, port string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := h.Run(ctx, "dig", append([]string{"+time=3", "+tries=1", "@" + server, "-p", port}, args...)...)
	if err != nil {
		return "silence"
	}
	var got []string
	status, section := "", false
	for line := range strings.Lines(out) {
		if _, s, ok := strings.Cut(line, "status: "); ok {
			status, _, _ = strings.Cut(s, ",")
		}
		switch f := strings.Fields(line); {
		case strings.HasPrefix(line, ";; ANSWER SECTION"):
			section = true
		case len(f) == 0:
			section = false
		case section:
			got = append(got, strings.Join(f[4:], " "))
		}
	}
	if len(got) == 0 {
		return status
	}
	slices.Sort(got)
	return strings.Join(got, " ")
}

// TestNames: the router answers for the mesh's names, to strangers' tools: to the router itself, to the LAN and to members,
// each with the addresses that are best for him; nobody else hears anything. It goes on answering when the mesh's
// coordinator is gone.
func TestNames(t *testing.T) {
	lab := netns.New(t)
	isp := newResolver(t, lab, "isp", "www.example.com.", netip.MustParseAddr("192.0.2.80"))
	corp := newResolver(t, lab, "corp", "long.corp.example.", netip.MustParseAddr("192.0.2.81"))
	systemResolver(t, lab, isp)
	s := &homeScene{t: t, lab: lab, home: lab.Home(netns.Public)}
	s.mesh = lab.HomeMesh(s.home.Router, netns.HomeOptions{URL: "http://home.test", Expose: "chosen",
		Devices: []string{"printer=192.168.77.50", "printer=fd77:77::50"}, SplitDNS: []string{"corp.example=" + corp.Addr4.String()}})
	phone := s.client("phone", netns.Easy, netns.StockVersions()[0])
	s.letIn(phone)
	p, printer, router := s.addrs("phone"), s.addrs("printer"), s.addrs("home")
	type question struct {
		from   *netns.Host
		server string
		args   []string
		want   string
	}
	own, lan := "127.0.0.1", "192.168.77.1"
	for _, q := range []question{
		{s.home.Router, own, []string{"phone.mesh.internal"}, p[0].String()},
		{s.home.Router, "::1", []string{"PHONE.mesh.INTERNAL", "aaaa"}, p[1].String()},
		{s.home.Router, own, []string{"+tcp", "phone.mesh.internal"}, p[0].String()},
		{s.home.Router, own, []string{"+noedns", "phone"}, p[0].String()},
		{s.home.Router, own, []string{"-x", p[0].String()}, "phone.mesh.internal."},
		{s.home.Router, own, []string{"-x", p[1].String()}, "phone.mesh.internal."},
		{s.home.Router, own, []string{"-x", printer[0].String()}, "printer.home.mesh.internal."},
		{s.home.Router, own, []string{"-x", "100.127.255.254"}, "NXDOMAIN"},
		{s.home.Router, own, []string{"nobody.mesh.internal"}, "NXDOMAIN"},
		{s.home.Router, own, []string{"phone.mesh.internal", "mx"}, "NOERROR"},
		{s.home.Router, own, []string{"phone.mesh.internal", "any"}, `"RFC8482" ""`},
		{s.home.Router, own, []string{"mesh.internal", "axfr"}, ""},
		{s.home.Router, own, []string{"ch", "version.bind", "txt"}, "REFUSED"},
		{s.home.Router, own, []string{"+edns=1", "+noednsnegotiation", "phone.mesh.internal"}, "BADVERS"},
		{s.home.Router, own, []string{"www.example.com"}, "192.0.2.80"},
		{s.home.Router, own, []string{"nobody.example.com"}, "NXDOMAIN"},
		{s.home.Router, own, []string{"long.corp.example"}, "192.0.2.81"},
		{s.home.LAN, lan, []string{"printer.mesh.internal"}, "192.168.77.50"},
		{s.home.LAN, lan, []string{"printer.home.mesh.internal"}, "192.168.77.50"},
		{s.home.LAN, "fd77:77::1", []string{"printer.home.mesh.internal", "aaaa"}, "fd77:77::50"},
		{s.home.LAN, lan, []string{"+tcp", "home.mesh.internal"}, router[0].String()},
		{phone.Host, router[0].String(), []string{"printer.home.mesh.internal"}, printer[0].String()},
		{phone.Host, router[1].String(), []string{"+tcp", "printer.home.mesh.internal", "aaaa"}, printer[1].String()},
		{phone.Host, s.home.Router.Addr4.String(), []string{"phone.mesh.internal"}, "silence"},
		{phone.Host, s.home.Router.Addr4.String(), []string{"+tcp", "phone.mesh.internal"}, "silence"},
	} {
		if got := dig(t, q.from, q.server, namesPort, q.args...); got != q.want {
			t.Errorf("%s asks %s for %s: %q, want %q", q.from.Name, q.server, q.args, got, q.want)
		}
	}
	if out, err := s.home.Router.Run(t.Context(), "drill", "-p", namesPort, "phone.mesh.internal", "@127.0.0.1"); err != nil || !strings.Contains(out, p[0].String()) {
		t.Errorf("drill: %v\n%s", err, out)
	}
	if got := isp.askers("long.corp.example"); len(got) > 0 {
		t.Errorf("%v asked the provider for a name of the company's", got)
	}
	for _, name := range []string{"printer.home.mesh.internal", "printer.mesh.internal"} {
		wantNames(t, phone.Host, name, printer)
	}
	// by the addresses that clients know
	for _, q := range []question{
		{s.home.LAN, "100.100.100.100", []string{"phone.mesh.internal"}, p[0].String()},
		{s.home.LAN, "100.100.100.100", []string{"+tcp", "printer.home.mesh.internal"}, "192.168.77.50"},
		{s.home.LAN, "fd7a:115c:a1e0::53", []string{"phone.mesh.internal", "aaaa"}, p[1].String()},
		{s.home.Router, "100.100.100.100", []string{"phone.mesh.internal"}, p[0].String()},
		{s.home.Router, "fd7a:115c:a1e0::53", []string{"+tcp", "phone.mesh.internal", "aaaa"}, p[1].String()},
	} {
		if got := dig(t, q.from, q.server, "53", q.args...); got != q.want {
			t.Errorf("%s asks %s for %s: %q, want %q", q.from.Name, q.server, q.args, got, q.want)
		}
	}
	s.mesh.Must("down")
	if got := dig(t, s.home.Router, own, namesPort, "phone.mesh.internal"); got != "silence" {
		t.Errorf("after `down`: %q", got)
	}
}

// TestExitNames: whoever leaves through us asks us for names, and nobody where he is; the policy decides who.
func TestExitNames(t *testing.T) {
	lab := netns.New(t)
	isp := newResolver(t, lab, "isp", "www.example.com.", netip.MustParseAddr("192.0.2.80"))
	hotel := newResolver(t, lab, "hotel", "www.example.com.", netip.MustParseAddr("192.0.2.99"))
	systemResolver(t, lab, hotel)
	phone := lab.StockPeerVersion(lab.Client("phone", netns.Easy), netns.StockVersions()[0])
	systemResolver(t, lab, isp)
	s := &homeScene{t: t, lab: lab, home: lab.Home(netns.Public)}
	s.mesh = lab.HomeMesh(s.home.Router, netns.HomeOptions{URL: "http://home.test", Expose: "none", OtherTOML: "[exit]\noffer = true\n"})
	i := s.mesh.Invite()
	phone.Host.Trust(lab.CACert())
	if out, err := phone.UpWith(50*time.Second, "--login-server="+i.URL, "--auth-key="+i.Key, "--hostname=phone", "--accept-dns=true"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	resolve := func() string {
		out, _ := phone.Host.RunPlain(t.Context(), "getent", "ahostsv4", "www.example.com")
		first, _, _ := strings.Cut(out, " ")
		return first
	}
	if got := resolve(); got != "192.0.2.99" {
		t.Fatalf("without an exit the hotel says %q", got)
	}
	router := s.addrs("home")
	netns.Eventually(t, 20*time.Second, "the phone leaves through home", func() error {
		_, err := phone.CLI(t.Context(), "set", "--exit-node="+router[0].String())
		return err
	})
	before := len(hotel.askers("www.example.com"))
	if before != 1 {
		t.Fatalf("the hotel was asked by %d", before)
	}
	hotel.mu.Lock()
	hotel.asked = nil
	hotel.mu.Unlock()
	netns.Eventually(t, 20*time.Second, "names come from home", func() error {
		if got := resolve(); got != "192.0.2.80" {
			return fmt.Errorf("www.example.com is %q", got)
		}
		return nil
	})
	if got := isp.askers("www.example.com"); !slices.Equal(got, []string{s.home.Router.Addr4.String()}) {
		t.Errorf("home's provider was asked by %v, want the router", got)
	}
	if got := hotel.askers("www.example.com"); len(got) > 0 {
		t.Errorf("the hotel was asked by %v: a leak", got)
	}
	st, err := phone.Status()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("health: %q", st.Health)
}
