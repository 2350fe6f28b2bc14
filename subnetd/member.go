package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"subnetd/subnetd/control"
	"subnetd/subnetd/engine"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/state"
	"subnetd/subnetd/status"
	"subnetd/subnetd/underlay"

	"tailscale.com/types/key"
)

// member is this node's membership: it holds at most one client of a
// coordinator and replaces it when the owner names another or says `down`.
type member struct {
	d    *daemon
	asks chan chan struct{} // the wish changed; closed once the old session is over

	lines lines // to the coordinator

	mu      sync.Mutex // guards all below
	id      state.Identity
	wish    state.Wish
	authKey string
	host    control.Host
	client  *control.Client // nil: not connected
}

func newMember(d *daemon, id state.Identity) *member {
	m := &member{d: d, id: id, asks: make(chan chan struct{})}
	if _, err := d.dir.Load("wish", &m.wish); err != nil {
		d.log.Error("the wish `down` may be forgotten", "err", err)
	}
	m.host.Hostname = d.cfg.Mesh.Hostname
	m.authKey = readAuthKey(d)
	return m
}

func readAuthKey(d *daemon) string {
	if d.cfg.Mesh.AuthKeyFile == "" {
		return ""
	}
	b, err := os.ReadFile(d.cfg.Mesh.AuthKeyFile)
	if err != nil {
		d.log.Warn("the auth key of mesh.auth_key_file cannot be read", "err", err)
	}
	return strings.TrimSpace(string(b))
}

func (m *member) String() string { return "member" }

func (m *member) isDown() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wish.Down
}

func (m *member) node() key.NodePrivate {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.id.Node
}

// Run connects as wished until ctx ends.
func (m *member) Run(ctx context.Context) error {
	var asked chan struct{}
	for ctx.Err() == nil {
		session, cancel := context.WithCancel(ctx)
		begun, finished := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(finished)
			m.connect(session, begun)
		}()
		<-begun
		if asked != nil {
			close(asked)
		}
		select {
		case <-ctx.Done():
		case asked = <-m.asks:
		}
		cancel()
		<-finished
	}
	return nil
}

// restart ends the session and returns when the next has begun: from then on
// no news come of the one before.
func (m *member) restart(ctx context.Context) error {
	done := make(chan struct{})
	select {
	case m.asks <- done:
	case <-ctx.Done():
		return fmt.Errorf("the daemon is busy: %w", ctx.Err())
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the daemon is busy: %w", ctx.Err())
	}
}

// connect serves one client of the wished coordinator until ctx ends. It closes
// begun once the status tells of this session.
func (m *member) connect(ctx context.Context, begun chan<- struct{}) {
	url := m.d.control()
	if m.isDown() || url == "" {
		m.d.setNetmap(nil, key.NodePrivate{})
		l := engine.Link{Phase: status.PhaseDown, Control: url}
		if !m.isDown() {
			l.Error = "No coordinator is set: run `subnetd up --control URL`."
		}
		m.d.engine.SetLink(l)
		close(begun)
		return
	}
	c := m.newClient(url)
	m.d.engine.SetLink(m.linkOf(url, control.State{Phase: status.PhaseConnecting}))
	close(begun)
	m.mu.Lock()
	m.client = c
	h := m.host
	m.mu.Unlock()
	c.SetHost(h)
	if err := c.Run(ctx); err != nil && ctx.Err() == nil {
		m.d.log.Error("the coordinator's client ended", "err", err)
		m.d.engine.SetLink(engine.Link{Phase: status.PhaseConnecting, Control: url, Error: err.Error()})
	}
	m.mu.Lock()
	m.client = nil
	m.mu.Unlock()
}

