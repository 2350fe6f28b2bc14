package web

import (
	"context"
	"sync"
	"time"

	"subnetd/subnetd/status"
)

const (
	trafficStep = time.Minute
	mostPoints  = 60
)

// traffic is the bytes of each minute of the last hour, all tunnels together.
type traffic struct {
	mu     sync.Mutex // guards all below
	until  time.Time
	points []status.TrafficPoint
	seen   map[string]status.TrafficPoint // counters of each interface, by name
}

func (t *traffic) reset(now time.Time) { t.until = now }

// run looks once a minute until ctx ends.
func (t *traffic) run(ctx context.Context, look func() map[string]status.TrafficPoint, now func() time.Time, changed func()) {
	tick := time.NewTicker(trafficStep)
	defer tick.Stop()
	t.add(now(), look())
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			t.add(now(), look())
			changed()
		}
	}
}

// add takes the counters of a moment. A counter that is smaller than it was began anew.
// What an interface had when it is first seen may be of any time before, and does not
// count; the first look makes no point.
func (t *traffic) add(now time.Time, seen map[string]status.TrafficPoint) {
	t.mu.Lock()
	defer t.mu.Unlock()
	first := t.seen == nil
	var sum status.TrafficPoint
	for name, is := range seen {
		if was, known := t.seen[name]; known {
			sum.Rx, sum.Tx = sum.Rx+grown(was.Rx, is.Rx), sum.Tx+grown(was.Tx, is.Tx)
		}
	}
	t.seen, t.until = seen, now
	if first {
		return
	}
	if t.points = append(t.points, sum); len(t.points) > mostPoints {
		t.points = append([]status.TrafficPoint(nil), t.points[1:]...)
	}
}

func grown(was, is uint64) uint64 {
	if is < was {
		return is
	}
	return is - was
}

func (t *traffic) now() status.Traffic {
	t.mu.Lock()
	defer t.mu.Unlock()
	return status.Traffic{Seconds: int(trafficStep / time.Second), Until: t.until, Points: append([]status.TrafficPoint{}, t.points...)}
}
