package netns_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"subnetd/testbed/netns"

	"tailscale.com/tailcfg"
)

// A stayer is a raw member that comes back by itself, as every client does.
type stayer struct {
	*rawNode
	key string // is sent at every registration, as stock clients do

	mu     sync.Mutex // guards what follows
	stream *rawStream
	ups    int
	fails  []error // to come in
}

// stay runs until ctx ends.
func (y *stayer) stay(ctx context.Context) {
	wait := 50 * time.Millisecond
	for ctx.Err() == nil {
		s, err := y.open(ctx, y.key)
		y.note(s, err)
		if err == nil {
			select {
			case <-s.done:
			case <-ctx.Done():
				s.close()
			}
			y.note(nil, s.ended())
			wait = 50 * time.Millisecond
		}
		select {
		case <-time.After(wait/2 + rand.N(wait)):
		case <-ctx.Done():
		}
		wait = min(2*wait, time.Second)
	}
}

func (y *stayer) note(s *rawStream, err error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.stream = s
	if s != nil {
		y.ups++
	} else {
		y.fails = append(y.fails, err)
	}
}

// self is the node as the coordinator tells it, if it is connected for at least the n-th time.
func (y *stayer) self(n int) (*tailcfg.Node, error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.stream == nil || y.ups < n {
		return nil, fmt.Errorf("%s is not back: %w", y.name, errors.Join(y.fails...))
	}
	return y.stream.view().Self, nil
}

// count gives how often it was connected, and begins a new list of failures; the old one is given too.
func (y *stayer) count() (int, []error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	fails := y.fails
	y.fails = nil
	return y.ups, fails
}

// killScene is a mesh of raw and stock members whose coordinator dies again and again.
type killScene struct {
	*homeScene
	c          *rawCrowd
	members    []*stayer
	alice, bob *netns.StockPeer
	random     *rand.Rand
	life       context.Context
	group      sync.WaitGroup
	used       string // one-time keys that were used, and one that was revoked
	revoked    string
	route      netip.Prefix
}

// TestHomeKill9: the coordinator ends without warning under 50 members, three times; nobody is forgotten, no flow is
// cut, and all are back soon.
func TestHomeKill9(t *testing.T) {
	k := openKillScene(t)
	between := startFlow(t, k.alice.Host, k.bob.Host, netip.AddrPortFrom(k.addrs("bob")[0], 5001))
	through := dialEcho(t, &scene{home: k.home, phone: k.alice})
	before := k.known(t)
	for round := range 3 {
		t.Logf("round %d: all back %v after the new start", round+1, k.round(t, round).Round(time.Millisecond))
		between.goesOn(t)
		if err := echoOnce(through, "across the restart"); err != nil {
			t.Errorf("a flow through the router was cut: %v", err)
		}
		k.sameAs(t, before)
		before = k.known(t)
	}
	if pause := between.finish(t); pause > 5*time.Second {
		t.Errorf("a flow between two members stood still for %v", pause)
	}
}

func openKillScene(t *testing.T) *killScene {
	t.Helper()
	// By address: a stock client that cannot reach a name asks Tailscale's servers for it, which the lab does not have,
	// and so takes three seconds for each.
	k := &killScene{homeScene: openHome(t, netns.HomeOptions{URL: "http://203.0.113.20"}), route: netip.MustParsePrefix("10.77.0.0/16")}
	k.c = k.crowd()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	k.random = rand.New(rand.NewPCG(seed, 0))
	life, cancel := context.WithCancel(context.Background())
	k.life = life
	t.Cleanup(func() { cancel(); k.group.Wait() })

	key := k.mesh.Invite("--reusable").Key
	for i := range 48 {
		k.add(key, i)
	}
	k.members[0].mu.Lock()
	k.members[0].routes = []netip.Prefix{k.route}
	k.members[0].mu.Unlock()
	k.alice, k.bob = k.stock("alice", netns.Easy), k.stock("bob", netns.Easy)
	if _, err := k.alice.CLI(t.Context(), "set", "--accept-routes"); err != nil {
		t.Fatal(err)
	}
	wantReach(t, k.alice.Host, k.addrs("bob")...)
	if reach, out := k.alice.Ping(t.Context(), k.addrs("bob")[0], 20); reach != netns.Direct {
		t.Fatalf("no direct path: %s", out)
	}
	k.allBack(t, nil)
	k.mesh.ApproveRoutes("raw-0", k.route)

	used, revoked := k.mesh.Invite(), k.mesh.Invite()
	k.used, k.revoked = used.Key, revoked.Key
	k.add(used.Key, 48)
	k.allBack(t, nil)
	k.mesh.Must("keys", "revoke", revoked.ID)
	k.mesh.Must("nodes", "rename", "raw-1", "renamed")
	return k
}

