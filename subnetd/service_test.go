package main

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"subnetd/subnetd/status"
)

// TestBeat: who does not answer is not said to live, and is again once he does.
func TestBeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		hung := make(chan struct{})
		answer := func(ctx context.Context) error {
			if time.Since(began) != 3*time.Second {
				return nil
			}
			select {
			case <-hung:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		var told []time.Duration
		ended := make(chan error, 1)
		go func() {
			ended <- beat(ctx, time.Second, answer, func(...string) { told = append(told, time.Since(began)) })
		}()
		time.Sleep(time.Minute)
		synctest.Wait()
		if want := []time.Duration{time.Second, 2 * time.Second}; !slices.Equal(told, want) {
			t.Errorf("told at %v, want %v", told, want)
		}
		close(hung)
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		if len(told) != 4 || told[2] != time.Minute {
			t.Errorf("told at %v", told)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestBeatWithoutWatchdog: nobody is told what he did not ask for.
func TestBeatWithoutWatchdog(t *testing.T) {
	err := beat(t.Context(), 0, func(context.Context) error { t.Error("asked"); return nil }, func(...string) { t.Error("told") })
	if err != nil {
		t.Error(err)
	}
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		snapshots := make(chan status.Snapshot)
		var told []string
		var at []time.Duration
		ended := make(chan error, 1)
		go func() {
			ended <- follow(t.Context(), snapshots, func(lines ...string) {
				told = append(told, lines...)
				at = append(at, time.Since(began))
			})
		}()
		for _, p := range []status.Phase{status.PhaseConnecting, status.PhaseConnecting, status.PhaseJoined} {
			snapshots <- status.Snapshot{Phase: p, Name: "home.mesh"}
		}
		close(snapshots)
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if want := []string{"STATUS=connecting", "STATUS=home.mesh in the mesh, 0 peers"}; !slices.Equal(told, want) {
			t.Errorf("%q, want %q", told, want)
		}
		if want := []time.Duration{0, 2 * time.Second}; !slices.Equal(at, want) {
			t.Errorf("at %v, want %v", at, want)
		}
	})
}

func TestInOneLine(t *testing.T) {
	for _, tc := range []struct {
		s    status.Snapshot
		want string
	}{
		{status.Snapshot{Phase: status.PhaseDown}, "down"},
		{status.Snapshot{Phase: status.PhaseWaiting}, "waiting"},
		{status.Snapshot{Phase: status.PhaseNeedsLogin, LoginURL: "https://secret"}, "a login is wanted: `subnetd status` says where"},
		{status.Snapshot{Phase: status.PhaseJoined, Name: "home.mesh.internal", Peers: make([]status.Peer, 3)}, "home.mesh.internal in the mesh, 3 peers"},
		{status.Snapshot{Phase: status.PhaseCached, Name: "home", Problems: []status.Problem{{Text: "One,\nin two lines."}, {Text: "Two."}}},
			"home in the mesh, 0 peers, 2 problems: One, in two lines."},
	} {
		if got := inOneLine(&tc.s); got != tc.want {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
}
