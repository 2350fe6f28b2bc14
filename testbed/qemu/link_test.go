package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"subnetd/testbed/qemu/wire"
)

// fakeAgent answers each frame of the link with what say gives.
func fakeAgent(t *testing.T, say func(f wire.Frame) []wire.Frame) (*link, net.Conn) {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		for {
			f, err := wire.Read(theirs)
			if err != nil {
				return
			}
			for _, answer := range say(f) {
				if wire.Write(theirs, answer) != nil {
					return
				}
			}
		}
	}()
	l := newLink(ours)
	t.Cleanup(func() {
		_ = ours.Close()
		_ = theirs.Close()
		<-l.gone
	})
	return l, theirs
}

func exit(t *testing.T, id uint32, s wire.Status) wire.Frame {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Error(err)
	}
	return wire.Frame{ID: id, Kind: wire.Exit, Payload: b}
}

// TestLinkCommands: two at once, and frames of commands that nobody knows.
func TestLinkCommands(t *testing.T) {
	l, _ := fakeAgent(t, func(f wire.Frame) []wire.Frame {
		switch f.Kind {
		case wire.Start:
			return []wire.Frame{{ID: f.ID, Kind: wire.Started, Payload: []byte("77")}, {ID: 99, Kind: wire.Out}, {ID: f.ID, Kind: wire.Err, Payload: []byte("e")}}
		case wire.In:
			if len(f.Payload) > 0 {
				return []wire.Frame{{ID: f.ID, Kind: wire.Out, Payload: f.Payload}, {ID: f.ID, Kind: wire.More}}
			}
			return []wire.Frame{exit(t, f.ID, wire.Status{Code: int(f.ID)})}
		}
		return nil
	})
	var outs, errs [2]bytes.Buffer
	var cs [2]*command
	for i := range cs {
		c, err := l.start(wire.Command{Args: []string{"x"}}, &outs[i], &errs[i])
		if err != nil || c.pid != 77 {
			t.Fatalf("%+v, %v", c, err)
		}
		cs[i] = c
	}
	want := bytes.Repeat([]byte("0123456789"), wire.MaxPayload/5)
	for i, c := range cs {
		if err := l.feed(c, bytes.NewReader(want)); err != nil {
			t.Fatal(err)
		}
		if err := l.wait(t.Context(), c); err != nil || c.status.Code != int(c.id) {
			t.Errorf("ended with %+v, %v", c.status, err)
		}
		if !bytes.Equal(outs[i].Bytes(), want) || errs[i].String() != "e" {
			t.Errorf("%d bytes came back, and %q", outs[i].Len(), errs[i].String())
		}
	}
}

func TestLinkNotStarted(t *testing.T) {
	l, _ := fakeAgent(t, func(f wire.Frame) []wire.Frame {
		return []wire.Frame{exit(t, f.ID, wire.Status{Code: -1, Why: "too tired"})}
	})
	if _, err := l.start(wire.Command{}, io.Discard, io.Discard); err == nil || err.Error() != "too tired" {
		t.Errorf("got %v", err)
	}
}

// TestLinkGone: when the guest goes, what ran has ended, and nothing starts any more.
func TestLinkGone(t *testing.T) {
	l, theirs := fakeAgent(t, func(f wire.Frame) []wire.Frame {
		return []wire.Frame{{ID: f.ID, Kind: wire.Started, Payload: []byte("1")}}
	})
	c, err := l.start(wire.Command{}, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	if err := l.wait(t.Context(), c); !errors.Is(err, errGone) {
		t.Errorf("what ran ended with %v", err)
	}
	<-l.gone
	if _, err := l.start(wire.Command{}, io.Discard, io.Discard); !errors.Is(err, errGone) {
		t.Errorf("a start ended with %v", err)
	}
}

// TestLinkOverTime: a command over its time is killed.
func TestLinkOverTime(t *testing.T) {
	l, _ := fakeAgent(t, func(f wire.Frame) []wire.Frame {
		if f.Kind == wire.Signal {
			return []wire.Frame{exit(t, f.ID, wire.Status{Code: 128 + int(f.Payload[0])})}
		}
		return []wire.Frame{{ID: f.ID, Kind: wire.Started, Payload: []byte("1")}}
	})
	c, err := l.start(wire.Command{}, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := l.wait(ctx, c); !errors.Is(err, context.DeadlineExceeded) || c.status.Code != 137 {
		t.Errorf("got %v, %+v", err, c.status)
	}
}
