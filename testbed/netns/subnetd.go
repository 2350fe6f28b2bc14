package netns

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Subnetd is the daemon under test on one host.
type Subnetd struct {
	t    testing.TB
	Host *Host
	bin  string
	proc *Process

	Config string // path of the configuration file
	State  string // folder
	Socket string
}

// Subnetd starts SUBNETD_BIN (default: bin/subnetd of the checkout) on a host with the given configuration (TOML).
func (l *Lab) Subnetd(h *Host, toml string) *Subnetd {
	l.t.Helper()
	s := l.subnetd(h, toml)
	s.Start()
	return s
}

// SubnetdIdle is Subnetd before its first Start.
func (l *Lab) SubnetdIdle(h *Host, toml string) *Subnetd {
	l.t.Helper()
	return l.subnetd(h, toml)
}

func (l *Lab) subnetd(h *Host, toml string) *Subnetd {
	l.t.Helper()
	dir := h.folder("sd-" + h.Name)
	s := &Subnetd{t: l.t, Host: h, bin: guestSubnetd, State: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "s"),
		Config: filepath.Join(dir, "subnetd.toml")}
	if h.guest == nil {
		s.bin = subnetdBin(l.t)
	}
	h.WriteFile(s.Config, toml)
	return s
}

// SubnetdOnDisk is Subnetd with its state on a disk of so many bytes.
func (l *Lab) SubnetdOnDisk(h *Host, toml string, size int) *Subnetd {
	l.t.Helper()
	state := filepath.Join(l.mkdir("sd-"+h.Name), "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		l.t.Fatal(err)
	}
	mustRun(l.t, "", "mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%d", size), "none", state)
	l.t.Cleanup(func() { _ = exec.Command("umount", "-l", state).Run() })
	return l.Subnetd(h, toml)
}

// SubnetdIn1970 is Subnetd on a machine whose clock has started near 1970. The kernel keeps one clock for all, so the
// program is built with a standard library that takes most of the time since then away.
func (l *Lab) SubnetdIn1970(h *Host, toml string) *Subnetd {
	l.t.Helper()
	s := l.subnetd(h, toml)
	s.bin = l.buildIn1970()
	s.Start()
	return s
}

func (l *Lab) buildIn1970() string {
	l.t.Helper()
	source := filepath.Join(strings.TrimSpace(mustRun(l.t, "", "go", "env", "GOROOT")), "src", "time", "time.go")
	text, err := os.ReadFile(source)
	if err != nil {
		l.t.Fatal(err)
	}
	const now = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	changed := strings.Replace(string(text), now, now+"\tsec -= 1_795_000_000\n", 1)
	if changed == string(text) {
		l.t.Fatalf("%s has another form of time.Now: this test has to follow it", source)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {source: l.write("time.go", changed)}})
	if err != nil {
		l.t.Fatal(err)
	}
	bin := filepath.Join(l.dir, "subnetd-1970")
	cmd := exec.Command("go", "build", "-trimpath", "-overlay", l.write("overlay.json", string(overlay)), "-o", bin, "./subnetd")
	cmd.Dir = repoRoot(l.t)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		l.t.Fatalf("building subnetd with another clock: %v\n%s", err, out)
	}
	return bin
}

// Binary is the daemon's program.
func (s *Subnetd) Binary() string { return s.bin }

func subnetdBin(t testing.TB) string {
	t.Helper()
	bin := os.Getenv("SUBNETD_BIN")
	if bin == "" {
		bin = filepath.Join(repoRoot(t), "bin", "subnetd")
	}
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("the daemon is missing (%v): run make, or set SUBNETD_BIN", err)
	}
	return bin
}

// Launch starts the daemon, again after Stop or Kill9, and waits for nothing.
func (s *Subnetd) Launch() {
	s.t.Helper()
	s.proc = s.Host.Start(s.bin, "run", "--config", s.Config, "--state", s.State, "--socket", s.Socket)
}

// Start is Launch, and waits until the daemon answers.
func (s *Subnetd) Start() {
	s.t.Helper()
	s.Launch()
	Eventually(s.t, 30*time.Second, "subnetd answers on "+s.Host.Name, func() error {
		select {
		case <-s.proc.Done():
			s.t.Fatalf("subnetd ended:\n%s", s.proc.Tail(30))
		default:
		}
		_, err := s.StatusJSON()
		return err
	})
}

// Kill9 ends the daemon at once; its kernel state stays.
func (s *Subnetd) Kill9() { s.proc.Kill() }

// Stop asks the daemon to end and gives the error of its exit.
func (s *Subnetd) Stop() error { return s.proc.Stop(15 * time.Second) }

// Signal sends the daemon a signal.
func (s *Subnetd) Signal(sig syscall.Signal) error { return s.proc.Signal(sig) }

// Reload writes the configuration and tells the daemon of it.
func (s *Subnetd) Reload(toml string) {
	s.t.Helper()
	s.Host.WriteFile(s.Config, toml)
	if err := s.Signal(syscall.SIGHUP); err != nil {
		s.t.Fatal(err)
	}
}

