package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"subnetd/subnetd/mesh"
	"subnetd/subnetd/status"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

const (
	silence     = 120 * time.Second // a stream without a frame for so long is dead
	liteTimeout = 30 * time.Second
	maxSleep    = 5 * time.Minute // that a coordinator may ask for
)

func (c *Client) mapRequest(h Host, node key.NodePublic) *tailcfg.MapRequest {
	req := &tailcfg.MapRequest{
		Version: capVersion, KeepAlive: true, NodeKey: node,
		DiscoKey: c.cfg.Disco, Hostinfo: c.hostinfo(h),
	}
	for _, e := range h.Endpoints {
		req.Endpoints = append(req.Endpoints, e.Addr)
		req.EndpointTypes = append(req.EndpointTypes, tailcfg.EndpointType(e.Type))
	}
	return req
}

// stream keeps the long poll open. It returns when that ends, always with an error.
func (c *Client) stream(ctx context.Context, l *link) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	dog := time.AfterFunc(silence, func() { cancel(errSilence) })
	defer dog.Stop()
	stale := time.AfterFunc(refreshMost, func() { cancel(errStale) })
	defer stale.Stop()
	stale.Stop()

	// A change from here on is newer than what the request carries.
	drain(c.host)
	sent, node := c.wanted(), c.nodeKey()
	req := c.mapRequest(sent, node.Public())
	req.Stream = true
	res, err := c.postMap(ctx, l, req)
	if err != nil {
		c.registered = c.registered && !unknownNode(err)
		return causeOr(ctx, err)
	}
	defer res.Body.Close()

	lite := make(chan struct{})
	go func() {
		defer close(lite)
		c.lite(ctx, l, sent, node.Public())
	}()
	defer func() { cancel(nil); <-lite }()

	return causeOr(ctx, c.readFrames(ctx, l, &frameReader{r: res.Body}, dog, stale))
}

func causeOr(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

func drain(ch chan struct{}) {
	select {
	case <-ch:
	default:
	}
}

// unknownNode reports whether a coordinator says by err that it does not know
// our key any more, as it does when its owner deleted this node. The next round
// then registers the same key again; the pauses between rounds stay.
func unknownNode(err error) bool {
	var s *statusError
	return errors.As(err, &s) && (s.code == http.StatusNotFound || s.code == http.StatusBadRequest)
}

// postMap returns an answer with status 200.
func (c *Client) postMap(ctx context.Context, l *link, req *tailcfg.MapRequest) (*http.Response, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("write map request: %w", err)
	}
	res, err := l.do(ctx, "/machine/map", req.NodeKey, body)
	if err != nil {
		return nil, err
	}
	if res.StatusCode == http.StatusOK {
		return res, nil
	}
	defer res.Body.Close()
	return nil, statusErrorOf("the map request", res, c.cfg.Now())
}

// readFrames feeds dog with each frame, and sets stale when the map must be
// asked for anew.
func (c *Client) readFrames(ctx context.Context, l *link, frames *frameReader, dog, stale *time.Timer) error {
	s, before := newSession(c.cfg.Now, c.last), c.last
	for {
		m, err := frames.next()
		if err != nil {
			return err
		}
		dog.Reset(silence)
		if m.PingRequest != nil {
			c.pings.start(ctx, c, l, m.PingRequest)
		}
		nm, err := s.apply(m)
		if err != nil {
			return err
		}
		c.refresh.answered(before, nm)
		if routes := c.wanted().Routes; hint(m, len(routes) > 0) {
			c.refresh.offered(routes)
			stale.Reset(c.refresh.wait(c.cfg.Now()))
		}
		if nm != nil {
			if err := c.publish(nm, s.warning); err != nil {
				return err
			}
		}
		dog.Stop() // the quiet that is asked for may be longer than a silence
		if err := obey(ctx, m.Debug); err != nil {
			return err
		}
		dog.Reset(silence)
	}
}

// obey waits if the coordinator asks for quiet.
func obey(ctx context.Context, d *tailcfg.Debug) error {
	if d == nil || !(d.SleepSeconds > 0) {
		return nil
	}
	return sleep(ctx, time.Duration(min(d.SleepSeconds, maxSleep.Seconds())*float64(time.Second)))
}

// publish hands a changed netmap over and derives the state from it.
func (c *Client) publish(nm *mesh.Netmap, warning error) error {
	node := c.nodeKey()
	if nm != c.last || !node.Equal(c.lastKey) {
		c.last, c.lastKey = nm, node
		if warning != nil {
			c.cfg.Log.Warn("part of the packet filter is not used", "err", warning)
		}
		if c.cfg.OnNetmap != nil {
			c.cfg.OnNetmap(nm, node)
		}
	}
	expired := nm.Self.ExpiredAt(c.cfg.Now().Add(nm.ClockSkew))
	c.setState(func(s *State) {
		s.LastContact, s.KeyExpiry = c.cfg.Now(), nm.Self.KeyExpiry
		switch {
		case expired:
			s.Phase = status.PhaseNeedsLogin
		case !nm.Self.Authorized:
			s.Phase, s.Error = status.PhaseWaiting, ""
		default:
			s.Phase, s.Error, s.LoginURL = status.PhaseJoined, "", ""
		}
	})
	if !expired {
		c.expired = 0
		return nil
	}
	return c.reauth()
}

// reauth leaves the stream to register again. The key is replaced if the
// coordinator says it is expired, or still has it expired afterwards.
func (c *Client) reauth() error {
	c.registered = false
	if c.expired++; c.expired > 1 && c.pending.IsZero() {
		c.pending = key.NewNode()
	}
	return errRekey
}

// lite tells the coordinator each change of the host, one after another, so
// that no older one overtakes a newer one.
func (c *Client) lite(ctx context.Context, l *link, sent Host, node key.NodePublic) {
	var b backoff
	for {
		select {
		case <-c.host:
		case <-ctx.Done():
			return
		}
		h := c.wanted()
		if equalHosts(h, sent) {
			continue
		}
		if err := c.sendLite(ctx, l, h, node); err != nil {
			c.cfg.Log.Debug("the coordinator did not take an update", "err", err)
			if sleep(ctx, b.next()) != nil {
				return
			}
			signal(c.host)
			continue
		}
		b.reset()
		sent = h
	}
}

func (c *Client) sendLite(ctx context.Context, l *link, h Host, node key.NodePublic) error {
	ctx, cancel := context.WithTimeout(ctx, liteTimeout)
	defer cancel()
	req := c.mapRequest(h, node)
	req.OmitPeers = true
	res, err := c.postMap(ctx, l, req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(res.Body, maxAnswer))
	return err
}
