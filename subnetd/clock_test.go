package main

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// A clock that starts in the past goes on from the newest time known, and gives way to the right one.
func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // whose clock starts in the year 2000
		start := time.Now()
		c := clock{floor: start.Add(time.Hour).Round(0), started: start}
		if got := c.now(); !c.runsBehind() || !got.Equal(c.floor) {
			t.Errorf("%v, want %v", got, c.floor)
		}
		time.Sleep(time.Minute)
		if got := c.now(); !got.Equal(c.floor.Add(time.Minute)) {
			t.Errorf("a minute later it is %v: time stands still", got)
		}
		time.Sleep(2 * time.Hour)
		if got := c.now(); c.runsBehind() || !got.Equal(time.Now()) {
			t.Errorf("%v, but the machine's clock is right: %v", got, time.Now())
		}
	})
}

func TestClockFloor(t *testing.T) {
	dir := t.TempDir()
	before := newClock(dir).floor
	if before.IsZero() {
		t.Fatal("the program has no date")
	}
	file := filepath.Join(dir, "identity")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(24 * time.Hour).Round(time.Second)
	if err := os.Chtimes(file, later, later); err != nil {
		t.Fatal(err)
	}
	if got := newClock(dir).floor; !got.Equal(later) {
		t.Errorf("floor %v, but state was kept at %v", got, later)
	}
}
