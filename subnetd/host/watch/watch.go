package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"subnetd/subnetd/host"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	quiet  = 100 * time.Millisecond // a burst is over after so long without news
	latest = time.Second            // but a look is not put off for longer
	pause  = 5 * time.Second        // before another look, after one that failed

	// Whoever hears that something was touched looks at the whole machine, and some
	// machines change all the time: in the long run one report in so long, and after
	// a quiet time so many at once, of which our own repair is the cause of one.
	touchPause = time.Second
	touchBurst = 3

	routeGroups = unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR |
		unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE | unix.RTMGRP_IPV4_RULE | 1<<(unix.RTNLGRP_IPV6_RULE-1)

	// what the kernel tells of a neighbour is mostly that it is still there; so many
	// are remembered to know that
	maxKnown = 4096
)

// Watcher reports when the Facts change, and when anybody, we ourselves too,
// touched addresses, routes or rules.
type Watcher struct {
	log      *slog.Logger
	onChange func(host.Facts)
	onTouch  func()
	look     func(macs []string) (host.Facts, error)

	mu   sync.Mutex // guards macs
	macs []string
	asks chan struct{} // one slot: macs changed
}

// New returns a Watcher. onChange is called by Run's goroutine: first with the
// Facts as they are, then each time they differ from those last reported.
// onTouch is called by it soon after something was touched, in the long run once
// a second at most; what was touched is for the hands to find out.
func New(log *slog.Logger, onChange func(host.Facts), onTouch func()) *Watcher {
	return &Watcher{log: log, onChange: onChange, onTouch: onTouch, look: Facts, asks: make(chan struct{}, 1)}
}

// Follow says whose addresses shall be among the Facts from now on. It may be called
// at any time.
func (w *Watcher) Follow(macs []string) {
	w.mu.Lock()
	same := slices.Equal(w.macs, macs)
	w.macs = slices.Clone(macs)
	w.mu.Unlock()
	if same {
		return
	}
	select {
	case w.asks <- struct{}{}:
	default:
	}
}

func (w *Watcher) followed() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.macs
}

// Run watches until ctx is done; then it returns nil. It never trusts an event
// to say what changed: every burst of them leads to one look at everything, so
// lost events (ENOBUFS) cost nothing.
func (w *Watcher) Run(ctx context.Context) error {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Groups: routeGroups})
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := make(chan struct{}, 1)
	events <- struct{}{} // the first look; we are subscribed already
	moves := make(chan struct{}, 1)
	ended := make(chan error, 2)
	go func() { ended <- follow(ctx, c, events, anything); cancel() }()
	go func() { ended <- w.followNeighbours(ctx, moves); cancel() }()
	w.loop(ctx, events, moves)
	return errors.Join(<-ended, <-ended)
}

func anything([]netlink.Message) bool { return true }

// followNeighbours listens to what becomes of neighbours, for as long as somebody's
// addresses are asked for: a busy LAN changes something about them all the time.
func (w *Watcher) followNeighbours(ctx context.Context, moves chan<- struct{}) error {
	for {
		if len(w.followed()) == 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-w.asks:
				continue
			}
		}
		c, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Groups: unix.RTMGRP_NEIGH})
		if err != nil {
			return fmt.Errorf("netlink: %w", err)
		}
		signal(moves)
		known := knownNeighbours{}
		sub, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- follow(sub, c, moves, known.moved) }()
		select {
		case <-ctx.Done():
		case <-w.asks:
		case err = <-ended:
			ended <- err
		}
		stop()
		if err := <-ended; err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// knownNeighbours are those of which was told, to see whether it is news.
type knownNeighbours map[string]string // link and address -> MAC

