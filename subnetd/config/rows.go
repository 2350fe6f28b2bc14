package config

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"
)

// The rows of exit.rows: who uses the internet through which exits.

// Bounds of all rows together. Each way, that is each distinct list of exits, has
// a mark and a routing table of its own; each exit an interface.
const (
	MaxRows  = 64
	MaxMACs  = 256
	MaxWays  = 8
	MaxExits = 8 // of one row
)

// The words of a row that are no names.
const (
	wordLAN    = "lan"
	wordRouter = "router"
	wordDirect = "direct"
	wordBlock  = "block"
	arrow      = "->"
)

// Sources is whose traffic a row is about.
type Sources struct {
	MACs       []string // in lower case with colons
	Interfaces []string // of the LAN
	LAN        bool     // every interface of the LAN
	Router     bool     // what the router itself sends
}

// ExitRow sends its sources to the internet through the first of its exits that is
// at hand. If none is, they are blocked or, with Direct, use the internet as if
// there were no exits.
type ExitRow struct {
	Sources
	Exits  []string // names or mesh addresses of nodes, in lower case, the best first
	Direct bool
}

// Way reports whether a row needs a way of its own: all but `direct` alone do.
func (r ExitRow) Way() bool { return len(r.Exits) > 0 || !r.Direct }

// To is the right side of a row, as it stands in the file.
func (r ExitRow) To() []string {
	out := slices.Clone(r.Exits)
	switch {
	case r.Direct:
		out = append(out, wordDirect)
	case len(r.Exits) == 0:
		out = append(out, wordBlock)
	}
	return out
}

// List is the sources as they stand in the file.
func (s Sources) List() []string {
	out := slices.Concat(s.MACs, s.Interfaces)
	if s.LAN {
		out = append(out, wordLAN)
	}
	if s.Router {
		out = append(out, wordRouter)
	}
	return out
}

// Empty reports whether there is no source.
func (s Sources) Empty() bool {
	return len(s.MACs) == 0 && len(s.Interfaces) == 0 && !s.LAN && !s.Router
}

// String is the row as it stands in the file.
func (r ExitRow) String() string {
	return strings.Join(r.List(), ", ") + " " + arrow + " " + strings.Join(r.To(), ", ")
}

// ParseRow reads "SOURCE, SOURCE -> EXIT, EXIT". The error says what is wrong, and
// what would be right.
func ParseRow(s string) (ExitRow, error) {
	left, right, ok := strings.Cut(s, arrow)
	if !ok {
		return ExitRow{}, fmt.Errorf(`has no "->" between sources and exits`)
	}
	var r ExitRow
	var err error
	if r.Sources, err = ParseSources(strings.Split(left, ",")); err != nil {
		return ExitRow{}, err
	}
	r.Exits, r.Direct, err = ParseExits(right)
	return r, err
}

// ParseSources reads the left side of a row, word by word.
func ParseSources(words []string) (Sources, error) {
	var s Sources
	for _, w := range words {
		w = strings.TrimSpace(w)
		before := s.List()
		switch {
		case w == "":
			return Sources{}, fmt.Errorf("has an empty source")
		case w == wordLAN:
			s.LAN = true
		case w == wordRouter:
			s.Router = true
		case isMAC(w):
			w = lower([]string{w})[0]
			if isGroup(w) {
				return Sources{}, fmt.Errorf("has %s, which is the address of a group, not of a device", w)
			}
			s.MACs = append(s.MACs, w)
		case isInterface(w):
			s.Interfaces = append(s.Interfaces, w)
		default:
			return Sources{}, fmt.Errorf("has the source %s, which is no MAC address, no name of an interface, not lan and not router", clip(quote(w)))
		}
		if slices.Contains(before, w) {
			return Sources{}, fmt.Errorf("has %s twice", w)
		}
	}
	return s, nil
}

