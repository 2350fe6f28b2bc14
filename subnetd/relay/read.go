package relay

import (
	"errors"
	"fmt"
	"io"
	"time"

	"go4.org/mem"
	"tailscale.com/derp"
	"tailscale.com/types/key"
)

const (
	readBuffer   = 4 << 10
	readTimeout  = 10 * time.Second // for the rest of a frame longer than the buffer
	maxDests     = 128
	maxIgnored   = 1 << 20 // bytes of a frame we do not know
	notHereBurst = 30
	notHereRate  = 10 // a second
)

// read serves frames until the connection ends. It is the one goroutine that
// reads.
func (c *client) read() error {
	defer c.settle()
	for {
		c.beforeWait(derp.FrameHeaderLen)
		t, n, err := derp.ReadFrameHeader(c.br)
		if err != nil {
			return err
		}
		if c.stopped.Load() {
			return errClosed
		}
		if c.crowded.Load() {
			c.s.spoke(c)
		}
		if err := c.frame(t, n); err != nil {
			return err
		}
	}
}

// frame reads the rest of one frame, n bytes, and does what it says.
func (c *client) frame(t derp.FrameType, n uint32) error {
	c.beforeWait(n)
	switch t {
	case derp.FrameSendPacket:
		if n < derp.KeyLen || n > derp.KeyLen+derp.MaxPacketSize {
			return fmt.Errorf("a packet frame of %d bytes", n)
		}
		return c.relay(int(n))
	case derp.FramePing:
		if n < 8 || n > 1000 { // what follows the eight bytes is for times to come
			return fmt.Errorf("a ping of %d bytes", n)
		}
		b, err := c.br.Peek(8)
		if err != nil {
			return err
		}
		c.out.reply([8]byte(b))
		return c.skip(n)
	case derp.FrameNotePreferred:
		if n != 1 {
			return fmt.Errorf("a preference of %d bytes", n)
		}
		b, err := c.br.ReadByte()
		c.preferred.Store(b != 0)
		return err
	case derp.FrameForwardPacket, derp.FrameWatchConns, derp.FrameClosePeer:
		return errors.New("asked for what only relays may of each other")
	}
	if n > maxIgnored {
		return fmt.Errorf("an unknown frame of %d bytes", n)
	}
	return c.skip(n)
}

func (c *client) skip(n uint32) error {
	_, err := c.br.Discard(int(n))
	return err
}

// relay reads a destination and a packet, n bytes together, and puts the packet
// into the outbox of whom it is for.
func (c *client) relay(n int) error {
	if n > readBuffer { // who stops in the middle holds memory that others want
		c.conn.SetReadDeadline(time.Now().Add(readTimeout))
		defer c.conn.SetReadDeadline(time.Time{})
	}
	b, err := c.br.Peek(derp.KeyLen)
	if err != nil {
		return err
	}
	k := key.NodePublicFromRaw32(mem.B(b))
	to := c.destination(k)
	if to == nil {
		c.s.unknown.Add(1)
		if c.notHere.spend(c.s.cfg.Now()) {
			c.out.gone(k, derp.PeerGoneReasonNotHere)
		}
		return c.skip(uint32(n))
	}
	if _, err := c.br.Discard(derp.KeyLen); err != nil {
		return err
	}
	p := c.s.pools.packet(n-derp.KeyLen, c.seat)
	if _, err := io.ReadFull(c.br, p.frame[recvHeader:]); err != nil {
		return err
	}
	if !to.out.put(c.s, p, looksDisco(p.frame[recvHeader:])) {
		return nil
	}
	if c.waking != to {
		c.settle()
		c.waking = to
	}
	return nil
}

// beforeWait is called before n bytes are read. If we are going to wait for
// them, whoever has got something from us must not wait with us. As long as we
// need not wait, he may: what comes in one piece goes out in one piece.
func (c *client) beforeWait(n uint32) {
	if uint32(c.br.Buffered()) < n {
		c.settle()
	}
}

func (c *client) settle() {
	if c.waking != nil {
		c.waking.out.signal()
		c.waking = nil
	}
}

// destination is the connection that gets the packets of k. nil: there is none.
func (c *client) destination(k key.NodePublic) *client {
	if c.last == nil || c.last.key != k {
		st := c.dests[k]
		if st == nil {
			return c.lookUp(k)
		}
		c.last = st
	}
	if to := c.last.active.Load(); to != nil {
		return to
	}
	return c.lookUp(k) // he may have come back, to a new seat
}

// lookUp asks the server, and remembers whom we send to: it makes the next time
// cheap, and he will be told when we are gone.
func (c *client) lookUp(k key.NodePublic) *client {
	st := c.s.find(k)
	if st == nil {
		return nil
	}
	if _, known := c.dests[k]; !known && len(c.dests) >= maxDests {
		for other := range c.dests { // whoever it is
			delete(c.dests, other)
			break
		}
	}
	c.dests[k], c.last = st, st
	return st.active.Load()
}

// allowance bounds how often something is said.
type allowance struct {
	spent float64
	at    time.Time
}

func (a *allowance) spend(now time.Time) bool {
	a.spent = max(0, a.spent-now.Sub(a.at).Seconds()*notHereRate)
	a.at = now
	if a.spent > notHereBurst-1 {
		return false
	}
	a.spent++
	return true
}
