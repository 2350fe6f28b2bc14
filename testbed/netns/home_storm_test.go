package netns_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"subnetd/testbed/netns"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// TestHomeJoinStorm is case 41, and 54: 2, 50 and 200 members, who all join at once. After each step what every member
// has added up from its deltas is what it is told anew, and what the members are.
func TestHomeJoinStorm(t *testing.T) {
	k := &crowdScene{conform: openConform(t, netns.HomeOptions{})}
	t.Logf("memory with no member but the router: %s", mb(memoryOf(t, k.mesh.Pid(), "VmRSS")))
	for _, size := range []int{2, 50, 200} {
		start := time.Now()
		nodes, streams := k.c.join(t, k.key, len(k.nodes), size)
		joined := time.Since(start)
		k.nodes, k.streams = append(k.nodes, nodes...), append(k.streams, streams...)
		k.settle(t)
		t.Logf("%d members: %d joined in %v, all know all after %v; memory %s", size, len(nodes),
			joined.Round(time.Millisecond), time.Since(start).Round(time.Millisecond), mb(memoryOf(t, k.mesh.Pid(), "VmRSS")))
		k.oracle(t)
	}
	k.change(t, "all move", k.moveAll)
	k.change(t, "some change their disco key and come back", k.restartSome)
	k.change(t, "one is renamed, one gets a route", k.decide)
	k.change(t, "some are removed, some log out", k.shrink)
	t.Logf("memory after all: %s, at most %s", mb(memoryOf(t, k.mesh.Pid(), "VmRSS")), mb(memoryOf(t, k.mesh.Pid(), "VmHWM")))
}

// crowdScene is many raw members with their streams.
type crowdScene struct {
	*conform
	nodes   []*rawNode
	streams []*rawStream
}

// change makes one change, waits until all know of it, and asks the oracle.
func (k *crowdScene) change(t *testing.T, what string, do func(*testing.T)) {
	t.Helper()
	start := time.Now()
	do(t)
	did := time.Since(start)
	k.settle(t)
	t.Logf("%s: done in %v, all know after %v", what, did.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
	k.oracle(t)
}

// truth is what a member says of itself.
type truth struct {
	name      string
	node      key.NodePublic
	machine   key.MachinePublic
	disco     key.DiscoPublic
	endpoints []netip.AddrPort
	region    int
	allowed   int // addresses and routes
}

// settle waits until every member sees every other one as it is.
func (k *crowdScene) settle(t *testing.T) {
	t.Helper()
	all := make([]truth, len(k.nodes))
	for i, n := range k.nodes {
		all[i] = truth{n.name, n.node.Public(), n.machine.Public(), n.disco.Public(), n.where(), n.region, 2 + len(n.routes)}
	}
	k.each(t, func(i int) error {
		return k.streams[i].until(30*time.Second, func(m rawMap) error { return sees(all, i, m) })
	})
}

// sees compares what member i is told of the others with what is true.
func sees(all []truth, i int, m rawMap) error {
	if want := len(all); len(m.Peers) != want { // all but itself, and the router
		return fmt.Errorf("%s has %d peers, not %d", all[i].name, len(m.Peers), want)
	}
	if m.Self.Key != all[i].node {
		return fmt.Errorf("%s is told another key", all[i].name)
	}
	by := map[key.NodePublic]*tailcfg.Node{}
	for _, p := range m.Peers {
		by[p.Key] = p
	}
	for j, n := range all {
		p := by[n.node]
		switch {
		case j == i:
		case p == nil:
			return fmt.Errorf("%s does not know %s", all[i].name, n.name)
		case p.DiscoKey != n.disco, p.HomeDERP != n.region, !slices.Equal(p.Endpoints, n.endpoints), p.Online == nil || !*p.Online,
			p.Machine != n.machine, len(p.Addresses) != 2, len(p.AllowedIPs) != n.allowed:
			return fmt.Errorf("%s sees %+v", all[i].name, p)
		}
	}
	return nil
}

// each does something for every member, some at a time.
func (k *crowdScene) each(t *testing.T, do func(i int) error) {
	t.Helper()
	errs := make([]error, len(k.nodes))
	slots := make(chan struct{}, 32)
	var group sync.WaitGroup
	for i := range k.nodes {
		group.Go(func() {
			slots <- struct{}{}
			errs[i] = do(i)
			<-slots
		})
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		text := err.Error()
		t.Fatalf("%.3000s", text)
	}
}

// oracle lets every member ask anew, and compares the whole netmap with the sum of its deltas.
func (k *crowdScene) oracle(t *testing.T) {
	t.Helper()
	k.each(t, func(i int) error {
		old := k.streams[i]
		fresh, err := k.nodes[i].open(t.Context(), "")
		if err != nil {
			return err
		}
		t.Cleanup(fresh.close)
		k.streams[i] = fresh
		select {
		case <-old.done: // so that nothing more comes
		case <-time.After(patience):
			return fmt.Errorf("%s: the old stream goes on", k.nodes[i].name)
		}
		if d := firstDifference(old.view().text(), fresh.view().text()); d != "" {
			return fmt.Errorf("%s: the sum of its deltas is not what it is told anew:\n%s", k.nodes[i].name, d)
		}
		return nil
	})
	if d := k.disagreement(); d != "" {
		t.Error(d)
	}
}

// disagreement says where two members are told different things of a third, or somebody's address is another's.
func (k *crowdScene) disagreement() string {
	addrs := map[netip.Addr]tailcfg.NodeID{}
	names := map[tailcfg.NodeID]string{}
	for i := range k.nodes {
		m := k.streams[i].view()
		for _, p := range append([]*tailcfg.Node{m.Self}, mapValues(m.Peers)...) {
			if was, ok := names[p.ID]; ok && was != p.Name {
				return fmt.Sprintf("node %d is %q to some and %q to others", p.ID, was, p.Name)
			}
			names[p.ID] = p.Name
			for _, a := range p.Addresses {
				if was, ok := addrs[a.Addr()]; ok && was != p.ID {
					return fmt.Sprintf("%v is an address of nodes %d and %d", a, was, p.ID)
				}
				addrs[a.Addr()] = p.ID
			}
		}
	}
	seen := map[string]bool{}
	for _, n := range names {
		if seen[n] {
			return "two nodes are called " + n
		}
		seen[n] = true
	}
	return ""
}

func mapValues(m map[tailcfg.NodeID]*tailcfg.Node) []*tailcfg.Node {
	var all []*tailcfg.Node
	for _, p := range m {
		all = append(all, p)
	}
	return all
}

// moveAll gives everybody other endpoints, and half of them another home relay, at the same time.
func (k *crowdScene) moveAll(t *testing.T) {
	k.each(t, func(i int) error {
		n := k.nodes[i]
		n.moves(netip.AddrPortFrom(k.c.Addr(i), 1234), netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), uint16(i+1)))
		return n.lite(t.Context(), k.streams[i].wire)
	})
}

