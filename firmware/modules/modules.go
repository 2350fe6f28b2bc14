// Package modules loads the kernel's modules, with what depmod wrote beside them: modules.dep, modules.alias and
// modules.builtin.
package modules

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Set are the modules of one kernel. It is not safe for use by several goroutines.
type Set struct {
	dir     string
	files   map[string]string   // name -> path below dir
	needs   map[string][]string // name -> names, the last one to be loaded first
	builtin map[string]bool
	aliases map[string][]alias // by the letters before the first colon or wildcard
	loaded  map[string]bool
}

type alias struct{ pattern, name string }

// ErrNone means that there is no module of a name, and that nothing has such an alias.
var ErrNone = errors.New("there is no such module")

// Running are the modules of the running kernel.
func Running() (*Set, error) { return Below("/lib/modules") }

// Below are the modules of the running kernel in another root's folder of modules.
func Below(dir string) (*Set, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, err
	}
	return Open(filepath.Join(dir, unix.ByteSliceToString(u.Release[:])))
}

// Open reads what a folder, /lib/modules/VERSION, knows.
func Open(dir string) (*Set, error) {
	s := &Set{dir: dir, files: map[string]string{}, needs: map[string][]string{}, builtin: map[string]bool{},
		aliases: map[string][]alias{}, loaded: map[string]bool{}}
	for _, part := range []struct {
		file string
		read func(line string)
	}{{"modules.dep", s.dep}, {"modules.alias", s.alias}, {"modules.builtin", func(line string) { s.builtin[name(line)] = true }}} {
		text, err := os.ReadFile(filepath.Join(dir, part.file))
		if err != nil {
			return nil, err
		}
		for l := bufio.NewScanner(bytes.NewReader(text)); l.Scan(); {
			part.read(l.Text())
		}
	}
	return s, nil
}

// name is a module's name, as the kernel shows it, of its file's.
func name(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(path.Base(file), ".ko"), "-", "_")
}

// dep reads a line "FILE: FILE...": first what is needed last.
func (s *Set) dep(line string) {
	file, needs, ok := strings.Cut(line, ":")
	if !ok {
		return
	}
	s.files[name(file)] = file
	for _, f := range strings.Fields(needs) {
		s.needs[name(file)] = append(s.needs[name(file)], name(f))
	}
}

// alias reads a line "alias PATTERN MODULE".
func (s *Set) alias(line string) {
	if f := strings.Fields(line); len(f) == 3 && f[0] == "alias" {
		kind := kindOf(f[1])
		s.aliases[kind] = append(s.aliases[kind], alias{f[1], f[2]})
	}
}

func kindOf(pattern string) string {
	kind, _, _ := strings.Cut(pattern, ":")
	if strings.ContainsAny(kind, "*?[") {
		return ""
	}
	return kind
}

// For gives the names of the modules that a name or an alias, such as a device's, stands for.
func (s *Set) For(what string) []string {
	if n := name(what); s.files[n] != "" || s.builtin[n] {
		return []string{n}
	}
	var found []string
	for _, kind := range []string{kindOf(what), ""} {
		for _, a := range s.aliases[kind] {
			if ok, err := path.Match(a.pattern, what); ok && err == nil {
				found = append(found, a.name)
			}
		}
	}
	return found
}

// Load loads a module, by its name or an alias, with all that it needs. What is loaded or built in stays as it is.
func (s *Set) Load(what string) error {
	found := s.For(what)
	if len(found) == 0 {
		return fmt.Errorf("%s: %w", what, ErrNone)
	}
	var errs []error
	for _, n := range found {
		needs := s.needs[n]
		for i := len(needs) - 1; i >= 0; i-- {
			errs = append(errs, s.insert(needs[i], ""))
		}
		errs = append(errs, s.insert(n, ""))
	}
	return errors.Join(errs...)
}

// LoadWith is Load of one module by its name, with parameters for it.
func (s *Set) LoadWith(what, parameters string) error {
	n := name(what)
	var errs []error
	for i := len(s.needs[n]) - 1; i >= 0; i-- {
		errs = append(errs, s.insert(s.needs[n][i], ""))
	}
	return errors.Join(append(errs, s.insert(n, parameters))...)
}

func (s *Set) insert(n, parameters string) error {
	if s.loaded[n] || s.builtin[n] {
		return nil
	}
	f, err := os.Open(filepath.Join(s.dir, s.files[n]))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), parameters, 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("module %s: %w", n, err)
	}
	s.loaded[n] = true
	return nil
}

// Coldplug loads what the devices of all buses ask for. Those that another module brings ask again: it goes on until
// nothing new is loaded. A device without a module is none of ours; one whose module fails is an error, and the others
// are loaded all the same.
func (s *Set) Coldplug() error {
	asked := map[string]bool{}
	var errs []error
	for {
		before := len(s.loaded)
		devices, err := filepath.Glob("/sys/bus/*/devices/*/modalias")
		if err != nil {
			return err
		}
		for _, d := range devices {
			text, err := os.ReadFile(d)
			what := strings.TrimSpace(string(text))
			if err != nil || what == "" || asked[what] {
				continue // also one that has gone meanwhile
			}
			asked[what] = true
			if err := s.Load(what); err != nil && !errors.Is(err, ErrNone) {
				errs = append(errs, err)
			}
		}
		if len(s.loaded) == before {
			return errors.Join(errs...)
		}
	}
}
