package cli

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"subnetd/subnetd/api"
)

func TestWebPassword(t *testing.T) {
	var got []string
	d := &daemon{page: api.Page{SetPassword: func(_ context.Context, p string) error {
		got = append(got, p)
		if len(p) < 8 {
			return api.BadRequest(errors.New("the password is too short"))
		}
		return nil
	}}}
	socket := d.serve(t)
	for stdin, want := range map[string]int{"correct horse\n": 0, " spaces are kept \r\n": 0, "no line end": 0, "first line\nsecond\n": 0, "": 1, "short\n": 1} {
		var out, err bytes.Buffer
		p := &program{in: strings.NewReader(stdin), out: &out, err: &err, build: build}
		got = nil
		if code := p.exit(t.Context(), []string{"web", "password", "--socket", socket}); code != want {
			t.Errorf("%q: %d %s", stdin, code, err.String())
		}
		line, _, _ := strings.Cut(stdin, "\n")
		if len(got) != 1 || got[0] != strings.TrimSuffix(line, "\r") {
			t.Errorf("%q: asked for %q", stdin, got)
		}
		if all := out.String() + err.String(); strings.Contains(all, "horse") {
			t.Error("the password is shown:", all)
		}
	}
}
