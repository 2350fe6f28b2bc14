package drop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"subnetd/subnetd/mesh"
)

// node is a member that takes files at the URL of a server.
func node(t testing.TB, at string) *mesh.Node {
	t.Helper()
	a, err := netip.ParseAddrPort(strings.TrimPrefix(at, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	return &mesh.Node{ID: 9, Name: "there.mesh.", Addresses: []netip.Prefix{netip.PrefixFrom(a.Addr(), 32)}, PeerAPI4: a.Port()}
}

// TestSend: from one of ours to another, of known size and not.
func TestSend(t *testing.T) {
	here, there := newRig(t, Settings{}), newRig(t, Settings{})
	want := map[string]string{}
	for name, n := range map[string]int{"empty": 0, "one": 1, "Zoë 日本 100%?#.txt": 70_000, "large": 3*block + 1} {
		data := random(n)
		for i, size := range []int64{int64(n), -1} {
			as := fmt.Sprint(i, name)
			want[strings.ReplaceAll(as, "?", "_")] = string(data)
			sent, err := here.s.Send(t.Context(), node(t, there.url), as, size, bytes.NewReader(data))
			if err != nil || sent.Size != int64(n) || sent.To != "there.mesh" || sent.Name != as {
				t.Errorf("%s: %+v, %v", as, sent, err)
			}
		}
	}
	there.only(there.inbox, want)
	if got := here.s.transfers(); len(got) != 0 {
		t.Errorf("still under way: %+v", got)
	}
}

// TestSendAgain: after a cut only the rest goes over the wire.
func TestSendAgain(t *testing.T) {
	here, there := newRig(t, Settings{}), newRig(t, Settings{})
	file := random(10*block + 5)
	half := int64(6 * block)
	for _, size := range []int64{int64(len(file)), -1} {
		name := fmt.Sprint("f", size)
		broken := errors.New("cut")
		r, w := io.Pipe()
		go func() {
			_, _ = w.Write(file[:half])
			there.until(func() bool { return there.came.Load() == half })
			w.CloseWithError(broken)
		}()
		there.came.Store(0)
		if _, err := here.s.Send(t.Context(), node(t, there.url), name, size, r); err == nil {
			t.Fatal("half a file is sent")
		}
		there.until(func() bool { return len(there.s.transfers()) == 0 })
		there.came.Store(0)
		if _, err := here.s.Send(t.Context(), node(t, there.url), name, size, bytes.NewReader(file)); err != nil {
			t.Fatal(err)
		}
		if got := there.came.Load(); got != int64(len(file))-half {
			t.Errorf("%d bytes came again, want %d", got, int64(len(file))-half)
		}
	}
	there.only(there.inbox, map[string]string{fmt.Sprint("f", len(file)): string(file), "f-1": string(file)})
}

// TestSendAnother: what is there of a file of that name is another's. It is not mixed with
// ours, also by a receiver, as stock ones are, who would keep its end.
func TestSendAnother(t *testing.T) {
	for what, c := range map[string]struct {
		there, ours int
		known       bool
		want        string
	}{
		"shorter":              {100, 200, true, "f"},
		"longer":               {3 * block, 200, true, "f (1)"},
		"as long":              {200, 200, true, "f"},
		"ours has no end yet":  {100, 200, false, "f (1)"},
		"nothing of a file":    {0, 200, true, "f"},
		"a file that is empty": {100, 0, true, "f (1)"},
	} {
		sums := sumsOf(random(c.there))
		var got string
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			name := strings.TrimPrefix(r.URL.Path, Prefix)
			if r.Method == http.MethodGet && name == "f" {
				for _, x := range sums {
					fmt.Fprintf(w, `{"checksum":%q,"algo":"sha256","size":%d}`+"\n", x.Checksum, x.Size)
				}
			}
			if r.Method == http.MethodPut {
				b, _ := io.ReadAll(r.Body)
				if got = name; len(b) != c.ours || r.Header.Get("Range") != "" || r.Host != "peer" {
					t.Errorf("%s: %d bytes, range %q, host %q", what, len(b), r.Header.Get("Range"), r.Host)
				}
			}
		}))
		size := int64(c.ours)
		if !c.known {
			size = -1
		}
		data := bytes.Repeat([]byte("x"), c.ours)
		sent, err := newRig(t, Settings{}).s.Send(t.Context(), node(t, srv.URL), "f", size, bytes.NewReader(data))
		srv.Close()
		if err != nil || got != c.want || sent.Name != c.want || sent.Size != int64(c.ours) {
			t.Errorf("%s: %q, %+v, %v", what, got, sent, err)
		}
	}
}

