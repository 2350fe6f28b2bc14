package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"subnetd/subnetd/api"
	"subnetd/subnetd/status"
)

// TestUpdate: the image is sent whole, named by its SHA-256, and the answer is shown, fit for a terminal.
func TestUpdate(t *testing.T) {
	// Of NIST's example of "abc".
	const sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	var refuse error
	var restarts int
	d := &daemon{system: api.System{
		Update: func(_ context.Context, got string, image io.Reader, size int64) (status.Updated, error) {
			b, err := io.ReadAll(image)
			if got != sum || string(b) != "abc" || size != 3 || err != nil {
				t.Errorf("%s %q %d %v", got, b, size, err)
			}
			return status.Updated{Text: "it is tried\x1b[2J"}, refuse
		},
		Restart: func(context.Context) error { restarts++; return nil },
	}}
	socket := d.serve(t)
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args     string
		refuse   error
		code     int
		says     string
		restarts int
	}{
		{file, nil, 0, "it is tried\ufffd[2J\n", 0},
		{"--sha256 " + strings.ToUpper(sum) + " " + file, nil, 0, "it is tried", 0},
		{"--sha256 " + strings.Repeat("0", 64) + " " + file, nil, 1, "has the SHA-256 " + sum + ", not 0000", 0},
		{"--restart " + file, nil, 0, "this machine restarts\n", 1},
		{"--restart " + file, api.BadRequest(errors.New("for another board")), 1, "for another board", 0},
		{file + ".none", nil, 1, "no such file", 0},
		{"", nil, 2, "usage: subnetd update FILE", 0},
	} {
		var out bytes.Buffer
		p := &program{out: &out, err: &out, build: build}
		refuse, restarts = tt.refuse, 0
		args := append([]string{"update", "--socket", socket}, strings.Fields(tt.args)...)
		if code := p.exit(t.Context(), args); code != tt.code || !strings.Contains(out.String(), tt.says) || restarts != tt.restarts {
			t.Errorf("%s: %d, %d restarts, %q", tt.args, code, restarts, out.String())
		}
	}
}

func TestShowSystem(t *testing.T) {
	for want, s := range map[string]*status.System{
		"":   nil,
		"v1": {Version: "v1", Note: "it is told as a problem"},
		"v1, the next start tries another version, once": {Version: "v1", Waiting: true},
		"v1, an update comes in: 40 %":                   {Version: "v1", Waiting: true, Update: &status.Update{Done: 2, Size: 5}},
	} {
		if got := system(s); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
