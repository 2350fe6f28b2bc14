package relay

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"tailscale.com/types/key"
)

// naive is what a lane does, told slowly.
type naive struct {
	waiting []*packet
	max     int
	limit   int
}

func (n *naive) bytesOf(from *seat) (sum int) {
	for _, p := range n.waiting {
		if from == nil || p.from == from {
			sum += cap(p.frame)
		}
	}
	return sum
}

// put gives the packets that had to go.
func (n *naive) put(p *packet) (gone []*packet) {
	for len(n.waiting) == n.max || n.bytesOf(nil)+cap(p.frame) > n.limit {
		weight := func(from *seat) int {
			w := n.bytesOf(from)
			if from == p.from && w > 0 {
				w += cap(p.frame)
			}
			return w
		}
		most := 0
		for _, q := range n.waiting {
			most = max(most, weight(q.from))
		}
		// Of those with the most: the sender himself, else any; the oldest packet of his.
		var victims []*seat
		for _, q := range n.waiting {
			if weight(q.from) == most && !slices.Contains(victims, q.from) {
				victims = append(victims, q.from)
			}
		}
		i := slices.IndexFunc(n.waiting, func(q *packet) bool { return q.from == p.from && slices.Contains(victims, p.from) })
		if i < 0 && len(victims) == 1 {
			i = slices.IndexFunc(n.waiting, func(q *packet) bool { return q.from == victims[0] })
		}
		if i < 0 {
			return nil // any of several: not for the oracle to say
		}
		gone = append(gone, n.waiting[i])
		n.waiting = slices.Delete(n.waiting, i, i+1)
	}
	n.waiting = append(n.waiting, p)
	return gone
}

// A lane does in a ring, with counts, what the naive one does with a list.
func TestLaneOracle(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		l := lane{ring: make([]*packet, 8), limit: 8 * smallFrame, budget: &budget{limit: 1 << 30}}
		n := naive{max: 8, limit: l.limit}
		seats := []*seat{{key: key.NewNode().Public()}, {key: key.NewNode().Public()}, {key: key.NewNode().Public()}}
		for step := range 2000 {
			if rnd.IntN(3) == 0 && l.n > 0 {
				if got, want := l.pop(0), n.waiting[0]; got != want {
					t.Fatalf("seed %d, step %d: took another packet", seed, step)
				}
				n.waiting = n.waiting[1:]
				continue
			}
			size := smallFrame
			if rnd.IntN(10) == 0 {
				size = smallFrame + rnd.IntN(5*smallFrame)
			}
			p := &packet{frame: make([]byte, 0, size), from: seats[min(rnd.IntN(4), 2)]}
			want := n.put(p)
			var gone []*packet
			mine := l.shareOf(p.from)
			for !l.admit(p) {
				gone = append(gone, l.evict(mine, cap(p.frame)))
			}
			l.push(p, mine)
			if len(n.waiting) > 0 && n.waiting[len(n.waiting)-1] == p && !slices.Equal(gone, want) {
				t.Fatalf("seed %d, step %d: %d had to go, want %d, or others", seed, step, len(gone), len(want))
			}
			n.waiting = n.waiting[:0] // the oracle may not have decided: it goes on with what there is
			for i := range l.n {
				n.waiting = append(n.waiting, l.at(i))
			}
			checkLane(t, &l)
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, step)
			}
		}
	}
}

func checkLane(t *testing.T, l *lane) {
	bytes, shares := 0, map[*seat]int{}
	for i := range l.n {
		p := l.at(i)
		bytes += cap(p.frame)
		shares[p.from] += cap(p.frame)
	}
	if bytes != l.bytes || bytes > l.limit {
		t.Errorf("%d bytes, counted %d", l.bytes, bytes)
	}
	for _, sh := range l.shares {
		if sh.bytes != 0 && sh.bytes != shares[sh.from] {
			t.Errorf("a share of %d, counted %d", sh.bytes, shares[sh.from])
		}
	}
	if len(l.shares) > len(l.ring) {
		t.Errorf("%d shares of %d packets", len(l.shares), len(l.ring))
	}
}

// When all outboxes together are full, nobody gets more memory, and who has
// packets waiting keeps the newest.
func TestBudget(t *testing.T) {
	s := newServer(t, Config{MaxQueued: 10 * smallFrame})
	from := &seat{key: key.NewNode().Public()}
	var boxes [3]outbox
	for i := range boxes {
		boxes[i].init(&s.budget)
	}
	put := func(i, n int) {
		for range n {
			boxes[i].put(s, s.pools.packet(100, from), false)
		}
	}
	put(0, 4+6)
	put(1, 4+6)
	put(2, 4+6)
	for i, want := range []int{4 + 6, 4 + 4, 4} {
		if got := boxes[i].packets.n; got != want {
			t.Errorf("%d: %d wait, want %d", i, got, want)
		}
	}
	if used := s.budget.used.Load(); used != 10*smallFrame {
		t.Errorf("%d bytes are used", used)
	}
	boxes[0].drain(s)
	put(2, 20)
	if got := boxes[2].packets.n; got != 4+6 {
		t.Errorf("%d wait", got)
	}
	for i := range boxes {
		boxes[i].close()
		put(i, 3)
		boxes[i].drain(s)
	}
	if used := s.budget.used.Load(); used != 0 {
		t.Errorf("%d bytes are used by nobody", used)
	}
	var sum Stats
	for i := range boxes {
		boxes[i].count(&sum)
	}
	if want := int64(10 + 10 + 10 + 20 + 9); sum.Dropped != want {
		t.Errorf("%d dropped, want %d", sum.Dropped, want)
	}
}

// What is said of the same thing twice is said once, and the last counts.
func TestNotes(t *testing.T) {
	var o outbox
	o.init(&budget{})
	o.tell("ill")
	o.tell("ill")
	o.reply([8]byte{1})
	o.reply([8]byte{2})
	o.keepAlive()
	o.keepAlive()
	for i := range 2 * maxGone {
		o.gone(key.NodePublic{}, 0)
		_ = i
	}
	b, batch, open := o.take(nil, nil)
	if want := (5 + 3) + (5 + 8) + 5 + maxGone*(5+33); len(b) != want || len(batch) != 0 || !open {
		t.Errorf("%d bytes, want %d", len(b), want)
	}
	if string(b[:8]) != "\x14\x00\x00\x00\x03ill" || b[8+5] != 2 {
		t.Errorf("got %q", b[:30])
	}
	if b, _, _ := o.take(nil, nil); len(b) != 0 {
		t.Errorf("said again: %q", b)
	}
	o.tell("ill")
	if b, _, _ := o.take(nil, nil); len(b) != 0 {
		t.Errorf("said again: %q", b)
	}
	o.tell("")
	if b, _, _ := o.take(nil, nil); fmt.Sprintf("%x", b) != "1400000000" {
		t.Errorf("got %x", b)
	}
}
