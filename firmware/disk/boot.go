package disk

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"subnetd/firmware/slots"
)

// BootFile is where stage1 leaves word for the system that it starts.
const BootFile = "/run/appliance/boot.json"

// Booted is what stage1 found and did.
type Booted struct {
	Disk  string `json:"disk"`  // device
	Slot  string `json:"slot"`  // "a" or "b"
	Data  string `json:"data"`  // device
	Trial bool   `json:"trial"` // the root is tried: unless it is confirmed, the next boot is the other slot's
	Note  string `json:"note"`  // what the owner must know of the slots; empty: nothing
}

// ReadBoot reads what stage1 left. Without stage1 there is no such file.
func ReadBoot() (Booted, error) {
	var b Booted
	text, err := os.ReadFile(BootFile)
	if err != nil {
		return b, err
	}
	if err := json.Unmarshal(text, &b); err != nil {
		return b, fmt.Errorf("%s: %w", BootFile, err)
	}
	if _, err := b.Running(); err != nil {
		return b, fmt.Errorf("%s: %w", BootFile, err)
	}
	return b, nil
}

// Running is the slot of the running root.
func (b Booted) Running() (slots.Slot, error) {
	for _, s := range []slots.Slot{slots.A, slots.B} {
		if b.Slot == s.String() {
			return s, nil
		}
	}
	return 0, fmt.Errorf("there is no slot %q", b.Slot)
}

// RootPartition is the number of the partition of a slot.
func RootPartition(s slots.Slot) int { return RootA + int(s) }

// Confirm says that the running root has come up: it is the one to boot from now on. It writes only if that is news.
func (b Booted) Confirm() error {
	running, err := b.Running()
	if err != nil {
		return err
	}
	r, err := OpenRecords(b.Disk)
	if err != nil {
		return err
	}
	return errors.Join(r.Save(r.Present().Confirm(running)), r.Close())
}

// SlotPath is the device of a slot.
func (b Booted) SlotPath(s slots.Slot) string { return PartitionPath(b.Disk, RootPartition(s)) }
