package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"

	"subnetd/subnetd/status"
)

// MaxPolicy bounds the text of a policy, in bytes.
const MaxPolicy = 1 << 20

// maxPolicyBody is that text as JSON: quotes, tabs and line ends grow by one
// byte each, and no honest text consists of little else.
const maxPolicyBody = 2*MaxPolicy + 1<<10

// maxName bounds what names a node, a code or a key, in bytes.
const maxName = 255

// Home is what the coordinator in this router can do. All must be set, and safe
// for concurrent use. An error made with BadRequest is the asker's mistake; the
// ErrUnknown ones are to be wrapped.
type Home struct {
	// Invite makes a pre-auth key, and says how to use it.
	Invite func(ctx context.Context, r status.InviteRequest) (status.Invite, error)
	// Keys is every pre-auth key that is still remembered.
	Keys func() []status.HomeKey
	// RevokeKey makes a key worthless; nodes that came by it stay. ErrUnknownKey.
	RevokeKey func(ctx context.Context, id string) error
	// Nodes is the members, and who waits to become one.
	Nodes func() status.HomeNodes
	// Approve lets the device in that shows the code. ErrUnknownCode.
	Approve func(ctx context.Context, r status.NodeRequest) (status.HomeNode, error)
	// Rename, Expire, Remove and Routes change one node and return it as it then
	// is, or was before it went. ErrUnknownNode. No r.Routes means that none are
	// approved; no r.In means now.
	Rename, Expire, Remove, Routes func(ctx context.Context, r status.NodeRequest) (status.HomeNode, error)
	// Probe asks one node over its connection to us, and returns it with the Answer.
	Probe func(ctx context.Context, r status.NodeRequest) (status.HomeNode, error)
	// Policy is what is in force.
	Policy func() status.HomePolicy
	// CheckPolicy says whether the text, of at most MaxPolicy bytes, could be.
	CheckPolicy func(text string) status.PolicyVerdict
}

// What a Funcs or Home func returns, wrapped or not; it arrives at the client as text.
var (
	ErrNotHome     = errors.New(`this router is not the coordinator: set mesh.control = "home"`)
	ErrUnknownNode = errors.New("no node has that name, address or ID")
	ErrUnknownCode = errors.New("no device waits with that code")
	ErrUnknownKey  = errors.New("no key has that ID")
)

// BadRequest marks an error as the asker's mistake. Its text stays.
func BadRequest(err error) error { return badRequest{err} }

// changeFunc is one of Home's that change a node.
type changeFunc = func(context.Context, status.NodeRequest) (status.HomeNode, error)

func (s *Server) homeRoutes() []route {
	return []route{
		{"POST", "/v1/home/invite", checkTimeout, told(s, maxBody, func(ctx context.Context, h Home, r status.InviteRequest) (any, error) {
			return h.Invite(ctx, r)
		})},
		{"GET", "/v1/home/keys", 0, s.shown(func(h Home) any { return h.Keys() })},
		{"POST", "/v1/home/keys/revoke", checkTimeout, told(s, maxBody, revokeKey)},
		{"GET", "/v1/home/nodes", 0, s.shown(func(h Home) any { return h.Nodes() })},
		{"POST", "/v1/home/nodes/approve", checkTimeout, s.change(wantCode, func(h Home) changeFunc { return h.Approve })},
		{"POST", "/v1/home/nodes/rename", checkTimeout, s.change(wantNodeAndName, func(h Home) changeFunc { return h.Rename })},
		{"POST", "/v1/home/nodes/expire", checkTimeout, s.change(wantNode, func(h Home) changeFunc { return h.Expire })},
		{"POST", "/v1/home/nodes/remove", checkTimeout, s.change(wantNode, func(h Home) changeFunc { return h.Remove })},
		{"POST", "/v1/home/nodes/routes", checkTimeout, s.change(wantNodeAndRoutes, func(h Home) changeFunc { return h.Routes })},
		{"POST", "/v1/home/nodes/probe", pingTimeout, s.change(wantNode, func(h Home) changeFunc { return h.Probe })},
		{"GET", "/v1/home/policy", 0, s.shown(func(h Home) any { return h.Policy() })},
		{"POST", "/v1/home/policy/check", checkTimeout, told(s, maxPolicyBody, checkPolicy)},
	}
}

// home is the coordinator in this router, if there is one now.
func (s *Server) home() (Home, error) {
	if s.funcs.Home == nil {
		return Home{}, ErrNotHome
	}
	return s.funcs.Home()
}

// shown answers with what the coordinator knows.
func (s *Server) shown(what func(Home) any) func(http.ResponseWriter, *http.Request) (any, error) {
	return func(http.ResponseWriter, *http.Request) (any, error) {
		h, err := s.home()
		if err != nil {
			return nil, err
		}
		return what(h), nil
	}
}

// told reads the body, of at most limit bytes, and hands it to the coordinator.
// That there is none is said first: it explains more than a wrong body would.
func told[Body any](s *Server, limit int64, do func(context.Context, Home, Body) (any, error)) func(http.ResponseWriter, *http.Request) (any, error) {
	return func(w http.ResponseWriter, q *http.Request) (any, error) {
		h, err := s.home()
		if err != nil {
			return nil, err
		}
		var r Body
		if err := body(w, q, limit, &r); err != nil {
			return nil, err
		}
		return do(q.Context(), h, r)
	}
}

// change is told for what concerns one node.
func (s *Server) change(want func(status.NodeRequest) error, do func(Home) changeFunc) func(http.ResponseWriter, *http.Request) (any, error) {
	return told(s, maxBody, func(ctx context.Context, h Home, r status.NodeRequest) (any, error) {
		if err := want(r); err != nil {
			return nil, err
		}
		return do(h)(ctx, r)
	})
}

func revokeKey(ctx context.Context, h Home, r status.RevokeRequest) (any, error) {
	if err := wanted("the ID of a key", r.ID); err != nil {
		return nil, err
	}
	return struct{}{}, h.RevokeKey(ctx, r.ID)
}

func checkPolicy(_ context.Context, h Home, r status.PolicyText) (any, error) {
	if len(r.Text) > MaxPolicy {
		return nil, badRequest{fmt.Errorf("a policy may have %d bytes, this one has %d", MaxPolicy, len(r.Text))}
	}
	return h.CheckPolicy(r.Text), nil
}

// wanted refuses what names nothing, or is too long to be a name.
func wanted(what, value string) error {
	if value == "" || len(value) > maxName {
		return badRequest{fmt.Errorf("%s is wanted, of at most %d bytes", what, maxName)}
	}
	return nil
}

func wantCode(r status.NodeRequest) error { return wanted("the code of a waiting device", r.Code) }

func wantNode(r status.NodeRequest) error {
	return wanted("the name, address or ID of a node", r.Node)
}

func wantNodeAndName(r status.NodeRequest) error {
	return cmp.Or(wantNode(r), wanted("the new name", r.Name))
}

func wantNodeAndRoutes(r status.NodeRequest) error {
	for _, p := range r.Routes {
		if !p.IsValid() || p != p.Masked() {
			return badRequest{fmt.Errorf("%q is no prefix of a network", p)}
		}
	}
	return wantNode(r)
}
