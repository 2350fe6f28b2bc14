package swarm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

const (
	watchdog = 120 * time.Second      // silence after which a stock client gives its stream up
	pause    = 100 * time.Millisecond // between the updates of a client that has just started
	maxWait  = 30 * time.Second       // between two attempts
)

// ErrExpelled ends a node.
var ErrExpelled = errors.New("the coordinator says that this node is no longer one")

// refusal is the coordinator's own reason not to register a node.
type refusal struct{ text string }

func (e *refusal) Error() string { return "registration refused: " + e.text }

// Node is one member of the swarm. Its methods may be called by several goroutines.
type Node struct {
	swarm   *Swarm
	index   int
	name    string
	machine key.MachinePrivate
	node    key.NodePrivate
	disco   key.DiscoPublic
	joined  chan struct{} // closed after the first netmap
	ended   chan struct{} // closed when the node has given up, or the swarm was closed

	// owned by run
	server     key.MachinePublic
	registered bool
	once       sync.Once // closes joined

	mu        sync.Mutex // of what follows; held for moments only
	link      *link      // nil between two connections
	fresh     bool       // a frame came over this link
	netmap    netmap
	endpoints []netip.AddrPort
	relay     int  // home
	told      bool // the coordinator has confirmed the latest endpoints and home
	err       error
}

func newNode(s *Swarm, i int) *Node {
	return &Node{swarm: s, index: i, name: s.cfg.Name + "-" + strconv.Itoa(i), machine: key.NewMachine(), node: key.NewNode(),
		disco: key.NewDisco().Public(), joined: make(chan struct{}), ended: make(chan struct{}),
		// A client behind a NAT: an address at home and one that STUN told.
		endpoints: []netip.AddrPort{
			netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, 1, byte(i)}), 41641),
			netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i >> 8)}), 1024+uint16(i)),
		}}
}

// Name is the host name that the node tells the coordinator.
func (n *Node) Name() string { return n.name }

// Key is the node's private key, good for a relay too.
func (n *Node) Key() key.NodePrivate { return n.node }

// Err is why the node ended or, while it lives, why it had to try again the last time; nil if it had not.
func (n *Node) Err() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

// Done is closed when the node has given up, or the swarm was closed.
func (n *Node) Done() <-chan struct{} { return n.ended }

// Ended reports whether Done is closed.
func (n *Node) Ended() bool {
	select {
	case <-n.ended:
		return true
	default:
		return false
	}
}

// Connected reports whether a netmap came over the connection that is open now.
func (n *Node) Connected() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fresh
}

// Self is the node as the coordinator told it.
func (n *Node) Self() Peer {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.netmap.self
}

// PeerCount is the number of peers.
func (n *Node) PeerCount() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.netmap.peers)
}

// Peers are the peers as the node knows them.
func (n *Node) Peers() map[tailcfg.NodeID]Peer {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make(map[tailcfg.NodeID]Peer, len(n.netmap.peers))
	for id, p := range n.netmap.peers {
		all[id] = p.Value()
	}
	return all
}

// SetEndpoints tells the coordinator where the node is reached, and returns when it has answered.
func (n *Node) SetEndpoints(ctx context.Context, endpoints ...netip.AddrPort) error {
	n.mu.Lock()
	n.endpoints, n.told = endpoints, false
	l := n.link
	n.mu.Unlock()
	if l == nil {
		return errors.New(n.name + " is not connected")
	}
	if err := n.send(ctx, l, n.mapRequest()); err != nil {
		return err
	}
	n.confirm()
	return nil
}

func (n *Node) confirm() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.told = true
}

func (n *Node) informed() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.told
}

// run is the node's life.
func (n *Node) run(ctx context.Context) {
	defer close(n.ended)
	defer n.swarm.note()
	for try := 0; ; try++ {
		heard, err := n.session(ctx)
		n.mu.Lock()
		n.err = err
		n.mu.Unlock()
		var no *refusal
		if ctx.Err() != nil || errors.Is(err, ErrExpelled) || errors.As(err, &no) {
			return
		}
		if heard {
			try = 0
		}
		n.swarm.troubled(err)
		if sleep(ctx, backoff(try)) != nil {
			return
		}
	}
}

