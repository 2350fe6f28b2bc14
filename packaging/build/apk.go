package main

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strings"
)

// apk is the package of OpenWrt 25.12 and later, which is that of apk v3. It is not
// signed, as none of OpenWrt's is: their index is.
type apk struct{}

func (apk) name(p pack) string { return fmt.Sprintf("%s_%s_%s.apk", packageName, p.version, p.arch) }

func (apk) versionOf(r revision) string { return r.alpine() }

func (apk) sources() sources {
	return sources{
		trees:   map[string]string{"packaging/openwrt/root": ""},
		scripts: "packaging/openwrt/apk",
	}
}

func (apk) encode(p pack) ([]byte, error) {
	p.files = append(slices.Clone(p.files), p.lists()...)
	return p.apk(apkInfo{
		name: packageName, description: title, origin: packageName, maintainer: maintainer, depends: openwrtDepends(),
	})
}

// apkInfo is what apk is told of a package, beside version and architecture.
type apkInfo struct {
	name, description, origin, maintainer string

	depends []string // names of packages, sorted
}

// lists are what OpenWrt's functions.sh and sysupgrade know of the package: apk tells
// them neither.
func (p pack) lists() []file {
	var all, sums strings.Builder
	for _, f := range p.files {
		all.WriteString(f.path + "\n")
		if f.config {
			fmt.Fprintf(&sums, "%s %x\n", f.path, sha256.Sum256(f.body))
		}
	}
	list := func(kind, text string) file {
		return placed("/lib/apk/packages/"+packageName+"."+kind, []byte(text))
	}
	return []file{list("list", all.String()), list("conffiles", p.conffiles()), list("conffiles_static", sums.String())}
}

// scriptNames are what apk calls its scripts, in the order of their numbers.
func scriptNames() []string {
	return []string{"trigger", "pre-install", "post-install", "pre-deinstall", "post-deinstall", "pre-upgrade", "post-upgrade"}
}

// apk is the package's file. Numbers and order of the fields are those of apk's schema.
func (p pack) apk(about apkInfo) ([]byte, error) {
	a := newADB()
	name, version := a.text(about.name), a.text(p.version)
	description, arch := a.text(about.description), a.text(p.arch)
	origin, who := a.text(about.origin), a.text(about.maintainer)
	var depends []adbValue
	for _, d := range about.depends {
		depends = append(depends, a.object(a.text(d)))
	}
	needs := a.object(depends...)
	folders := tree(p.files)
	paths := p.paths(a, folders)
	size := a.number(uint64(max(p.size(), 1)))
	id := a.raw(append([]byte{idLength}, make([]byte, idLength)...), 1) // known when all else is written
	info := a.object(name, version, adbBlob8|id, description, arch, adbNull, origin, who, adbNull, adbNull, adbNull, size,
		adbNull, adbNull, needs)
	a.root(a.object(info, a.object(paths...), p.hooks(a)))
	sum := sha256.Sum256(a.buf)
	copy(a.buf[id+1:], sum[:idLength])
	return adbFile(schemaPackage, append([][]byte{adbBlock(adbTree, a.buf)}, contents(folders)...))
}

const idLength = 20 // bytes of a package's identity

// folder is a directory and the files in it.
type folder struct {
	path  string // without a slash at its ends; "" is the root
	files []file
}

// tree gives all folders, those above them included, in apk's order.
func tree(files []file) []folder {
	in := map[string][]file{"": nil}
	for _, f := range files {
		dir := path.Dir(f.path)[1:]
		in[dir] = append(in[dir], f)
		for ; dir != "." && dir != ""; dir = path.Dir(dir) {
			if _, known := in[dir]; !known {
				in[dir] = nil
			}
		}
	}
	var all []folder
	for _, dir := range sorted(in) {
		sortFiles(in[dir])
		all = append(all, folder{dir, in[dir]})
	}
	return all
}

func (p pack) paths(a *adb, folders []folder) []adbValue {
	var dirs []adbValue
	for _, d := range folders {
		var files []adbValue
		for _, f := range d.files {
			sum := sha256.Sum256(f.body)
			name, hash := a.text(path.Base(f.path)), a.blob(sum[:])
			changed, size := a.number(uint64(p.at.Unix())), a.number(uint64(len(f.body)))
			files = append(files, a.object(name, rights(a, f.mode), size, changed, hash))
		}
		name := a.text(d.path)
		acl := rights(a, 0o755)
		dirs = append(dirs, a.object(name, acl, a.object(files...)))
	}
	return dirs
}

func rights(a *adb, mode int64) adbValue {
	return a.object(a.number(uint64(mode)), a.text("root"), a.text("root"))
}

func (p pack) hooks(a *adb) adbValue {
	all := make([]adbValue, len(scriptNames()))
	for i, name := range scriptNames() {
		for _, s := range p.scripts {
			if s.path == "/"+name {
				all[i] = a.blob(s.body)
			}
		}
	}
	return a.object(all...)
}

// contents are the blocks of what the files hold; one of an empty file there is not.
func contents(folders []folder) [][]byte {
	var all [][]byte
	for d, dir := range folders {
		for f, file := range dir.files {
			if len(file.body) > 0 {
				where := binary.LittleEndian.AppendUint32(nil, uint32(d+1))
				all = append(all, adbBlock(adbData, binary.LittleEndian.AppendUint32(where, uint32(f+1)), file.body))
			}
		}
	}
	return all
}

// alpine is the version as apk orders it, apk-package(5): a commit after a tag is a
// `_git` of it.
func (r revision) alpine() string {
	v := r.tag
	switch {
	case r.tag == "":
		v = "0_git" + r.at.Format(stamp)
	case r.ahead != "":
		v += "_git" + r.ahead
	}
	if r.dirty {
		v += "_p"
	}
	if r.commit != "" {
		v += "~" + r.commit
	}
	return v + "-r0"
}
