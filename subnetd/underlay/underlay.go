// Package underlay carries packets between nodes over the ordinary internet:
// one UDP port (IPv4 and IPv6) shared by WireGuard, disco and STUN, and relay
// connections for when UDP does not get through. It runs the path machine of
// package path and does what the machine says.
//
// Goroutines: Run's loop owns the machine, the endpoints and the netmap; one
// goroutine measures (STUN); one per relay region connects, with a reader
// while connected; the sockets are read by whoever called Open, or by a pump
// of ours while nobody has.
//
// In kernel mode WireGuard is in the kernel, on the public port; our socket has
// an inner one, and nftables gives it disco and STUN and makes what it sends
// look as if it came from the public one. Nobody calls Open then: the pump reads
// the socket, one goroutine carries what the kernel sends to its relayed peers
// (conduit.go), another brings it what relays bring (inject.go), and the loop
// tells it where to send (pin.go).
package underlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/path"

	"tailscale.com/types/key"
)

// Config is what an Underlay is made of.
type Config struct {
	Port    uint16           // UDP port of both families; 0: any free one
	Public  uint16           // kernel mode: the port of the kernel's WireGuard, by which the world knows us; 0: userspace mode
	Conduit uint16           // kernel mode: UDP port on lo that stands for the peers without direct path; 0: any free one
	Disco   key.DiscoPrivate // zero: a new one
	Mark    int              // SO_MARK on every socket; 0: none
	Now     func() time.Time
	Log     *slog.Logger
	OnState func(State) // called with the newest State when it changed, from one goroutine
	OnPath  func()      // some path changed; calls may be merged
	// Adopted are the direct addresses at which the kernel has peers that a run
	// before left it. Kernel mode only.
	Adopted map[key.NodePublic]netip.AddrPort
	// OnUse says where the kernel shall send to a peer from now on; calls come
	// from the loop, in order, and must not block. Kernel mode needs it.
	OnUse func(key.NodePublic, netip.AddrPort)
	// OnDoor says that From may tell something new of a peer that Serve named. As OnUse.
	OnDoor func()
	// OnActive says that a peer speaks to us over UDP: the kernel's WireGuard may
	// follow it to its address, and should be looked at for a while. As OnUse.
	OnActive func()
}

// The types of an endpoint, as the coordinator protocol numbers them.
const (
	EndpointLocal   = 1 // address of an interface
	EndpointSTUN    = 2 // address as a STUN server saw it
	EndpointPortMap = 3 // address our router gave us on request
	EndpointGuess   = 4 // STUN address with our own port, behind a hard NAT
)

// Endpoint is an address at which peers may reach us.
type Endpoint struct {
	Addr netip.AddrPort
	Type int
}

// State is what we know of our own place in the network. A change of Latency
// alone is not reported.
type State struct {
	Port          uint16
	Endpoints     []Endpoint // best first
	HomeRelay     int        // region; 0: none yet
	UDP           bool       // some STUN server answered, or none was there to ask
	V6            bool       // a STUN server answered over IPv6
	MappingVaries bool       // our NAT gives every destination another port
	Latency       map[int]time.Duration
}

// machine is the part of path.Machine that we use.
type machine interface {
	Step(now time.Time, e path.Event) []path.Action
	Wake() time.Time
	Path(key.NodePublic) mesh.Path
}

// probe is a waiting Ping.
type probe struct {
	peer   key.NodePublic
	answer chan mesh.Path
}

