package drop

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// mostName is what Linux allows for a name, in bytes; others count in UTF-16.
const mostName = 255

// safe makes of a name that somebody sent one that is a file's in the folder, on any
// system that the folder may be seen from. What could lead out of it, or is no text, is
// refused (ErrName); what only some systems cannot have is replaced.
func safe(name string) (string, error) {
	control := func(r rune) bool { return r < ' ' || r == 0x7f || r == '/' || r == '\\' }
	if !utf8.ValidString(name) || len(name) > mostName || strings.ContainsFunc(name, control) {
		return "", fmt.Errorf("%w: %s", ErrName, clip(strconv.Quote(name), 80))
	}
	out := strings.TrimRight(strings.TrimLeft(strings.Map(fit, name), " "), " .") // Windows drops them at the end
	if rest := strings.TrimLeft(out, "."); rest != out {
		out = "_" + rest // hidden
	}
	if strings.Trim(out, "_ .") == "" {
		return "", fmt.Errorf("%w: %s", ErrName, clip(strconv.Quote(name), 80))
	}
	base, ext, dotted := strings.Cut(out, ".")
	if reserved(strings.TrimRight(base, " ")) {
		if out = base + "_"; dotted {
			out += "." + ext
		}
	}
	return strings.TrimRight(clip(out, mostName), " ."), nil
}

// fit replaces what Windows cannot have in a name, and what cannot be seen; letters of
// some scripts and pictures are joined by what cannot be seen itself.
func fit(r rune) rune {
	const joiner = '\u200d'
	if strings.ContainsRune(`:*?"<>|`, r) || !strconv.IsGraphic(r) && r != joiner && r != joiner-1 {
		return '_'
	}
	return r
}

// reserved are names that are devices on Windows, whatever stands behind a dot.
func reserved(base string) bool {
	base = strings.ToUpper(base)
	if len(base) == 4 && (base[:3] == "COM" || base[:3] == "LPT") {
		return base[3] >= '0' && base[3] <= '9'
	}
	return slices.Contains([]string{"CON", "PRN", "AUX", "NUL"}, base)
}

// numbered is the name for the nth of that name, as in "photo (1).jpg"; 0 is itself.
func numbered(name string, n int) string {
	if n == 0 {
		return name
	}
	ext := filepath.Ext(name)
	if len(ext) > 16 || ext == name {
		ext = ""
	}
	number := " (" + strconv.Itoa(n) + ")"
	return clip(strings.TrimSuffix(name, ext), mostName-len(number)-len(ext)) + number + ext
}

// clip leaves at most that many bytes of a text, and no half characters.
func clip(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most]
}
