package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/status"

	"github.com/google/go-cmp/cmp"
)

// ways is a home with rows of every kind, and a name that wants to paint the screen.
func ways() status.Exits {
	return status.Exits{
		Offer: true, Approved: true, There: []string{"cabin.lab", "far.lab\x1b[2J"},
		Rows: []status.ExitRow{
			{Row: 1, Sources: []string{"02:00:00:00:00:01"}, Exits: []string{"cabin", "far", "direct"}, Now: "far.lab", Why: "cabin.lab does not answer", Since: noon.Add(-3 * time.Minute)},
			{Row: 2, Sources: []string{"a", "b", "c", "d", "e", "f"}, Exits: []string{"far"}, Now: "far.lab", No6: true},
			{Row: 3, Sources: []string{"lan", "router"}, Exits: []string{"nobody"}, Now: "blocked", Why: "nobody is no node of this mesh"},
		},
	}
}

// callExit runs one command line at noon.
func callExit(t *testing.T, d *daemon, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	socket := d.serve(t)
	var out, err bytes.Buffer
	p := &program{in: strings.NewReader(""), out: &out, err: &err, now: func() time.Time { return noon }, build: build}
	return p.exit(t.Context(), append(args, "--socket", socket)), out.String(), err.String()
}

func TestExit(t *testing.T) {
	want := `offer  members may use the internet from here
exits  cabin.lab, far.lab�[2J

ROW  WHO                    THROUGH             NOW
1    02:00:00:00:00:01      cabin, far, direct  far.lab (cabin.lab does not answer, for 3 min)
2    a, b, c, d and 2 more  far                 far.lab, IPv6 blocked
3    lan, router            nobody              blocked (nobody is no node of this mesh)
`
	d := &daemon{snaps: []status.Snapshot{{Exits: ways()}}}
	code, out, stderr := callExit(t, d, "exit")
	if diff := cmp.Diff(want, out); code != 0 || stderr != "" || diff != "" {
		t.Errorf("%d, %q, %s", code, stderr, diff)
	}
	code, out, _ = callExit(t, d, "exit", "--json")
	var got status.Exits
	if err := json.Unmarshal([]byte(out), &got); code != 0 || err != nil || out != printable(out, "\n") {
		t.Errorf("%d, %v, %q", code, err, out)
	}
	if diff := cmp.Diff(ways(), got); diff != "" {
		t.Error(diff)
	}
	code, out, _ = callExit(t, &daemon{snaps: []status.Snapshot{{}}}, "exit")
	want = "offer  no\nexits  no node of the mesh offers one\n\nThis home uses no exit: everything goes out here. `subnetd exit use NODE` changes that.\n"
	if code != 0 || out != want {
		t.Errorf("%d, %q", code, out)
	}
}

// What each verb asks for, and what it says then.
func TestExitVerbs(t *testing.T) {
	var asked any
	empty := status.Exits{Offer: true}
	refuse := api.BadRequest(errors.New("plain.lab offers no exit"))
	d := &daemon{snaps: []status.Snapshot{{Exits: ways()}}, exit: api.Exit{
		Use: func(_ context.Context, r status.ExitUse) (status.Exits, error) {
			if asked = r; r.Exits[0] == "plain" {
				return status.Exits{}, refuse
			}
			return empty, nil
		},
		Off:   func(_ context.Context, r status.ExitOff) (status.Exits, error) { asked = r; return empty, nil },
		Offer: func(_ context.Context, r status.ExitOffer) (status.Exits, error) { asked = r; return empty, nil },
		Test: func(_ context.Context, of string) (status.ExitTest, error) {
			asked = of
			switch row := ways().Rows[0]; of {
			case "tv":
				return status.ExitTest{What: "02:00:00:00:00:01", Addresses: []string{"192.168.1.9"}, Interface: "br-lan", Row: &row}, nil
			case "pc":
				return status.ExitTest{What: "02:00:00:00:00:02", Unsure: "nothing was heard of it lately"}, nil
			}
			return status.ExitTest{}, refuse
		},
	}}
	shown := "offer  yes, but not approved by the coordinator\nexits  no node of the mesh offers one\n\nThis home uses no exit: everything goes out here. `subnetd exit use NODE` changes that.\n"
	for _, tt := range []struct {
		args           string
		code           int
		asked          any
		stdout, stderr string
	}{
		{"exit use cabin", 0, status.ExitUse{Exits: []string{"cabin"}}, shown, ""},
		{"exit use cabin,far,direct printer lan", 0, status.ExitUse{Exits: []string{"cabin", "far", "direct"}, Devices: []string{"printer", "lan"}}, shown, ""},
		{"exit use plain", 1, status.ExitUse{Exits: []string{"plain"}}, "", "subnetd: plain.lab offers no exit\n"},
		{"exit off printer", 0, status.ExitOff{Devices: []string{"printer"}}, shown, ""},
		{"exit off", 0, status.ExitOff{}, "off: 02:00:00:00:00:01 -> cabin, far, direct\noff: a, b, c, d, e, f -> far\noff: lan, router -> nobody\n" + shown, ""},
		{"exit offer on", 0, status.ExitOffer{On: true}, shown, ""},
		{"exit offer off", 0, status.ExitOffer{}, shown, ""},
		{"exit test tv", 0, "tv", "02:00:00:00:00:01 (192.168.1.9) on br-lan: row 1, 02:00:00:00:00:01 -> cabin, far, direct\nnow: far.lab (cabin.lab does not answer, for 3 min)\n", ""},
		{"exit test pc", 0, "pc", "02:00:00:00:00:02 goes direct: no row is about it\nbut nothing was heard of it lately\n", ""},
		{"exit test x", 1, "x", "", "subnetd: plain.lab offers no exit\n"},
	} {
		asked = nil
		code, out, stderr := callExit(t, d, strings.Fields(tt.args)...)
		if code != tt.code || stderr != tt.stderr || fmt.Sprint(asked) != fmt.Sprint(tt.asked) {
			t.Errorf("%s: %d, asked %v, %q", tt.args, code, asked, stderr)
		}
		if diff := cmp.Diff(tt.stdout, out); diff != "" {
			t.Errorf("%s: %s", tt.args, diff)
		}
	}
}

// What `status` says in one line.
func TestExitsLine(t *testing.T) {
	want := "offered; 02:00:00:00:00:01 -> far.lab (cabin.lab does not answer, for 3 min); a, b, c, d and 2 more -> far.lab, IPv6 blocked; " +
		"lan, router -> blocked (nobody is no node of this mesh)"
	if got := exitsLine(ways(), noon); got != want {
		t.Errorf("%q", got)
	}
	if got := exitsLine(status.Exits{There: []string{"x"}}, noon); got != "" {
		t.Errorf("without rows: %q", got)
	}
	if got := exitsLine(status.Exits{Offer: true}, noon); got != "offered (not approved)" {
		t.Errorf("not approved: %q", got)
	}
}
