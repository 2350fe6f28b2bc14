package tunnel

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"sync"

	"subnetd/subnetd/host"

	"tailscale.com/types/key"
)

// Doors is Ways for more than one interface.
type Doors interface {
	Ways
	// Served says on which port of its own the kernel's WireGuard takes what comes
	// from these peers; from all others it takes it on the main one. Once it
	// returns, packets pass both ways, and to the world all come from the main port.
	Served(ctx context.Context, ports map[key.NodePublic]uint16) error
}

// Kernels is the engine in the kernel with all its interfaces: a Kernel for the
// main one and one for each exit. They know nothing of one another; a peer that
// moves between two of them costs no other peer anything.
type Kernels struct {
	doors   Doors
	main    *Kernel
	changed chan struct{}                     // one slot: Run shall look at exits
	kernel  func(port uint16, w Ways) *Kernel // makes one

	sets sync.Mutex // one Set at a time; taken before mu

	mu    sync.Mutex                 // guards all below; never held for long
	exits map[string]*Kernel         // by interface
	homes map[key.NodePublic]*Kernel // of peers that have an exit's
}

// NewKernels makes an engine with no interface yet. The main one will listen on the
// port, those of exits on ports that the kernel chooses.
func NewKernels(log *slog.Logger, port uint16, mark uint32, d Doors) *Kernels {
	return newKernels(port, d, func(port uint16, w Ways) *Kernel { return NewKernel(log, port, mark, w) })
}

func newKernels(port uint16, d Doors, kernel func(uint16, Ways) *Kernel) *Kernels {
	return &Kernels{doors: d, main: kernel(port, d), kernel: kernel, changed: make(chan struct{}, 1),
		exits: map[string]*Kernel{}, homes: map[key.NodePublic]*Kernel{}}
}

// String is the name of the task.
func (k *Kernels) String() string { return "tunnel" }

// Adopt takes over what was left; see Kernel.Adopt.
func (k *Kernels) Adopt(left Left) {
	k.main.Adopt(left)
	for _, e := range left.Exits {
		k.exit(e.Name).Adopt(Left{Name: e.Name})
	}
}

// exit is the Kernel of an exit's interface, a new one if there is none.
func (k *Kernels) exit(name string) *Kernel {
	k.mu.Lock()
	defer k.mu.Unlock()
	x := k.exits[name]
	if x == nil {
		x = k.kernel(0, k.doors)
		k.exits[name] = x
		k.signal()
	}
	return x
}

func (k *Kernels) signal() {
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// Set brings all interfaces to want. A new one is there, and its packets pass, when
// its peer leaves the main one; one that goes is gone before its port counts no
// more, or its last packets would show it to the world. The other end goes on under
// the keys of the old interface, so that who moves shakes hands at once. A part that
// fails does not stop the others.
func (k *Kernels) Set(ctx context.Context, want host.Tunnel) error {
	k.sets.Lock()
	defer k.sets.Unlock()
	exits := want.Exits
	if want.Exits = nil; want.Name == "" {
		exits = nil
	}
	moved := k.settle(exits)
	var errs []error
	ports := map[key.NodePublic]uint16{}
	for _, e := range exits {
		x := k.exit(e.Name)
		errs = append(errs, x.Set(ctx, host.Tunnel{Name: e.Name, Key: want.Key, Peers: []host.Peer{e.Peer}}))
		if port := x.listensOn(); port != 0 {
			ports[e.Peer.Key] = port
		}
	}
	errs = append(errs, k.drop(ctx, exits), k.doors.Served(ctx, ports), k.main.Set(ctx, want))
	for _, p := range moved {
		k.home(p).kick(p, true)
	}
	return errors.Join(errs...)
}

// settle notes which peers are on exits' interfaces from now on, so that pins find
// them, and gives those that have been elsewhere.
func (k *Kernels) settle(exits []host.ExitTunnel) (moved []key.NodePublic) {
	homes := make(map[key.NodePublic]*Kernel, len(exits))
	for _, e := range exits {
		homes[e.Peer.Key] = k.exit(e.Name)
	}
	k.mu.Lock()
	was := k.homes
	k.homes = homes
	k.mu.Unlock()
	all := maps.Clone(was)
	maps.Copy(all, homes)
	for p := range all {
		from := was[p]
		if from == nil {
			from = k.main
		}
		if from != k.home(p) && from.has(p) {
			moved = append(moved, p)
		}
	}
	return moved
}

// drop removes the interfaces of exits that nobody wants.
func (k *Kernels) drop(ctx context.Context, exits []host.ExitTunnel) error {
	gone := k.all()
	for _, e := range exits {
		delete(gone, e.Name)
	}
	var errs []error
	for name, x := range gone {
		if err := x.Set(ctx, host.Tunnel{}); err != nil {
			errs = append(errs, err)
			continue
		}
		k.mu.Lock()
		delete(k.exits, name)
		k.mu.Unlock()
		k.signal()
		errs = append(errs, x.Close())
	}
	return errors.Join(errs...)
}

// all are the Kernels of exits now.
func (k *Kernels) all() map[string]*Kernel {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.exits)
}

// home is the Kernel that has the peer, or would have it.
func (k *Kernels) home(p key.NodePublic) *Kernel {
	k.mu.Lock()
	defer k.mu.Unlock()
	if x := k.homes[p]; x != nil {
		return x
	}
	return k.main
}

// Pin has the kernel send to the peer at that endpoint; see Kernel.Pin.
func (k *Kernels) Pin(peer key.NodePublic, to netip.AddrPort) { k.home(peer).Pin(peer, to) }

// Kick starts a handshake over; see Kernel.Kick.
func (k *Kernels) Kick(peer key.NodePublic) { k.home(peer).Kick(peer) }

// Look has all interfaces watched for a while; see Kernel.Look.
func (k *Kernels) Look() {
	k.main.Look()
	for _, x := range k.all() {
		x.Look()
	}
}

// Stats is what every peer's tunnel has carried.
func (k *Kernels) Stats() map[key.NodePublic]Stat {
	all := k.main.Stats()
	for _, x := range k.all() {
		maps.Copy(all, x.Stats())
	}
	return all
}

// Run runs every interface's Kernel while it is wanted, until ctx ends.
func (k *Kernels) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { _ = k.main.Run(ctx) })
	stop := map[*Kernel]context.CancelFunc{}
	for {
		gone := maps.Clone(stop)
		for _, x := range k.all() {
			if stop[x] == nil {
				run, cancel := context.WithCancel(ctx)
				stop[x] = cancel
				running.Go(func() { _ = x.Run(run) })
			}
			delete(gone, x)
		}
		for x, cancel := range gone {
			cancel()
			delete(stop, x)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-k.changed:
		}
	}
}

// Close sends the pins that wait and ends the conversation with the kernel; see
// Kernel.Close.
func (k *Kernels) Close() error {
	err := k.main.Close()
	for _, x := range k.all() {
		err = errors.Join(err, x.Close())
	}
	return err
}
