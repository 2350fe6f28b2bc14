package main

import (
	"bytes"
	"fmt"
	"os"
	"path"
)

// cpio is an initramfs in the making: an archive of the "newc" format, as the kernel unpacks it.
type cpio struct {
	out   bytes.Buffer
	inode int
	made  map[string]bool // folders
}

const (
	cpioFolder = 0o040755
	cpioFile   = 0o100000
)

// folder adds a folder, after those it is in. A name has no slash at its beginning.
func (c *cpio) folder(name string) {
	if name == "." || c.made[name] {
		return
	}
	c.folder(path.Dir(name))
	c.made[name] = true
	c.entry(name, cpioFolder, nil)
}

// file adds a file, after the folders it is in.
func (c *cpio) file(name string, mode os.FileMode, body []byte) {
	c.folder(path.Dir(name))
	c.entry(name, cpioFile|uint32(mode.Perm()), body)
}

// bytes ends the archive.
func (c *cpio) bytes() []byte {
	c.entry("TRAILER!!!", 0, nil)
	return c.out.Bytes()
}

// entry writes 13 numbers of eight hex digits behind the magic one, the name and the body.
func (c *cpio) entry(name string, mode uint32, body []byte) {
	c.inode++
	fmt.Fprintf(&c.out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.inode, mode, 0, 0, 1, 0, len(body), 0, 0, 0, 0, len(name)+1, 0, name)
	c.pad()
	c.out.Write(body)
	c.pad()
}

// pad fills up to the next multiple of four.
func (c *cpio) pad() { c.out.Write(make([]byte, -c.out.Len()&3)) }
