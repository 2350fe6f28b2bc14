// Package idna stands in for the largest file of Go's own of that name, and for all that it knows of Unicode, 150 kB:
// what net/http writes of a host's name that is not ASCII, by RFC 5891 and 3492. What is looked up is told apart
// by case only: a name whose letters have been taken apart from their accents, which no keyboard does, is not found.
package idna

import (
	"strings"
	"unicode/utf8"
)

// A Profile has no choices here.
type Profile struct{}

// Lookup is for names that are looked up.
var Lookup *Profile

// ToASCII writes a host's name as DNS has it: "bücher.example" as "xn--bcher-kva.example".
func (*Profile) ToASCII(s string) (string, error) { return ToASCII(s) }

// ToASCII writes a host's name as DNS has it.
func ToASCII(s string) (string, error) {
	if !utf8.ValidString(s) {
		return "", &labelError{s, "A3"}
	}
	labels := strings.Split(strings.ReplaceAll(s, "。", "."), ".")
	for i, label := range labels {
		if ascii(label) {
			continue
		}
		a, err := encode("xn--", strings.ToLower(label))
		if err != nil {
			return "", err
		}
		labels[i] = a
	}
	return strings.Join(labels, "."), nil
}

func ascii(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) < 0
}

type labelError struct{ label, code string }

func (e *labelError) Error() string { return "idna: invalid label " + e.label }
