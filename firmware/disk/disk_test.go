package disk_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"subnetd/firmware/disk"
	"subnetd/firmware/slots"
)

var table = [4]disk.Partition{
	{Type: disk.TypeFAT, Bootable: true, Begin: 2 << 20, Size: 64 << 20},
	{Type: disk.TypeLinux, Begin: 66 << 20, Size: 64 << 20},
	{Type: disk.TypeLinux, Begin: 130 << 20, Size: 64 << 20},
	{Type: disk.TypeLinux, Begin: 194 << 20, Size: 16 << 20},
}

func TestTable(t *testing.T) {
	sector := make([]byte, disk.Sector)
	if err := disk.PutTable(sector, table); err != nil {
		t.Fatal(err)
	}
	got, err := disk.Table(sector)
	if d := cmp.Diff(table, got); d != "" || err != nil {
		t.Error(d, err)
	}
	sector[511] = 0
	if _, err := disk.Table(sector); err == nil {
		t.Error("a table without its mark")
	}
	if err := disk.PutTable(sector, [4]disk.Partition{{Begin: 100, Size: 512}}); err == nil {
		t.Error("a partition that begins within a sector")
	}
}

// TestTableOfStrangers: what the system's own tool reads.
func TestTableOfStrangers(t *testing.T) {
	partx, err := exec.LookPath("partx")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("partx is not installed")
	}
	sector := make([]byte, disk.Sector)
	if err := disk.PutTable(sector, table); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, sector, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, 210<<20); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(partx, "--noheadings", "--raw", "--output", "START,SECTORS,TYPE", name).Output()
	want := "4096 131072 0xc\n135168 131072 0x83\n266240 131072 0x83\n397312 32768 0x83\n"
	if string(out) != want || err != nil {
		t.Errorf("partx reads:\n%s%v", out, err)
	}
}

func TestPartitionPath(t *testing.T) {
	for dev, want := range map[string]string{"/dev/sda": "/dev/sda2", "/dev/vda": "/dev/vda2", "/dev/mmcblk0": "/dev/mmcblk0p2", "/dev/nvme0n1": "/dev/nvme0n1p2"} {
		if got := disk.PartitionPath(dev, 2); got != want {
			t.Errorf("%s: %s, want %s", dev, got, want)
		}
	}
}

func TestGrown(t *testing.T) {
	for _, c := range []struct{ disk, data int64 }{
		{210 << 20, 16 << 20},                      // as flashed
		{100 << 20, 16 << 20},                      // smaller than the table says: left alone
		{1<<30 + 5000, 1<<30 - 194<<20},            // whole MiB
		{5 << 40, (1<<32-1)*512>>20<<20 - 194<<20}, // the most that a table can say
	} {
		got, more := disk.Grown(table, c.disk)
		if got[disk.Data-1].Size != c.data || more != (c.data > 16<<20) {
			t.Errorf("disk of %d: data of %d, want %d", c.disk, got[disk.Data-1].Size, c.data)
		}
		if err := disk.PutTable(make([]byte, disk.Sector), got); err != nil {
			t.Error(err)
		}
	}
}

func TestRecords(t *testing.T) {
	name := filepath.Join(t.TempDir(), "disk")
	whole := make([]byte, disk.FirstPartition)
	if err := os.WriteFile(name, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := disk.OpenRecords(name); !errors.Is(err, disk.ErrNoRecord) {
		t.Error("an empty disk:", err)
	}
	first := slots.New(4096)
	c := first.Encode()
	copy(whole[disk.RecordAt[1]:], c[:])
	if err := os.WriteFile(name, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	for n := range 5 {
		r, err := disk.OpenRecords(name)
		if err != nil {
			t.Fatal(err)
		}
		next := r.Present()
		next.Slots[slots.B].Tries = uint8(n + 1)
		if err := errors.Join(r.Save(next), r.Save(r.Present())); err != nil {
			t.Fatal(err)
		}
		if got := r.Present(); got.Seq != uint32(n+2) || got.Slots[slots.B].Tries != uint8(n+1) {
			t.Errorf("saved %d times: %+v", n+1, got)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := disk.OpenRecords(name[:strings.LastIndex(name, "/")] + "/none"); err == nil {
		t.Error("a disk that is not there")
	}
}
