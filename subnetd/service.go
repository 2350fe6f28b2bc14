package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"subnetd/subnetd/status"
	"subnetd/subnetd/systemd"

	"golang.org/x/sync/errgroup"
)

// statusGap is between two status lines for the service manager.
const statusGap = time.Second

// service is this daemon as the service manager sees it.
type service struct {
	systemd.Manager
	given systemd.Inherited
	log   *slog.Logger
	ready atomic.Bool // it was told so
}

func newService(log *slog.Logger) *service {
	pid := os.Getpid()
	return &service{Manager: systemd.NewManager(os.Getenv, pid), given: systemd.NewInherited(os.Getenv, pid), log: log}
}

func (s *service) tell(lines ...string) {
	if err := s.Tell(lines...); err != nil {
		s.log.Warn("the service manager does not hear us", "err", err)
	}
}

// web gives the sockets that were opened for the page.
func (s *service) web() []net.Listener {
	all, err := s.given.Listeners("web")
	if err != nil {
		s.log.Error("the page goes without a socket", "err", err)
	}
	return all
}

// reload calls f, during which the service reloads: before it is ready there is nothing
// to tell of.
func (s *service) reload(f func()) {
	if !systemd.Built || !s.ready.Load() {
		f()
		return
	}
	if now, err := systemd.Now(); err == nil {
		s.tell(systemd.Reloading, now)
	}
	f()
	s.tell(systemd.Ready)
}

// tellManager says to the service manager how we stand, until ctx ends. Ready is a router
// that is as planned, as far as it can be, and a daemon that answers: what keeps a plan from
// being fulfilled is told to who asks that.
func (d *daemon) tellManager(ctx context.Context, there <-chan struct{}) error {
	if !systemd.Built || !d.service.There() {
		<-ctx.Done()
		return nil
	}
	select {
	case <-there:
	case <-ctx.Done():
		return nil
	}
	if err := d.engine.Settle(ctx); ctx.Err() != nil {
		return nil
	} else if err != nil {
		d.service.log.Warn("the service begins on a router that is not as planned", "err", err)
	}
	d.service.tell(systemd.Ready)
	d.service.ready.Store(true)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return beat(ctx, d.service.Watchdog/2, d.engine.Answer, d.service.tell) })
	group.Go(func() error { return follow(ctx, d.engine.Watch(ctx), d.service.tell) })
	return group.Wait()
}

// beat tells that we live, for as long as somebody answers who would not if we hung.
func beat(ctx context.Context, every time.Duration, answer func(context.Context) error, tell func(...string)) error {
	for every > 0 && wait(ctx, every) && answer(ctx) == nil {
		tell(systemd.Alive)
	}
	return nil
}

// follow tells what there is to say of each snapshot, and says nothing twice.
func follow(ctx context.Context, snapshots <-chan status.Snapshot, tell func(...string)) error {
	told := ""
	for s := range snapshots {
		if line := inOneLine(&s); line != told {
			tell(systemd.Status + line)
			told = line
		}
		if !wait(ctx, statusGap) {
			return nil
		}
	}
	return nil
}

// wait reports whether ctx lives after that time.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// inOneLine is how this node stands, for everybody on this machine: by a login's URL one
// would log in.
func inOneLine(s *status.Snapshot) string {
	line := string(s.Phase)
	switch s.Phase {
	case status.PhaseJoined, status.PhaseCached:
		line = fmt.Sprintf("%s in the mesh, %d peers", s.Name, len(s.Peers))
	case status.PhaseNeedsLogin:
		line = "a login is wanted: `subnetd status` says where"
	}
	if n := len(s.Problems); n > 0 {
		line += fmt.Sprintf(", %d problems: %s", n, strings.ReplaceAll(s.Problems[0].Text, "\n", " "))
	}
	return line
}
