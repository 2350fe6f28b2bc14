package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/config"
	"subnetd/subnetd/plan"
	"subnetd/subnetd/state"
	"subnetd/subnetd/status"
)

// A change that the page makes is a trial: it may cut off the browser that made it. It
// is in force at once, and undone unless the browser, which then still reaches us,
// confirms it. What was before is on the disk first: who pulls the plug of a router
// that he reaches no more gets it back as it was.

const (
	trialFor  = 90 * time.Second
	trialFile = "trial"
)

// trialRecord is the file.
type trialRecord struct {
	Before string `json:"before"` // the configuration as it was
	After  string `json:"after"`  // and as the trial made it: an owner who edits it meanwhile is not undone
	status.Trial
}

// trial is the change that waits to be confirmed, if there is one.
type trial struct {
	file string // of the configuration
	dir  *state.Dir
	log  *slog.Logger
	over func(id string) // the time of that one is over

	mu    sync.Mutex // guards all below
	rec   *trialRecord
	timer *time.Timer
}

// under gives the trial under way, nil if there is none.
func (t *trial) under() *status.Trial {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rec == nil {
		return nil
	}
	is := t.rec.Trial
	return &is
}

// begin keeps what was, and says when its time is over.
func (t *trial) begin(before, after string, what []string) (status.Trial, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rec != nil {
		return status.Trial{}, api.ErrTrial
	}
	rec := &trialRecord{Before: before, After: after, Trial: status.Trial{ID: rand.Text(), What: what, Until: time.Now().Add(trialFor)}}
	if err := t.dir.Save(trialFile, rec); err != nil {
		return status.Trial{}, err
	}
	t.rec = rec
	t.timer = time.AfterFunc(trialFor, func() { t.over(rec.ID) })
	return rec.Trial, nil
}

// end takes the trial of that ID off, and gives it.
func (t *trial) end(id string) (*trialRecord, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rec == nil || t.rec.ID != id {
		return nil, api.ErrNoTrial
	}
	rec := t.rec
	t.timer.Stop()
	t.rec = nil
	return rec, nil
}

// putBack writes the file as it was before the trial, unless somebody else wrote it since.
func (t *trial) putBack(rec *trialRecord) error {
	is, err := os.ReadFile(t.file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	t.log.Warn("a change of the configuration is undone, as nobody confirmed it", "keys", strings.Join(rec.What, " "))
	if string(is) != rec.After {
		t.log.Warn("it was edited since: it stays as it is", "file", t.file)
	} else if err := state.WriteFile(t.file, []byte(rec.Before)); err != nil {
		return err
	}
	return t.dir.Remove(trialFile)
}

// recover undoes what an earlier life had on trial, before the configuration is read.
func (t *trial) recover() error {
	var rec trialRecord
	found, err := t.dir.Load(trialFile, &rec)
	if err != nil || !found {
		return err
	}
	return t.putBack(&rec)
}

// confirmTrial keeps the change.
func (d *daemon) confirmTrial(_ context.Context, id string) error {
	_, err := d.trial.end(id)
	if err == nil {
		err = d.dir.Remove(trialFile)
	}
	d.page.Look()
	return err
}

// undoTrial takes the change back.
func (d *daemon) undoTrial(ctx context.Context, id string) error {
	d.wishes.Lock()
	rec, err := d.trial.end(id)
	if err == nil {
		err = d.trial.putBack(rec)
	}
	d.wishes.Unlock()
	if err != nil {
		return err
	}
	err = errors.Join(d.reload(ctx), d.engine.Settle(ctx))
	d.page.Look()
	return err
}

// trialOver undoes what nobody confirmed in time.
func (d *daemon) trialOver(id string) {
	ctx, cancel := context.WithTimeout(context.Background(), trialFor)
	defer cancel()
	if err := d.undoTrial(ctx, id); err != nil && !errors.Is(err, api.ErrNoTrial) {
		d.log.Error("a change that nobody confirmed is not undone", "err", err)
	}
}

// changeSettings puts what the page wishes into the file and in force, on trial.
func (d *daemon) changeSettings(ctx context.Context, c status.SettingsChange) (status.Trial, error) {
	d.wishes.Lock()
	tr, mesh, err := d.tryOut(c)
	d.wishes.Unlock()
	if err != nil {
		return tr, err
	}
	if mesh {
		err = d.member.restart(ctx)
	}
	if err = errors.Join(err, d.engine.Settle(ctx)); err != nil {
		return tr, errors.Join(err, d.undoTrial(context.WithoutCancel(ctx), tr.ID))
	}
	return tr, nil
}

// tryOut writes the file and adopts it; d.wishes is held. mesh: another coordinator is
// wished.
func (d *daemon) tryOut(c status.SettingsChange) (tr status.Trial, mesh bool, err error) {
	before, err := os.ReadFile(d.opts.Config)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return tr, false, fmt.Errorf("reading the configuration: %w", err)
	}
	was, err := config.Parse(strings.NewReader(string(before)), d.opts.Config)
	if err != nil {
		return tr, false, err
	}
	edits, err := editsOf(was, c)
	if err != nil {
		return tr, false, api.BadRequest(err)
	}
	if err := d.knowExits(was.Exit, c); err != nil {
		return tr, false, api.BadRequest(err)
	}
	after, what := before, []string{}
	for _, e := range edits {
		if after, err = config.Edit(after, d.opts.Config, e.section, e.key, e.value); err != nil {
			return tr, false, api.BadRequest(err)
		}
		what = append(what, e.section+"."+e.key)
	}
	next, err := config.Parse(strings.NewReader(string(after)), d.opts.Config)
	if err != nil {
		return tr, false, api.BadRequest(err)
	}
	sort.Strings(what)
	if tr, err = d.trial.begin(string(before), string(after), what); err != nil {
		return tr, false, err
	}
	if err := state.WriteFile(d.opts.Config, after); err != nil {
		_, e := d.trial.end(tr.ID)
		return tr, false, errors.Join(err, e, d.dir.Remove(trialFile))
	}
	d.adopt(next)
	d.page.Look()
	return tr, next.Mesh.Control != was.Mesh.Control, nil
}

