// Package quota bounds how much one address may have of what there is.
package quota

import (
	"net/netip"
	"sync"
)

// Conns counts connections: all of them, and those from each address. The zero
// Conns has none yet. It remembers only addresses that have some.
type Conns struct {
	mu   sync.Mutex
	all  int
	from map[netip.Addr]int
}

// Take counts one more, unless there are most already, or each from that address.
func (q *Conns) Take(from netip.Addr, most, each int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.all >= most || q.from[from] >= each {
		return false
	}
	if q.from == nil {
		q.from = map[netip.Addr]int{}
	}
	q.all++
	q.from[from]++
	return true
}

// Return gives one back that Take counted.
func (q *Conns) Return(from netip.Addr) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.all--
	if q.from[from]--; q.from[from] == 0 {
		delete(q.from, from)
	}
}
