package coord

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"subnetd/subnetd/coord/policy"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

const domain = "mesh.test"

// mesh is a coordinator under test, with its disk and its door to the world.
type mesh struct {
	t    testing.TB
	c    *Coordinator
	disk *disk
	door *pipeListener // the world's
	web  *http.Server

	cancel  context.CancelFunc
	done    chan error
	changes atomic.Int32 // calls of Changed

	mu    sync.Mutex // guards all below
	gone  []key.NodePublic
	conns []*worldConn
}

// bubble runs f with a coordinator in fake time. It fails if any goroutine is
// left at the end.
func bubble(t *testing.T, f func(t *testing.T, m *mesh)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, start(t, newDisk())) })
}

// start begins a coordinator with what a disk holds; the test's end stops it.
func start(t testing.TB, d *disk) *mesh {
	t.Helper()
	return startAt(t, d, time.Now)
}

func startAt(t testing.TB, d *disk, now func() time.Time) *mesh {
	t.Helper()
	m, err := begin(t, d, now)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// clock is one that is behind.
type clock struct{ by atomic.Int64 }

func (c *clock) now() time.Time { return time.Now().Add(-time.Duration(c.by.Load())) }

func begin(t testing.TB, d *disk, now func() time.Time) (*mesh, error) {
	m := &mesh{t: t, disk: d, door: newPipeListener(), done: make(chan error, 1)}
	c, err := New(Config{
		Domain: domain, Store: d, Policy: policy.Default(), Now: now, Log: slog.New(slog.DiscardHandler),
		Changed: func() { m.changes.Add(1) }, Gone: m.heardGone,
	})
	if err != nil {
		return nil, err
	}
	m.c = c
	m.web = &http.Server{Handler: c.Handler(), ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: handshakeTimeout}
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	go func() { m.done <- m.c.Run(ctx) }()
	served := make(chan error, 1)
	go func() { served <- m.web.Serve(m.door) }()
	t.Cleanup(func() {
		m.stop()
		_ = m.web.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("the web server: %v", err)
		}
	})
	return m, nil
}

// stop ends the coordinator; a second time it does nothing.
func (m *mesh) stop() {
	m.cancel()
	if err := <-m.done; err != nil {
		m.t.Errorf("Run: %v", err)
	}
	m.done <- nil // for the next stop
}

// restart is another coordinator on the same disk, after this one has stopped.
func (m *mesh) restart() *mesh {
	m.stop()
	return start(m.t, m.disk)
}

func (m *mesh) heardGone(k key.NodePublic) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gone = append(m.gone, k)
}

func (m *mesh) isGone(k key.NodePublic) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Contains(m.gone, k)
}

// worldConn is a connection as it comes to the world's door.
type worldConn struct {
	net.Conn
	from        netip.AddrPort
	established atomic.Int32 // how often it was said
	closed      atomic.Bool
}

func (c *worldConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.from) }
func (c *worldConn) Established()         { c.established.Add(1) }
func (c *worldConn) Close() error         { c.closed.Store(true); return c.Conn.Close() }

// dial connects from an address of the world; "" is the router itself.
func (m *mesh) dial(ctx context.Context, from string) (net.Conn, *worldConn, error) {
	if from == "" {
		conn, err := m.c.Dial(ctx)
		return conn, nil, err
	}
	near, far := net.Pipe()
	w := &worldConn{Conn: far, from: netip.AddrPortFrom(netip.MustParseAddr(from), 40000)}
	m.mu.Lock()
	m.conns = append(m.conns, w)
	m.mu.Unlock()
	return near, w, m.door.deliver(ctx, w)
}

// pass lets fake time pass, and all that happens then come to rest.
func pass(d time.Duration) {
	if d > 0 {
		time.Sleep(d)
	}
	synctest.Wait()
}

// node is the node of that name or ID in the snapshot of now.
func (m *mesh) node(k key.NodePublic) *node { return m.c.snap.Load().byKey[k] }

// setPolicy puts a policy in force.
func (m *mesh) setPolicy(text string) {
	m.t.Helper()
	p, err := policy.Parse([]byte(text))
	if err != nil {
		m.t.Fatal(err)
	}
	m.must(m.c.SetPolicy(m.t.Context(), p))
}

