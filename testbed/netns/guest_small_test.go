package netns_test

import (
	"testing"
	"time"

	"subnetd/testbed/netns"
	"subnetd/testbed/qemu"
)

// TestGuestMIPS: an emulated MIPS router with 128 MB carries the mesh by its kernel; and what the daemon costs it.
func TestGuestMIPS(t *testing.T) {
	s := bootScene(t, qemu.MIPSLE, 128, 1, netns.Easy)
	if !s.lab.Run("OpenLAN", func(t *testing.T) { beginSmall(t, s) }) {
		t.FailNow()
	}
	s.lab.Run("NoPacketWork", func(t *testing.T) { wantNoPacketWork(t, &s.scene) })
	s.lab.Run("SteadyMemory", func(t *testing.T) { wantSteadyMemory(t, &s.scene) })
	s.lab.Run("ManyPeers", func(t *testing.T) { wantManyPeers(t, s) })
}

// TestGuestARM: the same router role on two ARM machines, off which `down` takes every trace of it.
func TestGuestARM(t *testing.T) {
	for _, arch := range []qemu.Arch{qemu.ARMv7, qemu.ARM64} {
		t.Run(string(arch), func(t *testing.T) {
			s := bootScene(t, arch, 256, 0, netns.Easy)
			before := traces(t, s.home.Router)
			beginSmall(t, s)
			if out, err := s.daemon.CLI("down"); err != nil {
				t.Fatalf("down: %v\n%s", err, out)
			}
			if after := traces(t, s.home.Router); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

// beginSmall joins and lets phone and LAN fetch from each other; less than a real router would in the same time.
func beginSmall(t *testing.T, s *guestScene) {
	t.Helper()
	size := int64(8_000_000)
	if long() {
		size = 200_000_000
	}
	start := time.Now()
	s.begin(t, "kernel")
	wantKernel(t, s.daemon)
	t.Logf("the guest was up after %v; all are in the mesh %v after the daemon's start", s.guest.BootTime().Round(time.Millisecond),
		time.Since(start).Round(time.Millisecond))
	wantOpenLAN(t, &s.scene, size)
	wantDirect(t, &s.scene)
}
