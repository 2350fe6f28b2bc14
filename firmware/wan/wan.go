// Package wan is what the uplink knows of the internet and the home has to know, as a
// file in memory: uplink writes it, lan reads it.
//
// Times are those since the machine has started: the clock of such boards jumps when it
// is set.
package wan

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"time"

	"subnetd/firmware/durable"

	"golang.org/x/sys/unix"
)

// File is where it is.
const File = "/run/appliance/wan.json"

const most = 64 << 10 // bytes of the file

// State is what the internet's side is at present.
type State struct {
	Interface string         `json:"interface"`           // "": none is there
	Addresses []netip.Prefix `json:"addresses,omitempty"` // of IPv4
	Resolvers []netip.Addr   `json:"resolvers,omitempty"` // the best first
	Delegated []Delegation   `json:"delegated,omitempty"`
}

// Delegation is a prefix that the provider has given to this home (RFC 8415, IA_PD).
type Delegation struct {
	Prefix    netip.Prefix  `json:"prefix"`
	Preferred time.Duration `json:"preferred"` // until then, since the start of the machine
	Valid     time.Duration `json:"valid"`
}

// Now is the time since the machine has started, sleep included.
func Now() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(fmt.Sprintf("wan: this kernel has no CLOCK_BOOTTIME: %v", err)) // all since 2.6.39 have
	}
	return time.Duration(t.Nano())
}

// Save writes a file.
func Save(file string, s State) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return durable.Write(file, append(data, '\n'), 0o644)
}

// Load reads one. If there is none, nothing is known yet.
func Load(file string) (State, error) {
	var s State
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil && len(data) > most {
		err = errors.New("too long")
	}
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		return State{}, fmt.Errorf("%s: %w", file, err)
	}
	return s, nil
}
