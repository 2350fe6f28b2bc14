// Package state keeps small JSON files that must survive power cuts. A file is
// always the old or the new one, never a mixture; one that cannot be read is
// set aside, never written over.
package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// MaxSize bounds one state file, in bytes.
const MaxSize = 32 << 20

const (
	tempSuffix  = ".tmp"
	corruptMark = ".corrupt-"
	lockName    = ".lock"
	keepCorrupt = 3
)

// ErrInUse is returned by Open when another process holds the directory.
var ErrInUse = errors.New("another subnetd is running with this state directory")

// CorruptError says that a state file could not be understood and was set
// aside. The caller goes on as if there were none.
type CorruptError struct {
	File  string // where it was
	Aside string // where it is now
	Err   error  // what is wrong with it
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("state file %s is damaged (%v): it was set aside as %s and this node starts without it; "+
		"to keep what it held, stop subnetd, repair that copy and move it back", e.File, e.Err, e.Aside)
}

func (e *CorruptError) Unwrap() error { return e.Err }

// Dir is an open state directory, held alone by this process. Its methods may
// be called from several goroutines.
type Dir struct {
	path  string
	lock  *os.File
	now   func() time.Time
	fsync func(*os.File) error // a seam: tests let the disk be full

	mu sync.Mutex // one reader or writer of files at a time
}

// Open makes the directory if need be (0700), takes its lock and removes what a
// killed predecessor left half-written. The error is ErrInUse if another
// process holds it.
func Open(dir string) (*Dir, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", inWords(err))
	}
	lock, err := takeLock(filepath.Join(dir, lockName))
	if err != nil {
		return nil, fmt.Errorf("state directory %s: %w", dir, err)
	}
	d := &Dir{path: dir, lock: lock, now: time.Now, fsync: (*os.File).Sync}
	if err := d.tidy(); err != nil {
		return nil, errors.Join(fmt.Errorf("state directory: %w", inWords(err)), lock.Close())
	}
	return d, nil
}

// takeLock locks the file for as long as this process lives or keeps it open.
func takeLock(file string) (*os.File, error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, inWords(err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, ErrInUse
	}
	return nil, fmt.Errorf("lock: %w", err)
}

