package underlay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"subnetd/subnetd/mesh"
	"subnetd/subnetd/path"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

const (
	relayQueue   = 64               // packets waiting for one relay
	relayIdle    = 60 * time.Second // after the last write, if it is not our home
	relayBackoff = 5 * time.Second  // longest wait before another try
)

// relay is our connection to one region: open for ever if it is our home, on
// demand otherwise.
type relay struct {
	u      *Underlay
	region mesh.RelayRegion
	key    key.NodePrivate
	cancel context.CancelFunc

	home  atomic.Bool
	queue chan *packet  // full: the oldest is dropped
	wake  chan struct{} // one slot: home or queue changed
	conn  atomic.Pointer[gatherer]
}

func (u *Underlay) newRelay(region mesh.RelayRegion, k key.NodePrivate, cancel context.CancelFunc) *relay {
	return &relay{u: u, region: region, key: k, cancel: cancel,
		queue: make(chan *packet, relayQueue), wake: make(chan struct{}, 1)}
}

// enqueue copies a packet into the queue, dropping the oldest if it is full.
func (r *relay) enqueue(to key.NodePublic, b []byte) {
	p := r.u.newPacket(b)
	if p == nil {
		return
	}
	p.peer = to
	for {
		select {
		case r.queue <- p:
			signal(r.wake)
			return
		default:
		}
		select {
		case old := <-r.queue:
			r.u.free(old)
		default:
		}
	}
}

func (r *relay) setHome(home bool) {
	if r.home.Swap(home) != home {
		signal(r.wake)
	}
}

// leave closes the connection if its local address is no longer ours.
func (r *relay) leave(ours map[netip.Addr]bool) {
	g := r.conn.Load()
	if g == nil {
		return
	}
	if a, ok := g.conn.LocalAddr().(*net.TCPAddr); ok {
		if local := a.AddrPort().Addr().Unmap(); !local.IsLoopback() && !ours[local.WithZone("")] {
			g.conn.Close()
		}
	}
}

// run keeps the connection as long as it is wanted, until ctx ends.
func (r *relay) run(ctx context.Context) {
	defer r.drain()
	wait := time.Duration(0)
	said := ""
	for ctx.Err() == nil {
		if !r.home.Load() && len(r.queue) == 0 {
			select {
			case <-r.wake:
			case <-ctx.Done():
			}
			continue
		}
		began := r.u.cfg.Now()
		err := r.once(ctx)
		if err == nil || ctx.Err() != nil {
			wait, said = 0, ""
			continue
		}
		if err.Error() != said {
			said = err.Error()
			r.u.cfg.Log.Warn("relay", "region", r.region.ID, "err", err)
		}
		if !r.home.Load() {
			r.drain() // what waits is old; new packets will try again
		}
		if r.u.cfg.Now().Sub(began) > 2*relayBackoff {
			wait = 0
		}
		wait = min(max(2*wait, 250*time.Millisecond), relayBackoff)
		pause(ctx, wait/2+rand.N(wait/2))
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (r *relay) drain() {
	for {
		select {
		case p := <-r.queue:
			r.u.free(p)
		default:
			return
		}
	}
}

// once connects and serves one connection. nil means that it was closed
// because nobody needed it.
func (r *relay) once(ctx context.Context) error {
	c, g, err := r.connect(ctx)
	if err != nil {
		return err
	}
	r.conn.Store(g)
	defer r.conn.Store(nil)
	r.u.resumeOver(r.region.ID)
	r.u.cfg.Log.Debug("relay connected", "region", r.region.ID)

	pongs := make(chan [8]byte, 1)
	lost := make(chan error, 1)
	go func() { lost <- r.read(c, pongs) }()
	stop := context.AfterFunc(ctx, func() { g.conn.Close() })
	defer stop()
	err, over := r.write(c, g, pongs, lost)
	g.conn.Close()
	if !over {
		<-lost
	}
	return err
}

// connect tries the region's nodes in their order.
func (r *relay) connect(ctx context.Context) (*derp.Client, *gatherer, error) {
	errs := []error{errors.New("region has no relay")}
	d := dialer{mark: r.u.cfg.Mark, now: r.u.cfg.Now, log: r.u.cfg.Log}
	for _, n := range r.region.Nodes {
		if n.STUNOnly {
			continue
		}
		c, g, err := d.derp(ctx, n, r.key)
		if err == nil {
			return c, g, nil
		}
		errs = append(errs, fmt.Errorf("relay %s: %w", n.Host, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, nil, errors.Join(errs[min(1, len(errs)-1):]...)
}

// write sends what is queued. over says that the reader has ended already.
func (r *relay) write(c *derp.Client, g *gatherer, pongs <-chan [8]byte, lost <-chan error) (err error, over bool) {
	preferred := false
	idle := time.NewTimer(relayIdle)
	defer idle.Stop()
	for {
		if home := r.home.Load(); home != preferred {
			preferred = home
			if err := c.NotePreferred(home); err != nil {
				return err, false
			}
		}
		wrote, err := r.sendQueued(c)
		if err == nil {
			err = g.flush()
		}
		if err != nil {
			return err, false
		}
		if wrote {
			idle.Reset(relayIdle)
		}
		select {
		case pong := <-pongs:
			err = c.SendPong(pong)
		case <-r.wake:
		case <-idle.C:
			if !r.home.Load() {
				return nil, false
			}
			idle.Reset(relayIdle)
		case err := <-lost:
			return err, true
		}
		if err != nil {
			return err, false
		}
	}
}

// sendQueued sends what waits, up to a full queue; wrote says if it was anything.
func (r *relay) sendQueued(c *derp.Client) (wrote bool, err error) {
	for range relayQueue {
		select {
		case p := <-r.queue:
			wrote = true
			if err := r.sendOne(c, p); err != nil {
				return wrote, err
			}
		default:
			return wrote, nil
		}
	}
	signal(r.wake) // there may be more
	return wrote, nil
}

func (r *relay) sendOne(c *derp.Client, p *packet) error {
	defer r.u.free(p)
	return c.Send(p.peer, p.bytes())
}

// read takes what comes until the connection ends; the client itself gives up
// after 120 s of silence.
func (r *relay) read(c *derp.Client, pongs chan<- [8]byte) error {
	for {
		m, err := c.Recv()
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case derp.ReceivedPacket:
			r.received(m.Source, m.Data)
		case derp.PingMessage:
			select {
			case pongs <- m:
			default:
			}
		case derp.PeerGoneMessage:
			r.u.hint(path.RelayGone{Peer: m.Peer, Region: r.region.ID})
		case derp.HealthMessage:
			if m.Problem != "" {
				r.u.cfg.Log.Warn("relay reports a problem", "region", r.region.ID, "problem", m.Problem)
			}
		}
	}
}

func (r *relay) received(from key.NodePublic, b []byte) {
	u := r.u
	src := path.Source{Region: r.region.ID, Node: from}
	p := (*u.peers.Load())[from]
	if p == nil {
		return // not in our mesh
	}
	p.region.Store(int32(r.region.ID))
	if classify(b) == kindDisco {
		u.takeDisco(src, b)
		return
	}
	q := u.newPacket(b)
	if q == nil {
		return
	}
	q.from, q.peer = src, from
	u.noteReceived(p, src)
	select {
	case u.relayIn <- q:
	default:
		u.free(q)
	}
}
