package slots_test

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"subnetd/firmware/slots"
)

const (
	a, b = slots.A, slots.B
)

func record(active slots.Slot, first, second slots.Entry) slots.Record {
	return slots.Record{Seq: 7, Active: active, Slots: [2]slots.Entry{first, second}}
}

var (
	empty  = slots.Entry{}
	good   = slots.Entry{State: slots.Good, Size: 10}
	trial  = slots.Entry{State: slots.Trial, Tries: 1, Size: 20}
	spent  = slots.Entry{State: slots.Trial, Size: 20}
	failed = slots.Entry{State: slots.Failed, Size: 20}
)

func TestBoot(t *testing.T) {
	for _, c := range []struct {
		what   string
		before slots.Record
		slot   slots.Slot
		after  slots.Record
		err    error
	}{
		{"fresh", record(a, good, empty), a, record(a, good, empty), nil},
		{"a trial is paid for first", record(a, good, trial), b, record(a, good, spent), nil},
		{"and is not repeated", record(a, good, spent), a, record(a, good, failed), nil},
		{"the same the other way round", record(b, trial, good), a, record(b, spent, good), nil},
		{"failed stays failed", record(b, failed, good), b, record(b, failed, good), nil},
		{"two good ones", record(b, good, good), b, record(b, good, good), nil},
		{"the active one is none", record(a, failed, good), b, record(b, failed, good), nil},
		{"nothing", record(a, empty, empty), a, record(a, empty, empty), slots.ErrNone},
		{"nothing but a trial", record(a, empty, trial), b, record(a, empty, spent), nil},
	} {
		slot, after, err := c.before.Boot()
		if slot != c.slot || !errors.Is(err, c.err) {
			t.Errorf("%s: boots %s, %v, want %s, %v", c.what, slot, err, c.slot, c.err)
		}
		if d := cmp.Diff(c.after, after); d != "" {
			t.Errorf("%s: %s", c.what, d)
		}
	}
}

func TestBroken(t *testing.T) {
	for _, c := range []struct {
		what          string
		before, after slots.Record
		slot          slots.Slot
	}{
		{"a trial", record(a, good, spent), record(a, good, failed), b},
		{"the active one, and the other has come up once", record(a, good, good), record(b, slots.Entry{State: slots.Failed, Size: 10}, good), a},
		{"the only one", record(a, good, failed), record(a, good, failed), a},
	} {
		if d := cmp.Diff(c.after, c.before.Broken(c.slot)); d != "" {
			t.Errorf("%s: %s", c.what, d)
		}
	}
}

func TestUpdate(t *testing.T) {
	r := record(a, good, failed)
	to, r, err := r.Clear(a)
	if err != nil || to != b {
		t.Fatalf("cleared: slot %s, %v", to, err)
	}
	if d := cmp.Diff(record(a, good, empty), r); d != "" {
		t.Error(d)
	}
	r, err = r.Install(b, 20, [32]byte{})
	if d := cmp.Diff(record(a, good, trial), r); d != "" || err != nil {
		t.Error(d, err)
	}
	if _, err := r.Install(b, 20, [32]byte{}); err == nil {
		t.Error("installed twice")
	}
	running, r, _ := r.Boot()
	if _, same, err := r.Clear(running); err == nil || same != r {
		t.Error("while the new root is on trial, the old one is cleared")
	}
	r = r.Confirm(running)
	if d := cmp.Diff(record(b, good, slots.Entry{State: slots.Good, Size: 20}), r); d != "" {
		t.Error(d)
	}
	if again := r.Confirm(running); again != r {
		t.Error("confirming changes what is confirmed")
	}
	if _, err := r.Install(b, 20, [32]byte{}); err == nil {
		t.Error("installed over the running root")
	}
}

func TestNote(t *testing.T) {
	if n := record(a, good, failed).Note(a); n == "" {
		t.Error("the owner is not told that slot b has failed")
	}
	for _, r := range []slots.Record{record(a, good, empty), record(a, good, spent), record(a, good, good)} {
		if n := r.Note(a); n != "" {
			t.Errorf("%+v: %s", r, n)
		}
	}
}

func FuzzDecode(f *testing.F) {
	first := record(b, failed, good).Encode()
	f.Add(first[:])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		r, ok := slots.Decode(in)
		if !ok {
			return
		}
		again, ok := slots.Decode(encode(r))
		if !ok || again != r {
			t.Errorf("%+v is decoded, encoded and decoded as %+v", r, again)
		}
	})
}

func encode(r slots.Record) []byte {
	c := r.Encode()
	return c[:]
}

// TestDamage: no copy with a byte changed is valid, and the other one counts then.
func TestDamage(t *testing.T) {
	old, next := record(a, good, trial), record(a, good, spent)
	next.Seq++
	for i := range slots.CopySize {
		c := encode(next)
		c[i] ^= 0x10
		if r, at, ok := slots.Newest([2][]byte{encode(old), c}); !ok || at != 0 || r != old {
			t.Errorf("byte %d damaged: %+v of copy %d", i, r, at)
		}
	}
	if _, _, ok := slots.Newest([2][]byte{make([]byte, slots.CopySize), nil}); ok {
		t.Error("a record out of nothing")
	}
}

