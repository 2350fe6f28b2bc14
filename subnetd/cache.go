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

	// flash wears out: after saveBurst writes one each saveEvery; of news that decide
	// who gets in, after decideBurst one each decideEvery
	saveEvery   = time.Minute
	saveBurst   = 10
	decideEvery = 20 * time.Second
	decideBurst = 30
)

// savedNetmap is the netmap on disk, with the coordinator it came from.
type savedNetmap struct {
	Control string       `json:"control"`
	Netmap  *mesh.Netmap `json:"netmap"`
}

// netmapCache keeps the last netmap on disk. What changes all the time and is
// learned anew anyway (who is online) is not worth a write. What the kernel's rules
// are made of does not wait behind what changes often: a daemon that starts with an
// older netmap would put an older policy in force.
type netmapCache struct {
	dir  *state.Dir
	log  *slog.Logger
	wake chan struct{}
	// trouble is told why the netmap could not be kept, "" when it could.
	trouble func(string)

	written savedNetmap // of load, then of Run: what the disk has

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
	c.written = s
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
	often := rate.NewLimiter(rate.Every(saveEvery), saveBurst)
	decisions := rate.NewLimiter(rate.Every(decideEvery), decideBurst)
	var due <-chan time.Time // the next write
	urgent := false          // that is for news that decide
	for {
		select {
		case <-ctx.Done():
			_ = c.write()
			return nil
		case <-c.wake:
			switch next := c.pending(); {
			case !urgent && c.decides(next):
				due, urgent = time.After(max(c.patience(next), decisions.Reserve().Delay())), true
			case due == nil && !reflect.DeepEqual(c.written, next):
				due = time.After(max(saveAfter, often.Reserve().Delay()))
			}
			continue
		case <-due:
		}
		due, urgent = nil, false
		if !c.write() {
			due = time.After(saveEvery)
		}
	}
}

// decides reports whether the router has other rules, peers or routes with next than
// with what is on disk.
func (c *netmapCache) decides(next savedNetmap) bool {
	return c.written.Control != next.Control || !reflect.DeepEqual(deciding(c.written.Netmap), deciding(next.Netmap))
}

// patience is for how long more news may be awaited: for none, if somebody's rights
// are others.
func (c *netmapCache) patience(next savedNetmap) time.Duration {
	if c.written.Netmap == nil || next.Netmap == nil || !reflect.DeepEqual(c.written.Netmap.Filter, next.Netmap.Filter) {
		return 0
	}
	return saveAfter
}

func (c *netmapCache) pending() savedNetmap {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.next
}

// write reports whether the disk holds what it shall.
func (c *netmapCache) write() bool {
	next := c.pending()
	if next.Control == "" || reflect.DeepEqual(c.written, next) {
		return true
	}
	if err := c.dir.Save("netmap", next); err != nil {
		c.log.Warn("the netmap was not kept", "err", err)
		c.trouble("The netmap cannot be kept on disk: " + err.Error())
		return false
	}
	c.trouble("")
	c.written = next
	return true
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

// deciding is the netmap without what says only how to find somebody, or of what kind
// he is.
func deciding(nm *mesh.Netmap) *mesh.Netmap {
	if nm == nil {
		return nil
	}
	out := *nm
	out.Relays, out.Users, out.People, out.Names = nil, nil, nil, mesh.Names{}
	out.Self = bare(nm.Self)
	out.Peers = make([]mesh.Node, len(nm.Peers))
	for i := range nm.Peers {
		out.Peers[i] = bare(nm.Peers[i])
	}
	return &out
}

func bare(n mesh.Node) mesh.Node {
	n.Endpoints, n.HomeRelay, n.Cap, n.OS = nil, 0, 0, ""
	return n
}
