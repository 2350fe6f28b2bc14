package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ResetMarker is the file, below the data's mount point, that asks for a factory reset: at the next boot all else is
// removed first.
const ResetMarker = "factory-reset"

// MountData mounts the owner's data at a folder. What a power cut left is mended first; on a fresh disk the file system is
// made. A file system that is there and cannot be mended is an error: only the owner may give it up, by a reset.
func (b Booted) MountData(ctx context.Context, at string, log *slog.Logger) error {
	there, err := hasExt4(b.Data)
	switch {
	case err != nil:
		return err
	case there:
		err = mend(ctx, b.Data, log)
	default:
		log.Info("making the file system of the data", "device", b.Data)
		err = run(ctx, 0, "mkfs.ext4", "-q", "-F", "-L", "data", "-E", "nodiscard", b.Data)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(b.Data, at, "ext4", unix.MS_NOATIME|unix.MS_NODEV|unix.MS_NOSUID, "errors=remount-ro"); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mounting %s: %w", b.Data, err)
	}
	return reset(at, log)
}

// hasExt4 looks for the file system's magic number, which mkfs writes last.
func hasExt4(device string) (bool, error) {
	f, err := os.Open(device)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var magic [2]byte
	if _, err := f.ReadAt(magic[:], 1024+0x38); err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("%s: %w", device, err)
	}
	return binary.LittleEndian.Uint16(magic[:]) == 0xef53, nil
}

// mend lets e2fsck replay the journal, and repair what takes no decision; if that is not enough, all.
func mend(ctx context.Context, device string, log *slog.Logger) error {
	const mended = 3 // exit codes: bits of 1, errors corrected, and 2, and a restart is wanted
	err := run(ctx, mended, "e2fsck", "-p", device)
	if err == nil {
		return nil
	}
	log.Warn("the file system of the data needs more than its journal", "err", err)
	return run(ctx, mended, "e2fsck", "-y", device)
}

// run runs a program; exit codes of the bits in fine are no error.
func run(ctx context.Context, fine int, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, "/sbin/"+name, args...).CombinedOutput()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() > 0 && exit.ExitCode()&^fine == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}

// reset removes all data if the owner has asked for it. The marker goes last, so that a reset cut short goes on.
func reset(at string, log *slog.Logger) error {
	marker := filepath.Join(at, ResetMarker)
	if _, err := os.Lstat(marker); err != nil {
		return nil
	}
	log.Warn("factory reset: all data is removed")
	all, err := os.ReadDir(at)
	if err != nil {
		return err
	}
	for _, e := range all {
		if e.Name() != ResetMarker && e.Name() != "lost+found" {
			err = errors.Join(err, os.RemoveAll(filepath.Join(at, e.Name())))
		}
	}
	if err != nil {
		return fmt.Errorf("factory reset: %w", err)
	}
	unix.Sync()
	return os.Remove(marker)
}
