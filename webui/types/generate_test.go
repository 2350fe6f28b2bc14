package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestNoDrift: the page speaks of what the daemon answers now.
func TestNoDrift(t *testing.T) {
	want, err := generate(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join("..", "src", "status.ts"))
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("webui/src/status.ts is not what package status says: run `make webui`")
	}
}

const sample = `package status

// Thing is one.
type Thing struct {
	Name  string         ` + "`json:\"name\"`" + ` // as it is called
	Since time.Time      ` + "`json:\"since,omitzero\"`" + `
	Rows  []Row          ` + "`json:\"rows\"`" + `
	Where *netip.Addr    ` + "`json:\"where\"`" + `
	Count map[string]int ` + "`json:\"count,omitempty\"`" + `
	Not   string         ` + "`json:\"-\"`" + `
}

// State is where it stands.
type State string

const (
	On  State = "on"
	Off State = "off"
)

type hidden struct{ X int }
`

const sampleTypes = preamble + `// Thing is one.
export interface Thing {
  // as it is called
  name: string;
  since?: string;
  rows: Row[] | null;
  where: string | null;
  count?: Record<string, number>;
}
// State is where it stands.
export type State = "on" | "off";
`

func TestGenerate(t *testing.T) {
	root := rootOf(t, sample)
	got, err := generate(root)
	if err != nil {
		t.Fatal(err)
	}
	if got != sampleTypes {
		t.Errorf("got:\n%s\nwant:\n%s", got, sampleTypes)
	}
}

func TestGenerateRefuses(t *testing.T) {
	for why, text := range map[string]string{
		"is not known in TypeScript": "package status\ntype T struct {\n\tF func() `json:\"f\"`\n}\n",
		"big.Int":                    "package status\ntype T struct {\n\tN big.Int `json:\"n\"`\n}\n",
		"no tag":                     "package status\ntype T struct{ Name string }\n",
		"expected":                   "package status\ntype T struct {",
	} {
		if _, err := generate(rootOf(t, text)); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %v, want one about %q", text, err, why)
		}
	}
	if _, err := generate(t.TempDir()); err == nil {
		t.Error("an empty folder has types")
	}
}

// rootOf is a checkout of the packages that are read, with one file in the first.
func rootOf(t *testing.T, text string) string {
	t.Helper()
	root := t.TempDir()
	for i, s := range sources {
		dir := filepath.Join(root, filepath.FromSlash(s.folder))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			text = "package other\n"
		}
		if err := os.WriteFile(filepath.Join(dir, "a.go"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}