func (m *mesh) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// invariants checks what must be true of every state, and that the disk has all of it.
func (m *mesh) invariants() {
	m.t.Helper()
	s := m.c.snap.Load()
	names, numbers, keys, machines, v6 := tally[string]{}, tally[uint32]{}, tally[key.NodePublic]{}, tally[key.MachinePublic]{}, tally[netip.Addr]{}
	for _, n := range s.spent {
		numbers[n]++
	}
	for id, n := range s.nodes {
		names[n.Name]++
		numbers[n.Number]++
		keys[n.Key]++
		machines[n.Machine]++
		v6[n.V6]++
		if n.ID != id || s.byKey[n.Key] != n || n.shown == nil || n.shown.node.Key != n.Key || label(n.Name) != n.Name && len(n.Name) < 60 || len(n.Name) > 63 {
			m.t.Errorf("node %d is not kept as it should: %+v", id, n.record)
		}
		for _, dev := range n.Devices {
			names[dev.Name]++
			numbers[dev.Number]++
			if dev.V6.IsValid() {
				v6[dev.V6]++
			}
		}
	}
	names.once(m.t, "name")
	numbers.once(m.t, "address")
	keys.once(m.t, "node key")
	machines.once(m.t, "machine")
	v6.once(m.t, "IPv6 address")
	if len(s.byKey) != len(s.nodes) {
		m.t.Errorf("%d keys of %d nodes", len(s.byKey), len(s.nodes))
	}
	for p, id := range s.primary {
		if n := s.nodes[id]; n == nil || !slices.Contains(n.shown.node.PrimaryRoutes, p) {
			m.t.Errorf("%v goes to %d, which does not know", p, id)
		}
	}
	m.derived(s)
	want, err := json.Marshal((&draft{snapshot: *s}).ledger(m.c.noise))
	m.must(err)
	if got := bytes.Replace(m.disk.file(LedgerFile), []byte(`"nodes":null`), []byte(`"nodes":[]`), 1); string(got) != string(want) {
		m.t.Errorf("on the disk is\n%s\nwant\n%s", got, want)
	}
}

// derived checks that what follows from the nodes, and is taken over where it can
// be, is what one would find from nothing.
func (m *mesh) derived(s *snapshot) {
	m.t.Helper()
	d := &draft{snapshot: *s, now: m.c.cfg.Now()}
	if len(s.nodes) > 100 {
		return
	}
	if got := d.dnsConfig(domain, d.sorted()); !reflect.DeepEqual(got, s.dns) {
		m.t.Errorf("DNS is %+v, should be %+v", s.dns, got)
	}
	var inputs []policy.Node
	for _, n := range d.sorted() {
		rules := d.rulesOf(n)
		if !n.shown.node.Expired {
			inputs = append(inputs, rules)
		}
		again := *n
		if d.show(&again, nil, domain); again.shown.node.Expired == n.shown.node.Expired && string(again.shown.json) != string(n.shown.json) {
			m.t.Errorf("node is shown as\n%s\nshould be\n%s", n.shown.json, again.shown.json)
		}
	}
	fresh := d.policy.Compile(inputs)
	for a := range s.nodes {
		if fresh.FilterKey(a) != s.compiled.FilterKey(a) {
			m.t.Errorf("the filter of %d is not what the policy says", a)
		}
		for b := range s.nodes {
			if fresh.Sees(a, b) != s.compiled.Sees(a, b) {
				m.t.Errorf("%d sees %d: %v", a, b, s.compiled.Sees(a, b))
			}
		}
	}
}

// tally counts what must be there once.
type tally[T comparable] map[T]int

func (c tally[T]) once(t testing.TB, what string) {
	t.Helper()
	for v, n := range c {
		if n > 1 {
			t.Errorf("%s %v is there %d times", what, v, n)
		}
	}
}

// disk is a Store in memory.
type disk struct {
	mu     sync.Mutex // guards all below
	files  map[string][]byte
	saves  map[string]int
	past   [][]byte           // every ledger that was saved
	before func(string) error // called without mu before each save; an error refuses it
}

func newDisk() *disk { return &disk{files: map[string][]byte{}, saves: map[string]int{}} }

// Load is of Store.
func (d *disk) Load(name string, v any) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	data, ok := d.files[name]
	if !ok {
		return false, nil
	}
	return true, json.Unmarshal(data, v)
}

// Save is of Store.
func (d *disk) Save(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	d.mu.Lock()
	before := d.before
	d.mu.Unlock()
	if before != nil {
		if err := before(name); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files[name] = data
	d.saves[name]++
	if name == LedgerFile {
		d.past = append(d.past, data)
	}
	return nil
}

func (d *disk) file(name string) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.files[name]
}

func (d *disk) count(name string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.saves[name]
}

func (d *disk) refuse(before func(name string) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.before = before
}

// with is another disk, with that ledger and these hints.
func with(ledger, hints []byte) *disk {
	d := newDisk()
	d.files[LedgerFile] = ledger
	if hints != nil {
		d.files[hintsFile] = hints
	}
	return d
}

// full is a disk's refusal.
var errDiskFull = errors.New("the disk is full, free some space")

func diskFull(string) error { return errDiskFull }

func prefixes(ps ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range ps {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func endpoints(es ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, e := range es {
		out = append(out, netip.MustParseAddrPort(e))
	}
	return out
}

// relayMap is a map with one region.
func relayMap(region int) *tailcfg.DERPMap {
	return &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{region: {RegionID: region, RegionCode: "home"}}}
}
