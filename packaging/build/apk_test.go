package main

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// adbReader reads a tree as apk-v3(5) describes it, and knows nothing of the writer.
type adbReader []byte

var errADB = errors.New("no ADB")

func (r adbReader) word(at uint32) (uint32, error) {
	b, err := r.bytes(at, 4)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

func (r adbReader) bytes(at, n uint32) ([]byte, error) {
	if uint64(at)+uint64(n) > uint64(len(r)) {
		return nil, fmt.Errorf("%w: %d bytes at %d of %d", errADB, n, at, len(r))
	}
	return r[at : at+n], nil
}

// field is a field of the object v, 0 if it has none of that number.
func (r adbReader) field(v uint32, i uint32) (uint32, error) {
	if v == 0 {
		return 0, nil
	}
	if v>>28 != 0xd && v>>28 != 0xe || v%4 != 0 {
		return 0, fmt.Errorf("%w: %#x is no object", errADB, v)
	}
	at := v & (1<<28 - 1)
	n, err := r.word(at)
	if err != nil || i >= n {
		return 0, err
	}
	return r.word(at + 4*i)
}

// items are the fields of an array, at most 10,000.
func (r adbReader) items(v uint32) ([]uint32, error) {
	var all []uint32
	for i := uint32(1); i < 10_000; i++ {
		item, err := r.field(v, i)
		if err != nil || item == 0 {
			return all, err
		}
		all = append(all, item)
	}
	return all, nil
}

func (r adbReader) blob(v uint32) ([]byte, error) {
	at := v & (1<<28 - 1)
	width := map[uint32]uint32{0x8: 1, 0x9: 2, 0xa: 4}[v>>28]
	switch {
	case v == 0:
		return nil, nil
	case width == 0 || at%width != 0:
		return nil, fmt.Errorf("%w: %#x is no blob", errADB, v)
	}
	b, err := r.bytes(at, width)
	if err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(append(slices.Clone(b), 0, 0, 0, 0))
	return r.bytes(at+width, n)
}

func (r adbReader) number(v uint32) (uint64, error) {
	at := v & (1<<28 - 1)
	width := map[uint32]uint32{0x2: 4, 0x3: 8}[v>>28]
	switch {
	case v>>28 == 1:
		return uint64(at), nil
	case width == 0 || at%4 != 0:
		return 0, fmt.Errorf("%w: %#x is no number", errADB, v)
	}
	b, err := r.bytes(at, width)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(append(slices.Clone(b), 0, 0, 0, 0)), nil
}

// read is what a package was found to be.
type read struct {
	info    map[string]string
	depends []string
	files   []readFile // and folders
	scripts map[string]string
	id      []byte
	tree    []byte
}

type readFile struct {
	path, user, group string
	mode              uint64
	dir               bool
	at                uint64
	body              string
}

// inflated is a package's blocks.
func inflated(b []byte) ([]byte, error) {
	if len(b) < 4 || string(b[:4]) != "ADBd" {
		return nil, fmt.Errorf("%w: it begins with %q", errADB, b[:min(4, len(b))])
	}
	in, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(b[4:])), 1<<28))
	if err == nil && (len(in) < 8 || string(in[:8]) != "ADB.pckg") {
		err = fmt.Errorf("%w: no schema of a package", errADB)
	}
	if err != nil {
		return nil, err
	}
	return in[8:], nil
}

// readAPK takes a package apart, and compares each file with its hash.
func readAPK(b []byte) (read, error) {
	in, err := inflated(b)
	if err != nil {
		return read{}, err
	}
	var trees, data [][]byte
	for len(in) > 0 {
		if len(in) < 8 {
			return read{}, fmt.Errorf("%w: half a block", errADB)
		}
		w := binary.LittleEndian.Uint32(in)
		size := w & (1<<30 - 1)
		padded := (uint64(size) + 7) &^ 7
		if size < 4 || padded > uint64(len(in)) {
			return read{}, fmt.Errorf("%w: a block of %d bytes", errADB, size)
		}
		switch w >> 30 {
		case 0:
			trees = append(trees, in[4:size])
		case 2:
			data = append(data, in[4:size])
		default:
			return read{}, fmt.Errorf("%w: a block of kind %d", errADB, w>>30)
		}
		in = in[padded:]
	}
	if len(trees) != 1 || len(trees[0]) < 16 || trees[0][0] != 0 {
		return read{}, fmt.Errorf("%w: %d trees", errADB, len(trees))
	}
	return readTree(trees[0], data)
}