// restartSome: every tenth comes back as a restarted program does, with another disco key.
func (k *crowdScene) restartSome(t *testing.T) {
	k.each(t, func(i int) (err error) {
		if i%10 != 0 {
			return nil
		}
		k.streams[i].close()
		k.nodes[i].disco = key.NewDisco()
		k.streams[i], err = k.nodes[i].open(t.Context(), k.key)
		if err == nil {
			t.Cleanup(k.streams[i].close)
		}
		return err
	})
}

// decide is the owner at work.
func (k *crowdScene) decide(t *testing.T) {
	n, route := k.nodes[3], netip.MustParsePrefix("10.55.0.0/16")
	k.mesh.Must("nodes", "rename", k.nodes[4].name, "somebody")
	n.mu.Lock()
	n.routes = []netip.Prefix{route}
	n.mu.Unlock()
	if err := n.lite(t.Context(), k.streams[3].wire); err != nil {
		t.Fatal(err)
	}
	k.mesh.ApproveRoutes(n.name, route)
	k.each(t, func(i int) error {
		return k.streams[i].until(patience, func(m rawMap) error {
			if i == 4 {
				if !strings.HasPrefix(m.Self.Name, "somebody.") {
					return fmt.Errorf("it is told to be %s", m.Self.Name)
				}
				return nil
			}
			_, err := m.named("somebody")
			return err
		})
	})
}

// shrink takes every fifth away: removed by the owner, or logged out by itself.
func (k *crowdScene) shrink(t *testing.T) {
	var nodes []*rawNode
	var streams []*rawStream
	for i, n := range k.nodes {
		switch {
		case i == 0 || i%5 != 0:
			nodes, streams = append(nodes, n), append(streams, k.streams[i])
			continue
		case i%10 == 0:
			k.mesh.Remove(n.name)
			k.streams[i].wait(t, patience, "a removed node is told", func(m rawMap) error {
				if !m.Self.Expired {
					return fmt.Errorf("self %+v", m.Self)
				}
				return nil
			})
		default:
			// A node that logs out stays in the list of its peers, expired; only then the owner removes it.
			if err := n.logout(t.Context(), k.streams[i].wire); err != nil {
				t.Fatal(err)
			}
			k.mesh.Remove(n.name)
		}
		k.streams[i].close()
	}
	k.nodes, k.streams = nodes, streams
}
