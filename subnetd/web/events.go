package web

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"reflect"
	"strconv"
	"sync"
	"time"

	"subnetd/subnetd/status"
)

// Events: while somebody looks, the hub writes each thing that the page shows as JSON,
// once for all who look, and notes with which number it last changed. Whoever looks
// asks for what changed since the number that he has: who is slow misses steps, and
// never has more than one message under way.

const (
	mostStreams = 16
	streamsEach = 4                      // of them from one address
	leastGap    = 500 * time.Millisecond // between messages, and between looks
	costShare   = 10                     // looking may take the tenth of the time
	counterGap  = 3 * time.Second        // counters change without a word
	beatAfter   = 15 * time.Second       // of silence
	mostGone    = 1024                   // things that went are remembered, of each list
)

// hub is what all who look have in common.
type hub struct {
	boot    string
	cfg     Config
	traffic *traffic
	look    chan struct{} // one slot: what the page shows may have changed, or who looks
	join    chan struct{} // one slot: somebody looks

	// What was when run last looked; its own.
	snap status.Snapshot
	rest Rest

	mu       sync.Mutex // guards all below
	watchers int
	joined   uint64 // how many ever began to look
	served   uint64 // of them, whose beginning was before the last look
	seq      uint64 // of the last change
	house    piece
	flow     piece
	lists    [3]list
	changed  chan struct{} // closed and replaced when seq grows
}

// piece is a part of an Event, and with which number it changed.
type piece struct {
	json []byte
	seq  uint64
}

// list is things by their keys.
type list struct {
	name, gone string // in an Event
	items      map[string]piece
	went       []piece // keys, the oldest first
	forgot     uint64  // the number up to which went is not complete
}

func newHub(boot string, cfg Config, t *traffic) hub {
	return hub{
		boot: boot, cfg: cfg, traffic: t, look: make(chan struct{}, 1), join: make(chan struct{}, 1), changed: make(chan struct{}),
		lists: [3]list{{name: "peers", gone: "peersGone"}, {name: "devices", gone: "devicesGone"}, {name: "nodes", gone: "nodesGone"}},
	}
}

// run looks while somebody else does, until ctx ends.
func (h *hub) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.join:
			h.follow(ctx)
		}
	}
}

func (h *hub) follow(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	snaps := h.cfg.Funcs.Watch(ctx)
	tick := time.NewTicker(counterGap)
	defer tick.Stop()
	for {
		began := time.Now()
		if !h.take(h.cfg.Funcs.Status()) { // what snaps hold may be of a while ago
			return
		}
		pause := time.NewTimer(max(leastGap, costShare*time.Since(began)))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return
		}
		select {
		case <-ctx.Done():
			return
		case _, ok := <-snaps:
			if !ok {
				return
			}
		case <-tick.C:
		case <-h.look:
		}
	}
}

// take notes what is, if anybody still looks.
func (h *hub) take(snap status.Snapshot) bool {
	h.mu.Lock()
	if h.watchers == 0 {
		h.forget()
	}
	some, joined := h.watchers > 0, h.joined
	h.mu.Unlock()
	if !some {
		return false
	}
	rest := h.cfg.Rest()
	peers := entries(snap.Peers, h.snap.Peers, h.lists[0].items, func(p status.Peer) string { return text(p.Name) })
	devices := entries(rest.Devices, h.rest.Devices, h.lists[1].items, deviceKey)
	nodes := entries(rest.Nodes, h.rest.Nodes, h.lists[2].items, func(n status.HomeNode) string { return strconv.FormatInt(n.ID, 10) })
	h.snap.Peers, h.rest.Devices, h.rest.Nodes = snap.Peers, rest.Devices, rest.Nodes
	rest.House.Status = snap
	rest.House.Status.Peers = []status.Peer{}
	house, flow := marshal(rest.House), marshal(h.traffic.now())
	h.mu.Lock()
	defer h.mu.Unlock()
	next, news := h.seq+1, false
	news = h.house.put(house, next) || news
	news = h.flow.put(flow, next) || news
	for i, all := range [...]map[string][]byte{peers, devices, nodes} {
		news = h.lists[i].put(all, next) || news
	}
	if news {
		h.seq = next
	}
	if !news && h.served == joined {
		return true
	}
	h.served = joined
	close(h.changed)
	h.changed = make(chan struct{})
	return true
}

// forget frees what nobody looks at; h.mu is held. Numbers go on.
func (h *hub) forget() {
	h.house, h.flow = piece{}, piece{}
	h.snap, h.rest = status.Snapshot{}, Rest{}
	for i := range h.lists {
		l := &h.lists[i]
		l.items, l.went, l.forgot = nil, nil, h.seq
	}
}

func (p *piece) put(is []byte, seq uint64) bool {
	if p.json != nil && bytes.Equal(p.json, is) {
		return false
	}
	p.json, p.seq = is, seq
	return true
}

func (l *list) put(all map[string][]byte, seq uint64) (news bool) {
	if l.items == nil {
		l.items = map[string]piece{}
	}
	for k, is := range all {
		p := l.items[k]
		if p.put(is, seq) {
			l.items[k], news = p, true
		}
	}
	for k := range l.items {
		if all[k] == nil {
			delete(l.items, k)
			l.went, news = append(l.went, piece{[]byte(k), seq}), true
		}
	}
	if over := len(l.went) - mostGone; over > 0 {
		l.forgot = l.went[over-1].seq
		l.went = append([]piece(nil), l.went[over:]...)
	}
	return news
}