// Log is what the daemon, since its last start, has logged.
func (s *Subnetd) Log() []string { return s.proc.Lines() }

// Mount runs mount(8) where the daemon lives, until it ends: nobody else sees what is mounted.
func (s *Subnetd) Mount(args ...string) {
	s.t.Helper()
	s.inside(append([]string{"mount"}, args...)...)
}

// Unmount takes away what Mount has mounted, as a disk that is pulled while in use.
func (s *Subnetd) Unmount(dir string) {
	s.t.Helper()
	s.inside("umount", "-l", dir)
}

// Sees is a path of the daemon's for the test: what is mounted for the daemon is there.
func (s *Subnetd) Sees(path string) string { return fmt.Sprintf("/proc/%d/root%s", s.Pid(), path) }

func (s *Subnetd) inside(args ...string) {
	s.t.Helper()
	mustRun(s.t, "", "nsenter", append([]string{"-m", "-t", strconv.Itoa(s.Pid()), "--"}, args...)...)
}

// Pid is the daemon's process id.
func (s *Subnetd) Pid() int { return s.proc.Pid() }

// CPUSeconds is the time that the daemon has used its host's cores.
func (s *Subnetd) CPUSeconds() float64 {
	s.t.Helper()
	return cpuSeconds(s.t, s.procFile("stat"))
}

// Memory is a field of the daemon's status file in /proc, as VmRSS, in MB.
func (s *Subnetd) Memory(field string) float64 {
	s.t.Helper()
	for line := range strings.Lines(s.procFile("status")) {
		if name, value, ok := strings.Cut(line, ":"); ok && name == field {
			kib, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			if err != nil {
				s.t.Fatal(err)
			}
			return kib * 1024 / 1e6
		}
	}
	s.t.Fatalf("the daemon's status in /proc has no %s", field)
	return 0
}

// procFile is one of the daemon's files in /proc.
func (s *Subnetd) procFile(name string) string {
	s.t.Helper()
	text, err := s.Host.ReadFile(fmt.Sprintf("/proc/%d/%s", s.Pid(), name))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

// Upgrade puts another program in the place of the guest's: it is the same but for its version. The daemon that runs goes
// on with the old one.
func (s *Subnetd) Upgrade() (from, to string) {
	s.t.Helper()
	out, err := s.Host.Output(context.Background(), s.bin, "version")
	if err != nil {
		s.t.Fatal(err)
	}
	from = strings.TrimSpace(string(out))
	to = "z" + from[1:]
	program, err := s.Host.ReadFile(s.bin)
	if err != nil || len(from) < 3 || !bytes.Contains(program, []byte(from)) {
		s.t.Fatalf("the program does not hold its version %q (%v)", from, err)
	}
	s.Host.guest.WriteFile(s.bin+".new", bytes.ReplaceAll(program, []byte(from), []byte(to)), 0o755)
	s.Host.must("", "mv", s.bin+".new", s.bin)
	return from, to
}

// CLI runs `subnetd <args> --socket S` on the host, for at most 30 seconds, and gives what it printed on both outputs.
func (s *Subnetd) CLI(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return s.CLIContext(ctx, args...)
}

// CLIContext is CLI for as long as ctx lives.
func (s *Subnetd) CLIContext(ctx context.Context, args ...string) (string, error) {
	return s.Host.Run(ctx, s.bin, s.withSocket(args)...)
}

// Cmd is the command `subnetd <args> --socket S` on the host, not yet started.
func (s *Subnetd) Cmd(ctx context.Context, args ...string) *exec.Cmd {
	return s.Host.Cmd(ctx, s.bin, s.withSocket(args)...)
}

// withSocket puts the socket at the end, where every command and verb takes flags.
func (s *Subnetd) withSocket(args []string) []string {
	return append(slices.Clone(args), "--socket", s.Socket)
}

// StatusJSON is what `subnetd status --json` prints, decoded without knowing its fields.
func (s *Subnetd) StatusJSON() (map[string]any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, err := s.Host.Output(ctx, s.bin, s.withSocket([]string{"status", "--json"})...)
	if len(out) == 0 && err != nil {
		return nil, err
	}
	m := map[string]any{}
	if err := json.Unmarshal(out, &m); err != nil {
		return nil, fmt.Errorf("subnetd status on %s: %w: %s", s.Host.Name, err, out)
	}
	return m, nil
}

// UpKey joins by key and waits until the coordinator says the node is online.
func (s *Subnetd) UpKey(hs *Headscale, key, hostname string) {
	s.t.Helper()
	if out, err := s.CLI("up", "--control", hs.URL, "--auth-key", key, "--hostname", hostname); err != nil {
		s.t.Fatalf("subnetd up: %v\n%s", err, out)
	}
	Eventually(s.t, 20*time.Second, hostname+" is online at the coordinator", func() error {
		n, err := hs.Node(hostname)
		if err == nil && !n.Online {
			err = fmt.Errorf("it is offline")
		}
		return err
	})
}
