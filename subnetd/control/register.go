package control

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"time"

	"subnetd/subnetd/mesh"
	"subnetd/subnetd/status"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

const registerTimeout = 60 * time.Second

// register makes the coordinator know our node key. A key it knows already
// needs nothing; else the auth key is used, else the owner must log in.
//
//	known key ──ok──────────────────────────────► registered
//	    │ expired: new key      │ unknown
//	    ▼                       ▼
//	new key, old key ──► with auth key ──no key──► login URL ──► long poll ──► registered
func (c *Client) register(ctx context.Context, l *link) error {
	if err := c.ensureNode(); err != nil {
		return err
	}
	useKey := c.forced || !c.pending.IsZero()
	for range 4 {
		res, req, err := c.tryRegister(ctx, l, useKey)
		switch {
		case err != nil:
			return err
		case res.NodeKeyExpired:
			// The new key is kept in memory until the coordinator has taken it.
			c.pending, useKey = key.NewNode(), true
		case res.AuthURL != "" && !useKey && c.authKey != "":
			useKey = true
		case res.AuthURL != "":
			return c.interactive(ctx, l, req, res.AuthURL)
		default:
			return c.accept(res)
		}
	}
	return &refusedError{text: "every key it is shown counts as expired"}
}

func (c *Client) ensureNode() error {
	if !c.id.Node.IsZero() {
		return nil
	}
	return c.save(Identity{Node: key.NewNode(), Server: c.id.Server})
}

// nodeKey is the key in use: the one on trial if there is one.
func (c *Client) nodeKey() key.NodePrivate {
	if !c.pending.IsZero() {
		return c.pending
	}
	return c.id.Node
}

func (c *Client) registerRequest(useKey bool) *tailcfg.RegisterRequest {
	now := c.cfg.Now()
	req := &tailcfg.RegisterRequest{
		Version: capVersion, NodeKey: c.nodeKey().Public(), Hostinfo: c.hostinfo(c.wanted()), Timestamp: &now,
	}
	if !c.pending.IsZero() {
		req.OldNodeKey = c.id.Node.Public()
	}
	if useKey && c.authKey != "" {
		req.Auth = &tailcfg.RegisterResponseAuth{AuthKey: c.authKey}
	}
	return req
}

func (c *Client) tryRegister(ctx context.Context, l *link, useKey bool) (*tailcfg.RegisterResponse, *tailcfg.RegisterRequest, error) {
	req := c.registerRequest(useKey)
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	res, err := c.postRegister(ctx, l, req)
	return res, req, err
}

// postRegister sends one request; the coordinator's own words of refusal come
// as a refusedError.
func (c *Client) postRegister(ctx context.Context, l *link, req *tailcfg.RegisterRequest) (*tailcfg.RegisterResponse, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("write register request: %w", err)
	}
	res, err := l.do(ctx, "/machine/register", req.NodeKey, body)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, registerStatus(statusErrorOf("the registration", res, c.cfg.Now()))
	}
	data, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read register answer: %w", err)
	}
	var ans tailcfg.RegisterResponse
	if err := json.Unmarshal(data, &ans); err != nil {
		return nil, fmt.Errorf("read register answer: %w", err)
	}
	c.contact()
	switch {
	case ans.Error != "":
		return nil, &refusedError{text: printable([]byte(ans.Error))}
	case len(ans.NodeKeySignature) > 0:
		return nil, errLocked
	}
	return &ans, nil
}

// registerStatus: 401 and 403 are refusals too.
func registerStatus(e *statusError) error {
	if e.code == http.StatusUnauthorized || e.code == http.StatusForbidden {
		return &refusedError{text: e.Error()}
	}
	return e
}

