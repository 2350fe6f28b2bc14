package netns_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// homeScene is a home whose router is the mesh's coordinator, reached from outside by name and the redirected port 80.
type homeScene struct {
	t    testing.TB
	lab  *netns.Lab
	home *netns.Home
	mesh *netns.HomeMesh
}

// openHome makes the scene; the URL, unless another is given, is http://home.test.
func openHome(t testing.TB, o netns.HomeOptions) *homeScene {
	t.Helper()
	if o.URL == "" {
		o.URL = "http://home.test"
	}
	lab := netns.New(t)
	s := &homeScene{t: t, lab: lab, home: lab.Home(netns.Public)}
	s.mesh = lab.HomeMesh(s.home.Router, o)
	return s
}

// at is where strangers speak to the coordinator without TLS.
func (s *homeScene) at() netip.AddrPort { return netip.AddrPortFrom(s.home.Router.Addr4, 80) }

// stock joins a stock client behind a NAT, with a key of its own.
func (s *homeScene) stock(name string, nat netns.NAT, inviteFlags ...string) *netns.StockPeer {
	s.t.Helper()
	return s.stockUp(s.lab.StockPeerVersion(s.lab.Client(name, nat), netns.StockVersions()[0]), inviteFlags...)
}

func (s *homeScene) stockUp(p *netns.StockPeer, inviteFlags ...string) *netns.StockPeer {
	s.t.Helper()
	inv := s.mesh.Invite(inviteFlags...)
	p.Up(inv.URL, inv.Key)
	return p
}

// addrs are the mesh addresses of a member, or of a device behind one, IPv4 first.
func (s *homeScene) addrs(name string) []netip.Addr {
	s.t.Helper()
	v4, v6, err := s.mesh.MeshAddrs(name)
	if err != nil || !v6.IsValid() {
		s.t.Fatalf("addresses of %s: %v %v %v", name, v4, v6, err)
	}
	return []netip.Addr{v4, v6}
}

// rawCrowd are raw members, and where they find the coordinator.
type rawCrowd struct {
	*netns.Crowd
	at netip.AddrPort
}

func (s *homeScene) crowd() *rawCrowd { return &rawCrowd{s.lab.Crowd(), s.at()} }

// join makes the raw members from to to-1 members by one reusable key, all at the same time, and gives their streams.
func (c *rawCrowd) join(t testing.TB, key string, from, to int) ([]*rawNode, []*rawStream) {
	t.Helper()
	nodes, streams := make([]*rawNode, to-from), make([]*rawStream, to-from)
	errs := make([]error, to-from)
	var group sync.WaitGroup
	for i := range nodes {
		nodes[i] = newRawNode(c, from+i)
		group.Go(func() { streams[i], errs[i] = nodes[i].open(t.Context(), key) })
	}
	group.Wait()
	t.Cleanup(func() {
		for _, s := range streams {
			if s != nil {
				s.close()
			}
		}
	})
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return nodes, streams
}

// joinOne joins one raw member.
func (c *rawCrowd) joinOne(t testing.TB, key string, i int) (*rawNode, *rawStream) {
	t.Helper()
	nodes, streams := c.join(t, key, i, i+1)
	return nodes[0], streams[0]
}

// hangUp tells the daemon that its files have changed, and gives the moment.
func (s *homeScene) hangUp() time.Time {
	s.t.Helper()
	if err := syscall.Kill(s.mesh.Pid(), syscall.SIGHUP); err != nil {
		s.t.Fatal(err)
	}
	return time.Now()
}

// rewritePolicy writes the policy file and gives the moment at which the daemon was told.
func (s *homeScene) rewritePolicy(hujson string) time.Time {
	s.t.Helper()
	if err := os.WriteFile(s.mesh.Policy, []byte(hujson), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return s.hangUp()
}

// memoryOf reads a field of a process's memory, in bytes: VmRSS now, VmHWM at its highest.
func memoryOf(t testing.TB, pid int, field string) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.Atoi(strings.Fields(value)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("process %d tells no %s", pid, field)
	return 0
}

// mb prints bytes as megabytes.
func mb(n int) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

// judged tries a port every 20 ms, each time with a connection of its own, and gives the moment at which it let in for
// the first time or, with in false, for the last time: after that nobody got in for half a second.
func judged(t testing.TB, h *netns.Host, to netip.AddrPort, in bool, limit time.Duration) time.Time {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	last, lets := time.Now(), make(chan time.Time, 100)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var group sync.WaitGroup
	defer group.Wait()
	for {
		select {
		case now := <-lets:
			last = now
			if in {
				cancel()
				return last
			}
		case <-ctx.Done():
			t.Fatalf("%s to %v: not %v within %v", h.Name, to, map[bool]string{true: "let in", false: "kept out"}[in], limit)
		case <-tick.C:
			if !in && time.Since(last) > 500*time.Millisecond {
				cancel()
				return last
			}
			group.Go(func() {
				if answers(ctx, h, to) {
					select {
					case lets <- time.Now():
					default:
					}
				}
			})
		}
	}
}

// answers says whether a TCP connection comes about within 300 ms.
func answers(ctx context.Context, h *netns.Host, to netip.AddrPort) bool {
	ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	c, err := h.Dial(ctx, "tcp", to.String())
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// exitCode is the exit code of a command that ran, 0 without an error.
func exitCode(err error) int {
	var exit interface{ ExitCode() int }
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}
