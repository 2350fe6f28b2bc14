// Package sense is the eyes and ears of lan: it hears what the kernel, the DHCP server
// and the things on the LAN say, and writes it into a lan.Book.
//
//	neighbours.go   the kernel's neighbour table: who is where, and who fell silent
//	leases.go       lease files of dnsmasq and odhcpd
//	ears.go         which interfaces are heard
//	packets.go      DHCP and mDNS on the wire; filter.go has the kernel drop the rest
//	ask.go          a question by mDNS, at the beginning and when somebody new is there
//	wake.go         Wake-on-LAN
//
// Nothing is done again and again: each of them sleeps until it is told. After each batch
// of news it rests, in which time the kernel keeps what comes, or drops it: a flood costs
// it no more than a few batches a second.
package sense

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"subnetd/subnetd/lan"
)

const (
	rest      = 200 * time.Millisecond // between two batches of one kind of news
	settle    = 100 * time.Millisecond // from news to OnChange
	lookPause = 10 * time.Second       // between two rounds in which the kernel asks
	coalesce  = 10 * time.Second       // what only time changes may be told so much later
	ahead     = 15 * time.Second       // before that, the kernel is asked what it knows
	saveFirst = time.Minute            // before something new is saved
	saveMost  = time.Hour              // the same, if there is something new all the time
	maxSilent = 64                     // reports of silence that wait
)

// Config is what a Sense needs. All but Now and Log may be empty.
type Config struct {
	Interfaces []string                            // of the LAN, to begin with
	LeaseFiles []string                            // nil: where they usually are; they need not exist
	Names      map[string]string                   // what the owner calls things, by MAC; "": only pinned
	Known      lan.Memory                          // what was saved last
	Save       func(lan.Memory) error              // nil: nothing is kept
	OnChange   func([]lan.Thing)                   // after a change of more than LastSeen; at most 10 a second
	OnSilent   func(addr netip.Addr, iface string) // the kernel asked for a neighbour in vain; each time
	Now        func() time.Time
	Log        *slog.Logger
}

// Sense hears. OnChange, OnSilent and Save are called by Run's goroutine alone.
type Sense struct {
	c    Config
	news chan struct{} // one slot: something was written into the book
	plug chan struct{} // one slot: interfaces may have changed
	asks *asker

	mu         sync.Mutex // guards what follows
	book       *lan.Book
	interfaces []string
	links      map[int]string // of these, those that are up, by index
	missed     bool           // the kernel said more than could be heard
	silent     []silence
	looked     time.Time
	look       bool // asked for
}

type silence struct {
	addr  netip.Addr
	iface string
}

// New returns a Sense that knows what was saved.
func New(c Config) *Sense {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.LeaseFiles == nil {
		c.LeaseFiles = LeaseFiles()
	}
	s := &Sense{
		c: c, news: make(chan struct{}, 1), plug: make(chan struct{}, 1), book: lan.NewBook(),
		interfaces: slices.Clone(c.Interfaces), links: map[int]string{},
	}
	s.asks = newAsker(s)
	s.book.Remember(c.Now(), c.Known)
	s.book.Names(c.Now(), c.Names)
	return s
}

// SetInterfaces says which interfaces are of the LAN from now on. They need not exist.
func (s *Sense) SetInterfaces(names []string) {
	s.mu.Lock()
	same := slices.Equal(s.interfaces, names)
	s.interfaces = slices.Clone(names)
	s.mu.Unlock()
	if !same {
		signal(s.plug)
	}
}

// SetNames says what the owner calls things from now on, by MAC; an empty name only
// pins a thing.
func (s *Sense) SetNames(names map[string]string) {
	s.write(func(now time.Time, b *lan.Book) bool { return b.Names(now, names) })
}

// Things is all that is known now, sorted by MAC.
func (s *Sense) Things() []lan.Thing {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.book.Things(s.c.Now())
}

// Look says that somebody looks at what is online: the kernel asks for those that were not
// heard for a while. OnChange tells of those that are gone, and of those that were only
// quiet, some seconds later.
func (s *Sense) Look() {
	s.mu.Lock()
	now := s.c.Now()
	since := now.Sub(s.looked)
	due := s.looked.IsZero() || since < 0 || since >= lookPause
	if due {
		s.looked, s.look = now, true
	}
	s.mu.Unlock()
	if due {
		signal(s.news)
	}
}

// write writes into the book.
func (s *Sense) write(f func(time.Time, *lan.Book) bool) {
	s.mu.Lock()
	changed := f(s.c.Now(), s.book)
	s.mu.Unlock()
	if changed {
		signal(s.news)
	}
}

