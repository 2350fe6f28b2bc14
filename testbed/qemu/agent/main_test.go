package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"subnetd/testbed/qemu/wire"
)

// machine plays the other end of an agent's stream.
type machine struct {
	t    *testing.T
	conn net.Conn
}

// startAgent starts an agent, which ends with the test, and takes its Hello.
func startAgent(t *testing.T) *machine {
	t.Helper()
	ours, theirs := net.Pipe()
	a := &agent{port: theirs, commands: map[uint32]*command{}}
	ended := make(chan error, 1)
	go func() { ended <- a.serve(theirs) }()
	t.Cleanup(func() {
		_ = ours.Close()
		if err := <-ended; !errors.Is(err, io.EOF) {
			t.Errorf("the agent ended with %v", err)
		}
	})
	m := &machine{t, ours}
	if f := m.next(); f.Kind != wire.Hello {
		t.Fatalf("the agent said %+v first", f)
	}
	return m
}

func (m *machine) next() wire.Frame {
	m.t.Helper()
	f, err := wire.Read(m.conn)
	if err != nil {
		m.t.Fatal(err)
	}
	return f
}

func (m *machine) send(id uint32, kind wire.Kind, payload []byte) {
	m.t.Helper()
	if err := wire.Write(m.conn, wire.Frame{ID: id, Kind: kind, Payload: payload}); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) start(id uint32, c wire.Command) {
	m.t.Helper()
	b, err := json.Marshal(c)
	if err != nil {
		m.t.Fatal(err)
	}
	m.send(id, wire.Start, b)
}

// end reads the frames of a command up to its Exit.
func (m *machine) end(id uint32) (stdout, stderr string, s wire.Status) {
	m.t.Helper()
	for {
		f := m.next()
		if f.ID != id {
			m.t.Fatalf("a frame of another command: %+v", f)
		}
		switch f.Kind {
		case wire.Out:
			stdout += string(f.Payload)
		case wire.Err:
			stderr += string(f.Payload)
		case wire.Exit:
			if err := json.Unmarshal(f.Payload, &s); err != nil {
				m.t.Fatal(err)
			}
			return stdout, stderr, s
		}
	}
}

func TestCommand(t *testing.T) {
	m := startAgent(t)
	m.start(1, wire.Command{Args: []string{"sh", "-c", `pwd; echo "$X" >&2; exit 5`}, Env: []string{"X=y"}, Dir: "/tmp"})
	if out, stderr, s := m.end(1); out != "/tmp\n" || stderr != "y\n" || s != (wire.Status{Code: 5}) {
		t.Errorf("printed %q and %q, ended with %+v", out, stderr, s)
	}
	m.start(1, wire.Command{Args: []string{"no-such-program"}}) // the id is free again
	if _, _, s := m.end(1); s.Code != -1 || !strings.Contains(s.Why, "not found") {
		t.Errorf("a program that is not there: %+v", s)
	}
	for _, bad := range []string{"{", "{}"} {
		m.send(2, wire.Start, []byte(bad))
		if _, _, s := m.end(2); s.Code != -1 || s.Why == "" {
			t.Errorf("%s as a command: %+v", bad, s)
		}
	}
}

// TestInput: what is longer than a frame goes in and comes out again.
func TestInput(t *testing.T) {
	m := startAgent(t)
	m.start(1, wire.Command{Args: []string{"cat"}})
	if f := m.next(); f.Kind != wire.Started {
		t.Fatalf("got %+v", f)
	}
	want := bytes.Repeat([]byte("0123456789"), wire.MaxPayload/5)
	var got []byte
	for rest := want; len(rest) > 0; {
		n := min(len(rest), wire.MaxPayload)
		m.send(1, wire.In, rest[:n])
		rest = rest[n:]
		for f := m.next(); f.Kind != wire.More; f = m.next() {
			if f.Kind == wire.Out {
				got = append(got, f.Payload...)
			}
		}
	}
	m.send(1, wire.In, nil)
	out, _, s := m.end(1)
	if got = append(got, out...); !bytes.Equal(got, want) || s.Code != 0 {
		t.Errorf("%d bytes of %d came back, %+v", len(got), len(want), s)
	}
}

func TestSignal(t *testing.T) {
	m := startAgent(t)
	m.start(1, wire.Command{Args: []string{"sleep", "1000"}})
	f := m.next()
	if pid, err := strconv.Atoi(string(f.Payload)); f.Kind != wire.Started || err != nil || pid <= 1 {
		t.Fatalf("got %+v", f)
	}
	m.send(1, wire.Signal, []byte{byte(syscall.SIGKILL)})
	if _, _, s := m.end(1); s.Code != 128+int(syscall.SIGKILL) {
		t.Errorf("killed: %+v", s)
	}
	m.send(1, wire.Signal, []byte{byte(syscall.SIGKILL)}) // it has ended: nothing happens
	m.send(1, wire.In, []byte("x"))
	m.start(1, wire.Command{Args: []string{"true"}})
	if _, _, s := m.end(1); s.Code != 0 {
		t.Errorf("the next command: %+v", s)
	}
}

// TestManyCommands: no more run at once than is promised, and the one too many is told so.
func TestManyCommands(t *testing.T) {
	m := startAgent(t)
	for id := range uint32(wire.MaxCommands) {
		m.start(id, wire.Command{Args: []string{"cat"}})
		if f := m.next(); f.Kind != wire.Started {
			t.Fatalf("command %d: %+v %s", id, f, f.Payload)
		}
	}
	m.start(wire.MaxCommands, wire.Command{Args: []string{"cat"}})
	if _, _, s := m.end(wire.MaxCommands); s.Code != -1 || !strings.Contains(s.Why, strconv.Itoa(wire.MaxCommands)) {
		t.Errorf("one too many: %+v", s)
	}
	for id := range uint32(wire.MaxCommands) {
		m.send(id, wire.In, nil)
		if _, _, s := m.end(id); s.Code != 0 {
			t.Errorf("command %d: %+v", id, s)
		}
	}
}

// TestLeftBehind: a child that keeps the output open does not keep the command.
func TestLeftBehind(t *testing.T) {
	m := startAgent(t)
	m.start(1, wire.Command{Args: []string{"sh", "-c", "sleep 1000 & echo $!"}})
	out, _, s := m.end(1)
	pid, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil || s.Code != 0 {
		t.Fatalf("printed %q, %+v", out, s)
	}
	if p, err := os.FindProcess(pid); err == nil {
		_ = p.Kill()
	}
}
