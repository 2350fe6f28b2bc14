package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestArchiveEntry(t *testing.T) {
	var b bytes.Buffer
	a := newArchive(&b)
	a.text("a", "hello")
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	want := "070701" + "00000001" + "000081a4" + "00000000" + "00000000" + "00000001" + "00000000" + "00000005" +
		"00000000" + "00000000" + "00000000" + "00000000" + "00000002" + "00000000" + "a\x00" + "hello\x00\x00\x00"
	if !strings.HasPrefix(b.String(), want) {
		t.Errorf("got  %q\nwant %q", b.String(), want)
	}
	if b.Len()%4 != 0 {
		t.Errorf("%d bytes: the next archive begins at a multiple of four", b.Len())
	}
}

// TestArchiveUnpacks: cpio reads what was written, files of every length modulo four among it.
func TestArchiveUnpacks(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		missing(t, "cpio is not installed: run testbed/provision.sh")
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, bytes.Repeat([]byte("x"), 70001), 0o755); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	a := newArchive(&b)
	want := map[string]string{"root/bin/program": strings.Repeat("x", 70001)}
	a.file("root/bin/program", program)
	for n := range 5 {
		name := "root/etc/" + strings.Repeat("n", n+1)
		want[name] = strings.Repeat("y", n)
		a.text(name, want[name])
	}
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	to := t.TempDir()
	cmd := exec.Command("cpio", "-i", "--quiet", "--no-absolute-filenames")
	cmd.Dir, cmd.Stdin = to, &b
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	for name, content := range want {
		got, err := os.ReadFile(filepath.Join(to, name))
		if err != nil || string(got) != content {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if info, err := os.Stat(filepath.Join(to, "root/bin/program")); err != nil || info.Mode() != 0o755 {
		t.Errorf("the program: %v, %v", info, err)
	}
}

func TestArchiveRefuses(t *testing.T) {
	for _, name := range []string{"", "/a", "../a", "a/", "a//b", ".."} {
		a := newArchive(io.Discard)
		a.text(name, "")
		if a.close() == nil {
			t.Errorf("an archive with a file named %q was written", name)
		}
	}
	a := newArchive(io.Discard)
	a.add("short", 0o644, 5, strings.NewReader("four"))
	if err := a.close(); !errors.Is(err, io.EOF) {
		t.Errorf("a file that shrank: %v", err)
	}
	a = newArchive(io.Discard)
	a.file("none", filepath.Join(t.TempDir(), "none"))
	if err := a.close(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such file: %v", err)
	}
	a = newArchive(&full{})
	a.text("a", "")
	if err := a.close(); err == nil {
		t.Error("a disk that is full is no error")
	}
}

type full struct{}

func (*full) Write([]byte) (int, error) { return 0, fmt.Errorf("full") }