// edit is one key of the file and its new value.
type edit struct {
	section, key string
	value        any
}

// editsOf is what a change means for the file. All rows together replace the short form, too.
func editsOf(was config.Config, c status.SettingsChange) (out []edit, err error) {
	text := func(section, key string, to *string) {
		if to != nil {
			out = append(out, edit{section, key, *to})
		}
	}
	text("mesh", "control", c.Control)
	text("mesh", "hostname", c.Hostname)
	text("lan", "expose", c.Expose)
	text("home", "url", c.URL)
	text("web", "listen", c.Listen)
	if c.Interfaces != nil {
		out = append(out, edit{"lan", "interfaces", *c.Interfaces})
	}
	if c.SNAT != nil {
		out = append(out, edit{"lan", "snat", *c.SNAT})
	}
	next := was.Exit
	if c.Offer != nil {
		next.Offer = *c.Offer
	}
	if c.Rows != nil {
		next.Rows, next.Use, next.Devices = nil, "", nil
		for _, text := range *c.Rows {
			r, err := config.ParseRow(text)
			if err != nil {
				return nil, fmt.Errorf("the row %q %w", text, err)
			}
			next.Rows = append(next.Rows, r)
		}
	}
	for key, v := range was.Exit.Changes(next) {
		out = append(out, edit{"exit", key, v})
	}
	if len(out) == 0 {
		return nil, errors.New("nothing would be otherwise")
	}
	return out, nil
}

// knowExits refuses new exits that cannot be used. Those that are wished already stay,
// also if they are gone.
func (d *daemon) knowExits(was config.Exit, c status.SettingsChange) error {
	nm := d.engine.Netmap()
	if nm == nil || c.Rows == nil {
		return nil
	}
	var known []string
	for _, r := range was.All() {
		known = append(known, r.Exits...)
	}
	for _, text := range *c.Rows {
		r, err := config.ParseRow(text)
		if err != nil {
			return err
		}
		fresh := slices.DeleteFunc(r.Exits, func(x string) bool { return slices.Contains(known, x) })
		if err := plan.RefuseExits(nm, fresh, d.clock.now()); err != nil {
			return fmt.Errorf("the row %q: %w", text, err)
		}
	}
	return nil
}
