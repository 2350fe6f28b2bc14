package underlay

import (
	"context"
	"errors"
	"time"
)

// The port mapper's use of UPnP. It takes seconds and many packets, so it runs
// beside the mapper's loop, one job after the other: what an aborted job may
// have left at the router is deleted before the next begins.

// mapSilent is how many requests stay unanswered before UPnP is tried beside
// the other two; a router that speaks only UPnP grants within seconds so.
const mapSilent = 3

// upnpTry is a job that acquires or renews a mapping. Once done is closed, the
// rest may be read.
type upnpTry struct {
	cancel  context.CancelFunc
	done    <-chan struct{}
	mapping upnpMapping
	err     error
}

func (t *upnpTry) ended() <-chan struct{} {
	if t == nil {
		return nil
	}
	return t.done
}

// upnpJob runs f after all jobs before it.
func (m *portMapper) upnpJob(f func()) <-chan struct{} {
	before, done := m.upnpLast, make(chan struct{})
	m.upnpLast = done
	m.upnpJobs.Go(func() {
		defer close(done)
		if before != nil {
			<-before
		}
		f()
	})
	return done
}

// tryUPnP asks for a mapping, once after each begin. With an address that
// peers reach we need none, and the network around us is not a home.
func (m *portMapper) tryUPnP() {
	if m.upnp == nil || m.upnpTried || m.link == nil || reachable(m.link.local) {
		return
	}
	m.upnpTried = true
	m.startUPnP(upnpMapping{net: m.upnp, router: m.router, local: m.link.local, port: m.port})
}

func (m *portMapper) startUPnP(want upnpMapping) {
	ctx, cancel := context.WithCancel(m.ctx)
	t := &upnpTry{cancel: cancel, mapping: want}
	t.done = m.upnpJob(func() { t.err = t.mapping.acquire(ctx) })
	m.try = t
}

// takeUPnP takes how a try ended.
func (m *portMapper) takeUPnP() {
	t := m.try
	m.try = nil
	t.cancel()
	var no *upnpRefusal
	switch {
	case t.err == nil:
		m.holdUPnP(t.mapping)
		return
	case m.speaks != speaksUPnP:
		m.releaseUPnP(t.mapping)
	case !m.held.IsValid(): // it expired meanwhile
	case errors.Is(t.err, errUPnPUseless):
		m.releaseUPnP(m.igd)
		m.giveUp(mapRetry)
	case errors.As(t.err, &no):
		m.giveUp(mapRetrySoon) // and then ask from the start
	default:
		m.noAnswer()
	}
	m.log.Debug("port mapping: no UPnP", "router", m.router, "err", t.err)
}

// holdUPnP takes a mapping that was granted. The other protocols, if a round
// is under way, came too late.
func (m *portMapper) holdUPnP(got upnpMapping) {
	if m.speaks == speaksUnknown {
		m.unmap()
	}
	m.giveUp(0)
	now := time.Now()
	m.speaks, m.igd, m.held, m.retry = speaksUPnP, got, got.external, time.Time{}
	m.expire, m.renew = now.Add(got.lifetime), now.Add(got.lifetime/2)
}

// dropUPnP ends a try. What it may have got goes as well, but not the port
// that we hold: many routers have one table for all protocols.
func (m *portMapper) dropUPnP() {
	t := m.try
	if t == nil {
		return
	}
	m.try = nil
	t.cancel()
	keep := m.held.Port()
	m.deleteUPnP(func() (upnpMapping, bool) { return t.mapping, t.mapping.external.Port() != keep })
}

func (m *portMapper) releaseUPnP(old upnpMapping) {
	m.deleteUPnP(func() (upnpMapping, bool) { return old, true })
}

// deleteUPnP deletes what which says when the jobs before have ended. It is
// for the end, too, so that the limit is for all that is still to do.
func (m *portMapper) deleteUPnP(which func() (upnpMapping, bool)) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.ctx), upnpLeave)
	m.upnpJob(func() {
		defer cancel()
		old, ok := which()
		if !ok || !old.external.IsValid() {
			return
		}
		if err := old.release(ctx); err != nil {
			m.log.Debug("port mapping: not deleted", "router", old.router, "err", err)
		}
	})
}
