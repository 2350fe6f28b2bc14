package underlay

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestPathRest: of a burst of changes the first and the last are told, and in between a
// look at all paths, however long it takes, is given a small part of the time.
func TestPathRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const looks = 20 * time.Millisecond
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var told []time.Time
		u := &Underlay{stateSignal: make(chan struct{}, 1), pathSignal: make(chan struct{}, 1)}
		u.cfg.OnPath = func() {
			told = append(told, time.Now())
			time.Sleep(looks)
		}
		go u.notifyLoop(ctx)
		began := time.Now()
		var last time.Time
		for range 1000 {
			last = time.Now()
			signal(u.pathSignal)
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := len(told); n < 5 || n > 6 { // one in 220 ms, of a second
			t.Errorf("told %d times", n)
		}
		if told[0] != began || told[len(told)-1].Before(last) {
			t.Errorf("changes from %v to %v, told at %v", began, last, told)
		}
	})
}
