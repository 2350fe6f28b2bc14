package main

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// TestCommand: a program's end and first words are told; it is not waited for longer than ctx, nor for what it started.
func TestCommand(t *testing.T) {
	for _, tt := range []struct{ script, want string }{
		{"exit 0", ""},
		{"echo no; exit 3", `exit status 3: "no\n"`},
		{"echo no >&2; kill -9 $$", `signal: killed: "no\n"`},
		{"yes | head -c 200000; exit 1", `exit status 1: "` + strings.Repeat(`y\n`, mostWords/2) + `"`},
		{"sleep 3 & exit 0", ""},
	} {
		got := ""
		if err := command(t.Context(), "sh", "-c", tt.script); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", tt.script, got, tt.want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := command(ctx, "sleep", "600"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a program that stays: %v", err)
	}
	if err := command(t.Context(), "no-such-program"); err == nil {
		t.Error("a program that is not there ran")
	}
	if err := command(t.Context(), "/no/such"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a path that is not there: %v", err)
	}
}
