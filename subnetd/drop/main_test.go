package drop

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const inside = "DROP_TEST_INSIDE"

// TestMain runs the tests in a mount namespace of their own, where disks of any size can
// be had; without root those that need one are skipped.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(inside) != "":
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			panic(err)
		}
		os.Exit(m.Run())
	case os.Getuid() != 0 && os.Getenv("CI") == "true":
		fmt.Fprintln(os.Stderr, "CI must run these tests as root")
		os.Exit(1)
	case os.Getuid() != 0:
		os.Exit(m.Run())
	}
	c := exec.Command(os.Args[0], os.Args[1:]...)
	c.Env = append(os.Environ(), inside+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := c.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// disk mounts a disk of so many bytes at a folder.
func disk(t *testing.T, at string, size int) {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("needs root")
	}
	if err := unix.Mount("tmpfs", at, "tmpfs", 0, fmt.Sprintf("size=%d,mode=700", size)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
}