// backoff is that of stock clients: 10 ms, 40 ms, 90 ms, ..., give or take half of it.
func backoff(try int) time.Duration {
	d := min(time.Duration((try+1)*(try+1))*10*time.Millisecond, maxWait)
	return d/2 + rand.N(d)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// session is one connection, from its beginning to its end. heard: a netmap came.
func (n *Node) session(ctx context.Context) (heard bool, err error) {
	leave, err := n.enter(ctx)
	if err != nil {
		return false, err
	}
	defer leave()
	l, err := n.open(ctx)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() {
		n.setLink(nil)
		cancel()
		l.close()
		wg.Wait()
	}()
	context.AfterFunc(ctx, l.close) // nothing may wait for a mute coordinator
	n.setLink(l)
	if !n.informed() {
		wg.Go(func() { n.announce(ctx, l) })
	}
	return n.stream(ctx, l, leave)
}

// enter waits for a place among those who are joining; who has joined once comes back when it likes.
func (n *Node) enter(ctx context.Context) (leave func(), err error) {
	select {
	case <-n.joined:
		return func() {}, nil
	default:
	}
	select {
	case n.swarm.joining <- struct{}{}:
		return sync.OnceFunc(func() { <-n.swarm.joining }), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// open connects and, the first time, registers.
func (n *Node) open(ctx context.Context) (*link, error) {
	base := n.swarm.base
	dial := func(ctx context.Context, addr string) (net.Conn, error) { return n.swarm.cfg.Dial(ctx, n.index, addr) }
	if n.server.IsZero() {
		k, err := serverKey(ctx, base, dial)
		if err != nil {
			return nil, err
		}
		n.server = k
	}
	l, err := connect(ctx, base, dial, n.machine, n.server)
	if err != nil {
		return nil, err
	}
	if !n.registered {
		if err := n.register(ctx, l); err != nil {
			l.close()
			return nil, err
		}
		n.registered = true
	}
	return l, nil
}

func (n *Node) setLink(l *link) {
	n.mu.Lock()
	n.link, n.fresh = l, false
	n.mu.Unlock()
	n.swarm.note()
}

// stream reads the map stream until it ends. leave is called after the first netmap.
func (n *Node) stream(ctx context.Context, l *link, leave func()) (heard bool, err error) {
	dog := time.AfterFunc(watchdog, l.close)
	defer dog.Stop()
	req := n.mapRequest()
	req.Stream = true
	res, err := l.post(ctx, "/machine/map", n.node.Public(), req)
	if err != nil {
		return false, fmt.Errorf("map stream: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return false, fmt.Errorf("map stream: HTTP status %d", res.StatusCode)
	}
	for {
		f, err := n.swarm.readFrame(res.Body)
		if err != nil {
			return heard, fmt.Errorf("map stream: %w", err)
		}
		dog.Reset(watchdog)
		if f.keepAlive {
			continue
		}
		heard = true
		n.learn(f)
		n.once.Do(func() { close(n.joined) })
		leave()
		if f.self != nil && f.self.Expired {
			return heard, ErrExpelled
		}
	}
}

// learn takes in a frame, and answers a new DERP map with a choice of home.
func (n *Node) learn(f frame) {
	if f.derp != nil {
		n.swarm.derp.CompareAndSwap(nil, f.derp)
	}
	w := n.swarm.watch.Load()
	var news []Change // for w, which may ask nodes, once the lock is free
	n.mu.Lock()
	n.netmap.apply(f, func(c Change) {
		if w != nil {
			news = append(news, c)
		}
	})
	n.fresh = true
	if f.derp != nil && n.relay == 0 && len(f.derp.Regions) > 0 {
		n.relay = f.derp.RegionIDs()[0]
	}
	n.mu.Unlock()
	w.see(n, news)
	n.swarm.note()
}
