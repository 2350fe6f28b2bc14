// Package swarm is many mesh nodes in one process, for measuring a coordinator: each speaks ts2021 over a connection of
// its own and does what a stock client does, but carries no traffic and keeps of the netmap only what can be counted.
//
//	/key -> Noise -> register with the key -> map stream, and beside it three short updates:
//	nothing known yet, endpoints, home relay -> deltas until the stream ends -> wait -> Noise -> map stream -> ...
//
// It imports nothing of the daemon, so that the two cannot agree on a mistake.
package swarm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
	"tailscale.com/tailcfg"
)

// Config describes a swarm.
type Config struct {
	URL      string // of the coordinator, http://ADDRESS or http://ADDRESS:PORT
	AuthKey  string // reusable
	Nodes    int
	Name     string // the nodes are NAME-0, NAME-1, ...
	Parallel int    // how many nodes may be joining at a time

	// Dial makes the TCP connections of the i-th node, which holds one.
	Dial func(ctx context.Context, i int, addr string) (net.Conn, error)
}

// Swarm is a number of nodes. Its methods may be called by several goroutines.
type Swarm struct {
	cfg     Config
	base    *url.URL
	nodes   []*Node
	joining chan struct{} // holds one element per node that is joining
	zstd    *zstd.Decoder
	changed chan struct{} // one slot: look at the nodes again
	watch   atomic.Pointer[Watch]
	derp    atomic.Pointer[tailcfg.DERPMap]
	frames  atomic.Int64
	bytes   atomic.Int64

	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	trouble map[string]int
}

// New makes a swarm whose nodes stand still until Join.
func New(cfg Config) (*Swarm, error) {
	base, err := url.Parse(cfg.URL)
	if err != nil || base.Scheme != "http" || base.Hostname() == "" {
		return nil, fmt.Errorf("the coordinator's address %q is not of the form http://ADDRESS or http://ADDRESS:PORT", cfg.URL)
	}
	if base.Port() == "" {
		base.Host = net.JoinHostPort(base.Hostname(), "80")
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxDecoded), zstd.WithDecoderMaxWindow(maxDecoded))
	if err != nil {
		return nil, fmt.Errorf("make zstd decoder: %w", err)
	}
	s := &Swarm{cfg: cfg, base: base, zstd: dec, joining: make(chan struct{}, cfg.Parallel), changed: make(chan struct{}, 1), trouble: map[string]int{}}
	for i := range cfg.Nodes {
		s.nodes = append(s.nodes, newNode(s, i))
	}
	return s, nil
}

// Join lets every node join, and returns when each has its first netmap or one was refused. The nodes stay, and come
// back by themselves when they lose the coordinator, until Close.
func (s *Swarm) Join(ctx context.Context) error {
	life, stop := context.WithCancel(context.Background())
	s.stop = stop
	for _, n := range s.nodes {
		s.wg.Go(func() { n.run(life) })
	}
	for _, n := range s.nodes {
		select {
		case <-n.joined:
		case <-n.ended:
			return fmt.Errorf("%s has not joined: %w", n.name, n.Err())
		case <-ctx.Done():
			return fmt.Errorf("%s has not joined: %w", n.name, errors.Join(ctx.Err(), n.Err()))
		}
	}
	return nil
}

// Close ends all nodes, without a word to the coordinator, and waits for their goroutines.
func (s *Swarm) Close() {
	if s.stop != nil {
		s.stop()
	}
	s.wg.Wait()
	s.zstd.Close()
}

// Nodes are all nodes, also those that have ended.
func (s *Swarm) Nodes() []*Node { return s.nodes }

// Trouble counts, by reason, how often a node had to try again.
func (s *Swarm) Trouble() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.trouble)
}

func (s *Swarm) troubled(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := ports.ReplaceAllString(err.Error(), "")
	if _, known := s.trouble[text]; !known && len(s.trouble) >= maxReasons {
		text = "other"
	}
	s.trouble[text]++
}

// ports are what makes the same error read differently for every connection.
var ports = regexp.MustCompile(`\d+(\.\d+){3}:\d+(->)?`)

const maxReasons = 20

// Received is how many map frames came, and their bytes as JSON.
func (s *Swarm) Received() (frames, bytes int64) { return s.frames.Load(), s.bytes.Load() }

// DERPMap is the first one that came, or nil.
func (s *Swarm) DERPMap() *tailcfg.DERPMap { return s.derp.Load() }

// Settle waits until ok holds for every node that has not ended; ok tells what is not yet so.
func (s *Swarm) Settle(ctx context.Context, ok func(*Node) error) error {
	at := 0 // who was not ready last time is asked first
	for {
		i, err := s.each(at, ok)
		if err == nil {
			return nil
		}
		at = i
		select {
		case <-s.changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// each asks every node, from the one at start on, and gives the first that is not ready.
func (s *Swarm) each(start int, ok func(*Node) error) (int, error) {
	for i := range s.nodes {
		i = (start + i) % len(s.nodes)
		n := s.nodes[i]
		if n.Ended() {
			continue
		}
		if err := ok(n); err != nil {
			return i, fmt.Errorf("%s: %w", n.name, err)
		}
	}
	return 0, nil
}

// note wakes Settle.
func (s *Swarm) note() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Peers is for Settle: the node is connected and has so many peers.
func Peers(want int) func(*Node) error {
	return func(n *Node) error {
		switch have := n.PeerCount(); {
		case !n.Connected():
			return errors.New("not connected")
		case have != want:
			return fmt.Errorf("%d peers, not %d", have, want)
		}
		return nil
	}
}

// Watch notes when each node learns of one change.
type Watch struct {
	match func(Change) bool
	start time.Time

	mu   sync.Mutex
	seen map[*Node]time.Duration
	more chan struct{} // one slot: seen has grown
}

// Watch begins to look for the change that match knows. There is one Watch at a time: the next takes its place. match
// is called by many goroutines at once.
func (s *Swarm) Watch(match func(Change) bool) *Watch {
	w := &Watch{match: match, start: time.Now(), seen: map[*Node]time.Duration{}, more: make(chan struct{}, 1)}
	s.watch.Store(w)
	return w
}

// see is told of the changes that a node has learned.
func (w *Watch) see(n *Node, all []Change) {
	if w == nil || !slices.ContainsFunc(all, w.match) {
		return
	}
	at := time.Since(w.start)
	w.mu.Lock()
	if _, ok := w.seen[n]; !ok {
		w.seen[n] = at
	}
	w.mu.Unlock()
	select {
	case w.more <- struct{}{}:
	default:
	}
}

// Wait waits until so many nodes have learned of the change, and gives how long after the beginning of the Watch each
// did.
func (w *Watch) Wait(ctx context.Context, nodes int) ([]time.Duration, error) {
	for {
		if all := w.times(); len(all) >= nodes {
			return all, nil
		}
		select {
		case <-w.more:
		case <-ctx.Done():
			return w.times(), fmt.Errorf("%d of %d nodes have seen the change: %w", len(w.times()), nodes, ctx.Err())
		}
	}
}

func (w *Watch) times() []time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []time.Duration
	for _, d := range w.seen {
		all = append(all, d)
	}
	return all
}