// ParseExits reads the right side of a row.
func ParseExits(s string) (exits []string, direct bool, err error) {
	words := strings.Split(s, ",")
	for i, w := range words {
		w = strings.TrimSuffix(strings.ToLower(strings.TrimSpace(w)), ".")
		addr, notAddr := netip.ParseAddr(w)
		switch last := i == len(words)-1; {
		case w == "":
			return nil, false, fmt.Errorf("has an empty exit; to block, write block")
		case (w == wordDirect || w == wordBlock) && !last:
			return nil, false, fmt.Errorf("has %s before other exits: it can only be the last", w)
		case w == wordDirect:
			return exits, true, nil
		case w == wordBlock:
			return exits, false, nil
		case notAddr == nil && addr.Zone() == "":
			w = addr.Unmap().String()
		case !isName(w):
			return nil, false, fmt.Errorf("has the exit %s, which is no name of a node and no mesh address", clip(quote(w)))
		}
		if slices.Contains(exits, w) {
			return nil, false, fmt.Errorf("has the exit %s twice", w)
		}
		if exits = append(exits, w); len(exits) > MaxExits {
			return nil, false, fmt.Errorf("has more than %d exits", MaxExits)
		}
	}
	return exits, false, nil
}

// parseRows reads all rows. If one is wrong, item is its number from 1.
func parseRows(texts []string) (rows []ExitRow, item int, err error) {
	if len(texts) > MaxRows {
		return nil, 0, fmt.Errorf("has %d rows, more than %d", len(texts), MaxRows)
	}
	for i, s := range texts {
		r, err := ParseRow(s)
		if err == nil {
			err = r.reached(rows)
		}
		if err != nil {
			return nil, i + 1, fmt.Errorf("%s %w", clip(quote(s)), err)
		}
		rows = append(rows, r)
	}
	return rows, 0, nil
}

// reached finds a source that never gets to the row, as one before takes it.
func (r ExitRow) reached(before []ExitRow) error {
	for i, b := range before {
		for _, s := range r.List() {
			if slices.Contains(b.List(), s) {
				return fmt.Errorf("has %s, which row %d has already: the first that fits decides", s, i+1)
			}
		}
		if s := slices.Concat(r.MACs, r.Interfaces); b.LAN && len(s) > 0 {
			return fmt.Errorf("has %s, but lan in row %d takes all of that before: put this row before it", s[0], i+1)
		}
	}
	return nil
}

// All is the rows and, as the last one, what the short form adds to them.
func (e Exit) All() []ExitRow {
	rows := slices.Clone(e.Rows)
	if short := e.short(); !short.Empty() {
		rows = append(rows, short)
	}
	return rows
}

// MACs are those of all rows, sorted.
func (e Exit) MACs() []string {
	var out []string
	for _, r := range e.All() {
		out = append(out, r.MACs...)
	}
	sort.Strings(out)
	return out
}

// short is the row that exit.use and exit.devices mean, without the sources that
// rows before it have.
func (e Exit) short() ExitRow {
	if e.Use == "" {
		return ExitRow{}
	}
	r := ExitRow{Sources: Sources{MACs: slices.Clone(e.Devices)}}
	if len(e.Devices) == 0 {
		r.LAN, r.Router = true, true
	}
	r.Exits, r.Direct, _ = ParseExits(e.Use) // it was checked with the file
	for _, b := range e.Rows {
		r.Sources = r.minus(b.Sources)
	}
	return r
}

// minus is the sources without those of o.
func (s Sources) minus(o Sources) Sources {
	without := func(l, gone []string) []string {
		return slices.DeleteFunc(slices.Clone(l), func(x string) bool { return slices.Contains(gone, x) })
	}
	return Sources{
		MACs: without(s.MACs, o.MACs), Interfaces: without(s.Interfaces, o.Interfaces),
		LAN: s.LAN && !o.LAN, Router: s.Router && !o.Router,
	}
}

// bounds tells what all rows together have too much of; "": nothing.
func bounds(rows []ExitRow) string {
	macs, ways := 0, map[string]bool{}
	for _, r := range rows {
		macs += len(r.MACs)
		if r.Way() {
			ways[strings.Join(r.To(), ",")] = true
		}
	}
	switch {
	case len(rows) > MaxRows:
		return fmt.Sprintf("has %d rows, more than %d", len(rows), MaxRows)
	case macs > MaxMACs:
		return fmt.Sprintf("has %d MAC addresses, more than %d", macs, MaxMACs)
	case len(ways) > MaxWays:
		return fmt.Sprintf("has %d different lists of exits, more than %d", len(ways), MaxWays)
	}
	return ""
}
