package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"subnetd/subnetd/api"
	"subnetd/subnetd/config"
	"subnetd/subnetd/control"
	"subnetd/subnetd/state"
)

// followConfig reads the configuration again at each SIGHUP. One that cannot
// be used changes nothing: the last good one stays in force.
func (d *daemon) followConfig(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
		}
		if err := d.reload(ctx); err != nil && ctx.Err() == nil {
			d.log.Error("the configuration is not used, the last good one stays", "err", err)
			d.engine.SetProblem("config", err.Error(), "Until then the last good configuration stays in force; send SIGHUP after the correction.")
			continue
		}
		d.engine.SetProblem("config", "", "")
	}
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

// tellUnbuilt says which wishes this version cannot fulfil yet.
func (d *daemon) tellUnbuilt(c config.Config) {
	var keys []string
	for key, wished := range map[string]bool{
		"exit.offer": c.Exit.Offer, "exit.use": c.Exit.Use != "", "exit.devices": len(c.Exit.Devices) > 0,
	} {
		if wished {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	text := ""
	if len(keys) > 0 {
		text = "Not built into this version yet, and without effect: " + strings.Join(keys, ", ") + "."
	}
	d.engine.SetProblem("unbuilt", text, "Remove them from the configuration, or wait for a newer version.")
}

// adopt makes next the wishes in force and returns those before.
func (d *daemon) adopt(next config.Config) config.Config {
	d.mu.Lock()
	was := d.cfg
	d.cfg = next
	d.mu.Unlock()
	d.engine.SetConfig(next)
	d.tellUnbuilt(next)
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
	edits := map[string]string{}
	if r.Control != "" && r.Control != next.Mesh.Control {
		next.Mesh.Control, edits["control"] = r.Control, r.Control
	}
	if r.Hostname != "" && r.Hostname != next.Mesh.Hostname {
		next.Mesh.Hostname, edits["hostname"] = r.Hostname, r.Hostname
	}
	if err := d.editConfig(edits); err != nil {
		return err
	}
	d.adopt(next)
	return d.member.up(ctx, r.AuthKey)
}

// editConfig sets keys of [mesh] in the owner's file, comments kept.
func (d *daemon) editConfig(edits map[string]string) error {
	if len(edits) == 0 {
		return nil
	}
	src, err := os.ReadFile(d.opts.Config)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	for k, v := range edits {
		if src, err = config.Edit(src, "mesh", k, v); err != nil {
			return err
		}
	}
	if _, err := config.Parse(strings.NewReader(string(src)), d.opts.Config); err != nil {
		return err
	}
	return state.WriteFile(d.opts.Config, src)
}
