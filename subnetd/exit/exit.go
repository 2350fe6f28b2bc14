// Package exit judges which exits are at hand, so that another can take over from
// one that is gone. It is a pure machine: events and the time go in, whom to ask
// comes out; it holds no socket, no lock, no goroutine.
//
// An exit is dead when it was asked a few times and did not answer; whatever else
// lets one think so (the coordinator, a path that broke) is only a reason to ask
// at once. Nothing is asked that decides nothing: an exit without another to take
// over is asked only for such a reason, and one behind the exit in use only
// when that one does not answer.
package exit

import (
	"slices"
	"time"

	"tailscale.com/types/key"
)

const (
	// Patience is how long an answer may take.
	Patience = 1500 * time.Millisecond

	// A dead exit is noticed within askEvery + (tries-1)*againEvery + Patience = 7.5 s.
	askEvery   = 2500 * time.Millisecond
	againEvery = 1750 * time.Millisecond // without an answer
	tries      = 3                       // without an answer: dead
	least      = time.Second             // between two questions, whatever the reason

	// One that is dead is asked with growing pauses.
	retryFirst = 5 * time.Second
	retryMost  = 30 * time.Second

	// One that answers again must do so for a while before it takes over from what
	// works: the longer, the sooner it died the last times.
	backEvery = 2500 * time.Millisecond
	backTries = 2
	holdFirst = 10 * time.Second
	holdMost  = 5 * time.Minute
	calm      = 10 * time.Minute // who lived for so long has all credit again
)

// State is how an exit stands.
type State uint8

// The states. What is not known is taken as at hand: nothing leaks by that.
const (
	Unknown State = iota
	Alive
	Back // it answers again, and has yet to prove that it goes on
	Dead
)

// Health is how an exit stands, and since when.
type Health struct {
	State State
	Since time.Time // Dead: of the first question without an answer
}

// Choose gives the place in a list of the exit to be used: the first at hand. One
// that is Back is taken only over nothing. -1: none is at hand. direct says that
// the internet without an exit is the last resort.
func Choose(list []Health, direct bool) int {
	i := slices.IndexFunc(list, func(h Health) bool { return h.State == Unknown || h.State == Alive })
	if i < 0 && !direct {
		i = slices.IndexFunc(list, func(h Health) bool { return h.State == Back })
	}
	return i
}

// Use is a list of exits in use, the best first.
type Use struct {
	Exits  []key.NodePublic
	Direct bool // the internet without an exit is the last resort
}

// Event is what happened. The concrete types are below.
type Event interface{ event() }

type (
	// SetUses replaces the lists; what is known of exits that stay is kept.
	SetUses struct{ Uses []Use }
	// SetOnline is what the coordinator says of the exits. One without an entry: nothing.
	SetOnline struct{ Online map[key.NodePublic]bool }
	// Moved says that the path to the exit is another, or doubted.
	Moved struct{ Exit key.NodePublic }
	// Answered says whether the exit that was asked has answered within Patience, or
	// let us hear of it in another way.
	Answered struct {
		Exit key.NodePublic
		OK   bool
	}
	// Tick says that the time asked for by Machine.Wake has come.
	Tick struct{}
)

func (SetUses) event()   {}
func (SetOnline) event() {}
func (Moved) event()     {}
func (Answered) event()  {}
func (Tick) event()      {}

// Machine holds what is known of the exits in use. It is not safe for concurrent
// use: one goroutine steps it.
type Machine struct {
	now    time.Time // of the running Step
	uses   []Use
	online map[key.NodePublic]bool
	exits  map[key.NodePublic]*exit
	order  []*exit // as in uses, each once
}

type exit struct {
	key    key.NodePublic
	health Health
	asking bool // an answer is awaited
	asked  time.Time
	misses int       // questions without an answer, the last ones
	missed time.Time // the first of them
	reason bool      // to ask at once
	retry  time.Duration
	hold   time.Duration // of the last Back
}

// New returns a machine without exits.
func New() *Machine { return &Machine{exits: map[key.NodePublic]*exit{}} }

// Step tells the machine what happened at now and returns whom to ask. Each must be
// followed by an Answered of it. now has a monotonic reading, or never goes back.
func (m *Machine) Step(now time.Time, e Event) []key.NodePublic {
	m.now = now
	switch e := e.(type) {
	case SetUses:
		m.setUses(e.Uses)
	case SetOnline:
		m.setOnline(e.Online)
	case Moved:
		if x := m.exits[e.Exit]; x != nil {
			x.reason = true
		}
	case Answered:
		if x := m.exits[e.Exit]; x != nil && x.asking {
			m.answered(x, e.OK)
		}
	}
	return m.ask()
}

