package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"subnetd/subnetd/qr"

	"rsc.io/qr/coding"
)

// printable makes text of others fit for a terminal: what is no visible
// character (control characters, changes of direction) becomes U+FFFD, except
// for those in keep.
func printable(s, keep string) string {
	return strings.Map(func(r rune) rune {
		if strconv.IsPrint(r) || strings.ContainsRune(keep, r) {
			return r
		}
		return utf8.RuneError
	}, s)
}

// table draws rows, with nothing in them that would harm a terminal. Columns are
// two spaces apart.
func table(b *bytes.Buffer, rows [][]string) {
	var widths []int
	for _, cells := range rows {
		for i, c := range cells {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	for _, cells := range rows {
		var line strings.Builder
		for i, c := range cells {
			line.WriteString(printable(c, "") + strings.Repeat(" ", widths[i]+2-utf8.RuneCountInString(c)))
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
}

// writeJSON prints v indented, and as fit for a terminal as printable text: JSON
// itself escapes only some of the control characters.
func writeJSON(w io.Writer, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := json.Indent(&b, data, "", "  "); err != nil {
		return err
	}
	b.WriteByte('\n')
	var out bytes.Buffer
	for _, r := range b.String() {
		switch {
		case r == '\n' || strconv.IsPrint(r):
			out.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&out, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	_, err = w.Write(out.Bytes())
	return err
}

// isTerminal reports whether w is one that knows colours.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// drawQR prints the code with half blocks, two modules above each other in one
// character. With colour it is black on white whatever the terminal's own
// colours are; without, what is light is drawn, as most terminals are dark, and
// a reader that knows reversed codes manages the others too.
func drawQR(b *bytes.Buffer, c *coding.Code, colour bool) {
	blocks := [4]string{"█", "▀", "▄", " "} // neither module dark, the lower, the upper, both
	before, after := "", "\n"
	if colour {
		blocks = [4]string{" ", "▄", "▀", "█"}
		before, after = "\x1b[30;47m", "\x1b[0m\n"
	}
	for y := -qr.Quiet; y < c.Size+qr.Quiet; y += 2 {
		b.WriteString(before)
		for x := -qr.Quiet; x < c.Size+qr.Quiet; x++ {
			i := 0
			if c.Black(x, y) {
				i += 2
			}
			if c.Black(x, y+1) {
				i++
			}
			b.WriteString(blocks[i])
		}
		b.WriteString(after)
	}
}
