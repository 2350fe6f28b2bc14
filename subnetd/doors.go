package main

import (
	"context"
	"log/slog"
	"net/netip"
	"reflect"
	"sort"
	"sync"
	"time"

	"subnetd/subnetd/host"
	"subnetd/subnetd/host/tunnel"

	"tailscale.com/types/key"
)

// doorRetry is how long nftables is left in peace after it failed.
const doorRetry = time.Second

// doors has nftables bring the peers of exits to their interfaces: the engine in the
// kernel says on which ports those listen, the underlay from where their peers send.
// A peer that moves costs one small table, no plan.
type doors struct {
	ways
	outer uint16
	share func(context.Context, uint16, []host.ShareExit) error
	log   *slog.Logger
	wake  chan struct{} // one slot: addresses may have changed

	mu    sync.Mutex // guards all below, for one change at a time
	ports map[key.NodePublic]uint16
	told  []host.ShareExit
	done  bool // told is what there is
}

// ways is the underlay, as far as doors need it.
type ways interface {
	tunnel.Ways
	Serve(map[key.NodePublic]uint16)
	From(key.NodePublic) []netip.AddrPort
}

// newDoors takes over the doors that an earlier life left.
func newDoors(log *slog.Logger, outer uint16, share func(context.Context, uint16, []host.ShareExit) error, left tunnel.Left) *doors {
	d := &doors{outer: outer, share: share, log: log, wake: make(chan struct{}, 1), ports: map[key.NodePublic]uint16{}}
	for _, e := range left.Exits {
		if e.Port != 0 && !e.Peer.IsZero() {
			d.ports[e.Peer] = e.Port
		}
	}
	return d
}

// open says what was taken over, which is all there is until the engine speaks.
func (d *doors) open(ctx context.Context, u ways) error {
	d.ways = u
	return d.Served(ctx, d.ports)
}

func (d *doors) String() string { return "doors" }

// Served is called by the engine; see tunnel.Doors.
func (d *doors) Served(ctx context.Context, ports map[key.NodePublic]uint16) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ports = ports
	d.Serve(ports)
	return d.tell(ctx)
}

// look says that a peer's addresses may have changed. It never blocks.
func (d *doors) look() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Run follows the peers' addresses until ctx ends.
func (d *doors) Run(ctx context.Context) error {
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.wake:
		case <-retry:
		}
		d.mu.Lock()
		err := d.tell(ctx)
		d.mu.Unlock()
		if retry = nil; err != nil && ctx.Err() == nil {
			d.log.Warn("what comes from exits may be lost, trying again", "err", err)
			retry = time.After(doorRetry)
		}
	}
}

// tell has nftables do what is not done yet; d.mu is held.
func (d *doors) tell(ctx context.Context) error {
	all := make([]host.ShareExit, 0, len(d.ports))
	for k, port := range d.ports {
		all = append(all, host.ShareExit{Port: port, From: d.From(k)})
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Port < all[j].Port })
	if d.done && reflect.DeepEqual(all, d.told) {
		return nil
	}
	err := d.share(ctx, d.outer, all)
	d.told, d.done = all, err == nil
	return err
}
