// Package qr makes QR codes (ISO/IEC 18004) of short texts, for the terminal and for
// the page.
package qr

import (
	"errors"
	"strconv"

	"rsc.io/qr/coding"
)

// Quiet is the light margin around a code, in modules.
const Quiet = 4

// Encode makes the code of a text at level M: of the smallest version that holds its
// bytes.
func Encode(text string) (*coding.Code, error) {
	s := coding.String(text)
	v := coding.Version(coding.MinVersion)
	for s.Bits(v) > v.DataBytes(coding.M)*8 {
		if v++; v > coding.MaxVersion {
			return nil, errors.New("too long for a QR code")
		}
	}
	plan, err := coding.NewPlan(v, coding.M, 0)
	if err != nil {
		return nil, err
	}
	return plan.Encode(s)
}

// SVG draws a code, black on white with its margin, one unit a module: each run of
// dark modules in a row is one rectangle of the path.
func SVG(c *coding.Code) []byte {
	side := strconv.Itoa(c.Size + 2*Quiet)
	b := []byte(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ` + side + " " + side +
		`" shape-rendering="crispEdges"><path fill="#fff" d="M0 0h` + side + "v" + side + `H0z"/><path d="`)
	for y := range c.Size {
		for x := 0; x < c.Size; x++ {
			if !c.Black(x, y) {
				continue
			}
			begin := x
			for x < c.Size && c.Black(x, y) {
				x++
			}
			n := strconv.Itoa(x - begin)
			b = append(b, "M"+strconv.Itoa(begin+Quiet)+" "+strconv.Itoa(y+Quiet)+"h"+n+"v1h-"+n+"z"...)
		}
	}
	return append(b, `"/></svg>`...)
}
