package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// root makes the squashfs of a slot.
func root(p places) error {
	dir, err := os.MkdirTemp(p.out, ".root-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := fill(p, dir); err != nil {
		return err
	}
	_ = os.Remove(p.in("root"))
	at := strconv.FormatInt(p.epoch, 10)
	// zstd costs a tenth of xz's time in a router's CPU, and a tenth more room.
	return run("mksquashfs", dir, p.in("root"), "-noappend", "-quiet", "-no-progress", "-all-root", "-no-xattrs", "-no-exports",
		"-comp", "zstd", "-Xcompression-level", "12", "-b", "128K", "-mkfs-time", at, "-all-time", at)
}

// fill puts into a folder what the root has.
func fill(p places, dir string) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	if err := run("cp", "-a", filepath.Join(p.parts, "root")+"/.", dir); err != nil {
		return err
	}
	for _, name := range []string{"dev", "proc", "sys", "run", "data", "root", "tmp", "usr/bin", "etc/appliance"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	for name, from := range map[string]string{"usr/bin/appliance": p.appliance, "usr/bin/subnetd": p.subnetd} {
		body, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), body, 0o755); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{"board": p.board.name, "kernel": p.kernel, "version": p.version} {
		if err := os.WriteFile(filepath.Join(dir, "etc/appliance", name), []byte(text+"\n"), 0o644); err != nil {
			return err
		}
	}
	links := [][2]string{{"run", "var"}, {"/run/resolv.conf", "etc/resolv.conf"}, {"usr/bin", "bin"}, {"lib", "lib64"}, {"../../sbin/busybox", "usr/bin/sh"}}
	for _, name := range []string{"init", "modprobe", "reboot", "poweroff", "halt"} {
		links = append(links, [2]string{"../usr/bin/appliance", "sbin/" + name})
	}
	for _, l := range links {
		if err := os.Symlink(l[0], filepath.Join(dir, l[1])); err != nil {
			return err
		}
	}
	return nil
}

// run runs a program of the system; its output is an error's text.
func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}