// tidy removes leftover temporary files.
func (d *Dir) tidy() error {
	if err := os.Chmod(d.path, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), tempSuffix) && e.Type().IsRegular() {
			if err := os.Remove(filepath.Join(d.path, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// Close gives the directory back.
func (d *Dir) Close() error { return d.lock.Close() }

// Path is the directory's path.
func (d *Dir) Path() string { return d.path }

// Load reads the named file into v, a pointer. found is false, and v untouched,
// if there is none. A file that cannot be understood is set aside and reported
// as a *CorruptError; any other error means that it is there but was not read.
func (d *Dir) Load(name string, v any) (found bool, err error) {
	file, err := d.file(name)
	if err != nil {
		return false, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	data, err := read(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil && !errors.Is(err, errTooBig) {
		return false, fmt.Errorf("state: %w", err)
	}
	if err == nil {
		err = decode(data, v)
	}
	if err != nil {
		return false, d.setAside(name, err)
	}
	return true, nil
}

// Peek is Load in a directory that another process may hold. It changes nothing: a
// file that cannot be understood stays, and is an error.
func Peek(dir, name string, v any) (found bool, err error) {
	file, err := (&Dir{path: dir}).file(name)
	if err != nil {
		return false, err
	}
	data, err := read(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = decode(data, v)
	}
	if err != nil {
		return false, fmt.Errorf("state file %s: %w", file, err)
	}
	return true, nil
}

var errTooBig = fmt.Errorf("it is bigger than %d bytes", MaxSize)

func read(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err == nil && len(data) > MaxSize {
		return nil, errTooBig
	}
	return data, err
}

// decode fills v only if all of data is good.
func decode(data []byte, v any) error {
	p := reflect.ValueOf(v)
	if p.Kind() != reflect.Pointer || p.IsNil() {
		panic("state: Load wants a pointer")
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return errors.New("it is empty")
	}
	if bytes.Equal(bytes.TrimSpace(data), []byte("null")) {
		return errors.New("it holds nothing")
	}
	fresh := reflect.New(p.Type().Elem())
	if err := json.Unmarshal(data, fresh.Interface()); err != nil {
		return err
	}
	p.Elem().Set(fresh.Elem())
	return nil
}

// setAside renames a damaged file and keeps the newest few of its kind.
func (d *Dir) setAside(name string, cause error) error {
	file := filepath.Join(d.path, name)
	old := d.corrupt(name)
	stamp := d.now().Unix()
	if n := len(old); n > 0 {
		stamp = max(stamp, old[n-1]+1) // clocks jump; order must not
	}
	aside := file + corruptMark + strconv.FormatInt(stamp, 10)
	if err := os.Rename(file, aside); err != nil {
		return fmt.Errorf("state file %s is damaged (%w) and could not be set aside: %w", file, cause, inWords(err))
	}
	old = append(old, stamp)
	for _, s := range old[:max(0, len(old)-keepCorrupt)] {
		os.Remove(file + corruptMark + strconv.FormatInt(s, 10)) // best effort: only tidiness is lost
	}
	return &CorruptError{File: file, Aside: aside, Err: errors.Join(cause, syncDir(d.path))}
}

// Lost gives the newest copy set aside of a file that is not there any more, ""
// if there is none: whoever cannot begin anew without it asks before it does.
func (d *Dir) Lost(name string) string {
	file, err := d.file(name)
	if err != nil {
		return ""
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	stamps := d.corrupt(name)
	if _, err := os.Lstat(file); err == nil || len(stamps) == 0 {
		return ""
	}
	return file + corruptMark + strconv.FormatInt(stamps[len(stamps)-1], 10)
}

// corrupt lists the stamps of the copies set aside, oldest first.
func (d *Dir) corrupt(name string) []int64 {
	entries, _ := os.ReadDir(d.path) // none readable: none known
	var stamps []int64
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), name+corruptMark)
		if s, err := strconv.ParseInt(rest, 10, 64); ok && err == nil {
			stamps = append(stamps, s)
		}
	}
	sort.Slice(stamps, func(i, j int) bool { return stamps[i] < stamps[j] })
	return stamps
}

// Save writes v to the named file. When it returns nil the new content is on
// the disk; on an error, or when power is lost, the old content is. Content
// that is there already is not written again: flash is precious.
func (d *Dir) Save(name string, v any) error {
	file, err := d.file(name)
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("state: %s: %w", name, err)
	}
	data = append(data, '\n')
	if len(data) > MaxSize {
		return fmt.Errorf("state: %s: %w", name, errTooBig)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if old, err := read(file); err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err := replace(file, data, 0o600, d.fsync); err != nil {
		return fmt.Errorf("state file %s was not saved, the old one stays: %w", file, inWords(err))
	}
	return nil
}

// WriteFile gives the file of the path, wherever it is, new content with the
// same promises as Save. The file keeps its permissions; a new one belongs to
// its owner alone. A symbolic link is followed, not replaced.
func WriteFile(path string, data []byte) error {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	mode := fs.FileMode(0o600)
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm()
		if old, err := read(path); err == nil && bytes.Equal(old, data) {
			return nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return inWords(err)
	}
	if err := replace(path, data, mode, (*os.File).Sync); err != nil {
		return fmt.Errorf("file %s was not changed: %w", path, inWords(err))
	}
	return nil
}

// replace is temp, fsync, rename, fsync of the directory.
func replace(file string, data []byte, mode fs.FileMode, fsync func(*os.File) error) error {
	temp := file + tempSuffix
	if err := write(temp, data, mode, fsync); err != nil {
		os.Remove(temp)
		return err
	}
	if err := os.Rename(temp, file); err != nil {
		os.Remove(temp)
		return err
	}
	return syncDir(filepath.Dir(file))
}

func write(temp string, data []byte, mode fs.FileMode, fsync func(*os.File) error) error {
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := fsync(f); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// Remove deletes the named file, for good. One that is not there is no error.
func (d *Dir) Remove(name string) error {
	file, err := d.file(name)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	err = os.Remove(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("state: %w", inWords(err))
	}
	return syncDir(d.path)
}

// file is the path of a named file.
func (d *Dir) file(name string) (string, error) {
	if !IsName(name) {
		return "", fmt.Errorf("state: %q is no name for a state file", name)
	}
	return filepath.Join(d.path, name), nil
}

// IsName reports whether a state file may be called so: letters, digits and -_. only,
// so that it stays in the directory and apart from our own names.
func IsName(name string) bool {
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	}
	return name != "" && len(name) <= 64 && name[0] != '.' && !strings.ContainsFunc(name, bad) &&
		!strings.HasSuffix(name, tempSuffix) && !strings.Contains(name, corruptMark)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// inWords puts the disk's troubles into words an owner understands.
func inWords(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("the disk is full, free some space (%w)", err)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("the disk is read-only (%w)", err)
	}
	return err
}
