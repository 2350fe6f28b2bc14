package tunnel

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"subnetd/subnetd/host"

	"tailscale.com/types/key"
)

// Userspaces is the engine in this process with all its interfaces: a Userspace for
// the main one and one for each exit, over one transport. Its methods may be called
// from several goroutines.
type Userspaces struct {
	trunk  *trunk
	main   *Userspace
	engine func(Transport) *Userspace // makes one

	sets sync.Mutex // one Set at a time; taken before mu

	mu    sync.Mutex                   // guards exits; never held for long
	exits map[key.NodePublic]*userExit // by their peers
}

// userExit is an exit's interface.
type userExit struct {
	*Userspace
	branch *branch
}

// NewUserspaces makes an engine with no interface yet.
func NewUserspaces(log *slog.Logger, transport Transport) *Userspaces {
	return newUserspaces(transport, func(t Transport) *Userspace { return NewUserspace(log, t) })
}

func newUserspaces(transport Transport, engine func(Transport) *Userspace) *Userspaces {
	t := &trunk{Transport: transport}
	return &Userspaces{trunk: t, main: engine(t), engine: engine, exits: map[key.NodePublic]*userExit{}}
}

// Set brings all interfaces to want, as Kernels.Set does.
func (u *Userspaces) Set(ctx context.Context, want host.Tunnel) error {
	u.sets.Lock()
	defer u.sets.Unlock()
	exits := want.Exits
	if want.Exits = nil; want.Name == "" {
		exits = nil
	}
	was, now := u.all(), make(map[key.NodePublic]*userExit, len(exits))
	var errs []error
	var moved []*userExit
	for _, e := range exits {
		x := was[e.Peer.Key]
		if x == nil {
			b := newBranch(u.trunk)
			x = &userExit{Userspace: u.engine(b), branch: b}
		}
		if was[e.Peer.Key] == nil && u.main.has(e.Peer.Key) {
			moved = append(moved, x)
		}
		now[e.Peer.Key] = x
		errs = append(errs, x.Set(ctx, host.Tunnel{Name: e.Name, Key: want.Key, Peers: []host.Peer{e.Peer}}))
	}
	u.publish(now)
	errs = append(errs, u.main.Set(ctx, want))
	for k, x := range was {
		if now[k] == nil {
			errs = append(errs, x.Close())
			u.main.begin(k)
		}
	}
	for k, x := range now {
		if slices.Contains(moved, x) {
			x.begin(k)
		}
	}
	return errors.Join(errs...)
}

// publish has the transport bring peers of exits to their interfaces.
func (u *Userspaces) publish(exits map[key.NodePublic]*userExit) {
	var branches *map[key.NodePublic]*branch
	if len(exits) > 0 {
		m := make(map[key.NodePublic]*branch, len(exits))
		for k, x := range exits {
			m[k] = x.branch
		}
		branches = &m
	}
	u.mu.Lock()
	u.exits = exits
	u.mu.Unlock()
	u.trunk.branches.Store(branches)
}

// all are the interfaces of exits now.
func (u *Userspaces) all() map[key.NodePublic]*userExit {
	u.mu.Lock()
	defer u.mu.Unlock()
	return maps.Clone(u.exits)
}

// Kick starts a handshake over; see Userspace.Kick.
func (u *Userspaces) Kick(k key.NodePublic) {
	if x := u.all()[k]; x != nil {
		x.Kick(k)
		return
	}
	u.main.Kick(k)
}

// Stats is what every peer's tunnel has carried.
func (u *Userspaces) Stats() map[key.NodePublic]Stat {
	all := u.main.Stats()
	for _, x := range u.all() {
		if all == nil {
			break
		}
		maps.Copy(all, x.Stats())
	}
	return all
}

// Close removes all interfaces.
func (u *Userspaces) Close() error {
	u.sets.Lock()
	defer u.sets.Unlock()
	was := u.all()
	u.publish(nil)
	var errs []error
	for _, x := range was {
		errs = append(errs, x.Close())
	}
	return errors.Join(append(errs, u.main.Close())...)
}
