package systemd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// decode reads a message as the journal does.
func decode(t *testing.T, b []byte) map[string]string {
	t.Helper()
	all := map[string]string{}
	for len(b) > 0 {
		line, rest, _ := bytes.Cut(b, []byte("\n"))
		name, value, simple := strings.Cut(string(line), "=")
		if !simple {
			if len(rest) < 8 {
				t.Fatalf("no length behind %q", line)
			}
			n := binary.LittleEndian.Uint64(rest)
			if rest = rest[8:]; uint64(len(rest)) <= n || rest[n] != '\n' {
				t.Fatalf("%q does not end after %d bytes", line, n)
			}
			value, rest = string(rest[:n]), rest[n+1:]
		}
		if _, twice := all[name]; twice {
			t.Errorf("%s twice", name)
		}
		all[name], b = value, rest
	}
	return all
}

func TestJournal(t *testing.T) {
	at := filepath.Join(t.TempDir(), "journal")
	c := ear(t, at)
	var plain bytes.Buffer
	log := slog.New(&journal{plain: slog.NewTextHandler(&plain, &slog.HandlerOptions{Level: slog.LevelDebug}), at: at})
	bound := log.With("part", "home")
	_ = log.With("part", "exits") // shares nothing with bound
	for _, tc := range []struct {
		say  func()
		want map[string]string
	}{
		{func() { log.Info("stopping") }, map[string]string{"MESSAGE": "stopping", "PRIORITY": "6"}},
		{func() { log.Debug("x", "n", 3) }, map[string]string{"MESSAGE": "x n=3", "PRIORITY": "7", "SUBNETD_N": "3"}},
		{func() { bound.Warn("late", "by", time.Second) }, map[string]string{
			"MESSAGE": "late part=home by=1s", "PRIORITY": "4", "SUBNETD_PART": "home", "SUBNETD_BY": "1s"}},
		{func() { bound.Error("no", "err", errors.New("two\nlines = \"bad\"")) }, map[string]string{
			"MESSAGE": `no part=home err="two\nlines = \"bad\""`, "PRIORITY": "3", "SUBNETD_PART": "home", "SUBNETD_ERR": "two\nlines = \"bad\""}},
		{func() { bound.WithGroup("peer").With("key", "").Info("new", "größe", 1) }, map[string]string{
			"MESSAGE": `new part=home peer.key="" peer.größe=1`, "PRIORITY": "6", "SUBNETD_PART": "home", "SUBNETD_PEER_KEY": "", "SUBNETD_PEER_GR__E": "1"}},
		{func() { log.Info("m", "MESSAGE", "fake", strings.Repeat("n", 99), strings.Repeat("v", mostValue+1)) }, map[string]string{
			"MESSAGE": ("m MESSAGE=fake " + strings.Repeat("n", 99) + "=" + strings.Repeat("v", mostValue))[:mostValue], "PRIORITY": "6",
			"SUBNETD_MESSAGE": "fake", "SUBNETD_" + strings.Repeat("N", 56): strings.Repeat("v", mostValue)}},
	} {
		tc.say()
		tc.want["SYSLOG_IDENTIFIER"] = "subnetd"
		if got := decode(t, heard(t, c)); !maps.Equal(got, tc.want) {
			t.Errorf("got  %q\nwant %q", got, tc.want)
		}
	}
	if plain.Len() > 0 {
		t.Errorf("twice: %s", plain.Bytes())
	}

	c.Close()
	bound.Info("alone", "n", 1)
	if got := plain.String(); !strings.Contains(got, "msg=alone part=home n=1\n") {
		t.Errorf("what the journal does not take is lost: %q", got)
	}
	if log.Handler().Enabled(t.Context(), slog.LevelDebug-1) {
		t.Error("what is not wished is sent")
	}
}

func TestJournalOrPlain(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(w.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	plain := slog.DiscardHandler
	for stream, want := range map[string]bool{
		fmt.Sprintf("%d:%d", st.Dev, st.Ino):   true,
		fmt.Sprintf("%d:%d", st.Dev, st.Ino+1): false, // it was led elsewhere since
		"":                                     false,
		"journal":                              false,
	} {
		_, got := Journal(plain, w, environment{"JOURNAL_STREAM": stream}.get).(*journal)
		if got != want {
			t.Errorf("%q: %v", stream, got)
		}
	}
}

func FuzzField(f *testing.F) {
	f.Add("key", "value")
	f.Add("", "a\nb")
	f.Add("Zähler=\n", "\x00")
	f.Fuzz(func(t *testing.T, key, value string) {
		at := filepath.Join(t.TempDir(), "j")
		c := ear(t, at)
		slog.New(&journal{plain: slog.NewTextHandler(io.Discard, nil), at: at}).LogAttrs(t.Context(), slog.LevelInfo, "m", slog.String(key, value))
		for name := range decode(t, heard(t, c)) {
			if len(name) > mostName || strings.ContainsFunc(name, func(r rune) bool { return r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') }) {
				t.Errorf("the journal drops %q", name)
			}
		}
	})
}
