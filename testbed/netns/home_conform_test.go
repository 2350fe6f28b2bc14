package netns_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"subnetd/testbed/netns"

	"tailscale.com/tailcfg"
)

// conform is a home with raw members, for the numbered cases of the protocol brief (protocol.md, section 6 B).
type conform struct {
	*homeScene
	c   *rawCrowd
	key string // reusable
}

func openConform(t testing.TB, o netns.HomeOptions) *conform {
	t.Helper()
	k := &conform{homeScene: openHome(t, o)}
	k.c, k.key = k.crowd(), k.mesh.Invite("--reusable").Key
	return k
}

// TestHomeConform tries what a stock client cannot be made to do. Each case has its number in the protocol brief.
func TestHomeConform(t *testing.T) {
	k := openConform(t, netns.HomeOptions{Records: []string{"nas=192.168.77.50"}})
	t.Run("57-early-payload", k.earlyPayload)
	t.Run("42-update-races-stream", k.updateRacesStream)
	t.Run("43-two-streams", k.twoStreams)
	t.Run("44-other-machine", k.otherMachine)
	t.Run("49-stun", k.stun)
	t.Run("50-records", k.records)
	t.Run("52-slow-reader", k.slowReader)
	t.Run("53-large-bodies", k.largeBodies)
	t.Run("56-ephemeral-logout", k.ephemeralLogout)
}

// earlyPayload: after Noise there is either HTTP/2 at once, or a payload with a challenge before it, and both kinds of
// client get on.
func (k *conform) earlyPayload(t *testing.T) {
	n := newRawNode(k.c, 0)
	conn, err := n.noise(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	// An HTTP/2 server may wait for the client's first words (RFC 9113, 3.4).
	if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 9)
	if _, err := io.ReadFull(conn, head); err != nil {
		t.Fatalf("nothing came after the handshake: %v", err)
	}
	early := string(head[:5]) == "\xff\xff\xffTS"
	t.Logf("payload before HTTP/2: %v", early)
	if !early && head[3] != 4 { // the server's first frame are its settings
		t.Errorf("what came is neither the payload nor HTTP/2: % x", head)
	}
	s, err := n.open(t.Context(), k.key) // passes over it if it is there
	if err != nil {
		t.Fatal(err)
	}
	s.close()
	if !early {
		n.mute = true // then nothing need be passed over
		s, err := n.open(t.Context(), "")
		if err != nil {
			t.Fatalf("without looking for the payload: %v", err)
		}
		s.close()
	}
}

