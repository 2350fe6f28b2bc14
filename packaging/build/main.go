// Build makes the packages of the daemon: apk for OpenWrt from 25.12 on, ipk for those
// before it, deb for Debian and its kin. The same binaries and the same commit give the same bytes.
//
// How it goes: what a system gets (contents.go) is a list of files; each kind of
// package has a table of architectures (targets.go) and a writer of its format
// (apk.go on adb.go, ipk.go, deb.go), without any time, owner or order of the machine
// that builds; the latter two share archives (archive.go).
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "packaging/build:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	fs := flag.NewFlagSet("build", flag.ContinueOnError)
	root := fs.String("root", ".", "the checkout")
	bins := fs.String("bin", "bin/cross", "where the daemons subnetd-TARGET are")
	to := fs.String("out", "bin/packages", "where the packages go")
	describe := fs.String("version", "", "what `git describe --tags --always` says of the commit")
	epoch := fs.Int64("epoch", 0, "the time of the commit, in seconds since 1970")
	if err := fs.Parse(args); err != nil {
		return err
	}
	at := time.Unix(*epoch, 0).UTC()
	revision, err := revisionOf(*describe, at)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(*to, 0o755); err != nil {
		return err
	}
	for _, t := range targets() {
		daemon, err := os.ReadFile(filepath.Join(*bins, "subnetd-"+t.binary))
		if err != nil {
			return fmt.Errorf("%w: `make cross` builds it", err)
		}
		for _, p := range t.packages(revision) {
			name, size, err := p.write(*root, *to, daemon)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			fmt.Fprintf(out, "%-64s %8d bytes\n", name, size)
		}
	}
	return nil
}

// write makes the package's file in the folder.
func (p pack) write(root, to string, daemon []byte) (name string, size int, err error) {
	name = p.fileName()
	if err := p.fill(os.DirFS(root), daemon); err != nil {
		return name, 0, err
	}
	b, err := p.format.encode(p)
	if err != nil {
		return name, 0, err
	}
	return name, len(b), os.WriteFile(filepath.Join(to, name), b, 0o644)
}
