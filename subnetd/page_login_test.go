package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"subnetd/subnetd/web"
)

// TestSystemLogin: what the program is asked, and what its exit codes mean.
func TestSystemLogin(t *testing.T) {
	program := filepath.Join(t.TempDir(), "login")
	if systemLogin(program) != nil {
		t.Error("there is none")
	}
	const script = `#!/bin/sh
[ $# = 0 ] || exit 9
question=$(cat)
case $question in
'{"password":"to\"or $x","username":"root"}') exit 0 ;;
'{"password":"open","username":"root"}') exit 3 ;;
esac
exit 1
`
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	login := systemLogin(program)
	for _, tt := range []struct {
		user, password string
		in, open       bool
	}{
		{"root", `to"or $x`, true, false}, {"root", "x", false, false}, {"root", "", false, false}, {"admin", `to"or $x`, false, false},
		{"root", "open", false, true}, {"root", strings.Repeat("x", mostPassword+1), false, false}, {"root", strings.Repeat("\x01", mostPassword), false, false},
	} {
		err := login(t.Context(), tt.user, tt.password)
		if (err == nil) != tt.in || errors.Is(err, web.ErrNoPassword) != tt.open {
			t.Errorf("%s, %.10q: %v", tt.user, tt.password, err)
		}
	}
	if err := os.WriteFile(program, []byte("#!/bin/sh\nexit 0\n"), 0o700); err != nil { // does not read
		t.Fatal(err)
	}
	if err := login(t.Context(), "root", "x"); err != nil {
		t.Error(err)
	}
}
