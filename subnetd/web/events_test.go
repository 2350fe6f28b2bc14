package web

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"sort"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"subnetd/subnetd/status"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// view is what a page makes of events: the truth, if all goes well.
type view struct {
	boot    string
	house   status.House
	peers   map[string]status.Peer
	devices map[string]status.Device
	nodes   map[int64]status.HomeNode
	traffic status.Traffic
}

// apply is what web-api says that a page does.
func (v *view) apply(t testing.TB, data []byte) status.Event {
	t.Helper()
	var e status.Event
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&e); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
	if e.Whole {
		*v = view{boot: e.Boot, peers: map[string]status.Peer{}, devices: map[string]status.Device{}, nodes: map[int64]status.HomeNode{}}
	}
	if e.House != nil {
		v.house = *e.House
	}
	if e.Traffic != nil {
		v.traffic = *e.Traffic
	}
	for _, p := range e.Peers {
		v.peers[p.Name] = p
	}
	for _, k := range e.PeersGone {
		delete(v.peers, k)
	}
	for _, d := range e.Devices {
		v.devices[d.MAC] = d
	}
	for _, k := range e.DevicesGone {
		delete(v.devices, k)
	}
	for _, n := range e.Nodes {
		v.nodes[n.ID] = n
	}
	for _, k := range e.NodesGone {
		delete(v.nodes, k)
	}
	return e
}

// wantTruth compares what a page shows with what is.
func (v *view) wantTruth(t testing.TB, snap status.Snapshot, rest Rest) {
	t.Helper()
	var peers []status.Peer
	for _, p := range v.peers {
		peers = append(peers, p)
	}
	sort.Slice(peers, func(i, j int) bool { return peers[i].Name < peers[j].Name })
	var devices []status.Device
	for _, d := range v.devices {
		devices = append(devices, d)
	}
	sort.Slice(devices, func(i, j int) bool { return devices[i].MAC < devices[j].MAC })
	var nodes []status.HomeNode
	for _, n := range v.nodes {
		nodes = append(nodes, n)
	}
	sort.Slice(nodes, func(i, j int) bool { return nodes[i].ID < nodes[j].ID })
	want := rest.House
	want.Status = snap
	want.Status.Peers = []status.Peer{}
	eq := []cmp.Option{cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{})}
	if d := cmp.Diff(want, v.house, eq...) + cmp.Diff(snap.Peers, peers, eq...) + cmp.Diff(rest.Devices, devices, eq...) + cmp.Diff(rest.Nodes, nodes, eq...); d != "" {
		t.Fatalf("the page shows no truth: %s", d)
	}
}

func somePeers(n int) (out []status.Peer) {
	for i := range n {
		out = append(out, status.Peer{
			Name: fmt.Sprintf("node-%03d.mesh.internal", i), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)}), netip.MustParseAddr("fd7a:115c:a1e0::7")},
			Online: true, OS: "linux", Path: "direct", Endpoint: "203.0.113.77:41641", RTT: 12.5, Rx: uint64(i) * 1e6, Tx: 3e6, Handshake: time.Unix(1e9, 0).UTC(),
		})
	}
	return out
}

func someDevices(n int) (out []status.Device) {
	for i := range n {
		out = append(out, status.Device{
			MAC: fmt.Sprintf("02:00:00:00:%02x:%02x", i>>8, i&255), Name: fmt.Sprintf("thing-%03d", i), NameFrom: "lease", Maker: "Some Maker of Things", Kind: "printer",
			Services: []string{"_ipp._tcp", "_http._tcp"}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)})}, Interface: "br-lan", Online: true,
			FirstSeen: time.Unix(1e9, 0).UTC(), LastSeen: time.Unix(1e9, 0).UTC(), Exit: "direct",
		})
	}
	return out
}

func someNodes(n int) (out []status.HomeNode) {
	for i := range n {
		out = append(out, status.HomeNode{ID: int64(i + 1), Name: fmt.Sprintf("node-%03d.mesh.internal", i), User: "home", OS: "linux", Client: "1.102.5", Online: true,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)})}, Created: time.Unix(1e9, 0).UTC()})
	}
	return out
}

// newTestHub gives a hub without a listener.
func newTestHub(h *house) *hub {
	var tr traffic
	hub := newHub("boot-1", Config{Funcs: h.funcs(), Rest: h.others, Now: time.Now}, &tr)
	return &hub
}

