package task

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
)

var errBroken = errors.New("broken")

func untilDone(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

func TestServe(t *testing.T) {
	tests := []struct {
		name   string
		run    func(context.Context) error
		cancel bool
		want   string // "" : no error
	}{
		{name: "cancel is no error", run: untilDone, cancel: true},
		{name: "nil after cancel is no error", run: func(ctx context.Context) error { <-ctx.Done(); return nil }, cancel: true},
		{name: "first error cancels the rest", run: func(context.Context) error { return errBroken }, want: "it: broken"},
		{name: "nil too early", run: func(context.Context) error { return nil }, want: "it: ended before it was asked to"},
		{name: "error while stopping is told", run: func(ctx context.Context) error { <-ctx.Done(); return errBroken }, cancel: true, want: "it: broken"},
		{name: "cancelled too early", run: func(context.Context) error { return context.Canceled }, want: "it: context canceled"},
		{name: "panic", run: func(context.Context) error { panic("ouch") }, want: "it: panic: ouch"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// A bubble fails when a goroutine outlives it: the leak check.
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if tt.cancel {
					go cancel()
				}
				other := Func("other", untilDone)
				err := Serve(ctx, slog.New(slog.DiscardHandler), Func("it", tt.run), other)
				got := ""
				if err != nil {
					got = err.Error()
				}
				if got != tt.want {
					t.Fatalf("got %q, want %q", got, tt.want)
				}
			})
		})
	}
}

func TestServeKeepsChain(t *testing.T) {
	err := Serve(t.Context(), slog.New(slog.DiscardHandler), Func("it", func(context.Context) error { return errBroken }))
	if !errors.Is(err, errBroken) {
		t.Fatalf("chain is cut: %v", err)
	}
}

func TestNoLeak(t *testing.T) {
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 {
		log := slog.New(slog.DiscardHandler)
		if err := Serve(ctx, log, Func("a", untilDone), Func("b", untilDone)); err != nil {
			t.Fatal(err)
		}
	}
	if after := runtime.NumGoroutine(); after > before+2 { // the runtime's signal loop
		buf := make([]byte, 1<<16)
		t.Fatalf("%d goroutines before, %d after:\n%s", before, after, strings.TrimSpace(string(buf[:runtime.Stack(buf, true)])))
	}
}
