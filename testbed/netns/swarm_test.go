package netns_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"subnetd/testbed/netns"
	"subnetd/testbed/swarm"
	"tailscale.com/tailcfg"
)

// TestSwarm: a hundred nodes join by one key and know each other; what one of them or the owner changes reaches all; and
// after the coordinator was killed all are back with everything they knew. In the end nobody holds anything any more.
func TestSwarm(t *testing.T) {
	goroutines := runtime.NumGoroutine()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	lab := netns.New(t)
	home := lab.Home(netns.Public)
	mesh := lab.HomeMesh(home.Router, netns.HomeOptions{URL: "http://" + home.Router.Addr4.String()})
	files, inv := openFiles(t, mesh.Pid()), mesh.Invite("--reusable")
	s, err := swarm.New(swarm.Config{URL: inv.URL, AuthKey: inv.Key, Nodes: homeSize, Name: "bee", Parallel: homeSize,
		Dial: dialFrom(lab.Crowd())})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	start := time.Now()
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		t.Logf("%s: after %v", what, time.Since(start).Round(time.Millisecond))
		start = time.Now()
	}
	must("all join", s.Join(ctx))
	must("all know all, and the router", s.Settle(ctx, swarm.Peers(homeSize)))
	must("all know where all are reached", s.Settle(ctx, everyReached))

	one, ep := s.Nodes()[7], netip.MustParseAddrPort("192.0.2.7:7777")
	id := one.Self().ID
	w := s.Watch(func(c swarm.Change) bool { return c.Peer.ID == id && c.Peer.HasEndpoint(ep.String()) })
	must("a node has moved", one.SetEndpoints(ctx, ep))
	_, err = w.Wait(ctx, homeSize-1)
	must("all others know", err)

	gone := s.Nodes()[13]
	lost := gone.Self().ID // later it is told another
	w = s.Watch(func(c swarm.Change) bool { return c.Removed && c.Peer.ID == lost })
	mesh.Remove(gone.Name())
	_, err = w.Wait(ctx, homeSize-1)
	must("a removed node is gone for all others", err)
	must("and for itself", waitExpelled(ctx, gone))
	must("nobody else is gone", s.Settle(ctx, swarm.Peers(homeSize-1)))

	before := memories(s)
	mesh.Kill()
	must("all miss the coordinator", s.Settle(ctx, func(n *swarm.Node) error {
		if n.Connected() {
			return errors.New("connected")
		}
		return nil
	}))
	mesh.Start()
	must("all are back and nothing is lost", s.Settle(ctx, func(n *swarm.Node) error { return before.same(n) }))
	for _, n := range s.Nodes() {
		if n != gone && n.Ended() {
			t.Errorf("%s has ended: %v", n.Name(), n.Err())
		}
	}

	s.Close()
	netns.Eventually(t, 10*time.Second, "no goroutine is left", func() error { return atMost(runtime.NumGoroutine(), goroutines+2) })
	netns.Eventually(t, 30*time.Second, "the coordinator has closed what the nodes had open", func() error {
		return atMost(openFiles(t, mesh.Pid()), files+5) // its own node has a socket more or less
	})
}

func atMost(have, limit int) error {
	if have > limit {
		return fmt.Errorf("%d, at most %d expected", have, limit)
	}
	return nil
}

// everyReached: the node has been told of every peer's home relay and endpoints, the last things that a node tells after
// it has joined.
func everyReached(n *swarm.Node) error {
	for _, p := range n.Peers() {
		if p.HomeDERP == 0 || p.Endpoints == "" || !p.Online {
			return fmt.Errorf("%s: home relay %d, endpoints %s, online %v", p.Name, p.HomeDERP, p.Endpoints, p.Online)
		}
	}
	return nil
}

// waitExpelled waits until the coordinator has told a node that it is none any more.
func waitExpelled(ctx context.Context, n *swarm.Node) error {
	select {
	case <-n.Done():
	case <-ctx.Done():
		return ctx.Err()
	}
	if !errors.Is(n.Err(), swarm.ErrExpelled) {
		return fmt.Errorf("it ended for another reason: %w", n.Err())
	}
	return nil
}

// swarmMemory is what every node knew at one moment.
type swarmMemory map[*swarm.Node]swarmView

type swarmView struct {
	self  swarm.Peer
	peers map[tailcfg.NodeID]swarm.Peer
}

func memories(s *swarm.Swarm) swarmMemory {
	m := swarmMemory{}
	for _, n := range s.Nodes() {
		m[n] = swarmView{n.Self(), n.Peers()}
	}
	return m
}

// same: the node is connected and knows the same again.
func (m swarmMemory) same(n *swarm.Node) error {
	if !n.Connected() {
		return errors.New("not connected")
	}
	now, was := n.Self(), m[n].self
	// Where it is reached it knows itself, and need not be told.
	if now.ID != was.ID || now.Name != was.Name || now.Key != was.Key || now.Addresses != was.Addresses || now.Expired {
		return fmt.Errorf("is %+v, was %+v", now, was)
	}
	peers := n.Peers()
	for id, p := range m[n].peers {
		if peers[id] != p {
			return fmt.Errorf("knows %+v, knew %+v", peers[id], p)
		}
	}
	return atMost(len(peers), len(m[n].peers))
}

func openFiles(t *testing.T, pid int) int {
	t.Helper()
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}
