package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"subnetd/testbed/qemu/wire"
)

// callLimit is for one short command in a guest on a busy machine.
const callLimit = time.Minute

// Guest is a machine under test. It is switched off when the test ends.
type Guest struct {
	*Machine
	t testing.TB

	mu     sync.Mutex
	serial int // of the logs of background commands
}

// Boot makes a guest, switches it on and waits for it. Without QEMU, root or what the guest boots, the test is skipped for
// a visitor and failed when CI=true.
func Boot(t testing.TB, o Options) *Guest {
	t.Helper()
	need(t, o)
	// Named as a lab's folder: labs sweep what a killed test leaves.
	dir, err := os.MkdirTemp("", fmt.Sprintf("snl%d-qemu-", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	m, err := New(o, dir)
	if err != nil {
		missing(t, err.Error())
	}
	g := &Guest{Machine: m, t: t}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("guest %s: %v", m.o.Name, err)
		}
		if t.Failed() {
			t.Logf("---- guest %s, its console's last lines:\n%s", m.o.Name, m.ConsoleTail(60))
		}
	})
	g.on()
	return g
}

// need ends a test that cannot boot the guest.
func need(t testing.TB, o Options) {
	t.Helper()
	b, err := o.withDefaults().Arch.board()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath(b.program); err != nil {
		missing(t, b.program+" is not installed: run testbed/provision.sh")
	}
	if os.Getuid() != 0 && len(o.NICs) > 0 {
		missing(t, "a guest's network cards are tap devices, which take root")
	}
}

func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(what)
	}
	t.Skip(what)
}

func (g *Guest) on() {
	g.t.Helper()
	if err := g.On(context.Background()); err != nil {
		g.t.Fatal(err)
	}
	g.t.Logf("guest %s: up after %.1f s", g.o.Name, g.took.Seconds())
}

// Kill cuts the power. What the guest has not synced to its disk is lost, and all of its memory.
func (g *Guest) Kill() { g.Off() }

// Reboot cuts the power, if it is on, and boots again: with the same cards and disk, and the files of the first time.
func (g *Guest) Reboot() {
	g.t.Helper()
	g.Off()
	g.on()
}

// Run runs a command in the guest to its end and gives what it printed on both outputs. An error tells them too.
func (g *Guest) Run(ctx context.Context, name string, args ...string) (string, error) {
	return g.RunEnv(ctx, nil, name, args...)
}

// RunEnv is Run with additions to the environment ("NAME=value").
func (g *Guest) RunEnv(ctx context.Context, env []string, name string, args ...string) (string, error) {
	var out bytes.Buffer // written by one goroutine, the link's
	code, err := g.Exec(ctx, Command{Args: append([]string{name}, args...), Env: env, Stdout: &out, Stderr: &out})
	if err == nil && code != 0 {
		err = fmt.Errorf("exit code %d", code)
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return "", fmt.Errorf("%s: %s %s: %w", g.o.Name, path.Base(name), strings.Join(args, " "), err) // out may still grow
	}
	if err != nil {
		return out.String(), fmt.Errorf("%s: %s %s: %w: %s", g.o.Name, path.Base(name), strings.Join(args, " "), err, out.String())
	}
	return out.String(), nil
}

// must runs a command with the given input and fails the test if it fails.
func (g *Guest) must(stdin string, args ...string) string {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	var out bytes.Buffer
	code, err := g.Exec(ctx, Command{Args: args, Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &out})
	if err != nil {
		g.t.Fatalf("%s: %s: %v", g.o.Name, strings.Join(args, " "), err)
	}
	if code != 0 {
		g.t.Fatalf("%s: %s: exit code %d: %s%s", g.o.Name, strings.Join(args, " "), code, out.String(), stdin)
	}
	return out.String()
}

// Sh runs a shell script in the guest, fails the test if it fails, and gives what it printed.
func (g *Guest) Sh(script string) string {
	g.t.Helper()
	return g.must("", "sh", "-ec", script)
}

// IP runs lines of ip(8) in the guest.
func (g *Guest) IP(lines ...string) {
	g.t.Helper()
	g.must(strings.Join(lines, "\n")+"\n", "ip", "-batch", "-")
}

// NFT loads a ruleset in the guest.
func (g *Guest) NFT(ruleset string) {
	g.t.Helper()
	g.must(ruleset, "nft", "-f", "-")
}

// Sysctl sets a value below /proc/sys; key has slashes or dots.
func (g *Guest) Sysctl(key, value string) {
	g.t.Helper()
	g.WriteFile("/proc/sys/"+strings.ReplaceAll(key, ".", "/"), []byte(value), 0)
}

