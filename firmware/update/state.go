package update

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"subnetd/firmware/disk"
	"subnetd/firmware/slots"
)

// VersionFile is the root's word for its own version.
const VersionFile = "/etc/appliance/version"

// State is how this machine's system stands, as subnetd reads it.
type State struct {
	Version string `json:"version"`
	Waiting bool   `json:"waiting"` // the next boot tries another root, once
	Note    string `json:"note"`    // what the owner must know of the slots; empty: nothing
}

// Tell is the command `appliance system`: the state as JSON, and the exit code.
func Tell(stdout, stderr io.Writer) int {
	s, err := now()
	if err == nil {
		err = json.NewEncoder(stdout).Encode(s)
	}
	if err != nil {
		fmt.Fprintln(stderr, "this system has no slots to update:", err)
		return 1
	}
	return 0
}

func now() (State, error) {
	m, err := here()
	if err != nil {
		return State{}, err
	}
	version, err := os.ReadFile(VersionFile)
	if err != nil {
		return State{}, err
	}
	s, err := m.State()
	s.Version = strings.TrimSpace(string(version))
	return s, err
}

// State reads the record of the slots. Of the version it knows nothing.
func (m Machine) State() (State, error) {
	r, err := disk.OpenRecords(m.Disk)
	if err != nil {
		return State{}, err
	}
	present := r.Present()
	return State{Waiting: present.Slots[m.Running.Other()].State == slots.Trial, Note: present.Note(m.Running)}, r.Close()
}
