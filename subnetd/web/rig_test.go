package web

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/status"
)

// Who may come.
var (
	atHome  = netip.MustParseAddr("192.168.1.20")
	atHome2 = netip.MustParseAddr("192.168.1.21")
	owner   = netip.MustParseAddr("100.64.0.7")
	friend  = netip.MustParseAddr("100.64.0.8")
	world   = netip.MustParseAddr("203.0.113.9")
)

const password = "correct horse"

// memory is a Store.
type memory struct {
	mu    sync.Mutex
	files map[string][]byte
	lost  string
}

func (m *memory) Load(name string, v any) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.files[name]
	if !ok {
		return false, nil
	}
	return true, json.Unmarshal(b, v)
}

func (m *memory) Save(name string, v any) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, err := json.Marshal(v)
	if m.files == nil {
		m.files = map[string][]byte{}
	}
	m.files[name] = b
	return err
}

func (m *memory) Lost(string) string { return m.lost }

// house is what the page shows.
type house struct {
	mu      sync.Mutex
	snap    status.Snapshot
	rest    Rest
	changed chan struct{}
	asked   atomic.Int32 // Status or Rest
}

// noTraffic is the counters of no tunnel.
func noTraffic() map[string]status.TrafficPoint { return nil }

func newHouse() *house { return &house{changed: make(chan struct{})} }

func (h *house) change(f func(*status.Snapshot, *Rest)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(&h.snap, &h.rest)
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *house) status() status.Snapshot {
	h.asked.Add(1)
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.snap
}

