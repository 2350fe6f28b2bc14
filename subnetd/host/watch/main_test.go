package watch

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// The tests change interfaces, so the test binary runs itself again in
// a network namespace of its own, which goes away with it.
const inside = "SUBNETD_TEST_NETNS"

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			fmt.Fprintln(os.Stderr, "these tests need root")
			os.Exit(1)
		}
		fmt.Fprintln(os.Stderr, "skipped: these tests need root")
		return
	}
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), inside+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := c.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