// signal says it unless that is waiting to be heard already.
func signal(slot chan<- struct{}) {
	select {
	case slot <- struct{}{}:
	default:
	}
}

// pause waits, and reports false when ctx is done.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// Run hears until ctx is done; then it returns nil. Without the kernel's neighbour table
// it cannot work; what else is missing is logged, and done without.
func (s *Sense) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel()
	table, err := dialTable()
	if err != nil {
		return fmt.Errorf("neighbours: %w", err)
	}
	ears := &ears{s: s, table: table}
	defer ears.close()
	ended := make(chan error, 1)
	parts.Go(func() {
		ended <- s.followTable(ctx, table)
		cancel()
	})
	parts.Go(func() { s.followLeases(ctx) })
	parts.Go(func() { s.asks.run(ctx) })
	signal(s.plug)
	s.loop(ctx, ears)
	cancel()
	return errors.Join(<-ended, table.Close())
}

// loop tells what changed.
func (s *Sense) loop(ctx context.Context, ears *ears) {
	t := newTeller(s)
	for {
		var alarm <-chan time.Time
		if d, ok := t.wait(); ok {
			alarm = time.After(d)
		}
		select {
		case <-ctx.Done():
			t.save()
			return
		case <-s.plug:
			pause(ctx, settle)
			ears.set(ctx)
		case <-s.news:
			pause(ctx, settle)
		case <-alarm:
			if t.stale() {
				ears.read()
			}
		}
		t.tell()
	}
}

// teller knows what was told and saved last. It is the loop's own.
type teller struct {
	s     *Sense
	told  []lan.Thing
	once  bool      // it was told
	next  time.Time // when time alone changes what is to be told; zero: never
	asked time.Time // the next for which the kernel was asked before
	saved lan.Memory
	due   time.Time     // when the memory is to be saved; zero: it is
	every time.Duration // between two times
	last  time.Time     // when it was
}

func newTeller(s *Sense) *teller {
	return &teller{s: s, saved: s.c.Known, every: saveFirst}
}

// wait is for how long there is nothing to do unless there is news; false: for ever.
func (t *teller) wait() (time.Duration, bool) {
	at := t.due
	if !t.next.IsZero() {
		alarm := t.next.Add(coalesce)
		if !t.asked.Equal(t.next) {
			alarm = t.next.Add(-ahead)
		}
		if at.IsZero() || alarm.Before(at) {
			at = alarm
		}
	}
	return max(at.Sub(t.s.c.Now()), 0), !at.IsZero()
}

// stale reports, once for each, that something is about to change by time alone: the
// kernel does not tell of a neighbour that it hears all the time.
func (t *teller) stale() bool {
	if t.next.IsZero() || t.asked.Equal(t.next) || t.s.c.Now().Before(t.next.Add(-ahead)) {
		return false
	}
	t.asked = t.next
	return true
}

// tell says what changed, and saves what must be.
func (t *teller) tell() {
	s := t.s
	s.mu.Lock()
	now := s.c.Now()
	things := s.book.Things(now)
	memory := s.book.Memory(now)
	t.next = s.book.Next(now)
	silent, look := s.silent, s.look
	s.silent, s.look = nil, false
	s.mu.Unlock()

	if !t.once || !slices.EqualFunc(t.told, things, lan.Thing.SameButSeen) {
		s.asks.meet(t.told, things)
		t.told, t.once = things, true
		if s.c.OnChange != nil {
			s.c.OnChange(slices.Clone(things))
		}
	}
	if s.c.OnSilent != nil {
		for _, q := range silent {
			s.c.OnSilent(q.addr, q.iface)
		}
	}
	if look {
		s.probe(now, things)
	}
	if t.due.IsZero() && !memory.Equal(t.saved) {
		if now.Sub(t.last) > saveMost {
			t.every = saveFirst
		}
		t.due = now.Add(t.every)
	}
	if !t.due.IsZero() && !now.Before(t.due) {
		t.save()
	}
}

// save writes what must survive, if that is not what was written. Where there is something
// new all the time, it is done more and more seldom: flash wears out.
func (t *teller) save() {
	t.s.mu.Lock()
	now := t.s.c.Now()
	memory := t.s.book.Memory(now)
	t.s.mu.Unlock()
	t.due = time.Time{}
	if t.s.c.Save == nil || memory.Equal(t.saved) {
		return
	}
	t.every, t.last = min(2*t.every, saveMost), now
	if err := t.s.c.Save(memory); err != nil {
		t.s.c.Log.Warn("what is known of the LAN cannot be saved", "err", err)
		return
	}
	t.saved = memory
}

// up is the interfaces of the LAN that are up, by index.
func (s *Sense) up() map[int]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.links)
}