// TestTruth walks the house at random; whoever looks, all the time or now and then,
// sees what is.
func TestTruth(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	h := newHouse()
	hub := newTestHub(h)
	readers := make([]struct {
		view
		since uint64
	}, 3)
	ticket, leave := hub.watch()
	defer leave()
	for step := range 200 {
		h.change(func(s *status.Snapshot, r *Rest) {
			s.Peers, r.Devices, r.Nodes = changed(rng, s.Peers, somePeers(8)), changed(rng, r.Devices, someDevices(8)), changed(rng, r.Nodes, someNodes(8))
			for i := range s.Peers {
				if rng.IntN(4) == 0 {
					s.Peers[i].Rx += uint64(rng.IntN(3))
				}
			}
			if rng.IntN(5) == 0 {
				s.Problems = []status.Problem{{Code: "x", Text: fmt.Sprint(rng.IntN(3))}}
			}
			if rng.IntN(5) == 0 {
				r.House.Pending = make([]status.HomePending, rng.IntN(2))
			}
		})
		hub.take(h.status())
		for i := range readers {
			r := &readers[i]
			if i > 0 && rng.IntN(1+20*i*i) > 0 { // the slower ones; tombstones are gone for the last
				continue
			}
			if event, data, seq, _ := hub.message(ticket, r.since); data != nil {
				if e := r.apply(t, data); (event == "whole") != e.Whole || e.Seq != seq {
					t.Fatal(event, e.Seq, seq)
				}
				r.since = seq
			}
			r.wantTruth(t, h.status(), h.others())
		}
		if step%97 == 0 { // nobody looks for a while
			hub.mu.Lock()
			hub.forget()
			hub.mu.Unlock()
			hub.take(h.status())
			for i := range readers {
				readers[i].since = 0
			}
		}
	}
}

// changed drops some of the things, and takes in some of all; both sorted.
func changed[T any](rng *rand.Rand, have, all []T) (out []T) {
	if rng.IntN(3) > 0 {
		return append([]T(nil), have...)
	}
	for _, x := range all {
		if rng.IntN(2) == 0 {
			out = append(out, x)
		}
	}
	return out
}

// TestGoneBounded: things that come and go for ever grow nothing.
func TestGoneBounded(t *testing.T) {
	h := newHouse()
	hub := newTestHub(h)
	ticket, leave := hub.watch()
	defer leave()
	var slow view
	_ = hub.take(h.status())
	_, data, since, _ := hub.message(ticket, 0)
	slow.apply(t, data)
	for i := range mostGone + 100 {
		h.change(func(_ *status.Snapshot, r *Rest) { r.Devices = []status.Device{{MAC: fmt.Sprint(i)}} })
		hub.take(h.status())
	}
	if n := len(hub.lists[1].went); n > mostGone {
		t.Errorf("%d are remembered", n)
	}
	event, data, _, _ := hub.message(ticket, since)
	slow.apply(t, data)
	slow.wantTruth(t, h.status(), h.others())
	if event != "whole" {
		t.Error("who missed what went is told a part of it:", event)
	}
}

// TestPace: however often the house changes, a reader is told twice a second, a slow
// one the newest, and nobody is asked while nobody looks.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := bareServer(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go r.Run(ctx)
		time.Sleep(time.Hour)
		if n := r.house.asked.Load(); n != 0 {
			t.Errorf("asked %d times while nobody looks", n)
		}
		churn, stop := context.WithCancel(ctx)
		go func() {
			for i := 0; churn.Err() == nil; i++ {
				r.house.change(func(s *status.Snapshot, _ *Rest) { s.Generation = uint64(i) })
				time.Sleep(time.Millisecond)
			}
		}()
		count := func(each, long time.Duration) (n int, age uint64) {
			ctx, cancel := context.WithTimeout(ctx, long)
			defer cancel()
			var last view
			r.events(ctx, func(event string, data []byte) error {
				if event != "beat" {
					n++
					last.apply(t, data)
					age = max(age, r.house.status().Generation-last.house.Status.Generation)
				}
				time.Sleep(each) // a slow line
				return nil
			}, func() bool { return true })
			return n, age
		}
		if n, _ := count(0, 10*time.Second); n < 15 || n > 21 {
			t.Errorf("%d messages in 10 s", n)
		}
		if n, age := count(7*time.Second, 30*time.Second); n > 5 || age > 1100 { // a change each millisecond
			t.Errorf("a slow reader: %d messages, the oldest of %d ms before", n, age)
		}
		stop()
		beats := 0
		quiet, cancel2 := context.WithTimeout(ctx, time.Minute)
		defer cancel2()
		r.events(quiet, func(event string, data []byte) error {
			if event == "beat" {
				beats++
				(&view{peers: map[string]status.Peer{}}).apply(t, data)
			}
			return nil
		}, func() bool { return true })
		if beats < 3 || beats > 4 {
			t.Errorf("%d beats in a quiet minute", beats)
		}
		time.Sleep(5 * time.Second)
		before := r.house.asked.Load()
		time.Sleep(time.Hour)
		if n := r.house.asked.Load() - before; n != 0 {
			t.Errorf("asked %d times after all left", n)
		}
	})
}

