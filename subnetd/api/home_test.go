package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"subnetd/subnetd/status"

	"github.com/google/go-cmp/cmp"
)

var noon = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// coordinator is a Home that answers with what it was asked.
func coordinator() Home {
	change := func(what string) changeFunc {
		return func(_ context.Context, r status.NodeRequest) (status.HomeNode, error) {
			switch {
			case r.Node == "nobody":
				return status.HomeNode{}, fmt.Errorf("%w: %q", ErrUnknownNode, r.Node)
			case r.Code == "none":
				return status.HomeNode{}, ErrUnknownCode
			case r.Name == "x y":
				return status.HomeNode{}, fmt.Errorf("renaming: %w", BadRequest(errors.New("no such name")))
			}
			return status.HomeNode{Name: fmt.Sprint(what, r), Created: noon}, nil
		}
	}
	return Home{
		Invite: func(_ context.Context, r status.InviteRequest) (status.Invite, error) {
			return status.Invite{Key: fmt.Sprint(r), Expires: noon.Add(r.Expires)}, nil
		},
		Keys: func() []status.HomeKey {
			return []status.HomeKey{{ID: "1", State: "good", Created: noon, Expires: noon}}
		},
		RevokeKey: func(_ context.Context, id string) error {
			if id != "1" {
				return fmt.Errorf("%w: %q", ErrUnknownKey, id)
			}
			return nil
		},
		Nodes: func() status.HomeNodes {
			return status.HomeNodes{Pending: []status.HomePending{{Code: "AB", Since: noon}}}
		},
		Approve: change("approve"), Rename: change("rename"), Expire: change("expire"), Probe: change("probe"), Remove: change("remove"), Routes: change("routes"),
		Policy: func() status.HomePolicy { return status.HomePolicy{File: "f", Text: "{}", Error: "line 1"} },
		CheckPolicy: func(text string) status.PolicyVerdict {
			return status.PolicyVerdict{Error: fmt.Sprint(len(text))}
		},
	}
}

func TestHome(t *testing.T) {
	_, path := startWith(t, func() (Home, error) { return coordinator(), nil })
	c, ctx := dial(t, path), t.Context()
	prefix := netip.MustParsePrefix("192.168.1.0/24")
	invite := status.InviteRequest{User: "u", Tags: []string{"tag:a"}, Reusable: true, Ephemeral: true, Expires: time.Hour}
	for what, tt := range map[string]struct {
		ask  func() (any, error)
		want any
	}{
		"invite":  {func() (any, error) { return c.Invite(ctx, invite) }, status.Invite{Key: fmt.Sprint(invite), Expires: noon.Add(time.Hour)}},
		"keys":    {func() (any, error) { return c.Keys(ctx) }, []status.HomeKey{{ID: "1", State: "good", Created: noon, Expires: noon}}},
		"revoke":  {func() (any, error) { return nil, c.RevokeKey(ctx, "1") }, nil},
		"nodes":   {func() (any, error) { return c.Nodes(ctx) }, status.HomeNodes{Pending: []status.HomePending{{Code: "AB", Since: noon}}}},
		"approve": {func() (any, error) { return c.Approve(ctx, status.NodeRequest{Code: "AB", User: "u"}) }, changed("approve", status.NodeRequest{Code: "AB", User: "u"})},
		"rename":  {func() (any, error) { return c.Rename(ctx, status.NodeRequest{Node: "n", Name: "m"}) }, changed("rename", status.NodeRequest{Node: "n", Name: "m"})},
		"probe":   {func() (any, error) { return c.Probe(ctx, status.NodeRequest{Node: "n"}) }, changed("probe", status.NodeRequest{Node: "n"})},
		"expire":  {func() (any, error) { return c.Expire(ctx, status.NodeRequest{Node: "n", In: 5}) }, changed("expire", status.NodeRequest{Node: "n", In: 5})},
		"remove":  {func() (any, error) { return c.Remove(ctx, status.NodeRequest{Node: "n"}) }, changed("remove", status.NodeRequest{Node: "n"})},
		"routes": {func() (any, error) {
			return c.Routes(ctx, status.NodeRequest{Node: "n", Routes: []netip.Prefix{prefix}})
		}, changed("routes", status.NodeRequest{Node: "n", Routes: []netip.Prefix{prefix}})},
		"no routes": {func() (any, error) { return c.Routes(ctx, status.NodeRequest{Node: "n"}) }, changed("routes", status.NodeRequest{Node: "n"})},
		"policy":    {func() (any, error) { return c.Policy(ctx) }, status.HomePolicy{File: "f", Text: "{}", Error: "line 1"}},
		"biggest policy": {func() (any, error) { return c.CheckPolicy(ctx, strings.Repeat("\"\t\n,", MaxPolicy/4)) },
			status.PolicyVerdict{Error: fmt.Sprint(MaxPolicy)}},
	} {
		t.Run(what, func(t *testing.T) {
			got, err := tt.ask()
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
				t.Error(d)
			}
		})
	}
}

