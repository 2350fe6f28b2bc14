package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"subnetd/subnetd/api"
	"subnetd/subnetd/status"

	"golang.org/x/sys/unix"
)

// installer is a program that installs systems, as the appliance's is one: in a folder of its own, where installed is what came.
const installer = `#!/bin/sh
cd "$(dirname "$0")" || exit 9
case "$1 $#" in
"system 1")
	waiting=false note=
	[ ! -e installed ] || waiting=true
	[ ! -e failed ] || note="the last one did not come up"
	echo "{\"version\":\"v1\",\"waiting\":$waiting,\"note\":\"$note\"}"
	;;
"update 2")
	[ ! -p begun ] || : >begun
	[ "$(head -c 5 | tee part)" = image ] || { echo "not installed: this is no image" >&2; exit 1; }
	cat >>part
	[ "$(sha256sum <part)" = "$2  -" ] || { echo "not installed: another SHA-256" >&2; exit 1; }
	mv part installed
	echo "it is tried" >&2
	;;
"reboot 1") : >rebooted ;;
*) exit 9 ;;
esac
`

// machine is a system whose program is that one, behind the API.
type machine struct {
	*system
	t    *testing.T
	dir  string
	http *httptest.Server

	news chan struct{} // one slot: something has changed

	mu       sync.Mutex // guards what is below
	shown    []status.System
	troubles []string
}

func newMachine(t *testing.T) *machine {
	m := &machine{t: t, dir: t.TempDir(), news: make(chan struct{}, 1)}
	m.system = &system{program: m.path("installer"), log: slog.New(slog.DiscardHandler), changed: m.note, trouble: func(text string) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.troubles = append(m.troubles, text)
	}}
	if err := os.WriteFile(m.program, []byte(installer), 0o700); err != nil {
		t.Fatal(err)
	}
	m.look(t.Context())
	m.http = httptest.NewServer(api.Handler(api.Funcs{System: m.calls()}, func(*http.Request) api.Asker { return api.Owner }))
	t.Cleanup(m.http.Close)
	return m
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) note() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shown = append(m.shown, *m.show())
	select {
	case m.news <- struct{}{}:
	default:
	}
}

// ended waits until no update is under way.
func (m *machine) ended() {
	for {
		m.system.mu.Lock()
		busy := m.busy
		m.system.mu.Unlock()
		if !busy {
			return
		}
		<-m.news
	}
}

// put sends an image, and gives what is answered.
func (m *machine) put(sum string, image io.Reader, size int64) (int, string) {
	m.t.Helper()
	req, err := http.NewRequestWithContext(m.t.Context(), http.MethodPut, m.http.URL+api.SystemPath+"image/"+sum, image)
	if err != nil {
		m.t.Fatal(err)
	}
	req.ContentLength = size
	res, err := m.http.Client().Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

// begin sends the first 8 bytes of an image, and returns when the program runs. The rest is for more; the answer comes after it.
func (m *machine) begin(image []byte) (answer <-chan string, more *io.PipeWriter) {
	m.t.Helper()
	if err := unix.Mkfifo(m.path("begun"), 0o600); err != nil {
		m.t.Fatal(err)
	}
	rest, more := io.Pipe()
	said := make(chan string, 1)
	go func() {
		code, text := m.put(hexSum(image), io.MultiReader(bytes.NewReader(image[:8]), rest), int64(len(image)))
		said <- fmt.Sprint(code, " ", text)
	}()
	if _, err := os.ReadFile(m.path("begun")); err != nil { // it waits for the writer
		m.t.Fatal(err)
	}
	if err := os.Remove(m.path("begun")); err != nil {
		m.t.Fatal(err)
	}
	return said, more
}

func hexSum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// TestUpdate: the program gets what came, byte for byte, and its words come back.
func TestUpdate(t *testing.T) {
	m := newMachine(t)
	if now := m.show(); *now != (status.System{Version: "v1"}) {
		t.Fatalf("at first: %+v", now)
	}
	image := append([]byte("image"), bytes.Repeat([]byte{0, 1, 2, 3}, 500_000)...)
	size := int64(len(image))
	for what, c := range map[string]struct {
		sum   string
		image []byte
		says  string
	}{
		"another SHA-256": {hexSum(nil), image, "the system stays as it is: not installed: another SHA-256"},
		"no image":        {hexSum(image[1:]), image[1:], "not installed: this is no image"},
	} {
		if code, text := m.put(c.sum, bytes.NewReader(c.image), int64(len(c.image))); code != http.StatusBadRequest || !strings.Contains(text, c.says) {
			t.Errorf("%s: %d %s", what, code, text)
		}
	}
	answer, more := m.begin(image)
	more.CloseWithError(errors.New("the browser is gone"))
	if got := <-answer; strings.HasPrefix(got, "200") {
		t.Error("interrupted:", got)
	}
	m.ended()
	if _, err := os.Stat(m.path("installed")); err == nil || m.show().Waiting {
		t.Error("one of these is installed")
	}
	code, text := m.put(hexSum(image), bytes.NewReader(image), size)
	if code != http.StatusOK || text != `{"text":"it is tried"}`+"\n" {
		t.Errorf("%d %s", code, text)
	}
	if got, err := os.ReadFile(m.path("installed")); err != nil || !bytes.Equal(got, image) {
		t.Error("another is installed than came", err)
	}
	if now := m.show(); *now != (status.System{Version: "v1", Waiting: true}) {
		t.Errorf("at last: %+v", now)
	}
	most := int64(0)
	for _, s := range m.shown {
		if s.Update != nil {
			most = max(most, s.Update.Done)
		}
	}
	if most < size*98/100 || len(m.shown) > 500 {
		t.Errorf("%d bytes of %d were told, in %d steps", most, size, len(m.shown))
	}
}

// TestUpdateTwice: while one comes in, another is refused at once, and does it no harm.
func TestUpdateTwice(t *testing.T) {
	m := newMachine(t)
	image := []byte("image of a system")
	first, more := m.begin(image)
	if code, text := m.put(hexSum(image), bytes.NewReader(image), int64(len(image))); code != http.StatusConflict || !strings.Contains(text, "under way") {
		t.Errorf("%d %s", code, text)
	}
	if _, err := more.Write(image[8:]); err != nil {
		t.Error(err)
	}
	_ = more.Close() // of a pipe in memory
	if got := <-first; !strings.HasPrefix(got, "200") {
		t.Error(got)
	}
}

// TestSystemTells: what the program says of an update that did not come up is a trouble, and where there is no program,
// nothing can be asked of it.
func TestSystemTells(t *testing.T) {
	m := newMachine(t)
	if err := os.WriteFile(m.path("failed"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m.look(t.Context())
	if len(m.troubles) != 2 || m.troubles[0] != "" || m.troubles[1] != "the last one did not come up" || m.show().Note != m.troubles[1] {
		t.Errorf("%q", m.troubles)
	}
	if err := unix.Mkfifo(m.path("rebooted"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.restart(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.ReadFile(m.path("rebooted")); err != nil { // it waits for the program
		t.Error(err)
	}
	none := &system{log: m.log}
	if _, err := none.update(t.Context(), hexSum(nil), nil, 1); !errors.Is(err, api.ErrNoSystem) {
		t.Error(err)
	}
	if err := none.restart(t.Context()); !errors.Is(err, api.ErrNoSystem) {
		t.Error(err)
	}
	broken := &system{program: "/bin/false", log: m.log, changed: func() {}}
	if broken.look(t.Context()); broken.show() != nil {
		t.Error("a program that says nothing updates systems")
	}
}
