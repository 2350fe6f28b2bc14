// Stage1 is the first process of the appliance, in the initramfs: it finds the disk, lets the record of the slots say which
// root it is to be, pays for a trial, and becomes that root's /sbin/init. It lies on the boot partition and no update ever
// changes it, so it knows nothing of what the root does.
//
// What it cannot do ends in a panic of the kernel, whose command line has panic=5: another boot, on the other slot if this one was
// on trial.
//
// The kernel's command line may have appliance.disk=/dev/sdb, where the disk is not to be searched for.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"subnetd/firmware/disk"
	"subnetd/firmware/modules"
	"subnetd/firmware/slots"
)

const (
	newRoot   = "/root"
	diskLimit = 60 * time.Second // for a disk on USB that takes its time
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "stage1 is for the first process of a machine") // it removes files
		os.Exit(2)
	}
	err := boot()
	fmt.Println("stage1:", err) // boot does not return without an error
	os.Exit(1)
}

func boot() error {
	if err := mounts(); err != nil {
		return err
	}
	tameMalta()
	dev, err := findDisk()
	if err != nil {
		return err
	}
	booted, err := choose(dev)
	if err != nil {
		return err
	}
	fmt.Printf("stage1: slot %s of %s\n", booted.Slot, dev)
	if err := disk.Grow(dev); err != nil {
		fmt.Println("stage1: the data keeps its size:", err)
	}
	if err := leaveWord(booted); err != nil {
		return err
	}
	return become(newRoot)
}

// mounts are what every program needs; the root gets them.
func mounts() error {
	for _, m := range []struct{ kind, at, options string }{
		{"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"devtmpfs", "/dev", "mode=0755"}, {"tmpfs", "/run", "mode=0755,size=32m"}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, unix.MS_NOSUID, m.options); err != nil {
			return fmt.Errorf("mounting %s: %w", m.at, err)
		}
	}
	return nil
}

// findDisk loads what the machine's devices ask for, and again as they come, until a disk has the record of the slots.
func findDisk() (string, error) {
	all, err := modules.Running()
	if err != nil {
		return "", err
	}
	events, err := listen()
	if err != nil {
		return "", err
	}
	defer unix.Close(events)
	if err := all.Load("squashfs"); err != nil {
		return "", err
	}
	for deadline := time.Now().Add(diskLimit); ; {
		if err := all.Coldplug(); err != nil {
			fmt.Println("stage1:", err)
		}
		if dev := look(); dev != "" {
			return dev, nil
		}
		if !wait(events, time.Until(deadline)) {
			return "", fmt.Errorf("no disk with a record of the slots has come within %v", diskLimit)
		}
	}
}

// listen opens a socket on which the kernel says that a device has come.
func listen() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return -1, err
	}
	return fd, unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1})
}

// wait waits until something of the devices has changed, and takes all that is known of it off the socket.
func wait(events int, limit time.Duration) bool {
	poll := []unix.PollFd{{Fd: int32(events), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, int(limit.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n <= 0 || err != nil {
			return false
		}
		break
	}
	for buf := make([]byte, 4096); ; {
		if _, _, err := unix.Recvfrom(events, buf, unix.MSG_DONTWAIT); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return true
		}
	}
}

// look gives the disk that the command line names, or the first that has a record; empty: it is not there yet.
func look() string {
	cmdline, _ := os.ReadFile("/proc/cmdline")
	wanted := ""
	for _, word := range strings.Fields(string(cmdline)) {
		if dev, ok := strings.CutPrefix(word, "appliance.disk="); ok {
			wanted = dev
		}
	}
	found, _ := filepath.Glob("/sys/block/*")
	for _, sys := range found {
		dev := "/dev/" + strings.ReplaceAll(filepath.Base(sys), "!", "/")
		if wanted != "" && dev != wanted {
			continue
		}
		if r, err := disk.OpenRecords(dev); err == nil {
			_ = r.Close() // only read
			return dev
		}
	}
	return ""
}

// choose mounts the root that the record of the slots says, or the other one if that cannot be mounted.
func choose(dev string) (b disk.Booted, err error) {
	r, err := disk.OpenRecords(dev)
	if err != nil {
		return b, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	for range 2 {
		slot, next, err := r.Present().Boot()
		if err != nil {
			return b, err
		}
		if err := r.Save(next); err != nil {
			return b, err
		}
		err = unix.Mount(disk.PartitionPath(dev, disk.RootPartition(slot)), newRoot, "squashfs", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID, "")
		if err == nil {
			trial := next.Slots[slot].State == slots.Trial
			if trial {
				guardTrial()
			}
			return disk.Booted{Disk: dev, Slot: slot.String(), Data: disk.PartitionPath(dev, disk.Data), Trial: trial, Note: next.Note(slot)}, nil
		}
		fmt.Printf("stage1: slot %s cannot be mounted: %v\n", slot, err)
		if err := r.Save(next.Broken(slot)); err != nil {
			return b, err
		}
	}
	return b, slots.ErrNone
}

// guardTrial starts a watchdog, the kernel's own where the board has none yet, which the root on trial must take over: one that
// hangs before is ended by it.
func guardTrial() {
	fmt.Println("stage1: this system is tried once")
	all, err := modules.Below(filepath.Join(newRoot, "lib/modules"))
	if err == nil {
		err = all.LoadWith("softdog", "soft_margin=120")
	}
	if err == nil {
		err = startWatchdog()
	}
	if err != nil {
		fmt.Println("stage1: without a watchdog:", err)
	}
}

// startWatchdog opens the watchdog and leaves it running: it is not told that it is closed on purpose.
func startWatchdog() error {
	f, err := os.OpenFile("/dev/watchdog", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// leaveWord tells the root what was chosen.
func leaveWord(b disk.Booted) error {
	text, err := json.Marshal(b)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(disk.BootFile), 0o755); err != nil {
		return err
	}
	return os.WriteFile(disk.BootFile, append(text, '\n'), 0o644)
}

// become gives the root what is mounted, frees the memory of the initramfs, and goes on as the root's init.
func become(root string) error {
	for _, at := range []string{"/proc", "/sys", "/dev", "/run"} {
		if err := unix.Mount(at, root+at, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("moving %s: %w", at, err)
		}
	}
	free("/", root)
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Exec("/sbin/init", []string{"init"}, []string{"PATH=/usr/bin:/sbin", "HOME=/root"})
}

// free removes the files of the initramfs, of which the kernel would keep every byte.
func free(dir, but string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if p := filepath.Join(dir, e.Name()); p != but {
			_ = os.RemoveAll(p)
		}
	}
}
