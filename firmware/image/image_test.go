package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"subnetd/firmware/disk"
	"subnetd/firmware/slots"
)

// parts makes a folder as parts.sh does, with next to nothing in it.
func parts(t *testing.T) places {
	t.Helper()
	dir := t.TempDir()
	modules := "parts/root/lib/modules/6.1/"
	for name, text := range map[string]string{
		"parts/vmlinuz": "a kernel",
		"parts/early":   "kernel/drivers/block/virtio_blk.ko\nkernel/fs/squashfs/squashfs.ko\n",
		modules + "kernel/drivers/block/virtio_blk.ko": "one",
		modules + "kernel/fs/squashfs/squashfs.ko":     "two",
		modules + "kernel/net/tun.ko":                  "three",
		modules + "modules.dep":                        "kernel/drivers/block/virtio_blk.ko:\nkernel/fs/squashfs/squashfs.ko:\nkernel/net/tun.ko:\n",
		modules + "modules.alias":                      "# by depmod\nalias virtio:d00000002v* virtio_blk\nalias devname:net/tun tun\n",
		modules + "modules.builtin":                    "kernel/fs/fat/fat.ko\n",
		"parts/root/sbin/e2fsck":                       "a program",
		"parts/boot/start.elf":                         "firmware",
		"parts/boot/bcm2837-rpi-3-b.dtb":               "a device tree",
		"subnetd":                                      "the daemon",
		"appliance":                                    "the appliance",
		"stage1":                                       "the first process",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	return places{parts: in("parts"), subnetd: in("subnetd"), appliance: in("appliance"), stage1: in("stage1"), version: "v1", epoch: 1_700_000_000, out: in("out")}
}

// needTools ends a test where what makes file systems is missing: a visitor's is skipped.
func needTools(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"mksquashfs", "mkfs.fat", "mcopy", "unsquashfs"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

// TestImage: what is made is what strangers read, and the same each time.
func TestImage(t *testing.T) {
	needTools(t)
	p := parts(t)
	if err := build(p, "rpi"); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(p.in("disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := read(t, f, 0, disk.FirstPartition)
	table, err := disk.Table(head)
	if err != nil {
		t.Fatal(err)
	}
	r, at, ok := slots.Newest([2][]byte{head[disk.RecordAt[0]:], head[disk.RecordAt[1]:]})
	root, err := os.ReadFile(p.in("root"))
	if !ok || at != 0 || err != nil || r != slots.New(uint64(len(root))) {
		t.Errorf("record %+v, %v, %v", r, ok, err)
	}
	if !bytes.Equal(read(t, f, table[disk.RootA-1].Begin, int64(len(root))), root) {
		t.Error("slot a has another root")
	}
	if d := table[disk.Data-1]; !zero(read(t, f, d.Begin, d.Size)) {
		t.Error("the data's part is not empty")
	}
	boot := strings.Fields(output(t, "mdir", "-b", "-i", p.in("boot"), "::"))
	slices.Sort(boot)
	if got := strings.Join(boot, " "); got != "::/bcm2837-rpi-3-b.dtb ::/cmdline.txt ::/config.txt ::/initrd ::/start.elf ::/vmlinuz" {
		t.Error("boot partition:", got)
	}
	list := output(t, "unsquashfs", "-ll", "-d", "", p.in("root"))
	for _, want := range []string{"/sbin/init -> ../usr/bin/appliance", "-rwxr-xr-x root/root", "/lib/modules/6.1/kernel/net/tun.ko", "/etc/appliance/board", "/data"} {
		if !strings.Contains(list, want) {
			t.Errorf("no %q in the root:\n%s", want, list)
		}
	}
	first := sums(t, p)
	p.out += "-again"
	if err := build(p, "rpi"); err != nil {
		t.Fatal(err)
	}
	if again := sums(t, p); again != first {
		t.Errorf("made twice:\n%s\nand\n%s", first, again)
	}
}

func read(t *testing.T, f *os.File, at, size int64) []byte {
	t.Helper()
	b := make([]byte, size)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	return b
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return string(out)
}

// sums are the digests of what was made, without the folder's name.
func sums(t *testing.T, p places) string {
	t.Helper()
	return output(t, "sh", "-c", "cd "+p.out+" && sha256sum boot update initrd && head -c 2M disk | sha256sum")
}

// TestInitrd: the kernel's format, with stage1 and only those modules that find a disk.
func TestInitrd(t *testing.T) {
	p := parts(t)
	p.kernel = "6.1"
	made, err := initrd(p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("cpio"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	cmd := exec.Command("cpio", "-t", "--quiet")
	cmd.Stdin = bytes.NewReader(made)
	out, err := cmd.Output()
	want := "dev proc sys run root init lib lib/modules lib/modules/6.1 lib/modules/6.1/kernel lib/modules/6.1/kernel/drivers " +
		"lib/modules/6.1/kernel/drivers/block lib/modules/6.1/kernel/drivers/block/virtio_blk.ko lib/modules/6.1/kernel/fs " +
		"lib/modules/6.1/kernel/fs/squashfs lib/modules/6.1/kernel/fs/squashfs/squashfs.ko lib/modules/6.1/modules.dep " +
		"lib/modules/6.1/modules.alias lib/modules/6.1/modules.builtin"
	if got := strings.Join(strings.Fields(string(out)), " "); got != want || err != nil {
		t.Errorf("%v\n%s\nwant\n%s", err, got, want)
	}
	if bytes.Contains(made, []byte("tun")) {
		t.Error("an index names modules that are not there")
	}
}

func TestBoards(t *testing.T) {
	if err := build(places{}, "toaster"); err == nil || !strings.Contains(err.Error(), "qemu-malta qemu-armv7 qemu-arm64 x86_64 rpi") {
		t.Error(err)
	}
}
