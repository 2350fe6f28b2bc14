package lan

import (
	_ "embed"
	"encoding/binary"
	"strings"
)

// makers is written by build/oui: the makers' names, a line for each, and an empty one; the
// differences of the prefixes of 24 bits as they ascend, as varints, ended by 0; for each
// the number of its maker. It is gone through from its beginning: once for each new thing.
//
//go:embed makers.bin
var makers string

// Maker is who made a thing's network interface, by the first half of its MAC; "": not one
// of the chosen makers, or a made-up MAC.
func Maker(mac string) string {
	b, ok := macBytes(mac)
	if !ok || b[0]&2 != 0 {
		return ""
	}
	return lookUp(makers, uint64(b[0])<<16|uint64(b[1])<<8|uint64(b[2]))
}

// lookUp finds the maker of a prefix in a table; "": it is not there, or the table is
// not one.
func lookUp(table string, prefix uint64) string {
	names, rest, ok := strings.Cut(table, "\n\n")
	if !ok {
		return ""
	}
	rows := []byte(rest)
	at, row, found := ^uint64(0), 0, -1
	for n := 0; ; n++ {
		step, size := binary.Uvarint(rows)
		if size <= 0 {
			return ""
		}
		rows = rows[size:]
		if step == 0 {
			break
		}
		if at += step; at == prefix && found < 0 {
			found = n
		}
		row++
	}
	if found < 0 || found >= len(rows) || len(rows) != row {
		return ""
	}
	for range rows[found] {
		if _, names, ok = strings.Cut(names, "\n"); !ok {
			return ""
		}
	}
	name, _, _ := strings.Cut(names, "\n")
	return name
}
