package pid1

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

type mount struct {
	at, kind, source string
	flags            uintptr
	options          string
}

// mounts are those of every Linux; stage1 has made some of them already.
func mounts() []mount {
	const hard = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	return []mount{
		{"/proc", "proc", "proc", hard, ""},
		{"/sys", "sysfs", "sys", hard, ""},
		{"/dev", "devtmpfs", "dev", unix.MS_NOSUID, "mode=0755"},
		{"/dev/pts", "devpts", "pts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0600,ptmxmode=0666"},
		{"/run", "tmpfs", "run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755,size=16m"},
		{"/tmp", "tmpfs", "tmp", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777,size=16m"},
	}
}

func mountAll() error {
	var errs []error
	for _, m := range mounts() {
		if err := mountOne(m); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, os.MkdirAll(RunDir, 0o755))...)
}

// mountOne mounts unless something is mounted there.
func mountOne(m mount) error {
	there, err := mounted(m.at)
	if err != nil || there {
		return err
	}
	if err := unix.Mount(m.source, m.at, m.kind, m.flags, m.options); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s: %w", m.at, err)
	}
	return nil
}

// mounted reports whether a directory is on another file system than the one above it.
// It is made where that is possible.
func mounted(dir string) (bool, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, err
	}
	var at, above unix.Stat_t
	if err := errors.Join(unix.Stat(dir, &at), unix.Stat(dir+"/..", &above)); err != nil {
		return false, fmt.Errorf("%s: %w", dir, err)
	}
	return at.Dev != above.Dev, nil
}

// loopback brings lo up: programs of the machine talk over it.
func loopback() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r)
}
