package netns

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host is one machine of the lab: a network namespace, of this machine or of a guest, or a guest.
type Host struct {
	lab   *Lab
	ns    string // "": a guest itself
	guest *Guest // what it is in; nil: this machine
	Name  string
	Addr4 netip.Addr // of its main interface
	Addr6 netip.Addr // of its main interface; invalid without IPv6

	box *Host // the NAT box before it, or nil

	mu    sync.Mutex
	procs []*Process
}

// must runs a program of the system in the host and fails the test with its output.
func (h *Host) must(stdin, name string, args ...string) {
	h.lab.t.Helper()
	if h.guest != nil {
		h.guest.must(h, stdin, name, args...)
		return
	}
	mustRun(h.lab.t, stdin, "ip", append([]string{"netns", "exec", h.ns, name}, args...)...)
}

// ip runs lines of ip(8) in the host.
func (h *Host) ip(lines ...string) {
	h.lab.t.Helper()
	h.must(strings.Join(lines, "\n")+"\n", "ip", "-batch", "-")
}

// IP runs lines of ip(8) in the host, for tests that change addresses or links.
func (h *Host) IP(lines ...string) {
	h.lab.t.Helper()
	h.ip(lines...)
}

// nft loads a ruleset in the host.
func (h *Host) nft(ruleset string) {
	h.lab.t.Helper()
	h.must(ruleset, "nft", "-f", "-")
}

// Lab is where the host is.
func (h *Host) Lab() *Lab { return h.lab }

// NFT loads a ruleset in the host, for tests that play another owner of the firewall.
func (h *Host) NFT(ruleset string) {
	h.lab.t.Helper()
	h.nft(ruleset)
}

// forward makes the host a router for both families.
func (h *Host) forward() {
	h.lab.t.Helper()
	h.must("", "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
}

// trustAddresses: nobody doubts an address here, and one that is still being checked looks different a moment later.
func (h *Host) trustAddresses() {
	h.lab.t.Helper()
	h.must("", "sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad; echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad")
}

// folder makes a folder for files of the host and gives its path there.
func (h *Host) folder(name string) string {
	h.lab.t.Helper()
	if h.guest == nil {
		return h.lab.mkdir(name)
	}
	path := guestRun + "/" + name
	h.must("", "mkdir", "-p", path)
	return path
}

// WriteFile writes a whole file on the host.
func (h *Host) WriteFile(path, content string) {
	h.lab.t.Helper()
	if h.guest != nil {
		h.guest.WriteFile(path, []byte(content), 0o600)
		return
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		h.lab.t.Fatal(err)
	}
}

// ReadFile reads a file on the host.
func (h *Host) ReadFile(path string) ([]byte, error) {
	if h.guest != nil {
		return h.guest.ReadFile(path)
	}
	return os.ReadFile(path)
}

// Cmd is a command inside the host. It sees the lab's resolv.conf and hosts file and dies with the test process.
// In a guest there is no such thing.
func (h *Host) Cmd(ctx context.Context, name string, args ...string) *exec.Cmd {
	if h.guest != nil {
		h.lab.t.Fatalf("%s is in a guest: it has Run, Output and Start", h.Name)
	}
	const enter = `mount --bind "$1/resolv.conf" /etc/resolv.conf && mount --bind "$1/hosts" /etc/hosts && shift && exec "$@"`
	all := append([]string{"netns", "exec", h.ns, "sh", "-c", enter, "sh", h.lab.dir, name}, args...)
	cmd := exec.CommandContext(ctx, "ip", all...)
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+h.lab.CACert())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// Run runs a command inside the host to its end and gives what it printed on both outputs.
func (h *Host) Run(ctx context.Context, name string, args ...string) (string, error) {
	if h.guest != nil {
		out, diag, err := h.guest.output(ctx, h, name, args...)
		return string(out) + string(diag), err
	}
	out, err := h.Cmd(ctx, name, args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %s %s: %w: %s", h.Name, filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// Output runs a command inside the host to its end and gives what it printed on its standard output; an error says what
// it printed on the other.
func (h *Host) Output(ctx context.Context, name string, args ...string) ([]byte, error) {
	if h.guest != nil {
		out, _, err := h.guest.output(ctx, h, name, args...)
		return out, err
	}
	cmd := h.Cmd(ctx, name, args...)
	var diag strings.Builder
	cmd.Stderr = &diag
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %s %s: %w: %s", h.Name, filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(diag.String()))
	}
	return out, err
}

// Ping sends one echo request to addr and waits at most two seconds for the reply.
func (h *Host) Ping(ctx context.Context, addr netip.Addr) error {
	_, err := h.Run(ctx, "ping", "-n", "-c", "1", "-W", "2", addr.String())
	return err
}

// Process is a command that runs in the background of a host.
type Process struct{ running }

// running is what a process can do wherever it runs.
type running interface {
	Pid() int                       // of the command itself
	Done() <-chan struct{}          // closed when it has ended
	Signal(s syscall.Signal) error  // sends it a signal
	Kill()                          // ends it at once and waits for it; may be called again
	Stop(limit time.Duration) error // asks it to end, kills it after limit, gives the error of its exit
	Lines() []string                // what it wrote
	Tail(n int) string              // the last lines of that
}

// local is a process of this machine.
type local struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error // valid after done
}

// Start starts a command in the background. Its output goes to a file, whose end is shown when the test fails.
func (h *Host) Start(name string, args ...string) *Process {
	h.lab.t.Helper()
	return h.StartEnv(nil, name, args...)
}

// StartEnv is Start with additions to the environment ("NAME=value").
func (h *Host) StartEnv(env []string, name string, args ...string) *Process {
	t := lasting{h.lab.t}
	t.Helper()
	if h.guest != nil {
		return &Process{h.guest.start(h, env, name, args...)}
	}
	f, err := os.CreateTemp(h.lab.dir, h.Name+"-"+filepath.Base(name)+"-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := h.Cmd(context.Background(), name, args...)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdout, cmd.Stderr = f, f
	p := &local{name: h.Name + ": " + filepath.Base(name), cmd: cmd, log: f.Name(), done: make(chan struct{})}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", p.name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	h.mu.Lock()
	h.procs = append(h.procs, &Process{p})
	h.mu.Unlock()
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("---- %s (pid %d), last lines:\n%s", p.name, cmd.Process.Pid, p.Tail(60))
		}
	})
	return &Process{p}
}

