// Command oui writes the table by which the daemon knows the makers of devices, from the
// IEEE's list of the first halves of MAC addresses and the choice of makers beside this file.
//
//	go run ./build/oui oui.csv > subnetd/lan/makers.bin
//
// oui.csv is what the IEEE publishes under that name; Debian has it in ieee-data. A JSON object of
// prefixes and names, as the npm package oui-data has it, does as well, and may be newer.
package main

import (
	"bytes"
	_ "embed"
	"encoding/binary"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
)

//go:embed makers.txt
var choice string

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: oui FILE > makers.bin")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	registered, err := read(data)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	makers := parse(choice)
	out, n := table(makers, registered)
	fmt.Fprintf(os.Stderr, "%d of %d prefixes, %d makers, %d bytes\n", n, len(registered), len(makers), len(out))
	_, err = os.Stdout.Write(out)
	return err
}

// read reads who registered each prefix of 24 bits. Longer ones are in blocks of the IEEE's own.
func read(data []byte) (map[uint32]string, error) {
	all := map[string]string{}
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		if err := json.Unmarshal(data, &all); err != nil {
			return nil, err
		}
	} else {
		rows, err := csv.NewReader(bytes.NewReader(data)).ReadAll()
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			if len(r) > 2 {
				all[r[1]] = r[2]
			}
		}
	}
	out := map[uint32]string{}
	for prefix, name := range all {
		if n, err := strconv.ParseUint(prefix, 16, 24); err == nil && len(prefix) == 6 {
			out[uint32(n)], _, _ = strings.Cut(name, "\n")
		}
	}
	return out, nil
}

// maker is one line of the choice.
type maker struct {
	name  string
	begin []string
}

func parse(text string) []maker {
	var out []maker
	for line := range strings.Lines(text) {
		name, begin, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		m := maker{name: strings.TrimSpace(name)}
		for b := range strings.SplitSeq(begin, ",") {
			m.begin = append(m.begin, words(b)+" ")
		}
		out = append(out, m)
	}
	return out
}

// words makes names alike: lower case, with one space for whatever is no letter or digit.
func words(s string) string {
	return strings.Join(strings.FieldsFunc(strings.ToLower(s), func(r rune) bool {
		return !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || r > 0x7f)
	}), " ")
}

// table is what subnetd/lan/maker.go reads: the names, each ended by a line feed, and an
// empty one; the differences of the prefixes as they ascend, ended by 0; a maker's number
// for each. The two apart are packed better by whatever packs the program.
func table(makers []maker, registered map[uint32]string) ([]byte, int) {
	var prefixes []uint32
	var out, numbers []byte
	number, of := map[uint32]byte{}, map[string]byte{}
	for _, m := range makers {
		if m.name != "" {
			of[m.name] = byte(len(of))
			out = append(out, m.name+"\n"...)
		}
	}
	out = append(out, '\n')
	for prefix, name := range registered {
		for _, m := range makers {
			if m.is(words(name) + " ") {
				if m.name != "" {
					number[prefix] = of[m.name]
					prefixes = append(prefixes, prefix)
				}
				break
			}
		}
	}
	sort.Slice(prefixes, func(i, j int) bool { return prefixes[i] < prefixes[j] })
	last := int64(-1)
	for _, p := range prefixes {
		out = binary.AppendUvarint(out, uint64(int64(p)-last))
		numbers = append(numbers, number[p])
		last = int64(p)
	}
	out = append(out, 0)
	return append(out, numbers...), len(prefixes)
}

func (m maker) is(registered string) bool {
	for _, b := range m.begin {
		if strings.HasPrefix(registered, b) {
			return true
		}
	}
	return false
}
