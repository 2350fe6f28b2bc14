package path

import (
	"container/heap"
	"time"
)

// queue orders the peers that want a Tick by when, then by key. Peers that
// want none are not in it.
type queue []*peer

func (q queue) Len() int { return len(q) }

func (q queue) Less(i, j int) bool {
	if !q[i].wake.Equal(q[j].wake) {
		return q[i].wake.Before(q[j].wake)
	}
	return q[i].key.Compare(q[j].key) < 0
}

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push is for package heap.
func (q *queue) Push(x any) {
	p := x.(*peer)
	p.index = len(*q)
	*q = append(*q, p)
}

// Pop is for package heap.
func (q *queue) Pop() any {
	last := len(*q) - 1
	p := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	p.index = -1
	return p
}

// set puts p at time t; zero takes it out.
func (q *queue) set(p *peer, t time.Time) {
	in := p.index >= 0
	switch {
	case t.IsZero() && in:
		heap.Remove(q, p.index)
	case t.IsZero():
	case !in:
		p.wake = t
		heap.Push(q, p)
	case !p.wake.Equal(t):
		p.wake = t
		heap.Fix(q, p.index)
	}
}

// due returns the first peer whose time has come, or nil.
func (q queue) due(now time.Time) *peer {
	if len(q) == 0 || q[0].wake.After(now) {
		return nil
	}
	return q[0]
}
