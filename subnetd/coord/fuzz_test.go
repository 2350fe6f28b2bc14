package coord

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// rig is a coordinator with two members and an invitation, for requests that
// come without a connection.
type rig struct {
	*mesh
	a, b *client
	key  string
}

func newRig(t testing.TB) *rig {
	r := &rig{mesh: start(t, newDisk())}
	r.key = r.invite(reusable)
	r.a, r.b = r.client("a", "192.0.2.1"), r.client("b", "192.0.2.1")
	for _, c := range []*client{r.a, r.b} {
		req := &tailcfg.RegisterRequest{Version: 130, NodeKey: c.node, Hostinfo: c.host, Auth: &tailcfg.RegisterResponseAuth{AuthKey: r.key}}
		if res, err := r.c.register(t.Context(), r.caller(c.machine), req); err != nil || !res.MachineAuthorized {
			t.Fatalf("%+v, %v", res, err)
		}
	}
	return r
}

func (r *rig) caller(k key.MachinePrivate) *caller {
	return &caller{machine: k.Public(), from: netip.MustParseAddrPort("192.0.2.1:1"), base: "http://home.test", raw: &worldConn{}}
}

// words are what a body may name, which differs each time.
func (r *rig) words(body string) string {
	return strings.NewReplacer("AUTHKEY", r.key, "NODEA", r.a.node.String(), "NODEB", r.b.node.String(), "NEWKEY", key.NewNode().Public().String()).Replace(body)
}

// once ends a request after its first frame.
type once struct {
	*httptest.ResponseRecorder
	cancel context.CancelFunc
}

func (o *once) Flush() { o.cancel() }

// serve has the handler answer a machine's request, and checks the state after it.
func (r *rig) serve(t *testing.T, h http.HandlerFunc, machine key.MachinePrivate, body string) *httptest.ResponseRecorder {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	req := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(r.words(body)))
	ctx = context.WithValue(ctx, callerKey, r.caller(machine))
	w := &once{httptest.NewRecorder(), cancel}
	if strings.Contains(body, "/a/") || strings.Contains(body, "ollowup") {
		cancel() // nobody approves
	}
	if n := r.node(r.a.node); n != nil {
		*n.pace = *newPace() // nobody waits here
	}
	h(w, req.WithContext(ctx))
	r.t = t
	r.invariants()
	if len(r.c.Nodes()) > 30 || r.node(r.a.node) == nil || r.node(r.b.node) == nil {
		r.reset(t)
	}
	return w.ResponseRecorder
}

// reset makes the mesh what it was.
func (r *rig) reset(t *testing.T) {
	for _, n := range r.c.Nodes() {
		_, err := r.c.Remove(t.Context(), n.Addresses[0].String())
		r.must(err)
	}
	for _, c := range []*client{r.a, r.b} {
		req := &tailcfg.RegisterRequest{Version: 130, NodeKey: c.node, Auth: &tailcfg.RegisterResponseAuth{AuthKey: r.key}}
		res, err := r.c.register(t.Context(), r.caller(c.machine), req)
		if err != nil || !res.MachineAuthorized {
			t.Fatalf("%+v, %v", res, err)
		}
	}
	r.must(r.c.update(t.Context(), func(d *draft) error { d.spent, d.lasting = nil, true; return nil }))
}

func FuzzRegister(f *testing.F) {
	for _, body := range []string{
		`{"Version":130,"NodeKey":"NODEA"}`, `{"Version":130,"NodeKey":"NODEB"}`, `{"Version":130,"NodeKey":"NEWKEY"}`,
		`{"Version":130,"NodeKey":"NEWKEY","Auth":{"AuthKey":"AUTHKEY"},"Hostinfo":{"Hostname":"x","RoutableIPs":["10.0.0.0/8"],"RequestTags":["tag:a"]}}`,
		`{"Version":130,"NodeKey":"NODEA","Auth":{"AuthKey":"AUTHKEY"}}`, `{"Version":130,"NodeKey":"NODEA","Expiry":"1970-01-01T00:02:03Z"}`,
		`{"Version":130,"NodeKey":"NEWKEY","Followup":"http://home.test/a/AAAA-BBBB"}`, `{"Version":-1}`, `{}`, `null`, `[]`, `{"Version":130,"NodeKey":"nodekey:00"}`,
		`{"Version":130,"NodeKey":"NEWKEY","OldNodeKey":"NODEB","Ephemeral":true,"Auth":{"AuthKey":""},"Timestamp":"x"}`,
		`{"Version":130,"NodeKey":"NEWKEY","Auth":{"AuthKey":"AUTHKEY"},"Hostinfo":null}`, `{"Version":1e99}`, `{"Version":130,"NodeKey":"NEWKEY","Followup":":%zz"}`,
	} {
		f.Add(body, true)
		f.Add(body, false)
	}
	r := newRig(f)
	f.Fuzz(func(t *testing.T, body string, known bool) {
		machine := r.a.machine
		if !known {
			machine = key.NewMachine()
		}
		w := r.serve(t, r.c.serveRegister, machine, body)
		var res tailcfg.RegisterResponse
		if w.Code == http.StatusOK && w.Body.Len() > 0 {
			if err := json.Unmarshal(w.Body.Bytes(), &res); err != nil {
				t.Fatalf("answered %q: %v", w.Body, err)
			}
			if res.MachineAuthorized && !known && !strings.Contains(body, "AUTHKEY") {
				t.Errorf("a stranger was let in with %q", body)
			}
		}
	})
}

