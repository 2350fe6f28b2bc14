package web

import (
	"net/netip"
	"sync"
	"time"
)

// Who tells wrong passwords waits, longer each time; and all together have so many in
// a while, since one machine at home may have many addresses.
const (
	freeTries  = 5 // of one address
	firstWait  = time.Second
	longWait   = 5 * time.Minute
	forgetting = 30 * time.Minute // after the last wrong one
	mostTried  = 256              // addresses that are remembered

	allTries  = 30 // wrong ones of all, at once
	allRefill = 2 * time.Second
)

// tries remembers wrong passwords.
type tries struct {
	hashing chan struct{} // one slot: one guess is looked at at a time

	mu      sync.Mutex // guards all below
	from    map[netip.Addr]tried
	spent   int       // of allTries
	refill  time.Time // when one of spent comes back
	waiting int       // who wait for hashing
}

type tried struct {
	wrong       int
	last, until time.Time
}

// household is what counts as one: an IPv6 host has as many addresses as it likes.
func household(a netip.Addr) netip.Addr {
	if a.Is4() {
		return a
	}
	p, _ := a.WithZone("").Prefix(64)
	return p.Addr()
}

// wait is how long a password from there is not looked at.
func (t *tries) wait(now time.Time, from netip.Addr) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.recover(now)
	left := t.from[household(from)].until.Sub(now)
	if t.spent >= allTries {
		left = max(left, t.refill.Sub(now))
	}
	return max(left, 0)
}

// recover gives back what was spent; t.mu is held.
func (t *tries) recover(now time.Time) {
	for t.spent > 0 && !now.Before(t.refill) {
		t.spent--
		t.refill = t.refill.Add(allRefill)
	}
}

// wrong counts a wrong password, and says how many of that address it has been.
func (t *tries) wrong(now time.Time, from netip.Addr) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.spent == 0 {
		t.refill = now.Add(allRefill)
	}
	t.spent++
	from = household(from)
	x := t.from[from]
	if x.wrong == 0 {
		t.makeRoom(now)
	}
	x.wrong, x.last = x.wrong+1, now
	if over := x.wrong - freeTries; over >= 0 {
		x.until = now.Add(min(firstWait<<min(over, 16), longWait))
	}
	if t.from == nil {
		t.from = map[netip.Addr]tried{}
	}
	t.from[from] = x
	return x.wrong
}

// makeRoom forgets who was long quiet and, if there are still too many, the one who
// was longest; t.mu is held.
func (t *tries) makeRoom(now time.Time) {
	var oldest netip.Addr
	for a, x := range t.from {
		if now.Sub(x.last) > forgetting {
			delete(t.from, a)
		} else if !oldest.IsValid() || x.last.Before(t.from[oldest].last) {
			oldest = a
		}
	}
	if len(t.from) >= mostTried {
		delete(t.from, oldest)
	}
}

// right forgets the wrong ones of an address.
func (t *tries) right(from netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.from, household(from))
}

// queue is how many may wait until theirs is looked at.
const queue = 4

// enter reports whether somebody may wait for hashing; leave is after that.
func (t *tries) enter() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waiting >= queue {
		return false
	}
	t.waiting++
	return true
}

func (t *tries) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting--
}
