package netns_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// masqService is dnsmasq on the router as a service: a shell that starts it again whenever it ends, and counts.
type masqService struct {
	dir     string // whose files it reads
	pidFile string
	starts  string // one line a start
}

func newMasqService(t *testing.T, router *netns.Host, upstream netip.Addr) *masqService {
	t.Helper()
	home := t.TempDir()
	m := &masqService{dir: filepath.Join(home, "dnsmasq.d"), pidFile: filepath.Join(home, "pid"), starts: filepath.Join(home, "starts")}
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	own := "host-record=nas.lan,192.168.77.9\n"
	if err := os.WriteFile(filepath.Join(m.dir, "owner.conf"), []byte(own), 0o600); err != nil {
		t.Fatal(err)
	}
	router.Start("sh", "-c", `while :; do
		echo start >>"$1/starts"
		dnsmasq --keep-in-foreground --conf-file=/dev/null --conf-dir="$1/dnsmasq.d" --pid-file="$1/pid" --user=root --no-resolv --no-hosts \
			--cache-size=0 --server="$2" --stop-dns-rebind --bogus-priv --domain-needed --bind-interfaces --listen-address=127.0.0.1,192.168.77.1
	done`, "sh", home, upstream.String())
	netns.Eventually(t, 10*time.Second, "dnsmasq answers", func() error {
		if got := dig(t, router, "127.0.0.1", "53", "nas.lan"); got != "192.168.77.9" {
			return fmt.Errorf("nas.lan is %q", got)
		}
		return nil
	})
	return m
}

// restart is the command that has the service begin anew, and waits until it has.
func (m *masqService) restart() string {
	return fmt.Sprintf(`["sh", "-c", "n=$(wc -l <%[1]s); kill $(cat %[2]s); while [ $(wc -l <%[1]s) = $n ]; do sleep 0.02; done"]`, m.starts, m.pidFile)
}

func (m *masqService) started(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(m.starts)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), "\n")
}

// content is every file of dnsmasq's directory.
func (m *masqService) content(t *testing.T) string {
	t.Helper()
	all, err := os.ReadDir(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	out := ""
	for _, e := range all {
		text, err := os.ReadFile(filepath.Join(m.dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out += e.Name() + ":\n" + string(text)
	}
	return out
}

// TestDNSHook: a LAN host with nothing set on it but dnsmasq on the router, as DHCP tells it, opens a page in the mesh by
// its name; also when the coordinator and the daemon were gone in between. `down` leaves dnsmasq as it was. Without a word
// of the owner, a daemon in a namespace leaves the machine's resolver alone.
func TestDNSHook(t *testing.T) {
	lab := netns.New(t)
	isp := newResolver(t, lab, "isp", "www.example.com.", netip.MustParseAddr("198.18.0.80")) // dnsmasq takes documentation addresses for private ones
	systemResolver(t, lab, isp)
	resolvConf := filepath.Join(lab.Dir(), "resolv.conf")
	resolvBefore, err := os.ReadFile(resolvConf)
	if err != nil {
		t.Fatal(err)
	}
	machineBefore, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	s := &homeScene{t: t, lab: lab, home: lab.Home(netns.Public)}
	masq := newMasqService(t, s.home.Router, isp.Addr4)
	before := masq.content(t)
	hook := fmt.Sprintf("[dns]\ndnsmasq_dir = %q\ndnsmasq_restart = %s\n", masq.dir, masq.restart())
	s.mesh = lab.HomeMesh(s.home.Router, netns.HomeOptions{URL: "http://home.test", Expose: "chosen", Devices: []string{"printer=192.168.77.50"}, OtherTOML: hook})
	hs := s.mesh
	phone := s.client("phone", netns.Easy, netns.StockVersions()[0])
	s.letIn(phone)
	p := s.addrs("phone")
	phone.Host.ServePayload("[::]:80", 1, 1000)

	ask := func(want string, args ...string) {
		t.Helper()
		netns.Eventually(t, 10*time.Second, fmt.Sprintf("dnsmasq's word on %s", args), func() error {
			if got := dig(t, s.home.LAN, "192.168.77.1", "53", args...); got != want {
				return fmt.Errorf("%q, want %q", got, want)
			}
			return nil
		})
	}
	open := func() {
		t.Helper()
		netns.Eventually(t, 20*time.Second, "the phone's page opens by its name", func() error {
			a := dig(t, s.home.LAN, "192.168.77.1", "53", "phone.mesh.internal")
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, _, err := s.home.LAN.Fetch(ctx, "http://"+a+"/")
			return err
		})
	}
	all := func() {
		t.Helper()
		ask(p[0].String(), "phone.mesh.internal")
		ask(p[1].String(), "phone.mesh.internal", "aaaa")
		ask("phone.mesh.internal.", "-x", p[0].String())
		ask("phone.mesh.internal.", "-x", p[1].String())
		ask("192.168.77.50", "printer.home.mesh.internal")
		ask("NXDOMAIN", "nobody.mesh.internal")
		ask("198.18.0.80", "www.example.com")
		ask("192.168.77.9", "nas.lan")
	}
	all()
	open()
	starts := masq.started(t)

	// A wish that has nothing to do with names costs dnsmasq nothing, nor does the next daemon, whose coordinator is gone.
	hs.SetOptions(netns.HomeOptions{URL: "http://home.test", Expose: "all", OtherTOML: hook})
	netns.Eventually(t, 10*time.Second, "the LAN is offered", func() error {
		if st, err := hs.StatusJSON(); err != nil || !strings.Contains(fmt.Sprint(st["exposed"]), "192.168.77.0/24") {
			return fmt.Errorf("%v (%v)", st["exposed"], err)
		}
		return nil
	})
	hs.Kill9()
	hs.Start()
	open()
	if got := masq.started(t); got != starts {
		t.Errorf("dnsmasq was restarted %d times for nothing", got-starts)
	}
	if got := len(isp.askers("phone.mesh.internal")) + len(isp.askers("nobody.mesh.internal")); got > 0 {
		t.Error("the provider was asked for names of the mesh")
	}
	st, err := hs.StatusJSON()
	if err != nil || !strings.HasPrefix(fmt.Sprint(st["resolver"]), "dnsmasq, by "+masq.dir) {
		t.Errorf("status says %q (%v)", st["resolver"], err)
	}

	hs.Must("down")
	if got := masq.content(t); got != before {
		t.Errorf("after `down` dnsmasq's directory has\n%s\nwant\n%s", got, before)
	}
	ask("NXDOMAIN", "phone.mesh.internal")
	ask("198.18.0.80", "www.example.com")
	ask("192.168.77.9", "nas.lan")

	// The same machine without the owner's word.
	hs.Must("up")
	hs.SetOptions(netns.HomeOptions{URL: "http://home.test"})
	netns.Eventually(t, 10*time.Second, "the resolver is left alone", func() error {
		if st, err := hs.StatusJSON(); err != nil || !strings.HasPrefix(fmt.Sprint(st["resolver"]), "nothing: this program is in a network namespace") {
			return fmt.Errorf("%q (%v)", st["resolver"], err)
		}
		return nil
	})
	if got := masq.content(t); got != before {
		t.Errorf("dnsmasq's directory has\n%s", got)
	}
	for file, want := range map[string][]byte{resolvConf: resolvBefore, "/etc/resolv.conf": machineBefore} {
		if got, err := os.ReadFile(file); err != nil || string(got) != string(want) {
			t.Errorf("%s was touched: %q (%v)", file, got, err)
		}
	}
}
