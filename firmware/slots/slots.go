// Package slots decides which of two roots the appliance boots. It is pure: a [Record] goes in, the next one comes out,
// and whoever calls writes that to the disk before he acts by it.
//
//	          Clear             Install              Confirm
//	any ----------------> Empty ----------> Trial -------------> Good, and Active
//	    before an update         complete     |    its services
//	    is written               and right    |    are up
//	                                          | Boot again without that, or Broken
//	                                          v
//	                                        Failed: the Active slot is booted, and the owner is told
//
// Only the slot that does not run is ever cleared, and only while the running one is Active and Good: at every moment
// there is a slot that has come up before. A trial is paid for before it begins, so that one that hangs, panics or loses
// power is not repeated.
package slots

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Slot is one of the two.
type Slot uint8

// The slots.
const (
	A Slot = iota
	B
)

// Other is the slot that s is not.
func (s Slot) Other() Slot { return s ^ 1 }

// String is "a" or "b".
func (s Slot) String() string { return string(rune('a' + s)) }

// State is what is known of a slot's content.
type State uint8

// The states. Those that are not in the list are not decoded.
const (
	Empty  State = iota // nothing, or a part of an update
	Good                // has come up
	Trial               // complete, and has not come up yet
	Failed              // was tried and did not come up
)

var names = [...]string{"empty", "good", "trial", "failed"}

func (s State) String() string {
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Entry is what the record has of one slot.
type Entry struct {
	State  State
	Tries  uint8    // boots that a trial has left
	Size   uint64   // of the root, bytes
	SHA256 [32]byte // of the update that brought it; zero for what was flashed
}

// Record is all that survives a boot.
type Record struct {
	Seq    uint32 // of two valid copies the later one counts
	Active Slot   // the one that is booted when nothing is tried
	Slots  [2]Entry
}

// New is the record of a fresh disk: a root in slot A, of the given size.
func New(size uint64) Record {
	return Record{Seq: 1, Slots: [2]Entry{{State: Good, Size: size}, {}}}
}

// ErrNone means that neither slot holds a root that may be booted.
var ErrNone = errors.New("neither slot holds a root")

// Boot gives the slot to boot now and the record that must be on the disk before. That is r itself if nothing changes.
func (r Record) Boot() (Slot, Record, error) {
	other := r.Active.Other()
	if t := &r.Slots[other]; t.State == Trial {
		if t.Tries > 0 {
			t.Tries--
			return other, r, nil
		}
		t.State = Failed
	}
	switch {
	case r.Slots[r.Active].State == Good:
		return r.Active, r, nil
	case r.Slots[other].State == Good:
		r.Active = other
		return other, r, nil
	}
	return r.Active, r, ErrNone
}

// Broken is the record after a slot's root could not even be mounted. The last slot that once came up stays Good.
func (r Record) Broken(s Slot) Record {
	switch e := &r.Slots[s]; {
	case s != r.Active:
		e.State = Failed
	case r.Slots[s.Other()].State == Good:
		e.State, r.Active = Failed, s.Other()
	}
	return r
}

// Confirm is the record after the running slot has come up.
func (r Record) Confirm(running Slot) Record {
	if e := &r.Slots[running]; e.State != Good {
		e.State, e.Tries = Good, 0
	}
	r.Active = running
	return r
}

// Clear is the record before an update is written, and the slot it goes to. It is refused while the running root has not
// come up: the other one may be the last that works.
func (r Record) Clear(running Slot) (Slot, Record, error) {
	if running != r.Active || r.Slots[running].State != Good {
		return 0, r, fmt.Errorf("the root in slot %s is on trial: what is in slot %s may still be needed", running, running.Other())
	}
	to := running.Other()
	r.Slots[to] = Entry{}
	return to, r, nil
}

// Install is the record after an update has been written whole: it is tried once.
func (r Record) Install(to Slot, size uint64, sum [32]byte) (Record, error) {
	if to == r.Active || r.Slots[to].State != Empty {
		return r, fmt.Errorf("slot %s is %s, and was not cleared for an update", to, r.Slots[to].State)
	}
	r.Slots[to] = Entry{State: Trial, Tries: 1, Size: size, SHA256: sum}
	return r, nil
}

// Note is what the owner of the running slot must know, or empty.
func (r Record) Note(running Slot) string {
	if r.Slots[running.Other()].State == Failed {
		return fmt.Sprintf("the system in slot %s did not come up, so that slot %s runs again", running.Other(), running)
	}
	return ""
}

// CopySize is the size of one encoded copy: a sector, which a disk writes whole or leaves unreadable.
const CopySize = 512

const (
	magic     = "subnslot"
	format    = 1
	entrySize = 1 + 1 + 8 + 32
	headSize  = len(magic) + 1 + 4 + 1
	crcAt     = CopySize - 4
)

var table = crc32.MakeTable(crc32.Castagnoli)

// Encode gives one copy: magic, format, sequence number, active slot, the two entries, zeroes, CRC-32C; numbers are
// big-endian.
func (r Record) Encode() [CopySize]byte {
	var out [CopySize]byte
	b := append(out[:0], magic...)
	b = append(b, format)
	b = binary.BigEndian.AppendUint32(b, r.Seq)
	b = append(b, byte(r.Active))
	for _, e := range r.Slots {
		b = append(b, byte(e.State), e.Tries)
		b = binary.BigEndian.AppendUint64(b, e.Size)
		b = append(b, e.SHA256[:]...)
	}
	binary.BigEndian.PutUint32(out[crcAt:], crc32.Checksum(out[:crcAt], table))
	return out
}

// Decode reads one copy. It reports false for anything that Encode has not made.
func Decode(b []byte) (Record, bool) {
	if len(b) < CopySize || string(b[:len(magic)]) != magic || b[len(magic)] != format ||
		binary.BigEndian.Uint32(b[crcAt:CopySize]) != crc32.Checksum(b[:crcAt], table) {
		return Record{}, false
	}
	r := Record{Seq: binary.BigEndian.Uint32(b[len(magic)+1:]), Active: Slot(b[headSize-1])}
	for i := range r.Slots {
		e := b[headSize+i*entrySize:][:entrySize]
		r.Slots[i] = Entry{State: State(e[0]), Tries: e[1], Size: binary.BigEndian.Uint64(e[2:]), SHA256: [32]byte(e[10:])}
		if r.Slots[i].State > Failed {
			return Record{}, false
		}
	}
	return r, r.Active <= B
}

// Newest gives the record of two copies, and which of them has it. It reports false if neither is valid.
func Newest(copies [2][]byte) (r Record, at int, ok bool) {
	first, ok0 := Decode(copies[0])
	second, ok1 := Decode(copies[1])
	if ok1 && (!ok0 || int32(second.Seq-first.Seq) > 0) {
		return second, 1, true
	}
	return first, 0, ok0
}

// Write gives the copy that holds the next record, and which of the two it replaces: the one that does not hold the
// present record, so that a write cut short leaves that.
func Write(next Record, present Record, at int) (copy [CopySize]byte, to int) {
	next.Seq = present.Seq + 1
	return next.Encode(), 1 - at
}
