package cli

import (
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestArity(t *testing.T) {
	for args, want := range map[string][2]int{
		"":                       {0, 0},
		"NODE":                   {1, 1},
		"NODE NAME":              {2, 2},
		"expose|hide MAC":        {2, 2},
		"[NODE]":                 {0, 1},
		"NODE [DEVICE...]":       {1, math.MaxInt},
		"NODE...":                {1, math.MaxInt},
		"NODE [PREFIX] [MORE]":   {1, 3},
		"NODE [PREFIX] [OTHER…]": {1, 3},
	} {
		if least, most := arity(args); least != want[0] || most != want[1] {
			t.Errorf("%q: %d to %d, want %v", args, least, most, want)
		}
	}
}

// everyCommand calls do with each command that does something, by its full name.
func everyCommand(before string, cs []command, do func(name []string, c command)) {
	for _, c := range cs {
		name := strings.TrimSpace(before + " " + c.name)
		if c.start != nil {
			do(strings.Fields(name), c)
		}
		everyCommand(name, c.verbs, do)
	}
}

// Every command is listed, has help both ways, and an example that is right
// about its own flags and arguments.
func TestEveryCommand(t *testing.T) {
	nowhere := filepath.Join(t.TempDir(), "none")
	_, all, _ := call(build, "help")
	everyCommand("", commands(), func(name []string, c command) {
		t.Run(strings.Join(name, " "), func(t *testing.T) {
			usage := strings.TrimSpace(strings.Join(name, " ") + " " + c.args)
			if !strings.Contains(all, "  "+usage+" ") {
				t.Errorf("`subnetd help` does not list %q", usage)
			}
			code, help, stderr := call(build, append(slices.Clone(name), "--help")...)
			if code != 0 || stderr != "" || !strings.Contains(help, "\nexample: subnetd "+strings.Join(name, " ")) || !strings.Contains(help, c.text) {
				t.Errorf("--help: %d, %q, %q", code, help, stderr)
			}
			if _, same, _ := call(build, append([]string{"help"}, name...)...); same != help {
				t.Errorf("help is %q one way, and %q the other", help, same)
			}
			example, _, _ := strings.Cut(c.example, " >")
			args := strings.Fields(example)
			if strings.Contains(help, "-socket") && name[0] != "run" {
				args = append(args, "--socket", nowhere)
			}
			if code, _, stderr := call(build, args...); code == exitUsage || len(name) > len(args) || !slices.Equal(args[:len(name)], name) {
				t.Errorf("the example is no use of it: %s", stderr)
			}
		})
	})
}
