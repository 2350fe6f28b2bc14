// Package wire is what a guest's agent and the machine say to each other over a byte stream: frames that belong to
// commands, many commands at once.
//
// The machine opens a command with Start, feeds its standard input with In, one at a time: each is answered by More when
// the command has taken it; an empty In ends the input. The agent answers Started or Exit, sends Out and Err as they
// come, and Exit last. An id is free again after its Exit.
package wire

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Kind says what a frame is.
type Kind byte

// The kinds of frames; who sends them and what their payload is.
const (
	Hello   Kind = iota + 1 // agent, once: nothing
	Start                   // machine: Command as JSON
	In                      // machine: standard input; empty: its end
	Signal                  // machine: one byte, the signal's number
	Started                 // agent: the process id, decimal
	More                    // agent: nothing; the last In was taken
	Out                     // agent: standard output
	Err                     // agent: standard error
	Exit                    // agent: Status as JSON
	last    = Exit
)

// MaxPayload bounds a frame; what is longer is sent as several.
const MaxPayload = 64 << 10

// MaxCommands is how many commands may run at once.
const MaxCommands = 256

const headerLen = 9 // length of the payload, id, kind

// Frame is one message about one command.
type Frame struct {
	ID      uint32
	Kind    Kind
	Payload []byte
}

// Command is what Start carries.
type Command struct {
	Args []string // the program, by path or by name, and its arguments
	Env  []string // additions to the agent's environment, "NAME=value"
	Dir  string   // where it runs; empty: /
}

// Status is what Exit carries.
type Status struct {
	Code int    // exit code; 128 + signal's number if a signal ended it; -1 if it did not start
	Why  string // why it did not start
}

// Write writes a frame with one call of w.Write.
func Write(w io.Writer, f Frame) error {
	if len(f.Payload) > MaxPayload {
		return fmt.Errorf("a frame of %d bytes: at most %d are sent", len(f.Payload), MaxPayload)
	}
	b := make([]byte, headerLen+len(f.Payload))
	binary.BigEndian.PutUint32(b, uint32(len(f.Payload)))
	binary.BigEndian.PutUint32(b[4:], f.ID)
	b[8] = byte(f.Kind)
	copy(b[headerLen:], f.Payload)
	_, err := w.Write(b)
	return err
}

// Read reads one frame. A frame that nobody may send is an error; the stream is of no use after one.
func Read(r io.Reader) (Frame, error) {
	var h [headerLen]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return Frame{}, err
	}
	f := Frame{ID: binary.BigEndian.Uint32(h[4:]), Kind: Kind(h[8])}
	n := binary.BigEndian.Uint32(h[:])
	if n > MaxPayload || f.Kind < Hello || f.Kind > last {
		return Frame{}, fmt.Errorf("a frame of kind %d and %d bytes: the stream is broken", f.Kind, n)
	}
	f.Payload = make([]byte, n)
	if _, err := io.ReadFull(r, f.Payload); err != nil {
		return Frame{}, fmt.Errorf("the stream ended within a frame: %w", err)
	}
	return f, nil
}
