package underlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"tailscale.com/types/key"
)

// In kernel mode every peer has an address of its own on lo, 127.64.0.0/10,
// which is its endpoint in the kernel while there is no direct path to it. All
// of them end in one socket of ours, the conduit: which address the kernel sends
// to says whom it means, and which one we send from says whom we speak for.
const (
	loopbacks    = 0x7f400000 // 127.64.0.0
	loopbackMask = 1<<22 - 1
	loopbackLink = 1 // index of lo, in every namespace
)

const (
	initiationSize = 148             // bytes of WireGuard's first handshake message
	initiationFor  = 5 * time.Second // then WireGuard sends another by itself
)

// The first bytes of WireGuard's messages. Three zeros follow.
const (
	wireguardInitiation = 1
	wireguardResponse   = 2
	wireguardData       = 4
)

// initiation is a handshake that the kernel began and nobody has answered.
type initiation struct {
	at   time.Duration // uptime
	data [initiationSize]byte
}

// conduit is the socket on lo, and who has which address.
type conduit struct {
	sock   *socket
	port   uint16
	kernel netip.AddrPort // where the kernel's WireGuard listens

	mu     sync.Mutex // guards the maps: the loop and the tunnel make peers
	byKey  map[key.NodePublic]*peer
	byAddr map[netip.AddrPort]*peer // by their addresses on lo
	doors  map[key.NodePublic]uint16
}

// openConduit opens the socket on the port asked for, or on another if that is
// taken: who depends on the port is told by the pins.
func openConduit(cfg Config) (*conduit, error) {
	lc := net.ListenConfig{Control: conduitControl(cfg.Mark, cfg.Log)}
	var s *socket
	var err error
	for _, port := range []uint16{cfg.Conduit, 0, 0} {
		if s, err = open(lc, "udp4", port); err != nil {
			cfg.Log.Warn("another conduit port is used this time", "port", port, "err", err)
			continue
		}
		if s.port() != cfg.Public {
			return &conduit{
				sock: s, port: s.port(), kernel: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), cfg.Public),
				byKey: map[key.NodePublic]*peer{}, byAddr: map[netip.AddrPort]*peer{},
			}, nil
		}
		s.close()
		err = errors.New("it is the public port, which is WireGuard's")
	}
	return nil, fmt.Errorf("open UDP port %d on lo for relayed peers: %w", cfg.Conduit, err)
}

// conduitControl keeps the world out: what does not come by lo is not for us.
// Old kernels need a privilege for that; take looks once more.
func conduitControl(mark int, log *slog.Logger) func(string, string, syscall.RawConn) error {
	setMark := markControl(mark, log)
	return func(network, address string, c syscall.RawConn) error {
		var infoErr error
		err := c.Control(func(fd uintptr) {
			_ = unix.BindToDevice(int(fd), "lo")
			infoErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		})
		return errors.Join(err, infoErr, setMark(network, address, c))
	}
}

// peer is that of the key; a new one gets an address. Whoever is first to speak
// of a peer makes it, the tunnel or the loop.
func (c *conduit) peer(k key.NodePublic) *peer {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.byKey[k]
	if p == nil {
		p = &peer{key: k, loop: c.freeAddr(k)}
		p.pin.Store(&p.loop)
		p.door.Store(uint32(c.doors[k]))
		c.byKey[k], c.byAddr[p.loop] = p, p
	}
	return p
}

// freeAddr is the address that a key leads to, or the next that is free, so that
// most peers have the same one after a restart. c.mu is held.
func (c *conduit) freeAddr(k key.NodePublic) netip.AddrPort {
	var b [4]byte
	for n := binary.BigEndian.Uint32(k.AppendTo(nil)); ; n++ { // a key is as good as random
		binary.BigEndian.PutUint32(b[:], loopbacks|n&loopbackMask)
		a := netip.AddrPortFrom(netip.AddrFrom4(b), c.port)
		if c.byAddr[a] == nil {
			return a
		}
	}
}

// keep forgets all peers but these.
func (c *conduit) keep(peers map[key.NodePublic]*peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, p := range c.byKey {
		if peers[k] != p {
			delete(c.byKey, k)
			delete(c.byAddr, p.loop)
		}
	}
}

// take is the next packet that the kernel sent to some peer. Whatever else comes
// is dropped: only the kernel's WireGuard sends from its port.
func (c *conduit) take(r *reader) (p *peer, data []byte, ok bool) {
	for {
		b, from, ok := r.take()
		if !ok {
			return nil, nil, false
		}
		to, link := r.to()
		if link != loopbackLink {
			continue
		}
		c.mu.Lock()
		p := c.byAddr[netip.AddrPortFrom(to, c.port)]
		c.mu.Unlock()
		if p != nil && c.is(from, p) {
			return p, b, true
		}
	}
}

// carryLoop carries what the kernel sends to the peers' addresses on lo, until
// the socket is closed.
func (u *Underlay) carryLoop() {
	r := newReader(u.conduit.sock)
	var batch [][]byte
	for {
		switch err := r.fill(); {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // out of memory, most likely: it passes
			u.cfg.Log.Debug("receive from the kernel", "err", err)
			time.Sleep(10 * time.Millisecond)
			continue
		}
		var to *peer
		for p, b, ok := u.conduit.take(r); ok; p, b, ok = u.conduit.take(r) {
			if p != to {
				u.carry(to, batch)
				to, batch = p, batch[:0]
			}
			batch = append(batch, b)
		}
		u.carry(to, batch)
		clear(batch)
		batch = batch[:0]
	}
}

// carry sends packets of the kernel on. That they do not get away is said by
// the peer's path, and WireGuard copes.
func (u *Underlay) carry(to *peer, packets [][]byte) {
	if len(packets) == 0 {
		return
	}
	for _, b := range packets {
		if len(b) == initiationSize && b[0] == wireguardInitiation {
			i := &initiation{at: u.uptime()}
			copy(i.data[:], b)
			to.began.Store(i)
		}
	}
	_ = u.Send(to.key, packets)
}

// resume sends the peer's last handshake again if it was not answered: the way
// it went may have led nowhere, and now there is another. Should the peer have
// it twice, it drops the second. WireGuard by itself would wait five seconds.
func (u *Underlay) resume(p *peer) {
	if i := p.began.Load(); i != nil && u.uptime()-i.at < initiationFor {
		_ = u.Send(p.key, [][]byte{i.data[:]})
	}
}

// resumeOver is resume for the peers whose packets go over the relay region.
func (u *Underlay) resumeOver(region int) {
	if u.conduit == nil {
		return
	}
	for _, p := range *u.peers.Load() {
		if _, r := p.way(); r == region {
			u.resume(p)
		}
	}
}
