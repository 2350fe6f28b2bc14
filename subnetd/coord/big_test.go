package coord

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

const many = 500

// listener is a client that reads its map without keeping it.
type listener struct {
	*client
	heard chan time.Time // a message that is about another node
	body  io.ReadCloser
}

func (l *listener) listen(t *testing.T) {
	r := l.about()
	r.Stream = true
	body, err := json.Marshal(r)
	if err != nil {
		t.Error(err)
		return
	}
	res, err := l.post(context.Background(), "/machine/map", string(body))
	if err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("%v %v", res, err)
		return
	}
	l.body = res.Body
}

func (l *listener) read() {
	r := bufio.NewReaderSize(l.body, 512)
	for {
		var n uint32
		if binary.Read(r, binary.LittleEndian, &n) != nil {
			return
		}
		if _, err := io.CopyN(io.Discard, r, int64(n)); err != nil {
			return
		}
		select {
		case l.heard <- time.Now():
		default:
		}
	}
}

// Five hundred nodes, in true time: what they cost, and how long one change takes
// to reach all. The figures are for reading; only that all hear it is judged.
func TestManyNodes(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's own memory would be measured")
	}
	before := memory()
	goroutines := runtime.NumGoroutine()
	t.Run("mesh", func(t *testing.T) {
		m := start(t, newDisk())
		k := m.invite(reusable)
		var all []*listener
		for i := range many {
			l := &listener{client: m.client(fmt.Sprint("n", i), "192.0.2.1"), heard: make(chan time.Time, 1)}
			l.endpoints = endpoints("192.0.2.1:41641", "10.0.0.1:41641", "[2001:db8::1]:41641")
			all = append(all, l)
		}
		began := time.Now()
		var readers sync.WaitGroup
		t.Cleanup(readers.Wait) // after the connections are closed
		each(all, func(l *listener) {
			if res := l.mustRegister(withAuth(k)); !res.MachineAuthorized {
				t.Errorf("answered %+v", res)
			}
			l.listen(t)
			readers.Go(l.read)
		})
		joined := time.Since(began)
		m.invariants()
		after := memory()
		t.Logf("%d nodes joined in %v (%.0f/s), %d writes of %d KiB; in memory, with their clients, %d KiB each, %d goroutines each; snapshot of %d peers each",
			many, joined.Round(time.Millisecond), many/joined.Seconds(), m.disk.count(LedgerFile), len(m.disk.file(LedgerFile))>>10,
			(after-before)>>10/many, (runtime.NumGoroutine()-goroutines)/many, len(m.c.snap.Load().nodes)-1)
		for range 3 {
			quiet(all)
			began = time.Now()
			all[0].endpoints = slices.Concat(all[0].endpoints, endpoints(fmt.Sprintf("192.0.2.1:%d", time.Now().Nanosecond()%60000+1)))
			all[0].mustTell()
			var took []time.Duration
			for _, l := range all[1:] {
				select {
				case at := <-l.heard:
					took = append(took, at.Sub(began))
				case <-time.After(time.Minute):
					t.Fatal("one has not heard of it")
				}
			}
			slices.Sort(took)
			t.Logf("a change reached half of them in %v, all but 1 %% in %v", took[len(took)/2].Round(time.Microsecond), took[len(took)*99/100].Round(time.Microsecond))
		}
		began = time.Now()
		const updates = 200
		for i := range updates {
			all[i].endpoints = endpoints(fmt.Sprintf("192.0.2.1:%d", i+1))
			all[i].mustTell()
		}
		t.Logf("an update takes %v", (time.Since(began) / updates).Round(time.Microsecond))
	})
	for wait := time.Now().Add(time.Minute); runtime.NumGoroutine() > goroutines+5; time.Sleep(time.Millisecond) {
		if time.Now().After(wait) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines are left of %d\n%s", runtime.NumGoroutine(), goroutines, buf[:runtime.Stack(buf, true)])
		}
	}
}

// each does f for all, some at a time.
func each(all []*listener, f func(*listener)) {
	var wg sync.WaitGroup
	for part := range slices.Chunk(all, (len(all)+3)/4) {
		wg.Go(func() {
			for _, l := range part {
				f(l)
			}
		})
	}
	wg.Wait()
}

// quiet waits until nobody hears anything for a while.
func quiet(all []*listener) {
	for {
		time.Sleep(frameGap + many*frameGapEach + 200*time.Millisecond)
		heard := false
		for _, l := range all {
			select {
			case <-l.heard:
				heard = true
			default:
			}
		}
		if !heard {
			return
		}
	}
}

// memory is what is in use: heap and stacks.
func memory() int64 {
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc + s.StackInuse)
}

// A node costs little, without its connection.
func TestManyNodesMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's own memory would be measured")
	}
	bubble(t, func(t *testing.T, m *mesh) {
		k := m.invite(reusable)
		fill := func() {
			for i := range many {
				c := m.client(fmt.Sprint("n", i), "")
				p := &caller{machine: c.machine.Public()}
				r := &tailcfg.RegisterRequest{Version: 130, NodeKey: c.node, Hostinfo: c.host, Auth: &tailcfg.RegisterResponseAuth{AuthKey: k}}
				if _, err := m.c.register(t.Context(), p, r); err != nil {
					t.Fatal(err)
				}
			}
		}
		before := memory()
		fill()
		m.disk.past = nil
		spent := (memory() - before) / many
		t.Logf("%d bytes for each of %d nodes", spent, many)
		if spent > 16<<10 {
			t.Errorf("%d bytes for each node", spent)
		}
	})
}

// However long it runs, a mesh that stays as big needs no more memory.
func TestManyChanges(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's own memory would be measured")
	}
	bubble(t, func(t *testing.T, m *mesh) {
		c, comes, stranger := m.member("c"), m.member("comes"), m.client("stranger", "192.0.2.5")
		p := c.stream()
		lives := func(n int) int64 {
			for i := range n {
				c.endpoints = endpoints(fmt.Sprintf("192.0.2.1:%d", i+1))
				c.mustTell()
				ctx, cancel := context.WithCancel(t.Context())
				m.must(m.c.stream(ctx, &once{httptest.NewRecorder(), cancel}, m.node(comes.node), comes.about()))
				m.setPolicy(walkPolicies[i%2])
				stranger.node = key.NewNode().Public()
				stranger.ask()
				stranger.mustRegister(withAuth("subnetd-wrong"))
				pass(time.Second)
				p.forget()
			}
			pass(time.Minute)
			p.forget()
			return memory()
		}
		before := lives(50)
		if grown := (lives(500) - before) / 500; grown > 512 {
			t.Errorf("%d bytes more with each change", grown)
		}
	})
}
