package underlay

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The tests of kernel mode change nftables and make links, so the test binary
// runs itself again in a network and a mount namespace of its own, which go away
// with it. Without root, with -short, and to fuzz, it does not, and they are skipped.
const inside = "SUBNETD_TEST_NETNS"

func TestMain(m *testing.M) {
	flag.Parse()
	fuzzing := flag.Lookup("test.fuzz").Value.String() != "" // its workers are tied to their parent by files
	switch {
	case os.Getenv(inside) != "":
		if err := privateNames(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	case os.Getuid() != 0 && os.Getenv("CI") == "true":
		fmt.Fprintln(os.Stderr, "these tests need root")
		os.Exit(1)
	case testing.Short(), fuzzing, os.Getuid() != 0, !tools():
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

// tools reports whether this machine has what the tests of kernel mode need; in
// CI their lack is a failure.
func tools() bool {
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			fmt.Fprintln(os.Stderr, "the tests of kernel mode are skipped:", err)
			if os.Getenv("CI") == "true" {
				os.Exit(1)
			}
			return false
		}
	}
	return true
}

// privateNames hides `ip netns` names of ours from the machine, and starts the
// loopback interface, which all tests use.
func privateNames() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "size=1m"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if err := os.Mkdir("/run/netns", 0o755); err != nil {
		return err
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("start lo: %w: %s", err, out)
	}
	return nil
}

// command runs a tool with words as arguments and in as its input.
func command(t testing.TB, in string, words string) {
	t.Helper()
	f := strings.Fields(words)
	c := exec.Command(f[0], f[1:]...)
	c.Stdin = strings.NewReader(in)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", words, err, out)
	}
}
