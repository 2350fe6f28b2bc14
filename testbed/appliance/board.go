// Package appliance boots the images that firmware/image makes, as a home's router: a machine in QEMU with a disk, whose WAN
// is on the internet of a lab and whose LAN ends in one of its hosts. Images and what they boot from are those of
// `make image`, in bin/image/BOARD or in the folder that SUBNETD_IMAGES names.
//
// Power is cut by killing QEMU. What the guest has written to its disk is then in this machine's memory, as on a disk with a
// cache that keeps what it has said to have; what the guest's kernel still held is lost.
package appliance

import (
	"os"
	"path/filepath"
	"testing"
)

// Board is a machine that an image is for.
type Board string

// The boards.
const (
	X86   Board = "x86_64"
	Malta Board = "qemu-malta"
	ARMv7 Board = "qemu-armv7"
	ARM64 Board = "qemu-arm64"
	RPi   Board = "rpi"
)

// machine is how QEMU is told to be a board.
type machine struct {
	program string
	args    []string
	memory  string   // MB
	disk    []string // how the disk is plugged in; the drive is called "disk"
	second  string   // the same for a second one, called "image"
	card    string   // the kind of its network cards
	cards   int      // how many of them QEMU's board can have
	console []string // which of its serial ports is the console
	loader  bool     // the image's own boot loader is run; otherwise QEMU loads the kernel and the initramfs
	dtb     string   // device tree that QEMU loads, too
}

func (b Board) machine() machine {
	m := machine{memory: "256", disk: []string{"-device", "virtio-blk-pci,drive=disk"}, second: "virtio-blk-pci,drive=image",
		card: "virtio-net-pci,romfile=", cards: 2, console: []string{"-serial", "chardev:console"}}
	switch b {
	case Malta:
		// Its kernel knows the interrupts of few slots: see package qemu.
		m.program, m.args = "qemu-system-mipsel", []string{"-machine", "malta", "-cpu", "24Kf", "-device", "virtio-rng-pci,addr=0x0b"}
		m.disk[1] += ",addr=0x0c"
	case ARMv7:
		m.program, m.args = "qemu-system-arm", []string{"-machine", "virt,highmem=off", "-cpu", "cortex-a7", "-device", "virtio-rng-pci"}
	case ARM64:
		m.program, m.args = "qemu-system-aarch64", []string{"-machine", "virt", "-cpu", "cortex-a53", "-device", "virtio-rng-pci"}
	case RPi:
		// Of its network QEMU has what is on USB: one card. The console is the second serial port.
		m.program, m.args, m.memory = "qemu-system-aarch64", []string{"-machine", "raspi3b"}, "1024"
		m.disk, m.card, m.cards = nil, "usb-net", 1
		m.console = []string{"-serial", "null", "-serial", "chardev:console"}
		m.dtb = "bcm2837-rpi-3-b.dtb"
	default:
		m.program, m.args = "qemu-system-x86_64", []string{"-machine", "q35,sata=off,usb=off", "-cpu", "Nehalem,+rdrand", "-device", "virtio-rng-pci"}
		m.loader = true
	}
	return m
}

// File is a file of a board's image. Without an image the test is skipped for a visitor and failed when CI=true.
func (b Board) File(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv("SUBNETD_IMAGES")
	if dir == "" {
		dir = filepath.Join("..", "..", "bin", "image")
	}
	path := filepath.Join(dir, string(b), name)
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v: run make image BOARD=%s", err, b)
		}
		t.Skipf("%v: run make image BOARD=%s", err, b)
	}
	return path
}
