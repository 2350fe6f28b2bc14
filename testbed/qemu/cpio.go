package qemu

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// archive writes an initramfs: a cpio archive of the "newc" format, as the kernel unpacks it. The first error stays.
type archive struct {
	w     *bufio.Writer
	n     int64 // bytes written
	inode int
	made  map[string]bool // folders
	err   error
}

func newArchive(w io.Writer) *archive {
	return &archive{w: bufio.NewWriterSize(w, 256<<10), made: map[string]bool{}}
}

const (
	modeFolder = 0o040000
	modeFile   = 0o100000
)

// maxFile is the largest file of the format.
const maxFile = 1<<32 - 1

// add adds a file of the given size and, before it, the folders it is in. name has no slash at its beginning.
func (a *archive) add(name string, mode os.FileMode, size int64, content io.Reader) {
	if a.err == nil && (name == "" || path.Clean(name) != name || strings.HasPrefix(name, "/") || strings.HasPrefix(name, "..") || size > maxFile) {
		a.err = fmt.Errorf("the name %q of a file of %d bytes fits no initramfs", name, size)
	}
	a.folders(path.Dir(name))
	a.header(name, modeFile|uint32(mode.Perm()), size)
	a.copy(content, size)
	a.pad()
}

// text adds a file with the given content that all may read.
func (a *archive) text(name, content string) {
	a.add(name, 0o644, int64(len(content)), strings.NewReader(content))
}

// file adds a file of this machine.
func (a *archive) file(name, from string) {
	f, err := os.Open(from)
	if err != nil {
		a.fail(err)
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		a.fail(err)
		return
	}
	a.add(name, info.Mode(), info.Size(), f)
}

// close ends the archive and gives the first error.
func (a *archive) close() error {
	a.header("TRAILER!!!", 0, 0)
	if a.err != nil {
		return fmt.Errorf("writing an initramfs: %w", a.err)
	}
	return a.w.Flush()
}

func (a *archive) folders(dir string) {
	if a.err != nil || dir == "." || a.made[dir] {
		return
	}
	a.folders(path.Dir(dir))
	a.made[dir] = true
	a.header(dir, modeFolder|0o755, 0)
}

// header writes an entry's head and name: 13 numbers of eight hex digits behind the magic one.
func (a *archive) header(name string, mode uint32, size int64) {
	a.inode++
	links := 1
	a.write(fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, len(name)+1, 0, name))
	a.pad()
}

// pad fills up to the next multiple of four.
func (a *archive) pad() { a.write("\x00\x00\x00"[:-a.n&3]) }

func (a *archive) write(s string) { a.copy(strings.NewReader(s), int64(len(s))) }

func (a *archive) copy(r io.Reader, size int64) {
	if a.err != nil {
		return
	}
	n, err := io.CopyN(a.w, r, size)
	a.n += n
	a.fail(err)
}

func (a *archive) fail(err error) {
	if a.err == nil {
		a.err = err
	}
}
