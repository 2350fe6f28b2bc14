package netns_test

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// rawStream is a long poll: a goroutine reads frames until the stream ends, and keeps the netmap that they add up to.
type rawStream struct {
	wire   *wire
	cancel context.CancelFunc
	done   chan struct{}

	mu     sync.Mutex // guards what follows
	err    error      // why it ended
	m      rawMap
	frames int
	beats  int           // keepalives among them
	news   chan struct{} // closed at the next frame, and another one takes its place
}

// open connects, registers with a key that may be empty, and streams; the first netmap is there when it returns.
func (n *rawNode) open(ctx context.Context, key string) (*rawStream, error) {
	w, err := n.connect(ctx)
	if err != nil {
		return nil, err
	}
	if err := n.register(ctx, w, key); err != nil {
		w.close()
		return nil, err
	}
	s, err := n.stream(ctx, w)
	if err != nil {
		w.close()
	}
	return s, err
}

// stream begins a long poll on a connection, which the stream's end closes; the first netmap is there when it returns.
func (n *rawNode) stream(ctx context.Context, w *wire) (*rawStream, error) {
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s := &rawStream{wire: w, cancel: cancel, done: make(chan struct{}), news: make(chan struct{}), m: newRawMap()}
	r := n.mapRequest()
	r.Stream = true
	body, err := json.Marshal(r)
	if err != nil {
		cancel()
		return nil, err
	}
	stop := context.AfterFunc(ctx, cancel)
	defer stop()
	late := time.AfterFunc(patience, cancel)
	defer late.Stop()
	res, err := w.post(life, "/machine/map", body)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("/machine/map: %w", err)
	}
	first := s.news
	go s.read(res.Body)
	select {
	case <-first:
	case <-time.After(patience):
		s.close()
		return nil, errors.New("/machine/map: no first frame")
	}
	if s.view().Self == nil {
		s.close()
		return nil, fmt.Errorf("/machine/map: the first frame has no self node: %w", s.ended())
	}
	return s, nil
}

// close ends the stream and its connection, and waits for its goroutine.
func (s *rawStream) close() {
	s.cancel()
	s.wire.close()
	<-s.done
}

func (s *rawStream) read(body io.ReadCloser) {
	defer close(s.done)
	err := s.frame(body)
	s.mu.Lock()
	s.err = err
	close(s.news)
	s.news = make(chan struct{})
	s.mu.Unlock()
	body.Close()
	s.wire.close()
}

// frame takes frame after frame: a little-endian length, then zstd-packed JSON.
func (s *rawStream) frame(body io.Reader) error {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(32<<20))
	if err != nil {
		return err
	}
	defer dec.Close()
	for {
		var head [4]byte
		if _, err := io.ReadFull(body, head[:]); err != nil {
			return err
		}
		packed := make([]byte, binary.LittleEndian.Uint32(head[:]))
		if _, err := io.ReadFull(body, packed); err != nil {
			return err
		}
		plain, err := dec.DecodeAll(packed, nil)
		if err != nil {
			return err
		}
		var m tailcfg.MapResponse
		if err := json.Unmarshal(plain, &m); err != nil {
			return fmt.Errorf("%w in %q", err, plain)
		}
		if err := s.take(&m); err != nil {
			return err
		}
	}
}

func (s *rawStream) take(m *tailcfg.MapResponse) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.frames == 0 && m.KeepAlive {
		return errors.New("the first frame is a keepalive")
	}
	s.frames++
	if m.KeepAlive {
		s.beats++
	} else {
		s.m.add(m)
	}
	close(s.news)
	s.news = make(chan struct{})
	return nil
}

// view is the netmap as it stands; it never changes afterwards.
func (s *rawStream) view() rawMap {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m.clone()
}

