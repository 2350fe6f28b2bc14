package dns

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

const (
	perSecond    = 100 // questions of one source in the long run
	burst        = 300 // and at once
	limiterSlots = 256
)

// limiter gives each source its share, without a memory that grows: sources that
// fall together share one. It is safe for concurrent use.
type limiter struct {
	now  func() time.Time
	seed maphash.Seed

	mu    sync.Mutex // guards all below
	slots [limiterSlots]share
	waits int // questions that wait for resolvers
}

type share struct {
	tokens float32
	at     time.Time
	waits  int
}

func newLimiter(now func() time.Time) *limiter { return &limiter{now: now, seed: maphash.MakeSeed()} }

// allow takes a token of the source.
func (l *limiter) allow(from netip.Addr) bool {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.share(from, now)
	if s.tokens < 1 {
		return false
	}
	s.tokens--
	return true
}

// begin takes a place to wait in; end gives it back. This machine asks for
// everybody at home and has no share of its own.
func (l *limiter) begin(from netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.slot(from)
	if l.waits >= mostForwards || !from.IsLoopback() && s.waits >= mostPerSource {
		return false
	}
	l.waits++
	s.waits++
	return true
}

func (l *limiter) end(from netip.Addr) {
	l.mu.Lock()
	l.waits--
	l.slot(from).waits--
	l.mu.Unlock()
}

func (l *limiter) slot(from netip.Addr) *share {
	return &l.slots[maphash.Comparable(l.seed, sourceOf(from))%limiterSlots]
}

// share is the source's, with what it has earned since.
func (l *limiter) share(from netip.Addr, now time.Time) *share {
	s := l.slot(from)
	if s.at.IsZero() {
		s.tokens = burst
	}
	if earned := now.Sub(s.at); earned > 0 {
		s.tokens = min(s.tokens+float32(earned.Seconds())*perSecond, burst)
	}
	s.at = now
	return s
}

// sourceOf is what one household or device has: a v6 host takes as many addresses
// as it likes.
func sourceOf(a netip.Addr) netip.Prefix {
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.WithZone("").Prefix(bits)
	return p
}
