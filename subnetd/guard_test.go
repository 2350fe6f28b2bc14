package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"subnetd/subnetd/host"
	"subnetd/subnetd/state"

	"github.com/google/go-cmp/cmp"
)

// keeper is a guardHand that remembers the last it was told.
type keeper struct {
	got host.Guard
	all bool
	err error
}

func (k *keeper) Set(_ context.Context, g host.Guard) error {
	if k.err != nil {
		return k.err
	}
	k.got, k.all = g, false
	return nil
}

func (k *keeper) SetAll(context.Context) error {
	k.all = true
	return nil
}

func tvByExit() host.Guard {
	return host.Firewall{Interface: "mesh0", LANs: []string{"br-lan"}, Sources: []host.ExitSource{
		{MACs: []string{"02:00:00:00:00:50"}, Way: 3, Block: true}, {LAN: true, Way: -1}}}.Guard()
}

// What was kept is loaded, once more or never; what cannot be understood closes all.
func TestGuardFile(t *testing.T) {
	flip := func(b []byte) []byte { return []byte(strings.Replace(string(b), "00:50", "00:40", 1)) }
	for _, tc := range []struct {
		name  string
		spoil func([]byte) []byte // nil: as it was written
		hand  error
		all   bool
		want  string // in the error
	}{
		{name: "as it was"},
		{name: "half", spoil: func(b []byte) []byte { return b[:len(b)/2] }, all: true, want: "nobody at home gets to the internet"},
		{name: "empty", spoil: func([]byte) []byte { return nil }, all: true, want: "nobody at home gets to the internet"},
		{name: "another device", spoil: flip, all: true, want: "is damaged"},
		{name: "nobody", spoil: func([]byte) []byte { return []byte("{}") }, all: true, want: "is damaged"},
		{name: "not to be loaded", hand: errors.New("no such type"), all: true, want: "no such type"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, err := state.Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			var daemon, boot keeper
			if err := (keptGuard{dir, &daemon}).Set(t.Context(), tvByExit()); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(dir.Path(), guardFile)
			if tc.spoil != nil {
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, tc.spoil(b), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			boot.err = tc.hand
			err = loadGuard(t.Context(), &boot, dir.Path())
			if (err == nil) != (tc.want == "") || err != nil && (!strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n")) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if boot.all != tc.all {
				t.Errorf("all closed: %v", boot.all)
			}
			if !tc.all {
				if d := cmp.Diff(daemon.got, boot.got); d != "" {
					t.Error(d)
				}
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("the file: %v", err)
			}
		})
	}
}

// The file is written when it changes only: neither by the numbers of ways nor by
// what follows the last who is blocked; and it goes with the last.
func TestGuardIsKept(t *testing.T) {
	dir, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	var hand keeper
	k := keptGuard{dir, &hand}
	file := filepath.Join(dir.Path(), guardFile)
	set := func(f host.Firewall) os.FileInfo {
		if err := k.Set(t.Context(), f.Guard()); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return info
	}
	tv := host.ExitSource{MACs: []string{"02:00:00:00:00:50"}, Way: 1, Block: true}
	first := set(host.Firewall{LANs: []string{"br-lan"}, Sources: []host.ExitSource{tv}})
	tv.Way = 2
	again := set(host.Firewall{Interface: host.DefaultInterface, LANs: []string{"br-lan"}, Exits: []host.ExitRoute{{Interface: "mesh-aa"}},
		Sources: []host.ExitSource{tv, {LAN: true, Way: -1}}})
	if !os.SameFile(first, again) {
		t.Error("written again, for nothing")
	}
	if set(host.Firewall{LANs: []string{"br-lan"}, Sources: []host.ExitSource{{LAN: true}}}) != nil || hand.got.Blocks() {
		t.Error("nobody is held back, and there is a file")
	}
	var boot keeper
	if err := loadGuard(t.Context(), &boot, dir.Path()); err != nil || boot.all || boot.got.Blocks() {
		t.Errorf("without a file: %v %+v", err, boot)
	}
	if err := loadGuard(t.Context(), &boot, filepath.Join(dir.Path(), "none")); err != nil || boot.all {
		t.Errorf("without a directory: %v", err)
	}
}
