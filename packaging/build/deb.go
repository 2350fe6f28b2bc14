package main

import (
	"crypto/md5"
	"fmt"
	"strings"
)

// deb is the package of Debian, deb(5).
type deb struct{}

func (deb) name(p pack) string { return fmt.Sprintf("%s_%s_%s.deb", packageName, p.version, p.arch) }

func (deb) versionOf(r revision) string { return r.debian() }

func (deb) sources() sources {
	return sources{
		files:   map[string]string{"packaging/subnetd.toml": wishesPath},
		trees:   map[string]string{"packaging/systemd": "/usr/lib/systemd/system"},
		scripts: "packaging/deb/control",
	}
}

func (deb) encode(p pack) ([]byte, error) {
	data, err := tarball(p.files, p.at)
	if err != nil {
		return nil, err
	}
	about, err := tarball(p.about(
		p.control("Priority: optional", "Depends: init-system-helpers (>= 1.54)", "Recommends: ca-certificates",
			fmt.Sprintf("Installed-Size: %d", (p.size()+1023)/1024)),
		p.sums(),
	), p.at)
	if err != nil {
		return nil, err
	}
	return arArchive([]arFile{
		{"debian-binary", []byte("2.0\n")}, {"control.tar.gz", about}, {"data.tar.gz", data},
	}, p.at), nil
}

// sums has what `dpkg --verify` compares, configuration excepted.
func (p pack) sums() file {
	var b strings.Builder
	for _, f := range p.files {
		if !f.config {
			fmt.Fprintf(&b, "%x  %s\n", md5.Sum(f.body), strings.TrimPrefix(f.path, "/"))
		}
	}
	return file{path: "/md5sums", mode: 0o644, body: []byte(b.String())}
}