// Pid is the process id of the command itself.
func (p *local) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *local) Done() <-chan struct{} { return p.done }

// Signal sends the process a signal.
func (p *local) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// Kill ends the process at once (SIGKILL) and waits for it. It may be called again.
func (p *local) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Stop asks the process to end (SIGTERM), kills it after limit, and gives the error of its exit.
func (p *local) Stop(limit time.Duration) error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return p.err
	case <-time.After(limit):
		p.Kill()
		return fmt.Errorf("%s did not end within %v of SIGTERM", p.name, limit)
	}
}

// Lines are what the process wrote.
func (p *local) Lines() []string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return []string{err.Error()}
	}
	return strings.Split(strings.TrimRight(string(b), "\n"), "\n")
}

// Tail gives the last n lines that the process wrote.
func (p *local) Tail(n int) string {
	lines := p.Lines()
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// killAll ends every process of the host.
func (h *Host) killAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.procs {
		p.Kill()
	}
	h.procs = nil
}

// inside calls f on a thread that is in the host's namespace; sockets made there stay there. The thread goes back
// afterwards and lives on: were it to end, the processes that it had started would get their Pdeathsig.
func (h *Host) inside(f func() error) error {
	if h.guest != nil {
		return fmt.Errorf("%s is in a guest: sockets of the test process cannot be there", h.Name)
	}
	runtime.LockOSThread()
	out, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer out.Close()
	in, err := os.Open("/run/netns/" + h.ns)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer in.Close()
	if err := unix.Setns(int(in.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering %s: %w", h.ns, err)
	}
	ferr := f()
	if err := unix.Setns(int(out.Fd()), unix.CLONE_NEWNET); err != nil {
		// The thread stays locked, so that nothing else runs in the wrong namespace.
		return errors.Join(ferr, fmt.Errorf("leaving %s: %w", h.ns, err))
	}
	runtime.UnlockOSThread()
	return ferr
}

// Listen opens a TCP listener of the test process inside the host.
func (h *Host) Listen(addr string) (net.Listener, error) {
	var ln net.Listener
	err := h.inside(func() (err error) {
		ln, err = net.Listen("tcp", addr)
		return err
	})
	return ln, err
}

// ListenPacket opens a UDP socket of the test process inside the host.
func (h *Host) ListenPacket(addr string) (net.PacketConn, error) {
	var pc net.PacketConn
	err := h.inside(func() (err error) {
		pc, err = net.ListenPacket("udp", addr)
		return err
	})
	return pc, err
}

// Dial opens a connection of the test process from inside the host. addr must hold an IP address, not a name.
func (h *Host) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(addr); err != nil {
		return nil, fmt.Errorf("dial inside %s: %w", h.Name, err)
	}
	var c net.Conn
	err := h.inside(func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// DialSegments is Dial for TCP whose segments hold at most so many bytes in either direction, options included.
func (h *Host) DialSegments(ctx context.Context, addr string, most int) (net.Conn, error) {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, most) })
		return errors.Join(err, cerr)
	}}
	var c net.Conn
	err := h.inside(func() (err error) {
		c, err = d.DialContext(ctx, "tcp", addr)
		return err
	})
	return c, err
}

// Payload is n bytes that look random and are the same for the same seed.
func Payload(seed byte, n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), n)
}

// PayloadSum is the SHA-256 of Payload(seed, n), in hex.
func PayloadSum(seed byte, n int64) string {
	d := sha256.New()
	_, _ = io.Copy(d, Payload(seed, n))
	return hex.EncodeToString(d.Sum(nil))
}

// ServePayload serves Payload(seed, n) over HTTP at addr (host:port) until the test ends.
func (h *Host) ServePayload(addr string, seed byte, n int64) {
	t := h.lab.t
	t.Helper()
	ln, err := h.Listen(addr)
	if err != nil {
		t.Fatalf("%s: serving on %s: %v", h.Name, addr, err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(n))
		_, _ = io.CopyBuffer(struct{ io.Writer }{w}, Payload(seed, n), make([]byte, 256<<10))
	})}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close() })
}

// Fetch downloads a URL from inside the host and gives the number of bytes and their SHA-256 in hex.
func (h *Host) Fetch(ctx context.Context, url string) (n int64, sum string, err error) {
	tr := &http.Transport{DialContext: h.Dial, DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return 0, "", fmt.Errorf("fetching %s from %s: %w", url, h.Name, err)
	}
	defer resp.Body.Close()
	d := sha256.New()
	n, err = io.CopyBuffer(d, struct{ io.Reader }{resp.Body}, make([]byte, 256<<10))
	return n, hex.EncodeToString(d.Sum(nil)), err
}
