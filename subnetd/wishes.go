package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"subnetd/subnetd/api"
	"subnetd/subnetd/config"
	"subnetd/subnetd/control"
	"subnetd/subnetd/state"
)

// followConfig reads the configuration again at each hup. One that cannot be
// used changes nothing: the last good one stays in force.
func (d *daemon) followConfig(ctx context.Context, hup <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
		}
		d.service.reload(func() { d.followOnce(ctx) })
	}
}

func (d *daemon) followOnce(ctx context.Context) {
	if err := d.reload(ctx); err != nil && ctx.Err() == nil {
		d.log.Error("the configuration is not used, the last good one stays", "err", err)
		d.engine.SetProblem("config", err.Error(), "Until then the last good configuration stays in force; send SIGHUP after the correction.")
		return
	}
	d.engine.SetProblem("config", "", "")
}

func (d *daemon) reload(ctx context.Context) error {
	d.wishes.Lock()
	defer d.wishes.Unlock()
	next, err := config.Load(d.opts.Config)
	if err != nil {
		return err
	}
	was := d.adopt(next)
	d.log.Info("configuration read again", "file", d.opts.Config)
	if next.Tunnel != was.Tunnel {
		d.log.Warn("tunnel.engine and tunnel.port take effect at the next start")
	}
	if next.Mesh.Control != was.Mesh.Control {
		return d.member.restart(ctx)
	}
	return nil
}

// adopt makes next the wishes in force and returns those before.
func (d *daemon) adopt(next config.Config) config.Config {
	d.mu.Lock()
	was := d.cfg
	d.cfg = next
	d.mu.Unlock()
	d.engine.SetConfig(next)
	d.watch.Follow(next.Exit.MACs())
	d.devices.configured()
	d.drop.Set(dropSettings(next.Drop))
	d.home.look()
	if next.Mesh.Hostname != "" && next.Mesh.Hostname != was.Mesh.Hostname {
		d.member.change(func(h *control.Host) { h.Hostname = next.Mesh.Hostname })
	}
	return was
}

// up writes the owner's wish into the config file, then acts on it.
func (d *daemon) up(ctx context.Context, r api.UpRequest) error {
	d.wishes.Lock()
	defer d.wishes.Unlock()
	d.mu.Lock()
	next := d.cfg
	d.mu.Unlock()
	edits := map[string]any{}
	if r.Control != "" && r.Control != next.Mesh.Control {
		next.Mesh.Control, edits["control"] = r.Control, r.Control
	}
	if r.Hostname != "" && r.Hostname != next.Mesh.Hostname {
		next.Mesh.Hostname, edits["hostname"] = r.Hostname, r.Hostname
	}
	if err := d.editConfig("mesh", edits); err != nil {
		return err
	}
	d.adopt(next)
	return d.member.up(ctx, r.AuthKey)
}

// editConfig sets keys of a section in the owner's file, comments kept.
func (d *daemon) editConfig(section string, edits map[string]any) error {
	if len(edits) == 0 {
		return nil
	}
	if d.trial.under() != nil {
		return api.ErrTrial // undone, it would take this change with it
	}
	src, err := os.ReadFile(d.opts.Config)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	for k, v := range edits {
		if src, err = config.Edit(src, d.opts.Config, section, k, v); err != nil {
			return err
		}
	}
	if _, err := config.Parse(strings.NewReader(string(src)), d.opts.Config); err != nil {
		return err
	}
	return state.WriteFile(d.opts.Config, src)
}
