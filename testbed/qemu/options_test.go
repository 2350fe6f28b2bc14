package qemu

import (
	"net"
	"slices"
	"strings"
	"testing"
)

func TestArguments(t *testing.T) {
	o := Options{Arch: MIPSLE, CPUs: -1, NICs: []NIC{{Netns: "a", Tap: "t0", MAC: "02:00:00:00:00:09"}, {Netns: "a", Tap: "t1"}}}.withDefaults()
	b, err := o.Arch.board()
	if err != nil {
		t.Fatal(err)
	}
	w := where{kernel: "k", initrd: "i", console: "c", disk: "d", plugin: "p.so", count: "n", agent: 3, taps: []int{4, 5}}
	args := o.arguments(b, w)
	for _, want := range [][]string{
		{"-m", "256"}, {"-smp", "1"}, {"-kernel", "k"}, {"-accel", "tcg"}, {"-plugin", "p.so,count=n"}, {"-machine", "malta"},
		{"-append", "console=ttyS0 panic=-1 mitigations=off init_on_alloc=0 loglevel=5 nohz=off highres=off "},
		{"-netdev", "tap,id=nic0,fd=4", "-device", "virtio-net-pci,romfile=,netdev=nic0,mac=02:00:00:00:00:09"},
		{"-netdev", "tap,id=nic1,fd=5"},
	} {
		if !strings.Contains("\x00"+strings.Join(args, "\x00")+"\x00", "\x00"+strings.Join(want, "\x00")+"\x00") {
			t.Errorf("no %q in %q", want, args)
		}
	}
	plain := o.arguments(b, where{taps: []int{4, 5}})
	if slices.Contains(plain, "-plugin") || slices.Contains(plain, "-drive") {
		t.Errorf("a plugin or a disk that nobody asked for: %q", plain)
	}
}

func TestMACs(t *testing.T) {
	seen := map[string]bool{}
	for _, n := range []NIC{{Netns: "a", Tap: "b"}, {Netns: "a", Tap: "c"}, {Netns: "b", Tap: "b"}, {Netns: "ab", Tap: "c"}} {
		mac, err := net.ParseMAC(n.mac())
		if err != nil || mac[0]&3 != 2 || seen[mac.String()] || mac.String() != n.mac() {
			t.Errorf("%+v has %v (%v): one of a station, made up locally, and not another's, is wanted", n, mac, err)
		}
		seen[mac.String()] = true
	}
}

func TestUnknownArch(t *testing.T) {
	if _, err := New(Options{Arch: "vax"}, t.TempDir()); err == nil || !strings.Contains(err.Error(), "vax") {
		t.Errorf("got %v", err)
	}
	if _, err := New(Options{Arch: MIPSLE, NICs: make([]NIC, 4)}, t.TempDir()); err == nil {
		t.Error("a board has only so many slots")
	}
	if _, err := New(Options{CPUs: 2, Count: true}, t.TempDir()); err == nil {
		t.Error("the counter of two CPUs would be wrong")
	}
}
