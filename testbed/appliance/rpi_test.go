package appliance_test

import (
	"testing"
	"time"

	"subnetd/testbed/appliance"
	"subnetd/testbed/netns"
	"subnetd/testbed/qemu"
)

// TestRPi boots the image of the Raspberry Pi as far as QEMU has the board: its card reader, its USB and one network card on
// it; neither its firmware, which loads the kernel, nor its own network card. A router needs two.
func TestRPi(t *testing.T) {
	b := appliance.New(t, appliance.RPi, qemu.NIC{Netns: netns.New(t).Bare("wan").Namespace(), Tap: "eth0"})
	b.Power()
	b.Wait("stage1: slot a of /dev/mmcblk0")
	t.Logf("the root is mounted %v after the power came on", time.Since(b.On).Round(100*time.Millisecond))
}