func readTree(tree []byte, data [][]byte) (read, error) {
	p := adbParser{r: adbReader(tree), data: data}
	out := read{info: map[string]string{}, scripts: map[string]string{}, tree: tree}
	root := p.word(4)
	info := p.field(root, 1)
	for i, name := range map[uint32]string{1: "name", 2: "version", 4: "description", 5: "arch", 7: "origin", 8: "maintainer"} {
		out.info[name] = string(p.blob(p.field(info, i)))
	}
	out.id = p.blob(p.field(info, 3))
	out.info["size"] = fmt.Sprint(p.number(p.field(info, 12)))
	for _, d := range p.items(p.field(info, 15)) {
		out.depends = append(out.depends, string(p.blob(p.field(d, 1))))
	}
	for i, dir := range p.items(p.field(root, 2)) {
		out.files = append(out.files, p.folder(uint32(i+1), dir)...)
	}
	for i, name := range scriptNames() {
		if s := p.blob(p.field(p.field(root, 3), uint32(i+1))); s != nil {
			out.scripts[name] = string(s)
		}
	}
	if p.err == nil && len(p.data) != 0 {
		p.err = fmt.Errorf("%w: %d blocks too many", errADB, len(p.data))
	}
	return out, p.err
}

// adbParser reads on until the first error.
type adbParser struct {
	r    adbReader
	data [][]byte
	err  error
}

func attempt[T any](p *adbParser, f func() (T, error)) (v T) {
	if p.err == nil {
		v, p.err = f()
	}
	return v
}

func (p *adbParser) word(at uint32) uint32 {
	return attempt(p, func() (uint32, error) { return p.r.word(at) })
}
func (p *adbParser) field(v, i uint32) uint32 {
	return attempt(p, func() (uint32, error) { return p.r.field(v, i) })
}
func (p *adbParser) items(v uint32) []uint32 {
	return attempt(p, func() ([]uint32, error) { return p.r.items(v) })
}
func (p *adbParser) blob(v uint32) []byte {
	return attempt(p, func() ([]byte, error) { return p.r.blob(v) })
}
func (p *adbParser) number(v uint32) uint64 {
	return attempt(p, func() (uint64, error) { return p.r.number(v) })
}

func (p *adbParser) folder(number, v uint32) []readFile {
	dir := readFile{path: "/" + string(p.blob(p.field(v, 1))), dir: true}
	p.rights(&dir, p.field(v, 2))
	all := []readFile{dir}
	for i, file := range p.items(p.field(v, 3)) {
		f := readFile{path: path.Join(dir.path, string(p.blob(p.field(file, 1)))), at: p.number(p.field(file, 4))}
		p.rights(&f, p.field(file, 2))
		f.body = p.body(number, uint32(i+1), p.number(p.field(file, 3)), p.blob(p.field(file, 5)))
		all = append(all, f)
	}
	return all
}

func (p *adbParser) rights(f *readFile, v uint32) {
	f.mode, f.user, f.group = p.number(p.field(v, 1)), string(p.blob(p.field(v, 2))), string(p.blob(p.field(v, 3)))
}

func (p *adbParser) body(dir, file uint32, size uint64, hash []byte) string {
	if size == 0 || p.err != nil {
		return ""
	}
	want := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, dir), file)
	if len(p.data) == 0 || !bytes.HasPrefix(p.data[0], want) || uint64(len(p.data[0])) != 8+size {
		p.err = fmt.Errorf("%w: no data of file %d.%d", errADB, dir, file)
		return ""
	}
	body := p.data[0][8:]
	p.data = p.data[1:]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], hash) {
		p.err = fmt.Errorf("%w: the hash of file %d.%d", errADB, dir, file)
	}
	return string(body)
}

