package main

import (
	"crypto/rand"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"
)

// clock is a clock that never goes back before a time known to have passed:
// routers without a battery boot in 1970, where no certificate is valid yet.
type clock struct {
	floor   time.Time
	started time.Time // with the monotonic reading that floor lacks
}

// newClock takes the floor from the build and the newest state file.
func newClock(stateDir string) clock {
	floor := buildTime()
	files, _ := filepath.Glob(filepath.Join(stateDir, "*"))
	for _, f := range files {
		if fi, err := os.Stat(f); err == nil && fi.ModTime().After(floor) {
			floor = fi.ModTime()
		}
	}
	return clock{floor: floor, started: time.Now()}
}

func buildTime() time.Time {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if t, err := time.Parse(time.RFC3339, s.Value); s.Key == "vcs.time" && err == nil {
				return t
			}
		}
	}
	fi, err := os.Stat("/proc/self/exe")
	if err != nil {
		return time.Time{}
	}
	return fi.ModTime()
}

// runsBehind reports whether the machine's clock is known to be wrong.
func (c clock) runsBehind() bool { return time.Now().Before(c.floor) }

// now is the time, or while that is known to be wrong, the floor and what has
// passed since the start.
func (c clock) now() time.Time {
	if !c.runsBehind() {
		return time.Now()
	}
	return c.floor.Add(time.Since(c.started))
}

// randomPort picks our UDP port outside the ranges that NATs and services use.
func randomPort() uint16 {
	var b [2]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return 20000 + binary.BigEndian.Uint16(b[:])%12000
}
