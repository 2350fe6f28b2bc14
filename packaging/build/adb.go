package main

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"sort"
)

// A file of apk v3 is blocks of ADB, apk-v3(5): a tree of values first, then what the
// files hold. Here is as much of it as a package takes, laid out as apk itself does it.

// adbValue is a value's tag: four bits of type, and 28 that are the value, or where it
// is.
type adbValue uint32

const (
	adbNull   adbValue = 0
	adbInt    adbValue = 0x1 << 28
	adbInt32  adbValue = 0x2 << 28
	adbInt64  adbValue = 0x3 << 28
	adbBlob8  adbValue = 0x8 << 28
	adbBlob16 adbValue = 0x9 << 28
	adbBlob32 adbValue = 0xa << 28
	adbObject adbValue = 0xe << 28 // apk writes its arrays with this one, too

	adbTree = 0 // kinds of blocks
	adbData = 2

	adbAlign = 8 // of blocks

	schemaPackage = "pckg"
)

// adb is a tree that grows: a value is written before what refers to it, equal values
// once.
type adb struct {
	buf   []byte
	known map[string]int // -> where it is
}

func newADB() *adb {
	return &adb{buf: make([]byte, 8), known: map[string]int{}} // versions 0, and room for the root
}

func (a *adb) put(data []byte, align int) adbValue {
	if at, ok := a.known[string(data)]; ok && at%align == 0 {
		return adbValue(at)
	}
	at := a.raw(data, align)
	a.known[string(data)] = int(at)
	return at
}

func (a *adb) raw(data []byte, align int) adbValue {
	for len(a.buf)%align != 0 {
		a.buf = append(a.buf, 0)
	}
	at := len(a.buf)
	a.buf = append(a.buf, data...)
	return adbValue(at)
}

func (a *adb) number(n uint64) adbValue {
	switch {
	case n >= 1<<32:
		return adbInt64 | a.put(binary.LittleEndian.AppendUint64(nil, n), 4)
	case n >= 1<<28:
		return adbInt32 | a.put(binary.LittleEndian.AppendUint32(nil, uint32(n)), 4)
	}
	return adbInt | adbValue(n)
}

func (a *adb) blob(b []byte) adbValue {
	switch n := len(b); {
	case n == 0:
		return adbNull
	case n <= 0xff:
		return adbBlob8 | a.put(append([]byte{byte(n)}, b...), 1)
	case n <= 0xffff:
		return adbBlob16 | a.put(append(binary.LittleEndian.AppendUint16(nil, uint16(n)), b...), 2)
	default:
		return adbBlob32 | a.put(append(binary.LittleEndian.AppendUint32(nil, uint32(n)), b...), 4)
	}
}

func (a *adb) text(s string) adbValue { return a.blob([]byte(s)) }

// object is one with these fields, the first of which has the number 1; without any it
// is null.
func (a *adb) object(fields ...adbValue) adbValue {
	for len(fields) > 0 && fields[len(fields)-1] == adbNull {
		fields = fields[:len(fields)-1]
	}
	if len(fields) == 0 {
		return adbNull
	}
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(fields)+1))
	for _, f := range fields {
		b = binary.LittleEndian.AppendUint32(b, uint32(f))
	}
	return adbObject | a.put(b, 4)
}

func (a *adb) root(v adbValue) { binary.LittleEndian.PutUint32(a.buf[4:], uint32(v)) }

// adbBlock is a block with its padding.
func adbBlock(kind uint32, parts ...[]byte) []byte {
	payload := bytes.Join(parts, nil)
	b := binary.LittleEndian.AppendUint32(nil, kind<<30|uint32(4+len(payload)))
	b = append(b, payload...)
	return append(b, make([]byte, -len(b)&(adbAlign-1))...)
}

// adbFile is blocks as a compressed file.
func adbFile(schema string, blocks [][]byte) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("ADBd")
	z, err := flate.NewWriter(&b, flate.BestCompression)
	if err != nil {
		return nil, err
	}
	for _, part := range append([][]byte{[]byte("ADB." + schema)}, blocks...) {
		if _, err := z.Write(part); err != nil {
			return nil, err
		}
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// sorted gives the keys of a map in the order that ADB wants of its arrays.
func sorted[V any](m map[string]V) []string {
	var all []string
	for k := range m {
		all = append(all, k)
	}
	sort.Strings(all)
	return all
}