// ended is why the stream ended, nil while it lives.
func (s *rawStream) ended() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// wait looks at the netmap after each frame until check is content, and fails the test after limit. check asks nothing
// else of the stream.
func (s *rawStream) wait(t testing.TB, limit time.Duration, what string, check func(rawMap) error) {
	t.Helper()
	if err := s.until(limit, check); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func (s *rawStream) until(limit time.Duration, check func(rawMap) error) error {
	deadline := time.After(limit)
	for {
		s.mu.Lock()
		news, over := s.news, s.err
		err := check(s.m)
		s.mu.Unlock()
		if err == nil {
			return nil
		}
		if over != nil {
			return fmt.Errorf("the stream ended (%w): %w", over, err)
		}
		select {
		case <-news:
		case <-deadline:
			return fmt.Errorf("not within %v: %w", limit, err)
		}
	}
}

// rawMap is what the frames of one stream add up to, by the rules of the protocol. Its nodes never change.
type rawMap struct {
	Self    *tailcfg.Node
	Peers   map[tailcfg.NodeID]*tailcfg.Node
	Filters map[string][]tailcfg.FilterRule
	DERP    *tailcfg.DERPMap
	DNS     *tailcfg.DNSConfig
	Users   map[tailcfg.UserID]tailcfg.UserProfile
	Domain  string
}

func newRawMap() rawMap {
	return rawMap{Peers: map[tailcfg.NodeID]*tailcfg.Node{}, Filters: map[string][]tailcfg.FilterRule{}, Users: map[tailcfg.UserID]tailcfg.UserProfile{}}
}

// clone is a netmap that stays as it is.
func (m rawMap) clone() rawMap {
	m.Peers, m.Filters, m.Users = maps.Clone(m.Peers), maps.Clone(m.Filters), maps.Clone(m.Users)
	return m
}

// add brings the netmap up to date with one more frame.
func (m *rawMap) add(r *tailcfg.MapResponse) {
	if r.Node != nil {
		m.Self = r.Node
	}
	m.addPeers(r)
	if r.PacketFilter != nil {
		m.Filters["base"] = r.PacketFilter
	}
	if _, all := r.PacketFilters["*"]; all {
		clear(m.Filters)
	}
	for name, rules := range r.PacketFilters {
		if rules == nil {
			delete(m.Filters, name)
		} else if name != "*" {
			m.Filters[name] = rules
		}
	}
	if r.DERPMap != nil && r.DERPMap.Regions != nil {
		m.DERP = r.DERPMap
	}
	if r.DNSConfig != nil {
		m.DNS = r.DNSConfig
	}
	for _, u := range r.UserProfiles {
		m.Users[u.ID] = u
	}
	m.Domain = cmp.Or(r.Domain, m.Domain)
}

func (m *rawMap) addPeers(r *tailcfg.MapResponse) {
	if len(r.Peers) > 0 {
		clear(m.Peers)
		for _, p := range r.Peers {
			m.Peers[p.ID] = p
		}
		return
	}
	for _, id := range r.PeersRemoved {
		delete(m.Peers, id)
	}
	for _, p := range r.PeersChanged {
		m.Peers[p.ID] = p
	}
	for id, online := range r.OnlineChange {
		if p := m.Peers[id]; p != nil {
			m.Peers[id] = patched(p, &tailcfg.PeerChange{Online: &online})
		}
	}
	for _, c := range r.PeersChangedPatch {
		if p := m.Peers[c.NodeID]; p != nil {
			m.Peers[c.NodeID] = patched(p, c)
		}
	}
}

// patched is a copy of a peer with a change.
func patched(p *tailcfg.Node, c *tailcfg.PeerChange) *tailcfg.Node {
	q := p.Clone()
	if c.DERPRegion != 0 {
		q.HomeDERP = c.DERPRegion
	}
	q.Cap = cmp.Or(c.Cap, q.Cap)
	if c.CapMap != nil {
		q.CapMap = c.CapMap
	}
	if c.Endpoints != nil {
		q.Endpoints = c.Endpoints
	}
	if c.Key != nil {
		q.Key = *c.Key
	}
	if c.DiscoKey != nil {
		q.DiscoKey = *c.DiscoKey
	}
	if c.Online != nil {
		q.Online = c.Online
	}
	if c.LastSeen != nil {
		q.LastSeen = c.LastSeen
	}
	if c.KeyExpiry != nil {
		q.KeyExpiry = *c.KeyExpiry
	}
	return q
}

// named gives the peer whose name begins with the label.
func (m rawMap) named(label string) (*tailcfg.Node, error) {
	for _, p := range m.Peers {
		if strings.HasPrefix(p.Name, label+".") {
			return p, nil
		}
	}
	return nil, fmt.Errorf("no peer %q among %d", label, len(m.Peers))
}

// text is the netmap as one sorted line per thing. When somebody was last seen is left out, and of oneself what one has
// told: no delta need tell of it.
func (m rawMap) text() string {
	line := func(what string, v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			return what + err.Error() + "\n"
		}
		return what + " " + string(b) + "\n"
	}
	var b strings.Builder
	self := still(m.Self)
	if self != nil {
		self.Endpoints, self.HomeDERP, self.DiscoKey, self.Hostinfo = nil, 0, key.DiscoPublic{}, tailcfg.HostinfoView{}
	}
	b.WriteString(line("self", self))
	for _, id := range slices.Sorted(maps.Keys(m.Peers)) {
		b.WriteString(line("peer", still(m.Peers[id])))
	}
	for _, name := range slices.Sorted(maps.Keys(m.Filters)) {
		b.WriteString(line("filter "+name, m.Filters[name]))
	}
	b.WriteString(line("relays", m.DERP) + line("dns", m.DNS) + line("domain", m.Domain))
	for _, id := range slices.Sorted(maps.Keys(m.Users)) {
		b.WriteString(line("user", m.Users[id]))
	}
	return b.String()
}

func still(n *tailcfg.Node) *tailcfg.Node {
	if n == nil {
		return nil
	}
	q := n.Clone()
	q.LastSeen = nil
	return q
}

// firstDifference are the first lines in which two texts differ, "" if they do not.
func firstDifference(a, b string) string {
	as, bs := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range max(len(as), len(bs)) {
		var x, y string
		if i < len(as) {
			x = as[i]
		}
		if i < len(bs) {
			y = bs[i]
		}
		if x != y {
			return "- " + x + "\n+ " + y
		}
	}
	return ""
}
