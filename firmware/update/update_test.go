package update_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"subnetd/firmware/disk"
	"subnetd/firmware/slots"
	"subnetd/firmware/update"
)

const slotSize = 1 << 20

// bench is a machine whose disk and slots are files.
type bench struct {
	t *testing.T
	update.Machine
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir := t.TempDir()
	m := update.Machine{Disk: filepath.Join(dir, "disk"), Board: "bench", Kernel: "6.1",
		Slot: func(s slots.Slot) string { return filepath.Join(dir, "slot-"+s.String()) }}
	first := slots.New(slotSize).Encode()
	whole := make([]byte, disk.FirstPartition)
	copy(whole[disk.RecordAt[0]:], first[:])
	for name, content := range map[string][]byte{m.Disk: whole, m.Slot(slots.A): bytes.Repeat([]byte("a"), slotSize), m.Slot(slots.B): make([]byte, slotSize)} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &bench{t, m}
}

// present is what the disk says of the slots.
func (b *bench) present() slots.Record {
	b.t.Helper()
	r, err := disk.OpenRecords(b.Disk)
	if err != nil {
		b.t.Fatal(err)
	}
	defer r.Close()
	return r.Present()
}

// boots gives the slot that the next boot has.
func (b *bench) boots() slots.Slot {
	b.t.Helper()
	s, _, err := b.present().Boot()
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// image makes one for the bench, of random bytes.
func image(t *testing.T, size int64, change func(*update.Head)) ([]byte, [sha256.Size]byte) {
	t.Helper()
	h := update.Head{Board: "bench", Kernel: "6.1", Version: "v2", Size: size}
	if change != nil {
		change(&h)
	}
	b, err := h.Encode()
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, uint64(size)))
	for range size / 8 {
		b = append(b, byte(rng.Uint32()), 0, 1, 2, 3, 4, 5, byte(rng.Uint32()))
	}
	return b, sha256.Sum256(b)
}

func TestInstall(t *testing.T) {
	b := newBench(t)
	img, sum := image(t, slotSize, nil)
	head, err := b.Install(t.Context(), bytes.NewReader(img), sum)
	if err != nil || head.Version != "v2" {
		t.Fatal(head, err)
	}
	if e := b.present().Slots[slots.B]; e != (slots.Entry{State: slots.Trial, Tries: 1, Size: slotSize, SHA256: sum}) {
		t.Errorf("slot b: %+v", e)
	}
	got, err := os.ReadFile(b.Slot(slots.B))
	if err != nil || !bytes.Equal(got, img[update.HeadSize:]) {
		t.Error("the slot has not what the image has", err)
	}
	if b.boots() != slots.B {
		t.Error("it is not tried")
	}
	if s, err := b.State(); s != (update.State{Waiting: true}) || err != nil {
		t.Error(s, err)
	}
	// And back again, once it has come up.
	r, err := disk.OpenRecords(b.Disk)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Save(r.Present().Confirm(slots.B)), r.Close()); err != nil {
		t.Fatal(err)
	}
	b.Running = slots.B
	if _, err := b.Install(t.Context(), bytes.NewReader(img), sum); err != nil || b.boots() != slots.A {
		t.Error(b.boots(), err)
	}
}

// TestRefused: the next boot is the running slot's, whose bytes are the same, whatever is wrong with an image.
func TestRefused(t *testing.T) {
	img, sum := image(t, 64<<10, nil)
	with := func(change func(*update.Head)) func(*testing.T) ([]byte, [sha256.Size]byte) {
		return func(t *testing.T) ([]byte, [sha256.Size]byte) { return image(t, 64<<10, change) }
	}
	for what, c := range map[string]struct {
		image func(*testing.T) ([]byte, [sha256.Size]byte)
		says  string
	}{
		"another board":  {with(func(h *update.Head) { h.Board = "rpi" }), "for the board rpi, and here is bench"},
		"another kernel": {with(func(h *update.Head) { h.Kernel = "6.2" }), "flashed anew"},
		"too large":      {with(func(h *update.Head) { h.Size = 2 * slotSize }), "a slot 1048576"},
		"a wrong hash":   {func(*testing.T) ([]byte, [sha256.Size]byte) { return img, sha256.Sum256(nil) }, "SHA-256"},
		"nothing":        {func(*testing.T) ([]byte, [sha256.Size]byte) { return nil, sum }, "no image"},
		"something else": {func(*testing.T) ([]byte, [sha256.Size]byte) { return make([]byte, 64<<10), sum }, "no image"},
		"cut short":      {func(*testing.T) ([]byte, [sha256.Size]byte) { return img[:len(img)-1], sha256.Sum256(img[:len(img)-1]) }, "ends after"},
		"with a tail":    {func(*testing.T) ([]byte, [sha256.Size]byte) { return append(img[:len(img):len(img)], 0), sum }, "more has come"},
		"with another byte": {func(*testing.T) ([]byte, [sha256.Size]byte) {
			other := bytes.Clone(img)
			other[len(other)/2] ^= 1
			return other, sum
		}, "SHA-256"},
	} {
		t.Run(what, func(t *testing.T) {
			b := newBench(t)
			img, sum := c.image(t)
			_, err := b.Install(t.Context(), bytes.NewReader(img), sum)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("says %v, want %q", err, c.says)
			}
			b.wantOld()
		})
	}
}

