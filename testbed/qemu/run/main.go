// Run boots a guest, runs one static program in it and ends with its exit code.
// usage: run [-arch ARCH] [-mem MB] [-cpus N] [-append TEXT] [-file GUEST=FILE]... [--] PROGRAM ARGS...
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"subnetd/testbed/qemu"
)

func main() {
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "run:", err)
	}
	os.Exit(code)
}

func run() (code int, err error) {
	o := qemu.Options{Files: map[string]string{}}
	arch := flag.String("arch", string(qemu.AMD64), "amd64, arm64, armv7 or mipsle")
	flag.IntVar(&o.MemoryMB, "mem", 256, "memory in MB")
	flag.IntVar(&o.CPUs, "cpus", 1, "number of CPUs")
	flag.StringVar(&o.Append, "append", "", "additions to the kernel's command line")
	flag.Func("file", "path in the guest=file, may be given again", func(s string) error {
		guest, file, ok := strings.Cut(s, "=")
		if !ok {
			return fmt.Errorf("%q has no =", s)
		}
		o.Files[guest] = file
		return nil
	})
	flag.Parse()
	if flag.NArg() == 0 {
		return 2, fmt.Errorf("which program? See -h")
	}
	o.Arch = qemu.Arch(*arch)
	program := "/root/" + filepath.Base(flag.Arg(0))
	o.Files[program] = flag.Arg(0)

	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	dir, err := os.MkdirTemp("", "subnetd-qemu-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	m, err := qemu.New(o, dir)
	if err != nil {
		return 1, err
	}
	defer m.Close()
	if err := m.On(ctx); err != nil {
		return 1, err
	}
	fmt.Fprintf(os.Stderr, "guest %s: up after %.1f s\n", o.Arch, m.BootTime().Seconds())
	code, err = m.Exec(ctx, qemu.Command{Args: append([]string{program}, flag.Args()[1:]...), Env: environment(), Dir: "/root",
		Stdout: os.Stdout, Stderr: os.Stderr})
	if err != nil {
		return 1, fmt.Errorf("%w; the guest's console:\n%s", err, m.ConsoleTail(60))
	}
	return code, nil
}

// environment is what of ours concerns a test in the guest.
func environment() []string {
	var env []string
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); name == "CI" || name == "GODEBUG" || name == "GOTRACEBACK" || strings.HasPrefix(name, "SUBNETD_TEST_") {
			env = append(env, e)
		}
	}
	return env
}
