package main

import (
	"context"
	"log/slog"
	"reflect"
	"sync"
	"time"

	"subnetd/subnetd/mesh"
	"subnetd/subnetd/state"
)

// saveEvery bounds how often the netmap is written: flash wears out.
const saveEvery = time.Minute

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

// Run writes what put left, at most once a minute, and once more at the end.
func (c *netmapCache) Run(ctx context.Context) error {
	var written savedNetmap
	timer := time.NewTimer(0)
	<-timer.C
	waiting := false
	for {
		select {
		case <-ctx.Done():
			c.write(&written)
			return nil
		case <-c.wake:
			if waiting {
				continue
			}
		case <-timer.C:
			waiting = false
		}
		if c.write(&written) {
			waiting = true
			timer.Reset(saveEvery)
		}
	}
}

func (c *netmapCache) write(last *savedNetmap) bool {
	c.mu.Lock()
	next := c.next
	c.mu.Unlock()
	if next.Control == "" || reflect.DeepEqual(*last, next) {
		return false
	}
	if err := c.dir.Save("netmap", next); err != nil {
		c.log.Warn("the netmap was not kept", "err", err)
		c.trouble("The netmap cannot be kept on disk: " + err.Error())
		return true
	}
	c.trouble("")
	*last = next
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
