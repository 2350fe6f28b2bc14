// Package simnet is an internet in memory, for tests: networks, NATs of every
// kind, relays, and nodes that run the path machine over them. Its time is its
// own, nothing runs beside it, and one seed always gives one history.
package simnet

import (
	"container/heap"
	"math/rand/v2"
	"time"
)

// Sim is one internet with all that is on it.
type Sim struct {
	// Mute says that the coordinator is gone: nobody is told of new endpoints.
	Mute bool

	// Internet is the network everything is connected to in the end.
	Internet *Network

	now    time.Time
	events events
	count  uint64
	rnd    *rand.Rand
	relays map[int]*relay
}

// New returns an internet with nobody on it. Its packets take 10 ms.
func New(seed uint64) *Sim {
	s := &Sim{
		now:    time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC),
		rnd:    rand.New(rand.NewPCG(seed, 0)),
		relays: map[int]*relay{},
	}
	s.Internet = newNetwork(s, Link{Delay: 10 * time.Millisecond})
	return s
}

// Now returns the time that has come so far.
func (s *Sim) Now() time.Time { return s.now }

// Run lets d pass.
func (s *Sim) Run(d time.Duration) {
	end := s.now.Add(d)
	for len(s.events) > 0 && !s.events[0].at.After(end) {
		e := heap.Pop(&s.events).(event)
		s.now = e.at
		e.do()
	}
	s.now = end
}

// Until lets time pass, a millisecond at once, until ok holds, and returns how
// much it was. After limit it gives up, and returns false.
func (s *Sim) Until(limit time.Duration, ok func() bool) (time.Duration, bool) {
	for start := s.now; ; s.Run(time.Millisecond) {
		if passed := s.now.Sub(start); ok() || passed >= limit {
			return passed, ok()
		}
	}
}

// After has f done when d has passed. What is due at one time is done in the
// order it was asked for.
func (s *Sim) After(d time.Duration, f func()) {
	s.count++
	heap.Push(&s.events, event{s.now.Add(max(d, 0)), s.count, f})
}

type event struct {
	at time.Time
	n  uint64
	do func()
}

// events is a heap, by time.
type events []event

func (q events) Len() int { return len(q) }

func (q events) Less(i, j int) bool {
	if !q[i].at.Equal(q[j].at) {
		return q[i].at.Before(q[j].at)
	}
	return q[i].n < q[j].n
}

func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

// Push is for package heap.
func (q *events) Push(x any) { *q = append(*q, x.(event)) }

// Pop is for package heap.
func (q *events) Pop() any {
	last := len(*q) - 1
	e := (*q)[last]
	(*q)[last] = event{}
	*q = (*q)[:last]
	return e
}
