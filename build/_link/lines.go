package ld

import (
	"strings"

	"cmd/link/internal/loader"
)

// tablesOf are those of a function's tables that the program gets: where its frame is, for the collector; and, but for Go's
// own packages, the file and the line of each instruction, for a trace. Without these two a trace shows a function as
// "sort.pdqsort(...) ?:0 +0x30d". The addresses are those of the program that Go's own linker makes of the same commit.
func tablesOf(name string, frame, file, line loader.Sym) []loader.Sym {
	first, _, deeper := strings.Cut(name, "/")
	ours := strings.HasPrefix(first, "main.") || deeper && first == "subnetd"
	if module := deeper && strings.Contains(first, "."); ours || module {
		return []loader.Sym{frame, file, line}
	}
	return []loader.Sym{frame}
}
