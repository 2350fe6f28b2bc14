package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"subnetd/subnetd/mesh"
	"subnetd/subnetd/status"
	"tailscale.com/types/key"
)

// Config is what a Client needs. The callbacks are called one at a time and
// must not call back into the Client's Run.
type Config struct {
	URL      string // of the coordinator: http:// or https://
	Machine  key.MachinePrivate
	Node     key.NodePrivate   // zero: none yet, made before the first registration
	Server   key.MachinePublic // pinned key of the coordinator; zero: first contact
	Disco    key.DiscoPublic
	AuthKey  string // used when registration needs it
	Version  string // of this program, told to the coordinator
	Now      func() time.Time
	Dial     func(ctx context.Context, network, addr string) (net.Conn, error)
	Save     func(Identity) error                // called before an identity is relied upon
	OnNetmap func(*mesh.Netmap, key.NodePrivate) // whole netmap after each change, immutable
	OnState  func(State)                         // after each change, and each contact
	Log      *slog.Logger
}

// Identity is what must survive a restart besides the machine key.
type Identity struct {
	Node   key.NodePrivate
	Server key.MachinePublic
}

// State is where the client stands.
type State struct {
	Phase       status.Phase
	LoginURL    string    // to be opened by the owner, in PhaseNeedsLogin
	Error       string    // last trouble, one sentence; empty: none
	LastContact time.Time // last word from the coordinator
	KeyExpiry   time.Time // of our own key; zero: never
}

// Host is what the coordinator shall know about this machine.
type Host struct {
	Hostname      string
	Routes        []netip.Prefix     // offered to the mesh
	Endpoints     []Endpoint         // in order of preference
	HomeRelay     int                // region; 0: none, peers cannot reach us by relay
	UDP           bool               // UDP to the internet works
	V6            bool               // IPv6 to the internet works
	MappingVaries bool               // the NAT maps by destination
	Latency       map[string]float64 // seconds by "<region>-v4" or "-v6"
	// Ports at our mesh addresses where members ask this node itself (peerapi), for
	// names too; 0: none.
	PeerAPI4, PeerAPI6 uint16
	// Devices are the things behind us for which we want addresses in the mesh; nil:
	// nothing is said of them.
	Devices []Device
}

// Device is one of them.
type Device struct {
	Name string // one label
	MAC  string // it is known by that, whatever its name; "": by its name
	V6   bool
}

// Endpoint is an address at which this node may be reached.
type Endpoint struct {
	Addr netip.AddrPort
	Type int // 1 local, 2 STUN, 3 portmapped
}

// Client keeps this node known to one coordinator.
type Client struct {
	cfg Config

	kick chan struct{} // one slot: there is a command, look again
	host chan struct{} // one slot: the host changed, look again

	mu      sync.Mutex // guards what callers hand over
	want    Host
	login   *string      // key of a waiting Login
	logout  []chan error // waiting Logouts
	running bool

	// Owned by Run (or by a Logout while nothing runs).
	web        *web
	id         Identity
	pending    key.NodePrivate // new node key on trial, zero: none
	authKey    string
	verified   bool // the coordinator's key was compared in this process
	registered bool
	loggedOut  bool
	forced     bool // a Login asks for a registration with its key
	expired    int  // times in a row that a map said we are expired
	state      State
	last       *mesh.Netmap // last handed to OnNetmap
	lastKey    key.NodePrivate
	refresh    refresh
	pings      pingLog
}

var (
	errSave    = errors.New("save identity")
	errSilence = errors.New("nothing came from the coordinator for two minutes")
	errLocked  = errors.New("tailnet lock is on")
	errKicked  = errors.New("a command waits")
	errStale   = errors.New("the map is asked for anew")
	errRekey   = errors.New("the node key is expired")
)

// refusedError is the coordinator's no to a registration.
type refusedError struct{ text string }

func (e *refusedError) Error() string { return "registration refused: " + e.text }

// keyChangedError means that the pinned key of the coordinator is not the one shown.
type keyChangedError struct{ want, got key.MachinePublic }

func (e *keyChangedError) Error() string {
	return fmt.Sprintf("coordinator key changed from %v to %v", e.want, e.got)
}

// New returns a client that does nothing before Run.
func New(cfg Config) *Client {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Client{
		cfg: cfg, id: Identity{Node: cfg.Node, Server: cfg.Server}, authKey: cfg.AuthKey,
		kick: make(chan struct{}, 1), host: make(chan struct{}, 1),
		state: State{Phase: status.PhaseConnecting},
	}
}

// SetHost tells what shall be known of this machine. It never blocks.
func (c *Client) SetHost(h Host) {
	c.mu.Lock()
	same := equalHosts(c.want, h)
	c.want = cloneHost(h)
	c.mu.Unlock()
	if !same {
		signal(c.host)
	}
}

// Login registers (again) with authKey; an empty key means interactively.
func (c *Client) Login(authKey string) {
	c.mu.Lock()
	c.login = &authKey
	c.mu.Unlock()
	signal(c.kick)
}

