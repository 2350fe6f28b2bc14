package idna

import "testing"

// The names are those of RFC 3492, 7.1, and what browsers make of the others.
func TestToASCII(t *testing.T) {
	for in, want := range map[string]string{
		"":                "",
		"Home.example":    "Home.example",
		"192.0.2.1":       "192.0.2.1",
		"bücher.example":  "xn--bcher-kva.example",
		"BÜCHER.example.": "xn--bcher-kva.example.",
		"他们为什么不说中文":       "xn--ihqwcrb4cv8a8dqg056pqjye",
		"почемужеонинеговорятпорусски.рф": "xn--b1abfaaepdrnnbgefbadotcwatmq2g4l.xn--p1ai",
		"3年b組金八先生":  "xn--3b-ww4c5e180e575a65lsy2b",
		"家。example": "xn--fct.example",
		"\xff":      "",
	} {
		got, err := ToASCII(in)
		if (err != nil) != (in == "\xff") {
			t.Errorf("%q: %v", in, err)
		}
		if got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
