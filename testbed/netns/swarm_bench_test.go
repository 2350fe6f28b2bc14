package netns_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
	"subnetd/testbed/swarm"
)

// BenchmarkCoordinators lets the same swarm of simulated nodes join, one after the other, the daemon as coordinator and a
// stock Headscale, and measures what it costs and how fast one change reaches everybody. Each server has one core for
// itself, with GOMAXPROCS=1; the swarm has another. Headscale's tuning is its own default: it gathers changes for
// 800 ms before it tells of them. The daemon is all that it is at home: coordinator, relay, and a node of its own.
func BenchmarkCoordinators(b *testing.B) {
	for b.Loop() {
		for _, size := range []int{homeSize, crowdSize} {
			ours, stock := figures{}, figures{}
			b.Run(fmt.Sprintf("subnetd/%d", size), func(b *testing.B) { measureCoordinator(b, ours, size, crowdAtHome) })
			b.Run(fmt.Sprintf("headscale/%d", size), func(b *testing.B) { measureCoordinator(b, stock, size, crowdAtHeadscale) })
			b.Logf("%d nodes; one core for the server; Headscale with its own default tuning", size)
			compare(b, coordinatorMeasures, "subnetd", ours, "headscale", stock)
		}
	}
}

// BenchmarkHomeIdle is the memory of coordinator, relay and the router's own node with 100 members who do nothing.
func BenchmarkHomeIdle(b *testing.B) {
	for b.Loop() {
		c := crowdAtHome(b)
		s := newCrowd(b, c, homeSize)
		defer s.Close()
		if err := c.join(b, figures{}, s); err != nil {
			b.Fatal(err)
		}
		time.Sleep(idleTime) // idle is what is measured
		now := rss(b, c.pid)
		b.Logf("memory with %d nodes idle: %.1f MB, aim: at most 30 MB; while they joined: %.1f MB", homeSize, now, max(now, peak(b, c.pid)))
	}
}

const (
	crowdSize   = 500
	homeSize    = 100
	crowdRush   = 50 // nodes that are joining at a time
	changes     = 30
	renames     = 10
	idleTime    = 20 * time.Second
	crowdAtMost = 8 * time.Minute // for the join; who needs more is not measured further
)

// coordinatorMeasures are what is printed, in this order.
var coordinatorMeasures = []figureLine{
	{"joined, nodes per second", "more is better"},
	{"all joined, s", "less is better"},
	{"all know all, s", "less is better"},
	{"CPU for the join, s", "less is better"},
	{"memory idle, MB", "less is better"},
	{"memory at most, MB", "less is better"},
	{"CPU idle, ms per s", "less is better"},
	{"new endpoint reaches, p50 ms", "less is better"},
	{"new endpoint reaches, p99 ms", "less is better"},
	{"new endpoint reaches, max ms", "less is better"},
	{"CPU per new endpoint, ms", "less is better"},
	{"new name reaches, p50 ms", "less is better"},
	{"new name reaches, p99 ms", "less is better"},
	{"new name reaches, max ms", "less is better"},
	{"CPU per new name, ms", "less is better"},
	{"of the swarm: CPU for join, s", "what it costs to listen"},
	{"of the swarm: JSON received, MB", "what was said"},
	{"of the swarm: tried again", "0 is right"},
}

// figureLine is one line of a table.
type figureLine struct{ name, better string }

// compare prints two sets of figures side by side. What was not measured is a dash.
func compare(b *testing.B, all []figureLine, ourName string, ours figures, otherName string, other figures) {
	b.Helper()
	cell := func(f figures, name string) string {
		if v, ok := f[name]; ok {
			return fmt.Sprintf("%.2f", v)
		}
		return "-"
	}
	b.Logf("%-37s %10s %10s %8s", "", ourName, otherName, "ratio")
	for _, m := range all {
		ratio := figures{}
		if ours[m.name] > 0 && other[m.name] > 0 {
			ratio[m.name] = ours[m.name] / other[m.name]
		}
		b.Logf("%-37s %10s %10s %8s  (%s)", m.name, cell(ours, m.name), cell(other, m.name), cell(ratio, m.name), m.better)
	}
}

// swarmServer is what the crowd is measured against.
type swarmServer struct {
	crowd  *netns.Crowd
	cores  *netns.Cores
	url    string
	key    string
	pid    int
	beside int // nodes that are not of the swarm
	rename func(id int64, old, name string) error
}

func crowdAtHome(b *testing.B) swarmServer {
	lab := netns.New(b)
	home, c := lab.Home(netns.Public), swarmServer{cores: lab.Cores(), beside: 1}
	var mesh *netns.HomeMesh
	c.cores.Server(func() {
		mesh = lab.HomeMesh(home.Router, netns.HomeOptions{URL: "http://" + home.Router.Addr4.String()})
	})
	inv := mesh.Invite("--reusable")
	c.crowd, c.url, c.key, c.pid = lab.Crowd(), inv.URL, inv.Key, mesh.Pid()
	c.rename = func(_ int64, old, name string) error {
		out, err := mesh.CLI("nodes", "rename", old, name)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	}
	return c
}