// add makes one more raw member.
func (k *killScene) add(key string, i int) *stayer {
	y := &stayer{rawNode: newRawNode(k.c, i), key: key}
	k.members = append(k.members, y)
	k.group.Go(func() { y.stay(k.life) })
	return y
}

// round kills the coordinator while three members join, starts it again, and gives how long it took until all were back.
func (k *killScene) round(t *testing.T, round int) time.Duration {
	t.Helper()
	login := k.knock(t, round)
	ups := map[*stayer]int{}
	for _, y := range k.members {
		n, fails := y.count()
		if ups[y] = n; round == 0 && len(fails) > 0 {
			t.Errorf("before any kill %s failed: %v", y.name, errors.Join(fails...))
		}
	}
	var keys []string
	for range 3 {
		keys = append(keys, k.mesh.Invite().Key)
	}
	for i, key := range keys {
		k.add(key, 60+3*round+i)
	}
	time.Sleep(time.Duration(k.random.IntN(40)) * time.Millisecond) // any moment of a join
	k.mesh.Kill()
	start := time.Now()
	k.mesh.Launch()
	k.allBack(t, ups)
	took := time.Since(start)
	if took > 10*time.Second {
		t.Errorf("all were back only after %v", took)
	}
	for _, key := range append(keys, k.used, k.revoked) {
		stranger := newRawNode(k.c, 90)
		if s, err := stranger.open(t.Context(), key); err == nil {
			s.close()
			t.Errorf("a key that was used or revoked before the kill lets somebody in")
		} else if !strings.Contains(err.Error(), "refused") {
			t.Errorf("a used key: %v", err)
		}
	}
	k.letIn(t, login)
	return took
}

// allBack waits until every member is connected more often than before, and the coordinator says that all are online.
func (k *killScene) allBack(t *testing.T, before map[*stayer]int) {
	t.Helper()
	start := time.Now()
	netns.Eventually(t, 30*time.Second, "all raw members are back", func() error {
		for _, y := range k.members {
			if _, err := y.self(before[y] + 1); err != nil {
				return err
			}
		}
		return nil
	})
	if before != nil {
		t.Logf("raw members are back after %v", time.Since(start).Round(time.Millisecond))
	}
	netns.Eventually(t, 30*time.Second, "all are back", func() error {
		all, err := k.mesh.Nodes()
		if err != nil {
			return err
		}
		for _, n := range all.Nodes {
			if !n.Online {
				return fmt.Errorf("%s is offline", n.Name)
			}
		}
		return knowsSoMany(len(all.Nodes)-1, k.alice, k.bob)
	})
}

