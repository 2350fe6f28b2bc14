// Package webui is the page: its sources, and what is built of them for the daemon to carry.
package webui

import (
	"embed"
	"io/fs"
)

// The folder dist is empty but for a note to git until `make webui` has filled it.
//
//go:embed all:dist
var dist embed.FS

//go:embed placeholder/index.html.gz
var placeholder embed.FS

// Files is the page, each file gzipped as NAME.gz. If it has not been built, it is
// one file that says how to.
func Files() fs.FS {
	files, folder := dist, "dist"
	if _, err := fs.Stat(dist, "dist/index.html.gz"); err != nil {
		files, folder = placeholder, "placeholder"
	}
	sub, err := fs.Sub(files, folder)
	if err != nil {
		panic(err) // a name that is no path
	}
	return sub
}
