package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/config"
	"subnetd/subnetd/state"
	"subnetd/subnetd/status"
)

// A backup is one file with the configuration and the state directory. It is put back
// by the next life of the daemon, before that reads anything.

const (
	restoreFile  = "restore"
	backupIs     = "subnetd backup"
	restartDelay = 500 * time.Millisecond // the answer goes first
)

// backup is the file.
type backup struct {
	Is      string                     `json:"is"` // backupIs
	Version string                     `json:"version"`
	Created time.Time                  `json:"created"`
	Config  string                     `json:"config"`           // TOML
	Policy  string                     `json:"policy,omitempty"` // what stands in home.policy_file
	State   map[string]json.RawMessage `json:"state"`
}

// passing is state of no use to another life: what the coordinator tells anew, what is
// under way, and the kill switch of this machine's interfaces.
var passing = []string{"netmap", trialFile, restoreFile, guardFile}

func (d *daemon) backup(context.Context) (any, error) {
	d.wishes.Lock()
	defer d.wishes.Unlock()
	if d.trial.under() != nil {
		return nil, api.ErrTrial
	}
	text, err := os.ReadFile(d.opts.Config)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	b := backup{Is: backupIs, Version: version, Created: d.clock.now().UTC(), Config: string(text), State: map[string]json.RawMessage{}}
	if file := d.config().Home.PolicyFile; file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading the policy: %w", err)
		}
		b.Policy = string(text)
	}
	names, err := carried(d.dir.Path())
	if err != nil {
		return nil, err
	}
	size := len(b.Config) + len(b.Policy)
	for _, name := range names {
		var raw json.RawMessage
		if _, err := state.Peek(d.dir.Path(), name, &raw); err != nil {
			return nil, fmt.Errorf("state file %s: %w", name, err)
		}
		b.State[name] = raw
		size += len(raw)
	}
	if size > api.MaxBackup/2 { // texts grow as JSON
		return nil, fmt.Errorf("this is too much for one file: copy %s and %s instead", d.opts.Config, d.dir.Path())
	}
	return b, nil
}

// carried is the names of the state files that make this router what it is. What else
// lies there and is no JSON, such as a resolv.conf, is not carried along.
func carried(dir string) (names []string, err error) {
	all, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		if n := e.Name(); e.Type().IsRegular() && state.IsName(n) && !slices.Contains(passing, n) {
			if b, err := os.ReadFile(dir + "/" + n); err == nil && json.Valid(b) {
				names = append(names, n)
			}
		}
	}
	return names, nil
}

// restoreBackup keeps a backup for the next life, and begins that.
func (d *daemon) restoreBackup(_ context.Context, file []byte) error {
	b, err := parseBackup(file, d.opts.Config)
	if err != nil {
		return api.BadRequest(err)
	}
	if err := d.dir.Save(restoreFile, b); err != nil {
		return err
	}
	d.log.Info("a backup is put back, starting anew", "created", b.Created, "version", b.Version)
	poke(d.again)
	return nil
}

// parseBackup reads a file that somebody says is a backup, and proves that a daemon can
// start with it, whose configuration is at that path.
func parseBackup(file []byte, at string) (b backup, err error) {
	dec := json.NewDecoder(bytes.NewReader(file))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&b); err != nil || b.Is != backupIs {
		return b, errors.New("this is no backup of subnetd")
	}
	if _, err := dec.Token(); err != io.EOF {
		return b, errors.New("this is no backup of subnetd: more follows after it")
	}
	if _, err := config.Parse(strings.NewReader(b.Config), at); err != nil {
		return b, fmt.Errorf("the configuration in the backup cannot be used: %w", err)
	}
	var id state.Identity
	if err := json.Unmarshal(b.State["identity"], &id); err != nil || id.Machine.IsZero() {
		return b, errors.New("the backup has no keys of a router in it")
	}
	for name := range b.State {
		if slices.Contains(passing, name) || !state.IsName(name) {
			return b, fmt.Errorf("%q is nothing that a backup holds", name)
		}
	}
	return b, nil
}

// putRestored puts a backup in the place of what is there, if one waits. What is cut off
// in the middle is done again by the next start.
func putRestored(dir *state.Dir, file string) error {
	var b backup
	if found, err := dir.Load(restoreFile, &b); err != nil || !found {
		return err
	}
	names, err := carried(dir.Path())
	if err != nil {
		return err
	}
	for _, name := range append(names, "netmap", trialFile) {
		if b.State[name] == nil {
			if err := dir.Remove(name); err != nil {
				return err
			}
		}
	}
	for name, raw := range b.State {
		if err := dir.Save(name, raw); err != nil {
			return err
		}
	}
	c, err := config.Parse(strings.NewReader(b.Config), file)
	if err != nil {
		return err
	}
	if c.Home.PolicyFile != "" && b.Policy != "" {
		if err := state.WriteFile(c.Home.PolicyFile, []byte(b.Policy)); err != nil {
			return err
		}
	}
	if err := state.WriteFile(file, []byte(b.Config)); err != nil {
		return err
	}
	return dir.Remove(restoreFile)
}

// errAgain ends the tasks so that the daemon begins anew.
var errAgain = errors.New("starting anew")

// awaitAgain is the task that ends all others when the daemon is to begin anew.
func (d *daemon) awaitAgain(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-d.again:
	}
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(restartDelay):
	}
	return errAgain
}

// beginAnew replaces this process by a new one of the same program: its ID stays, so that
// whoever watches over it sees no end.
func beginAnew() error {
	return fmt.Errorf("starting anew: %w", syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
}

// diagnosis is what helps to find a trouble. Nothing in it is a secret.
type diagnosis struct {
	Version  string           `json:"version"`
	Platform string           `json:"platform"`
	Time     time.Time        `json:"time"`
	Config   string           `json:"config"`
	Status   status.Snapshot  `json:"status"`
	Devices  status.Devices   `json:"devices"`
	Netcheck any              `json:"netcheck"`
	Plan     any              `json:"plan"`
	Paths    any              `json:"paths"`
	Log      []status.LogLine `json:"log"`
}

func (d *daemon) diagnose(ctx context.Context) (any, error) {
	text, err := os.ReadFile(d.opts.Config)
	if err != nil {
		text = []byte(err.Error())
	}
	out := diagnosis{
		Version: version, Platform: runtime.GOOS + "/" + runtime.GOARCH, Time: time.Now().UTC(),
		Config: string(text), Status: d.engine.Status(), Devices: d.devices.all(), Log: d.ring.Lines(),
	}
	out.Status.LoginURL = "" // whoever opens it logs this router in
	for name, to := range map[string]*any{"plan": &out.Plan, "paths": &out.Paths} {
		if *to, err = d.debug(name); err != nil {
			*to = err.Error()
		}
	}
	if out.Netcheck, err = d.netcheck(ctx); err != nil {
		out.Netcheck = err.Error()
	}
	return out, nil
}
