package drop

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	partBegin = ".subnetd-" // of a file that is under way
	partEnd   = ".part"
	stale     = 24 * time.Hour      // after which nobody goes on with one
	fromAttr  = "user.subnetd.from" // who sent a file
)

// place is the open folder that files land in. What is done in it is done by its
// descriptor, so that it stays the same one, whatever is mounted meanwhile.
type place struct {
	*os.File
	perm     fs.FileMode // of files in it
	uid, gid int         // whose they are
}

// Memory is what a Store remembers of the folder that the owner chose: where its file
// system was mounted. While that is not there, what the path leads to is another disk.
type Memory struct {
	Folder string `json:"folder"`
	Mount  string `json:"mount"`
}

// open gives the place for files, the inbox made if need be; the error says why there is
// none now.
func (s *Store) open() (*place, error) {
	set := s.settings()
	path := set.Folder
	if path == "" {
		path = s.cfg.Inbox
		if err := os.MkdirAll(path, 0o700); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrPlace, err)
		}
	}
	p, err := openPlace(path)
	if err == nil && set.Folder != "" {
		if err = s.sameDisk(path); err != nil {
			p.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPlace, err)
	}
	return p, nil
}

func openPlace(path string) (*place, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &place{File: f, perm: fs.FileMode(st.Mode) & 0o666, uid: int(st.Uid), gid: int(st.Gid)}, nil
}

// sameDisk remembers where the disk of the folder is mounted, and refuses the folder
// while it is not.
func (s *Store) sameDisk(folder string) error {
	at, err := mountOf(folder)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.memory
	if was.Folder == folder && was.Mount == at {
		return nil
	}
	if was.Folder == folder && within(at, was.Mount) {
		return fmt.Errorf("the disk that was at %s is not mounted", was.Mount)
	}
	next := Memory{Folder: folder, Mount: at}
	if err := s.cfg.Save(next); err != nil {
		return err
	}
	s.memory = next
	return nil
}

// within reports whether a path is above another or the same.
func within(above, path string) bool {
	return above == path || strings.HasPrefix(path, strings.TrimSuffix(above, "/")+"/")
}

// mountOf is the topmost folder on the same file system as a path.
func mountOf(path string) (string, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	var here, up unix.Stat_t
	if err := unix.Stat(path, &here); err != nil {
		return "", err
	}
	for path != "/" {
		if err := unix.Stat(filepath.Dir(path), &up); err != nil {
			return "", err
		}
		if up.Dev != here.Dev {
			break
		}
		path = filepath.Dir(path)
	}
	return path, nil
}

// free is how many bytes the file system has to give.
func (p *place) free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(p.Fd()), &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

// found is a file of the place.
type found struct {
	name string
	size int64
	at   time.Time
	part bool
}

// list is its regular files, the newest first.
func (p *place) list() ([]found, error) {
	fd, err := unix.Openat(int(p.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	again := os.NewFile(uintptr(fd), p.Name()) // which begins at its first name
	defer again.Close()
	var out []found
	for {
		names, err := again.Readdirnames(256)
		for _, name := range names {
			var st unix.Stat_t
			if unix.Fstatat(int(p.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
				continue
			}
			part := strings.HasPrefix(name, partBegin) && strings.HasSuffix(name, partEnd)
			out = append(out, found{name, st.Size, time.Unix(st.Mtim.Unix()), part})
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	sort.Slice(out, func(i, j int) bool {
		if !out[i].at.Equal(out[j].at) {
			return out[i].at.After(out[j].at)
		}
		return out[i].name < out[j].name
	})
	return out, nil
}

// partName is the hidden name under which a file arrives: the same for the same sender
// and file, so that it can go on after a cut. nth tells apart those that arrive at once.
func partName(sender, name string, nth int) string {
	sum := sha256.Sum256([]byte(sender + "\x00" + name + "\x00" + strconv.Itoa(nth)))
	return partBegin + hex.EncodeToString(sum[:12]) + partEnd
}

func (p *place) openFile(name string, flags int, perm fs.FileMode) (*os.File, error) {
	fd, err := unix.Openat(int(p.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, uint32(perm))
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s is no file", name), err, f.Close())
	}
	return f, nil
}

func (p *place) remove(name string) error {
	if err := unix.Unlinkat(int(p.Fd()), name, 0); err != nil {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}

// begin opens the file under way, cut to offset bytes.
func (p *place) begin(part string, offset int64) (*os.File, error) {
	flags := unix.O_RDWR
	if offset == 0 {
		flags |= unix.O_CREAT
	}
	f, err := p.openFile(part, flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) && offset > 0 {
		return nil, ErrOffset
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Size() < offset {
		err = fmt.Errorf("%w: there are %d bytes to go on from, not %d", ErrOffset, info.Size(), offset)
	}
	if err == nil {
		err = f.Truncate(offset)
	}
	if err == nil {
		_, err = f.Seek(offset, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// keep makes a whole file visible under the first free name, and lasting. It belongs to
// whom the folder does.
func (p *place) keep(f *os.File, part, name, from string) (string, error) {
	fd := int(f.Fd())
	_ = unix.Fchown(fd, p.uid, p.gid) // a stick's file system may know no owners
	_ = unix.Fchmod(fd, uint32(p.perm))
	_ = unix.Fsetxattr(fd, fromAttr, []byte(from), 0)
	if err := f.Sync(); err != nil {
		return "", err
	}
	const most = 10_000
	for n := range most {
		as := numbered(name, n)
		err := p.rename(part, as)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return "", &fs.PathError{Op: "rename", Path: as, Err: err}
		}
		return as, p.Sync()
	}
	return "", fmt.Errorf("%w: %s and %d more", ErrTaken, name, most-1)
}

// rename never replaces a file. Some file systems cannot promise that; there the only
// ones to make such a name are we, and whoever has the folder open.
func (p *place) rename(from, to string) error {
	dir := int(p.Fd())
	err := unix.Renameat2(dir, from, dir, to, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, to, &st, unix.AT_SYMLINK_NOFOLLOW); !errors.Is(err, unix.ENOENT) {
		if err == nil {
			err = unix.EEXIST
		}
		return err
	}
	return unix.Renameat(dir, from, dir, to)
}

// sender is who sent a file, if the file system keeps that.
func (p *place) sender(name string) string {
	f, err := p.openFile(name, unix.O_RDONLY, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	var b [256]byte
	n, err := unix.Fgetxattr(int(f.Fd()), fromAttr, b[:])
	if err != nil {
		return ""
	}
	return string(b[:n])
}