func crowdAtHeadscale(b *testing.B) swarmServer {
	lab := netns.New(b)
	c := swarmServer{cores: lab.Cores()}
	var hs *netns.Headscale
	c.cores.Server(func() { hs = lab.HeadscaleDefault() })
	c.crowd, c.url, c.pid = lab.Crowd(), hs.URL, hs.Pid()
	c.key = hs.PreAuthKey("ana", netns.KeyOptions{Reusable: true})
	c.rename = func(id int64, _, name string) error { return hs.Rename(id, name) }
	return c
}

// measureCoordinator fills in what both coordinators are measured by alike.
func measureCoordinator(b *testing.B, f figures, size int, open func(*testing.B) swarmServer) {
	c := open(b)
	s := newCrowd(b, c, size)
	defer s.Close()
	err := c.join(b, f, s)
	f["of the swarm: tried again"] = 0
	for why, n := range s.Trouble() {
		f["of the swarm: tried again"] += float64(n)
		b.Logf("%d times a node had to try again: %s", n, why)
	}
	if err != nil {
		b.Logf("the crowd has not settled: %v", err)
		return
	}
	before, begin := netns.CPUSeconds(b, c.pid), time.Now()
	time.Sleep(idleTime) // idle is what is measured
	f["CPU idle, ms per s"] = 1000 * (netns.CPUSeconds(b, c.pid) - before) / time.Since(begin).Seconds()
	f["memory idle, MB"] = rss(b, c.pid)
	c.measureChanges(b, f, "new endpoint", changes, size-1, func(i int) (*swarm.Watch, error) {
		n := s.Nodes()[i*size/changes]
		ep := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), uint16(5000+i))
		w := s.Watch(func(c swarm.Change) bool { return !c.Self && !c.Removed && c.Peer.HasEndpoint(ep.String()) })
		ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
		defer cancel()
		return w, n.SetEndpoints(ctx, ep)
	})
	c.measureChanges(b, f, "new name", renames, size-1, func(i int) (*swarm.Watch, error) {
		n, name := s.Nodes()[i*size/renames].Self(), fmt.Sprintf("renamed-%d", i)
		w := s.Watch(func(c swarm.Change) bool { return !c.Self && !c.Removed && strings.HasPrefix(c.Peer.Name, name+".") })
		old, _, _ := strings.Cut(n.Name, ".")
		return w, c.rename(int64(n.ID), old, name)
	})
	f["memory at most, MB"] = max(f["memory idle, MB"], peak(b, c.pid)) // the kernel brings the peak up to date late
}

func newCrowd(b *testing.B, c swarmServer, size int) *swarm.Swarm {
	b.Helper()
	s, err := swarm.New(swarm.Config{URL: c.url, AuthKey: c.key, Nodes: size, Name: "bee", Parallel: crowdRush, Dial: dialFrom(c.crowd)})
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// join lets the swarm join and waits until everybody knows everybody and where he is reached.
func (c swarmServer) join(b *testing.B, f figures, s *swarm.Swarm) error {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), crowdAtMost)
	defer cancel()
	size := len(s.Nodes())
	server, self, start := netns.CPUSeconds(b, c.pid), netns.CPUSeconds(b, os.Getpid()), time.Now()
	if err := s.Join(ctx); err != nil {
		return err
	}
	f["all joined, s"] = time.Since(start).Seconds()
	f["joined, nodes per second"] = float64(size) / f["all joined, s"]
	if err := s.Settle(ctx, swarm.Peers(size-1+c.beside)); err != nil {
		return err
	}
	f["all know all, s"] = time.Since(start).Seconds()
	if err := s.Settle(ctx, everyReached); err != nil {
		return err
	}
	f["CPU for the join, s"] = netns.CPUSeconds(b, c.pid) - server
	f["of the swarm: CPU for join, s"] = netns.CPUSeconds(b, os.Getpid()) - self
	_, bytes := s.Received()
	f["of the swarm: JSON received, MB"] = float64(bytes) / 1e6
	return nil
}

// measureChanges makes one change after the other and notes when each of the others has learned of it.
func (c swarmServer) measureChanges(b *testing.B, f figures, what string, times, others int, change func(i int) (*swarm.Watch, error)) {
	b.Helper()
	var all []time.Duration
	before := netns.CPUSeconds(b, c.pid)
	for i := range times {
		time.Sleep(rand.N(time.Second)) // so that no clock of the coordinator's is met always at the same point
		w, err := change(i)
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
		seen, err := w.Wait(ctx, others)
		cancel()
		if err != nil {
			b.Fatalf("%s %d: %v", what, i, err)
		}
		all = append(all, seen...)
	}
	slices.Sort(all)
	f["CPU per "+what+", ms"] = 1000 * (netns.CPUSeconds(b, c.pid) - before) / float64(times)
	for name, at := range map[string]int{"p50": len(all) / 2, "p99": len(all) * 99 / 100, "max": len(all) - 1} {
		f[fmt.Sprintf("%s reaches, %s ms", what, name)] = float64(all[at].Microseconds()) / 1000
	}
}
