package coord

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/time/rate"
	"tailscale.com/types/key"
)

// watchTime does what falls due without anybody asking: nodes go offline, keys
// expire, ephemeral nodes are removed.
func (c *Coordinator) watchTime(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-c.news:
		}
		now := c.cfg.Now()
		due, next := c.snap.Load().due(now)
		if due {
			next = now
			if err := errors.Join(c.update(ctx, (*draft).settle), c.update(ctx, (*draft).clear)); err != nil && ctx.Err() == nil {
				c.cfg.Log.Warn("what fell due is put off", "err", err)
				next = now.Add(offlineAfter)
			}
		}
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(max(min(next.Sub(now), time.Minute), 10*time.Millisecond)) // a clock that is set right must not wait for the wrong one
		}
	}
}

// due says whether anything of a snapshot is over, else when it will be.
func (s *snapshot) due(now time.Time) (due bool, next time.Time) {
	at := func(t time.Time) {
		if !t.After(now) {
			due = true
		} else if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for _, n := range s.nodes {
		if !n.left.IsZero() {
			if n.Online {
				at(n.left.Add(offlineAfter))
			}
			if n.Ephemeral {
				at(n.left.Add(ephemeralAfter))
			}
		}
		if !n.Expiry.IsZero() && !n.shown.node.Expired {
			at(n.Expiry)
		}
	}
	return due, next
}

// settle does what is due and needs no disk.
func (d *draft) settle() error {
	for id, n := range maps.Clone(d.nodes) {
		switch {
		case !n.left.IsZero() && n.Online && d.now.Sub(n.left) >= offlineAfter:
			d.edit(id).Online = false
		case n.expired(d.now) && n.shown != nil && !n.shown.node.Expired:
			d.edit(id) // it is shown as what it is
		}
	}
	return nil
}

// clear removes the ephemeral nodes that are due.
func (d *draft) clear() error {
	for id, n := range maps.Clone(d.nodes) {
		if !n.left.IsZero() && n.Ephemeral && d.now.Sub(n.left) >= ephemeralAfter {
			d.remove(id)
		}
	}
	return nil
}

const (
	hintsAfter = 500 * time.Millisecond // news come in bursts
	// flash wears out: after hintsBurst writes one each hintsEvery. A start that
	// lacks the newest hints heals in seconds.
	hintsEvery = 10 * time.Minute
	hintsBurst = 20
)

// keepHints keeps where the nodes are: soon when one of them came with another
// disco key or relay, which its peers need to go on reaching it while we are
// restarted; everything else with that, or at the end.
func (c *Coordinator) keepHints(ctx context.Context) error {
	kept := c.snap.Load().hints()
	budget := rate.NewLimiter(rate.Every(hintsEvery), hintsBurst)
	for {
		select {
		case <-ctx.Done():
			if hints := c.snap.Load().hints(); !maps.EqualFunc(hints, kept, sameHint) {
				_ = c.cfg.Store.Save(hintsFile, hints) // a full disk was told already
			}
			return nil
		case <-c.moves:
		}
		if !pause(ctx, hintsAfter) || maps.EqualFunc(c.snap.Load().hints(), kept, sameReach) || !pause(ctx, budget.Reserve().Delay()) {
			continue
		}
		hints := c.snap.Load().hints()
		if err := c.cfg.Store.Save(hintsFile, hints); err != nil {
			c.cfg.Log.Debug("where the members are is not kept", "err", err)
			continue
		}
		kept = hints
	}
}

// hint is what helps after a restart of ours: the peers of a node that is not yet
// back go on using it, and as the router it was.
type hint struct {
	live
	Serves []netip.Prefix `json:"serves,omitempty"` // it is the one that serves them
}

func (s *snapshot) hints() map[key.NodePublic]hint {
	out := make(map[key.NodePublic]hint, len(s.nodes))
	for _, n := range s.nodes {
		out[n.Key] = hint{live: n.live, Serves: n.shown.node.PrimaryRoutes}
	}
	return out
}

// sameReach compares what a restart of ours must not make the peers forget.
func sameReach(a, b hint) bool {
	return a.Disco == b.Disco && a.Home == b.Home && slices.Equal(a.Serves, b.Serves)
}

func sameHint(a, b hint) bool {
	return sameReach(a, b) && sameLive(&a.live, &b.live) && a.Online == b.Online
}
