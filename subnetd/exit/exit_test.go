package exit

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale.com/types/key"
)

// world is exits that are up or not, and time that passes only as they are asked.
type world struct {
	t       *testing.T
	m       *Machine
	start   time.Time
	now     time.Time
	keys    []key.NodePublic
	up      map[key.NodePublic]bool
	uses    []Use
	waiting []answer
	asked   map[key.NodePublic]int
	log     []string // changes of what the first list uses
}

type answer struct {
	at   time.Time
	exit key.NodePublic
	ok   bool
}

const rtt = 40 * time.Millisecond

func newWorld(t *testing.T, n int) *world {
	w := &world{t: t, m: New(), start: time.Unix(1e9, 0), up: map[key.NodePublic]bool{}, asked: map[key.NodePublic]int{}}
	w.now = w.start
	for range n {
		k := key.NewNode().Public()
		w.keys = append(w.keys, k)
		w.up[k] = true
	}
	return w
}

func (w *world) step(e Event) {
	for _, k := range w.m.Step(w.now, e) {
		w.asked[k]++
		a := answer{w.now.Add(Patience), k, false}
		if w.up[k] {
			a = answer{w.now.Add(rtt), k, true}
		}
		w.waiting = append(w.waiting, a)
	}
	w.note()
}

// pass lets time pass, event by event.
func (w *world) pass(d time.Duration) {
	for end := w.now.Add(d); ; {
		next, i := w.m.Wake(), -1
		for j, a := range w.waiting {
			if next.IsZero() || a.at.Before(next) {
				next, i = a.at, j
			}
		}
		if next.IsZero() || next.After(end) {
			w.now = end
			return
		}
		if next.After(w.now) {
			w.now = next
		}
		if i < 0 {
			w.step(Tick{})
			continue
		}
		a := w.waiting[i]
		w.waiting = slices.Delete(w.waiting, i, i+1)
		w.step(Answered{a.exit, a.ok})
	}
}

func (w *world) use(uses ...Use) {
	w.uses = uses
	w.step(SetUses{uses})
}

// chosen is the place of the exit that a list uses.
func (w *world) chosen(u Use) int {
	h := w.m.Health()
	var list []Health
	for _, k := range u.Exits {
		list = append(list, h[k])
	}
	return Choose(list, u.Direct)
}

func (w *world) note() {
	if len(w.uses) == 0 {
		return
	}
	s := fmt.Sprintf("%d", w.chosen(w.uses[0]))
	if len(w.log) == 0 || !strings.HasSuffix(w.log[len(w.log)-1], " "+s) {
		w.log = append(w.log, fmt.Sprintf("%v %s", w.now.Sub(w.start), s))
	}
}

// A dead exit is left within ten seconds, the next one is known to answer by then,
// and the better one comes back by itself, but not for each sign of life.
func TestFailover(t *testing.T) {
	w := newWorld(t, 3)
	w.use(Use{Exits: w.keys})
	w.pass(time.Minute)
	if n := w.asked[w.keys[0]]; n < 21 || n > 25 {
		t.Errorf("the exit in use was asked %d times a minute", n)
	}
	if n := w.asked[w.keys[1]] + w.asked[w.keys[2]]; n != 0 {
		t.Errorf("those behind it were asked %d times for nothing", n)
	}
	w.up[w.keys[0]], w.up[w.keys[1]] = false, false
	at := w.now
	w.pass(time.Minute)
	left, _ := time.ParseDuration(strings.Fields(w.log[1])[0])
	settled, _ := time.ParseDuration(strings.Fields(w.log[len(w.log)-1])[0])
	if w.start.Add(left).Sub(at) > 10*time.Second || w.start.Add(settled).Sub(at) > 11*time.Second || !strings.HasSuffix(w.log[len(w.log)-1], " 2") {
		t.Fatalf("after the death of two at %v: %v", at.Sub(w.start), w.log)
	}
	w.log = w.log[:0]
	w.up[w.keys[0]] = true
	at = w.now
	w.pass(time.Minute)
	if len(w.log) != 2 || !strings.HasSuffix(w.log[1], " 0") {
		t.Fatalf("after its return at %v: %v", at.Sub(w.start), w.log)
	}
}

