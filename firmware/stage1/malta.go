package main

import (
	"bytes"
	"fmt"
	"os"
)

// tameMalta sets up what the firmware of a Malta board would have set up, if this is one in QEMU, where it has none.
func tameMalta() {
	if about, err := os.ReadFile("/proc/cpuinfo"); err != nil || !bytes.Contains(about, []byte("MIPS Malta")) {
		return
	}
	for _, w := range []struct {
		file  string
		at    int64
		bytes string
	}{
		// The interrupts of the PCI slots are level-triggered: otherwise cards that share one lose theirs for good.
		{"/dev/port", 0x4d0, "\x00\x0c"},
		// QEMU loses an interrupt of the CPU now and then, and with the CPU's own timer lost all stops for 26 s. The board's timer
		// ticks on, and each tick brings back what was lost.
		{"/sys/devices/system/clockevents/clockevent0/unbind_device", 0, "MIPS"},
	} {
		if err := writeAt(w.file, w.at, w.bytes); err != nil {
			fmt.Println("stage1:", err)
		}
	}
}

func writeAt(file string, at int64, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt([]byte(text), at)
	return err
}
