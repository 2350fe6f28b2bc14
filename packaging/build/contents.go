package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"path"
	"sort"
	"strings"
	"time"
)

const (
	daemonPath = "/usr/sbin/subnetd"
	wishesPath = "/etc/subnetd/subnetd.toml" // but for OpenWrt, which has its own
)

// file is one of those that a package puts into the system, as root's.
type file struct {
	path string // absolute
	mode int64  // permissions
	body []byte
	// config: once it is there it is its owner's, and an upgrade keeps it.
	config bool
}

// pack is one package.
type pack struct {
	format  format
	version string
	arch    string // as the package's system calls it
	at      time.Time

	files   []file // by path
	scripts []file // of the package manager, by path, which is only a name
}

// format is a kind of package.
type format interface {
	name(p pack) string // of its file
	versionOf(r revision) string
	sources() sources
	encode(p pack) ([]byte, error)
}

// sources is where in the checkout a kind of package has its files.
type sources struct {
	files   map[string]string // -> where it goes
	trees   map[string]string // folder -> where all of it goes
	scripts string            // folder
}

const (
	packageName = "subnetd"
	maintainer  = "The maintainers of subnetd <maintainers@subnetd.invalid>"
	title       = "Home router as a door to a private mesh"
	text        = `A Tailscale-compatible mesh in the router, or a member of one: coordinator, relay
and STUN, the home's LAN opened to it, exits for each device, and a page for all
of it, on the kernel's WireGuard where there is one.`
)

func (p pack) fileName() string { return p.format.name(p) }

// fill reads what the package is made of.
func (p *pack) fill(checkout fs.FS, daemon []byte) error {
	from := p.format.sources()
	p.files = []file{{path: daemonPath, mode: 0o755, body: daemon}}
	for name, to := range from.files {
		body, err := fs.ReadFile(checkout, name)
		if err != nil {
			return err
		}
		p.files = append(p.files, placed(to, body))
	}
	for tree, to := range from.trees {
		found, err := collect(checkout, tree, to)
		if err != nil {
			return err
		}
		p.files = append(p.files, found...)
	}
	sortFiles(p.files)
	scripts, err := collect(checkout, from.scripts, "")
	p.scripts = scripts
	return err
}

// collect gives the files below a folder, as they are below another.
func collect(checkout fs.FS, folder, to string) ([]file, error) {
	var all []file
	err := fs.WalkDir(checkout, folder, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if !e.Type().IsRegular() {
			return fmt.Errorf("%s is no regular file", name)
		}
		body, err := fs.ReadFile(checkout, name)
		all = append(all, placed(to+strings.TrimPrefix(name, folder), body))
		return err
	})
	sortFiles(all)
	return all, err
}

func sortFiles(all []file) {
	sort.Slice(all, func(i, j int) bool { return all[i].path < all[j].path })
}

// placed is a file with the permissions that fit what it is: a checkout may have lost
// them.
func placed(at string, body []byte) file {
	f := file{path: at, mode: 0o644, body: body}
	switch {
	case bytes.HasPrefix(body, []byte("#!")):
		f.mode = 0o755
	case at == wishesPath, path.Dir(at) == "/etc/config":
		f.mode, f.config = 0o600, true // who is at home is nobody else's business
	}
	return f
}

// conffiles lists the configuration, for the package manager.
func (p pack) conffiles() string {
	var b strings.Builder
	for _, f := range p.files {
		if f.config {
			b.WriteString(f.path + "\n")
		}
	}
	return b.String()
}

// size is what the files take in the system, in bytes.
func (p pack) size() int {
	n := 0
	for _, f := range p.files {
		n += len(f.body)
	}
	return n
}

// control is the description of a package in the form of Debian, which opkg reads, too.
func (p pack) control(fields ...string) file {
	all := append([]string{
		"Package: " + packageName,
		"Version: " + p.version,
		"Architecture: " + p.arch,
		"Maintainer: " + maintainer,
		"Section: net",
	}, fields...)
	all = append(all, "Description: "+title, " "+strings.ReplaceAll(text, "\n", "\n "))
	return file{path: "/control", mode: 0o644, body: []byte(strings.Join(all, "\n") + "\n")}
}

// about are the files that tell a package manager of the package.
func (p pack) about(control file, more ...file) []file {
	all := append([]file{control, {path: "/conffiles", mode: 0o644, body: []byte(p.conffiles())}}, more...)
	all = append(all, p.scripts...)
	sortFiles(all)
	return all
}
