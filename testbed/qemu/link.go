package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"subnetd/testbed/qemu/wire"
)

// errGone is the end of everything that ran in a guest that is off.
var errGone = errors.New("the guest is off")

// link is the machine's end of the stream to a guest's agent.
type link struct {
	conn  net.Conn
	hello chan struct{} // closed when the agent is there
	gone  chan struct{} // closed when the stream has ended

	sending sync.Mutex // a frame goes out whole

	mu       sync.Mutex
	commands map[uint32]*command // those whose Exit has not come
	next     uint32
}

// command is one that was started in a guest.
type command struct {
	id             uint32
	stdout, stderr io.Writer // written by the link's one reader
	started        chan struct{}
	pid            int // valid after started
	more           chan struct{}
	done           chan struct{}
	status         wire.Status // valid after done
	err            error       // valid after done: the guest went away
}

func newLink(conn net.Conn) *link {
	l := &link{conn: conn, hello: make(chan struct{}), gone: make(chan struct{}), commands: map[uint32]*command{}}
	go l.read()
	return l
}

// read hands out what comes until the stream ends.
func (l *link) read() {
	r := bufio.NewReaderSize(l.conn, 2*wire.MaxPayload)
	for {
		f, err := wire.Read(r)
		if err == nil && f.Kind == wire.Hello {
			close(l.hello) // a second one panics: the agent says it once
			continue
		}
		if err != nil {
			break
		}
		l.mu.Lock()
		c := l.commands[f.ID]
		if f.Kind == wire.Exit {
			delete(l.commands, f.ID)
		}
		l.mu.Unlock()
		if c != nil {
			c.take(f)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.commands {
		c.err = errGone
		close(c.done)
	}
	l.commands = nil
	close(l.gone)
}

// take takes a frame of the command's.
func (c *command) take(f wire.Frame) {
	switch f.Kind {
	case wire.Started:
		c.pid, _ = strconv.Atoi(string(f.Payload))
		close(c.started)
	case wire.More:
		select {
		case c.more <- struct{}{}:
		default:
		}
	case wire.Out:
		_, _ = c.stdout.Write(f.Payload)
	case wire.Err:
		_, _ = c.stderr.Write(f.Payload)
	case wire.Exit:
		c.err = json.Unmarshal(f.Payload, &c.status)
		if c.err == nil && c.status.Code < 0 {
			c.err = errors.New(c.status.Why)
		}
		close(c.done)
	}
}

func (l *link) send(f wire.Frame) error {
	l.sending.Lock()
	defer l.sending.Unlock()
	if err := wire.Write(l.conn, f); err != nil {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	return nil
}

// start starts a command and waits until it runs, or does not.
func (l *link) start(want wire.Command, stdout, stderr io.Writer) (*command, error) {
	payload, err := json.Marshal(want)
	if err != nil {
		return nil, err
	}
	c := &command{stdout: stdout, stderr: stderr, started: make(chan struct{}), more: make(chan struct{}, 1), done: make(chan struct{})}
	l.mu.Lock()
	if l.commands == nil {
		l.mu.Unlock()
		return nil, errGone
	}
	l.next++
	c.id = l.next
	l.commands[c.id] = c
	l.mu.Unlock()
	if err := l.send(wire.Frame{ID: c.id, Kind: wire.Start, Payload: payload}); err != nil {
		return nil, err
	}
	select {
	case <-c.started:
		return c, nil
	case <-c.done:
		select { // it may have been quick
		case <-c.started:
			return c, nil
		default:
			return nil, c.err
		}
	}
}

// feed sends a command its standard input and the end of it.
func (l *link) feed(c *command, in io.Reader) error {
	buf := make([]byte, wire.MaxPayload)
	for {
		n, err := io.ReadFull(in, buf)
		if n > 0 {
			if err := l.send(wire.Frame{ID: c.id, Kind: wire.In, Payload: buf[:n]}); err != nil {
				return err
			}
			select {
			case <-c.more:
			case <-c.done:
				return nil
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return l.send(wire.Frame{ID: c.id, Kind: wire.In})
		}
		if err != nil {
			return err
		}
	}
}

// signal sends a command a signal.
func (l *link) signal(c *command, number int) error {
	return l.send(wire.Frame{ID: c.id, Kind: wire.Signal, Payload: []byte{byte(number)}})
}

// wait waits for a command's end. A command that outlives ctx is killed.
func (l *link) wait(ctx context.Context, c *command) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
	}
	const sigkill = 9
	_ = l.signal(c, sigkill)
	select {
	case <-c.done:
	case <-time.After(10 * time.Second): // the guest hangs
	}
	return ctx.Err()
}
