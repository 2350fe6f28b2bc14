package firewall

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The kernel tests change nftables, so the test binary runs itself again in a
// network and a mount namespace of its own, which go away with it. With -short
// (for qemu-user, which has no nftables) only the pure tests run.
const inside = "SUBNETD_TEST_NETNS"

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(inside) != "" {
		if err := privateNames(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	if testing.Short() {
		os.Exit(m.Run())
	}
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			fmt.Fprintln(os.Stderr, "these tests need root")
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), inside+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := c.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// privateNames hides `ip netns` names of ours from the machine.
func privateNames() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "size=1m"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	// A new network namespace wants its own /sys and shares /proc by task.
	return os.Mkdir("/run/netns", 0o755)
}

// kernel marks a test that needs root and a namespace.
func kernel(t *testing.T) {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("needs root")
	}
}