// Underlay is the sockets, the relays and the path machine. New makes one.
type Underlay struct {
	cfg   Config
	start time.Time
	disco key.DiscoPrivate
	known key.DiscoPublic // of disco; a router takes 4 million instructions to work it out
	port  uint16          // by which the world knows us
	inner uint16          // of the sockets: the same, but in kernel mode
	v4    *socket         // nil: family not there
	v6    *socket

	conduit *conduit      // nil: userspace mode
	adopted atomic.Bool   // the loop knows what Config's Adopted said
	learned atomic.Uint32 // counts the facts we were told; what was derived from older ones is stale
	trial   trial         // SelfTest

	machineMu sync.Mutex // guards machine, which the loop steps and Paths reads
	machine   machine

	// What the loop shall look at; guarded by mu, told by wake.
	mu     sync.Mutex
	netmap *mesh.Netmap
	key    key.NodePrivate
	facts  *host.Facts
	roams  map[key.NodePublic]netip.AddrPort // where the kernel has gone by itself
	wake   chan struct{}

	probes    chan probe
	hints     chan path.Event       // from data plane and relays; dropped when full
	inbound   chan *packet          // sealed disco messages; dropped when full
	stunIn    chan stunReply        // STUN answers; dropped when full
	relayIn   chan *packet          // WireGuard packets that came over a relay
	results   chan measurement      // of the measuring goroutine
	measure   chan measureOrder     // one slot: newest order
	mapped    chan []netip.AddrPort // of the port mapper
	gateway   chan netip.Addr       // one slot: where the port mapper shall ask
	mapPort   uint16                // of the router; tests have their own
	ssdpPort  uint16                // the same
	ssdpGroup netip.AddrPort        // the same
	done      chan struct{}         // closed when Run has ended
	started   atomic.Bool

	// Snapshots for the data plane: written by the loop only.
	peers  atomic.Pointer[map[key.NodePublic]*peer]
	addrs  atomic.Pointer[map[netip.AddrPort]*peer]
	relays atomic.Pointer[map[int]*relay]

	strange atomic.Int64 // uptime at which the machine was last told of a stranger

	packets sync.Pool // *packet
	senders sync.Pool // *sender

	receivers receivers

	notifyMu    sync.Mutex // guards state, which the loop writes and the notifier reads
	state       State
	stateSignal chan struct{}
	pathSignal  chan struct{}
}

// New opens the sockets. An error means that not even
// one family could be opened on the port.
func New(cfg Config) (*Underlay, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.OnUse == nil {
		cfg.OnUse = func(key.NodePublic, netip.AddrPort) {}
	}
	if cfg.OnActive == nil {
		cfg.OnActive = func() {}
	}
	if cfg.OnDoor == nil {
		cfg.OnDoor = func() {}
	}
	if cfg.Disco.IsZero() {
		cfg.Disco = key.NewDisco()
	}
	v4, v6, inner, err := listenPair(cfg.Port, cfg.Public, cfg.Mark, cfg.Log)
	if err != nil {
		return nil, fmt.Errorf("open UDP port %d: %w", cfg.Port, err)
	}
	port := cmp.Or(cfg.Public, inner)
	u := &Underlay{
		cfg: cfg, start: cfg.Now(), disco: cfg.Disco, known: cfg.Disco.Public(), port: port, inner: inner, v4: v4, v6: v6,
		machine:     newMachine(),
		wake:        make(chan struct{}, 1),
		probes:      make(chan probe),
		hints:       make(chan path.Event, 1024), // one look of the tunnel at 500 peers
		inbound:     make(chan *packet, 128),
		stunIn:      make(chan stunReply, 32),
		relayIn:     make(chan *packet, 256),
		results:     make(chan measurement),
		measure:     make(chan measureOrder, 1),
		mapped:      make(chan []netip.AddrPort),
		gateway:     make(chan netip.Addr, 1),
		mapPort:     mapServerPort,
		ssdpPort:    ssdpPort,
		ssdpGroup:   netip.AddrPortFrom(netip.MustParseAddr(ssdpGroup), ssdpPort),
		done:        make(chan struct{}),
		state:       State{Port: port, UDP: true},
		stateSignal: make(chan struct{}, 1),
		pathSignal:  make(chan struct{}, 1),
	}
	u.packets.New = func() any { return new(packet) }
	u.senders.New = func() any { return newSender() }
	u.peers.Store(&map[key.NodePublic]*peer{})
	u.addrs.Store(&map[netip.AddrPort]*peer{})
	u.relays.Store(&map[int]*relay{})
	u.trial.came, u.trial.wait = make(chan struct{}, 1), trialTime
	u.receivers.init(u)
	if cfg.Public != 0 {
		if u.conduit, err = openConduit(cfg); err != nil {
			u.closeSockets()
			return nil, err
		}
	}
	return u, nil
}