// wantOld wants the next boot to be that of slot A, as it was.
func (b *bench) wantOld() {
	b.t.Helper()
	if s := b.boots(); s != slots.A {
		b.t.Errorf("boots slot %s", s)
	}
	if got, err := os.ReadFile(b.Slot(slots.A)); err != nil || !bytes.Equal(got, bytes.Repeat([]byte("a"), slotSize)) {
		b.t.Error("the running root is another", err)
	}
}

// TestInterrupted ends an upload after every so many bytes: by an error of the stream, and by the context's end.
func TestInterrupted(t *testing.T) {
	b := newBench(t)
	img, sum := image(t, 64<<10, nil)
	gone := errors.New("the browser is gone")
	for n := 0; n <= len(img); n += 1000 {
		r := io.MultiReader(bytes.NewReader(img[:n]), iotest.ErrReader(gone))
		if _, err := b.Install(t.Context(), r, sum); !errors.Is(err, gone) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		b.wantOld()
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := io.MultiReader(bytes.NewReader(img[:9000]), readerFunc(func([]byte) (int, error) { cancel(); return 0, nil }), bytes.NewReader(img[9000:]))
	if _, err := b.Install(ctx, r, sum); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	b.wantOld()
	if _, err := b.Install(t.Context(), bytes.NewReader(img), sum); err != nil || b.boots() != slots.B {
		t.Error("after all of that it cannot be updated:", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func TestBusy(t *testing.T) {
	b := newBench(t)
	f, err := os.Open(b.Slot(slots.B))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	img, sum := image(t, 64<<10, nil)
	before := b.present()
	if _, err := b.Install(t.Context(), bytes.NewReader(img), sum); !errors.Is(err, update.ErrBusy) || b.present() != before {
		t.Error(err)
	}
}

// TestOnTrial: a root that has not come up yet does not overwrite the one that has.
func TestOnTrial(t *testing.T) {
	b := newBench(t)
	img, sum := image(t, 64<<10, nil)
	if _, err := b.Install(t.Context(), bytes.NewReader(img), sum); err != nil {
		t.Fatal(err)
	}
	b.Running = slots.B
	if _, err := b.Install(t.Context(), bytes.NewReader(img), sum); err == nil || !strings.Contains(err.Error(), "on trial") {
		t.Error(err)
	}
	if got, err := os.ReadFile(b.Slot(slots.A)); err != nil || !bytes.Equal(got, bytes.Repeat([]byte("a"), slotSize)) {
		t.Error("slot a is overwritten", err)
	}
}

// TestState: what is told while an update is tried, and after it did not come up.
func TestState(t *testing.T) {
	b := newBench(t)
	want := func(what string, want update.State) {
		t.Helper()
		if s, err := b.State(); s != want || err != nil {
			t.Errorf("%s: %+v %v, want %+v", what, s, err, want)
		}
	}
	want("flashed", update.State{})
	img, sum := image(t, 64<<10, nil)
	if _, err := b.Install(t.Context(), bytes.NewReader(img), sum); err != nil {
		t.Fatal(err)
	}
	boot := func() {
		r, err := disk.OpenRecords(b.Disk)
		if err != nil {
			t.Fatal(err)
		}
		running, next, err := r.Present().Boot()
		if err := errors.Join(err, r.Save(next), r.Close()); err != nil {
			t.Fatal(err)
		}
		b.Running = running
	}
	boot()
	want("on trial", update.State{})
	boot()
	want("back", update.State{Note: "the system in slot b did not come up, so that slot a runs again"})
	if _, err := b.Install(t.Context(), bytes.NewReader(img), sum); err != nil {
		t.Fatal(err)
	}
	want("another one", update.State{Waiting: true})
}

func FuzzParseHead(f *testing.F) {
	h, err := update.Head{Board: "rpi", Kernel: "6.1.0-50-4kc-malta", Version: "v1", Size: 4096}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(h)
	f.Add([]byte("subnetd appliance 1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := update.ParseHead(b)
		if err != nil {
			return
		}
		again, err := h.Encode()
		if err != nil {
			t.Fatalf("%+v: %v", h, err)
		}
		if same, err := update.ParseHead(again); err != nil || same != h {
			t.Errorf("%+v becomes %+v, %v", h, same, err)
		}
	})
}
