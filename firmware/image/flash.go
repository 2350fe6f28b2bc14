package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"subnetd/firmware/disk"
	"subnetd/firmware/slots"
)

// Sizes of the parts of a disk, bytes. A slot has room for twice of what a root is now.
const (
	bootSize = 64 << 20
	slotSize = 64 << 20
	dataSize = 16 << 20 // until the first boot, which takes all that the disk has
)

// table is the partition table of every board.
func table() [4]disk.Partition {
	at := int64(disk.FirstPartition)
	next := func(kind byte, size int64) disk.Partition {
		at += size
		return disk.Partition{Type: kind, Begin: at - size, Size: size}
	}
	t := [4]disk.Partition{next(disk.TypeFAT, bootSize), next(disk.TypeLinux, slotSize), next(disk.TypeLinux, slotSize), next(disk.TypeLinux, dataSize)}
	t[0].Bootable = true
	return t
}

// flash makes what a card or disk is flashed with. The data's part is zeroes, so that nothing that was on the card before
// is taken for data.
func flash(p places) (err error) {
	f, err := os.Create(p.in("disk"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	t := table()
	if err := f.Truncate(t[3].Begin + t[3].Size); err != nil {
		return err
	}
	size, err := place(f, p.in("root"), t[disk.RootA-1])
	if err != nil {
		return err
	}
	record := slots.New(uint64(size)).Encode()
	if _, err := f.WriteAt(record[:], disk.RecordAt[0]); err != nil {
		return err
	}
	if _, err := place(f, p.in("boot"), t[disk.Boot-1]); err != nil {
		return err
	}
	first := make([]byte, disk.Sector)
	if p.board.grub {
		if first, err = grub(p, f); err != nil {
			return err
		}
	}
	if err := disk.PutTable(first, t); err != nil {
		return err
	}
	_, err = f.WriteAt(first, 0)
	return err
}

// place copies a file into a partition, and gives its size. Zeroes stay a hole.
func place(f *os.File, from string, to disk.Partition) (int64, error) {
	in, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return 0, err
	}
	if info.Size() > to.Size {
		return 0, fmt.Errorf("%s has %d bytes, and its partition %d", filepath.Base(from), info.Size(), to.Size)
	}
	var at int64
	for b := make([]byte, 64<<10); ; {
		n, err := io.ReadFull(in, b)
		if !zero(b[:n]) {
			if _, err := f.WriteAt(b[:n], to.Begin+at); err != nil {
				return 0, err
			}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return info.Size(), nil
		}
		if err != nil {
			return 0, err
		}
	}
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// bootPartition makes the FAT file system with the kernel, stage1 and what the board's firmware loads.
func bootPartition(p places) error {
	_ = os.Remove(p.in("boot"))
	if err := run("mkfs.fat", "--invariant", "-F", "32", "-n", "BOOT", "-C", p.in("boot"), strconv.Itoa(bootSize>>10)); err != nil {
		return err
	}
	files := []string{p.in("vmlinuz"), p.in("initrd"), p.in("cmdline.txt")}
	for _, pattern := range p.board.files {
		found, err := filepath.Glob(filepath.Join(p.parts, "boot", pattern))
		if err != nil {
			return err
		}
		files = append(files, found...)
	}
	if p.board.config != "" {
		if err := os.WriteFile(p.in("config.txt"), []byte(p.board.config), 0o644); err != nil {
			return err
		}
		files = append(files, p.in("config.txt"))
	}
	return run("env", append(append([]string{"SOURCE_DATE_EPOCH=" + strconv.FormatInt(p.epoch, 10), "mcopy", "-i", p.in("boot")}, files...), "::")...)
}

// grub writes GRUB's core behind the partition table, and gives the first sector that loads it.
func grub(p places, f *os.File) ([]byte, error) {
	modules := filepath.Join(p.parts, "boot", "i386-pc")
	config := "set root=(hd0,msdos1)\nlinux /vmlinuz " + p.cmdline() + "\ninitrd /initrd\nboot\n"
	if err := os.WriteFile(p.in("grub.cfg"), []byte(config), 0o644); err != nil {
		return nil, err
	}
	if err := run("grub-mkimage", "-O", "i386-pc", "-d", modules, "-p", "/", "-c", p.in("grub.cfg"), "-o", p.in("grub.core"),
		"biosdisk", "part_msdos", "fat", "linux", "boot", "reboot"); err != nil {
		return nil, err
	}
	core, err := os.ReadFile(p.in("grub.core"))
	if err != nil {
		return nil, err
	}
	if len(core) > int(disk.RecordAt[0])-disk.Sector {
		return nil, fmt.Errorf("GRUB has %d bytes and reaches into the record of the slots", len(core))
	}
	// As built it is loaded from the second sector on.
	if _, err := f.WriteAt(core, disk.Sector); err != nil {
		return nil, err
	}
	first, err := os.ReadFile(filepath.Join(modules, "boot.img"))
	if err != nil || len(first) != disk.Sector {
		return nil, fmt.Errorf("GRUB's first sector has %d bytes: %w", len(first), err)
	}
	return first, nil
}