// Inner is the port of our own socket: what nftables must bring to the public
// port's disco and STUN in kernel mode, the public port itself otherwise.
func (u *Underlay) Inner() uint16 { return u.inner }

// ConduitPort is the port of the peers' loopback endpoints; 0: userspace mode.
func (u *Underlay) ConduitPort() uint16 {
	if u.conduit == nil {
		return 0
	}
	return u.conduit.port
}

// Close closes the sockets of an Underlay that was never Run.
func (u *Underlay) Close() error {
	if u.started.Load() {
		return errors.New("underlay is running: end its context instead")
	}
	u.closeSockets()
	return nil
}

func (u *Underlay) closeSockets() {
	for _, s := range u.sockets() {
		s.conn.Close()
	}
	if u.conduit != nil {
		u.conduit.sock.conn.Close()
	}
}

// sockets are those that could be opened, IPv4 first.
func (u *Underlay) sockets() []*socket {
	var all []*socket
	for _, s := range []*socket{u.v4, u.v6} {
		if s != nil {
			all = append(all, s)
		}
	}
	return all
}

// Disco is our disco key.
func (u *Underlay) Disco() key.DiscoPublic { return u.known }

// SetNetmap gives peers and relays, and our node key, by which relays know us.
// Relays are used only once the netmap's own node has that key.
func (u *Underlay) SetNetmap(m *mesh.Netmap, k key.NodePrivate) {
	u.mu.Lock()
	u.netmap, u.key = m, k
	u.mu.Unlock()
	signal(u.wake)
}

// SetFacts gives the machine's interfaces and default routes.
func (u *Underlay) SetFacts(f host.Facts) {
	u.mu.Lock()
	u.facts = &f
	u.mu.Unlock()
	signal(u.wake)
}

// State is the newest state.
func (u *Underlay) State() State {
	u.notifyMu.Lock()
	defer u.notifyMu.Unlock()
	return u.state
}

// Paths is the path to every peer now.
func (u *Underlay) Paths() map[key.NodePublic]mesh.Path {
	peers := *u.peers.Load()
	all := make(map[key.NodePublic]mesh.Path, len(peers))
	u.machineMu.Lock()
	defer u.machineMu.Unlock()
	for k := range peers {
		all[k] = u.machine.Path(k)
	}
	return all
}

// Ping asks the peer for an answer by disco, on whatever way works. No answer
// is a Path of kind none and no error.
func (u *Underlay) Ping(ctx context.Context, peer key.NodePublic) (mesh.Path, error) {
	if _, ok := (*u.peers.Load())[peer]; !ok {
		return mesh.Path{}, fmt.Errorf("ping: no peer %s", peer.ShortString())
	}
	p := probe{peer: peer, answer: make(chan mesh.Path, 1)}
	select {
	case u.probes <- p:
	case <-ctx.Done():
		return mesh.Path{}, ctx.Err()
	case <-u.done:
		return mesh.Path{}, net.ErrClosed
	}
	select {
	case got := <-p.answer:
		return got, nil
	case <-ctx.Done():
		return mesh.Path{}, ctx.Err()
	case <-u.done:
		return mesh.Path{}, net.ErrClosed
	}
}

// signal says "look again" on a one-slot channel; it never blocks.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// uptime is the time since New; it fits an atomic.Int64.
func (u *Underlay) uptime() time.Duration { return u.cfg.Now().Sub(u.start) }
