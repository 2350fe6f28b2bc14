package drop

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"subnetd/subnetd/mesh"
)

const sometime = 30 * time.Second // is enough for what has to happen, on any machine

var (
	phone  = mesh.Node{ID: 2, Name: "phone.mesh.", User: 1, Addresses: prefixes("100.64.0.2/32", "fd7a::2/128")}
	laptop = mesh.Node{ID: 3, Name: "laptop.mesh.", User: 1, Addresses: prefixes("100.64.0.3/32")}
	guest  = mesh.Node{ID: 4, Name: "guest.mesh.", User: 2, Addresses: prefixes("100.64.0.4/32")}
)

func prefixes(all ...string) (out []netip.Prefix) {
	for _, s := range all {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// netmap is one of this node, which takes files, and of some peers.
func netmap(peers ...mesh.Node) *mesh.Netmap {
	return &mesh.Netmap{Peers: peers, Self: mesh.Node{
		ID: 1, Name: "home.mesh.", User: 1, Caps: []string{mesh.CapSharing}, Addresses: prefixes("100.64.0.1/32", "fd7a::1/128"),
	}}
}

// rig is a Store behind a server for which each request comes from the member that its
// header From names.
type rig struct {
	*testing.T
	s       *Store
	inbox   string
	url     string
	now     atomic.Int64
	changes atomic.Int64
	came    atomic.Int64 // bytes of bodies
	saved   atomic.Pointer[Memory]
	nm      atomic.Pointer[mesh.Netmap]
}

func newRig(t *testing.T, set Settings) *rig {
	t.Helper()
	r := &rig{T: t, inbox: filepath.Join(t.TempDir(), "inbox")}
	r.nm.Store(netmap(phone, laptop, guest))
	r.s = New(Config{
		Inbox: r.inbox, Save: func(m Memory) error { r.saved.Store(&m); return nil }, Netmap: r.nm.Load,
		Changed: func() { r.changes.Add(1) }, Now: func() time.Time { return time.Now().Add(time.Duration(r.now.Load())) },
		Dial: (&net.Dialer{}).DialContext, Log: slog.New(slog.DiscardHandler),
	})
	r.s.Set(set)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		from := phone
		for _, n := range []mesh.Node{laptop, guest} {
			if n.Name == q.Header.Get("From") {
				from = n
			}
		}
		q.Body = &tap{q.Body, &r.came}
		r.s.Receive(w, q, from)
	}))
	srv.Config.ReadTimeout, srv.Config.WriteTimeout = 10*time.Second, 20*time.Second
	srv.Start()
	t.Cleanup(srv.Close)
	r.url = srv.URL
	return r
}

// tap counts what is read of a body.
type tap struct {
	io.ReadCloser
	n *atomic.Int64
}

func (x *tap) Read(b []byte) (int, error) {
	n, err := x.ReadCloser.Read(b)
	x.n.Add(int64(n))
	return n, err
}

// do sends a request of a member, and gives the answer and its text.
func (r *rig) do(method, name string, from mesh.Node, offset int64, body io.Reader) (int, string) {
	r.Helper()
	q, err := http.NewRequestWithContext(r.Context(), method, r.url+Prefix+escape(name), body)
	if err != nil {
		r.Fatal(err)
	}
	q.Header.Set("From", from.Name)
	if offset > 0 {
		q.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	c := &http.Client{Transport: &http.Transport{}}
	defer c.CloseIdleConnections()
	res, err := c.Do(q)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.Error(err)
	}
	return res.StatusCode, strings.TrimSpace(string(b))
}

// put sends a whole file of a member.
func (r *rig) put(name string, from mesh.Node, data []byte) {
	r.Helper()
	if code, text := r.do("PUT", name, from, 0, bytes.NewReader(data)); code != 200 || text != "{}" {
		r.Fatalf("PUT %q: %d %s", name, code, text)
	}
}

// escape is as stock clients write a name in a path, every byte that could be read otherwise.
func escape(name string) string {
	var b strings.Builder
	for i := range len(name) {
		fmt.Fprintf(&b, "%%%02X", name[i])
	}
	return b.String()
}

// here is what is in a folder, the hidden too.
func here(t testing.TB, folder string) map[string]string {
	t.Helper()
	out := map[string]string{}
	all, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		b, err := os.ReadFile(filepath.Join(folder, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(b)
	}
	return out
}

// only checks that the folder has these files and no other.
func (r *rig) only(folder string, want map[string]string) {
	r.Helper()
	got := here(r, folder)
	for name, data := range got {
		if w, ok := want[name]; !ok || w != data {
			r.Errorf("%s has %q with %d bytes", folder, name, len(data))
		}
	}
	if len(got) < len(want) {
		r.Errorf("%s has %d files, want %d", folder, len(got), len(want))
	}
}

// random is a file of so many bytes.
func random(n int) []byte {
	b := make([]byte, n)
	c := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = c.Read(b)
	return b
}

// slow is a PUT of a member of which the sender decides when how much comes.
type slow struct {
	*rig
	c net.Conn
}

// open begins a PUT of so many bytes from an offset; -1: it does not say how many.
func (r *rig) open(name string, from mesh.Node, offset, size int64) *slow {
	r.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(sometime))
	length := fmt.Sprintf("Content-Length: %d", size)
	if size < 0 {
		length = "Transfer-Encoding: chunked"
	}
	if offset > 0 {
		length += fmt.Sprintf("\r\nRange: bytes=%d-", offset)
	}
	fmt.Fprintf(c, "PUT %s%s HTTP/1.1\r\nHost: peer\r\nFrom: %s\r\n%s\r\n\r\n", Prefix, escape(name), from.Name, length)
	return &slow{r, c}
}

// send sends some and waits until they are counted.
func (x *slow) send(data []byte, name string, done int64) {
	x.Helper()
	if _, err := x.c.Write(data); err != nil {
		x.Fatal(err)
	}
	x.until(func() bool {
		for _, t := range x.s.transfers() {
			if t.Name == name && t.Done == done {
				return true
			}
		}
		return false
	})
}

// answer is the code of the answer.
func (x *slow) answer() int {
	x.Helper()
	b := make([]byte, 12)
	if _, err := io.ReadFull(x.c, b); err != nil {
		x.Fatal(err)
	}
	var code int
	if _, err := fmt.Sscanf(string(b), "HTTP/1.1 %d", &code); err != nil {
		x.Fatalf("%q: %v", b, err)
	}
	return code
}

// until waits for something that comes without an event of its own.
func (r *rig) until(done func() bool) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), sometime)
	defer cancel()
	for !done() {
		select {
		case <-ctx.Done():
			r.Fatal("it did not come")
		case <-time.After(time.Millisecond):
		}
	}
}

// sums are what a sender is told of a file.
func (r *rig) sums(name string, from mesh.Node) []checksum {
	r.Helper()
	code, text := r.do("GET", name, from, 0, nil)
	if code != 200 {
		r.Fatalf("GET %q: %d %s", name, code, text)
	}
	var out []checksum
	for d := json.NewDecoder(strings.NewReader(text)); ; {
		var c checksum
		if err := d.Decode(&c); err != nil {
			return out
		}
		out = append(out, c)
	}
}

func sumsOf(data []byte) (out []checksum) {
	for b := range slices.Chunk(data, block) {
		sum := sha256.Sum256(b)
		out = append(out, checksum{hex.EncodeToString(sum[:]), "sha256", int64(len(b))})
	}
	return out
}
