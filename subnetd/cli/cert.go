package cli

import (
	"bytes"
	"context"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/status"
)

func certVerbs() []command {
	return []command{
		{"root", "[FILE]", "the certificate by which devices trust those of this home, as PEM, to a file or standard output", "cert root /tmp/home.crt", certRootCommand, nil},
	}
}

func certCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	dir := fs.String("out", ".", "the `directory` for NAME.key and NAME.crt")
	asJSON := fs.Bool("json", false, "for programs; with a name, key and certificate are printed, and no file is written")
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		if len(args) == 0 {
			x, err := c.Certificates(ctx)
			if err != nil {
				return err
			}
			if *asJSON {
				return writeJSON(p.out, x)
			}
			return showCertificates(p.out, x, p.now())
		}
		x, err := c.Issue(ctx, status.CertificateRequest{Name: args[0]})
		if err != nil {
			return err
		}
		if *asJSON {
			return writeJSON(p.out, x)
		}
		return p.keepPair(*dir, x)
	})
}

// keepPair writes a certificate and its key into a directory, in place of those before.
func (p *program) keepPair(dir string, x status.CertificatePair) error {
	at := filepath.Join(dir, filepath.Base(x.Name))
	if err := writeFile(at+".key", []byte(x.Key), 0o600); err != nil {
		return err
	}
	err := writeFile(at+".crt", []byte(x.Chain), 0o644)
	return p.done(err, "%s.key and %s.crt are good until %s", at, at, day(x.Until))
}

// writeFile has a file hold the data, with that mode: all of it, or what it held before.
func writeFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // for its owner only
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	for _, do := range []func() error{func() error { return f.Chmod(mode) }, f.Sync} {
		if err == nil {
			err = do()
		}
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func certRootCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		data, err := c.Root(ctx, api.RootPEM)
		if err != nil {
			return err
		}
		if len(args) == 0 || args[0] == "-" {
			_, err := p.out.Write(data)
			return err
		}
		return p.done(writeFile(args[0], data, 0o644), "%s is written", args[0])
	})
}

func showCertificates(w io.Writer, x status.Certificates, now time.Time) error {
	b := &bytes.Buffer{}
	table(b, [][]string{{"root", x.Name}, {"good for", "names of " + x.Domain}, {"until", day(x.Until)}, {"sha-256", x.Fingerprint},
		{"get it", x.URL}, {"acme", x.Directory}})
	b.WriteByte('\n')
	if len(x.Issued) == 0 {
		b.WriteString("No certificate was given away yet: `subnetd cert NAME` makes one, and ACME clients get theirs by themselves.\n")
	} else {
		rows := [][]string{{"NAME", "FOR", "SINCE", "UNTIL"}}
		for _, c := range x.Issued {
			who, until := "the owner", day(c.Until)
			if c.ACME {
				who = "an ACME client"
			}
			if !c.Revoked.IsZero() {
				until += because("revoked " + ago(now, c.Revoked) + " ago")
			}
			rows = append(rows, []string{strings.Join(c.Names, ", "), who, ago(now, c.Since) + " ago", until})
		}
		table(b, rows)
	}
	_, err := w.Write(b.Bytes())
	return err
}