// Logout ends this node's membership and forgets its identity. The identity is
// forgotten even if the coordinator cannot be told, which the error says.
func (c *Client) Logout(ctx context.Context) error {
	done := make(chan error, 1)
	c.mu.Lock()
	running := c.running
	if running {
		c.logout = append(c.logout, done)
	}
	c.mu.Unlock()
	if !running {
		return c.doLogout(ctx)
	}
	signal(c.kick)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// signal puts a mark into a one-slot channel. A mark already there says the same.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Run keeps the node registered and the netmap fresh until ctx ends. It returns
// an error only for a configuration that can never work.
func (c *Client) Run(ctx context.Context) error {
	base, err := parseBase(c.cfg.URL)
	if err != nil {
		c.setState(func(s *State) { s.Error = err.Error() })
		return err
	}
	c.web = &web{base: base, dial: c.cfg.Dial, now: c.cfg.Now}
	c.setRunning(true)
	defer c.setRunning(false)
	c.report()
	var b backoff
	for ctx.Err() == nil {
		c.commands(ctx)
		before := c.last
		err := c.once(ctx)
		if c.fruitful(before) {
			b.reset()
		}
		if ctx.Err() != nil {
			break
		}
		c.pause(ctx, c.judge(err, &b))
	}
	return nil
}

// fruitful reports whether the last round brought something. A map that has us
// expired does not count, though it is another one with each new key.
func (c *Client) fruitful(before *mesh.Netmap) bool {
	if c.expired > 0 {
		return false
	}
	return c.last != before || c.state.Phase == status.PhaseJoined && c.state.Error == ""
}

func (c *Client) setRunning(on bool) {
	c.mu.Lock()
	c.running = on
	waiting := c.logout
	c.logout = nil
	c.mu.Unlock()
	for _, w := range waiting {
		w <- context.Canceled
	}
}

// once works on one connection until it ends or a command waits.
func (c *Client) once(ctx context.Context) error {
	if c.loggedOut {
		<-c.untilKick(ctx)
		return errKicked
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-c.kick:
			signal(c.kick) // for commands and pause
			cancel(errKicked)
		case <-stop:
		}
	}()
	err := c.connected(ctx)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// untilKick is closed at the next command or when ctx ends. The mark stays.
func (c *Client) untilKick(ctx context.Context) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-c.kick:
			signal(c.kick)
		case <-ctx.Done():
		}
	}()
	return done
}

func (c *Client) connected(ctx context.Context) error {
	l, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer l.close()
	if !c.registered {
		if err := c.register(ctx, l); err != nil {
			return err
		}
	}
	for {
		if err := c.stream(ctx, l); !errors.Is(err, errStale) {
			return err
		}
		c.refresh.begin(c.cfg.Now())
	}
}

// connect compares the coordinator's key once per process, and again after a
// handshake that failed.
func (c *Client) connect(ctx context.Context) (*link, error) {
	if !c.verified {
		if err := c.verify(ctx); err != nil {
			return nil, err
		}
	}
	conn, err := c.web.upgrade(ctx, c.cfg.Machine, c.id.Server)
	if err != nil {
		c.verified = false
		return nil, err
	}
	return newLink(conn, c.web.base.Host), nil
}

func (c *Client) verify(ctx context.Context) error {
	got, err := c.web.serverKey(ctx)
	if err != nil {
		return err
	}
	if !c.id.Server.IsZero() && c.id.Server != got {
		return &keyChangedError{want: c.id.Server, got: got}
	}
	id := Identity{Node: c.id.Node, Server: got}
	if id.Node.IsZero() {
		id.Node = key.NewNode()
	}
	if err := c.save(id); err != nil {
		return err
	}
	c.verified = true
	return nil
}

// save persists id, then relies on it.
func (c *Client) save(id Identity) error {
	if id.Server == c.id.Server && id.Node.Equal(c.id.Node) {
		return nil
	}
	if c.cfg.Save != nil {
		if err := c.cfg.Save(id); err != nil {
			return fmt.Errorf("%w: %w", errSave, err)
		}
	}
	c.id = id
	return nil
}

// commands carries out what Login and Logout have asked.
func (c *Client) commands(ctx context.Context) {
	select {
	case <-c.kick:
	default:
	}
	c.mu.Lock()
	login, waiting := c.login, c.logout
	c.login, c.logout = nil, nil
	c.mu.Unlock()
	if len(waiting) > 0 {
		err := c.doLogout(ctx)
		for _, w := range waiting {
			w <- err
		}
	}
	if login != nil {
		c.authKey, c.forced = *login, true
		c.loggedOut, c.registered = false, false
	}
}

// setState changes the state and reports it if it is another one.
func (c *Client) setState(f func(*State)) {
	old := c.state
	f(&c.state)
	if c.state != old {
		c.report()
	}
}

func (c *Client) report() {
	if c.cfg.OnState != nil {
		c.cfg.OnState(c.state)
	}
}

func (c *Client) contact() { c.setState(func(s *State) { s.LastContact = c.cfg.Now() }) }
