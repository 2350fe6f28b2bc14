package qemu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// tapQueue is how many packets wait for a guest that stands still because the machine has no core for it. The kernel's own
// 500 are 5 s of the tests' streams, of which nothing shall be lost.
const tapQueue = "5000"

// openTap makes the machine's end of a card. It exists until the file is closed, here and in QEMU.
func openTap(n NIC) (*os.File, error) {
	var fd int
	err := inside(n.Netns, func() (err error) {
		// A tap belongs to the namespace in which its file is opened.
		fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("tap %s: %w", n.Tap, err)
	}
	f := os.NewFile(uintptr(fd), n.Tap)
	if err := shape(fd, n); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func shape(fd int, n NIC) error {
	ifr, err := unix.NewIfreq(n.Tap)
	if err != nil {
		return fmt.Errorf("tap %s: %w", n.Tap, err)
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if n.Offload {
		flags |= unix.IFF_VNET_HDR
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("tap %s in %s: %w", n.Tap, n.Netns, err)
	}
	up := []string{"-n", n.Netns, "link", "set", "dev", n.Tap, "up", "txqueuelen", tapQueue}
	if n.Bridge != "" {
		up = append(up, "master", n.Bridge)
	}
	if out, err := exec.Command("ip", up...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(up, " "), err, out)
	}
	return nil
}

// drain throws away what came while the guest was off.
func drain(tap *os.File) error {
	rc, err := tap.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	return rc.Control(func(fd uintptr) {
		for {
			if n, err := unix.Read(int(fd), buf); n <= 0 || err != nil {
				return
			}
		}
	})
}

// inside calls f on a thread that is in a named network namespace. The thread goes back afterwards and lives on: were it
// to end, the processes that it had started would get their Pdeathsig.
func inside(netns string, f func() error) error {
	runtime.LockOSThread()
	out, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer out.Close()
	in, err := os.Open("/run/netns/" + netns)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer in.Close()
	if err := unix.Setns(int(in.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering %s: %w", netns, err)
	}
	ferr := f()
	if err := unix.Setns(int(out.Fd()), unix.CLONE_NEWNET); err != nil {
		// The thread stays locked, so that nothing else runs in the wrong namespace.
		return errors.Join(ferr, fmt.Errorf("leaving %s: %w", netns, err))
	}
	runtime.UnlockOSThread()
	return ferr
}
