package update

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"subnetd/firmware/disk"
	"subnetd/firmware/slots"
)

// Machine is what an image must fit.
type Machine struct {
	Disk    string     // device, or an image of one
	Running slots.Slot // where the running root is
	Board   string
	Kernel  string
	// Slot is the device of a slot. An image of a disk has none: a test gives files.
	Slot func(slots.Slot) string
}

// ErrBusy means that another update is under way.
var ErrBusy = errors.New("another update is under way")

// Install streams an image into the slot that does not run and has it tried at the next boot, if the SHA-256 of all that came is
// sum. Until that is known the record calls the slot empty.
func (m Machine) Install(ctx context.Context, image io.Reader, sum [sha256.Size]byte) (Head, error) {
	whole := sha256.New()
	in := io.TeeReader(withContext{ctx, image}, whole)
	head, err := m.readHead(in)
	if err != nil {
		return head, err
	}
	to, out, err := m.open(head)
	if err != nil {
		return head, err
	}
	defer out.Close()
	if err := m.change(func(r slots.Record) (slots.Record, error) {
		_, r, err := r.Clear(m.Running)
		return r, err
	}); err != nil {
		return head, err
	}
	root, err := write(out, in, head.Size)
	if err != nil {
		return head, err
	}
	if n, err := io.Copy(io.Discard, io.LimitReader(in, 1)); n != 0 || err != nil {
		return head, fmt.Errorf("more has come than the image says that it has: %w", err)
	}
	if got := [sha256.Size]byte(whole.Sum(nil)); got != sum {
		return head, fmt.Errorf("the image that came has the SHA-256 %x, not %x", got, sum)
	}
	if err := verify(out, head.Size, root); err != nil {
		return head, err
	}
	return head, m.change(func(r slots.Record) (slots.Record, error) { return r.Install(to, uint64(head.Size), sum) })
}

// readHead refuses what is for another board, or for another kernel than the one that stays.
func (m Machine) readHead(in io.Reader) (Head, error) {
	b := make([]byte, HeadSize)
	if _, err := io.ReadFull(in, b); err != nil {
		return Head{}, fmt.Errorf("%w: it ends in its head: %w", ErrNoImage, err)
	}
	h, err := ParseHead(b)
	switch {
	case err != nil:
		return h, err
	case h.Board != m.Board:
		return h, fmt.Errorf("this image is for the board %s, and here is %s", h.Board, m.Board)
	case h.Kernel != m.Kernel:
		return h, fmt.Errorf("this image is for the kernel %s, and here runs %s, which no update changes: the disk must be flashed anew", h.Kernel, m.Kernel)
	}
	return h, nil
}

// open opens the slot that does not run; while it is open no other update can have it.
func (m Machine) open(h Head) (slots.Slot, *os.File, error) {
	to := m.Running.Other()
	f, err := os.OpenFile(m.Slot(to), os.O_RDWR, 0)
	if err != nil {
		return to, nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return to, nil, errors.Join(ErrBusy, f.Close())
	}
	if room, err := f.Seek(0, io.SeekEnd); err != nil || room < h.Size {
		return to, nil, errors.Join(fmt.Errorf("the image has %d bytes, and a slot %d", h.Size, room), err, f.Close())
	}
	_, err = f.Seek(0, io.SeekStart)
	return to, f, err
}

// change changes the record of the slots.
func (m Machine) change(how func(slots.Record) (slots.Record, error)) error {
	r, err := disk.OpenRecords(m.Disk)
	if err != nil {
		return err
	}
	next, err := how(r.Present())
	if err == nil {
		err = r.Save(next)
	}
	return errors.Join(err, r.Close())
}

const chunk = 256 << 10

// write copies so many bytes to a slot, gives their SHA-256, and returns when the disk has them.
func write(out *os.File, in io.Reader, size int64) (sum [sha256.Size]byte, err error) {
	root := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(out, root)}, io.LimitReader(in, size), make([]byte, chunk))
	if err != nil {
		return sum, fmt.Errorf("after %d bytes of the root: %w", n, err)
	}
	if n != size {
		return sum, fmt.Errorf("the image ends after %d of %d bytes of its root", n, size)
	}
	return [sha256.Size]byte(root.Sum(nil)), out.Sync()
}

// verify reads a slot back: from the disk, not from memory.
func verify(f *os.File, size int64, want [sha256.Size]byte) error {
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("reading back: %w", err)
	}
	got := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{got}, io.NewSectionReader(f, 0, size), make([]byte, chunk)); err != nil {
		return fmt.Errorf("reading back: %w", err)
	}
	if !bytes.Equal(got.Sum(nil), want[:]) {
		return errors.New("the disk gives back other bytes than were written: it is worn out")
	}
	return nil
}

// withContext is a reader that ends with ctx, between two readings.
type withContext struct {
	ctx context.Context
	r   io.Reader
}

func (r withContext) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(b)
}

// parseSum reads a SHA-256 in hexadecimal digits.
func parseSum(text string) (sum [sha256.Size]byte, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != sha256.Size {
		return sum, fmt.Errorf("%q is no SHA-256", text)
	}
	return [sha256.Size]byte(b), nil
}
