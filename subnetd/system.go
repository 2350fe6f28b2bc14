package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/status"
)

// system is this machine's own system, as the program tells that installs it, by
//
//	PROGRAM system                  status.System as JSON
//	PROGRAM update SHA256 <IMAGE    exit code 0 and a sentence, or a sentence why not
//	PROGRAM reboot
type system struct {
	program string // "": there is none
	log     *slog.Logger
	// changed is told when show has news, trouble what its owner must know; "": nothing.
	changed func()
	trouble func(text string)

	mu   sync.Mutex // guards all below
	now  *status.System
	busy bool // an update is under way
}

func (d *daemon) newSystem() *system {
	return &system{
		program: d.opts.System, log: d.logger("system"), changed: d.engine.Refresh,
		trouble: func(text string) {
			d.engine.SetProblem("system", text, "Look whether the image is the right one, and update again.")
		},
	}
}

func (s *system) String() string { return "system" }

// Run asks once how the system stands: only an update changes it.
func (s *system) Run(ctx context.Context) error {
	if s.program != "" {
		s.look(ctx)
	}
	<-ctx.Done()
	return nil
}

// show is how the system stands; nil: it is not for us to say.
func (s *system) show() *status.System {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

// set changes what is known, and tells it.
func (s *system) set(change func()) {
	s.mu.Lock()
	change()
	s.mu.Unlock()
	s.changed()
}

// look asks the program how the system stands. No update is under way afterwards.
func (s *system) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, mostCommand)
	defer cancel()
	var now status.System
	said, err := feed(ctx, strings.NewReader(""), s.program, "system")
	if err == nil {
		err = json.Unmarshal([]byte(said), &now)
	}
	if err != nil {
		s.log.Warn("how this machine's system stands is not known", "err", err)
		s.set(s.over)
		return
	}
	s.set(func() { s.now, s.busy = &now, false })
	s.trouble(now.Note)
}

// over ends an update of which the program tells nothing; s.mu is held.
func (s *system) over() {
	s.busy = false
	if s.now != nil {
		was := *s.now
		was.Update = nil
		s.now = &was
	}
}

// begin says that an update comes in, to a system that is then as it was.
func (s *system) begin() (was status.System, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.now == nil:
		return was, api.ErrNoSystem
	case s.busy:
		return was, api.ErrUpdating
	}
	s.busy = true
	return *s.now, nil
}

func (s *system) calls() api.System { return api.System{Update: s.update, Restart: s.restart} }

// update lets an image into the program. What it says is the answer, or the asker's mistake.
func (s *system) update(ctx context.Context, sum string, image io.Reader, size int64) (status.Updated, error) {
	was, err := s.begin()
	if err != nil {
		return status.Updated{}, err
	}
	s.log.Info("an image comes in", "size", size, "sha256", sum)
	said, err := feed(ctx, &counted{from: image, size: size, tell: func(done int64) {
		now := was
		now.Update = &status.Update{Done: done, Size: size}
		s.set(func() { s.now = &now })
	}}, s.program, "update", sum)
	s.look(context.WithoutCancel(ctx))
	var refused *commandError
	if errors.As(err, &refused) && len(refused.said) > 0 {
		err = api.BadRequest(errors.New(strings.TrimSpace(string(refused.said))))
	}
	if err != nil {
		s.log.Warn("the image is not installed", "err", err)
		return status.Updated{}, fmt.Errorf("the system stays as it is: %w", err)
	}
	s.log.Info("an image is installed", "said", strings.TrimSpace(said))
	return status.Updated{Text: strings.TrimSpace(said)}, nil
}

// restart has the machine go down in a moment, in which the answer goes to who asks.
func (s *system) restart(context.Context) error {
	if s.show() == nil {
		return api.ErrNoSystem
	}
	s.log.Info("the machine is to start anew")
	time.AfterFunc(restartDelay, func() {
		if err := command(context.Background(), s.program, "reboot"); err != nil {
			s.trouble(fmt.Sprintf("This machine does not restart: %v.", err))
		}
	})
	return nil
}

// counted is a reader that tells how far it is, a hundred times at most.
type counted struct {
	from       io.Reader
	size       int64
	done, told int64
	tell       func(done int64)
}

// Read implements io.Reader.
func (c *counted) Read(b []byte) (int, error) {
	n, err := c.from.Read(b)
	c.done += int64(n)
	if c.done-c.told >= (c.size+99)/100 {
		c.told = c.done
		c.tell(c.done)
	}
	return n, err
}
