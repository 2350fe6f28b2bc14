// Package qemu boots routers: guests of four architectures, each a Debian kernel in an emulated machine, with WireGuard
// and nftables of its own. Their network cards end in the namespaces of a lab; nothing else of the network is theirs.
//
// The emulation is QEMU's own (TCG), never the machine's virtualisation: it is the same everywhere, and instructions can
// be counted. [Boot] is for tests, [New] for programs.
package qemu

import (
	"crypto/sha256"
	"fmt"
	"net"
	"slices"
	"strconv"
)

// Arch is the architecture of a guest.
type Arch string

// The guests that testbed/qemu/build.sh makes.
const (
	AMD64  Arch = "amd64"
	ARM64  Arch = "arm64"
	ARMv7  Arch = "armv7"
	MIPSLE Arch = "mipsle" // a Malta board with a 24K, one CPU
)

// Archs are all of them.
func Archs() []Arch { return []Arch{AMD64, ARM64, ARMv7, MIPSLE} }

// Env is the environment in which `go build` makes a program for the guest.
func (a Arch) Env() []string {
	env := []string{"GOOS=linux", "CGO_ENABLED=0"}
	switch a {
	case ARMv7:
		return append(env, "GOARCH=arm", "GOARM=7")
	case MIPSLE:
		return append(env, "GOARCH=mipsle", "GOMIPS=softfloat")
	}
	return append(env, "GOARCH="+string(a))
}

// board is how QEMU is told to be a machine of an architecture.
type board struct {
	program string
	machine []string
	console string
	rng     string // where its card of random numbers and its disk are plugged in; empty: anywhere
	disk    string
	nics    int    // how many network cards it has slots for
	append  string // for the kernel's command line
}

func (a Arch) board() (board, error) {
	switch a {
	case AMD64:
		return board{"qemu-system-x86_64", []string{"-machine", "q35", "-cpu", "Nehalem,+rdrand"}, "ttyS0", "", "", 20, ""}, nil
	case ARM64:
		return board{"qemu-system-aarch64", []string{"-machine", "virt", "-cpu", "cortex-a53"}, "ttyAMA0", "", "", 20, ""}, nil
	case ARMv7:
		// Debian's kernel without LPAE sees no PCI bus above 4 GiB.
		return board{"qemu-system-arm", []string{"-machine", "virt,highmem=off", "-cpu", "cortex-a7"}, "ttyAMA0", "", "", 20, ""}, nil
	case MIPSLE:
		// Its kernel knows the interrupts of four slots, which serial port and network cards take, and of the two where
		// the board has a network card and a sound card of its own, which this one has not. Why it ticks: see init.sh.
		return board{"qemu-system-mipsel", []string{"-machine", "malta", "-cpu", "24Kf"}, "ttyS0", ",addr=0x0b", ",addr=0x0c", 3, " nohz=off highres=off"}, nil
	}
	return board{}, fmt.Errorf("there is no guest of architecture %q", a)
}

// Options describe a guest. The zero value of a field is its default.
type Options struct {
	Name     string            // in logs, and the guest's host name; default: the architecture
	Arch     Arch              // default: amd64
	MemoryMB int               // default: 256
	CPUs     int               // default: 1
	DiskMB   int               // an ext4 disk at /data, the only thing that outlives Kill; default: none
	Disk     string            // an image that is its disk instead; what is written to it is gone with the power
	Steady   bool              // its clock counts its instructions, 1e9 a second, and idles as this machine's does; one CPU only
	NICs     []NIC             // in their order; mipsle has slots for three
	Files    map[string]string // path in the guest -> file of this machine, whose permissions are kept
	Append   string            // additions to the kernel's command line
	Count    bool              // count instructions; one CPU only
}

func (o Options) withDefaults() Options {
	if o.Arch == "" {
		o.Arch = AMD64
	}
	if o.Name == "" {
		o.Name = string(o.Arch)
	}
	o.MemoryMB = max(o.MemoryMB, 0)
	if o.MemoryMB == 0 {
		o.MemoryMB = 256
	}
	o.CPUs = max(o.CPUs, 1)
	return o
}

// NIC is a network card of a guest. Its other end is a tap device in a named network namespace: an interface of that
// namespace, or a port of a bridge there. It is made by Boot and removed with the guest, and outlives Kill.
type NIC struct {
	Name    string // in the guest, where it is up and has no address
	Netns   string // name of the namespace of the other end
	Tap     string // name of the other end, up and without address
	Bridge  string // bridge of that namespace that the other end joins; default: none
	MAC     string // in the guest; default: made of the other end's names
	Offload bool   // checksums and segmentation are left to the card; default: it has a wire's packets, as a router's
}

// mac is the card's address in the guest.
func (n NIC) mac() string {
	if n.MAC != "" {
		return n.MAC
	}
	sum := sha256.Sum256([]byte(n.Netns + "/" + n.Tap))
	sum[0] = sum[0]&^3 | 2 // of one station, made up here
	return net.HardwareAddr(sum[:6]).String()
}

// where are the files of one run of QEMU, and the open files it inherits, by their numbers there.
type where struct {
	kernel, initrd, console, disk string
	plugin, count                 string // empty: nothing is counted
	agent                         int
	taps                          []int
}

// arguments are QEMU's, without the program.
func (o Options) arguments(b board, w where) []string {
	args := append([]string{"-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-m", strconv.Itoa(o.MemoryMB), "-smp", strconv.Itoa(o.CPUs), "-kernel", w.kernel, "-initrd", w.initrd,
		// A panic ends QEMU. What guards against other tenants of a CPU is dear to emulate, and no router has it; nor
		// does OpenWrt's kernel clear all memory that it allocates, as Debian's does.
		"-append", "console=" + b.console + " panic=-1 mitigations=off init_on_alloc=0 loglevel=5" + b.append + " " + o.Append,
		"-chardev", "file,id=console,append=on,path=" + w.console, "-serial", "chardev:console",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=agent,fd=" + strconv.Itoa(w.agent),
		"-device", "virtserialport,chardev=agent,name=subnetd.agent",
		"-device", "virtio-rng-pci" + b.rng}, b.machine...)
	for i, n := range o.NICs {
		id := "nic" + strconv.Itoa(i)
		args = append(args, "-netdev", "tap,id="+id+",fd="+strconv.Itoa(w.taps[i]),
			"-device", "virtio-net-pci,romfile=,netdev="+id+",mac="+n.mac())
	}
	if o.Steady {
		args = append(args, "-icount", "shift=0")
	}
	if o.Disk != "" {
		args = append(args, "-drive", "if=none,id=disk,format=raw,snapshot=on,file="+o.Disk, "-device", "virtio-blk-pci,drive=disk"+b.disk)
	}
	if w.disk != "" {
		// What the guest has synced is in this machine's memory, which stays when QEMU is killed.
		args = append(args, "-drive", "if=none,id=disk,format=raw,cache=unsafe,file="+w.disk, "-device", "virtio-blk-pci,drive=disk"+b.disk)
	}
	if w.plugin != "" {
		args = append(args, "-plugin", w.plugin+",count="+w.count)
	}
	return slices.Clip(args)
}
