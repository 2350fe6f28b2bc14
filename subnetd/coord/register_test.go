package coord

import (
	"context"
	"encoding/binary"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"subnetd/subnetd/status"

	"go4.org/mem"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// refused asserts a refusal with these words, and that nothing was changed by it.
func (c *client) refused(words string, edit ...registering) {
	c.m.t.Helper()
	nodes, saves := len(c.m.c.Nodes()), c.m.disk.count(LedgerFile)
	res := c.mustRegister(edit...)
	if res.Error == "" || !strings.Contains(res.Error, words) || res.MachineAuthorized || res.AuthURL != "" {
		c.m.t.Errorf("want a refusal with %q, got %+v", words, res)
	}
	if n, s := len(c.m.c.Nodes()), c.m.disk.count(LedgerFile); n != nodes || s != saves {
		c.m.t.Errorf("%d nodes and %d writes became %d and %d", nodes, saves, n, s)
	}
}

func reusable(r *status.InviteRequest)  { r.Reusable = true }
func ephemeral(r *status.InviteRequest) { r.Ephemeral = true }
func tagged(r *status.InviteRequest)    { r.Tags = []string{"tag:printer"} }

func TestOneTimeKey(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		k := m.invite()
		a := m.client("a", "192.0.2.1")
		if res := a.mustRegister(withAuth(k)); !res.MachineAuthorized || res.Login.LoginName != OwnerName || res.User.ID != tailcfg.UserID(res.Login.ID) {
			t.Fatalf("answered %+v", res)
		}
		saves := m.disk.count(LedgerFile)
		if res := a.mustRegister(withAuth(k)); !res.MachineAuthorized {
			t.Errorf("its own key shown again: %+v", res)
		}
		if res := a.mustRegister(); !res.MachineAuthorized {
			t.Errorf("without the key: %+v", res)
		}
		if n := m.disk.count(LedgerFile); n != saves {
			t.Errorf("%d writes for nothing new", n-saves)
		}
		m.client("b", "192.0.2.2").refused("used already", withAuth(k))
		if ks := m.c.Keys(); len(ks) != 1 || ks[0].Uses != 1 || ks[0].State != keyUsed {
			t.Errorf("keys are %+v", ks)
		}
		m.invariants()
	})
}

// Of twenty machines that show one key at once exactly one is let in.
func TestOneTimeKeyRace(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		k := m.invite()
		var cs []*client
		for range 20 {
			c := m.client("same", "192.0.2.1")
			m.must(c.connect())
			cs = append(cs, c)
		}
		m.disk.refuse(func(string) error { time.Sleep(time.Second); return nil }) // so that they wait in one batch
		in, out := 0, 0
		var mu sync.Mutex
		var wg sync.WaitGroup
		for _, c := range cs {
			wg.Go(func() {
				res, err := c.register(context.Background(), withAuth(k))
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err != nil:
					t.Error(err)
				case res.MachineAuthorized:
					in++
				case strings.Contains(res.Error, "used already"):
					out++
				}
			})
		}
		wg.Wait()
		if in != 1 || out != 19 || len(m.c.Nodes()) != 1 {
			t.Errorf("%d let in, %d refused, %d nodes", in, out, len(m.c.Nodes()))
		}
		m.invariants()
	})
}

func TestKeyRefusals(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c := m.client("c", "192.0.2.1")
		c.refused("not one of this mesh", withAuth("subnetd-none-such"))
		k := m.invite(reusable)
		m.must(m.c.RevokeKey(t.Context(), m.c.Keys()[0].ID))
		c.refused("was revoked", withAuth(k))
		k = m.invite(func(r *status.InviteRequest) { r.Expires = time.Hour })
		pass(time.Hour - time.Second)
		if res := m.client("d", "192.0.2.1").mustRegister(withAuth(k)); !res.MachineAuthorized {
			t.Errorf("a second before it expires: %+v", res)
		}
		k = m.invite(func(r *status.InviteRequest) { r.Expires = time.Hour })
		pass(time.Hour)
		c.refused("expired on", withAuth(k))
		if err := m.c.RevokeKey(t.Context(), "none"); !errors.Is(err, ErrUnknownKey) {
			t.Errorf("revoke of an unknown key: %v", err)
		}
	})
}

