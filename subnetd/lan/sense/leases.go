package sense

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"subnetd/subnetd/lan"

	"golang.org/x/sys/unix"
)

const (
	maxLeaseFile = 512 << 10             // bytes that are read of one
	written      = 50 * time.Millisecond // a server writes a file in pieces
)

// LeaseFiles are where DHCP servers usually keep their leases: dnsmasq and odhcpd of
// OpenWrt, dnsmasq of Debian and of others.
func LeaseFiles() []string {
	return []string{
		"/tmp/dhcp.leases", "/tmp/odhcpd.leases", "/tmp/hosts/odhcpd",
		"/var/lib/misc/dnsmasq.leases", "/var/lib/dnsmasq/dnsmasq.leases",
	}
}

// followLeases reads the lease files when they change, until ctx is done.
func (s *Sense) followLeases(ctx context.Context) {
	w, err := newFiles(s.c.LeaseFiles)
	if err != nil {
		s.c.Log.Info("new leases are not seen", "err", err)
		s.readLeases()
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = w.f.SetReadDeadline(time.Unix(1, 0)) })
	for err == nil && ctx.Err() == nil {
		w.watch()
		s.readLeases()
		err = w.wait()
		pause(ctx, written)
	}
	stop()
	if err != nil && ctx.Err() == nil {
		s.c.Log.Info("new leases are no longer seen", "err", err)
	}
	_ = w.f.Close()
}

// readLeases reads all lease files into the book. One that cannot be read has no leases.
func (s *Sense) readLeases() {
	for _, path := range s.c.LeaseFiles {
		text, err := readLeaseFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			s.c.Log.Debug("leases cannot be read", "err", err)
		}
		leases := lan.ParseLeases(text)
		s.write(func(now time.Time, b *lan.Book) bool { return b.Leases(now, path, leases) })
	}
}

// readLeaseFile reads a file's beginning, if it is a plain file.
func readLeaseFile(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no file", path)
	}
	var text []byte
	if err == nil {
		text, err = io.ReadAll(io.LimitReader(f, maxLeaseFile))
	}
	return string(text), errors.Join(err, f.Close())
}

// files waits for changes of some files, by inotify. It watches each file for being
// written, and its folder, or the nearest that exists, for another to take its place.
type files struct {
	paths   []string
	f       *os.File
	folders map[int32][]string // what comes into being there and matters, by watch
	buf     [4096]byte
}

func newFiles(paths []string) (*files, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	return &files{paths: paths, f: os.NewFile(uintptr(fd), "inotify")}, nil
}

// watch watches what is there now. To watch what is watched already changes nothing.
func (w *files) watch() {
	before := w.folders
	w.folders = map[int32][]string{}
	for _, path := range w.paths {
		w.add(path, unix.IN_MODIFY)
		w.ascend(path)
	}
	for wd := range before {
		if w.folders[wd] == nil {
			w.control(func(fd int) error { _, err := unix.InotifyRmWatch(fd, uint32(wd)); return err })
		}
	}
}

// ascend watches the nearest folder above that exists. What came into being between a look
// and the watch is looked for again.
func (w *files) ascend(path string) {
	for name := path; name != "/" && name != "."; name = filepath.Dir(name) {
		wd := w.add(filepath.Dir(name), unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_MOVED_FROM|unix.IN_DELETE|unix.IN_ONLYDIR)
		if wd < 0 {
			continue
		}
		w.folders[wd] = append(w.folders[wd], filepath.Base(name))
		if _, err := os.Stat(name); err == nil && name != path {
			w.ascend(path)
		}
		return
	}
}

// add watches one path, also for this; -1: it is not there.
func (w *files) add(path string, mask uint32) int32 {
	wd := -1
	w.control(func(fd int) (err error) { wd, err = unix.InotifyAddWatch(fd, path, mask|unix.IN_MASK_ADD); return err })
	return int32(wd)
}

// control does something with the file's descriptor. What does not exist is not watched.
func (w *files) control(f func(fd int) error) {
	if raw, err := w.f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = f(int(fd)) })
	}
}

// wait returns when a file changed, or may have.
func (w *files) wait() error {
	for {
		n, err := w.f.Read(w.buf[:])
		if err != nil {
			return err
		}
		if w.news(w.buf[:n]) {
			return nil
		}
	}
}

// news reports whether events are of files that matter.
func (w *files) news(b []byte) bool {
	for len(b) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(b))
		size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
		if size > len(b) {
			return true
		}
		name := strings.TrimRight(string(b[unix.SizeofInotifyEvent:size]), "\x00")
		if names, ok := w.folders[wd]; !ok || slices.Contains(names, name) {
			return true
		}
		b = b[size:]
	}
	return false
}