// TestSequenceWraps: after the largest number comes zero.
func TestSequenceWraps(t *testing.T) {
	old := record(a, good, empty)
	old.Seq = 1<<32 - 1
	c, to := slots.Write(old.Confirm(a), old, 1)
	if r, at, ok := slots.Newest([2][]byte{c[:], encode(old)}); to != 0 || !ok || at != 0 || r.Seq != 0 {
		t.Errorf("copy %d: %+v", at, r)
	}
}

// world is the naive model: what is really in the slots, two copies of the record, and power that fails.
type world struct {
	rng    *rand.Rand
	copies [2][]byte
	roots  [2]root
	cut    int // writes until the power fails; negative: it does not
}

type root struct{ whole, works bool }

var errCut = errors.New("the power fails")

// save writes a record. A cut leaves any part of the new copy in place of the old one's beginning, or rubbish.
func (w *world) save(t *testing.T, next slots.Record) error {
	present, at, ok := slots.Newest(w.copies)
	if !ok {
		t.Fatal("there is no record")
	}
	if next == present {
		return nil
	}
	c, to := slots.Write(next, present, at)
	if w.power() {
		w.copies[to] = c[:]
		return nil
	}
	torn := append([]byte(nil), w.copies[to]...)
	n := copy(torn, c[:w.rng.IntN(slots.CopySize+1)])
	if w.rng.IntN(2) == 0 {
		for i := n; i < slots.CopySize; i++ {
			torn[i] = byte(w.rng.Uint32())
		}
	}
	w.copies[to] = torn
	if got, _, ok := slots.Newest(w.copies); !ok || got != present && encodedTwin(got, present) != next {
		t.Fatalf("a write cut short leaves %+v (%v), neither %+v nor %+v", got, ok, present, next)
	}
	return errCut
}

// encodedTwin is a record with another's sequence number, for comparing what they say.
func encodedTwin(r, number slots.Record) slots.Record {
	r.Seq = number.Seq
	return r
}

func (w *world) power() bool {
	w.cut--
	return w.cut != -1
}

// boot is stage1: it gives the slot that runs.
func (w *world) boot(t *testing.T) (slots.Slot, error) {
	r, _, _ := slots.Newest(w.copies)
	slot, next, err := r.Boot()
	if err != nil {
		t.Fatalf("%+v: %v", r, err)
	}
	if !w.roots[slot].whole {
		t.Fatalf("%+v: boots slot %s, which holds a part of an update", r, slot)
	}
	return slot, w.save(t, next)
}

// update writes a root into the other slot, in a hundred writes.
func (w *world) update(t *testing.T, running slots.Slot, brings root) error {
	r, _, _ := slots.Newest(w.copies)
	to, r, err := r.Clear(running)
	if err != nil {
		t.Fatalf("%+v: %v", r, err)
	}
	if err := w.save(t, r); err != nil {
		return err
	}
	w.roots[to] = root{}
	for range 100 {
		if !w.power() {
			return errCut
		}
	}
	w.roots[to] = brings
	r, _, _ = slots.Newest(w.copies)
	r, err = r.Install(to, 1, [32]byte{})
	if err != nil {
		t.Fatal(err)
	}
	return w.save(t, r)
}

// TestAlwaysBoots walks at random through updates, good ones and bad ones, and cuts of the power at every kind of moment:
// of two boots that are not cut short one brings up a root that works, and what never came whole never runs.
func TestAlwaysBoots(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	w := &world{rng: rng, copies: [2][]byte{encode(slots.New(1)), make([]byte, slots.CopySize)}, roots: [2]root{{true, true}, {}}}
	updated, fell := 0, 0
	for range 5_000 {
		w.cut = -1
		if rng.IntN(2) == 0 {
			w.cut = rng.IntN(4)
			if rng.IntN(2) == 0 {
				w.cut = rng.IntN(110)
			}
		}
		if w.live(t, root{true, rng.IntN(2) == 0}) {
			updated++
		}
		w.cut = -1
		running := w.mustBoot(t)
		if !w.roots[running].works {
			fell++
			if running = w.mustBoot(t); !w.roots[running].works {
				t.Fatal("two boots bring up no root that works")
			}
		}
		r, _, _ := slots.Newest(w.copies)
		if err := w.save(t, r.Confirm(running)); err != nil {
			t.Fatal(err)
		}
	}
	if updated < 100 || fell < 100 {
		t.Errorf("%d updates came whole and %d boots fell back: this walk saw too little", updated, fell)
	}
}

// mustBoot is a boot that no cut ends.
func (w *world) mustBoot(t *testing.T) slots.Slot {
	t.Helper()
	running, err := w.boot(t)
	if err != nil {
		t.Fatal(err)
	}
	return running
}

// live is a boot, a confirmation if the root works, and an update, as far as the power lasts. It reports whether the update
// came whole.
func (w *world) live(t *testing.T, brings root) bool {
	running, err := w.boot(t)
	if err != nil || !w.roots[running].works {
		return false
	}
	r, _, _ := slots.Newest(w.copies)
	if w.save(t, r.Confirm(running)) != nil {
		return false
	}
	return w.update(t, running, brings) == nil
}
