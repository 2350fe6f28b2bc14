package netns_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// atOnce is how long others may take to hear that somebody left or changed.
const atOnce = 5 * time.Second

// registrar remembers what the coordinator has given to whom: nothing may be given twice.
type registrar struct {
	ids   map[int64]string
	addrs map[netip.Addr]string
}

func newRegistrar() *registrar {
	return &registrar{ids: map[int64]string{}, addrs: map[netip.Addr]string{}}
}

// first notes a node that has just joined as somebody new.
func (r *registrar) first(t *testing.T, s *homeScene, name, who string) netns.HomeNode {
	t.Helper()
	n, err := s.mesh.Node(name)
	if err != nil {
		t.Fatal(err)
	}
	if was, ok := r.ids[n.ID]; ok {
		t.Errorf("%s has the ID %d of %s", who, n.ID, was)
	}
	r.ids[n.ID] = who
	for _, a := range n.Addresses {
		if was, ok := r.addrs[a]; ok {
			t.Errorf("%s has the address %v of %s", who, a, was)
		}
		r.addrs[a] = who
	}
	t.Logf("%s: ID %d, %v", who, n.ID, n.Addresses)
	return n
}

// again notes a machine that is here once more: it may have what was its own, and nothing of others.
func (r *registrar) again(t *testing.T, s *homeScene, name, who string) {
	t.Helper()
	n, err := s.mesh.Node(name)
	if err != nil {
		t.Fatal(err)
	}
	if was, ok := r.ids[n.ID]; ok && was != who {
		t.Errorf("%s has the ID %d of %s", who, n.ID, was)
	}
	for _, a := range n.Addresses {
		if was, ok := r.addrs[a]; ok && was != who {
			t.Errorf("%s has the address %v of %s", who, a, was)
		}
	}
	t.Logf("%s again: ID %d, %v", who, n.ID, n.Addresses)
}

// leaveScene is a home and those who watch how another comes and goes.
type leaveScene struct {
	*homeScene
	given    *registrar
	watchers []*netns.StockPeer
	victim   *netns.StockPeer
}

// TestHomeNodesLeave: who is renamed, expired, logged out, removed, or was ephemeral changes at the others at once; and
// nobody ever gets an ID or an address that another had.
func TestHomeNodesLeave(t *testing.T) {
	for i, version := range netns.StockVersions() {
		t.Run(version, func(t *testing.T) {
			s := &leaveScene{homeScene: openHome(t, netns.HomeOptions{}), given: newRegistrar()}
			for n, v := range netns.StockVersions() {
				w := s.client(fmt.Sprintf("watcher%d", n), netns.Easy, v)
				s.stockUp(w)
				s.watchers = append(s.watchers, w)
				s.given.first(t, s.homeScene, w.Host.Name, w.Host.Name)
			}
			s.victim = s.client("phone", netns.Easy, netns.StockVersions()[i])
			s.stockUp(s.victim)
			s.given.first(t, s.homeScene, "phone", "phone")
			s.renamed(t)
			s.expired(t)
			s.loggedOut(t)
			s.removed(t)
			if i == 0 { // it takes a minute, and is not the client's doing
				s.ephemeral(t)
			}
		})
	}
}

// see waits until every watcher sees the node of an address as check wants it, and prints how long it took since start.
func (s *leaveScene) see(t *testing.T, what string, start time.Time, limit time.Duration, addr netip.Addr, check func(n netns.StockNode, there bool) error) {
	t.Helper()
	for _, w := range s.watchers {
		netns.Eventually(t, max(2*limit, 30*time.Second), w.Host.Name+" sees: "+what, func() error {
			st, err := w.Status()
			if err != nil {
				return err
			}
			n, there := netns.StockNode{}, false
			for _, p := range st.Peer {
				if len(p.TailscaleIPs) > 0 && p.TailscaleIPs[0] == addr {
					n, there = p, true
				}
			}
			return check(n, there)
		})
		took := time.Since(start)
		t.Logf("%s: %s after %v", what, w.Host.Name, took.Round(time.Millisecond))
		if took > limit {
			t.Errorf("%s: that is more than %v", what, limit)
		}
	}
}

// gone wants that the node is no longer there, or there without a valid key.
func gone(n netns.StockNode, there bool) error {
	if there && !n.Expired {
		return errors.New("it is there")
	}
	return nil
}