// When nothing else is at hand, the first answer is enough.
func TestBackFromNothing(t *testing.T) {
	for _, n := range []int{1, 2} {
		w := newWorld(t, n)
		w.use(Use{Exits: w.keys})
		w.step(SetOnline{map[key.NodePublic]bool{w.keys[0]: true}})
		w.pass(time.Second)
		for _, k := range w.keys {
			w.up[k] = false
		}
		at := w.now
		w.step(SetOnline{map[key.NodePublic]bool{w.keys[0]: false}}) // a lone exit is asked for such a reason
		w.pass(time.Hour)
		if w.chosen(w.uses[0]) != -1 {
			t.Fatalf("%d exits, all dead: %v", n, w.log)
		}
		h := w.m.Health()[w.keys[0]]
		if h.State != Dead || h.Since.Before(at.Add(-time.Second)) || h.Since.After(at.Add(time.Second)) {
			t.Errorf("%d: dead since %v, want %v", n, h.Since, at)
		}
		if asked := w.asked[w.keys[0]]; asked < 110 || asked > 135 {
			t.Errorf("%d: a dead exit was asked %d times in an hour", n, asked)
		}
		w.up[w.keys[0]] = true
		w.pass(retryMost + Patience)
		if w.chosen(w.uses[0]) != 0 {
			t.Errorf("%d: not back: %v", n, w.log)
		}
	}
}

// Online again, the exit is asked at once.
func TestOnlineAgain(t *testing.T) {
	w := newWorld(t, 1)
	off, on := map[key.NodePublic]bool{w.keys[0]: false}, map[key.NodePublic]bool{w.keys[0]: true}
	w.up[w.keys[0]] = false
	w.step(SetOnline{off})
	w.use(Use{Exits: w.keys})
	w.pass(10 * time.Minute)
	if w.chosen(w.uses[0]) != -1 {
		t.Fatal("an exit that is offline and does not answer is taken")
	}
	w.up[w.keys[0]] = true
	w.step(SetOnline{on})
	w.pass(2 * least)
	if w.chosen(w.uses[0]) != 0 {
		t.Fatalf("%v", w.log)
	}
}

// The coordinator may be wrong: an exit that answers is at hand whatever it says.
func TestOfflineButAnswers(t *testing.T) {
	w := newWorld(t, 2)
	w.use(Use{Exits: w.keys})
	w.pass(time.Minute)
	w.step(SetOnline{map[key.NodePublic]bool{w.keys[0]: false, w.keys[1]: true}})
	w.pass(time.Minute)
	if len(w.log) != 1 || w.chosen(w.uses[0]) != 0 {
		t.Fatalf("%v", w.log)
	}
}

// One exit alone is asked nothing while nothing is wrong.
func TestLoneIsLeftAlone(t *testing.T) {
	w := newWorld(t, 1)
	w.use(Use{Exits: w.keys})
	w.step(SetOnline{map[key.NodePublic]bool{w.keys[0]: true}})
	w.pass(time.Hour)
	if w.asked[w.keys[0]] != 0 || w.chosen(w.uses[0]) != 0 {
		t.Fatalf("asked %d times", w.asked[w.keys[0]])
	}
	w.up[w.keys[0]] = false
	w.step(Moved{w.keys[0]}) // the path broke
	w.pass(10 * time.Second)
	if w.m.Health()[w.keys[0]].State != Dead {
		t.Fatal("not noticed")
	}
}

// Direct as the last resort counts as another way, and is not left for a Back.
func TestDirect(t *testing.T) {
	w := newWorld(t, 1)
	w.use(Use{Exits: w.keys, Direct: true})
	w.pass(time.Minute)
	w.up[w.keys[0]] = false
	w.pass(10 * time.Second)
	if w.chosen(w.uses[0]) != -1 {
		t.Fatal("not noticed in time")
	}
	w.up[w.keys[0]] = true
	w.pass(holdFirst - time.Second)
	if w.chosen(w.uses[0]) != -1 {
		t.Fatal("back for its first answer")
	}
	w.pass(retryMost)
	if w.chosen(w.uses[0]) != 0 {
		t.Fatal("not back")
	}
}