// updateRacesStream: updates sent while the stream is made anew neither end it nor get lost.
func (k *conform) updateRacesStream(t *testing.T) {
	_, watcher := k.c.joinOne(t, k.key, 1)
	n, s := k.c.joinOne(t, k.key, 2)
	for round := range 20 {
		w, err := n.connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		n.moves(netip.AddrPortFrom(k.c.Addr(2), uint16(1000+round)))
		var group sync.WaitGroup
		var fresh *rawStream
		var errS, errL error
		group.Go(func() { fresh, errS = n.stream(t.Context(), w) })
		group.Go(func() { errL = n.lite(t.Context(), w) })
		group.Wait()
		if err := errors.Join(errS, errL); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		s.cancel()
		s = fresh
		last := netip.AddrPortFrom(k.c.Addr(2), uint16(2000+round))
		n.moves(last)
		if err := n.lite(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		watcher.wait(t, patience, fmt.Sprintf("round %d: the last update has won", round), func(m rawMap) error {
			p, err := m.named(n.name)
			if err == nil && !slices.Equal(p.Endpoints, []netip.AddrPort{last}) {
				err = fmt.Errorf("endpoints %v", p.Endpoints)
			}
			return err
		})
		if err := s.ended(); err != nil {
			t.Fatalf("round %d: an update has ended the stream: %v", round, err)
		}
	}
	s.close()
}

// twoStreams: the newer stream of a key takes the older one's place, and nobody takes the node for offline.
func (k *conform) twoStreams(t *testing.T) {
	_, watcher := k.c.joinOne(t, k.key, 3)
	n, old := k.c.joinOne(t, k.key, 4)
	watcher.wait(t, patience, "the node is online", online(n.name, true))
	flaps := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { flaps <- watcher.never(ctx, func(m rawMap) bool { return online(n.name, true)(m) != nil }) }()
	for range 5 {
		s, err := n.open(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-old.done:
		case <-time.After(patience):
			t.Fatal("the old stream goes on")
		}
		old = s
	}
	// The end of an old stream, seen late, must not be taken for the end of the new one.
	n.moves(netip.AddrPortFrom(k.c.Addr(4), 4444))
	if err := n.lite(t.Context(), old.wire); err != nil {
		t.Fatal(err)
	}
	watcher.wait(t, patience, "an update arrives after all that", func(m rawMap) error {
		p, err := m.named(n.name)
		if err == nil && !slices.Equal(p.Endpoints, n.where()) {
			err = fmt.Errorf("endpoints %v", p.Endpoints)
		}
		return err
	})
	cancel()
	if err := <-flaps; err != nil {
		t.Errorf("the node was said to be offline: %v", err)
	}
	old.close()
	watcher.wait(t, 30*time.Second, "it is offline once its last stream has ended", online(n.name, false))
}

// online wants a peer to be told as online, or as offline.
func online(name string, want bool) func(rawMap) error {
	return func(m rawMap) error {
		p, err := m.named(name)
		if err == nil && (p.Online == nil || *p.Online != want) {
			err = fmt.Errorf("%s: online %v", name, p.Online)
		}
		return err
	}
}

// never looks at the netmap after each frame until ctx ends, and fails if bad ever holds.
func (s *rawStream) never(ctx context.Context, bad func(rawMap) bool) error {
	for {
		s.mu.Lock()
		news := s.news
		var found error
		if bad(s.m) {
			found = errors.New(s.m.text())
		}
		s.mu.Unlock()
		if found != nil {
			return found
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil
		}
	}
}

// otherMachine: a node key is good only on the machine that registered it.
func (k *conform) otherMachine(t *testing.T) {
	_, watcher := k.c.joinOne(t, k.key, 5)
	n, s := k.c.joinOne(t, k.key, 6)
	watcher.wait(t, patience, "it is there", online(n.name, true))
	thief := newRawNode(k.c, 7)
	thief.node, thief.name = n.node, "thief"
	w, err := thief.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	for _, auth := range []string{"", k.key} {
		if err := thief.register(t.Context(), w, auth); err == nil {
			t.Errorf("with key %v: another machine registers the node key", auth != "")
		} else {
			t.Logf("with key %v: %v", auth != "", err)
		}
	}
	if err := thief.lite(t.Context(), w); err == nil {
		t.Error("another machine's update is answered with 200")
	}
	if stolen, err := thief.stream(t.Context(), w); err == nil {
		if m := stolen.view(); len(m.Peers) > 0 || !m.Self.Expired {
			t.Errorf("another machine gets a netmap:\n%s", m.text())
		}
		stolen.close()
	}
	// A machine that says it had this key before must not take its place either.
	heir := newRawNode(k.c, 8)
	w2, err := heir.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w2.close()
	r := heir.registerRequest(k.key)
	r.OldNodeKey = n.node.Public()
	var ans tailcfg.RegisterResponse
	if err := w2.postJSON(t.Context(), "/machine/register", r, &ans); err == nil && ans.MachineAuthorized {
		hs, err := heir.stream(t.Context(), w2)
		if err != nil {
			t.Fatal(err)
		}
		if hs.view().Self.ID == s.view().Self.ID {
			t.Error("another machine has taken over the node by naming its key as its old one")
		}
		hs.close()
	}
	if err := s.ended(); err != nil {
		t.Errorf("the node itself was disturbed: %v", err)
	}
	p, err := watcher.view().named(n.name)
	if err != nil || p.Key != n.node.Public() || !slices.Equal(p.Endpoints, n.where()) {
		t.Errorf("peers are told of the other machine: %v %+v", err, p)
	}
}

// ephemeralLogout: a node that came by an ephemeral key is forgotten when it logs out, and its peers are told at once.
func (k *conform) ephemeralLogout(t *testing.T) {
	_, watcher := k.c.joinOne(t, k.key, 14)
	n, s := k.c.joinOne(t, k.mesh.Invite("--ephemeral").Key, 15)
	watcher.wait(t, patience, "it is there", online(n.name, true))
	if err := n.logout(t.Context(), s.wire); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	watcher.wait(t, patience, "it is gone", func(m rawMap) error {
		if _, err := m.named(n.name); err == nil {
			return errors.New("still a peer")
		}
		return nil
	})
	t.Logf("gone from its peers after %v", time.Since(start).Round(time.Millisecond))
	if _, err := k.mesh.Node(n.name); err == nil {
		t.Error("the coordinator still knows it")
	}
}
