package appliance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"subnetd/testbed/qemu"
)

// bootLimit is for a slow board on a busy machine.
const bootLimit = 10 * time.Minute

// diskSize is that of the box's disk: more than what was flashed, as a card has, and a power of two, as QEMU's cards have.
const diskSize = 512 << 20

// Box is an appliance: a board with a flashed disk.
type Box struct {
	t       testing.TB
	board   Board
	dir     string
	cards   []qemu.NIC
	taps    []*os.File
	image   string   // a second disk, or empty
	append  string   // additions to the kernel's command line, where QEMU loads it
	kernel  string   // file of it, where it is not the image's
	log     *os.File // what all consoles have said
	cmd     *exec.Cmd
	ended   chan struct{}
	Console *Console
	On      time.Time // when the power was last switched on
}

// New flashes a disk. The power is off. Cards are in the order WAN, LAN.
func New(t testing.TB, board Board, cards ...qemu.NIC) *Box {
	t.Helper()
	if _, err := exec.LookPath(board.machine().program); err != nil {
		t.Skip(err) // make test-appliance installs it
	}
	dir, err := os.MkdirTemp("", fmt.Sprintf("snl%d-box-", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b := &Box{t: t, board: board, dir: dir, cards: cards}
	if most := board.machine().cards; len(cards) > most {
		t.Fatalf("%d network cards: QEMU's %s can have %d", len(cards), board, most)
	}
	if out, err := exec.Command("cp", "--sparse=always", board.File(t, "disk"), b.Disk()).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	if err := os.Truncate(b.Disk(), diskSize); err != nil {
		t.Fatal(err)
	}
	for _, c := range cards {
		tap, err := qemu.Card(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tap.Close() })
		b.taps = append(b.taps, tap)
	}
	if b.log, err = os.Create(filepath.Join(dir, "console.log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.log.Close() })
	t.Cleanup(b.Cut)
	return b
}

// Disk is the path of the box's disk.
func (b *Box) Disk() string { return filepath.Join(b.dir, "disk") }

// Insert plugs a file in as a second disk, from the next Power on.
func (b *Box) Insert(image string) { b.image = image }

// Shell puts a root's shell on the console, from the next Power on. QEMU loads the kernel then, not the board's own loader;
// and what guards against other tenants of a CPU, which is dear to emulate, is left out.
func (b *Box) Shell() { b.append += " appliance.shell mitigations=off" }

// Unpack takes the kernel out of a PC's compressed one, whose unpacking is a quarter of what a boot costs to emulate: from the next
// Power on QEMU loads that, at the kernel's own entry for virtual machines.
func (b *Box) Unpack() {
	b.t.Helper()
	packed, err := os.ReadFile(b.board.File(b.t, "vmlinuz"))
	if err != nil {
		b.t.Fatal(err)
	}
	_, stream, found := bytes.Cut(packed, []byte(xzMagic))
	if !found {
		b.t.Fatal("the kernel is not packed by xz")
	}
	xz := exec.Command("xz", "-d", "-c", "--single-stream") // something follows it
	xz.Stdin = io.MultiReader(strings.NewReader(xzMagic), bytes.NewReader(stream))
	kernel, err := xz.Output()
	if err != nil {
		b.t.Fatalf("xz: %v", err)
	}
	b.kernel = filepath.Join(b.dir, "vmlinux")
	if err := os.WriteFile(b.kernel, kernel, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

const xzMagic = "\xfd7zXZ\x00"

// Power switches the box on.
func (b *Box) Power() {
	b.t.Helper()
	if b.cmd != nil {
		b.t.Fatal("the box is on")
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "console"), os.NewFile(uintptr(pair[1]), "console")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		b.t.Fatal(err)
	}
	m := b.board.machine()
	cmd := exec.Command(m.program, b.arguments(m)...)
	cmd.ExtraFiles = append([]*os.File{theirs}, b.taps...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said strings.Builder
	cmd.Stderr = &said
	b.On = time.Now()
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		if err := cmd.Wait(); err != nil && said.Len() > 0 {
			b.t.Log(said.String())
		}
		close(ended)
	}()
	b.cmd, b.ended, b.Console = cmd, ended, newConsole(conn, b.log)
}

// arguments are QEMU's. The first file that it inherits is the console's, the others are the cards'.
func (b *Box) arguments(m machine) []string {
	args := append([]string{"-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none", "-m", m.memory,
		"-chardev", "socket,id=console,fd=3"}, m.console...)
	args = append(args, m.args...)
	const drive = "format=raw,cache=unsafe,file="
	if m.disk == nil {
		args = append(args, "-drive", "if=sd,"+drive+b.Disk())
	} else {
		args = append(append(args, "-drive", "if=none,id=disk,"+drive+b.Disk()), m.disk...)
	}
	if b.image != "" {
		args = append(args, "-drive", "if=none,id=image,"+drive+b.image, "-device", m.second)
	}
	for i, c := range b.cards {
		id := "nic" + strconv.Itoa(i)
		args = append(args, "-netdev", "tap,id="+id+",fd="+strconv.Itoa(4+i), "-device", m.card+",netdev="+id+",mac="+c.Address())
	}
	if m.loader && b.append == "" {
		return args
	}
	if m.dtb != "" {
		args = append(args, "-dtb", b.board.File(b.t, m.dtb))
	}
	cmdline, err := os.ReadFile(b.board.File(b.t, "cmdline.txt"))
	if err != nil {
		b.t.Fatal(err)
	}
	kernel := b.kernel
	if kernel == "" {
		kernel = b.board.File(b.t, "vmlinuz")
	}
	return append(args, "-kernel", kernel, "-initrd", b.board.File(b.t, "initrd"), "-append", strings.TrimSpace(string(cmdline))+b.append)
}

// Cut cuts the power, if it is on.
func (b *Box) Cut() {
	if b.cmd == nil {
		return
	}
	_ = b.cmd.Process.Kill()
	<-b.ended
	b.Console.close()
	b.cmd = nil
	if b.t.Failed() {
		b.t.Logf("---- the console's last lines:\n%s", b.Console.Tail(60))
	}
}

// Up waits until the box says that all its services are up, and gives the time since the power was switched on.
func (b *Box) Up() time.Duration {
	b.t.Helper()
	b.Wait("all is up")
	return time.Since(b.On)
}

// Wait waits until the console has said something, after what was waited for before.
func (b *Box) Wait(what string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), bootLimit)
	defer cancel()
	if err := b.Console.Wait(ctx, what); err != nil {
		b.t.Fatalf("the console does not say %q: %v:\n%s", what, err, b.Console.Tail(60))
	}
}

// Data gives the path of a copy of the box's data, as the power cut left it.
func (b *Box) Data() string {
	b.t.Helper()
	if b.cmd != nil {
		b.t.Fatal("the box is on")
	}
	begin, size, err := dataPartition(b.Disk())
	if err != nil {
		b.t.Fatal(err)
	}
	out := filepath.Join(b.dir, "data")
	_ = os.Remove(out)
	cmd := exec.Command("dd", "if="+b.Disk(), "of="+out, "bs=1M", "conv=sparse", fmt.Sprintf("skip=%d", begin>>20), fmt.Sprintf("count=%d", size>>20))
	if text, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("dd: %v: %s", err, text)
	}
	return out
}

// dataPartition reads the fourth entry of a partition table: in blocks of 512 bytes, little-endian.
func dataPartition(disk string) (begin, size int64, err error) {
	f, err := os.Open(disk)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	var e [16]byte
	if _, err := f.ReadAt(e[:], 446+3*16); err != nil {
		return 0, 0, err
	}
	word := func(b []byte) int64 { return int64(b[0]) | int64(b[1])<<8 | int64(b[2])<<16 | int64(b[3])<<24 }
	begin, size = word(e[8:])*512, word(e[12:])*512
	if begin%(1<<20) != 0 || size%(1<<20) != 0 || size == 0 {
		err = errors.New("the data does not lie on whole MiB")
	}
	return begin, size, err
}
