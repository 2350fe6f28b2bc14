package drop

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Open gives a file of the inbox and its size in bytes. ErrUnknown if there is none.
func (s *Store) Open(name string) (*os.File, int64, error) {
	p, err := s.inbox(name)
	if err != nil {
		return nil, 0, err
	}
	defer p.Close()
	f, err := p.openFile(name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, 0, unknown(name, err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}

// Remove removes a file of the inbox. ErrUnknown if there is none.
func (s *Store) Remove(name string) error {
	p, err := s.inbox(name)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.remove(name); err != nil {
		return unknown(name, err)
	}
	s.cfg.Changed()
	return p.Sync()
}

// inbox is the place, if such a name can be in it: those that we give are such, and only
// what arrived is ours to give away.
func (s *Store) inbox(name string) (*place, error) {
	if as, err := safe(name); err != nil || as != name {
		return nil, fmt.Errorf("%w: %q", ErrUnknown, clip(name, 80))
	}
	if folder := s.settings().Folder; folder != "" {
		return nil, fmt.Errorf("%w: files land in %s now, and are there for whoever may open it", ErrUnknown, folder)
	}
	return s.open()
}

func unknown(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %q", ErrUnknown, clip(name, 80))
	}
	return err
}
