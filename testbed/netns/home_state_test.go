package netns_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// TestHomeState is case 47: the coordinator starts again with its state, and without any. Of an old copy of its state
// tells TestHomeOldBackup.
func TestHomeState(t *testing.T) {
	k := openConform(t, netns.HomeOptions{})
	t.Run("47-with-state", k.withState)
	t.Run("47-without-state", k.withoutState)
}

// withState: everybody is who they were.
func (k *conform) withState(t *testing.T) {
	n, s := k.c.joinOne(t, k.key, 0)
	was := s.view().Self
	server, err := n.serverKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	k.mesh.Restart()
	<-s.done
	again, err := n.open(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	self := again.view().Self
	if self.ID != was.ID || !slices.Equal(self.Addresses, was.Addresses) || self.Name != was.Name {
		t.Errorf("it was %v %v %s, and is %v %v %s", was.ID, was.Addresses, was.Name, self.ID, self.Addresses, self.Name)
	}
	if now, err := n.serverKey(t.Context()); err != nil || now != server {
		t.Errorf("the coordinator has another key: %v", err)
	}
}

// wantTombstone wants a node that is not known to get a netmap that makes it ask for a login at once.
func (k *conform) wantTombstone(t *testing.T, n *rawNode) {
	t.Helper()
	w, err := n.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, err := n.stream(t.Context(), w)
	if err != nil {
		t.Errorf("a node that is not known asks for its netmap: %v", err)
		return
	}
	defer s.close()
	m := s.view()
	if m.Self.Key != n.node.Public() || !m.Self.Expired || m.Self.KeyExpiry.After(time.Now()) || m.Self.KeyExpiry.IsZero() ||
		len(m.Self.Addresses) > 0 || len(m.Peers) > 0 {
		t.Errorf("a node that is not known gets:\n%s", m.text())
	}
}

// withoutState: nobody is known; raw and stock members are told to log in, and a new key brings them back.
func (k *conform) withoutState(t *testing.T) {
	n, _ := k.c.joinOne(t, k.key, 30)
	phone := k.stock("phone", netns.Easy)
	if err := k.mesh.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(k.mesh.State, k.mesh.State+".lost"); err != nil {
		t.Fatal(err)
	}
	k.mesh.Start()
	k.wantTombstone(t, n)
	// A stock client keeps the coordinator's key for as long as it runs, and the lost state had it: it must be started
	// again. Then it lives on what it remembers, and says where to log in.
	phone.Kill()
	phone.Start()
	start := time.Now()
	netns.Eventually(t, 20*time.Second, "a stock client asks for a login", func() error {
		out, err := phone.CLI(t.Context(), "status", "--json")
		if err == nil && !strings.Contains(out, `"AuthURL": "http://home.test/a/`) {
			err = errors.New(out)
		}
		return err
	})
	t.Logf("a stock client asks for a login after %v", time.Since(start).Round(time.Millisecond))
	start = time.Now()
	k.stockUp(phone)
	t.Logf("and is in again after %v", time.Since(start).Round(time.Millisecond))
	wantReach(t, phone.Host, k.addrs("home")...)
	if out := k.mesh.Must("nodes"); strings.Contains(out, n.name) {
		t.Errorf("somebody is known without having joined:\n%s", out)
	}
}
