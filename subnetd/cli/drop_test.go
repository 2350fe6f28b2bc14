package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/status"
)

// TestDrop: files go and come whole, and what is done is said in a form fit for a terminal.
func TestDrop(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	var refuse error
	var asked []string
	shown := status.Drop{
		Quota: 10_000, Used: 2000, Free: 5_000_000, KeepFree: 1_000_000, Address: "http://drop.home.mesh",
		Files:     []status.DropFile{{Name: "a\x1b.txt", Size: 1500, From: "phone.mesh", At: now.Add(-time.Hour)}, {Name: "b", At: now}},
		Transfers: []status.DropTransfer{{Name: "c", Peer: "phone.mesh", Size: 100, Done: 40}, {Name: "d", Peer: "tv.mesh", Sending: true, Size: -1, Waits: true}},
	}
	d := &daemon{drop: api.Drop{
		Show: func() status.Drop { return shown },
		Send: func(_ context.Context, to, name string, size int64, file io.Reader) (status.DropSent, error) {
			b, err := io.ReadAll(file)
			asked = append(asked, fmt.Sprintf("%s %s %d %s", to, name, size, b))
			return status.DropSent{To: to + ".mesh", Name: name, Size: int64(len(b))}, errors.Join(err, refuse)
		},
		Open: func(name string) (io.ReadCloser, int64, error) {
			return io.NopCloser(strings.NewReader("of " + name)), int64(len(name) + 3), refuse
		},
		Remove: func(_ context.Context, name string) error { asked = append(asked, "remove "+name); return refuse },
		Folder: func(_ context.Context, folder string) (status.Drop, error) {
			asked = append(asked, "folder "+folder)
			return status.Drop{Folder: folder}, refuse
		},
		Allow: func(_ context.Context, r status.DropAllow) (status.Drop, error) {
			asked = append(asked, fmt.Sprint(r))
			return shown, refuse
		},
	}}
	socket := d.serve(t)
	dir := t.TempDir()
	t.Chdir(dir)
	for name, text := range map[string]string{"one": "1", "two": "22"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		args  string
		code  int
		says  string
		asked string
	}{
		{"send one phone", 0, "phone.mesh has one, 1 B\n", "phone one 1 1"},
		{"send one " + filepath.Join(dir, "two") + " phone", 0, "phone.mesh has two, 2 B\n", "phone one 1 1; phone two 2 22"},
		{"send --name other one phone", 0, "has other", "phone other 1 1"},
		{"send - --name in phone", 0, "has in", "phone in -1 typed"},
		{"send - phone", 2, "needs a --name", ""},
		{"send --name x one two phone", 2, "no name for 2 files", ""},
		{"send phone", 2, "usage: subnetd send FILE... NODE", ""},
		{"send none phone", 1, "no such file", ""},
		{"send . phone", 1, "is a directory", ""},
		{"inbox", 0, "a\ufffd.txt  1.5 kB  phone.mesh", ""},
		{"inbox --json", 0, `"quota": 10000`, ""},
		{"inbox get b", 0, "b is in .", ""},
		{"inbox get b", 1, "exists", ""},
		{"inbox get ../b", 1, "no name for a file", ""},
		{"inbox get", 2, "usage: subnetd inbox get NAME|--all [DIR]", ""},
		{"inbox get --all a b", 2, "usage: subnetd inbox get --all [DIR]", ""},
		{"inbox remove b", 0, "b is removed", "remove b"},
		{"inbox folder", 0, "files land in the inbox", ""},
		{"inbox folder sub", 0, "files land in " + filepath.Join(dir, "sub"), "folder " + filepath.Join(dir, "sub")},
		{"inbox folder off", 0, "files land in the inbox", "folder "},
		{"inbox allow nas", 0, "curl -T FILE http://drop.home.mesh/NODE/", "{nas true}"},
		{"inbox forbid nas", 0, "nas may not send", "{nas false}"},
	} {
		var out bytes.Buffer
		p := &program{in: strings.NewReader("typed"), out: &out, err: &out, now: func() time.Time { return now }, build: build}
		asked = nil
		args := append(strings.Fields(tt.args), "--socket", socket)
		if code := p.exit(t.Context(), args); code != tt.code || !strings.Contains(out.String(), tt.says) || strings.Join(asked, "; ") != tt.asked {
			t.Errorf("%s: %d, asked %q, %q", tt.args, code, asked, out.String())
		}
	}
	if b, err := os.ReadFile("b"); err != nil || string(b) != "of b" {
		t.Errorf("b has %q, %v", b, err)
	}
	refuse = api.BadRequest(errors.New("no\x1b[2J"))
	for _, args := range []string{"send one phone", "inbox get c", "inbox remove c", "inbox folder /x", "inbox allow x", "inbox forbid x"} {
		var out bytes.Buffer
		p := &program{in: strings.NewReader("typed"), out: &out, err: &out, now: time.Now, build: build}
		if code := p.exit(t.Context(), append(strings.Fields(args), "--socket", socket)); code != 1 || !strings.Contains(out.String(), "no\ufffd[2J") {
			t.Errorf("%s: %d %q", args, code, out.String())
		}
	}
	if _, err := os.Stat("c"); err == nil {
		t.Error("a file that was not had is there")
	}
}

// TestMeter: a terminal is told how far a file is, twice a second at most.
func TestMeter(t *testing.T) {
	var out bytes.Buffer
	clock := time.Unix(1_000_000, 0)
	p := &program{out: &out, colour: true, now: func() time.Time { return clock }}
	m := &meter{Reader: bytes.NewReader(make([]byte, 1000)), p: p, name: "f\x1b", size: 1000}
	for range 10 {
		if _, err := m.Read(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		clock = clock.Add(progress / 4)
	}
	m.end()
	if want := "\r\x1b[Kf\ufffd: 10 % of 1.0 kB\r\x1b[Kf\ufffd: 50 % of 1.0 kB\r\x1b[Kf\ufffd: 90 % of 1.0 kB\r\x1b[K"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}
