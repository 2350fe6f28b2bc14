package relay

import (
	"math/rand/v2"
	"time"

	"tailscale.com/derp"
)

const (
	writeTimeout = 10 * time.Second // at most; half of it at least
	jitter       = 5 * time.Second  // so that not all clients are woken up together
)

// write sends what waits until the connection ends. It is the one goroutine
// that writes.
func (c *client) write() {
	defer c.raw.Close() // the reader shall end, too
	tick := time.NewTicker(derp.KeepAlive + rand.N(jitter))
	defer tick.Stop()
	for {
		select {
		case <-c.out.wake:
		case <-tick.C:
			c.out.keepAlive()
		}
		if !c.flush() {
			return
		}
	}
}

// flush writes until nothing waits. false: the connection has ended.
func (c *client) flush() bool {
	rec := c.s.pools.record()
	defer c.s.pools.freeRecord(rec)
	for {
		var open bool
		*rec, c.batch, open = c.out.take((*rec)[:0], c.batch[:0])
		for i, p := range c.batch {
			*rec = append(*rec, p.frame...)
			c.s.pools.free(p)
			c.batch[i] = nil
		}
		if len(*rec) == 0 || !open {
			return open
		}
		if err := c.send(*rec); err != nil {
			return false
		}
	}
}

// send writes one record. The deadline is moved only from time to time: it costs
// as much as a small write.
func (c *client) send(b []byte) error {
	if now := time.Now(); c.until.Sub(now) < writeTimeout/2 {
		c.until = now.Add(writeTimeout)
		if err := c.conn.SetWriteDeadline(c.until); err != nil {
			return err
		}
	}
	_, err := c.conn.Write(b)
	return err
}
