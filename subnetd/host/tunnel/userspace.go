package tunnel

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"subnetd/subnetd/host"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"tailscale.com/types/key"
)

// Transport carries WireGuard packets between nodes, which it knows by key.
type Transport interface {
	// Open gives the receivers of all packets; they return net.ErrClosed after
	// CloseReceivers. A zero key is a sender the transport does not know.
	Open() ([]func(packets [][]byte, sizes []int, from []key.NodePublic) (int, error), uint16, error)
	CloseReceivers() error
	// Send sends packets to the node the best way there is.
	Send(to key.NodePublic, packets [][]byte) error
	// BatchSize is how many packets the receivers may give at once.
	BatchSize() int
}

// Userspace is the engine in this process. Its methods may be called from
// several goroutines.
type Userspace struct {
	log  *slog.Logger
	open func(name string, mtu int) (tun.Device, error)

	mu   sync.Mutex // guards all below
	bind *bind
	dev  *device.Device // nil: no interface
	now  host.Tunnel    // what the device is
}

// NewUserspace makes an engine with no interface yet.
func NewUserspace(log *slog.Logger, transport Transport) *Userspace {
	u := &Userspace{log: log, open: openTUN}
	u.bind = newBind(transport, u.greet)
	return u
}

// openTUN makes the interface. It ends with this process.
func openTUN(name string, mtu int) (tun.Device, error) {
	t, err := tun.CreateTUN(name, mtu)
	switch {
	case err == nil:
		return &batches{Device: t}, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("the kernel has no TUN device: load the module tun (OpenWrt: kmod-tun): %w", err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("making interface %s needs root or CAP_NET_ADMIN: %w", name, err)
	case errors.Is(err, syscall.EBUSY), errors.Is(err, syscall.EINVAL):
		return nil, fmt.Errorf("interface %s exists and is somebody else's: stop its owner or set tunnel.interface: %w", name, err)
	}
	return nil, fmt.Errorf("making interface %s: %w", name, err)
}

// Set brings the interface and its peers to want. Peers that stay keep their
// sessions. An interface without name is none.
func (u *Userspace) Set(_ context.Context, want host.Tunnel) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.dev != nil && (want.Name != u.now.Name || dead(u.dev)) {
		u.close()
	}
	if want.Name == "" {
		return nil
	}
	if u.dev == nil {
		if err := u.start(want.Name); err != nil {
			return err
		}
	}
	u.bind.setPeers(want.Peers)
	if text := change(u.now, want); text != "" {
		if err := u.dev.IpcSet(text); err != nil {
			u.now.Peers = nil // unknown now: the next Set says everything again
			return fmt.Errorf("setting interface %s: %w", want.Name, err)
		}
		// The transport knows where a peer is; a packet's source says nothing.
		u.dev.DisableSomeRoamingForBrokenMobileSemantics()
	}
	u.forgetSessions(want.Peers)
	u.now = want
	return nil
}

// dead reports whether the device ended by itself: somebody removed the interface.
func dead(d *device.Device) bool {
	select {
	case <-d.Wait():
		return true
	default:
		return false
	}
}

func (u *Userspace) start(name string) error {
	t, err := u.open(name, host.MTU)
	if err != nil {
		return err
	}
	chatter := func(format string, args ...any) { u.log.Debug(fmt.Sprintf(format, args...)) }
	u.dev = device.NewDevice(t, u.bind, &device.Logger{Verbosef: device.DiscardLogf, Errorf: chatter})
	u.now = host.Tunnel{Name: name}
	if err := u.dev.Up(); err != nil {
		u.close()
		return fmt.Errorf("starting interface %s: %w", name, err)
	}
	return nil
}

func (u *Userspace) close() {
	u.dev.Close()
	u.bind.setPeers(nil) // a new device has met nobody
	u.dev, u.now = nil, host.Tunnel{}
}

// forgetSessions drops the session keys of peers that restarted: packets under
// the old ones would be lost until a timer finds out.
func (u *Userspace) forgetSessions(want []host.Peer) {
	was := map[key.NodePublic]string{}
	for _, p := range u.now.Peers {
		was[p.Key] = p.Session
	}
	for _, p := range want {
		if old, ok := was[p.Key]; ok && old != "" && old != p.Session {
			if peer := u.dev.LookupPeer(device.NoisePublicKey(p.Key.AppendTo(nil))); peer != nil {
				peer.ExpireCurrentKeypairs()
			}
		}
	}
}

// Kick starts the handshake over if the last one was not answered. It is for
// when there is a new path to the peer: WireGuard by itself would wait five
// seconds.
func (u *Userspace) Kick(k key.NodePublic) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.dev != nil && u.bind.takeWaiting(k) {
		u.handshake(k)
	}
}

// greet starts a handshake with a node that sends under keys of an earlier
// life. It is called by the device's receivers, which u.close waits for.
func (u *Userspace) greet(k key.NodePublic) { go u.begin(k) }

// begin starts a handshake with the peer, if there is one.
func (u *Userspace) begin(k key.NodePublic) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if e := u.bind.roster.Load().byKey[k]; u.dev != nil && e != nil {
		e.met.Store(true) // a second handshake at once would spoil the first
		u.handshake(k)
	}
}

// has reports whether the interface has the peer.
func (u *Userspace) has(k key.NodePublic) bool { return u.bind.roster.Load().byKey[k] != nil }

// handshake starts a handshake with the peer; u.mu is held.
func (u *Userspace) handshake(k key.NodePublic) {
	if peer := u.dev.LookupPeer(device.NoisePublicKey(k.AppendTo(nil))); peer != nil {
		peer.ExpireCurrentKeypairs()
		if err := peer.SendHandshakeInitiation(false); err != nil {
			u.log.Debug("handshake", "peer", k.ShortString(), "err", err)
		}
	}
}

// Stats is what every peer's tunnel has carried.
func (u *Userspace) Stats() map[key.NodePublic]Stat {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.dev == nil {
		return nil
	}
	text, err := u.dev.IpcGet()
	if err != nil {
		return nil
	}
	return parseStats(text, u.bind.keys())
}

// Close removes the interface.
func (u *Userspace) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.dev != nil {
		u.close()
	}
	return nil
}

// parseStats reads the answer of the configuration protocol's get.
func parseStats(text string, keys map[string]key.NodePublic) map[key.NodePublic]Stat {
	all := make(map[key.NodePublic]Stat, len(keys))
	var k key.NodePublic
	var s Stat
	put := func() {
		if !k.IsZero() {
			all[k] = s
		}
	}
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), "=")
		n, _ := strconv.ParseUint(value, 10, 64)
		switch name {
		case "public_key":
			put()
			k, s = keys[value], Stat{}
		case "rx_bytes":
			s.Rx = n
		case "tx_bytes":
			s.Tx = n
		case "last_handshake_time_sec":
			if n != 0 {
				s.Handshake = time.Unix(int64(n), 0)
			}
		}
	}
	put()
	return all
}

func hexKey(k key.NodePublic) string {
	return hex.EncodeToString(k.AppendTo(nil))
}