// An exit that comes and goes is given less and less credit.
func TestNoFlapping(t *testing.T) {
	w := newWorld(t, 2)
	w.use(Use{Exits: w.keys})
	for range 60 { // an hour of 30 s up, 30 s down
		w.up[w.keys[0]] = true
		w.pass(30 * time.Second)
		w.up[w.keys[0]] = false
		w.pass(30 * time.Second)
	}
	if len(w.log) > 8 {
		t.Errorf("%d changes: %v", len(w.log), w.log)
	}
	w.up[w.keys[0]] = true
	w.pass(holdMost + time.Minute)
	if w.chosen(w.uses[0]) != 0 {
		t.Errorf("it never comes back: %v", w.log)
	}
}

// A packet lost here and there is no death.
func TestLoss(t *testing.T) {
	w := newWorld(t, 2)
	w.use(Use{Exits: w.keys})
	for range 200 {
		w.up[w.keys[0]] = true
		w.pass(2 * askEvery)
		w.up[w.keys[0]] = false
		w.pass(againEvery + againEvery/2) // one question gets lost, or the second too
	}
	if len(w.log) != 1 {
		t.Errorf("%v", w.log)
	}
}

// TestAlways: whatever happens, after quiet the first exit of each list that is up
// is in use, a dead one for 10 s at most, and nobody is asked more than once a second.
func TestAlways(t *testing.T) {
	seeds := uint64(150)
	if testing.Short() { // on an emulated processor each takes as long as fifty here
		seeds = 25
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 2))
		w := newWorld(t, 4)
		for range 30 {
			switch rng.IntN(4) {
			case 0:
				var uses []Use
				for range 1 + rng.IntN(3) {
					n := 1 + rng.IntN(3)
					uses = append(uses, Use{Exits: pick(rng, w.keys, n), Direct: rng.IntN(3) == 0})
				}
				w.use(uses...)
			case 1:
				online := map[key.NodePublic]bool{}
				for _, k := range w.keys {
					if rng.IntN(3) > 0 {
						online[k] = rng.IntN(2) == 0
					}
				}
				w.step(SetOnline{online})
			case 2:
				w.step(Moved{w.keys[rng.IntN(4)]})
			case 3:
				w.up[w.keys[rng.IntN(4)]] = rng.IntN(2) == 0
			}
			before := map[key.NodePublic]int{}
			for k, n := range w.asked {
				before[k] = n
			}
			d := time.Duration(rng.Int64N(int64(20 * time.Second)))
			w.pass(d)
			for k, n := range w.asked {
				if n-before[k] > int(d/time.Second)+2 {
					t.Fatalf("seed %d: asked %d times in %v", seed, n-before[k], d)
				}
			}
		}
		w.pass(10 * time.Second)
		h := w.m.Health()
		for _, u := range w.uses {
			if at := w.chosen(u); at >= 0 && !w.up[u.Exits[at]] && (len(u.Exits) > 1 || u.Direct) {
				t.Fatalf("seed %d: a dead exit is in use: %v", seed, h)
			}
		}
		w.pass(holdMost + 2*retryMost)
		for _, u := range w.uses {
			want := slices.IndexFunc(u.Exits, func(k key.NodePublic) bool { return w.up[k] })
			if at := w.chosen(u); at != want && (len(u.Exits) > 1 || u.Direct || want == 0) {
				t.Fatalf("seed %d: %d is in use, want %d: %v", seed, at, want, w.m.Health())
			}
		}
	}
}

func pick(rng *rand.Rand, from []key.NodePublic, n int) []key.NodePublic {
	out := slices.Clone(from)
	rng.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out[:n]
}
