package drop

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestSafe(t *testing.T) {
	long := strings.Repeat("é", 127)
	for name, want := range map[string]string{
		"photo.jpg":               "photo.jpg",
		"Zoë's 日本.tar.gz":         "Zoë's 日本.tar.gz",
		"👩\u200d🚀.png":            "👩\u200d🚀.png",
		"a b  c":                  "a b  c",
		" a ":                     "a",
		"a. . ":                   "a",
		".bashrc":                 "_bashrc",
		"...x":                    "_x",
		".subnetd-00.part":        "_subnetd-00.part",
		`a:b*c?d"e<f>g|h`:         "a_b_c_d_e_f_g_h",
		"con":                     "con_",
		"NUL.tar.gz":              "NUL_.tar.gz",
		"Com1.txt":                "Com1_.txt",
		"lpt0":                    "lpt0_",
		"com":                     "com",
		"com10":                   "com10",
		"aux .x":                  "aux _.x",
		"gpj.\u202eexe":           "gpj._exe",
		"a\u0085b\u2028c\ufeff":   "a_b_c_",
		long + "a":                long + "a",
		"con." + long[:250] + "c": "con_." + long[:250],
		"":                        "",
		".":                       "",
		"..":                      "",
		" .. ":                    "",
		"_":                       "",
		"/":                       "",
		"a/b":                     "",
		"../a":                    "",
		`..\a`:                    "",
		"a\x00":                   "",
		"a\nb":                    "",
		"a\x7f":                   "",
		"a\xff":                   "",
		"\xc0\xae\xc0\xae":        "",
		long + "aa":               "",
	} {
		got, err := safe(name)
		if got != want || (err == nil) != (want != "") || err != nil && !errors.Is(err, ErrName) {
			t.Errorf("%q: %q, %v; want %q", name, got, err, want)
		}
	}
}

func TestNumbered(t *testing.T) {
	for _, c := range []struct {
		name string
		n    int
		want string
	}{
		{"photo.jpg", 0, "photo.jpg"},
		{"photo.jpg", 1, "photo (1).jpg"},
		{"photo", 12, "photo (12)"},
		{"a.tar.gz", 1, "a.tar (1).gz"},
		{"a." + strings.Repeat("x", 30), 1, "a." + strings.Repeat("x", 30) + " (1)"},
		{strings.Repeat("é", 127) + "a", 1, strings.Repeat("é", 125) + " (1)"},
		{strings.Repeat("é", 125) + "a.jpg", 9999, strings.Repeat("é", 122) + " (9999).jpg"},
	} {
		if got := numbered(c.name, c.n); got != c.want || len(got) > mostName {
			t.Errorf("%q, %d: %q, want %q", c.name, c.n, got, c.want)
		}
	}
}

// FuzzSafe: what is let through is one visible name in the folder, of which nothing more
// is changed, and the file system agrees.
func FuzzSafe(f *testing.F) {
	for _, s := range []string{"photo.jpg", "../x", "a\x00", "CON", ". .", strings.Repeat("ü", 128), "\xff", "a:b", "\u202e", "NUL. .x"} {
		f.Add(s)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, name string) {
		got, err := safe(name)
		if err != nil {
			return
		}
		for n := range 3 {
			got := numbered(got, n)
			if !filepath.IsLocal(got) || filepath.Base(got) != got || strings.HasPrefix(got, ".") || !utf8.ValidString(got) || len(got) > mostName {
				t.Fatalf("%q became %q", name, got)
			}
			at := filepath.Join(dir, got)
			if err := os.WriteFile(at, nil, 0o600); err != nil {
				t.Fatalf("%q: %v", name, err)
			}
			if err := os.Remove(at); err != nil {
				t.Fatal(err)
			}
		}
		if again, err := safe(got); err != nil || again != got {
			t.Fatalf("%q became %q, and that %q, %v", name, got, again, err)
		}
	})
}
