package watch

import (
	"context"
	"log/slog"
	"os/exec"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// What is lost is restored at once, whoever it was; others are reported when they may be through with it, in the long run
// once a second, and never forgotten.
func TestFilter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var restores, touches atomic.Int32
		var others atomic.Bool
		f := NewFilter(slog.New(slog.DiscardHandler), func(context.Context) bool { restores.Add(1); return others.Load() }, func() { touches.Add(1) })
		events := make(chan struct{}, 1)
		go f.loop(ctx, events)
		check := func(wantRestores, wantTouches int32) {
			t.Helper()
			synctest.Wait()
			if r, n := restores.Load(), touches.Load(); r != wantRestores || n != wantTouches {
				t.Errorf("%d restores and %d touches, want %d and %d", r, n, wantRestores, wantTouches)
			}
		}
		check(0, 0)
		events <- struct{}{}
		check(1, 0)
		time.Sleep(time.Second)
		check(1, 0) // it was us
		others.Store(true)
		events <- struct{}{}
		check(2, 0) // at once
		events <- struct{}{}
		time.Sleep(quiet)
		check(3, 1) // that is not forgotten
		time.Sleep(quiet)
		check(3, 2)
		time.Sleep(touchBurst * touchPause)
		before := touches.Load()
		for begin := time.Now(); time.Since(begin) < 100*touchPause; time.Sleep(quiet / 2) {
			signal(events)
		}
		if n := touches.Load() - before; n < 90 || n > 100+touchBurst {
			t.Errorf("in a fight of 100 s %d touches were reported", n)
		}
		cancel()
		synctest.Wait()
	})
}

// A kernel's word of a change is heard.
func TestRunFilter(t *testing.T) {
	build(t)
	t.Cleanup(func() { _ = exec.Command("nft", "delete", "table", "inet", "stranger").Run() })
	ctx, cancel := context.WithCancel(t.Context())
	touched := make(chan struct{}, 16)
	ended := make(chan error, 1)
	f := NewFilter(slog.New(slog.DiscardHandler), func(context.Context) bool { return true }, func() { touched <- struct{}{} })
	go func() { ended <- f.Run(ctx) }()
	for done := false; !done; { // until it listens
		run(t, "nft add table inet stranger")
		run(t, "nft delete table inet stranger")
		select {
		case <-touched:
			done = true
		case <-time.After(2 * quiet):
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
