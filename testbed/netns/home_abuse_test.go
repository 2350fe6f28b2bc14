package netns_test

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// attack is one way of making trouble at the public port. It ends by itself or with ctx, and counts what it did.
type attack struct {
	name    string
	run     func(ctx context.Context, b *besieged, n *atomic.Int64)
	atLeast int64 // so many, or the attack was none
	decides bool  // with its end the phase ends
}

// attackPhase is attacks at the same time.
type attackPhase struct {
	limit   time.Duration
	attacks []attack
}

// besieged is a home whose public port is under attack.
type besieged struct {
	*homeScene
	c       *rawCrowd
	tlsAt   netip.AddrPort
	a, b    *rawNode // members who misbehave
	streams []*rawStream
}

// TestHomePortUnderGarbage: whatever comes to the public port, its memory stays bounded, members go on talking over the
// relay, and new ones join.
func TestHomePortUnderGarbage(t *testing.T) {
	b := &besieged{homeScene: openHome(t, netns.HomeOptions{})}
	b.c, b.tlsAt = b.crowd(), netip.AddrPortFrom(b.home.Router.Addr4, 443)
	phone := b.stock("phone", netns.UDPBlocked)
	wantReach(t, phone.Host, b.addrs("home")...)
	nodes, streams := b.c.join(t, b.mesh.Invite("--reusable").Key, 0, 2)
	b.a, b.b, b.streams = nodes[0], nodes[1], streams
	late := b.lab.StockPeerVersion(b.lab.Client("late", netns.Easy), netns.StockVersions()[0])

	before := memoryOf(t, b.mesh.Pid(), "VmRSS")
	storm := b.begin(t)
	pings := startPings(t, phone.Host, b.addrs("home")[0])
	start := time.Now()
	b.stockUp(late)
	t.Logf("under attack a new member joined in %v", time.Since(start).Round(time.Millisecond))
	wantReach(t, late.Host, b.addrs("home")[0])
	most := storm.watch(t, b.mesh.Pid())
	sent, lost, slowest := pings.finish(t)
	t.Logf("over the relay: %d pings, %d lost, slowest %s ms", sent, lost, slowest)
	if sent < 50 || lost*10 > sent {
		t.Errorf("of %d pings over the relay %d were lost", sent, lost)
	}
	after := b.settled(t, before)
	t.Logf("memory: %s before, %s at most, %s after (highest ever %s)", mb(before), mb(most), mb(after), mb(memoryOf(t, b.mesh.Pid(), "VmHWM")))
	if most > before+64<<20 { // a third of it are WireGuard's buffers, which any traffic fills
		t.Errorf("memory grew from %s to %s", mb(before), mb(most))
	}
	again, err := newRawNode(b.c, 5).open(t.Context(), b.mesh.Invite().Key)
	if err != nil {
		t.Fatalf("after the attack: %v", err)
	}
	again.close()
}

// settled waits until the memory is near what it was, and gives what it is.
func (b *besieged) settled(t *testing.T, before int) int {
	t.Helper()
	now := 0
	netns.Eventually(t, 30*time.Second, "connections of the attack are gone", func() error {
		out, err := b.home.Router.Run(t.Context(), "ss", "-Htn", "state", "established", "( sport = :8410 or sport = :80 or sport = :443 )")
		if n := strings.Count(out, "\n"); err == nil && n > 40 {
			err = fmt.Errorf("%d connections", n)
		}
		now = memoryOf(t, b.mesh.Pid(), "VmRSS")
		return err
	})
	return now
}

// storm is all attacks: those of each phase at the same time.
type storm struct {
	over   chan struct{}
	phase  atomic.Int64
	counts [][]*atomic.Int64
}

func (b *besieged) begin(t *testing.T) *storm {
	s := &storm{over: make(chan struct{})}
	for _, phase := range attackPhases() {
		s.counts = append(s.counts, make([]*atomic.Int64, len(phase.attacks)))
		for i := range phase.attacks {
			s.counts[len(s.counts)-1][i] = new(atomic.Int64)
		}
	}
	go func() {
		defer close(s.over)
		for p, phase := range attackPhases() {
			s.phase.Store(int64(p))
			ctx, cancel := context.WithTimeout(t.Context(), phase.limit)
			var group sync.WaitGroup
			for i, a := range phase.attacks {
				group.Go(func() {
					a.run(ctx, b, s.counts[p][i])
					if a.decides {
						cancel()
					}
				})
			}
			group.Wait()
			cancel()
		}
	}()
	return s
}

// watch waits for the end of the attacks and gives the most memory that the daemon had meanwhile.
func (s *storm) watch(t *testing.T, pid int) (most int) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	each := make([]int, len(s.counts))
	for over := false; !over; {
		select {
		case <-tick.C:
		case <-s.over:
			over = true
		}
		p := s.phase.Load()
		each[p] = max(each[p], memoryOf(t, pid, "VmRSS"))
		most = max(most, each[p])
	}
	for p, phase := range attackPhases() {
		t.Logf("phase %d: memory at most %s", p+1, mb(each[p]))
		for i, a := range phase.attacks {
			n := s.counts[p][i].Load()
			t.Logf("  %d x %s", n, a.name)
			if n < a.atLeast {
				t.Errorf("attack %q: that is not %d times", a.name, a.atLeast)
			}
		}
	}
	return most
}

// pings are echo requests five times a second.
type pings struct {
	p *netns.Process
}

func startPings(t *testing.T, h *netns.Host, to netip.Addr) *pings {
	t.Helper()
	return &pings{h.Start("ping", "-n", "-i", "0.2", "-W", "2", to.String())}
}

var (
	pingCounts = regexp.MustCompile(`(\d+) packets transmitted, (\d+) received`)
	pingTimes  = regexp.MustCompile(`= [\d.]+/[\d.]+/([\d.]+)/`)
)

// finish gives how many were sent and lost, and the time of the slowest in milliseconds.
func (p *pings) finish(t *testing.T) (sent, lost int, slowest string) {
	t.Helper()
	if err := p.p.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	<-p.p.Done()
	out := p.p.Tail(5)
	m := pingCounts.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("ping ended with:\n%s", out)
	}
	var got int
	_, _ = fmt.Sscan(m[1]+" "+m[2], &sent, &got)
	if m := pingTimes.FindStringSubmatch(out); m != nil {
		slowest = m[1]
	}
	return sent, sent - got, slowest
}
