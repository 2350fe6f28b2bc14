package dns

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// How the resolvers of a question are asked: the first at once, the next when it
// fails or is slow, around again for datagrams that were lost, four times at most.
// The first good answer wins. A resolver that was silent while another answered is
// asked last for a while.

const (
	mostAttempts = 4
	patience     = 5 * time.Second  // with one question; a stub's own: resolv.conf(5)
	keepFailure  = time.Second      // that nobody answers: RFC 9520, 3.2
	shunSilent   = 30 * time.Second // a resolver
	mostShunned  = 32               // resolvers; the coordinator may name any number
)

// waits is how long attempt n has before the next begins.
func waits(n int) time.Duration { return time.Duration(700+400*n) * time.Millisecond }

// forwarder asks resolvers. It is safe for concurrent use.
type forwarder struct {
	cfg    Config
	system system
	life   context.Context // of all that it has begun
	end    context.CancelFunc
	begun  sync.WaitGroup
	// one asks one resolver once; a seam, exchange in earnest.
	one func(ctx context.Context, to netip.AddrPort, q *query) ([]byte, error)

	mu      sync.Mutex // guards all below
	set     Settings
	cache   *cache
	flights map[string]*flight
	shunned map[netip.AddrPort]time.Time // until when
}

// flight is a question that resolvers are being asked; who else asks it waits for
// the same answer. A question that comes back to us by a loop waits, too, and so
// ends.
type flight struct {
	done chan struct{} // closed when msg is there
	msg  []byte        // empty: nobody answered
}

func newForwarder(cfg Config) *forwarder {
	f := &forwarder{
		cfg: cfg, system: system{files: cfg.ResolvConf}, cache: newCache(),
		flights: map[string]*flight{}, shunned: map[netip.AddrPort]time.Time{},
	}
	f.one = f.exchange
	f.life, f.end = context.WithCancel(context.Background())
	return f
}

// close ends all that was begun, and waits for it.
func (f *forwarder) close() {
	f.mu.Lock()
	f.end()
	f.mu.Unlock()
	f.begun.Wait()
}

func (f *forwarder) setTo(set Settings) {
	f.mu.Lock()
	f.set = set
	f.mu.Unlock()
}

// resolvers is whom a verdict has asked, and never ourselves.
func (f *forwarder) resolvers(v *verdict) []netip.AddrPort {
	to := v.to
	if v.system {
		to = f.system.resolvers()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(to), func(at netip.AddrPort) bool { return slices.Contains(f.set.Listen, at) })
}

// keyOf tells questions apart that may have different answers.
func keyOf(q *query, to []netip.AddrPort) string {
	wire := q.wire()
	for i, c := range wire[:len(wire)-4] {
		wire[i] = lower(c)
	}
	var flags byte
	if q.dnssec {
		flags |= 1
	}
	if q.header.CheckingDisabled {
		flags |= 2
	}
	key := append(wire, flags)
	for _, at := range to {
		key = append(at.AppendTo(key), ' ')
	}
	return string(key)
}

// cached gives what is known of a question, and its age: nil is nothing, and empty
// that nobody answered.
func (f *forwarder) cached(q *query, to []netip.AddrPort) ([]byte, time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cache.get(keyOf(q, to), f.cfg.Now())
}

// ask gives an answer without EDNS and its age; empty if nobody gave one, or none
// before ctx ended.
func (f *forwarder) ask(ctx context.Context, q *query, to []netip.AddrPort) ([]byte, time.Duration) {
	key := keyOf(q, to)
	f.mu.Lock()
	if msg, age := f.cache.get(key, f.cfg.Now()); msg != nil || f.life.Err() != nil {
		f.mu.Unlock()
		return msg, age
	}
	fl := f.flights[key]
	if fl == nil {
		fl = &flight{done: make(chan struct{})}
		f.flights[key] = fl
		q := *q
		f.begun.Go(func() { f.fly(key, fl, &q, to) })
	}
	f.mu.Unlock()
	select {
	case <-fl.done:
		return fl.msg, 0
	case <-ctx.Done():
		return nil, 0
	}
}

// fly asks, keeps what came and tells those who wait.
func (f *forwarder) fly(key string, fl *flight, q *query, to []netip.AddrPort) {
	r := race{f: f, q: q, to: f.order(to), results: make(chan result, mostAttempts)}
	msg := r.run()
	keep := keepFailure
	if len(msg) > 0 && !failed(msg) {
		keep = keepFor(msg, len(q.wire()))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.flights, key)
	fl.msg = append([]byte{}, msg...)
	f.cache.put(key, fl.msg, f.cfg.Now(), keep)
	close(fl.done)
}

// failed reports whether another resolver might know better: all but "here it is"
// and "there is no such name".
func failed(msg []byte) bool { return msg[3]&0xf != 0 && msg[3]&0xf != 3 }

// order puts those that were silent last.
func (f *forwarder) order(to []netip.AddrPort) []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.cfg.Now()
	var first, last []netip.AddrPort
	for _, at := range to {
		if now.Before(f.shunned[at]) {
			last = append(last, at)
		} else {
			first = append(first, at)
		}
	}
	return append(first, last...)
}

// shun says that at was silent while another answered, or that it does answer.
func (f *forwarder) shun(at netip.AddrPort, silent bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case !silent:
		delete(f.shunned, at)
	case len(f.shunned) == mostShunned:
		clear(f.shunned) // most of it is old
		fallthrough
	default:
		f.shunned[at] = f.cfg.Now().Add(shunSilent)
	}
}

// race is one question among its resolvers.
type race struct {
	f       *forwarder
	q       *query
	to      []netip.AddrPort
	results chan result

	sent    []netip.AddrPort
	failed  []netip.AddrPort
	pending int
	worse   []byte // an answer, but another resolver might know better
}

type result struct {
	from netip.AddrPort
	msg  []byte
	err  error
}

// run gives the answer, nil if there is none.
func (r *race) run() []byte {
	ctx, cancel := context.WithTimeout(r.f.life, patience)
	defer cancel()
	r.next(ctx)
	timer := time.NewTimer(waits(0))
	defer timer.Stop()
	for r.pending > 0 {
		select {
		case res := <-r.results:
			if r.judge(res) {
				return res.msg
			}
			r.next(ctx)
		case <-timer.C:
			r.next(ctx)
		case <-ctx.Done():
			return r.worse
		}
		timer.Reset(waits(len(r.sent) - 1))
	}
	return r.worse
}

// judge takes a result, and reports whether it ends the race.
func (r *race) judge(res result) bool {
	r.pending--
	if res.err == nil && !failed(res.msg) {
		for _, at := range r.sent[:len(r.sent)-1] { // the last may be on its way
			if at != res.from && !slices.Contains(r.failed, at) {
				r.f.shun(at, true)
			}
		}
		r.f.shun(res.from, false)
		return true
	}
	if res.err == nil && r.worse == nil {
		r.worse = res.msg
	}
	if !slices.Contains(r.failed, res.from) {
		r.failed = append(r.failed, res.from)
	}
	return false
}

// next asks the next resolver that has not failed, if there is one.
func (r *race) next(ctx context.Context) {
	for i := range r.to {
		at := r.to[(len(r.sent)+i)%len(r.to)]
		if len(r.sent) == mostAttempts || slices.Contains(r.failed, at) {
			continue
		}
		r.sent = append(r.sent, at)
		r.pending++
		r.f.begun.Go(func() {
			msg, err := r.f.one(ctx, at, r.q)
			r.results <- result{at, msg, err}
		})
		return
	}
}
