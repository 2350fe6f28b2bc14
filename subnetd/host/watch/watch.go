package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"subnetd/subnetd/host"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	quiet  = 100 * time.Millisecond // a burst is over after so long without news
	latest = time.Second            // but a look is not put off for longer
	pause  = 5 * time.Second        // before another look, after one that failed

	// between two reports that something was touched: whoever hears them looks
	// at the whole machine, and some machines change all the time
	touchPause = time.Second

	routeGroups = unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR |
		unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE | unix.RTMGRP_IPV4_RULE | 1<<(unix.RTNLGRP_IPV6_RULE-1)
	firewallGroups = 1 << (unix.NFNLGRP_NFTABLES - 1)
)

// Watcher reports when the Facts change, and when anybody, we ourselves too,
// touched addresses, routes, rules or the packet filter.
type Watcher struct {
	log      *slog.Logger
	onChange func(host.Facts)
	onTouch  func()
	look     func() (host.Facts, error)
}

// New returns a Watcher. onChange is called by Run's goroutine: first with the
// Facts as they are, then each time they differ from those last reported.
// onTouch is called by it soon after something was touched, once a second
// at most; what was touched is for the hands to find out.
func New(log *slog.Logger, onChange func(host.Facts), onTouch func()) *Watcher {
	return &Watcher{log: log, onChange: onChange, onTouch: onTouch, look: Facts}
}

// Run watches until ctx is done; then it returns nil. It never trusts an event
// to say what changed: every burst of them leads to one look at everything, so
// lost events (ENOBUFS) cost nothing.
func (w *Watcher) Run(ctx context.Context) error {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Groups: routeGroups})
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	conns := []*netlink.Conn{c}
	if c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: firewallGroups}); err == nil {
		conns = append(conns, c)
	} else {
		w.log.Debug("changes of the packet filter are not seen", "err", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := make(chan struct{}, 1)
	events <- struct{}{} // the first look; we are subscribed already
	ended := make(chan error, len(conns))
	for _, c := range conns {
		go func() { ended <- follow(ctx, c, events); cancel() }()
	}
	w.loop(ctx, events)
	for range conns {
		err = errors.Join(err, <-ended)
	}
	return err
}

// follow listens on c until ctx is done, and closes it.
func follow(ctx context.Context, c *netlink.Conn, events chan<- struct{}) error {
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	return errors.Join(listen(ctx, c, events), c.Close())
}

// listen turns netlink messages into events until ctx is done.
func listen(ctx context.Context, c *netlink.Conn, events chan<- struct{}) error {
	for {
		_, err := c.Receive()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("netlink: %w", err)
		}
		select {
		case events <- struct{}{}:
		default: // one is waiting already
		}
	}
}

// loop looks after each burst of events and reports differences.
func (w *Watcher) loop(ctx context.Context, events <-chan struct{}) {
	var last host.Facts
	first := true
	var rest <-chan time.Time // no touch is reported before; nil: one may be
	touched := false
	for {
		if touched && rest == nil {
			w.onTouch()
			touched, rest = false, time.After(touchPause)
		}
		select {
		case <-ctx.Done():
			return
		case <-rest:
			rest = nil
			continue
		case <-events:
		}
		if !first && !settle(ctx, events) {
			return
		}
		now, ok := w.insist(ctx)
		if !ok {
			return
		}
		touched = !first
		if first || !Equal(last, now) {
			first, last = false, now
			w.onChange(now)
		}
	}
}

// insist looks until it has seen; it reports false when ctx is done.
func (w *Watcher) insist(ctx context.Context) (host.Facts, bool) {
	for {
		f, err := w.look()
		if err == nil {
			return f, true
		}
		w.log.Warn("cannot read the machine's interfaces", "err", err)
		select {
		case <-ctx.Done():
			return host.Facts{}, false
		case <-time.After(pause):
		}
	}
}

// settle waits for the end of a burst; it reports false when ctx is done.
func settle(ctx context.Context, events <-chan struct{}) bool {
	limit := time.After(latest)
	for {
		select {
		case <-ctx.Done():
			return false
		case <-limit:
			return true
		case <-time.After(quiet):
			return true
		case <-events:
		}
	}
}

// Equal reports whether two looks saw the same.
func Equal(a, b host.Facts) bool {
	return a.Hostname == b.Hostname && slices.Equal(a.Defaults, b.Defaults) &&
		slices.EqualFunc(a.Interfaces, b.Interfaces, func(x, y host.Interface) bool {
			return x.Index == y.Index && x.Name == y.Name && x.Bridge == y.Bridge && x.Up == y.Up && slices.Equal(x.Addrs, y.Addrs)
		})
}