// entries is things as JSON by their keys, which are JSON, too. What stands where it
// stood before and is as it was needs not be written again, which is most of the work.
func entries[T any](things, before []T, have map[string]piece, key func(T) string) map[string][]byte {
	out := make(map[string][]byte, len(things))
	for i, t := range things {
		k := key(t)
		if was := have[k].json; was != nil && i < len(before) && reflect.DeepEqual(t, before[i]) {
			out[k] = was
			continue
		}
		out[k] = marshal(t)
	}
	return out
}

func deviceKey(d status.Device) string {
	if d.MAC == "" && len(d.Addresses) > 0 {
		return text(d.Addresses[0].String())
	}
	return text(d.MAC)
}

func text(s string) string { return string(marshal(s)) }

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		return []byte("null") // our own types marshal
	}
	return b
}

// message is what changed since a number, 0: everything; nil: nothing. changed is closed
// when there may be more. Whoever has that ticket of watch is told nothing of a time
// before.
func (h *hub) message(ticket, since uint64) (event string, data []byte, seq uint64, changed <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.served < ticket || since == h.seq {
		return "", nil, since, h.changed
	}
	whole := since == 0
	for i := range h.lists {
		whole = whole || since < h.lists[i].forgot
	}
	event = "change"
	b := h.head(nil)
	if whole {
		since, event = 0, "whole"
		b = append(b, `,"whole":true`...)
	}
	if h.house.seq > since {
		b = append(append(b, `,"house":`...), h.house.json...)
	}
	for i := range h.lists {
		b = h.lists[i].since(b, since, whole)
	}
	if h.flow.seq > since {
		b = append(append(b, `,"traffic":`...), h.flow.json...)
	}
	return event, append(b, '}'), h.seq, h.changed
}

// head is the beginning of every Event, without its closing brace.
func (h *hub) head(b []byte) []byte {
	b = append(append(b, `{"boot":`...), text(h.boot)...)
	b = strconv.AppendUint(append(b, `,"seq":`...), h.seq, 10)
	return append(append(b, `,"time":`...), marshal(h.cfg.Now())...)
}

func (h *hub) beat() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append(h.head(nil), '}')
}

func (l *list) since(b []byte, since uint64, whole bool) []byte {
	var some bool
	begin := func(name string) {
		if some {
			b = append(b, ',')
			return
		}
		some = true
		b = append(append(append(b, `,"`...), name...), `":[`...)
	}
	end := func() {
		if some {
			b = append(b, ']')
		}
		some = false
	}
	for _, p := range l.items {
		if p.seq > since {
			begin(l.name)
			b = append(b, p.json...)
		}
	}
	end()
	for _, p := range l.went {
		if _, back := l.items[string(p.json)]; p.seq > since && !whole && !back {
			begin(l.gone)
			b = append(b, p.json...)
		}
	}
	end()
	return b
}

// watch counts somebody who looks; leave is for when he does no more.
func (h *hub) watch() (ticket uint64, leave func()) {
	h.mu.Lock()
	h.watchers++
	h.joined++
	ticket = h.joined
	h.mu.Unlock()
	poke(h.join)
	poke(h.look)
	return ticket, func() {
		h.mu.Lock()
		h.watchers--
		h.mu.Unlock()
		poke(h.look)
	}
}

// events sends what the page shows until its reader leaves or may not look any more.
func (s *Server) events(ctx context.Context, send sender, allowed func() bool) {
	ticket, leave := s.hub.watch()
	defer leave()
	beat := time.NewTimer(beatAfter)
	defer beat.Stop()
	since := uint64(0)
	for {
		event, data, seq, changed := s.hub.message(ticket, since)
		if data != nil {
			if !allowed() || send(event, data) != nil || !rest(ctx, leastGap) {
				return
			}
			since = seq
			beat.Reset(beatAfter)
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-beat.C:
			if !allowed() || send("beat", s.hub.beat()) != nil {
				return
			}
			beat.Reset(beatAfter)
		}
	}
}

// rest waits, and reports whether ctx is alive then.
func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// sender sends one Server-Sent Event (HTML, 9.2). The data has no line end.
type sender func(event string, data []byte) error

// stream answers with events, unless there are too many streams.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, v visit, allowed func() bool, do func(context.Context, sender, func() bool)) {
	if !s.streams.Take(v.from, mostStreams, streamsEach) {
		refuse(w, http.StatusServiceUnavailable, "too many pages are open: close one")
		return
	}
	defer s.streams.Return(v.from)
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{}) // there is nothing more to read
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	_ = rc.Flush() // the browser knows that it is heard
	var b []byte
	do(r.Context(), func(event string, data []byte) error {
		b = append(append(append(b[:0], "event: "...), event...), "\ndata: "...)
		b = append(append(b, data...), "\n\n"...)
		_ = rc.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, err := w.Write(b); err != nil {
			return err
		}
		return rc.Flush()
	}, allowed)
}
