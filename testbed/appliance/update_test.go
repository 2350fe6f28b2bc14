package appliance_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// TestUpdate: by the page, images that are refused, uploads that end too early, systems that do not come up, and one that does.
func TestUpdate(t *testing.T) {
	good, err := os.ReadFile(imageOf(t, "update"))
	if err != nil {
		t.Fatal(err)
	}
	b := bench(t)
	b.Power()
	t.Logf("up %v after the power came on", b.Up().Round(time.Second))
	page := b.page()

	t.Run("Refused", func(t *testing.T) {
		rpi, larger := headed(t, good, "board", "rpi"), headed(t, good, "size", strconv.Itoa(1<<30))
		page.refused("SHA-256", strings.Repeat("0", 64), good)
		page.refused("ends after", sumOf(good[:5_000_000]), good[:5_000_000])
		page.refused("no image", sumOf(good[4096:]), good[4096:])
		page.refused("for the board rpi, and here is x86_64", sumOf(rpi), rpi)
		page.refused("and a slot", sumOf(larger), larger)
		if s := page.standing(); s.System.Waiting || s.told() != "" {
			t.Errorf("%+v", s)
		}
	})
	t.Run("Interrupted", func(t *testing.T) {
		answer, more := page.begin(good, 5_000_000)
		page.refused("another update is under way", sumOf(good), good)
		_ = more.CloseWithError(net.ErrClosed) // of a pipe in memory
		if err := <-answer; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		netns.Eventually(t, time.Minute, "it is given up", func() error {
			if s := page.standing(); s.System.Update != nil || s.System.Waiting {
				return fmt.Errorf("%+v", s.System)
			}
			return nil
		})
	})
	t.Run("PowerCut", func(t *testing.T) {
		answer, more := page.begin(good, 5_000_000)
		b.Cut()
		_ = more.CloseWithError(net.ErrClosed)
		if err := <-answer; err == nil {
			t.Error("a box without power answers")
		}
		b.Power()
		b.Wait("stage1: slot a")
		b.Up()
		b.wantSlot("a", "")
	})
	for what, image := range map[string][]byte{"NoInit": withInit(t, good, ""), "InitDies": withInit(t, good, "#!/bin/busybox sh\nexit 1\n")} {
		t.Run(what, func(t *testing.T) {
			b.page().install(image)
			b.Wait("tried once")
			b.Wait("stage1: slot a")
			b.Wait("the system in slot b did not come up")
			t.Logf("up again %v after the power came on", b.Up().Round(time.Second))
			b.wantSlot("a", "the system in slot b did not come up, so that slot a runs again")
		})
	}
	t.Run("Good", func(t *testing.T) {
		b.page().install(good)
		b.Wait("tried once")
		b.Up()
		b.wantSlot("b", "")
		b.reboot()
		b.Wait("stage1: slot b")
		b.Up()
		b.wantSlot("b", "")
	})
}

// reboot reboots the box. The shell ends with its system.
func (b *testBox) reboot() {
	b.t.Helper()
	if err := b.Console.Type("reboot"); err != nil {
		b.t.Fatal(err)
	}
}

// wantSlot wants the running system to be that of a slot, confirmed, and the owner to be told what he must know, or nothing: by
// the page, and on the box.
func (b *testBox) wantSlot(slot, note string) {
	b.t.Helper()
	if out := b.must("cat /run/appliance/boot.json"); !strings.Contains(out, fmt.Sprintf("%q:%q", "slot", slot)) {
		b.t.Errorf("want slot %s: %s", slot, out)
	}
	page := b.page()
	netns.Eventually(b.t, time.Minute, "the daemon knows how the system stands", func() error {
		if page.standing().System.Version == "" {
			return errors.New("it does not")
		}
		return nil
	})
	if s := page.standing(); s.told() != note || s.System.Note != note || s.System.Waiting {
		b.t.Errorf("%+v, want %q", s, note)
	}
	if out := b.must("subnetd status"); note != "" && !strings.Contains(out, "! "+note) {
		b.t.Errorf("subnetd status says nothing of it: %s", out)
	}
}

// withInit is an image whose init is another script, or that has none, and the head of a true one; of the true root it has what
// these patterns say.
func withInit(t *testing.T, good []byte, init string, also ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	unsquash := append([]string{"-q", "-n", "-f", "-d", dir, imageOf(t, "root"), "sbin/busybox"}, also...)
	if out, err := exec.Command("unsquashfs", unsquash...).CombinedOutput(); err != nil {
		t.Fatalf("unsquashfs: %v: %s", err, out)
	}
	for _, name := range []string{"proc", "sys", "dev", "run", "bin"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(filepath.Join(dir, "sbin/busybox"), filepath.Join(dir, "bin/busybox")); err != nil {
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
	return append(headed(t, good, "size", strconv.Itoa(len(root)))[:4096:4096], root...)
}
