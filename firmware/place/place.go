// Package place is for tests: machines beside the one under test, as network namespaces
// in which strangers' programs run.
package place

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"
)

const inside = "APPLIANCE_TEST_NETNS"

// Main runs the tests in a network namespace of their own, into which the test binary runs
// itself again, and which goes away with it. It gives the exit code.
func Main(m *testing.M) int {
	if os.Getenv(inside) != "" {
		return m.Run()
	}
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "skipped: these tests need root")
		if os.Getenv("CI") == "true" {
			return 1
		}
		return 0
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), inside+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := c.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// Place is a machine with one interface, eth0.
type Place struct {
	t   *testing.T
	pid string
}

// Need skips a test that needs programs which are not here. In CI it fails.
func Need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err == nil {
			continue
		}
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is not here", p)
		}
		t.Skipf("%s is not here", p)
	}
}

// New makes a machine that is joined to an interface of that name, which it makes here.
func New(t *testing.T, name string) Place {
	t.Helper()
	c := exec.Command("/usr/bin/env", "cat")
	stdin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = stdin.Close(), c.Wait() })
	p := Place{t, strconv.Itoa(c.Process.Pid)}
	Command(t, "ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", p.pid)
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", name).Run() }) // it may be gone with the namespace
	p.Run("ip", "link", "set", "lo", "up")
	p.Run("ip", "link", "set", "eth0", "up")
	return p
}

// Command is one that is to run there.
func (p Place) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"-t", p.pid, "-n", name}, args...)...)
}

// Run runs a command there, which must work, and gives what it says.
func (p Place) Run(name string, args ...string) string {
	p.t.Helper()
	out, err := p.Command(name, args...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// Fails runs a command there that must not work.
func (p Place) Fails(name string, args ...string) {
	p.t.Helper()
	if out, err := p.Command(name, args...).CombinedOutput(); err == nil {
		p.t.Errorf("%s %v works, and must not:\n%s", name, args, out)
	}
}

// Start runs a program there until the test ends. stop ends it before.
func (p Place) Start(name string, args ...string) (stop func()) {
	p.t.Helper()
	c := p.Command(name, args...)
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		p.t.Fatal(err)
	}
	stop = func() { _, _ = c.Process.Kill(), c.Wait() }
	p.t.Cleanup(stop)
	return stop
}

// Command runs a command here, which must work, and gives what it says.
func Command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// Eventually asks until something holds.
func Eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !holds(); {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
