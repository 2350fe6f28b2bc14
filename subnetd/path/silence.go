package path

import "time"

// How soon a path that died under traffic is noticed.
//
// Sent and Received are told at most once a second. So data may have gone out
// for saidFor after a Sent, and may have come in for as long after a Received:
// what came is seen too old, never too young. A flow that lives renews it every
// second and a packet; silentAfter leaves room for that, or every flow would be
// pinged every second. A ping that goes out by then is later than saidFor after
// what was told, so what comes after it is told at once, and only when neither
// that comes nor its pong, nor that of another, is there doubt. A hint that is
// lost to a full queue costs a ping, no more.
//
// The path dies at 0. Received was told at 0 at the latest: at 1.1 s a ping is
// out, at 1.8 s there is doubt. Where data is counted every P (kernel), Received
// is told P too late: P + 1.8 s. The first to notice sends over the relay as
// well, which tells the other, who still hears it, to ask: 0.3 s and the way of
// the relay later it knows too, by 2.2 s or P + 2.2 s.
const (
	saidFor     = time.Second
	silentAfter = 1100 * time.Millisecond
	askEvery    = time.Second            // pings of a path that is silent, but answers
	doubtAfter  = 700 * time.Millisecond // of the first without an answer, or 3 round trips
	deafAfter   = 250 * time.Millisecond
)

// doubt is why a path is not trusted although its time is not over.
type doubt uint8

const (
	sure   doubt = iota
	silent       // data goes out, nothing comes in
	deaf         // the peer lets us know by a relay that it hears nothing
)

// heardNow notes that the path has answered, or that another begins.
func (p *peer) heardNow(now time.Time) {
	p.came, p.unheard, p.deaf, p.doubt = now, time.Time{}, time.Time{}, sure
}

// onReceived notes where data came from. Only what came from the address in
// use says that this lives: another may be open while it is not. Pings of the
// peer say nothing: it would send them also if it heard us no more.
func (m *Machine) onReceived(p *peer, from Source) {
	switch {
	case from.relayed():
		p.heardOver(from.Region)
		m.suspect(p)
	case p.trusted(m.now) && p.best.addr == unmap(from.Addr):
		p.came, p.unheard = m.now, time.Time{} // only an answer brings trust back
	case p.best != nil && p.best.addr == unmap(from.Addr):
		p.still = m.now
	}
}

// deadAt returns when a doubted path is none any more. Where data still comes
// from, some of ours may arrive: the peer's WireGuard outlives its daemon, which
// alone answers pings.
func (p *peer) deadAt() time.Time { return later(p.best.asked, p.still).Add(deadAfter) }

// suspect notes that a peer which should hear us directly called or sent over
// a relay.
func (m *Machine) suspect(p *peer) {
	if p.active(m.now) && p.trusted(m.now) && p.deaf.IsZero() {
		p.deaf = m.now
	}
}

// listen asks a trusted path in use that has fallen silent, and doubts it if
// there is no answer.
func (m *Machine) listen(p *peer) {
	if !p.active(m.now) || !p.trusted(m.now) {
		return
	}
	due := func(t time.Time) bool { return !t.IsZero() && !m.now.Before(t) }
	if due(p.doubtAt()) {
		m.distrust(p)
	} else if due(p.askAt()) {
		m.ping(p, p.best)
	}
}

// waiting reports whether data may have been sent after the last that came.
func (p *peer) waiting() bool { return p.came.Before(p.lastSent.Add(saidFor)) }

// askAt returns when the trusted path is to be pinged for its silence; zero:
// it is not.
func (p *peer) askAt() time.Time {
	c := p.best
	switch {
	case !p.deaf.IsZero():
		return c.pinged.Add(askEvery)
	case !p.waiting():
		return time.Time{}
	case p.unheard.IsZero():
		return later(p.came.Add(silentAfter), c.pinged.Add(askEvery))
	}
	return later(p.came.Add(silentAfter), c.pinged.Add(c.patience()/2))
}

// patience is how long an answer may take; in that time it is asked twice, or
// each packet that is lost would be a doubt.
func (c *candidate) patience() time.Duration { return max(doubtAfter, 3*c.rtt) }

// doubtAt returns when the trusted path will have been silent for too long;
// zero: it is not.
func (p *peer) doubtAt() time.Time {
	c := p.best
	var at time.Time
	if p.waiting() && !p.unheard.IsZero() {
		at = later(p.unheard.Add(c.patience()), p.came.Add(saidFor+doubtAfter))
	}
	if !p.deaf.IsZero() && !c.asked.IsZero() {
		t := later(c.asked.Add(max(deafAfter, 3*c.rtt)), p.deaf)
		if at.IsZero() || t.Before(at) {
			at = t
		}
	}
	return at
}

// distrust doubts the path, and looks for one at once. Our own NAT may have
// forgotten us, so that our endpoints are new.
func (m *Machine) distrust(p *peer) {
	p.doubt = silent
	if !p.deaf.IsZero() {
		p.doubt = deaf
	}
	p.trustUntil, p.deaf, p.unheard = time.Time{}, time.Time{}, time.Time{}
	p.discovered, p.best.pinged = time.Time{}, time.Time{}
	m.restun()
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}
