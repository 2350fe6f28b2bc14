package netns_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// flow is one TCP connection over which bytes go steadily, about 10 MB a second, until it is finished. Both ends hash
// what they see.
type flow struct {
	what string
	stop context.CancelFunc
	over sync.WaitGroup

	sent, got  hash.Hash
	sErr, rErr error

	mu      sync.Mutex // guards what follows
	bytes   int
	last    time.Time
	longest time.Duration // between two reads that brought something
}

// startFlow begins a flow between two hosts; to is an address of the receiver.
func startFlow(t testing.TB, sender, receiver *netns.Host, to netip.AddrPort) *flow {
	t.Helper()
	ln, err := receiver.Listen(fmt.Sprintf("[::]:%d", to.Port()))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	out, err := sender.Dial(ctx, "tcp", to.String())
	if err != nil {
		t.Fatalf("flow to %v: %v", to, err)
	}
	in, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	life, stop := context.WithCancel(context.Background())
	f := &flow{what: fmt.Sprintf("flow from %s to %v", sender.Name, to), stop: stop, sent: sha256.New(), got: sha256.New(), last: time.Now()}
	f.over.Go(func() { f.sErr = f.send(life, out) })
	f.over.Go(func() { f.rErr = f.receive(in) })
	t.Cleanup(func() { stop(); out.Close(); in.Close(); f.over.Wait() })
	return f
}

func (f *flow) send(ctx context.Context, c net.Conn) error {
	defer c.Close()
	source := netns.Payload(7, 1<<40)
	block := make([]byte, 50_000)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if _, err := io.ReadFull(source, block); err != nil {
			return err
		}
		_ = c.SetWriteDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.Write(block); err != nil {
			return err
		}
		f.sent.Write(block)
	}
}

func (f *flow) receive(c net.Conn) error {
	defer c.Close()
	block := make([]byte, 64<<10)
	for {
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		n, err := c.Read(block)
		f.got.Write(block[:n])
		f.note(n)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (f *flow) note(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	f.bytes += n
	f.longest = max(f.longest, now.Sub(f.last))
	f.last = now
}

// goesOn waits until bytes arrive that were not there at the call.
func (f *flow) goesOn(t testing.TB) {
	t.Helper()
	count := func() int { f.mu.Lock(); defer f.mu.Unlock(); return f.bytes }
	was := count()
	netns.Eventually(t, 10*time.Second, f.what+" goes on", func() error {
		if count() < was+1_000_000 {
			return fmt.Errorf("%d bytes since", count()-was)
		}
		return nil
	})
}

// finish ends the flow, compares what was sent with what came, and gives the longest pause.
func (f *flow) finish(t testing.TB) time.Duration {
	t.Helper()
	f.stop()
	f.over.Wait()
	if f.sErr != nil || f.rErr != nil {
		t.Errorf("%s was cut: sender %v, receiver %v", f.what, f.sErr, f.rErr)
	}
	sent, got := hex.EncodeToString(f.sent.Sum(nil)), hex.EncodeToString(f.got.Sum(nil))
	if sent != got {
		t.Errorf("%s: sent SHA-256 %s, got %s", f.what, sent, got)
	}
	t.Logf("%s: %s, longest pause %v", f.what, mb(f.bytes), f.longest.Round(time.Millisecond))
	return f.longest
}