func TestReusableKey(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		k := m.invite(reusable, func(r *status.InviteRequest) { r.User = "Anna@" })
		for range 3 {
			c := m.client("c", "192.0.2.1")
			if res := c.mustRegister(withAuth(k)); !res.MachineAuthorized || res.Login.LoginName != "anna" {
				t.Errorf("answered %+v", res)
			}
		}
		if ks := m.c.Keys(); ks[0].Uses != 3 || ks[0].State != keyGood || ks[0].User != "anna" {
			t.Errorf("keys are %+v", ks)
		}
		m.invariants()
	})
}

func TestTaggedKey(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c := m.member("p", tagged, ephemeral)
		n := m.node(c.node)
		if len(n.Tags) != 1 || !n.Ephemeral || n.shown.node.User != taggedID || n.shown.node.Tags[0] != "tag:printer" {
			t.Errorf("let in as %+v", n.record)
		}
		if res := c.mustRegister(); res.Login.LoginName != taggedName {
			t.Errorf("it is told that it is %q", res.Login.LoginName)
		}
		for _, bad := range []string{"printer", "tag:", "tag:A", "tag:a b", "tag:" + strings.Repeat("a", 61)} {
			_, _, err := m.c.Invite(t.Context(), status.InviteRequest{Tags: []string{bad}})
			if !errors.As(err, new(BadRequest)) {
				t.Errorf("invitation with %q: %v", bad, err)
			}
		}
		if n := len(m.c.Keys()); n != 1 {
			t.Errorf("%d keys", n)
		}
	})
}

// What a client asks for itself is its user's to give.
func TestRequestTags(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		m.setPolicy(`{"tagOwners": {"tag:nas": ["anna@"], "tag:web": ["tag:nas"]}, "acls": []}`)
		anna := func(r *status.InviteRequest) { r.User = "anna" }
		ask := func(host string, tags ...string) *client {
			c := m.client(host, "192.0.2.1")
			c.host.RequestTags = tags
			return c
		}
		c := ask("a", "tag:nas", "tag:nas")
		if res := c.mustRegister(withAuth(m.invite(anna))); !res.MachineAuthorized {
			t.Fatalf("refused: %+v", res)
		}
		if tags := m.node(c.node).Tags; len(tags) != 1 || tags[0] != "tag:nas" {
			t.Errorf("tags %v", tags)
		}
		k := m.invite(reusable)
		ask("b", "tag:nas").refused("does not let home use the tag", withAuth(k))
		ask("b", "tag:none").refused("does not let home use the tag", withAuth(k))
		ask("b", strings.Repeat("x", 10_000)).refused("does not let home", withAuth(k))
		if uses := m.c.Keys()[0].Uses; uses != 0 {
			t.Errorf("%d uses of a key with which nobody was let in", uses)
		}
		m.invariants()
	})
}

func TestRegisterRefusals(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		a := m.member("a")
		thief := m.client("thief", "192.0.2.9")
		thief.node = a.node
		k := m.invite()
		thief.refused("belongs to another machine", withAuth(k))
		thief.refused("belongs to another machine")
		thief.refused("belongs to another machine", followingUp("http://home.test:8410/a/NONE-SUCH"))
		thief.refused("belongs to another machine", func(r *tailcfg.RegisterRequest) { r.Expiry = time.Unix(123, 0) })
		old := m.client("old", "192.0.2.3")
		old.refused("too old", withAuth(k), func(r *tailcfg.RegisterRequest) { r.Version = minVersion - 1 })
		a.refused("too old", func(r *tailcfg.RegisterRequest) { r.Version = minVersion - 1 })
		old.refused("no node key", withAuth(k), func(r *tailcfg.RegisterRequest) { r.NodeKey = key.NodePublic{} })
		if k := m.c.Keys()[0]; k.Uses != 0 || k.State != keyGood {
			t.Errorf("those who were refused used up %+v", k)
		}
		for _, bad := range []string{"", "{", "[]", `{"NodeKey": "nodekey:zz"}`, strings.Repeat("[", 1000)} {
			if code, _, err := old.call(context.Background(), "/machine/register", bad); err != nil || code != http.StatusBadRequest {
				t.Errorf("%.20q: %d, %v", bad, code, err)
			}
		}
		big := `{"NodeKey": "` + strings.Repeat("x", maxBody) + `"}`
		if code, _, err := old.call(context.Background(), "/machine/register", big); err != nil || code != http.StatusRequestEntityTooLarge {
			t.Errorf("a big request: %d, %v", code, err)
		}
		m.invariants()
	})
}