func readAPKFile(t *testing.T, name string) read {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	got, err := readAPK(b)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

const apkVersion = "1.2.3_git4~abcdef0-r0"

const apkLists = `drwxr-xr-x root:root /lib/apk
drwxr-xr-x root:root /lib/apk/packages
-rw-r--r-- root:root /lib/apk/packages/subnetd.conffiles
-rw-r--r-- root:root /lib/apk/packages/subnetd.conffiles_static
-rw-r--r-- root:root /lib/apk/packages/subnetd.list
`

func TestAPK(t *testing.T) {
	got := readAPKFile(t, filepath.Join(built(t), "subnetd_"+apkVersion+"_mipsel_24kc.apk"))
	want := map[string]string{"name": "subnetd", "version": apkVersion, "arch": "mipsel_24kc", "origin": "subnetd",
		"description": title, "maintainer": maintainer, "size": got.info["size"]}
	if diff := cmp.Diff(want, got.info); diff != "" {
		t.Error(diff)
	}
	if !slices.Equal(got.depends, openwrtDepends()) {
		t.Errorf("depends: %q", got.depends)
	}
	// All that the ipk has, and its own lists.
	var files []string
	size := 0
	for _, f := range got.files {
		if f.at != 0 && f.at != epoch {
			t.Errorf("%s is of %d", f.path, f.at)
		}
		size += len(f.body)
		files = append(files, fmt.Sprintf("%s %s:%s %s", modeText(f), f.user, f.group, f.path))
	}
	slices.SortFunc(files, func(a, b string) int { return strings.Compare(strings.Fields(a)[2], strings.Fields(b)[2]) })
	wantFiles := strings.Split(strings.TrimSpace(apkLists+asListed(ipkFiles)), "\n")
	slices.SortFunc(wantFiles, func(a, b string) int { return strings.Compare(strings.Fields(a)[2], strings.Fields(b)[2]) })
	if diff := cmp.Diff(wantFiles, files); diff != "" {
		t.Error(diff)
	}
	if got.info["size"] != fmt.Sprint(size) {
		t.Errorf("a size of %s, not %d", got.info["size"], size)
	}
	if names := sorted(got.scripts); !slices.Equal(names, []string{"post-install", "post-upgrade", "pre-deinstall"}) {
		t.Errorf("scripts: %q", names)
	}
	// The identity is the hash of the tree without it.
	at := bytes.Index(got.tree, got.id)
	sum := sha256.Sum256(slices.Replace(slices.Clone(got.tree), at, at+idLength, make([]byte, idLength)...))
	if !bytes.Equal(sum[:idLength], got.id) {
		t.Errorf("identity %x, not %x", got.id, sum[:idLength])
	}
}

// asListed is tar's listing of an ipk as this test writes it.
func asListed(listing string) string {
	var b strings.Builder
	for line := range strings.Lines(listing) {
		f := strings.Fields(line)
		fmt.Fprintln(&b, f[0], "root:root", path.Clean(strings.TrimPrefix(f[3], ".")))
	}
	return b.String()
}

func modeText(f readFile) string {
	mode := os.FileMode(f.mode)
	if f.dir {
		mode |= os.ModeDir
	}
	return mode.String()
}

// sampled is a package with values of all kinds, of which testdata/apk has what apk
// 3.0.5 itself made of it.
func sampled() ([]byte, error) {
	p := pack{version: "1.0_git7~abc-r0", arch: "mips_24kc", at: time.Unix(epoch, 0).UTC(),
		files: []file{
			{path: "/etc/empty", mode: 0o600},
			{path: "/etc/init.d/x", mode: 0o755, body: []byte("#!/bin/sh\n")},
			{path: "/etc-x", mode: 0o644, body: []byte("before etc/\n")},
			{path: "/usr/big", mode: 0o644, body: bytes.Repeat([]byte("0123456789\n"), 7000)},
			{path: "/usr/x", mode: 0o644, body: []byte("#!/bin/sh\n")},
		},
		scripts: []file{
			{path: "/post-install", body: []byte("#!/bin/sh\n" + strings.Repeat("# long\n", 40))},
			{path: "/pre-deinstall", body: []byte("#!/bin/sh\n")},
		},
	}
	return p.apk(apkInfo{name: "x", description: "A thing", origin: "x", maintainer: "Nobody <nobody@x.invalid>", depends: []string{"a", "b-c"}})
}

// TestAPKLikeApk: byte by byte what apk itself writes, before compression.
func TestAPKLikeApk(t *testing.T) {
	ours, err := sampled()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.ReadFile("testdata/apk/mkpkg.apk")
	if err != nil {
		t.Fatal(err)
	}
	a, errA := inflated(ours)
	b, errB := inflated(theirs)
	if errA != nil || errB != nil {
		t.Fatal(errA, errB)
	}
	if !bytes.Equal(a, b) {
		t.Errorf("%d bytes, not %d:\n%s", len(a), len(b), cmp.Diff(fmt.Sprintf("%x", b), fmt.Sprintf("%x", a)))
	}
}

func FuzzReadAPK(f *testing.F) {
	ours, err := sampled()
	if err != nil {
		f.Fatal(err)
	}
	blocks, err := inflated(ours)
	if err != nil {
		f.Fatal(err)
	}
	for _, cut := range []int{0, 8, 64, 512, len(blocks)} {
		f.Add(blocks[:cut])
	}
	f.Fuzz(func(t *testing.T, blocks []byte) {
		b, err := adbFile(schemaPackage, [][]byte{blocks})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := readAPK(b); err != nil && !errors.Is(err, errADB) {
			t.Fatal(err)
		}
	})
}

// FuzzAPK: what is written is read again.
func FuzzAPK(f *testing.F) {
	f.Add("a/b", "x", "c", "y", "#!/bin/sh\n", uint32(epoch), uint16(0o755))
	f.Add("etc/config/subnetd", strings.Repeat("x", 70_000), "etc-x", "", "", uint32(1<<31), uint16(0o600))
	f.Fuzz(func(t *testing.T, nameA, bodyA, nameB, bodyB, script string, at uint32, mode uint16) {
		nameA, nameB = path.Clean("/"+nameA), path.Clean("/"+nameB)
		if nameA == "/" || nameB == "/" || strings.HasPrefix(nameA+"/", nameB+"/") || strings.HasPrefix(nameB+"/", nameA+"/") {
			return
		}
		p := pack{version: "1", arch: "x", at: time.Unix(int64(at), 0),
			files:   []file{{path: nameA, body: []byte(bodyA), mode: int64(mode & 0o7777)}, {path: nameB, body: []byte(bodyB), mode: 0o644}},
			scripts: []file{{path: "/post-install", body: []byte(script)}}}
		b, err := p.apk(apkInfo{name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		got, err := readAPK(b)
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]readFile{}
		for _, f := range got.files {
			found[f.path] = f
		}
		a, other := found[nameA], found[nameB]
		if a.body != bodyA || a.mode != uint64(mode&0o7777) || a.at != uint64(at) || a.dir || other.body != bodyB || got.scripts["post-install"] != script {
			t.Errorf("%+v", got)
		}
		if up := found[path.Dir(nameA)]; !up.dir || up.mode != 0o755 {
			t.Errorf("the folder of %q: %+v", nameA, up)
		}
	})
}

// realAPK gives how apk v3 is called, if this machine has one. Debian does not.
func realAPK(t *testing.T) string {
	t.Helper()
	name, err := exec.LookPath("apk")
	if err != nil {
		t.Skip("there is no apk")
	}
	if v := tool(t, name, "--version"); !strings.HasPrefix(v, "apk-tools 3.") {
		t.Skip(v)
	}
	return name
}

// TestRealAPK: apk itself finds nothing wrong, and orders the versions as time goes.
func TestRealAPK(t *testing.T) {
	apk := realAPK(t)
	out := built(t)
	for _, name := range names(t, out) {
		if strings.HasSuffix(name, ".apk") {
			tool(t, apk, "verify", "--allow-untrusted", filepath.Join(out, name))
		}
	}
	at := time.Unix(epoch, 0).UTC()
	for i, describe := range ascending[1:] {
		older, errA := revisionOf(ascending[i], at)
		newer, errB := revisionOf(describe, at)
		if got := tool(t, apk, "version", "-t", older.alpine(), newer.alpine()); got != "<\n" || errA != nil || errB != nil {
			t.Errorf("%s %s%s (%v, %v)", older.alpine(), newer.alpine(), got, errA, errB)
		}
	}
}
