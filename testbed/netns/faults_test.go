package netns_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// TestKill9: 200 ends without warning at random moments of starting, joining and changing the configuration cost
// neither identity nor configuration, and leave nothing that stops the next start.
func TestKill9(t *testing.T) {
	lab := netns.New(t)
	hs, home := lab.Headscale(), lab.Home(netns.Public)
	d := lab.Subnetd(home.Router, daemonConfig)
	key := hs.PreAuthKey("ana", netns.KeyOptions{Reusable: true})
	d.UpKey(hs, key, "home")
	hs.ApproveRoutes("home", home.LAN4, home.LAN6)
	before, err := hs.Node("home")
	if err != nil {
		t.Fatal(err)
	}
	identity := readFile(t, d.State, "identity")

	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	name := "home"
	for i := range 200 {
		d.Kill9()
		d.Launch()
		name = fmt.Sprintf("home-%d", i)
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(random.IntN(200))*time.Millisecond)
		for ctx.Err() == nil { // until the daemon answers, then until the end
			_, _ = d.CLIContext(ctx, "up", "--control", hs.URL, "--auth-key", key, "--hostname", name)
		}
		cancel()
	}
	d.Kill9()
	d.Start()
	if now := readFile(t, d.State, "identity"); now != identity {
		t.Error("the identity is another")
	}
	wantNoLeftovers(t, d.State)
	wantNoLeftovers(t, filepath.Dir(d.Config))
	d.UpKey(hs, key, "home")
	after, err := hs.Node("home")
	if err != nil {
		t.Fatal(err)
	}
	if before.ID != after.ID {
		t.Errorf("the coordinator knows it as node %v, was %v", after.ID, before.ID)
	}
	conf, err := os.ReadFile(d.Config)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(conf), `expose = "all"`) || !strings.Contains(string(conf), `hostname = "home"`) {
		t.Errorf("the configuration lost something:\n%s", conf)
	}
	phone := lab.StockPeer(lab.NAT(netns.Easy))
	phone.Up(hs.URL, key, "--accept-routes")
	wantReach(t, phone.Host, home.LAN.Addr4, home.LAN.Addr6)
}

func readFile(t *testing.T, dir, name string) string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, name+"*"))
	if err != nil || len(all) != 1 {
		t.Fatalf("want one file %s in the state folder, have %v (%v)", name, all, err)
	}
	b, err := os.ReadFile(all[0])
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func wantNoLeftovers(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.Contains(e.Name(), "tmp") || strings.Contains(e.Name(), "corrupt") {
			t.Errorf("left over: %s", filepath.Join(dir, e.Name()))
		}
	}
}

// TestWANAddressReplaced: the provider gives the home another address in the middle of a download; the download goes
// on and ends whole.
func TestWANAddressReplaced(t *testing.T) {
	wantWANReplaced(t, join(t, netns.Public, netns.Easy), 500_000_000)
}

// wantWANReplaced downloads so many bytes; a tenth after the beginning the router's address becomes 203.0.113.120.
func wantWANReplaced(t *testing.T, s *scene, size int64) {
	t.Helper()
	wantReach(t, s.phone.Host, s.home.LAN.Addr4)
	wan := s.home.Router
	s.home.LAN.ServePayload("[::]:80", 1, size)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	type result struct {
		sum string
		err error
		at  time.Time
	}
	fetched := make(chan result, 1)
	go func() {
		_, sum, err := s.phone.Host.Fetch(ctx, "http://"+s.home.LAN.Addr4.String()+"/")
		fetched <- result{sum, err, time.Now()}
	}()
	netns.Eventually(t, 20*time.Second, "the download runs", func() error { return carried(s, float64(size)/10) })
	wan.IP(fmt.Sprintf("addr del %s/24 dev wan0", wan.Addr4), fmt.Sprintf("addr del %s/64 dev wan0", wan.Addr6),
		"addr add 203.0.113.120/24 dev wan0", "addr add 2001:db8::120/64 dev wan0 nodad",
		"route replace default via 203.0.113.1", "route replace ::/0 via 2001:db8::1")
	wan.Addr4, wan.Addr6 = netip.MustParseAddr("203.0.113.120"), netip.MustParseAddr("2001:db8::120")
	changed := time.Now()
	netns.Eventually(t, 60*time.Second, "the path is direct again", func() error {
		out, err := s.phone.CLI(ctx, "ping", "-c", "1", "--timeout", "2s", "home")
		if err == nil && !strings.Contains(out, "via 203.0.113.120:") {
			err = errors.New(out)
		}
		return err
	})
	t.Logf("direct to the new address %v after the old one went", time.Since(changed).Round(time.Millisecond))
	r := <-fetched
	if r.err != nil {
		t.Fatalf("the download broke: %v", r.err)
	}
	if r.at.Before(changed) {
		t.Fatal("the download was over before the address changed")
	}
	if r.sum != netns.PayloadSum(1, size) {
		t.Error("the download has another SHA-256")
	}
}

// carried says nil once the home has sent so many bytes to the phone.
func carried(s *scene, want float64) error {
	m, err := s.daemon.StatusJSON()
	if err != nil {
		return err
	}
	peers, _ := m["peers"].([]any)
	for _, p := range peers {
		if tx, _ := p.(map[string]any)["tx"].(float64); tx >= want {
			return nil
		}
	}
	return fmt.Errorf("not yet %.0f bytes: %v", want, peers)
}