// The router's own node needs no key; another one after it takes its place.
func TestInside(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		home := m.client("router", "")
		if res := home.mustRegister(); !res.MachineAuthorized {
			t.Fatalf("refused: %+v", res)
		}
		n := m.node(home.node)
		if !n.Self || n.User != ownerID {
			t.Errorf("let in as %+v", n.record)
		}
		for what, err := range map[string]error{
			"remove": second(m.c.Remove(t.Context(), "router")), "expire": second(m.c.Expire(t.Context(), "router", time.Hour)),
			"routes": second(m.c.ApproveRoutes(t.Context(), "router", nil)),
		} {
			if !errors.As(err, new(BadRequest)) {
				t.Errorf("%s of the router itself: %v", what, err)
			}
		}
		again := m.client("router", "")
		again.mustRegister()
		if m.node(home.node).Self || !m.node(again.node).Self {
			t.Error("a router that lost its state is there twice, and its old self can never be removed")
		}
		_, err := m.c.Remove(t.Context(), "router")
		m.must(err)
		m.invariants()
	})
}

func second[T any](_ T, err error) error { return err }

// A node whose key expired gets another and stays who it was.
func TestRekey(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c := m.member("c")
		was := m.node(c.node)
		_, err := m.c.Expire(t.Context(), "c", time.Hour)
		m.must(err)
		pass(time.Hour)
		k := m.invite()
		if res := c.mustRegister(withAuth(k)); !res.NodeKeyExpired || res.MachineAuthorized {
			t.Errorf("answered %+v to an expired key", res)
		}
		if !m.isGone(c.node) || m.c.Admits(c.node) {
			t.Error("the relay does not hear that the key is expired")
		}
		old := c.node
		c.node = key.NewNode().Public()
		if res := c.mustRegister(withAuth(k), func(r *tailcfg.RegisterRequest) { r.OldNodeKey = old }); !res.MachineAuthorized {
			t.Fatalf("refused: %+v", res)
		}
		now := m.node(c.node)
		if now.ID != was.ID || now.Number != was.Number || now.V6 != was.V6 || now.Name != was.Name || !now.Expiry.IsZero() {
			t.Errorf("was %+v, is %+v", was.record, now.record)
		}
		if m.node(old) != nil || !m.c.Admits(c.node) {
			t.Error("its old key is good, or its new one is not")
		}
		m.invariants()
	})
}

func TestLogout(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c, e := m.member("c"), m.member("e", ephemeral)
		p := c.stream()
		logout := func(r *tailcfg.RegisterRequest) { r.Expiry = time.Unix(123, 0) }
		for _, c := range []*client{c, e} {
			if res := c.mustRegister(logout); !res.NodeKeyExpired || res.MachineAuthorized {
				t.Errorf("answered %+v", res)
			}
			synctest.Wait()
			if !m.isGone(c.node) {
				t.Errorf("the relay goes on serving %s", c.host.Hostname)
			}
			if c.mustRegister(); m.c.Admits(c.node) {
				t.Errorf("%s is a member after its logout", c.host.Hostname)
			}
		}
		if ns := m.c.Nodes(); len(ns) != 1 || !ns[0].Expired {
			t.Errorf("nodes %+v", ns)
		}
		pass(time.Second)
		if s := p.now().Self; !s.Expired || s.KeyExpiry.IsZero() {
			t.Errorf("its long poll says %+v", s)
		}
		m.invariants()
	})
}

// The bounds of the mesh are said in words.
func TestFull(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		m.must(m.c.update(t.Context(), func(d *draft) error {
			for i := range maxNodes {
				id := tailcfg.NodeID(i + 1)
				raw := mem.B(binary.BigEndian.AppendUint64(make([]byte, 24), uint64(id)))
				n := &node{record: record{ID: id, Name: string(stableID(id)), Key: key.NodePublicFromRaw32(raw), Machine: key.MachinePublicFromRaw32(raw), Number: uint32(i + 1000)}}
				n.addrs = addressesOf(n.record)
				d.put(n)
			}
			for range maxKeys - 1 {
				d.keys = append(d.keys, authKey{Expires: d.now.Add(time.Hour)})
			}
			return nil
		}))
		m.client("c", "192.0.2.1").refused("the mesh is full", withAuth(m.invite()))
		if _, _, err := m.c.Invite(t.Context(), status.InviteRequest{}); !errors.As(err, new(BadRequest)) {
			t.Errorf("one key too many: %v", err)
		}
	})
}
