package drop

import (
	"context"
	"slices"
	"sync"
	"time"

	"subnetd/subnetd/status"
)

const (
	mostAtOnce    = 16 // transfers that run
	mostPerPeer   = 4
	mostQueued    = 96 // that run or wait
	mostQueuedPer = 32
	buffer        = 64 << 10               // bytes, one for each transfer
	patience      = time.Minute            // with an end that says nothing
	tellEvery     = 500 * time.Millisecond // at most
	stalled       = time.Second            // is the silence of a sender who may be gone
)

// transfer is a file under way. Done, Waits, heard and moves are guarded by Store.mu.
type transfer struct {
	status.DropTransfer
	part  string // incoming: its hidden name
	heard time.Time
	stop  context.CancelCauseFunc
	moves chan struct{} // closed when more of it comes; nil: nobody waits for that
	ended chan struct{} // closed when nothing of it goes on
}

// left is what it still wants room for, in bytes.
func (t *transfer) left() int64 {
	if t.Sending || t.Size < 0 {
		return 0
	}
	return max(t.Size-t.Done, 0)
}

// add counts a transfer as under way, until leave; s.mu is held.
func (s *Store) add(t *transfer) {
	t.ended = make(chan struct{})
	s.last++
	t.ID, t.Since, t.heard = s.last, s.cfg.Now(), s.cfg.Now()
	s.under = append(s.under, t)
}

// begun ends that a transfer waits.
func (s *Store) begun(t *transfer) {
	s.mu.Lock()
	t.Waits, t.heard = false, s.cfg.Now()
	s.mu.Unlock()
	s.cfg.Changed()
}

func (s *Store) leave(t *transfer) {
	s.mu.Lock()
	s.under = slices.DeleteFunc(s.under, func(o *transfer) bool { return o == t })
	s.mu.Unlock()
	close(t.ended)
	s.cfg.Changed()
}

// moved counts bytes of a transfer.
func (s *Store) moved(t *transfer, n int) {
	now := s.cfg.Now()
	s.mu.Lock()
	t.Done += int64(n)
	t.heard = now
	if t.moves != nil {
		close(t.moves)
		t.moves = nil
	}
	tell := now.Sub(s.told).Abs() >= tellEvery // a clock may be set
	if tell {
		s.told = now
	}
	s.mu.Unlock()
	if tell {
		s.cfg.Changed()
	}
}

// arriving is the transfer under that hidden name, nil if there is none; s.mu is held.
func (s *Store) arriving(part string) *transfer {
	i := slices.IndexFunc(s.under, func(t *transfer) bool { return !t.Sending && t.part == part })
	if i < 0 {
		return nil
	}
	return s.under[i]
}

func (s *Store) transfers() []status.DropTransfer {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []status.DropTransfer{}
	for _, t := range s.under {
		out = append(out, t.DropTransfer)
	}
	return out
}

// turns lets some transfers run, and few more wait for theirs.
type turns struct {
	mu            sync.Mutex
	running       map[string]int // by peer, as are those that wait
	waiting       map[string]int
	all, waitsAll int
	next          chan struct{} // closed when a turn is free; nil: nobody waits
}

// take waits for a turn and gives what ends it. ErrBusy if too many wait.
func (q *turns) take(ctx context.Context, peer string) (end func(), err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.running == nil {
		q.running, q.waiting = map[string]int{}, map[string]int{}
	}
	if q.all+q.waitsAll >= mostQueued || q.running[peer]+q.waiting[peer] >= mostQueuedPer {
		return nil, ErrBusy
	}
	q.waitsAll++
	q.waiting[peer]++
	defer func() {
		q.waitsAll--
		count(q.waiting, peer, -1)
	}()
	for q.all >= mostAtOnce || q.running[peer] >= mostPerPeer {
		if q.next == nil {
			q.next = make(chan struct{})
		}
		next := q.next
		q.mu.Unlock()
		select {
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-next:
		}
		q.mu.Lock()
		if err != nil {
			return nil, err
		}
	}
	q.all++
	count(q.running, peer, 1)
	return sync.OnceFunc(func() { q.end(peer) }), nil
}

func (q *turns) end(peer string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.all--
	count(q.running, peer, -1)
	if q.next != nil {
		close(q.next)
		q.next = nil
	}
}

// count keeps only what is not zero.
func count(m map[string]int, key string, by int) {
	if m[key] += by; m[key] == 0 {
		delete(m, key)
	}
}
