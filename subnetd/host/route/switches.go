package route

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// switches are the kernel's IP forwarding switches below root (/proc/sys/net).
// It remembers the values it changed, in this process's life, and puts them
// back; what was on when we came stays on.
type switches struct {
	root   string
	before map[string]string // path below root -> value found
}

const (
	forward4 = "ipv4/ip_forward"
	forward6 = "ipv6/conf/all/forwarding"
)

// set turns forwarding on, or back to what it was.
func (s *switches) set(on bool) error {
	if !on {
		return s.undo()
	}
	return errors.Join(s.write(forward4, "0", "1"), s.on6())
}

// on6 keeps router advertisements alive first: a forwarding kernel ignores them
// where accept_ra is 1 and would lose its own IPv6 uplink.
func (s *switches) on6() error {
	now, err := s.read(forward6)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a kernel without IPv6
	}
	if err != nil {
		return err
	}
	if _, ours := s.before[forward6]; now != "0" && !ours {
		return nil
	}
	dirs, err := filepath.Glob(filepath.Join(s.root, "ipv6/conf/*/accept_ra"))
	errs := []error{err}
	for _, path := range dirs {
		name := filepath.Base(filepath.Dir(path))
		if name != "all" && name != "default" {
			errs = append(errs, s.write("ipv6/conf/"+name+"/accept_ra", "1", "2"))
		}
	}
	return errors.Join(append(errs, s.write(forward6, "0", "1"))...)
}

// loose lets packets in by the interface whose way back is another (RFC 3704, 2.4):
// the internet is behind an exit, and behind others. The larger of this and of the
// switch for all interfaces counts, so that "no check" would not do. It goes with the
// interface.
func (s *switches) loose(name string) error {
	const loose = "2"
	path := "ipv4/conf/" + name + "/rp_filter"
	now, err := s.read(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && now == loose {
		return nil
	}
	if err != nil {
		return err
	}
	return s.put(path, loose)
}

// undo puts back what we changed, forwarding first, unless somebody else
// changed it since.
func (s *switches) undo() error {
	var errs []error
	for _, path := range []string{forward4, forward6} {
		if old, ok := s.before[path]; ok {
			errs = append(errs, s.restore(path, "1", old))
		}
	}
	for path, old := range s.before {
		errs = append(errs, s.restore(path, "2", old))
	}
	return errors.Join(errs...)
}

func (s *switches) restore(path, ours, old string) error {
	now, err := s.read(path)
	if err == nil && now == ours {
		err = s.put(path, old)
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		delete(s.before, path)
		return nil
	}
	return err
}

// write replaces the value from by to and remembers it; another value stays.
func (s *switches) write(path, from, to string) error {
	now, err := s.read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if now != from {
		return nil
	}
	if err := s.put(path, to); err != nil {
		return err
	}
	if _, ok := s.before[path]; !ok {
		s.before[path] = now
	}
	return nil
}

func (s *switches) read(path string) (string, error) {
	b, err := os.ReadFile(filepath.Join(s.root, path))
	if err != nil {
		return "", fmt.Errorf("sysctl: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func (s *switches) put(path, value string) error {
	if err := os.WriteFile(filepath.Join(s.root, path), []byte(value), 0o644); err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	return nil
}
