package netns_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// TestMakeRun: `make run` makes a home mesh on this machine and prints the line by which a computer joins it: that
// computer reaches the router and the home. Ctrl-C leaves nothing.
func TestMakeRun(t *testing.T) {
	lab := netns.New(t)
	home := lab.Home(netns.Public)
	laptop := lab.StockPeerVersion(lab.OnLAN(home, "laptop", 60), netns.StockVersions()[0])
	tmp := filepath.Join(lab.Dir(), "tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	before := traces(t, home.Router)
	run := lab.MakeRun(home.Router, tmp)
	start := time.Now()
	netns.Eventually(t, 5*time.Minute, "make run prints a join line", func() error {
		select {
		case <-run.Done():
			t.Fatalf("it has ended:\n%s", run.Tail(40))
		default:
		}
		if !strings.Contains(strings.Join(run.Lines(), "\n"), "tailscale up ") {
			return errors.New(run.Tail(10))
		}
		return nil
	})
	t.Logf("the join line is there after %v:\n%s", time.Since(start).Round(time.Millisecond), run.Tail(40))
	if out, err := laptop.UpWith(time.Minute, joinLine(t, strings.Join(run.Lines(), "\n"))...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := laptop.CLI(t.Context(), "set", "--accept-routes"); err != nil {
		t.Fatal(err)
	}
	wantReach(t, laptop.Host, onlyPeer(t, laptop)...)
	wantThroughMesh(t, laptop.Host, home.LAN.Addr4)
	wantReach(t, laptop.Host, home.LAN.Addr4)

	stopped := time.Now()
	if err := syscall.Kill(-run.Pid(), syscall.SIGINT); err != nil { // to all of the group, as a terminal does
		t.Fatal(err)
	}
	select {
	case <-run.Done():
		t.Logf("ended %v after Ctrl-C", time.Since(stopped).Round(time.Millisecond))
	case <-time.After(30 * time.Second):
		t.Fatalf("it goes on after Ctrl-C:\n%s", run.Tail(40))
	}
	if after := traces(t, home.Router); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if pids := home.Router.Processes(); len(pids) > 0 {
		t.Errorf("still running: %q", pids)
	}
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) > 0 {
		t.Errorf("left among the temporary files: %v %v", left, err)
	}
}

// onlyPeer gives the addresses of the one peer that a client has.
func onlyPeer(t *testing.T, p *netns.StockPeer) []netip.Addr {
	t.Helper()
	st, err := p.Status()
	if err != nil || len(st.Peer) != 1 {
		t.Fatalf("want one peer, have %+v (%v)", st.Peer, err)
	}
	for _, n := range st.Peer {
		return n.TailscaleIPs
	}
	return nil
}

// wantThroughMesh waits until packets to an address go into the client's tunnel.
func wantThroughMesh(t *testing.T, h *netns.Host, a netip.Addr) {
	t.Helper()
	netns.Eventually(t, 20*time.Second, a.String()+" is reached through the mesh", func() error {
		out, err := h.Run(t.Context(), "ip", "route", "get", a.String())
		if err == nil && !strings.Contains(out, "dev tailscale0") {
			err = errors.New(out)
		}
		return err
	})
}
