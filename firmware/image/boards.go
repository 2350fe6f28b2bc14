package main

// board is a machine that an image is made for.
type board struct {
	name    string
	cmdline string   // of the kernel
	grub    bool     // a PC's BIOS boots it, by GRUB
	files   []string // what its firmware loads first, from the parts' boot folder
	config  string   // config.txt of the Raspberry Pi's firmware
	dtb     string   // of the parts' boot folder: the device tree with which QEMU boots it
}

// A panic is another boot, on the other slot if this one was on trial.
const always = " panic=5 loglevel=4"

// boards are all of them. Those of QEMU are booted with the kernel and the initramfs of their boot partition, as a board's
// own loader would.
func boards() []board {
	return []board{
		// The kernel ticks, since QEMU loses interrupts of its CPU's own timer: see stage1.
		{name: "qemu-malta", cmdline: "console=ttyS0 nohz=off highres=off"},
		{name: "qemu-armv7", cmdline: "console=ttyAMA0"},
		{name: "qemu-arm64", cmdline: "console=ttyAMA0"},
		{name: "x86_64", cmdline: "console=tty0 console=ttyS0,115200", grub: true},
		{name: "rpi", cmdline: "console=tty1 console=ttyS1,115200", dtb: "bcm2837-rpi-3-b.dtb", files: []string{"*.bin", "*.elf", "*.dat", "*.dtb"},
			config: "arm_64bit=1\nenable_uart=1\nupstream_kernel=1\nkernel=vmlinuz\ninitramfs initrd followkernel\n"},
	}
}