func changed(what string, r status.NodeRequest) status.HomeNode {
	return status.HomeNode{Name: fmt.Sprint(what, r), Created: noon}
}

// Each refusal has its code, and text that says what is wrong.
func TestHomeRefusals(t *testing.T) {
	_, path := startWith(t, func() (Home, error) { return coordinator(), nil })
	long := strings.Repeat("x", maxName+1)
	for _, tt := range []struct {
		path, body string
		code       int
		text       string
	}{
		{"invite", ``, 400, "not understood"},
		{"invite", `{"expires": "1h"}`, 400, "not understood"},
		{"invite", `{"user": "` + strings.Repeat("x", maxBody) + `"}`, 413, "too large"},
		{"keys/revoke", `{}`, 400, "the ID of a key is wanted"},
		{"keys/revoke", `{"id": "` + long + `"}`, 400, "at most 255"},
		{"keys/revoke", `{"id": "2"}`, 404, `no key has that ID: "2"`},
		{"nodes/approve", `{"node": "n"}`, 400, "the code"},
		{"nodes/approve", `{"code": "none"}`, 404, "no device waits"},
		{"nodes/rename", `{"node": "n"}`, 400, "the new name"},
		{"nodes/rename", `{"name": "n"}`, 400, "name, address or ID of a node"},
		{"nodes/rename", `{"node": "n", "name": "x y"}`, 400, "renaming: no such name"},
		{"nodes/rename", `{"node": "nobody", "name": "x"}`, 404, `no node has that name, address or ID: "nobody"`},
		{"nodes/expire", `{}`, 400, "name, address or ID of a node"},
		{"nodes/expire", `{"node": "nobody"}`, 404, "no node"},
		{"nodes/remove", `{"node": "` + long + `"}`, 400, "at most 255"},
		{"nodes/remove", `{"node": "nobody"}`, 404, "no node"},
		{"nodes/routes", `{"node": "nobody"}`, 404, "no node"},
		{"nodes/routes", `{"routes": ["10.0.0.0/8"]}`, 400, "name, address or ID of a node"},
		{"nodes/routes", `{"node": "n", "routes": ["10.0.0.1/8"]}`, 400, `"10.0.0.1/8" is no prefix`},
		{"nodes/routes", `{"node": "n", "routes": [""]}`, 400, "no prefix"},
		{"nodes/routes", `{"node": "n", "routes": ["10.0.0.0"]}`, 400, "not understood"},
		{"nodes/burn", `{"node": "n"}`, 404, "no such thing"},
		{"policy", `{}`, 405, "GET"},
		{"policy/check", `{"text": "` + strings.Repeat("x", MaxPolicy+1) + `"}`, 400, "1048576 bytes, this one has 1048577"},
		{"policy/check", `{"text": "` + strings.Repeat("x", maxPolicyBody) + `"}`, 413, "too large"},
	} {
		t.Run(tt.path, func(t *testing.T) {
			code, text := raw(t, path, "POST", "/v1/home/"+tt.path, tt.body)
			if code != tt.code || !strings.Contains(text, tt.text) {
				t.Errorf("%d %q, want %d %q", code, text, tt.code, tt.text)
			}
		})
	}
}

// Where another is the coordinator, every route says so, whatever is asked; and
// the owner may change that at any time.
func TestNotHome(t *testing.T) {
	var mine atomic.Bool
	_, path := startWith(t, func() (Home, error) {
		if !mine.Load() {
			return Home{}, ErrNotHome
		}
		return coordinator(), nil
	})
	_, never := start(t)
	routes := NewServer("", Funcs{}, slog.New(slog.DiscardHandler)).homeRoutes()
	if len(routes) != 12 {
		t.Errorf("%d routes", len(routes))
	}
	for _, r := range routes {
		for _, socket := range []string{path, never} {
			if code, text := raw(t, socket, r.method, r.path, ""); code != 409 || text != `this router is not the coordinator: set mesh.control = "home"` {
				t.Errorf("%s: %d %q", r.path, code, text)
			}
		}
	}
	mine.Store(true)
	if _, err := dial(t, path).Nodes(t.Context()); err != nil {
		t.Error(err)
	}
}

// What keeps the coordinator from working is told as it is.
func TestBrokenHome(t *testing.T) {
	_, path := startWith(t, func() (Home, error) { return Home{}, errors.New("the registry is damaged") })
	if code, text := raw(t, path, "GET", "/v1/home/nodes", ""); code != 500 || text != "the registry is damaged" {
		t.Errorf("%d %q", code, text)
	}
}
