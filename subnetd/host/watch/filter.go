package watch

import (
	"context"
	"log/slog"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Filter hears when anybody, we ourselves too, changed the packet filter. Unlike with
// the rest of the machine, who owns tables there can tell whose change it was, and what
// is lost must not wait for the end of a burst.
type Filter struct {
	log     *slog.Logger
	restore func(context.Context) (others bool)
	onTouch func()
}

// NewFilter returns a Filter. After each change restore is called by Run's goroutine, at
// once; it says whether it was of others. Then onTouch is called, when they are through
// with what may take several steps. In the long run that happens once a second at most.
func NewFilter(log *slog.Logger, restore func(context.Context) (others bool), onTouch func()) *Filter {
	return &Filter{log: log, restore: restore, onTouch: onTouch}
}

func (f *Filter) String() string { return "packet filter" }

// Run listens until ctx is done; then it returns nil. A kernel that does not tell is
// left alone.
func (f *Filter) Run(ctx context.Context) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	if err != nil {
		f.log.Debug("changes of the packet filter are not seen", "err", err)
		<-ctx.Done()
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() { ended <- follow(ctx, c, events, anything); cancel() }()
	f.loop(ctx, events)
	return <-ended
}

func (f *Filter) loop(ctx context.Context, events <-chan struct{}) {
	var spent budget
	for {
		select {
		case <-ctx.Done():
			return
		case <-events:
		}
		if !f.restore(ctx) {
			continue
		}
		if !sleep(ctx, quiet) {
			return
		}
		f.onTouch()
		if !sleep(ctx, spent.spend(time.Now())) {
			return
		}
	}
}

// sleep reports whether it slept to the end.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