// bareServer is a Server without a listener, for a bubble.
func bareServer(t *testing.T) *rig {
	r := &rig{t: t, house: newHouse(), store: &memory{}}
	var err error
	r.Server, err = New(Config{
		Funcs: r.house.funcs(), Store: r.store, Rest: r.house.others, Traffic: noTraffic, Ring: NewRing(), Random: bytes.NewReader(make([]byte, 1024)),
		Now: time.Now, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// stream reads events.
type stream struct {
	res *http.Response
	in  *bufio.Scanner
}

func (r *rig) open(path, cookie string, from netip.Addr) (*stream, int) {
	r.t.Helper()
	res, err := r.send(request{path: path, cookie: cookie, from: from})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { res.Body.Close() })
	in := bufio.NewScanner(res.Body)
	in.Buffer(nil, 4<<20)
	return &stream{res, in}, res.StatusCode
}

// next gives one event; "" at the end.
func (s *stream) next() (event string, data []byte) {
	for s.in.Scan() {
		line := s.in.Text()
		if line == "" {
			return event, data
		}
		if e, ok := strings.CutPrefix(line, "event: "); ok {
			event = e
		} else if d, ok := strings.CutPrefix(line, "data: "); ok {
			data = []byte(d)
		}
	}
	return "", nil
}

func TestEvents(t *testing.T) {
	r := newRig(t)
	cookie := r.loggedIn()
	r.house.change(func(s *status.Snapshot, rest *Rest) {
		s.Peers, rest.Devices = somePeers(2), someDevices(1)
		s.Problems = []status.Problem{{Code: "a\nb", Text: "two\nlines"}}
	})
	if _, code := r.open("/v1/events", "", atHome); code != 401 {
		t.Fatal(code)
	}
	for range 3 { // what changed before a stream began is in its first event
		r.house.change(func(s *status.Snapshot, _ *Rest) { s.Generation++ })
		r.Look()
		s, _ := r.open("/v1/events", cookie, atHome2)
		var v view
		_, data := s.next()
		v.apply(t, data)
		v.wantTruth(t, r.house.status(), r.house.others())
		s.res.Body.Close()
	}
	s, code := r.open("/v1/events", cookie, atHome)
	if code != 200 || s.res.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatal(code, s.res.Header)
	}
	var v view
	if event, data := s.next(); event != "whole" || v.apply(t, data).Boot != r.boot {
		t.Fatal(event)
	}
	v.wantTruth(t, r.house.status(), r.house.others())
	r.house.change(func(s *status.Snapshot, _ *Rest) { s.Peers = somePeers(1) })
	event, data := s.next()
	if e := v.apply(t, data); event != "change" || len(e.Peers) != 0 || len(e.PeersGone) != 1 || e.House != nil {
		t.Fatalf("%s %s", event, data)
	}
	v.wantTruth(t, r.house.status(), r.house.others())

	for range streamsEach - 1 {
		if _, code := r.open("/v1/events", cookie, atHome); code != 200 {
			t.Fatal(code)
		}
	}
	if _, code := r.open("/v1/events", cookie, atHome); code != 503 {
		t.Fatalf("one address has more than %d streams: %d", streamsEach, code)
	}
	for i := range mostStreams - streamsEach {
		if _, code := r.open("/v1/events", cookie, netip.AddrFrom4([4]byte{192, 168, 1, byte(100 + i)})); code != 200 {
			t.Fatal(i, code)
		}
	}
	if _, code := r.open("/v1/events", cookie, atHome2); code != 503 {
		t.Fatalf("there are more than %d streams: %d", mostStreams, code)
	}

	r.do(request{path: "/v1/page/logout", cookie: cookie, body: "{}"})
	if event, _ := s.next(); event != "" {
		t.Fatal("a stream outlives its session:", event)
	}
}

// TestEventsOfMember: who is thrown out of the mesh is told nothing more.
func TestEventsOfMember(t *testing.T) {
	r := newRig(t)
	cookie := r.do(request{path: "/v1/page/login", from: friend, body: "{}"}).cookie()
	s, code := r.open("/v1/events", cookie, friend)
	if event, _ := s.next(); code != 200 || event != "whole" {
		t.Fatal(code, event)
	}
	r.members.Delete(friend)
	r.house.change(func(s *status.Snapshot, _ *Rest) { s.Name = "secret" })
	if event, data := s.next(); event != "" {
		t.Fatalf("%s %s", event, data)
	}
}

// TestManyThings prints what a page of a big house costs.
func TestManyThings(t *testing.T) {
	const n = 500
	r := newRig(t)
	cookie := r.loggedIn()
	r.house.change(func(s *status.Snapshot, rest *Rest) {
		s.Peers, rest.Devices, rest.Nodes = somePeers(n), someDevices(n), someNodes(n)
	})
	s, _ := r.open("/v1/events", cookie, atHome)
	began := time.Now()
	_, whole := s.next()
	first := time.Since(began)
	r.house.change(func(s *status.Snapshot, _ *Rest) { s.Peers = somePeers(n); s.Peers[7].RTT = 99 })
	_, one := s.next()
	r.house.change(func(_ *status.Snapshot, rest *Rest) { rest.Devices = someDevices(n); rest.Devices[7].Online = false })
	_, two := s.next()
	t.Logf("%d devices, %d peers, %d nodes: everything %d bytes within %v; one peer's change %d bytes, one device's %d",
		n, n, n, len(whole), first.Round(time.Millisecond), len(one), len(two))
	if len(whole) > 1000*3*n || len(one) > 2000 || len(two) > 2000 {
		t.Error("too much is told")
	}
	// What keeps all readers together: one look of the hub.
	hub := newTestHub(r.house)
	_, leave := hub.watch()
	defer leave()
	began = time.Now()
	hub.take(r.house.status())
	all := time.Since(began)
	began = time.Now()
	const looks = 5
	for range looks {
		hub.take(r.house.status())
	}
	t.Logf("the first look at all of it %v, one at no news %v", all.Round(time.Millisecond), (time.Since(began) / looks).Round(10*time.Microsecond))
}

func TestLogs(t *testing.T) {
	r := newRig(t)
	cookie := r.loggedIn()
	log := slog.New(r.cfg.Ring.Tee(slog.NewTextHandler(io.Discard, nil)))
	log.Debug("not wanted")
	for i := range 2 * mostLines {
		log.Info("line", "n", i)
	}
	if l := r.cfg.Ring.Lines(); len(l) != mostLines || l[0].Text != fmt.Sprint("line n=", mostLines) || l[0].Level != "INFO" {
		t.Fatal(len(l), l[0])
	}
	s, code := r.open("/v1/logs", cookie, atHome)
	if code != 200 {
		t.Fatal(code)
	}
	var l status.LogLine
	for range mostLines {
		if event, data := s.next(); event != "log" || json.Unmarshal(data, &l) != nil {
			t.Fatal(event)
		}
	}
	log.With("part", "engine", "k", "v").WithGroup("g").With("a", 1).Warn("now", "b", strings.Repeat("ä", mostLine))
	_, data := s.next()
	if err := json.Unmarshal(data, &l); err != nil || l.Part != "engine" || l.Level != "WARN" || !strings.HasPrefix(l.Text, "now k=v g.a=1 g.b=ä") || len(l.Text) > mostLine+3 {
		t.Fatalf("%+v, %v", l, err)
	}
}

func TestTraffic(t *testing.T) {
	var tr traffic
	now := time.Unix(1e9, 0)
	type counters = map[string]status.TrafficPoint
	look := func(c counters) {
		now = now.Add(time.Minute)
		tr.add(now, c)
	}
	look(counters{"a": {Rx: 1000, Tx: 2000}})                 // of any time before
	look(counters{"a": {Rx: 1500, Tx: 2001}})                 // 500, 1
	look(counters{"a": {Rx: 1500, Tx: 2001}, "b": {Rx: 1e9}}) // b is new
	look(counters{"a": {Rx: 7, Tx: 9}, "b": {Rx: 1e9 + 3}})   // a was made anew
	look(counters{})
	want := []status.TrafficPoint{{Rx: 500, Tx: 1}, {}, {Rx: 10, Tx: 9}, {}}
	if d := cmp.Diff(status.Traffic{Seconds: 60, Until: now, Points: want}, tr.now()); d != "" {
		t.Error(d)
	}
	for range 100 {
		look(counters{})
	}
	if n := len(tr.now().Points); n != mostPoints {
		t.Errorf("%d points", n)
	}
}
