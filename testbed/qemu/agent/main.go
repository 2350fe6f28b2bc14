// Agent runs in a guest of the testbed and does what the machine asks it over a virtio-serial port: commands.
// usage: agent PORT
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"subnetd/testbed/qemu/wire"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: agent PORT")
		os.Exit(2)
	}
	port, err := os.OpenFile(os.Args[1], os.O_RDWR, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
	a := &agent{port: port, commands: map[uint32]*command{}}
	fmt.Fprintln(os.Stderr, "agent:", a.serve(bufio.NewReader(port)))
	os.Exit(1)
}

// agent is the end of the stream in the guest.
type agent struct {
	sending sync.Mutex // a frame goes out whole
	port    io.Writer

	mu       sync.Mutex
	commands map[uint32]*command
}

// command is one that runs, or has ended and whose Exit is not yet sent.
type command struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	in    chan []byte // at most one is under way
}

// serve reads frames until the stream ends.
func (a *agent) serve(r io.Reader) error {
	a.send(0, wire.Hello, nil)
	for {
		f, err := wire.Read(r)
		if err != nil {
			return err
		}
		if f.Kind == wire.Start {
			a.start(f)
		} else {
			a.pass(f)
		}
	}
}

// pass hands input or a signal to a command that may have ended meanwhile.
func (a *agent) pass(f wire.Frame) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.commands[f.ID]
	switch {
	case c == nil:
	case f.Kind == wire.In:
		select {
		case c.in <- f.Payload:
		default: // the machine did not wait for More
		}
	case f.Kind == wire.Signal && len(f.Payload) == 1:
		_ = c.cmd.Process.Signal(syscall.Signal(f.Payload[0]))
	}
}

// send sends a frame, or several if the payload is long. An error shows in serve too, which ends the agent.
func (a *agent) send(id uint32, kind wire.Kind, payload []byte) {
	a.sending.Lock()
	defer a.sending.Unlock()
	for {
		n := min(len(payload), wire.MaxPayload)
		if wire.Write(a.port, wire.Frame{ID: id, Kind: kind, Payload: payload[:n]}) != nil {
			return
		}
		if payload = payload[n:]; len(payload) == 0 {
			return
		}
	}
}

// start starts the command of a frame, or sends the Exit that says why not.
func (a *agent) start(f wire.Frame) {
	c, err := a.launch(f)
	if err != nil {
		a.exit(f.ID, wire.Status{Code: -1, Why: err.Error()})
		return
	}
	a.send(f.ID, wire.Started, strconv.AppendInt(nil, int64(c.cmd.Process.Pid), 10))
	go a.feed(f.ID, c)
	go func() {
		status := ended(c.cmd.Wait())
		a.mu.Lock()
		delete(a.commands, f.ID)
		close(c.in)
		a.mu.Unlock()
		a.exit(f.ID, status)
	}()
}

func (a *agent) launch(f wire.Frame) (*command, error) {
	var want wire.Command
	if err := json.Unmarshal(f.Payload, &want); err != nil {
		return nil, fmt.Errorf("the command is not readable: %w", err)
	}
	if len(want.Args) == 0 {
		return nil, errors.New("the command has no program")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.commands) >= wire.MaxCommands || a.commands[f.ID] != nil {
		return nil, fmt.Errorf("%d commands run already, or one with the id %d", len(a.commands), f.ID)
	}
	cmd := exec.Command(want.Args[0], want.Args[1:]...)
	cmd.Dir = want.Dir
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	cmd.Env = append(os.Environ(), want.Env...)
	cmd.Stdout, cmd.Stderr = output{a, f.ID, wire.Out}, output{a, f.ID, wire.Err}
	cmd.WaitDelay = time.Second // children that it left behind may hold its outputs
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &command{cmd: cmd, stdin: stdin, in: make(chan []byte, 1)}
	a.commands[f.ID] = c
	return c, nil
}

// feed writes a command's input as it comes, until its end or the command's.
func (a *agent) feed(id uint32, c *command) {
	for b := range c.in {
		if len(b) == 0 {
			_ = c.stdin.Close()
			continue
		}
		_, _ = c.stdin.Write(b) // a command need not read
		a.send(id, wire.More, nil)
	}
}

func (a *agent) exit(id uint32, s wire.Status) {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a number and a string
	}
	a.send(id, wire.Exit, b)
}

// ended says how a command has ended.
func ended(err error) wire.Status {
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return wire.Status{}
	case !errors.As(err, &exit):
		return wire.Status{Code: -1, Why: err.Error()}
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return wire.Status{Code: 128 + int(ws.Signal())}
	}
	return wire.Status{Code: exit.ExitCode()}
}

// output sends what a command writes.
type output struct {
	a    *agent
	id   uint32
	kind wire.Kind
}

// Write never fails: where nobody listens, the machine is about to end.
func (o output) Write(b []byte) (int, error) {
	o.a.send(o.id, o.kind, b)
	return len(b), nil
}
