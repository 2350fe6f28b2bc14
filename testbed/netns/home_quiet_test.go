package netns_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// TestHomeQuiet is what takes its time, all at once: keepalives and half-open connections (case 52), and ephemeral
// nodes that go without a word (56).
func TestHomeQuiet(t *testing.T) {
	k := openConform(t, netns.HomeOptions{Policy: `{"tagOwners": {"tag:calm": ["autogroup:member"]},
		"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:member:*"]}]}`})
	_, calm := k.c.joinOne(t, k.mesh.Invite("--tags", "tag:calm").Key, 0) // nobody's peer: it hears of nobody
	start := time.Now()
	_, watcher := k.c.joinOne(t, k.key, 1)
	cut, _ := k.c.joinOne(t, k.key, 2)
	passing, passes := k.c.joinOne(t, k.mesh.Invite("--ephemeral").Key, 3)
	watcher.wait(t, patience, "all are there", func(m rawMap) error {
		return errors.Join(online(cut.name, true)(m), online(passing.name, true)(m))
	})

	went := time.Now()
	since := func() time.Duration { return time.Since(went).Round(100 * time.Millisecond) }
	k.c.NFT(fmt.Sprintf(`table ip cut {
	chain in { type filter hook input priority 0; ip daddr %s drop; }
	chain out { type filter hook output priority 0; ip saddr %s drop; }
}
`, k.c.Addr(2), k.c.Addr(2)))
	passes.close()

	var group sync.WaitGroup
	group.Go(func() { // clients give a silent stream up after two minutes
		err := calm.untilBeats(1, 70*time.Second)
		took := time.Since(start)
		t.Logf("52-keepalive: the first %v after the stream began", took.Round(100*time.Millisecond))
		if err != nil || took > 65*time.Second {
			t.Errorf("52-keepalive only after %v: %v", took, err)
		}
		if n := len(calm.view().Peers); n > 0 {
			t.Errorf("52-keepalive: this one was to have no peers, and has %d", n)
		}
	})
	group.Go(func() {
		if err := watcher.until(150*time.Second, online(cut.name, false)); err != nil {
			t.Errorf("52-half-open: a member that fell silent is still online: %v", err)
		}
		t.Logf("52-half-open: a member that fell silent is offline after %v", since())
	})
	group.Go(func() {
		err := watcher.until(150*time.Second, func(m rawMap) error {
			if _, err := m.named(passing.name); err == nil {
				return errors.New("still a peer")
			}
			return nil
		})
		if err != nil {
			t.Errorf("56-ephemeral: a node that went is still known: %v", err)
		}
		t.Logf("56-ephemeral: a node that went is forgotten after %v", since())
	})
	group.Wait()
	if _, err := k.mesh.Node(passing.name); err == nil {
		t.Error("56-ephemeral: the coordinator still knows it")
	}
	if _, err := k.mesh.Node(cut.name); err != nil {
		t.Errorf("52-half-open: the coordinator has forgotten it: %v", err)
	}
}

// untilBeats waits for so many of them.
func (s *rawStream) untilBeats(n int, limit time.Duration) error {
	return s.until(limit, func(rawMap) error {
		if s.beats < n {
			return fmt.Errorf("%d keepalives", s.beats)
		}
		return nil
	})
}
