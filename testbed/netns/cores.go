package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Cores are the machine's cores as two sides of a measurement share them: the server has one, those who ask have
// another. On a machine with one core they meet there.
type Cores struct {
	t    testing.TB
	Both bool // there are two
	all  unix.CPUSet
	list []int
}

// Cores takes note of the cores; when the test ends, its process may use all of them again.
func (l *Lab) Cores() *Cores {
	l.t.Helper()
	c := &Cores{t: l.t}
	if err := unix.SchedGetaffinity(os.Getpid(), &c.all); err != nil {
		l.t.Fatal(err)
	}
	for i := range 64 * len(c.all) {
		if c.all.IsSet(i) {
			c.list = append(c.list, i)
		}
	}
	c.Both = len(c.list) > 1
	l.t.Cleanup(func() { c.keep(&c.all) })
	return c
}

// Server makes what start starts live on the first core, its Go runtime with GOMAXPROCS=1, and leaves this process and
// what it starts later on the last.
func (c *Cores) Server(start func()) {
	c.t.Helper()
	c.pin(c.list[0])
	was, had := os.LookupEnv("GOMAXPROCS")
	os.Setenv("GOMAXPROCS", "1")
	start()
	if had {
		os.Setenv("GOMAXPROCS", was)
	} else {
		os.Unsetenv("GOMAXPROCS")
	}
	c.pin(c.list[len(c.list)-1])
}

func (c *Cores) pin(core int) {
	c.t.Helper()
	var one unix.CPUSet
	one.Set(core)
	c.keep(&one)
}

// keep binds every thread of this process. Processes get the cores of the thread that starts them, and threads too: so
// once all are bound, and no new one has appeared meanwhile, it holds for the future.
func (c *Cores) keep(set *unix.CPUSet) {
	c.t.Helper()
	bound := map[int]bool{}
	for {
		tasks, err := filepath.Glob("/proc/self/task/*")
		if err != nil || len(tasks) == 0 {
			c.t.Fatalf("the threads of this process: %v", err)
		}
		grown := false
		for _, task := range tasks {
			tid, err := strconv.Atoi(filepath.Base(task))
			if err != nil || bound[tid] {
				continue
			}
			if err := unix.SchedSetaffinity(tid, set); err != nil && !errors.Is(err, unix.ESRCH) {
				c.t.Fatalf("binding thread %d: %v", tid, err)
			}
			bound[tid], grown = true, true
		}
		if !grown {
			return
		}
	}
}

// userHZ is the unit of CPU time in /proc on every Linux that Go runs on.
const userHZ = 100

// CPUSeconds is the time that a process of this machine has used the cores.
func CPUSeconds(t testing.TB, pid int) float64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	return cpuSeconds(t, string(text))
}

// cpuSeconds reads a process's stat file.
func cpuSeconds(t testing.TB, stat string) float64 {
	t.Helper()
	// The name in parentheses may hold anything; after it the fields count from the third on.
	_, rest, _ := strings.Cut(stat, ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		t.Fatalf("a process's stat on %s: %s", runtime.GOOS, stat)
	}
	user, err1 := strconv.ParseFloat(f[11], 64)
	system, err2 := strconv.ParseFloat(f[12], 64)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return (user + system) / userHZ
}
