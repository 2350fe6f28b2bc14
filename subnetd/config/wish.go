package config

import (
	"errors"
	"slices"
	"strings"
)

// How `exit use` and `exit off` change the rows: what is narrower stands before
// what is wider, so that each source goes where it was last told to.

// Using sends exactly those sources through exits: a row that has no others is
// changed, else they get rows of their own, out of all rows that had them. The
// error says what would be too much.
func (e Exit) Using(s Sources, exits []string, direct bool) (Exit, error) {
	rows, add := e.All(), ExitRow{Sources: s, Exits: exits, Direct: direct}
	same := func(r ExitRow) bool { return r.minus(s).Empty() && s.minus(r.Sources).Empty() }
	if i := slices.IndexFunc(rows, same); i >= 0 {
		rows[i] = add
		return e.settled(rows)
	}
	rows = take(rows, s)
	for _, part := range []Sources{{MACs: s.MACs}, {Interfaces: s.Interfaces}, {LAN: s.LAN, Router: s.Router}} {
		if add.Sources = part; !part.Empty() {
			rows = put(rows, add)
		}
	}
	return e.settled(rows)
}

// Off lets those sources use the internet as if there were no exits, also where
// rows are left that are about more than them.
func (e Exit) Off(s Sources) (Exit, error) {
	rows := take(e.All(), s)
	wider := 0
	for _, r := range rows {
		wider = max(wider, r.width())
	}
	if wider > widthMAC && len(s.MACs) > 0 {
		rows = put(rows, ExitRow{Sources: Sources{MACs: s.MACs}, Direct: true})
	}
	if wider > widthInterface && len(s.Interfaces) > 0 {
		rows = put(rows, ExitRow{Sources: Sources{Interfaces: s.Interfaces}, Direct: true})
	}
	return e.settled(rows)
}

// The widths of sources: what one has, only those of a lower width may be told
// otherwise. The router itself has nothing in common with the rest.
const (
	widthRouter = iota
	widthMAC
	widthInterface
	widthLAN
)

func (s Sources) width() int {
	switch {
	case s.LAN:
		return widthLAN
	case len(s.Interfaces) > 0:
		return widthInterface
	case len(s.MACs) > 0:
		return widthMAC
	}
	return widthRouter
}

// put adds a row of sources of one width before all that are wider. A row before
// those that is as narrow and goes the same way takes it in.
func put(rows []ExitRow, add ExitRow) []ExitRow {
	at := slices.IndexFunc(rows, func(r ExitRow) bool { return r.width() > add.width() })
	if at < 0 || add.width() == widthRouter {
		at = len(rows)
	}
	for i := range rows[:at] {
		if r := &rows[i]; r.width() == add.width() && slices.Equal(r.To(), add.To()) {
			r.MACs, r.Interfaces = slices.Concat(r.MACs, add.MACs), slices.Concat(r.Interfaces, add.Interfaces)
			r.LAN, r.Router = r.LAN || add.LAN, r.Router || add.Router
			return rows
		}
	}
	return slices.Insert(rows, at, add)
}

// take removes sources from all rows, and rows that have none left.
func take(rows []ExitRow, s Sources) []ExitRow {
	var out []ExitRow
	for _, r := range rows {
		if r.Sources = r.minus(s); !r.Empty() {
			out = append(out, r)
		}
	}
	return out
}

// settled is the exit section whose rows, the short form among them, are these: the
// last of them becomes the short form if that can say it and did so before, or is
// about the whole home.
func (e Exit) settled(rows []ExitRow) (Exit, error) {
	if why := bounds(rows); why != "" {
		return e, errors.New("exit.rows then " + why)
	}
	was := e.short()
	e.Rows, e.Use, e.Devices = rows, "", nil
	if len(rows) == 0 {
		return e, nil
	}
	last := rows[len(rows)-1]
	home := last.LAN && last.Router && len(last.MACs)+len(last.Interfaces) == 0
	devices := last.width() == widthMAC && !last.Router && slices.Equal(last.MACs, was.MACs)
	if home || devices {
		e.Rows, e.Use, e.Devices = rows[:len(rows)-1], strings.Join(last.To(), ", "), last.MACs
	}
	return e, nil
}

// Changes are the keys of [exit] that differ in next, for Edit.
func (e Exit) Changes(next Exit) map[string]any {
	out := map[string]any{}
	texts := func(rows []ExitRow) []string {
		all := []string{}
		for _, r := range rows {
			all = append(all, r.String())
		}
		return all
	}
	if is := texts(next.Rows); !slices.Equal(texts(e.Rows), is) {
		out["rows"] = is
	}
	if e.Use != next.Use {
		out["use"] = next.Use
	}
	if !slices.Equal(e.Devices, next.Devices) {
		out["devices"] = append([]string{}, next.Devices...)
	}
	if e.Offer != next.Offer {
		out["offer"] = next.Offer
	}
	return out
}