// interactive shows the login page's address and waits until somebody has
// approved this node there.
func (c *Client) interactive(ctx context.Context, l *link, req *tailcfg.RegisterRequest, url string) error {
	req.Auth = nil
	var b backoff
	for {
		c.setState(func(s *State) { s.Phase, s.LoginURL, s.Error = status.PhaseNeedsLogin, url, "" })
		req.Followup = url
		res, err := c.postRegister(ctx, l, req)
		switch {
		case err != nil:
			return err
		case res.NodeKeyExpired:
			c.pending = key.NewNode()
			return errRekey
		case res.AuthURL == "":
			return c.accept(res)
		case res.AuthURL == url:
			if err := sleep(ctx, b.next()); err != nil {
				return err
			}
		default:
			url = res.AuthURL
			if err := sleep(ctx, b.next()); err != nil {
				return err
			}
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// accept relies on the key that the coordinator has taken, after saving it.
func (c *Client) accept(res *tailcfg.RegisterResponse) error {
	if err := c.save(Identity{Node: c.nodeKey(), Server: c.id.Server}); err != nil {
		return err
	}
	c.pending = key.NodePrivate{}
	c.registered, c.forced = true, false
	c.setState(func(s *State) {
		s.LoginURL = ""
		if !res.MachineAuthorized {
			s.Phase, s.Error = status.PhaseWaiting, ""
		}
	})
	return nil
}

// doLogout tells the coordinator that our key is over, and forgets it.
func (c *Client) doLogout(ctx context.Context) error {
	err := c.sendLogout(ctx)
	c.pending, c.authKey, c.forced = key.NodePrivate{}, "", false
	c.registered, c.verified, c.loggedOut, c.last = false, false, true, nil
	if e := c.save(Identity{}); e != nil && err == nil {
		err = e
	}
	c.id = Identity{}
	c.setState(func(s *State) { *s = State{Phase: status.PhaseNeedsLogin, LastContact: s.LastContact} })
	return err
}

func (c *Client) sendLogout(ctx context.Context) error {
	if c.id.Node.IsZero() {
		return nil
	}
	if c.web == nil {
		base, err := parseBase(c.cfg.URL)
		if err != nil {
			return err
		}
		c.web = &web{base: base, dial: c.cfg.Dial, now: c.cfg.Now}
	}
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	l, err := c.connect(ctx)
	if err != nil {
		return fmt.Errorf("the coordinator was not told: %w", err)
	}
	defer l.close()
	req := c.registerRequest(false)
	req.NodeKey, req.OldNodeKey, req.Expiry = c.id.Node.Public(), key.NodePublic{}, time.Unix(123, 0)
	if _, err := c.postRegister(ctx, l, req); err != nil {
		return fmt.Errorf("the coordinator was not told: %w", err)
	}
	return nil
}

func (c *Client) wanted() Host {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.want
}

func (c *Client) hostinfo(h Host) *tailcfg.Hostinfo {
	ni := &tailcfg.NetInfo{PreferredDERP: h.HomeRelay, DERPLatency: h.Latency}
	ni.WorkingUDP.Set(h.UDP)
	ni.WorkingIPv6.Set(h.V6)
	ni.OSHasIPv6.Set(true)
	ni.MappingVariesByDestIP.Set(h.MappingVaries)
	return &tailcfg.Hostinfo{
		IPNVersion: c.cfg.Version, Hostname: h.Hostname, OS: "linux", GoArch: runtime.GOARCH,
		RoutableIPs: h.Routes, NetInfo: ni, Services: services(h),
	}
}

// services is what this node is and does for its peers. A port of 1 says only that a
// thing is there.
func services(h Host) []tailcfg.Service {
	out := []tailcfg.Service{{Proto: mesh.RouterService, Port: 1}}
	if h.PeerAPI4 != 0 {
		out = append(out, tailcfg.Service{Proto: tailcfg.PeerAPI4, Port: h.PeerAPI4})
	}
	if h.PeerAPI6 != 0 {
		out = append(out, tailcfg.Service{Proto: tailcfg.PeerAPI6, Port: h.PeerAPI6})
	}
	if h.PeerAPI4 != 0 || h.PeerAPI6 != 0 {
		out = append(out, tailcfg.Service{Proto: tailcfg.PeerAPIDNS, Port: 1})
	}
	if h.Devices != nil {
		out = append(out, tailcfg.Service{Proto: mesh.DevicesService, Port: uint16(len(h.Devices))})
	}
	for _, d := range h.Devices {
		s := tailcfg.Service{Proto: mesh.DeviceService, Description: strings.TrimSpace(d.Name + " " + d.MAC)}
		if d.V6 {
			s.Port = 1
		}
		out = append(out, s)
	}
	return out
}
