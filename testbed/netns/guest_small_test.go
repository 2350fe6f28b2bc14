package netns_test

import (
	"strings"
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

// TestGuestARM: the same router role on two ARM machines, off which `down` takes every trace of it; and then without WireGuard in
// the kernel.
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
			wantFallsBack(t, s)
		})
	}
}

// wantFallsBack takes WireGuard from the kernel: a daemon that may choose carries packets itself, and says so in one line.
func wantFallsBack(t *testing.T, s *guestScene) {
	t.Helper()
	if out, err := s.home.Router.Run(t.Context(), "sh", "-ec", "rmmod wireguard; rm /lib/modules/*/kernel/drivers/net/wireguard/wireguard.ko"); err != nil {
		t.Fatal(out, err)
	}
	setEngine(t, s.daemon, "auto")
	m, err := s.daemon.StatusJSON()
	if reason, _ := m["engineReason"].(string); err != nil || m["engine"] != "userspace" || !strings.HasPrefix(reason, "the kernel has no WireGuard: load the module") {
		t.Errorf("engine %v: %v (%v)", m["engine"], m["engineReason"], err)
	}
	if n := strings.Count(strings.Join(s.daemon.Log(), "\n"), "the kernel has no WireGuard"); n != 1 {
		t.Errorf("it says so %d times", n)
	}
	if out, err := s.daemon.CLI("up"); err != nil {
		t.Fatalf("up: %v\n%s", err, out)
	}
	wantReach(t, s.phone.Host, s.home.LAN.Addr4)
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