// Ping sends one echo request to addr and waits at most two seconds for the reply.
func (g *Guest) Ping(ctx context.Context, addr netip.Addr) error {
	_, err := g.Run(ctx, "ping", "-n", "-c", "1", "-W", "2", addr.String())
	return err
}

// WriteFile writes a file of the guest and the folders it is in. A mode of 0 leaves the file's mode as it is.
func (g *Guest) WriteFile(name string, data []byte, mode os.FileMode) {
	g.t.Helper()
	script := `mkdir -p "$(dirname "$1")" && cat >"$1"`
	if mode != 0 {
		script += fmt.Sprintf(` && chmod %o "$1"`, mode.Perm())
	}
	var stderr bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	code, err := g.Exec(ctx, Command{Args: []string{"sh", "-c", script, "sh", name}, Stdin: bytes.NewReader(data), Stderr: &stderr})
	if err != nil || code != 0 {
		g.t.Fatalf("%s: writing %s: exit code %d, %v: %s", g.o.Name, name, code, err, stderr.String())
	}
}

// ReadFile reads a file of the guest.
func (g *Guest) ReadFile(name string) ([]byte, error) {
	var out, stderr bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	code, err := g.Exec(ctx, Command{Args: []string{"cat", name}, Stdout: &out, Stderr: &stderr})
	if err == nil && code != 0 {
		err = errors.New(strings.TrimSpace(stderr.String()))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: reading %s: %w", g.o.Name, name, err)
	}
	return out.Bytes(), nil
}

// Instructions is how many instructions the guest has executed since it was switched on.
func (g *Guest) Instructions() uint64 {
	g.t.Helper()
	n, err := g.Machine.Instructions()
	if err != nil {
		g.t.Fatal(err)
	}
	return n
}

// Process is a command in the background of a guest.
type Process struct {
	name string
	link *link
	c    *command
	log  string
}

// Start starts a command in the background. Its output goes to a file of this machine, whose end is shown when the test
// fails.
func (g *Guest) Start(name string, args ...string) *Process {
	g.t.Helper()
	return g.StartEnv(nil, name, args...)
}

// StartEnv is Start with additions to the environment ("NAME=value").
func (g *Guest) StartEnv(env []string, name string, args ...string) *Process {
	g.t.Helper()
	g.mu.Lock()
	g.serial++
	log := filepath.Join(g.dir, fmt.Sprintf("%s-%d.log", path.Base(name), g.serial))
	g.mu.Unlock()
	f, err := os.Create(log)
	if err != nil {
		g.t.Fatal(err)
	}
	p := &Process{name: g.o.Name + ": " + path.Base(name), link: g.link, log: log}
	p.c, err = g.link.start(wire.Command{Args: append([]string{name}, args...), Env: env}, f, f)
	if err != nil {
		_ = f.Close()
		g.t.Fatalf("%s: %v", p.name, err)
	}
	_ = g.link.feed(p.c, bytes.NewReader(nil)) // its end shows in done
	go func() {
		<-p.c.done
		_ = f.Close()
	}()
	g.t.Cleanup(func() {
		if g.t.Failed() {
			g.t.Logf("---- %s (pid %d), last lines:\n%s", p.name, p.c.pid, p.Tail(60))
		}
	})
	return p
}

// Pid is the process id of the command in the guest.
func (p *Process) Pid() int { return p.c.pid }

// Done is closed when the process has ended, or the guest.
func (p *Process) Done() <-chan struct{} { return p.c.done }

// Err is how the process ended, after Done: nil for exit code 0.
func (p *Process) Err() error {
	<-p.c.done
	if p.c.err == nil && p.c.status.Code != 0 {
		return fmt.Errorf("%s: exit code %d", p.name, p.c.status.Code)
	}
	return p.c.err
}

// Signal sends the process a signal.
func (p *Process) Signal(s syscall.Signal) error { return p.link.signal(p.c, int(s)) }

// Kill ends the process at once (SIGKILL) and waits for it. It may be called again.
func (p *Process) Kill() {
	_ = p.Signal(unix.SIGKILL)
	<-p.c.done
}

// Stop asks the process to end (SIGTERM), kills it after limit, and gives the error of its exit.
func (p *Process) Stop(limit time.Duration) error {
	_ = p.Signal(unix.SIGTERM)
	select {
	case <-p.c.done:
		return p.Err()
	case <-time.After(limit):
		p.Kill()
		return fmt.Errorf("%s did not end within %v of SIGTERM", p.name, limit)
	}
}

// Lines are what the process wrote.
func (p *Process) Lines() []string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return []string{err.Error()}
	}
	return strings.Split(strings.TrimRight(string(b), "\n"), "\n")
}

// Tail gives the last n lines that the process wrote.
func (p *Process) Tail(n int) string { return tail(p.log, n) }
