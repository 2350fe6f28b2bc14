// Package task runs everything long-lived: tasks start together, and the end of
// one is the end of all.
package task

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"

	"golang.org/x/sync/errgroup"
)

// Task is one long-lived part of the daemon. Run works until ctx ends, and has
// released everything it holds when it returns. String is its name in the log.
type Task interface {
	Run(ctx context.Context) error
	String() string
}

// Serve runs the tasks and returns when all have ended. The first error cancels
// the rest and is returned with the name of its task. The end of ctx is no
// error. A task that returns nil while ctx is alive is an error: it gave up.
func Serve(ctx context.Context, log *slog.Logger, tasks ...Task) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, t := range tasks {
		group.Go(func() error { return one(ctx, log, t) })
	}
	return group.Wait()
}

// one runs a single task and sorts how it ended.
func one(ctx context.Context, log *slog.Logger, t Task) error {
	err := guarded(ctx, log, t)
	switch {
	case ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)):
		return nil
	case err == nil:
		return fmt.Errorf("%s: ended before it was asked to", t)
	default:
		return fmt.Errorf("%s: %w", t, err)
	}
}

// guarded turns a panic of a task into an error, so that the others may end
// in order.
func guarded(ctx context.Context, log *slog.Logger, t Task) (err error) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("task panicked", "task", t.String(), "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return t.Run(ctx)
}

type funcTask struct {
	name string
	run  func(context.Context) error
}

func (f funcTask) Run(ctx context.Context) error { return f.run(ctx) }
func (f funcTask) String() string                { return f.name }

// Func makes a task of a function.
func Func(name string, run func(context.Context) error) Task {
	return funcTask{name: name, run: run}
}
