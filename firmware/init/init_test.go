package pid1

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// machine is an appliance in namespaces.
type machine struct {
	t       *testing.T
	cmd     *exec.Cmd
	console *console
}

// console collects what the machine says, and tells that it has said something.
type console struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func (c *console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text.Write(b)
	close(c.more)
	c.more = make(chan struct{})
	return len(b), nil
}

func (c *console) look() (string, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String(), c.more
}

func boot(t *testing.T, env ...string) *machine {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"usr", "dev", "proc", "sys", "run", "tmp", "data", "etc"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+dir, filepath.Join(root, dir)); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := copyFile(self, filepath.Join(root, "self")); err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, cmd: exec.Command(self), console: &console{more: make(chan struct{})}}
	m.cmd.Env = append(append(os.Environ(), role+"=init", "ROOT="+root), env...)
	m.cmd.Stderr = m.console
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL,
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = m.cmd.Process.Kill() // it may have ended
		if t.Failed() {
			text, _ := m.console.look()
			t.Log(text)
		}
	})
	return m
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}

// says waits until the console has said all of these.
func (m *machine) says(what ...string) {
	m.t.Helper()
	limit := time.After(2 * time.Minute)
	for _, w := range what {
		for {
			text, more := m.console.look()
			if strings.Contains(text, w) {
				break
			}
			select {
			case <-more:
			case <-limit:
				m.t.Fatalf("the console never said %q", w)
			}
		}
	}
}

func (m *machine) inside(path string) string {
	return fmt.Sprintf("/proc/%d/root%s", m.cmd.Process.Pid, path)
}

func (m *machine) ask(words ...string) string {
	m.t.Helper()
	text, err := ask(m.inside(Socket), words)
	if err != nil {
		m.t.Fatalf("%v: %v", words, err)
	}
	return text
}

// ends waits for the end and gives the signal by which the kernel told how.
func (m *machine) ends() syscall.Signal {
	m.t.Helper()
	_ = m.cmd.Wait() // it is a signal
	return m.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal()
}

func TestLife(t *testing.T) {
	m := boot(t)
	m.says("this is the old image", "exit status 1", "good: works", "crash: falls over", "exit status 3", "all is up")
	if _, err := os.Stat(m.inside("/data/confirmed")); err != nil {
		t.Error("the image is not confirmed:", err)
	}
	if text, _ := os.ReadFile(m.inside("/data/etc/default")); string(text) != "as made\n" {
		t.Errorf("default: %q", text)
	}
	if text, _ := os.ReadFile(m.inside("/self")); bytes.HasPrefix(text, []byte("not")) {
		t.Error("what is there was replaced")
	}
	status := m.ask("status")
	for _, want := range []string{"good     up", "asked    up", "crash    ", "last end: exit status 3", "this is the old image"} {
		if !strings.Contains(status, want) {
			t.Errorf("status lacks %q:\n%s", want, status)
		}
	}
	m.says("good: reads again") // asked has come up, and told it
	if log := m.ask("log", "good"); !strings.Contains(log, "] works\n") || !strings.Contains(log, "] reads again\n") {
		t.Errorf("log of good: %q", log)
	}
	for _, bad := range [][]string{{"log"}, {"log", "nobody"}, {"dance"}, {""}} {
		if text, err := ask(m.inside(Socket), bad); err == nil {
			t.Errorf("%q was answered: %q", bad, text)
		}
	}
	m.ask("reload", "crash")
	m.noZombies()
	m.ask("poweroff")
	if s := m.ends(); s != syscall.SIGINT {
		t.Errorf("the machine ended by %v, not by poweroff", s)
	}
	m.says("good: was asked to end", "going down")
}

// noZombies looks for what nobody has reaped. What ends just now is reaped at once.
func (m *machine) noZombies() {
	m.t.Helper()
	procs, _ := filepath.Glob(m.inside("/proc/[0-9]*/stat"))
	if len(procs) < 3 {
		m.t.Fatalf("proc: %v", procs)
	}
	dead := 0
	for _, p := range procs {
		if text, _ := os.ReadFile(p); strings.Contains(string(text), ") Z ") {
			dead++
		}
	}
	if dead > 3 {
		m.t.Errorf("%d of %d processes are not reaped", dead, len(procs))
	}
}

func TestEndings(t *testing.T) {
	for name, c := range map[string]struct {
		by   func(*machine)
		want syscall.Signal
	}{
		"SIGTERM": {func(m *machine) { m.kill(syscall.SIGTERM) }, syscall.SIGHUP},
		"SIGUSR2": {func(m *machine) { m.kill(syscall.SIGUSR2) }, syscall.SIGINT},
		"reboot":  {func(m *machine) { m.ask("reboot") }, syscall.SIGHUP},
		"reset":   {func(m *machine) { m.ask("reset") }, syscall.SIGHUP},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := boot(t)
			m.says("all is up")
			c.by(m)
			if got := m.ends(); got != c.want {
				t.Errorf("ended by %v, want %v", got, c.want)
			}
			m.says("good: was asked to end")
		})
	}
}

func (m *machine) kill(s syscall.Signal) {
	if err := m.cmd.Process.Signal(s); err != nil {
		m.t.Error(err)
	}
}

func TestTrial(t *testing.T) {
	m := boot(t, "TRIAL=1")
	if got := m.ends(); got != syscall.SIGHUP {
		t.Errorf("ended by %v, want a restart", got)
	}
	m.says("did not come up in time", "left for the one before")
}

func TestBackoff(t *testing.T) {
	var last time.Duration
	var got []string
	for range 8 {
		last = backoff(last, 0)
		got = append(got, last.String())
	}
	if s := strings.Join(got, " "); s != "1s 2s 4s 8s 16s 32s 1m0s 1m0s" {
		t.Error(s)
	}
	if w := backoff(time.Minute, 2*time.Minute); w != time.Second {
		t.Errorf("after a long run: %v", w)
	}
}

func TestHealthy(t *testing.T) {
	for _, c := range []struct {
		down []time.Duration
		want bool
	}{
		{nil, true}, {[]time.Duration{0, 0}, true}, {[]time.Duration{0, time.Minute}, true},
		{[]time.Duration{0, patience + 1, 0}, false},
	} {
		if got := healthy(c.down); got != c.want {
			t.Errorf("healthy(%v) = %v", c.down, got)
		}
	}
}

func TestRing(t *testing.T) {
	r := newRing()
	for i := range kept + 10 {
		r.add(fmt.Sprint("line ", i))
	}
	lines := strings.Split(strings.TrimSpace(r.text()), "\n")
	if len(lines) != kept || !strings.HasSuffix(lines[0], "line 10") || !strings.HasSuffix(lines[kept-1], fmt.Sprint("line ", kept+9)) {
		t.Errorf("%d lines, from %q to %q", len(lines), lines[0], lines[len(lines)-1])
	}
}

func TestOnDisk(t *testing.T) {
	got := onDisk("/dev/vda2 / squashfs ro 0 0\nproc /proc proc rw 0 0\n/dev/vda1 /boot vfat rw 0 0\n/dev/vda4 /data ext4 rw 0 0\n")
	if strings.Join(got, " ") != "/data /boot" {
		t.Error(got)
	}
}
