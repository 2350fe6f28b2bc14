package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/qr"
	"subnetd/subnetd/status"

	"github.com/google/go-cmp/cmp"
	oracle "rsc.io/qr"
)

func TestInvite(t *testing.T) {
	i := status.Invite{
		URL: "http://192.168.1.1:8410", Key: "hskey-1-abc", ID: "7", Expires: noon.Add(24 * time.Hour),
		Line:    "tailscale up --login-server=http://192.168.1.1:8410 --auth-key=hskey-1-abc",
		Missing: []string{"It works at home only: set home.url.", "Bad \x1b[2J name."},
	}
	const before = `On a computer with Tailscale:

	tailscale up --login-server=http://192.168.1.1:8410 --auth-key=hskey-1-abc

On a phone, in the Tailscale app: account settings, then "use an alternate server" (or "custom coordination server"):

	http://192.168.1.1:8410

`
	const after = "Then give it the key hskey-1-abc, or log in: the page shows a code, and `subnetd nodes approve CODE` lets the phone in.\n\n" +
		"The key is good for one device, until 2026-11-02 12:00. `subnetd keys revoke 7` takes it back.\n\n" +
		"! It works at home only: set home.url.\n! Bad �[2J name.\n"
	plain := status.InviteRequest{Expires: 24 * time.Hour}

	c := &coordinator{invite: i}
	code, out, stderr := callHome(t, c, "", "invite", "--no-qr")
	if d := cmp.Diff(before+after, out); code != 0 || stderr != "" || d != "" {
		t.Errorf("%d, %q, %s", code, stderr, d)
	}
	if d := cmp.Diff(any(plain), c.asked); d != "" {
		t.Error(d)
	}

	code, out, _ = callHome(t, c, "", "invite")
	drawing, ok := strings.CutPrefix(out, before)
	drawing, ok2 := strings.CutSuffix(drawing, "\n"+after)
	if code != 0 || !ok || !ok2 {
		t.Fatalf("%d, %s", code, out)
	}
	checkQR(t, i.URL, drawing, false)

	all := status.InviteRequest{User: "anna", Tags: []string{"tag:a", "tag:b"}, Reusable: true, Ephemeral: true, Expires: 30 * 24 * time.Hour}
	c.invite.Missing = nil
	_, out, _ = callHome(t, c, "", "invite", "--no-qr", "--user", "anna", "--tags", "tag:a,tag:b", "--reusable", "--ephemeral", "--expires=30d")
	if d := cmp.Diff(any(all), c.asked); d != "" {
		t.Error(d)
	}
	if !strings.HasSuffix(out, "good for any number of devices, until 2026-11-02 12:00. `subnetd keys revoke 7` takes it back.\n") {
		t.Errorf("a reusable key: %s", out)
	}

	c.invite = i
	var got status.Invite
	if code, out, _ = callHome(t, c, "", "invite", "--json"); code != 0 || json.Unmarshal([]byte(out), &got) != nil || !cmp.Equal(got, i) {
		t.Errorf("%d, %s", code, out)
	}
	code, out, stderr = callHome(t, c, "", "invite", "--user", "ghost")
	if code != 1 || out != "" || stderr != "subnetd: there is no user \"ghost\"�\n" {
		t.Errorf("refused: %d, %q, %q", code, out, stderr)
	}
	c.invite.URL = "http://" + strings.Repeat("x", 3000) // fits no code, but the key must not be lost
	if code, out, _ = callHome(t, c, "", "invite"); code != 0 || !strings.HasSuffix(out, after) || strings.Contains(out, "█") {
		t.Errorf("a long URL: %d, %s", code, out)
	}
}

func TestQR(t *testing.T) {
	for _, url := range []string{"http://192.168.1.1:8410", "https://mesh.example.org", "http://" + strings.Repeat("long.", 40) + "example"} {
		code, err := qr.Encode(url)
		if err != nil {
			t.Fatal(err)
		}
		for _, colour := range []bool{false, true} {
			var b bytes.Buffer
			drawQR(&b, code, colour)
			checkQR(t, url, b.String(), colour)
		}
	}
}

// checkQR reads a drawing back, module by module, and compares it with the code
// of the URL and its quiet zone.
func checkQR(t *testing.T, url, drawing string, colour bool) {
	t.Helper()
	want, err := oracle.Encode(url, oracle.M)
	if err != nil {
		t.Fatal(err)
	}
	// What is drawn in the upper and the lower half; with colour, what is drawn is dark.
	ink := map[rune][2]bool{'█': {true, true}, '▀': {true, false}, '▄': {false, true}, ' ': {false, false}}
	lines := strings.Split(strings.TrimSuffix(drawing, "\n"), "\n")
	if len(lines) != (want.Size+8+1)/2 {
		t.Fatalf("%d lines for %d modules", len(lines), want.Size)
	}
	for i, line := range lines {
		if colour {
			var ok, ok2 bool
			line, ok = strings.CutPrefix(line, "\x1b[30;47m")
			if line, ok2 = strings.CutSuffix(line, "\x1b[0m"); !ok || !ok2 {
				t.Fatalf("line %d is not black on white, or leaves the terminal so", i)
			}
		}
		cells := []rune(line)
		if len(cells) != want.Size+8 {
			t.Fatalf("line %d has %d modules, want %d", i, len(cells), want.Size+8)
		}
		for x, c := range cells {
			halves, ok := ink[c]
			if !ok {
				t.Fatalf("line %d draws %q", i, c)
			}
			for half, drawn := range halves {
				if dark := drawn == colour; dark != want.Black(x-4, 2*i+half-4) {
					t.Fatalf("module %d, %d is dark: %v", x-4, 2*i+half-4, dark)
				}
			}
		}
	}
}

func TestSpan(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"24h": 24 * time.Hour, "30d": 720 * time.Hour, "1d12h": 36 * time.Hour, "90s": 90 * time.Second, "1ns": 1, "3653d": mostSpan, "3652d24h": mostSpan,
		"": 0, "0": 0, "0d": 0, "-1h": 0, "-1d": 0, "1d-1h": 0, "3653d1ns": 0, "3654d": 0, "87673h": 0, "99999999999d": 0, "4000d2562047h": 0, "d": 0, "1.5d": 0, "1d1d": 0, "soon": 0, "5": 0,
	} {
		var s span
		err := s.Set(text)
		if (err == nil) != (want != 0) || time.Duration(s) != want {
			t.Errorf("%q is %v, %v; want %v", text, time.Duration(s), err, want)
		}
	}
	day := span(24 * time.Hour)
	if got := day.String(); got != "24h" {
		t.Errorf("a day is %q", got)
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("a\x1b[2Jb\tc\n\u202e\u009b\xff\U000e0041")
	f.Fuzz(func(t *testing.T, s string) {
		for _, r := range printable(s, "\n") {
			if r != '\n' && (r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e) {
				t.Fatalf("%U of %q", r, s)
			}
		}
		var b bytes.Buffer
		if err := writeJSON(&b, []string{s}); err != nil {
			t.Fatal(err)
		}
		var got []string
		if err := json.Unmarshal(b.Bytes(), &got); err != nil || got[0] != string([]rune(s)) {
			t.Fatalf("%q comes back as %q, %v", s, got, err)
		}
		if b.String() != printable(b.String(), "\n") {
			t.Fatalf("%q prints %q", s, b.String())
		}
	})
}