func (h *house) watch(ctx context.Context) <-chan status.Snapshot {
	out := make(chan status.Snapshot)
	go func() {
		defer close(out)
		for {
			h.mu.Lock()
			changed, snap := h.changed, h.snap
			h.mu.Unlock()
			select {
			case out <- snap:
			case <-ctx.Done():
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

func (h *house) others() Rest {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rest
}

func (h *house) funcs() api.Funcs {
	return api.Funcs{
		Status: h.status, Watch: h.watch,
		Down:  func(context.Context) error { return nil },
		Up:    func(context.Context, api.UpRequest) error { return nil },
		Debug: func(string) (any, error) { return "inside", nil },
		Page: api.Page{
			Settings: func() status.Settings { return status.Settings{} },
			Change: func(context.Context, status.SettingsChange) (status.Trial, error) {
				return status.Trial{}, api.ErrTrial
			},
			Confirm: func(context.Context, string) error { return api.ErrNoTrial },
			Undo:    func(context.Context, string) error { return api.ErrNoTrial },
			Backup:  func(context.Context) (any, error) { return "all", nil },
			Restore: func(context.Context, []byte) error { return nil },
		},
		System: api.System{
			Update: func(_ context.Context, _ string, image io.Reader, _ int64) (status.Updated, error) {
				_, err := io.Copy(io.Discard, image)
				return status.Updated{Text: "it is tried"}, err
			},
			Restart: func(context.Context) error { return nil },
		},
		Drop: api.Drop{
			Show: func() status.Drop { return status.Drop{} },
			Send: func(_ context.Context, to, name string, size int64, file io.Reader) (status.DropSent, error) {
				n, err := io.Copy(io.Discard, file)
				return status.DropSent{To: to, Name: name, Size: n}, err
			},
		},
		Certificates: api.Certificates{List: func() (status.Certificates, error) { return status.Certificates{}, nil }},
	}
}

// here is where everybody calls the rig.
var here = netip.MustParseAddrPort("192.168.1.1:8411")

// rig is a Server behind a listener at which anybody may pretend to be anywhere.
type rig struct {
	*Server
	t       testing.TB
	house   *house
	store   *memory
	clock   atomic.Int64 // nanoseconds that have passed
	members sync.Map     // netip.Addr -> Member
	url     string
}

func newRig(t testing.TB, change ...func(*Config)) *rig {
	r := &rig{t: t, house: newHouse(), store: &memory{}}
	began := time.Now()
	r.members.Store(owner, Member{Name: "phone.mesh.internal", User: "home", Owner: true})
	r.members.Store(friend, Member{Name: "tablet.mesh.internal", User: "anna"})
	cfg := Config{
		Funcs: r.house.funcs(), Store: r.store, Rest: r.house.others, Traffic: noTraffic, Ring: NewRing(), Version: "1", Random: rand.Reader,
		Files: fstest.MapFS{}, Now: func() time.Time { return began.Add(time.Duration(r.clock.Load())) },
		Member: func(a netip.Addr) (Member, bool) {
			m, ok := r.members.Load(a)
			if !ok {
				return Member{}, false
			}
			return m.(Member), true
		},
		Trouble: func(string) {}, Log: slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&cfg)
	}
	var err error
	if r.Server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	r.Set(Settings{
		Port: 8411, Home: []netip.Prefix{netip.MustParsePrefix("192.168.1.1/24")}, Mesh: []netip.Addr{netip.MustParseAddr("100.64.0.1")},
		Names: []string{"router", "router.lan", "router.mesh.internal"},
	})
	srv := httptest.NewUnstartedServer(r.Server)
	srv.Config.ConnContext = r.connectedFrom
	srv.Config.ReadTimeout = readTimeout
	srv.Start()
	t.Cleanup(srv.Close)
	ctx, cancel := context.WithCancel(context.Background())
	var hub sync.WaitGroup
	hub.Go(func() { r.hub.run(ctx) })
	t.Cleanup(func() { cancel(); hub.Wait() })
	t.Cleanup(func() { r.sessions.end(func(*session) bool { return true }) })
	r.url = srv.URL
	return r
}

func (r *rig) pass(d time.Duration) { r.clock.Add(int64(d)) }

// reply is an answer that was read.
type reply struct {
	code   int
	header http.Header
	body   []byte
}

func (a reply) cookie() string {
	for _, c := range (&http.Response{Header: a.header}).Cookies() {
		if c.Name == cookieName {
			return c.Value
		}
	}
	return ""
}

func (a reply) page(t testing.TB) (p status.Page) {
	t.Helper()
	if err := json.Unmarshal(a.body, &p); err != nil || a.code != http.StatusOK {
		t.Fatalf("%d %s: %v", a.code, a.body, err)
	}
	return p
}

// request is one request; "" and nil mean what is usual.
type request struct {
	method, path, host, cookie string
	from                       netip.Addr
	body                       any // string, io.Reader, or what is marshalled
	header                     map[string]string
	size                       int64 // of a body that does not tell; -1: it is not told
}

func (r *rig) send(q request) (*http.Response, error) {
	var body io.Reader
	switch b := q.body.(type) {
	case nil:
	case string:
		body = strings.NewReader(b)
	case io.Reader:
		body = b
	default:
		j, err := json.Marshal(b)
		if err != nil {
			r.t.Fatal(err)
		}
		body = bytes.NewReader(j)
	}
	if q.method == "" && body != nil {
		q.method = http.MethodPost
	}
	req, err := http.NewRequest(q.method, r.url+q.path, body)
	if err != nil {
		r.t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if q.size != 0 {
		req.ContentLength = q.size
	}
	for k, v := range q.header {
		req.Header.Set(k, v)
	}
	if q.cookie != "" {
		req.AddCookie(&http.Cookie{Name: cookieName, Value: q.cookie})
	}
	req.Host = q.host
	if q.host == "" {
		req.Host = "192.168.1.1:8411"
	}
	if !q.from.IsValid() {
		q.from = atHome
	}
	return (&http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dialAs(q.from)}}).Do(req)
}

func (r *rig) do(q request) reply {
	r.t.Helper()
	res, err := r.send(q)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return reply{res.StatusCode, res.Header, b}
}

// loggedIn sets the password if there is none, and gives a cookie.
func (r *rig) loggedIn() string {
	r.t.Helper()
	path := "/v1/page/login"
	if set, _ := r.secret.state(); !set {
		path = "/v1/page/setup"
	}
	a := r.do(request{path: path, body: status.PageSecret{Password: password}})
	if a.code != http.StatusOK || a.cookie() == "" {
		r.t.Fatalf("%s: %d %s", path, a.code, a.body)
	}
	return a.cookie()
}

// Each who pretends to be somewhere calls from a loopback address of his own, by which
// the rig knows him.
var pretenders sync.Map // loopback netip.Addr -> netip.Addr

func dialAs(from netip.Addr) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, to string) (net.Conn, error) {
		b := from.As16()
		at := netip.AddrFrom4([4]byte{127, b[13], b[14], b[15]})
		if from.Is4() {
			f := from.As4()
			at = netip.AddrFrom4([4]byte{127, f[1], f[2], f[3]})
		}
		pretenders.Store(at, from)
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(at, 0))}
		return d.DialContext(ctx, network, to)
	}
}

func (r *rig) connectedFrom(ctx context.Context, c net.Conn) context.Context {
	as, _ := pretenders.Load(sourceOf(c))
	from, _ := as.(netip.Addr)
	return context.WithValue(ctx, keyEnds, ends{from, here})
}
