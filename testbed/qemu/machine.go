package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"subnetd/testbed/qemu/wire"
)

// bootLimit is for a slow guest on a busy machine.
const bootLimit = 3 * time.Minute

// Machine is a guest without a test around it. Its methods may be called by several goroutines, except On, Off and Close.
type Machine struct {
	o     Options
	board board
	files where
	dir   string
	taps  []*os.File
	took  time.Duration
	cmd   *exec.Cmd     // nil: it is off
	ended chan struct{} // closed when QEMU has ended
	link  *link
}

// New prepares a guest: what it boots, which testbed/qemu/build.sh makes if need be, its cards and its disk. Everything of
// its own is in dir, and stays there. It is off.
func New(o Options, dir string) (*Machine, error) {
	o = o.withDefaults()
	b, err := o.Arch.board()
	if err != nil {
		return nil, err
	}
	if (o.Count || o.Steady) && o.CPUs != 1 {
		return nil, errors.New("instructions are counted on one CPU only")
	}
	if o.Disk != "" && o.DiskMB > 0 {
		return nil, errors.New("a guest has one disk")
	}
	if len(o.NICs) > b.nics {
		return nil, fmt.Errorf("%d network cards: a guest of architecture %s has slots for %d", len(o.NICs), o.Arch, b.nics)
	}
	m := &Machine{o: o, board: b, dir: dir}
	if err := m.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("guest %s: %w", o.Name, err), m.Close())
	}
	return m, nil
}

func (m *Machine) prepare() error {
	made, err := build(string(m.o.Arch))
	if err != nil {
		return err
	}
	m.files = where{kernel: filepath.Join(made, "kernel"), initrd: filepath.Join(m.dir, "initrd"), console: filepath.Join(m.dir, "console.log")}
	if err := m.writeInitrd(filepath.Join(made, "initrd")); err != nil {
		return err
	}
	if m.o.Count {
		if err := m.writeCounter(); err != nil {
			return err
		}
	}
	if m.o.DiskMB > 0 {
		m.files.disk = filepath.Join(m.dir, "disk")
		if err := writeDisk(m.files.disk, m.o.DiskMB); err != nil {
			return err
		}
	}
	for _, n := range m.o.NICs {
		tap, err := openTap(n)
		if err != nil {
			return err
		}
		m.taps = append(m.taps, tap)
	}
	return nil
}

// writeInitrd writes the guest's initramfs: the common one, and behind it what is this guest's own.
func (m *Machine) writeInitrd(common string) (err error) {
	w, err := os.Create(m.files.initrd)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	r, err := os.Open(common)
	if err != nil {
		return err
	}
	defer r.Close()
	n, err := io.Copy(w, r)
	if err != nil {
		return err
	}
	if _, err := w.Write(make([]byte, -n&3)); err != nil { // an archive begins at a multiple of four
		return err
	}
	a := newArchive(w)
	a.text("etc/hostname", m.o.Name+"\n")
	a.text("etc/hosts", "127.0.0.1 localhost "+m.o.Name+"\n::1 localhost\n")
	var nics strings.Builder
	for _, n := range m.o.NICs {
		fmt.Fprintf(&nics, "%s %s\n", n.mac(), n.Name)
	}
	a.text("etc/nics", nics.String())
	for _, name := range slices.Sorted(maps.Keys(m.o.Files)) {
		a.file(strings.TrimPrefix(name, "/"), m.o.Files[name])
	}
	return a.close()
}

// writeCounter makes the file into which QEMU counts instructions.
func (m *Machine) writeCounter() error {
	made, err := build("insncount")
	if err != nil {
		return err
	}
	m.files.plugin, m.files.count = filepath.Join(made, "insncount.so"), filepath.Join(m.dir, "instructions")
	return os.WriteFile(m.files.count, make([]byte, 8), 0o600)
}

func writeDisk(path string, sizeMB int) error {
	out, err := exec.Command("mkfs.ext4", "-q", "-F", path, fmt.Sprintf("%dM", sizeMB)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, out)
	}
	return nil
}

