// Package disk is the appliance's disk: where its parts are, the record of the slots, and the owner's data.
//
//	0        partition table; a boot loader's second part behind it, where a board has one
//	1 MiB    record of the slots, two copies 64 KiB apart
//	2 MiB    p1 boot: kernel, stage1 and what the board's firmware loads. It is never written after flashing.
//	         p2 root A, p3 root B: a squashfs each
//	         p4 data: ext4, made at the first boot and as large as the disk allows
package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Sector is the unit of the partition table.
const Sector = 512

// FirstPartition is where p1 begins.
const FirstPartition = 2 << 20

// RecordAt are the offsets of the two copies of the record of the slots: far apart, since flash loses whole blocks.
var RecordAt = [2]int64{1 << 20, 1<<20 + 64<<10}

// Numbers of the partitions.
const (
	Boot = iota + 1
	RootA
	RootB
	Data
	partitions = 4
)

// Partition is an entry of the table, in bytes.
type Partition struct {
	Type        byte
	Bootable    bool
	Begin, Size int64
}

// Types of partitions.
const (
	TypeFAT   = 0x0c
	TypeLinux = 0x83
)

const (
	tableAt   = 446
	entrySize = 16
)

// PutTable writes the partition table into a disk's first sector: a "master boot record" of four entries, by block numbers
// only.
func PutTable(sector []byte, table [partitions]Partition) error {
	for i, p := range table {
		if p.Begin%Sector != 0 || p.Size%Sector != 0 || (p.Begin+p.Size)/Sector > 1<<32 {
			return fmt.Errorf("partition %d, %d bytes at %d, fits no table", i+1, p.Size, p.Begin)
		}
		e := sector[tableAt+i*entrySize:][:entrySize]
		e[0] = 0
		if p.Bootable {
			e[0] = 0x80
		}
		copy(e[1:], "\xfe\xff\xff")
		e[4] = p.Type
		copy(e[5:], "\xfe\xff\xff")
		binary.LittleEndian.PutUint32(e[8:], uint32(p.Begin/Sector))
		binary.LittleEndian.PutUint32(e[12:], uint32(p.Size/Sector))
	}
	copy(sector[510:], "\x55\xaa")
	return nil
}

// Table reads the partition table of a disk's first sector.
func Table(sector []byte) (table [partitions]Partition, err error) {
	if len(sector) < Sector || string(sector[510:512]) != "\x55\xaa" {
		return table, errors.New("there is no partition table")
	}
	for i := range table {
		e := sector[tableAt+i*entrySize:][:entrySize]
		table[i] = Partition{Type: e[4], Bootable: e[0] == 0x80,
			Begin: int64(binary.LittleEndian.Uint32(e[8:])) * Sector, Size: int64(binary.LittleEndian.Uint32(e[12:])) * Sector}
	}
	return table, nil
}

// PartitionPath is the device of a disk's n-th partition: /dev/sda2, /dev/mmcblk0p2.
func PartitionPath(disk string, n int) string {
	if strings.ContainsRune("0123456789", rune(disk[len(disk)-1])) {
		disk += "p"
	}
	return fmt.Sprintf("%s%d", disk, n)
}