func FuzzMap(f *testing.F) {
	for _, body := range []string{
		`{"Version":130,"NodeKey":"NODEA","Stream":true,"Compress":"zstd"}`, `{"Version":130,"NodeKey":"NODEA","OmitPeers":true}`,
		`{"Version":130,"NodeKey":"NODEA","ReadOnly":true}`, `{"Version":130,"NodeKey":"NODEB","Stream":true}`, `{"Version":130,"NodeKey":"NEWKEY","Stream":true}`,
		`{"Version":130,"NodeKey":"NODEA","DiscoKey":"discokey:0000000000000000000000000000000000000000000000000000000000000001","Endpoints":["1.2.3.4:5","[fe80::1%eth0]:1","0.0.0.0:0",""],"OmitPeers":true}`,
		`{"Version":-1,"NodeKey":"NODEA","OmitPeers":true}`, `{"Version":130,"NodeKey":"NODEA","Hostinfo":{"NetInfo":{"PreferredDERP":-5}},"OmitPeers":true}`,
		`{}`, `null`, `{"Stream":true}`, `{"NodeKey":"NODEA","Stream":true,"ReadOnly":true,"OmitPeers":true}`, `{"NodeKey":"NODEA","Hostinfo":{"Hostname":"a"},"TKAHead":"x"}`,
	} {
		f.Add(body)
	}
	r := newRig(f)
	f.Fuzz(func(t *testing.T, body string) {
		w := r.serve(t, r.c.serveMap, r.a.machine, body)
		if b := w.Body.Bytes(); w.Code == http.StatusOK && len(b) > 0 && !strings.Contains(body, "zstd") {
			text, err := readFrame(bytes.NewReader(b), nil)
			if err != nil {
				t.Fatalf("answered %q: %v", b, err)
			}
			v := newView()
			if v.apply(text); v.Self == nil || v.Filters["base"] == nil {
				t.Errorf("a first map is %s", text)
			}
		}
		if n := len(r.c.Nodes()); n != 2 {
			t.Errorf("%d nodes", n)
		}
	})
}

// Whatever a host says of itself is bounded, and a restart gives it back as it was.
func FuzzHostinfo(f *testing.F) {
	for _, h := range []string{
		`{"Hostname":"nas","OS":"linux","IPNVersion":"1.80","RoutableIPs":["10.0.0.0/24","::/0"],"Services":[{"Proto":"peerapi4","Port":1,"Description":"d"}],"NetInfo":{"PreferredDERP":900}}`,
		`{"Hostname":"` + strings.Repeat("ü", 200) + `"}`, `{"OS":"` + strings.Repeat("日", 100) + `"}`, `{"Hostname":"\u0000\ud800"}`, `{"RoutableIPs":["1.2.3.4/33"]}`,
		`{"RoutableIPs":["::ffff:1.2.3.4/120","10.1.2.3/8","fd7a:115c:a1e0::1/128",null]}`, `{"Services":[{"Proto":"` + strings.Repeat("x", 5000) + `"},{},{}]}`, `{}`, `null`,
	} {
		f.Add(h, uint16(0))
	}
	r := newRig(f)
	r.must(second(r.c.ApproveRoutes(f.Context(), "a", prefixes("10.0.0.0/24", "0.0.0.0/0"))))
	f.Fuzz(func(t *testing.T, h string, port uint16) {
		var info tailcfg.Hostinfo
		if json.Unmarshal([]byte(h), &info) != nil {
			return
		}
		req := r.a.about()
		req.Hostinfo, req.OmitPeers, req.Endpoints = &info, true, []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port)}
		body, err := json.Marshal(req)
		if err != nil {
			return
		}
		if w := r.serve(t, r.c.serveMap, r.a.machine, string(body)); w.Code != http.StatusOK {
			t.Fatalf("%d: %s", w.Code, w.Body)
		}
		n := r.node(r.a.node)
		if len(n.shown.json) > 40<<10 {
			t.Errorf("its peers are told %d bytes", len(n.shown.json))
		}
		hints, err := json.Marshal(r.c.snap.Load().hints())
		r.must(err)
		again, err := New(Config{Domain: domain, Store: with(r.disk.file(LedgerFile), hints), Policy: r.c.cfg.Policy, Now: time.Now, Log: r.c.cfg.Log})
		r.must(err)
		was, now := newView(), newView()
		for s, v := range map[*snapshot]*view{r.c.snap.Load(): was, again.snap.Load(): now} {
			v.Self = s.byKey[r.a.node].shown.node
		}
		if a, b := was.text(t), now.text(t); a != b || string(n.shown.json) != string(again.snap.Load().byKey[r.a.node].shown.json) {
			t.Errorf("after a restart\n%s\nis\n%s", n.shown.json, again.snap.Load().byKey[r.a.node].shown.json)
		}
	})
}