// TestBadConfiguration: a configuration that makes no sense is refused with file, line and key, and the last good one
// stays in force.
func TestBadConfiguration(t *testing.T) {
	s := join(t, netns.Public, netns.Public)
	wantReach(t, s.phone.Host, s.home.LAN.Addr4)
	good, err := os.ReadFile(s.daemon.Config)
	if err != nil {
		t.Fatal(err)
	}
	s.daemon.Reload(strings.Replace(string(good), `expose = "all"`, `expose = "everything"`, 1))
	netns.Eventually(t, 5*time.Second, "status tells of the mistake", func() error {
		out, err := s.daemon.CLI("status")
		if err == nil && !(strings.Contains(out, s.daemon.Config+":") && strings.Contains(out, "lan.expose")) {
			err = errors.New(out)
		}
		if err == nil {
			t.Log(strings.TrimSpace(out[:strings.Index(out, "\n\n")]))
		}
		return err
	})
	if err := s.phone.Host.Ping(t.Context(), s.home.LAN.Addr4); err != nil {
		t.Errorf("the last good configuration is not in force: %v", err)
	}
	s.daemon.Reload(strings.Replace(string(good), `expose = "all"`, `expose = "none"`, 1))
	netns.Eventually(t, 5*time.Second, "the corrected configuration is in force", func() error {
		out, err := s.daemon.CLI("status")
		if err == nil && (strings.Contains(out, "lan.expose") || strings.Contains(out, "offers")) {
			err = errors.New(out)
		}
		return err
	})
	if err := s.phone.Host.Ping(t.Context(), s.home.LAN.Addr4); err == nil {
		t.Error("the LAN answers although nothing of it is exposed")
	}
	d := s.daemon
	if err := d.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := os.WriteFile(d.Config, []byte("[lan]\nsnat = 3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := s.home.Router.Run(t.Context(), d.Binary(), "run", "--config", d.Config, "--state", d.State, "--socket", d.Socket)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(out, d.Config+":2") || !strings.Contains(out, "lan.snat") {
		t.Errorf("start with a bad configuration: %v\n%s", err, out)
	}
}

// TestDamagedState: a state file that cannot be read is kept under another name and told of; nothing is made anew in
// silence.
func TestDamagedState(t *testing.T) {
	s := join(t, netns.Public, netns.Public)
	wantReach(t, s.phone.Host, s.home.LAN.Addr4)
	if err := s.daemon.Stop(); err != nil {
		t.Fatal(err)
	}
	all, err := filepath.Glob(filepath.Join(s.daemon.State, "identity*"))
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	if err := os.WriteFile(all[0], []byte("{\"machine\": \"privkey:00"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.daemon.Start()
	out, err := s.daemon.CLI("status")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out, all[0]) || !strings.Contains(out, "corrupt") {
		t.Errorf("status says nothing of the damaged file:\n%s", out)
	}
	t.Log(strings.SplitN(out, "\n", 2)[0])
	aside, err := filepath.Glob(all[0] + "*corrupt*")
	if err != nil || len(aside) != 1 {
		t.Errorf("the damaged file was not kept: %v", aside)
	}
}

// TestFullDisk: without room for the netmap the mesh goes on, status says so, and when there is room again it is over.
func TestFullDisk(t *testing.T) {
	lab := netns.New(t)
	hs, home := lab.Headscale(), lab.Home(netns.Public)
	d := lab.SubnetdOnDisk(home.Router, daemonConfig, 256<<10)
	d.UpKey(hs, hs.PreAuthKey("ana", netns.KeyOptions{}), "home")
	hs.ApproveRoutes("home", home.LAN4, home.LAN6)
	filler := filepath.Join(d.State, "filler")
	fillDisk(t, filler)
	phone := lab.StockPeer(lab.NAT(netns.Public))
	phone.Up(hs.URL, hs.PreAuthKey("ana", netns.KeyOptions{}), "--accept-routes")
	wantReach(t, phone.Host, home.LAN.Addr4)
	netns.Eventually(t, 5*time.Second, "status tells of the full disk", func() error {
		out, err := d.CLI("status")
		if err == nil && !strings.Contains(out, "no space left") {
			err = errors.New(out)
		}
		return err
	})
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	hs.SetPolicy(webOnly) // news, so there is something to write
	netns.Eventually(t, 5*time.Second, "the trouble is over", func() error {
		out, err := d.CLI("status")
		if err == nil && strings.Contains(out, "no space left") {
			err = errors.New(out)
		}
		return err
	})
}

func fillDisk(t *testing.T, file string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
}

// TestKeyExpires: a node key that the coordinator declares expired is told of, does not become a storm, and a new key
// brings the node back under its address.
func TestKeyExpires(t *testing.T) {
	s := join(t, netns.Public, netns.Public)
	wantReach(t, s.phone.Host, s.home.LAN.Addr4)
	before, _, err := s.hs.MeshAddrs("home")
	if err != nil {
		t.Fatal(err)
	}
	s.hs.Expire("home")
	netns.Eventually(t, 10*time.Second, "status asks for a login", func() error {
		m, err := s.daemon.StatusJSON()
		if err == nil && m["phase"] != "needs-login" {
			err = fmt.Errorf("phase %v, %v", m["phase"], m["error"])
		}
		return err
	})
	// Whoever storms does it in any second.
	was := s.hs.Requests("/machine/register")
	time.Sleep(3 * time.Second)
	if n := s.hs.Requests("/machine/register") - was; n > 5 {
		t.Errorf("%d registrations in three seconds", n)
	}
	if err := s.phone.Host.Ping(t.Context(), s.home.LAN.Addr4); err == nil {
		t.Error("a node with an expired key still serves the mesh")
	}
	s.daemon.UpKey(s.hs, s.hs.PreAuthKey("ana", netns.KeyOptions{}), "home")
	after, _, err := s.hs.MeshAddrs("home")
	if err != nil || after != before {
		t.Errorf("address %v after the new login, %v before (%v)", after, before, err)
	}
	wantReach(t, s.phone.Host, s.home.LAN.Addr4)
}
