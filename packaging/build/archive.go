package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"path"
	"time"
)

// tarball is a compressed tar archive of files in the order given, each after the
// folders in which it is. All are root's, and of the same time.
func tarball(files []file, at time.Time) ([]byte, error) {
	return archive(files, at, map[string]bool{})
}

// archive leaves the folders out that are made already.
func archive(files []file, at time.Time, made map[string]bool) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression) // its header has no name and no time
	if err != nil {
		return nil, err
	}
	t := tar.NewWriter(z)
	w := tarWriter{tar: t, at: at, made: made}
	for _, f := range files {
		if err := w.add(f); err != nil {
			return nil, fmt.Errorf("%s: %w", f.path, err)
		}
	}
	if err := t.Close(); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

type tarWriter struct {
	tar  *tar.Writer
	at   time.Time
	made map[string]bool // folders
}

func (w *tarWriter) add(f file) error {
	if err := w.folder(path.Dir(f.path)); err != nil {
		return err
	}
	h := w.header(f.path, tar.TypeReg, f.mode)
	h.Size = int64(len(f.body))
	if err := w.tar.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.tar.Write(f.body)
	return err
}

func (w *tarWriter) folder(dir string) error {
	if w.made[dir] {
		return nil
	}
	w.made[dir] = true
	if dir == "/" {
		return w.tar.WriteHeader(w.header("/", tar.TypeDir, 0o755))
	}
	if err := w.folder(path.Dir(dir)); err != nil {
		return err
	}
	return w.tar.WriteHeader(w.header(dir+"/", tar.TypeDir, 0o755))
}

// header is in GNU's format, which both dpkg and OpenWrt's own tools use.
func (w *tarWriter) header(name string, kind byte, mode int64) *tar.Header {
	return &tar.Header{Typeflag: kind, Name: "." + name, Mode: mode, ModTime: w.at, Format: tar.FormatGNU}
}

// arFile is one member of an ar archive.
type arFile struct {
	name string // of 16 bytes at most
	body []byte
}

// arArchive is an archive of ar(5), as deb(5) wants it: names without a slash at their
// end, members at even offsets.
func arArchive(files []arFile, at time.Time) []byte {
	var b bytes.Buffer
	b.WriteString("!<arch>\n")
	for _, f := range files {
		fmt.Fprintf(&b, "%-16s%-12d%-6d%-6d%-8o%-10d`\n", f.name, at.Unix(), 0, 0, 0o100644, len(f.body))
		b.Write(f.body)
		if len(f.body)%2 == 1 {
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}