// On boots the guest and waits until its agent answers. If it does not, the error ends with what the console said last.
func (m *Machine) On(ctx context.Context) error {
	if m.cmd != nil {
		return fmt.Errorf("guest %s is on", m.o.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	begin := time.Now()
	if err := m.launch(); err != nil {
		return fmt.Errorf("guest %s: %w", m.o.Name, err)
	}
	var err error
	select {
	case <-m.link.hello:
		m.took = time.Since(begin)
		return nil
	case <-m.ended:
		err = errors.New("QEMU has ended")
	case <-ctx.Done():
		err = fmt.Errorf("its agent does not answer: %w", ctx.Err())
	}
	m.Off()
	return fmt.Errorf("guest %s: %w; its console:\n%s", m.o.Name, err, m.ConsoleTail(60))
}

// launch starts QEMU with one end of a new stream; the link has the other.
func (m *Machine) launch() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "agent"), os.NewFile(uintptr(pair[1]), "agent")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return err
	}
	const firstExtra = 3
	w := m.files
	w.agent = firstExtra
	extra := []*os.File{theirs}
	for i, tap := range m.taps {
		if err := drain(tap); err != nil {
			return errors.Join(err, conn.Close())
		}
		extra = append(extra, tap)
		w.taps = append(w.taps, firstExtra+1+i)
	}
	log, err := os.OpenFile(m.files.console, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	defer log.Close()
	cmd := exec.Command(m.board.program, m.o.arguments(m.board, w)...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, extra
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return errors.Join(err, conn.Close())
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // the console and the stream tell
		close(ended)
	}()
	m.cmd, m.ended, m.link = cmd, ended, newLink(conn)
	return nil
}

// Off cuts the power: nothing is written any more, and what ran ends with an error. A guest that is off stays off.
func (m *Machine) Off() {
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Kill()
	<-m.ended
	_ = m.link.conn.Close()
	<-m.link.gone
	m.cmd = nil
}

// Close cuts the power and removes the cards.
func (m *Machine) Close() error {
	m.Off()
	var errs []error
	for _, tap := range m.taps {
		errs = append(errs, tap.Close())
	}
	m.taps = nil
	return errors.Join(errs...)
}

// Command is what a guest shall run.
type Command struct {
	Args           []string // the program, by path or by name, and its arguments
	Env            []string // additions to the environment, "NAME=value"
	Dir            string   // default: /
	Stdin          io.Reader
	Stdout, Stderr io.Writer // default: thrown away
}

// Exec runs a command to its end, which ctx may bring on, and gives its exit code: 128 + the signal's number if it was
// killed. An error means that it could not be started or that ctx or the guest has ended.
func (m *Machine) Exec(ctx context.Context, c Command) (int, error) {
	if m.link == nil {
		return -1, errGone
	}
	l := m.link
	p, err := l.start(wire.Command{Args: c.Args, Env: c.Env, Dir: c.Dir}, orDiscard(c.Stdout), orDiscard(c.Stderr))
	if err != nil {
		return -1, err
	}
	in := c.Stdin
	if in == nil {
		in = bytes.NewReader(nil)
	}
	fed := make(chan error, 1)
	go func() { fed <- l.feed(p, in) }()
	if err := l.wait(ctx, p); err != nil {
		return -1, err
	}
	select {
	case err := <-fed:
		return p.status.Code, err
	default: // it ended before it had read everything
		return p.status.Code, nil
	}
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// BootTime is from QEMU's start until the agent answered, the last time.
func (m *Machine) BootTime() time.Duration { return m.took }

// Console is the path of what the guest wrote to its console, of all its boots.
func (m *Machine) Console() string { return m.files.console }

// ConsoleTail gives the last n lines of the console.
func (m *Machine) ConsoleTail(n int) string { return tail(m.files.console, n) }

func tail(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Instructions is how many instructions the guest has executed since it was switched on.
func (m *Machine) Instructions() (uint64, error) {
	if m.files.count == "" {
		return 0, errors.New("instructions are not counted: set Options.Count")
	}
	b, err := os.ReadFile(m.files.count)
	if err != nil || len(b) < 8 {
		return 0, fmt.Errorf("the file of the counter has %d bytes: %w", len(b), err)
	}
	return binary.LittleEndian.Uint64(b), nil
}