// knowsSoMany wants stock clients to have so many peers. Whoever knows of those who came last has its stream.
func knowsSoMany(want int, peers ...*netns.StockPeer) error {
	for _, p := range peers {
		s, err := p.Status()
		if err == nil && len(s.Peer) != want {
			err = fmt.Errorf("%s has %d peers, not %d", p.Host.Name, len(s.Peer), want)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// identity is what nobody may lose.
type identity struct {
	id    int64
	addrs string
}

// known is everybody the coordinator knows, by name, checked against what the members were told themselves.
func (k *killScene) known(t *testing.T) map[string]identity {
	t.Helper()
	all, err := k.mesh.Nodes()
	if err != nil {
		t.Fatal(err)
	}
	known, ids := map[string]identity{}, map[int64]bool{}
	for _, n := range all.Nodes {
		known[n.Name] = identity{n.ID, fmt.Sprint(n.Addresses)}
		ids[n.ID] = true
	}
	for _, y := range k.members {
		self, err := y.self(0)
		if err != nil {
			t.Fatal(err)
		}
		var addrs []netip.Addr
		for _, p := range self.Addresses {
			addrs = append(addrs, p.Addr())
		}
		name := strings.TrimSuffix(self.Name, ".")
		if want := (identity{int64(self.ID), fmt.Sprint(addrs)}); known[name] != want {
			t.Errorf("%s believes to be %v, the coordinator says %v", name, want, known[name])
		}
	}
	if len(ids) != len(all.Nodes) || len(known) != len(all.Nodes) {
		t.Errorf("of %d nodes some have one ID or name", len(all.Nodes))
	}
	return known
}

// sameAs wants everybody from before to be who they were, and what the owner decided to hold.
func (k *killScene) sameAs(t *testing.T, before map[string]identity) {
	t.Helper()
	now := k.known(t)
	for name, was := range before {
		if now[name] != was {
			t.Errorf("%s was %v and is %v", name, was, now[name])
		}
	}
	if _, err := k.mesh.Node("renamed"); err != nil {
		t.Error(err)
	}
	n, err := k.mesh.Node("raw-0")
	if err != nil || !slices.Contains(n.Routes, netns.HomeRoute{Prefix: k.route, Offered: true, Approved: true, Primary: true}) {
		t.Errorf("the approved route: %v, %+v", err, n.Routes)
	}
	k.members[1].mu.Lock()
	other := k.members[1].stream
	k.members[1].mu.Unlock()
	other.wait(t, 5*time.Second, "peers have the approved route", func(m rawMap) error {
		p, err := m.named("raw-0")
		if err == nil && !slices.Contains(p.AllowedIPs, k.route) {
			err = fmt.Errorf("AllowedIPs %v", p.AllowedIPs)
		}
		return err
	})
}

// knock asks to be let in without a key.
func (k *killScene) knock(t *testing.T, round int) *knocker {
	t.Helper()
	n := &knocker{rawNode: newRawNode(k.c, 100+round)}
	if err := n.ask(t.Context()); err != nil || n.url == "" {
		t.Fatalf("a keyless registration: %q %v", n.url, err)
	}
	return n
}

// letIn approves who knocked before the kill: as every client does, it goes on asking until it is in.
func (k *killScene) letIn(t *testing.T, n *knocker) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	in := make(chan error, 1)
	go func() {
		var err error
		for n.url != "" && err == nil {
			err = n.ask(ctx)
		}
		in <- err
	}()
	netns.Eventually(t, 10*time.Second, "who knocked before stands at the door again", func() error {
		for _, p := range k.pending(t) {
			if p.Hostname == n.name {
				k.mesh.Approve(p.Code)
				return nil
			}
		}
		return errors.New("nobody of that name")
	})
	if err := <-in; err != nil {
		t.Fatalf("who was approved is not in: %v", err)
	}
	y := &stayer{rawNode: n.rawNode}
	k.members = append(k.members, y)
	k.group.Go(func() { y.stay(k.life) })
	k.allBack(t, nil)
}

func (k *killScene) pending(t *testing.T) []netns.HomePending {
	t.Helper()
	all, err := k.mesh.Nodes()
	if err != nil {
		t.Fatal(err)
	}
	return all.Pending
}

// knocker is a raw node without a key.
type knocker struct {
	*rawNode
	url string // the page that the coordinator named last, "" before and once it is in
}

// ask registers without a key. With a page already named it waits there until something happens.
func (n *knocker) ask(ctx context.Context) error {
	w, err := n.connect(ctx)
	if err != nil {
		return err
	}
	defer w.close()
	req := n.registerRequest("")
	req.Followup = n.url
	var ans tailcfg.RegisterResponse
	if err := w.postJSON(ctx, "/machine/register", req, &ans); err != nil {
		return err
	}
	if ans.Error != "" {
		return errors.New(ans.Error)
	}
	n.url = ans.AuthURL
	return nil
}