// named wants that the node has a name.
func named(want string) func(netns.StockNode, bool) error {
	return func(n netns.StockNode, there bool) error {
		if !there || n.Expired || n.DNSName != want {
			return fmt.Errorf("it is %q, expired %v", n.DNSName, n.Expired)
		}
		return nil
	}
}

// wantOut waits until the victim asks for a login and has no way into the mesh any more: no stale peers that answer.
func (s *leaveScene) wantOut(t *testing.T, start time.Time) {
	t.Helper()
	netns.Eventually(t, 30*time.Second, "the client asks for a login", func() error {
		st, err := s.victim.Status()
		if err == nil && st.BackendState != "NeedsLogin" {
			err = errors.New(st.BackendState)
		}
		return err
	})
	took := time.Since(start)
	t.Logf("the client itself asks for a login after %v", took.Round(time.Millisecond))
	if took > atOnce {
		t.Errorf("that is more than %v", atOnce)
	}
	for _, a := range append(s.addrs("home"), s.addrs("watcher0")...) {
		if err := s.victim.Host.Ping(t.Context(), a); err == nil {
			t.Errorf("%v still answers it", a)
		}
	}
}

func (s *leaveScene) victimAddr(t *testing.T, name string) netip.Addr {
	t.Helper()
	v4, _, err := s.mesh.MeshAddrs(name)
	if err != nil {
		t.Fatal(err)
	}
	wantReach(t, s.watchers[0].Host, v4)
	return v4
}

func (s *leaveScene) renamed(t *testing.T) {
	a, start := s.victimAddr(t, "phone"), time.Now()
	s.mesh.Must("nodes", "rename", "phone", "Mobile")
	s.see(t, "renamed", start, atOnce, a, named("mobile.mesh.internal."))
	netns.Eventually(t, atOnce, "the renamed client knows its name", func() error {
		st, err := s.victim.Status()
		if err == nil && st.Self.DNSName != "mobile.mesh.internal." {
			err = errors.New(st.Self.DNSName)
		}
		return err
	})
	for _, bad := range []string{"watcher0", "home", "a.b", "", "-x"} {
		if out, err := s.mesh.CLI("nodes", "rename", "mobile", bad); exitCode(err) == 0 || !plainSentence(out) {
			t.Errorf("rename to %q: %v\n%s", bad, err, out)
		}
	}
	s.mesh.Must("nodes", "rename", "mobile", "phone")
	s.see(t, "renamed back", start, 2*atOnce, a, named("phone.mesh.internal."))
}

func (s *leaveScene) expired(t *testing.T) {
	before, err := s.mesh.Node("phone")
	if err != nil {
		t.Fatal(err)
	}
	a, start := s.victimAddr(t, "phone"), time.Now()
	s.mesh.Must("nodes", "expire", "phone")
	s.see(t, "expired", start, atOnce, a, gone)
	s.wantOut(t, start)
	s.stockUp(s.victim)
	after, err := s.mesh.Node("phone")
	if err != nil || after.ID != before.ID || after.Expired || fmt.Sprint(after.Addresses) != fmt.Sprint(before.Addresses) {
		t.Errorf("a new login of an expired node makes %+v of %+v (%v)", after, before, err)
	}
	s.see(t, "back", time.Now(), atOnce, a, named("phone.mesh.internal."))
	s.victimAddr(t, "phone")

	s.mesh.Must("nodes", "expire", "phone", "--in", "3s")
	s.see(t, "expired in 3 s", time.Now(), 3*time.Second+atOnce, a, gone)
	s.stockUp(s.victim)
	s.victimAddr(t, "phone")
}

