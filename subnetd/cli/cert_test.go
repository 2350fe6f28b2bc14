package cli

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/status"

	"github.com/google/go-cmp/cmp"
)

func TestCert(t *testing.T) {
	x := status.Certificates{Name: "home.lab root", Domain: "lab", Fingerprint: "AB:CD", Until: noon, URL: "http://ca.home.lab/", Directory: "https://ca.home.lab/acme/directory"}
	d := &daemon{certs: api.Certificates{List: func() (status.Certificates, error) { return x, nil }}}
	head := `root      home.lab root
good for  names of lab
until     ` + day(noon) + `
sha-256   AB:CD
get it    http://ca.home.lab/
acme      https://ca.home.lab/acme/directory

`
	for _, tt := range []struct {
		issued []status.Certificate
		want   string
	}{
		{nil, "No certificate was given away yet: `subnetd cert NAME` makes one, and ACME clients get theirs by themselves.\n"},
		{[]status.Certificate{
			{Names: []string{"nas.home.lab", "nas.lab"}, ACME: true, Since: noon.Add(-time.Minute), Until: noon, Revoked: noon.Add(-time.Second)},
			{Names: []string{"tv\x1b.lab"}, Since: noon.Add(-49 * time.Hour), Until: noon},
		}, `NAME                   FOR             SINCE       UNTIL
nas.home.lab, nas.lab  an ACME client  1 min ago   ` + day(noon) + ` (revoked 1 s ago)
tv�.lab                the owner       2 days ago  ` + day(noon) + "\n"},
	} {
		x.Issued = tt.issued
		code, out, stderr := callExit(t, d, "cert")
		if diff := cmp.Diff(head+tt.want, out); code != 0 || stderr != "" || diff != "" {
			t.Errorf("%d, %q, %s", code, stderr, diff)
		}
	}
}

// The key is its owner's only, also where there was a file that others could read.
func TestCertFiles(t *testing.T) {
	pair := status.CertificatePair{Name: "nas.home.lab", Key: "key\n", Chain: "chain\n", Until: noon}
	var asked string
	d := &daemon{certs: api.Certificates{
		Issue: func(_ context.Context, r status.CertificateRequest) (status.CertificatePair, error) {
			asked = r.Name
			return pair, nil
		},
		Root: func(form string) ([]byte, string, error) { return []byte("root in " + form + "\n"), "text/x", nil },
	}}
	dir := t.TempDir()
	at := filepath.Join(dir, "nas.home.lab")
	if err := os.WriteFile(at+".key", []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	code, out, stderr := callExit(t, d, "cert", "nas", "--out", dir)
	if code != 0 || stderr != "" || asked != "nas" || out != at+".key and "+at+".crt are good until "+day(noon)+"\n" {
		t.Errorf("%d, %q, %q, %q", code, out, stderr, asked)
	}
	code, out, _ = callExit(t, d, "cert", "root")
	if code != 0 || out != "root in crt\n" {
		t.Errorf("%d, %q", code, out)
	}
	if code, _, stderr = callExit(t, d, "cert", "root", filepath.Join(dir, "root.crt")); code != 0 {
		t.Errorf("%d, %q", code, stderr)
	}
	for name, want := range map[string]struct {
		text string
		mode os.FileMode
	}{"nas.home.lab.key": {"key\n", 0o600}, "nas.home.lab.crt": {"chain\n", 0o644}, "root.crt": {"root in crt\n", 0o644}} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		info, _ := os.Stat(filepath.Join(dir, name))
		if err != nil || string(got) != want.text || info.Mode().Perm() != want.mode {
			t.Errorf("%s: %q, %v, %v", name, got, info.Mode(), err)
		}
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) != 3 {
		t.Errorf("%v, %v", all, err)
	}
	for _, args := range [][]string{{"cert", "nas", "--out", filepath.Join(dir, "none")}, {"cert", "root", dir}} {
		if code, out, stderr := callExit(t, d, args...); code != 1 || out != "" || stderr == "" {
			t.Errorf("%q: %d, %q, %q", args, code, out, stderr)
		}
	}
	if code, _, _ := callExit(t, d, "cert", "a", "b"); code != 2 {
		t.Errorf("two names: %d", code)
	}
}
