package coord

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// minVersion is the oldest client that is served: Tailscale 1.82, the first that
// knows a relay by the digest of its certificate.
const minVersion = 115

// refusal is a no that the person at the client may read.
type refusal string

func (r refusal) Error() string { return string(r) }

// serveRegister answers who a client is.
//
//	key of a member ────────────────────────────► member
//	   │ expired: asks for a new key
//	key of a removed node ──────────────────────► its map says so
//	other key ── auth key good ─────────────────► member, new or with a new key
//	          ── auth key bad  ─────────────────► refused, with the reason
//	          ── none: login page with a code ──► the owner approves ► member
func (c *Coordinator) serveRegister(w http.ResponseWriter, r *http.Request) {
	var req tailcfg.RegisterRequest
	if !read(w, r, &req) {
		return
	}
	p := callerOf(r)
	res, err := c.register(r.Context(), p, &req)
	var no refusal
	switch {
	case errors.As(err, &no):
		res = &tailcfg.RegisterResponse{Error: no.Error()}
	case err != nil && r.Context().Err() != nil:
		return // nobody waits
	case errors.Is(err, errStopped):
		http.Error(w, errStopped.Error(), http.StatusServiceUnavailable) // no refusal: it will be tried again
		return
	case err != nil:
		c.cfg.Log.Warn("a registration failed", "from", p.from, "err", err)
		res = &tailcfg.RegisterResponse{Error: "the coordinator cannot do this now: " + err.Error()}
	case c.snap.Load().byKey[req.NodeKey] != nil: // not one who waits with another key, nor one that was removed
		p.member.Store(true)
		p.established()
		c.arrived(p.machine, req.NodeKey)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(res) // who left needs none
}

func (c *Coordinator) register(ctx context.Context, p *caller, req *tailcfg.RegisterRequest) (*tailcfg.RegisterResponse, error) {
	if req.Version < minVersion {
		return nil, refusal("this client is too old: Tailscale 1.82 or newer is needed")
	}
	if req.NodeKey.IsZero() {
		return nil, refusal("the client has sent no node key")
	}
	if v := c.waiting(p, req); v != nil {
		return c.followUp(ctx, p, req, v)
	}
	return c.decide(ctx, p, req)
}

func (c *Coordinator) decide(ctx context.Context, p *caller, req *tailcfg.RegisterRequest) (*tailcfg.RegisterResponse, error) {
	var res *tailcfg.RegisterResponse
	err := c.update(ctx, func(d *draft) (err error) {
		res, err = d.register(p, req)
		return err
	})
	if err == nil && res == nil {
		return c.knock(p, req)
	}
	return res, err
}

// register decides all that needs no person; nil means that one must decide.
func (d *draft) register(p *caller, req *tailcfg.RegisterRequest) (*tailcfg.RegisterResponse, error) {
	n := d.byKey[req.NodeKey]
	switch {
	case n != nil && n.Machine != p.machine:
		return nil, refusal("this node key belongs to another machine")
	case n != nil && !req.Expiry.IsZero() && req.Expiry.Before(d.now):
		return d.logout(n), nil
	case n != nil && !n.expired(d.now):
		return d.welcome(n), nil // what else it says of itself comes with its map requests
	case n != nil:
		return &tailcfg.RegisterResponse{NodeKeyExpired: true}, nil
	case p.inside:
		return d.admit(p.machine, req, grant{user: ownerID, self: true})
	case req.Auth != nil && req.Auth.AuthKey != "":
		return d.withKey(p, req)
	case slices.Contains(d.removed, req.NodeKey):
		// A login page would be ignored by a client that remembers its mesh. Its map,
		// that of a stranger, is not.
		return &tailcfg.RegisterResponse{MachineAuthorized: true}, nil
	}
	return nil, nil
}

func (d *draft) logout(n *node) *tailcfg.RegisterResponse {
	if n.Ephemeral {
		d.remove(n.ID)
	} else {
		d.edit(n.ID).Expiry = d.now.Add(-time.Second)
		d.lasting = true
	}
	return &tailcfg.RegisterResponse{NodeKeyExpired: true}
}

// withKey lets a machine in that shows an auth key. Using it up and making the
// node is one change: never one without the other.
func (d *draft) withKey(p *caller, req *tailcfg.RegisterRequest) (*tailcfg.RegisterResponse, error) {
	i, err := d.findKey(req.Auth.AuthKey)
	if err != nil {
		return nil, err
	}
	k := d.keys[i]
	res, err := d.admit(p.machine, req, grant{user: k.User, tags: k.Tags, ephemeral: k.Ephemeral})
	if err == nil {
		d.keys[i].Uses++
	}
	return res, err
}

// grant is as whom somebody is let in.
type grant struct {
	user      tailcfg.UserID
	tags      []string
	ephemeral bool
	self      bool
}

// admit makes the machine a member under a node key. One that was a member
// before stays the same node, with its name and addresses.
func (d *draft) admit(machine key.MachinePublic, req *tailcfg.RegisterRequest, g grant) (*tailcfg.RegisterResponse, error) {
	if n := d.byKey[req.NodeKey]; n != nil && n.Machine != machine {
		return nil, refusal("this node key belongs to another machine")
	}
	tags, err := d.tagsFor(g, req)
	if err != nil {
		return nil, err
	}
	n, err := d.byMachine(machine)
	if err != nil {
		return nil, err
	}
	if g.self {
		d.dethrone(n.ID)
	}
	n.User, n.Tags, n.Ephemeral, n.Self = g.user, tags, g.ephemeral, g.self
	n.Expiry = time.Time{}
	if req.Hostinfo != nil {
		d.introduce(n, req.Hostinfo)
	}
	if n.Name == "" {
		n.Name = free("node", d.taken(n.ID))
	}
	n.Cap = req.Version
	d.rekey(n, req.NodeKey)
	d.lasting = true
	return d.welcome(n), nil
}

// dethrone makes the router's own node an ordinary one when another is it: it
// came with another machine key, so that its state must have been lost.
func (d *draft) dethrone(by tailcfg.NodeID) {
	for id, n := range maps.Clone(d.nodes) {
		if n.Self && id != by {
			d.edit(id).Self = false
		}
	}
}

// byMachine gives the node of a machine to be changed, a new one if it has none.
func (d *draft) byMachine(machine key.MachinePublic) (*node, error) {
	if n := d.ofMachine(machine); n != nil {
		return d.edit(n.ID), nil
	}
	if len(d.nodes) >= maxNodes {
		return nil, refusal(fmt.Sprintf("the mesh is full: it has %d nodes", maxNodes))
	}
	number, v6, err := allocate(d.numbers(), []byte(machine.String()))
	if err != nil {
		return nil, err
	}
	n := &node{record: record{ID: d.newID(), Machine: machine, Number: number, V6: v6, Created: d.now.UTC().Truncate(time.Second)}, pace: newPace()}
	n.addrs = addressesOf(n.record)
	n.left = d.now.Add(returnWithin - offlineAfter) // until its first long poll
	d.nodes[n.ID], d.touched[n.ID] = n, true
	return n, nil
}

// tagsFor are the tags of the grant and those the client asks for, if its user
// may set them.
func (d *draft) tagsFor(g grant, req *tailcfg.RegisterRequest) ([]string, error) {
	tags := slices.Clone(g.tags)
	if req.Hostinfo == nil {
		return tags, nil
	}
	for _, t := range req.Hostinfo.RequestTags {
		if slices.Contains(tags, t) {
			continue
		}
		if !d.policy.MayTag(d.nameOf(g.user), t) {
			return nil, refusal(fmt.Sprintf("the policy does not let %s use the tag %q", d.nameOf(g.user), clip(t)))
		}
		tags = append(tags, t)
	}
	slices.Sort(tags)
	return tags, nil
}

// welcome is the answer to a member.
func (d *draft) welcome(n *node) *tailcfg.RegisterResponse {
	id, name := n.User, d.nameOf(n.User)
	if len(n.Tags) > 0 {
		id, name = taggedID, taggedName
	}
	return &tailcfg.RegisterResponse{
		MachineAuthorized: true,
		User:              tailcfg.User{ID: id, DisplayName: name},
		Login:             tailcfg.Login{ID: tailcfg.LoginID(id), Provider: "home", LoginName: name, DisplayName: name},
	}
}
