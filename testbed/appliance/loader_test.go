package appliance_test

import (
	"testing"
	"time"

	"subnetd/testbed/appliance"
)

// TestLoader: a PC's BIOS boots the disk with nothing but what is on it, and again from the disk that has grown.
func TestLoader(t *testing.T) {
	b := appliance.New(t, appliance.X86)
	for range 2 {
		b.Power()
		b.Wait("stage1: slot a of /dev/vda")
		t.Logf("the root is mounted %v after the power came on", time.Since(b.On).Round(100*time.Millisecond))
		b.Cut()
	}
}