func TestSendRefused(t *testing.T) {
	r := newRig(t, Settings{})
	there := newRig(t, Settings{Quota: 10})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close() // nobody is there now
	odd := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "http://127.0.0.1:1/")
		w.WriteHeader(http.StatusFound)
	}))
	defer odd.Close()
	none := node(t, there.url)
	none.PeerAPI4 = 0
	behind := node(t, there.url)
	behind.Addresses = append(prefixes("100.64.0.9/32"), behind.Addresses...)
	ours := node(t, there.url)
	for what, c := range map[string]struct {
		to   *mesh.Node
		name string
		code int
		say  string
	}{
		"the quota there":  {ours, "f", 507, "there.mesh does not take it"},
		"nobody answers":   {node(t, "http://"+ln.Addr().String()), "f", 502, "does not answer"},
		"takes none":       {none, "f", 403, "takes no files"},
		"a way to nowhere": {node(t, odd.URL), "f", 502, "does not take it"},
		"no name":          {ours, "", 400, "name"},
		"a way for a name": {ours, "../f", 400, "name"},
		"a dot":            {ours, "..", 400, "name"},
		"a line":           {ours, "a\nb", 400, "name"},
		"a name too long":  {ours, strings.Repeat("x", 256), 400, "name"},
		"no text":          {ours, "\xff", 400, "name"},
	} {
		_, err := r.s.Send(t.Context(), c.to, c.name, 100, bytes.NewReader(random(100)))
		if err == nil || code(err) != c.code || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s: %d %v", what, code(err), err)
		}
	}
	there.only(there.inbox, nil)
	r.nm.Store(nil)
	if _, err := r.s.Send(t.Context(), ours, "f", 1, strings.NewReader("x")); code(err) != 404 {
		t.Errorf("in no mesh: %v", err)
	}
	r.nm.Store(netmap())
	r.nm.Load().Self.Addresses = prefixes("fd7a::1/128")
	if _, err := r.s.Send(t.Context(), ours, "f", 1, strings.NewReader("x")); !errors.Is(err, ErrNoFiles) {
		t.Errorf("by a family that we do not have: %v", err)
	}
	r.nm.Store(netmap())
	if base, err := r.s.door(behind); err != nil || strings.Contains(base, "127.0.0.1") {
		t.Errorf("it is asked at an address that is another's: %s, %v", base, err)
	}
}

// TestSendGivenUp: who sends may go at any time.
func TestSendGivenUp(t *testing.T) {
	here, there := newRig(t, Settings{}), newRig(t, Settings{})
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	go func() {
		_, _ = w.Write(random(block))
		there.until(func() bool { return there.came.Load() == block })
		if got := here.s.Show().Transfers; len(got) != 1 || !got[0].Sending || got[0].Done != block || got[0].Peer != "there.mesh" {
			t.Errorf("shown %+v", got)
		}
		cancel()
		w.Close() // as does the end of a request
	}()
	if _, err := here.s.Send(ctx, node(t, there.url), "f", 5*block, r); err == nil {
		t.Error("given up, it is sent")
	}
	there.until(func() bool { return len(there.s.transfers()) == 0 })
}

func TestTargets(t *testing.T) {
	r := newRig(t, Settings{})
	no := false
	all := []mesh.Node{phone, laptop, guest, phone, phone, guest}
	for i := range all {
		all[i].Name, all[i].PeerAPI4 = fmt.Sprintf("n%d.mesh.", i), 1
	}
	all[1].Online, all[3].PeerAPI4, all[4].Tags = &no, 0, []string{"tag:x"}
	all[5].Addresses = prefixes("100.64.0.5/32")
	nm := netmap(all...)
	at := func(s string) []mesh.Range { a := netip.MustParseAddr(s); return []mesh.Range{{From: a, To: a}} }
	nm.Grants = []mesh.Grant{{Srcs: at("100.64.0.5"), Dsts: at("100.64.0.1"), Caps: []string{mesh.CapTarget}}}
	r.nm.Store(nm)
	if got := fmt.Sprint(r.s.Show().Targets); got != "[n0.mesh n5.mesh]" {
		t.Errorf("targets %s", got)
	}
}
