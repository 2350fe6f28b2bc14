package control

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"subnetd/subnetd/status"
)

const (
	firstPause   = 500 * time.Millisecond
	longestPause = 30 * time.Second
	refusedPause = 5 * time.Minute  // after the coordinator's no
	changedPause = 10 * time.Minute // after a changed coordinator key
)

// backoff doubles up to longestPause. The zero value is ready.
type backoff struct{ d time.Duration }

func (b *backoff) reset() { b.d = 0 }

// next returns between half and the whole of the next step.
func (b *backoff) next() time.Duration {
	b.d = min(max(2*b.d, firstPause), longestPause)
	return jitter(b.d)
}

func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// judge is the one place that sorts errors: it tells the owner, and returns how
// long to wait before the next try.
func (c *Client) judge(err error, b *backoff) time.Duration {
	var refused *refusedError
	var changed *keyChangedError
	var status *statusError
	switch {
	case err == nil, errors.Is(err, errKicked):
		return 0
	case errors.Is(err, errRekey):
		return b.next()
	case errors.As(err, &refused):
		c.fail(err, true)
		return jitter(2 * refusedPause)
	case errors.As(err, &changed):
		c.fail(err, false)
		return jitter(2 * changedPause)
	case errors.As(err, &status) && status.after > 0:
		c.fail(err, false)
		return status.after + jitter(time.Second)
	}
	c.fail(err, false)
	return b.next()
}

// fail tells a trouble. What runs goes on with the last netmap.
func (c *Client) fail(err error, needsLogin bool) {
	text := plain(err, c.web.base.Host)
	if text != c.state.Error {
		c.cfg.Log.Warn("coordinator", "trouble", text, "err", err)
	}
	c.setState(func(s *State) {
		s.Error = text
		if needsLogin {
			s.Phase, s.LoginURL = status.PhaseNeedsLogin, ""
		}
	})
}

// pause waits, or less if a command comes.
func (c *Client) pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.kick:
		signal(c.kick)
	case <-ctx.Done():
	}
}

func equalHosts(a, b Host) bool {
	return a.Hostname == b.Hostname && slices.Equal(a.Routes, b.Routes) && slices.Equal(a.Endpoints, b.Endpoints) &&
		a.HomeRelay == b.HomeRelay && a.UDP == b.UDP && a.V6 == b.V6 && a.MappingVaries == b.MappingVaries &&
		maps.Equal(a.Latency, b.Latency) && a.PeerAPI4 == b.PeerAPI4 && a.PeerAPI6 == b.PeerAPI6 &&
		slices.Equal(a.Devices, b.Devices) && (a.Devices == nil) == (b.Devices == nil)
}

func cloneHost(h Host) Host {
	h.Routes, h.Endpoints, h.Latency, h.Devices = slices.Clone(h.Routes), slices.Clone(h.Endpoints), maps.Clone(h.Latency), slices.Clone(h.Devices)
	return h
}
