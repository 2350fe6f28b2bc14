package webui

import (
	"compress/gzip"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"testing"
)

// budget is for the whole page, gzipped: a phone far away loads it over a home's upload.
const budget = 60 << 10

// TestFiles: the page, or the one that stands in for it, is gzipped, within its budget, and asks nobody else for anything.
func TestFiles(t *testing.T) {
	total := 0
	walk(t, Files(), func(name string, packed []byte) {
		if !strings.HasSuffix(name, ".gz") {
			if path.Base(name) != ".gitignore" {
				t.Errorf("%s is not gzipped", name)
			}
			return
		}
		total += len(packed)
		text := unpack(t, name, packed)
		for _, mark := range []string{"@import", "//fonts.", "googleapis", "<style", " style=\"", "javascript:"} {
			if strings.Contains(text, mark) {
				t.Errorf("%s has %s", name, mark)
			}
		}
	})
	if total == 0 || total > budget {
		t.Errorf("the page has %d bytes, want at most %d", total, budget)
	}
	t.Logf("%d bytes gzipped, of at most %d", total, budget)
}

// TestPlaceholder: what is committed gzipped is the plain file beside it.
func TestPlaceholder(t *testing.T) {
	packed, err := placeholder.ReadFile("placeholder/index.html.gz")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("placeholder/index.html")
	if err != nil {
		t.Fatal(err)
	}
	if unpack(t, "placeholder", packed) != string(want) {
		t.Error("run gzip -n9 <webui/placeholder/index.html >webui/placeholder/index.html.gz")
	}
}

func walk(t *testing.T, files fs.FS, each func(name string, content []byte)) {
	t.Helper()
	err := fs.WalkDir(files, ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		content, err := fs.ReadFile(files, name)
		each(name, content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func unpack(t *testing.T, name string, packed []byte) string {
	t.Helper()
	r, err := gzip.NewReader(strings.NewReader(string(packed)))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return string(text)
}
