package disk

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"subnetd/firmware/slots"
)

// Records is the record of the slots on a disk.
type Records struct {
	disk    *os.File
	present slots.Record
	at      int
}

// ErrNoRecord means that a disk is none of the appliance's, or that both copies are lost.
var ErrNoRecord = errors.New("there is no record of the slots")

// OpenRecords reads the record of a disk, which is a device or an image. Only one process at a time may have it open; others
// wait.
func OpenRecords(disk string) (*Records, error) {
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	r := &Records{disk: f}
	if err := r.read(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", disk, err), f.Close())
	}
	return r, nil
}

func (r *Records) read() error {
	if err := unix.Flock(int(r.disk.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	var copies [2][]byte
	for i := range copies {
		copies[i] = make([]byte, slots.CopySize)
		if _, err := r.disk.ReadAt(copies[i], RecordAt[i]); err != nil && !errors.Is(err, io.EOF) {
			copies[i] = nil // one that cannot be read is as good as lost
		}
	}
	var ok bool
	if r.present, r.at, ok = slots.Newest(copies); !ok {
		return ErrNoRecord
	}
	return nil
}

// Present is what the disk says.
func (r *Records) Present() slots.Record { return r.present }

// Save makes next the record, and returns when the disk has it. Nothing is written if nothing changes.
func (r *Records) Save(next slots.Record) error {
	if next == r.present {
		return nil
	}
	c, to := slots.Write(next, r.present, r.at)
	if _, err := r.disk.WriteAt(c[:], RecordAt[to]); err != nil {
		return fmt.Errorf("record of the slots: %w", err)
	}
	if err := r.disk.Sync(); err != nil {
		return fmt.Errorf("record of the slots: %w", err)
	}
	r.at = to
	next.Seq = r.present.Seq + 1
	r.present = next
	return nil
}

// Close lets others in.
func (r *Records) Close() error { return r.disk.Close() }
