package control

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"subnetd/subnetd/mesh"
	"subnetd/subnetd/status"
	"tailscale.com/types/key"
)

// member is a Client under test, and all that it has told.
type member struct {
	*Client
	t      testing.TB
	cancel context.CancelFunc
	done   chan error

	mu      sync.Mutex
	news    chan struct{} // closed and made anew at each news
	states  []State
	netmaps []*mesh.Netmap
	keys    []key.NodePrivate // with which the netmaps came
	saved   []Identity
	saving  error // what Save returns
}

// member makes a client of c; edit may change how.
func (c *coordinator) member(edit func(*Config)) *member {
	m := &member{t: c.t, news: make(chan struct{}), done: make(chan error, 1)}
	cfg := Config{
		URL: c.url, Machine: key.NewMachine(), Disco: key.NewDisco().Public(), Version: "1.2.3", Dial: c.connect,
		Save: m.save, OnNetmap: m.onNetmap, OnState: m.onState,
	}
	if edit != nil {
		edit(&cfg)
	}
	m.Client = New(cfg)
	return m
}

// run starts the client; the test's end stops it.
func (m *member) run() *member {
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	go func() { m.done <- m.Run(ctx) }()
	m.t.Cleanup(m.stop)
	return m
}

func (m *member) stop() {
	m.cancel()
	if err := <-m.done; err != nil {
		m.t.Errorf("Run: %v", err)
	}
	m.done <- nil // for the next stop
}

func (m *member) tell(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	close(m.news)
	m.news = make(chan struct{})
}

func (m *member) save(id Identity) (err error) {
	m.tell(func() {
		if err = m.saving; err == nil {
			m.saved = append(m.saved, id)
		}
	})
	return err
}

func (m *member) onNetmap(nm *mesh.Netmap, k key.NodePrivate) {
	m.tell(func() { m.netmaps, m.keys = append(m.netmaps, nm), append(m.keys, k) })
}

func (m *member) onState(s State) { m.tell(func() { m.states = append(m.states, s) }) }

// now is the state last told.
func (m *member) now() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.states) == 0 {
		return State{}
	}
	return m.states[len(m.states)-1]
}

func (m *member) seenNetmaps() []*mesh.Netmap {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.netmaps)
}

func (m *member) identities() []Identity {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.saved)
}

// await waits, in true time, until ok.
func (m *member) await(what string, ok func() bool) {
	m.t.Helper()
	timeout := time.After(time.Minute)
	for {
		m.mu.Lock()
		news := m.news
		m.mu.Unlock()
		if ok() {
			return
		}
		select {
		case <-news:
		case <-timeout:
			m.t.Fatalf("still waiting for: %s; state %+v", what, m.now())
		}
	}
}

// pass lets fake time pass, and all that happens then come to rest.
func pass(d time.Duration) {
	if d > 0 {
		time.Sleep(d)
	}
	synctest.Wait()
}

// expect asserts the phase, and that the trouble told has these words; none means no trouble.
func (m *member) expect(phase status.Phase, words ...string) {
	m.t.Helper()
	s := m.now()
	if s.Phase != phase {
		m.t.Errorf("phase %q; want %q (trouble %q)", s.Phase, phase, s.Error)
	}
	if len(words) == 0 && s.Error != "" {
		m.t.Errorf("trouble %q; want none", s.Error)
	}
	for _, w := range words {
		if !strings.Contains(s.Error, w) {
			m.t.Errorf("trouble %q; want one with %q", s.Error, w)
		}
	}
}

// expectCalls asserts how many calls of a kind the coordinator has had.
func (c *coordinator) expectCalls(what string, least, most int) {
	c.t.Helper()
	calls := c.got(what)
	if n := len(calls); n < least || n > most {
		c.t.Errorf("%d calls of %s; want %d to %d", n, what, least, most)
		for _, x := range calls[:min(len(calls), 20)] {
			c.t.Logf("  %s %s", x.at.Format("15:04:05.000"), x.what)
		}
	}
}