func (s *leaveScene) loggedOut(t *testing.T) {
	a, start := s.victimAddr(t, "phone"), time.Now()
	if out, err := s.victim.CLI(t.Context(), "logout"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.see(t, "logged out", start, atOnce, a, gone)
	s.stockUp(s.victim)
	s.victimAddr(t, "phone")
}

func (s *leaveScene) removed(t *testing.T) {
	before := s.victimAddr(t, "phone")
	start := time.Now()
	s.mesh.Remove("phone")
	s.see(t, "removed", start, atOnce, before, func(_ netns.StockNode, there bool) error {
		if there {
			return errors.New("it is there")
		}
		return nil
	})
	s.wantOut(t, start)
	if _, err := s.mesh.Node("phone"); err == nil {
		t.Error("the coordinator still lists it")
	}
	s.stockUp(s.victim)
	s.given.first(t, s.homeScene, "phone", "phone after its removal")
	s.victimAddr(t, "phone")

	// The same while it is not there to hear it.
	s.victim.Kill()
	s.mesh.Remove("phone")
	s.victim.Start()
	s.wantOut(t, time.Now())
	s.stockUp(s.victim)
	s.given.first(t, s.homeScene, "phone", "phone after its second removal")
}

func (s *leaveScene) ephemeral(t *testing.T) {
	visitor := s.client("visitor", netns.Easy, netns.StockVersions()[0])
	s.stockUp(visitor, "--ephemeral")
	n := s.given.first(t, s.homeScene, "visitor", "visitor")
	if !n.Ephemeral {
		t.Error("the coordinator does not call it ephemeral")
	}
	a, start := s.victimAddr(t, "visitor"), time.Now()
	if out, err := visitor.CLI(t.Context(), "logout"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.see(t, "ephemeral, logged out", start, atOnce, a, gone)
	s.wantForgotten(t, "visitor", atOnce)

	s.stockUp(visitor, "--ephemeral")
	s.given.first(t, s.homeScene, "visitor", "visitor again")
	a, start = s.victimAddr(t, "visitor"), time.Now()
	visitor.Kill()
	s.see(t, "ephemeral, killed", start, 90*time.Second, a, gone)
	s.wantForgotten(t, "visitor", atOnce)
}

// wantForgotten waits until the coordinator no longer lists a node.
func (s *leaveScene) wantForgotten(t *testing.T, name string, limit time.Duration) {
	t.Helper()
	netns.Eventually(t, limit, "the coordinator has forgotten "+name, func() error {
		n, err := s.mesh.Node(name)
		if err == nil {
			return fmt.Errorf("it has %+v", n)
		}
		return nil
	})
}

// TestHomeOldBackup: a coordinator whose state was taken back to an older one gives nobody an ID or an address that
// somebody got since, tells who joined since to log in again, and keeps those whom it knows.
func TestHomeOldBackup(t *testing.T) {
	s := &leaveScene{homeScene: openHome(t, netns.HomeOptions{}), given: newRegistrar()}
	s.given.first(t, s.homeScene, "home", "home")
	old := s.client("old", netns.Easy, netns.StockVersions()[0])
	removed := s.client("removed", netns.Easy, netns.StockVersions()[0])
	for _, p := range []*netns.StockPeer{old, removed} {
		s.stockUp(p)
		s.given.first(t, s.homeScene, p.Host.Name, p.Host.Name)
	}
	backup := filepath.Join(s.lab.Dir(), "backup")
	s.whileStopped(t, "cp", "-a", s.mesh.State, backup)
	since := s.client("since", netns.Easy, netns.StockVersions()[0])
	s.stockUp(since)
	s.given.first(t, s.homeScene, "since", "since")
	s.mesh.Remove("removed")
	s.whileStopped(t, "sh", "-c", `rm -r "$1" && cp -a "$2" "$1"`, "sh", s.mesh.State, backup)

	s.watchers = []*netns.StockPeer{old}
	wantReach(t, old.Host, s.addrs("home")...)
	netns.Eventually(t, 60*time.Second, "who joined since the backup is told to log in", func() error {
		st, err := since.Status()
		if err == nil && st.BackendState != "NeedsLogin" {
			err = errors.New(st.BackendState)
		}
		return err
	})
	for n := range 3 {
		p := s.client(fmt.Sprintf("new%d", n), netns.Easy, netns.StockVersions()[0])
		s.stockUp(p)
		s.given.first(t, s.homeScene, p.Host.Name, p.Host.Name)
	}
	s.stockUp(since)
	s.given.again(t, s.homeScene, "since", "since")
	// The backup is from before the removal; what the coordinator could know of it is gone.
	st, err := removed.Status()
	t.Logf("who was removed since the backup stands at %s (%v)", st.BackendState, err)
}

// whileStopped runs a command of the machine while the daemon is not running.
func (s *homeScene) whileStopped(t *testing.T, name string, args ...string) {
	t.Helper()
	if err := s.mesh.Stop(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
	s.mesh.Start()
}
