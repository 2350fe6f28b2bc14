package disk

import (
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// align is what the data's size is a multiple of.
const align = 1 << 20

// Grown is a table whose data reaches to the end of a disk of the given size. It reports false where nothing is gained.
func Grown(table [partitions]Partition, size int64) ([partitions]Partition, bool) {
	p := &table[Data-1]
	most := min(size, (1<<32-1)*Sector)
	want := (most - p.Begin) / align * align
	if want <= p.Size {
		return table, false
	}
	p.Size = want
	return table, true
}

// Grow lets the data, as long as there is none, reach to the end of the disk. Nothing of it may be mounted.
func Grow(disk string) error {
	there, err := hasExt4(PartitionPath(disk, Data))
	if err != nil || there {
		return err
	}
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var sector [Sector]byte
	if _, err := f.ReadAt(sector[:], 0); err != nil {
		return err
	}
	table, err := Table(sector[:])
	if err != nil {
		return err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	table, more := Grown(table, size)
	if !more {
		return nil
	}
	if err := PutTable(sector[:], table); err != nil {
		return err
	}
	if _, err := f.WriteAt(sector[:], 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return resize(f, Data, table[Data-1])
}

// resize tells the kernel the new size of a partition of a disk that is in use.
func resize(disk *os.File, n int32, p Partition) error {
	part := unix.BlkpgPartition{Start: p.Begin, Length: p.Size, Pno: n}
	arg := unix.BlkpgIoctlArg{Op: unix.BLKPG_RESIZE_PARTITION, Datalen: int32(unsafe.Sizeof(part)), Data: (*byte)(unsafe.Pointer(&part))}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, disk.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return fmt.Errorf("partition %d: %w", n, errno)
	}
	return nil
}
