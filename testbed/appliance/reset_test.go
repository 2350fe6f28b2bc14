package appliance_test

import (
	"os"
	"strings"
	"testing"
	"time"
)

// TestReset: after a factory reset the box has other keys, and nothing of its owner's.
func TestReset(t *testing.T) {
	b := bench(t)
	b.Unpack()
	b.Power()
	b.Up()
	before := b.identity()
	b.must("echo mine >/data/mine; echo '# mine' >>/data/etc/subnetd/subnetd.toml; sync")
	if err := b.Console.Type("appliance reset"); err != nil {
		t.Fatal(err)
	}
	b.Wait("factory reset: all data is removed")
	b.Up()
	if now := b.identity(); now == before {
		t.Error("the keys are those of before")
	}
	if left := b.must("ls /data; cat /data/etc/subnetd/subnetd.toml"); strings.Contains(left, "mine") || strings.Contains(left, "factory-reset") {
		t.Errorf("something is left:\n%s", left)
	}
}

// TestWatchdog: a system that is tried and hangs is ended by the watchdog that stage1 has started for it.
func TestWatchdog(t *testing.T) {
	good, err := os.ReadFile(imageOf(t, "update"))
	if err != nil {
		t.Fatal(err)
	}
	b := bench(t)
	b.Unpack()
	hangs := b.offer(withInit(t, good, "#!/bin/busybox sh\nexec /bin/busybox sleep 100000\n",
		"lib/modules/*/modules.*", "lib/modules/*/kernel/drivers/watchdog/*"))[0]
	b.Power()
	b.Up()
	b.must(hangs.read + " | appliance update " + hangs.sum)
	b.reboot()
	b.Wait("this system is tried once")
	tried := time.Now()
	b.Wait("stage1: slot a")
	t.Logf("the system before is back %v after the trial began", time.Since(tried).Round(time.Second))
	b.Wait("the system in slot b did not come up")
	b.Up()
	if b.Console.Said("without a watchdog") {
		t.Error("something else ended it")
	}
}
