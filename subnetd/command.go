package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

const (
	mostCommand = 30 * time.Second // a program of the machine may run
	lastWords   = time.Second      // and whoever it started may still speak
	mostWords   = 500              // bytes that are kept of what it says
)

// programs are looked for here: who starts a router's daemon often sets no PATH.
const programs = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// command runs a program of this machine to its end. The error has what it said.
// os/exec does more, and is 65 kB larger on MIPS.
func command(ctx context.Context, args ...string) error { return tell(ctx, "", args...) }

// tell is command for a program that reads a few words, at most 4,096 bytes.
func tell(ctx context.Context, words string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, mostCommand)
	defer cancel()
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close()
	p, err := start(words, in, args)
	if err := errors.Join(err, in.Close()); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = p.Kill() })()
	said := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(io.LimitReader(out, mostWords))
		_, _ = io.Copy(io.Discard, out) // or it would wait for us
		said <- b
	}()
	end, err := p.Wait()
	if err != nil {
		return err
	}
	_ = out.SetReadDeadline(time.Now().Add(lastWords))
	answer := <-said
	if ctx.Err() != nil {
		return fmt.Errorf("stopped: %w: %q", ctx.Err(), answer)
	}
	if !end.Success() {
		return &commandError{end, answer}
	}
	return nil
}

// commandError is a program that ran, and failed.
type commandError struct {
	*os.ProcessState
	said []byte
}

func (e *commandError) Error() string { return fmt.Sprintf("%s: %q", e.ProcessState, e.said) }

func start(words string, out *os.File, args []string) (*os.Process, error) {
	path, err := program(args[0])
	if err != nil {
		return nil, err
	}
	in, to, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	_, err = to.WriteString(words) // a pipe holds them
	if err := errors.Join(err, to.Close()); err != nil {
		return nil, err
	}
	return os.StartProcess(path, args, &os.ProcAttr{Files: []*os.File{in, out, out}})
}

// program is where a program is.
func program(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for dir := range strings.SplitSeq(programs, ":") {
		path := dir + "/" + name
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("there is no program %s", name)
}