// moved reports whether one is somewhere else than was told last.
func (k knownNeighbours) moved(msgs []netlink.Message) (news bool) {
	for _, m := range msgs {
		n, err := parseNeighbour(m.Data)
		if err != nil || !n.addr.IsValid() {
			continue
		}
		if m.Header.Type == unix.RTM_DELNEIGH {
			n.mac = ""
		}
		id := fmt.Sprintf("%d %s", n.link, n.addr)
		was, told := k[id]
		if told && was == n.mac || !told && n.mac == "" {
			continue
		}
		if news = true; n.mac == "" {
			delete(k, id)
			continue
		}
		if len(k) >= maxKnown {
			clear(k)
		}
		k[id] = n.mac
	}
	return news
}

// follow listens on c until ctx is done, and closes it.
func follow(ctx context.Context, c *netlink.Conn, events chan<- struct{}, news func([]netlink.Message) bool) error {
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	return errors.Join(listen(ctx, c, events, news), c.Close())
}

// listen turns netlink messages that are news into events until ctx is done.
func listen(ctx context.Context, c *netlink.Conn, events chan<- struct{}, news func([]netlink.Message) bool) error {
	for {
		msgs, err := c.Receive()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("netlink: %w", err)
		}
		if err != nil || news(msgs) {
			signal(events)
		}
	}
}

// signal says it unless that is waiting to be heard already.
func signal(slot chan<- struct{}) {
	select {
	case slot <- struct{}{}:
	default:
	}
}

// loop looks after each burst of events and reports differences. moves are events
// that say of neighbours only: nobody touched anything.
func (w *Watcher) loop(ctx context.Context, events, moves <-chan struct{}) {
	var last host.Facts
	first := true
	var rest <-chan time.Time // no touch is reported before; nil: one may be
	var spent budget
	touched := false
	for {
		if touched && rest == nil {
			w.onTouch()
			touched = false
			if wait := spent.spend(time.Now()); wait > 0 {
				rest = time.After(wait)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-rest:
			rest = nil
			continue
		case <-events:
			touched = !first
		case <-moves:
		}
		if !first {
			more, ok := settle(ctx, events, moves)
			if !ok {
				return
			}
			touched = touched || more
		}
		now, ok := w.insist(ctx)
		if !ok {
			return
		}
		if first || !Equal(last, now) {
			first, last = false, now
			w.onChange(now)
		}
	}
}

// budget is how often something may be told of: in the long run once in touchPause, and
// after a quiet time touchBurst times at once.
type budget struct {
	full time.Time // when a whole burst may be told again
}

// spend says how long to wait before it is told again.
func (b *budget) spend(now time.Time) time.Duration {
	if b.full.Before(now) {
		b.full = now
	}
	b.full = b.full.Add(touchPause)
	return b.full.Sub(now) - (touchBurst-1)*touchPause
}

// insist looks until it has seen; it reports false when ctx is done.
func (w *Watcher) insist(ctx context.Context) (host.Facts, bool) {
	for {
		f, err := w.look(w.followed())
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

// settle waits for the end of a burst, and says whether there were more events. It
// reports false when ctx is done.
func settle(ctx context.Context, events, moves <-chan struct{}) (more, ok bool) {
	limit := time.After(latest)
	for {
		select {
		case <-ctx.Done():
			return more, false
		case <-limit:
			return more, true
		case <-time.After(quiet):
			return more, true
		case <-events:
			more = true
		case <-moves:
		}
	}
}

// Equal reports whether two looks saw the same.
func Equal(a, b host.Facts) bool {
	return a.Hostname == b.Hostname && slices.Equal(a.Defaults, b.Defaults) && slices.Equal(a.Neighbours, b.Neighbours) && slices.Equal(a.Rules, b.Rules) &&
		slices.EqualFunc(a.Interfaces, b.Interfaces, func(x, y host.Interface) bool {
			return x.Index == y.Index && x.Name == y.Name && x.Bridge == y.Bridge && x.Up == y.Up && x.Uplink == y.Uplink && slices.Equal(x.Addrs, y.Addrs)
		})
}