// Wake returns when the next Tick is wanted; zero: not before another event.
func (m *Machine) Wake() time.Time {
	var next time.Time
	for _, x := range m.order {
		if t := m.due(x); !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	return next
}

// Health is how all exits in use stand.
func (m *Machine) Health() map[key.NodePublic]Health {
	out := make(map[key.NodePublic]Health, len(m.exits))
	for k, x := range m.exits {
		out[k] = x.health
	}
	return out
}

func (m *Machine) setUses(uses []Use) {
	old := m.exits
	m.uses, m.exits, m.order = uses, map[key.NodePublic]*exit{}, nil
	for _, u := range uses {
		for _, k := range u.Exits {
			if m.exits[k] != nil {
				continue
			}
			x := old[k]
			if x == nil {
				x = &exit{key: k}
				m.meet(x)
			}
			m.exits[k] = x
			m.order = append(m.order, x)
		}
	}
}

// meet begins with an exit. One that the coordinator thinks offline does not count
// before it has answered.
func (m *Machine) meet(x *exit) {
	if on, told := m.online[x.key]; told && !on {
		x.health, x.reason = Health{Dead, m.now}, true
		x.retry = retryFirst
	}
}

func (m *Machine) setOnline(online map[key.NodePublic]bool) {
	was := m.online
	m.online = online
	for _, x := range m.order {
		on, told := online[x.key]
		before, known := was[x.key]
		if told && (!known || before != on) {
			x.reason = x.reason || on == (x.health.State == Dead)
		}
	}
}

func (m *Machine) answered(x *exit, ok bool) {
	x.asking = false
	if ok {
		m.heard(x)
		return
	}
	if x.misses++; x.misses == 1 {
		x.missed = x.asked
	}
	switch s := x.health.State; {
	case s == Dead:
		x.retry = min(2*x.retry, retryMost)
	case s == Back && x.misses >= backTries, x.misses >= tries:
		if s == Alive && m.now.Sub(x.health.Since) >= calm {
			x.hold = 0
		}
		x.health, x.retry = Health{Dead, x.missed}, retryFirst
	}
}

func (m *Machine) heard(x *exit) {
	x.misses, x.retry = 0, retryFirst
	switch h := x.health; {
	case h.State == Dead:
		x.health = Health{Back, m.now}
		x.hold = min(max(2*x.hold, holdFirst), holdMost)
	case h.State == Unknown, h.State == Back && m.now.Sub(h.Since) >= x.hold:
		x.health = Health{Alive, m.now}
	}
}

// ask finds whom to ask now.
func (m *Machine) ask() (out []key.NodePublic) {
	for _, x := range m.order {
		if t := m.due(x); t.IsZero() || m.now.Before(t) {
			continue
		}
		x.asking, x.asked, x.reason = true, m.now, false
		out = append(out, x.key)
	}
	return out
}

// due is when an exit is to be asked; zero: not now.
func (m *Machine) due(x *exit) time.Time {
	counts := m.counts(x)
	var wait time.Duration
	switch s := x.health.State; {
	case x.asking:
		return time.Time{}
	case x.asked.IsZero() && (counts || x.reason):
		return m.now
	case x.reason:
		wait = least
	case s == Back:
		wait = backEvery
	case s == Dead && counts:
		wait = x.retry
	case s == Dead:
		return time.Time{}
	case x.misses > 0:
		wait = againEvery
	case !counts:
		return time.Time{}
	default:
		wait = askEvery
	}
	return x.asked.Add(wait)
}

// counts reports whether it decides something, in one of the lists, how the exit
// stands: it is the one in use or better, and there is another way; or those before
// it do not answer.
func (m *Machine) counts(x *exit) bool {
	return slices.ContainsFunc(m.uses, func(u Use) bool {
		list := make([]Health, 0, len(u.Exits))
		for _, k := range u.Exits {
			list = append(list, m.exits[k].health)
		}
		at, doubted := Choose(list, u.Direct), false
		for i, k := range u.Exits {
			switch y := m.exits[k]; {
			case y == x:
				return at < 0 || doubted || i <= at && (len(u.Exits) > 1 || u.Direct)
			case i == at:
				doubted = y.misses > 0
				if !doubted {
					return false
				}
			}
		}
		return false
	})
}
