package dns

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// asIn gives an open file the owner and permissions of another, or mode if that is
// not there.
func asIn(f *os.File, other string, mode fs.FileMode) error {
	st, err := os.Stat(other)
	if errors.Is(err, fs.ErrNotExist) {
		return f.Chmod(mode)
	}
	if err != nil {
		return err
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		if err := f.Chown(int(sys.Uid), int(sys.Gid)); err != nil {
			return err
		}
	}
	return f.Chmod(st.Mode())
}
