// Image makes what the appliance is flashed and updated with, without root and without mounting anything. The same commit
// gives the same bytes.
//
//	disk     for a card or a disk: boot partition, record of the slots, a root in slot A
//	update   the root with a head: what `appliance update` takes
//	vmlinuz, initrd, cmdline.txt, *.dtb    as they are in the boot partition, for QEMU
package main

import (
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"subnetd/firmware/update"
)

// places is what an image is made of, and where it goes.
type places struct {
	board                      board
	parts                      string // of parts.sh
	subnetd, appliance, stage1 string // our programs
	kernel, version            string
	epoch                      int64 // Unix time of all files
	out                        string
	pack                       bool
}

func (p places) in(name string) string { return filepath.Join(p.out, name) }

func (p places) cmdline() string { return p.board.cmdline + always }

func main() {
	var p places
	name := flag.String("board", "", "the board")
	flag.StringVar(&p.parts, "parts", "", "folder that parts.sh has made")
	flag.StringVar(&p.subnetd, "subnetd", "", "the daemon")
	flag.StringVar(&p.appliance, "appliance", "", "the appliance's program")
	flag.StringVar(&p.stage1, "stage1", "", "the initramfs's program")
	flag.StringVar(&p.version, "version", "", "of the image")
	flag.Int64Var(&p.epoch, "epoch", 0, "Unix time of all files")
	flag.StringVar(&p.out, "out", "", "folder for what is made")
	flag.BoolVar(&p.pack, "pack", false, "make disk.xz, too")
	flag.Parse()
	if err := build(p, *name); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func build(p places, name string) error {
	known := ""
	for _, b := range boards() {
		if b.name == name {
			p.board = b
		}
		known += " " + b.name
	}
	if p.board.name == "" {
		return fmt.Errorf("there is no board %q; there are%s", name, known)
	}
	found, err := filepath.Glob(filepath.Join(p.parts, "root/lib/modules/*"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("%s has modules of %d kernels: %w", p.parts, len(found), err)
	}
	p.kernel = filepath.Base(found[0])
	if err := os.MkdirAll(p.out, 0o755); err != nil {
		return err
	}
	for _, step := range []func(places) error{kernel, root, bootPartition, updateFile, flash} {
		if err := step(p); err != nil {
			return err
		}
	}
	return tell(p)
}

// kernel puts the kernel, its command line, the initramfs and the device tree beside the image.
func kernel(p places) error {
	vmlinuz, err := os.ReadFile(filepath.Join(p.parts, "vmlinuz"))
	if err != nil {
		return err
	}
	if p.board.dtb != "" {
		tree, err := os.ReadFile(filepath.Join(p.parts, "boot", p.board.dtb))
		if err != nil {
			return err
		}
		if err := os.WriteFile(p.in(p.board.dtb), tree, 0o644); err != nil {
			return err
		}
	}
	cpio, err := initrd(p)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(p.in("vmlinuz"), vmlinuz, 0o644), os.WriteFile(p.in("initrd"), cpio, 0o644),
		os.WriteFile(p.in("cmdline.txt"), []byte(p.cmdline()+"\n"), 0o644))
}

// updateFile writes the root behind a head, and its SHA-256 as sha256sum does.
func updateFile(p places) (err error) {
	body, err := os.ReadFile(p.in("root"))
	if err != nil {
		return err
	}
	head, err := update.Head{Board: p.board.name, Kernel: p.kernel, Version: p.version, Size: int64(len(body))}.Encode()
	if err != nil {
		return err
	}
	sum := sha256.New()
	f, err := os.Create(p.in("update"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.MultiWriter(f, sum).Write(append(head, body...)); err != nil {
		return err
	}
	return os.WriteFile(p.in("update.sha256"), fmt.Appendf(nil, "%x  update\n", sum.Sum(nil)), 0o644)
}

// tell prints the sizes.
func tell(p places) error {
	names := []string{"vmlinuz", "initrd", "root"}
	if p.pack {
		if err := run("xz", "-3", "-k", "-f", p.in("disk")); err != nil {
			return err
		}
		names = append(names, "disk.xz")
	}
	for _, name := range names {
		info, err := os.Stat(p.in(name))
		if err != nil {
			return err
		}
		fmt.Printf("%-12s %-8s %6.1f MB\n", p.board.name, name, float64(info.Size())/1e6)
	}
	return nil
}