func (m *member) newClient(url string) *control.Client {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.id.Control != url { // another coordinator knows nothing of our keys
		m.id.Node, m.id.Server, m.id.Control = key.NodePrivate{}, key.MachinePublic{}, url
	}
	at, dial, authKey := url, m.lines.dial, m.authKey
	if url == homeControl {
		at, dial, authKey = homeURL, m.d.home.dial, "" // nobody needs a key to his own home
	}
	return control.New(control.Config{
		URL: at, Machine: m.id.Machine, Node: m.id.Node, Server: m.id.Server,
		Disco: m.d.under.Disco(), AuthKey: authKey, Version: version,
		Now: m.d.clock.now, Dial: dial, Save: m.save,
		OnNetmap: func(nm *mesh.Netmap, node key.NodePrivate) {
			m.d.setNetmap(nm, node)
			m.d.exits.setNetmap(nm)
			m.d.cache.put(url, nm)
		},
		OnState: func(s control.State) { m.d.engine.SetLink(m.linkOf(url, s)) },
		Log:     m.d.logger("control"),
	})
}

func (m *member) linkOf(url string, s control.State) engine.Link {
	l := engine.Link{Phase: s.Phase, Control: url, LoginURL: s.LoginURL, Error: s.Error, LastContact: s.LastContact}
	if l.Phase == status.PhaseConnecting && m.d.engine.Netmap() != nil {
		l.Phase = status.PhaseCached
	}
	return l
}

// save keeps keys before anybody relies on them.
func (m *member) save(id control.Identity) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := m.id
	next.Node, next.Server = id.Node, id.Server
	if err := m.d.dir.Save("identity", next); err != nil {
		return fmt.Errorf("keeping this node's keys: %w", err)
	}
	m.id = next
	return nil
}

// up wishes membership, at another coordinator or with a key if given.
func (m *member) up(ctx context.Context, authKey string) error {
	m.mu.Lock()
	m.wish.Down = false
	if authKey != "" {
		m.authKey = authKey
	}
	err := m.d.dir.Save("wish", m.wish)
	m.mu.Unlock()
	m.wished()
	return errors.Join(err, m.restart(ctx))
}

// wished tells those who depend on it that the wish may be another.
func (m *member) wished() {
	m.d.engine.SetDown(m.isDown())
	m.d.home.look()
}

// down leaves the mesh and returns once nothing of it is left on the machine.
func (m *member) down(ctx context.Context) error {
	m.mu.Lock()
	m.wish.Down = true
	err := m.d.dir.Save("wish", m.wish)
	m.mu.Unlock()
	m.wished()
	if e := m.restart(ctx); e != nil {
		return errors.Join(err, e)
	}
	return errors.Join(err, m.d.engine.Settle(ctx))
}

// logout gives the membership back: the coordinator forgets the node key.
func (m *member) logout(ctx context.Context) error {
	m.mu.Lock()
	c := m.client
	m.mu.Unlock()
	if c == nil {
		return errors.New("this node is not connected to a coordinator: run `subnetd up` first")
	}
	if err := c.Logout(ctx); err != nil {
		return fmt.Errorf("logging out: %w", err)
	}
	m.mu.Lock()
	m.id.Node, m.authKey = key.NodePrivate{}, ""
	err := m.d.dir.Save("identity", m.id)
	m.mu.Unlock()
	return errors.Join(err, m.down(ctx))
}

// change replaces what the coordinator shall know of this host.
func (m *member) change(f func(*control.Host)) {
	m.mu.Lock()
	f(&m.host)
	c, h := m.client, m.host
	m.mu.Unlock()
	if c != nil {
		c.SetHost(h)
	}
}

func (m *member) setHostname(system string) {
	m.change(func(h *control.Host) {
		if h.Hostname == "" {
			h.Hostname = system
		}
	})
}

func (m *member) setRoutes(ps []netip.Prefix) {
	m.change(func(h *control.Host) { h.Routes = slices.Clone(ps) })
}

func (m *member) setUnderlay(s underlay.State) {
	m.change(func(h *control.Host) {
		h.Endpoints = nil
		for _, e := range s.Endpoints {
			h.Endpoints = append(h.Endpoints, control.Endpoint{Addr: e.Addr, Type: e.Type})
		}
		h.HomeRelay, h.UDP, h.V6, h.MappingVaries = s.HomeRelay, s.UDP, s.V6, s.MappingVaries
		h.Latency = map[string]float64{}
		for region, d := range s.Latency {
			h.Latency[fmt.Sprintf("%d-v4", region)] = d.Seconds()
		}
	})
}
