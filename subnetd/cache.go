package main

import (
	"context"
	"log/slog"
	"reflect"
	"sync"
	"time"

	"subnetd/subnetd/mesh"
	"subnetd/subnetd/state"

	"golang.org/x/time/rate"
)

const (
	saveAfter = 200 * time.Millisecond // news come in bursts; a crash loses no more than that

	// flash wears out: after saveBurst writes one each saveEvery
	saveEvery = time.Minute
	saveBurst = 10
)

// savedNetmap is the netmap on disk, with the coordinator it came from.
type savedNetmap struct {
	Control string       `json:"control"`
	Netmap  *mesh.Netmap `json:"netmap"`
}

// netmapCache keeps the last netmap on disk. What changes all the time and is
// learned anew anyway (who is online) is not worth a write.
type netmapCache struct {
	dir  *state.Dir
	log  *slog.Logger
	wake chan struct{}
	// trouble is told why the netmap could not be kept, "" when it could.
	trouble func(string)

	mu   sync.Mutex // guards next
	next savedNetmap
}

func newNetmapCache(dir *state.Dir, log *slog.Logger, trouble func(string)) *netmapCache {
	return &netmapCache{dir: dir, log: log, wake: make(chan struct{}, 1), trouble: trouble}
}

func (c *netmapCache) String() string { return "netmap cache" }

// load gives the cached netmap of that coordinator, or nil.
func (c *netmapCache) load(control string) *mesh.Netmap {
	var s savedNetmap
	if _, err := c.dir.Load("netmap", &s); err != nil {
		c.log.Warn("the cached netmap is not used", "err", err)
		return nil
	}
	if s.Control != control {
		return nil
	}
	return s.Netmap
}

// put says what shall be on disk.
func (c *netmapCache) put(control string, nm *mesh.Netmap) {
	c.mu.Lock()
	c.next = savedNetmap{Control: control, Netmap: lasting(nm)}
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run writes soon what put left, but spares the flash, and once more at the end.
func (c *netmapCache) Run(ctx context.Context) error {
	budget := rate.NewLimiter(rate.Every(saveEvery), saveBurst)
	var retry <-chan time.Time
	var written savedNetmap
	for {
		select {
		case <-ctx.Done():
			_ = c.write(&written)
			return nil
		case <-c.wake:
		case <-retry:
		}
		retry = nil
		if pause(ctx, saveAfter) && pause(ctx, c.due(&written, budget)) && !c.write(&written) {
			retry = time.After(saveEvery)
		}
	}
}

// due is how long the flash shall still be spared.
func (c *netmapCache) due(last *savedNetmap, budget *rate.Limiter) time.Duration {
	if reflect.DeepEqual(*last, c.pending()) {
		return 0
	}
	return budget.Reserve().Delay()
}

func (c *netmapCache) pending() savedNetmap {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.next
}

// write reports whether the disk holds what it shall.
func (c *netmapCache) write(last *savedNetmap) bool {
	next := c.pending()
	if next.Control == "" || reflect.DeepEqual(*last, next) {
		return true
	}
	if err := c.dir.Save("netmap", next); err != nil {
		c.log.Warn("the netmap was not kept", "err", err)
		c.trouble("The netmap cannot be kept on disk: " + err.Error())
		return false
	}
	c.trouble("")
	*last = next
	return true
}

// pause reports whether so much time passed before ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// lasting is the netmap without what passes.
func lasting(nm *mesh.Netmap) *mesh.Netmap {
	if nm == nil {
		return nil
	}
	out := *nm
	out.ClockSkew, out.Health = 0, nil
	out.Self.Online, out.Self.LastSeen = nil, time.Time{}
	out.Peers = make([]mesh.Node, len(nm.Peers))
	for i, p := range nm.Peers {
		p.Online, p.LastSeen = nil, time.Time{}
		out.Peers[i] = p
	}
	return &out
}
