package appliance_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestUpdate: uploads that are refused, an upload that a power cut ends, systems that do not come up, and one that does.
func TestUpdate(t *testing.T) {
	good, err := os.ReadFile(imageOf(t, "update"))
	if err != nil {
		t.Fatal(err)
	}
	b := bench(t)
	all := b.offer(good, withInit(t, good, ""), withInit(t, good, "#!/bin/busybox sh\nexit 1\n"))
	whole, noInit, dies := all[0], all[1], all[2]
	b.Power()
	t.Logf("up %v after the power came on", b.Up().Round(time.Second))

	t.Run("Refused", func(t *testing.T) {
		b.refused(whole.read+" | appliance update "+strings.Repeat("0", 64), "SHA-256")
		b.refused(whole.read+" | head -c 5000000 | appliance update "+whole.sum, "ends after")
		b.refused(whole.read+" | tail -c +4097 | appliance update "+whole.sum, "no image")
	})
	t.Run("CutShort", func(t *testing.T) {
		b.must("(" + whole.install() + ") & until [ $(awk '$3 == \"vda\" {print $10}' /proc/diskstats) -gt $(($(cat /run/before) + 4000)) ]; do :; done")
		b.Cut()
		b.Power()
		b.Wait("stage1: slot a")
		b.Up()
		b.wantSlot("a", "")
	})
	for what, c := range map[string]offered{"NoInit": noInit, "InitDies": dies} {
		t.Run(what, func(t *testing.T) {
			b.must(c.install())
			b.reboot()
			b.Wait("tried once")
			b.Wait("stage1: slot a")
			b.Wait("the system in slot b did not come up")
			t.Logf("up again %v after the power came on", b.Up().Round(time.Second))
			b.wantSlot("a", "slot b did not come up")
		})
	}
	t.Run("Good", func(t *testing.T) {
		b.must(whole.install())
		b.reboot()
		b.Wait("tried once")
		b.Up()
		b.wantSlot("b", "")
		b.reboot()
		b.Wait("stage1: slot b")
		b.Up()
		b.wantSlot("b", "")
	})
}

// offered is one of the images on the second disk.
type offered struct {
	read string // the command that reads it
	sum  string
}

func (o offered) install() string {
	return "awk '$3 == \"vda\" {print $10}' /proc/diskstats >/run/before; " + o.read + " | appliance update " + o.sum
}

// offer puts images on the second disk.
func (b *testBox) offer(images ...[]byte) []offered {
	b.t.Helper()
	var disk []byte
	var all []offered
	for _, image := range images {
		s := sha256.Sum256(image)
		all = append(all, offered{fmt.Sprintf("dd if=/dev/vdb bs=4096 skip=%d count=%d 2>/dev/null", len(disk)/4096, len(image)/4096), hex.EncodeToString(s[:])})
		disk = append(disk, image...)
	}
	path := filepath.Join(b.t.TempDir(), "images")
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		b.t.Fatal(err)
	}
	b.Insert(path)
	return all
}

// reboot reboots the box. The shell ends with its system.
func (b *testBox) reboot() {
	b.t.Helper()
	if err := b.Console.Type("reboot"); err != nil {
		b.t.Fatal(err)
	}
}

// refused runs an update that must say why it is none.
func (b *testBox) refused(line, why string) {
	b.t.Helper()
	out, err := b.Console.Run(b.t.Context(), line)
	if err == nil || !strings.Contains(out, why) {
		b.t.Errorf("%s: %v, want %q", line, err, why)
	}
}

// wantSlot wants the running system to be that of a slot, confirmed, and the owner to be told what he must know, or nothing.
func (b *testBox) wantSlot(slot, note string) {
	b.t.Helper()
	out := b.must("cat /run/appliance/boot.json")
	if !strings.Contains(out, fmt.Sprintf("%q:%q", "slot", slot)) || !strings.Contains(out, note) || note == "" && !strings.Contains(out, `"note":""`) {
		b.t.Errorf("slot %s, %q: %s", slot, note, out)
	}
}

// withInit is an image whose init is another script, or that has none, and the head of a true one.
func withInit(t *testing.T, good []byte, init string) []byte {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"proc", "sys", "dev", "run", "bin", "sbin"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	from := filepath.Join(t.TempDir(), "root")
	if out, err := exec.Command("unsquashfs", "-q", "-n", "-d", from, imageOf(t, "root"), "sbin/busybox").CombinedOutput(); err != nil {
		t.Fatalf("unsquashfs: %v: %s", err, out)
	}
	if err := os.Rename(filepath.Join(from, "sbin/busybox"), filepath.Join(dir, "bin/busybox")); err != nil {
		t.Fatal(err)
	}
	if init != "" {
		if err := os.WriteFile(filepath.Join(dir, "sbin/init"), []byte(init), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(t.TempDir(), "root")
	if text, err := exec.Command("mksquashfs", dir, out, "-noappend", "-quiet", "-no-progress", "-comp", "zstd").CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs: %v: %s", err, text)
	}
	root, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	head := bytes.Clone(good[:4096])
	text, _, _ := bytes.Cut(head, []byte("size "))
	clear(head[len(text):])
	copy(head[len(text):], fmt.Sprintf("size %d\n", len(root)))
	return append(head, root...)
}
