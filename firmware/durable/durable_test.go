package durable

import (
	"os"
	"path/filepath"
	"testing"
)

func TestWrite(t *testing.T) {
	file := filepath.Join(t.TempDir(), "new", "file")
	stat := func() os.FileInfo {
		t.Helper()
		st, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	if err := Write(file, []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	first := stat()
	if err := Write(file, []byte("a"), 0o600); err != nil || !os.SameFile(first, stat()) {
		t.Errorf("the same content is written again: %v", err)
	}
	if err := Write(file, []byte("b"), 0o600); err != nil || os.SameFile(first, stat()) {
		t.Errorf("a file is changed in place: %v", err)
	}
	if text, _ := os.ReadFile(file); string(text) != "b" {
		t.Errorf("%q", text)
	}
	entries, _ := os.ReadDir(filepath.Dir(file))
	if len(entries) != 1 || stat().Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", entries, stat().Mode())
	}
	if err := os.Mkdir(filepath.Join(filepath.Dir(file), "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Write(filepath.Join(filepath.Dir(file), "dir"), []byte("x"), 0o600); err == nil {
		t.Error("a directory is replaced")
	}
	if entries, _ := os.ReadDir(filepath.Dir(file)); len(entries) != 2 {
		t.Errorf("something is left: %v", entries)
	}
}
