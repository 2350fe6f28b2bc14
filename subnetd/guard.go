package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"subnetd/subnetd/host"
	"subnetd/subnetd/host/apply"
	"subnetd/subnetd/host/firewall"
	"subnetd/subnetd/state"
)

// The kill switch is on disk before it is in the kernel, so that a machine that starts
// has it before its network is up: `subnetd guard` loads it, and the daemon, too, as
// the first thing it does. There is no file where nobody is held back.

// guardFile is in the state directory.
const guardFile = "guard"

// guardRecord is what the file has: a guard that lost a bit would hold back another.
type guardRecord struct {
	Guard json.RawMessage `json:"guard"` // a host.Guard, maybe of another version of this program
	Sum   string          `json:"sum"`   // of its text without blanks
}

// keptGuard is the hand of the kill switch that also keeps it.
type keptGuard struct {
	dir  *state.Dir
	hand apply.Hand[host.Guard]
}

func (k keptGuard) Set(ctx context.Context, g host.Guard) error {
	kept := k.keep(g)
	return errors.Join(k.hand.Set(ctx, g), kept)
}

func (k keptGuard) keep(g host.Guard) error {
	if !g.Blocks() {
		return k.dir.Remove(guardFile)
	}
	text, err := json.Marshal(g)
	if err != nil {
		return fmt.Errorf("guard: %w", err)
	}
	return k.dir.Save(guardFile, guardRecord{text, sumOf(text)})
}

func sumOf(text []byte) string {
	var b bytes.Buffer
	_ = json.Compact(&b, text) // what is no JSON has no sum that fits
	sum := sha256.Sum256(b.Bytes())
	return hex.EncodeToString(sum[:])
}

// readGuard gives what was kept in the directory: nobody, if nothing was.
func readGuard(dir string) (g host.Guard, err error) {
	var r guardRecord
	if found, err := state.Peek(dir, guardFile, &r); !found {
		return g, err
	}
	damaged := fmt.Errorf("state file %s/%s is damaged", dir, guardFile)
	if sumOf(r.Guard) != r.Sum {
		return g, damaged
	}
	if err := json.Unmarshal(r.Guard, &g); err != nil || !g.Blocks() {
		return g, errors.Join(damaged, err)
	}
	return g, nil
}

// guard is `subnetd guard`.
func guard(ctx context.Context, dir string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return loadGuard(ctx, firewall.Guard{F: firewall.New(log)}, dir)
}

// guardHand is how a guard comes into the kernel.
type guardHand interface {
	apply.Hand[host.Guard]
	SetAll(context.Context) error
}

// loadGuard puts in force what was kept in the directory. Where that is damaged,
// somebody was held back, but nobody knows who: so all of the home is, until the
// daemon has read the owner's wishes.
func loadGuard(ctx context.Context, hand guardHand, dir string) error {
	g, err := readGuard(dir)
	if err == nil && !g.Blocks() {
		return nil
	}
	if err == nil {
		err = hand.Set(ctx, g)
	}
	if err == nil {
		return nil
	}
	if all := hand.SetAll(ctx); all != nil {
		return fmt.Errorf("nobody is held back, as the kill switch could not be loaded: %w (%w)", err, all)
	}
	return fmt.Errorf("nobody at home gets to the internet until `subnetd run` has read its configuration, as it is not known who must not: %w", err)
}
