package pid1

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	watchdogFile = "/dev/watchdog"
	biteAfter    = 60 // seconds without food until the hardware resets
	feedEvery    = 10 * time.Second
	patience     = 5 * time.Minute // with a service that is not up
)

// healthy reports whether every service is up, or not down for long. A service that
// comes back by itself is no reason to cut the internet of the house by a reboot.
func healthy(down []time.Duration) bool {
	for _, d := range down {
		if d > patience {
			return false
		}
	}
	return true
}

// feed keeps the hardware from resetting as long as all is well. It stays armed over the
// end, which might hang, too.
func (i *initer) feed(ctx context.Context) {
	dog, err := os.OpenFile(watchdogFile, os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	if err != nil {
		i.log.Warn("no watchdog", "err", err)
		return
	}
	i.try("set the watchdog's time", unix.IoctlSetPointerInt(int(dog.Fd()), unix.WDIOC_SETTIMEOUT, biteAfter))
	tick := time.NewTicker(feedEvery)
	defer tick.Stop()
	for {
		if i.well() {
			_, _ = dog.Write([]byte{0}) // if it fails, it resets
		}
		select {
		case <-ctx.Done():
			_, _ = dog.Write([]byte{0})
			return
		case <-tick.C:
		}
	}
}

func (i *initer) well() bool {
	var down []time.Duration
	now := time.Now()
	for _, r := range i.running {
		down = append(down, r.down(now))
	}
	return healthy(down)
}
