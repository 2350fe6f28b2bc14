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

// tell is command for a program that reads a few words.
func tell(ctx context.Context, words string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, mostCommand)
	defer cancel()
	_, err := feed(ctx, strings.NewReader(words), args...)
	return err
}

// feed runs a program that reads from, until ctx ends, and gives what it said. That what it
// read was cut short it must find out itself.
func feed(ctx context.Context, from io.Reader, args ...string) (string, error) {
	p, to, out, err := start(args)
	if err != nil {
		return "", err
	}
	defer out.Close()
	defer context.AfterFunc(ctx, func() { _ = p.Kill() })()
	said := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(io.LimitReader(out, mostWords))
		_, _ = io.Copy(io.Discard, out) // or it would wait for us
		said <- b
	}()
	_, _ = io.Copy(to, from) // until it has read enough
	_ = to.Close()
	end, err := p.Wait()
	if err != nil {
		return "", err
	}
	_ = out.SetReadDeadline(time.Now().Add(lastWords))
	answer := <-said
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("stopped: %w: %q", ctx.Err(), answer)
	case !end.Success():
		return "", &commandError{end, answer}
	}
	return string(answer), nil
}

// commandError is a program that ran, and failed.
type commandError struct {
	*os.ProcessState
	said []byte
}

func (e *commandError) Error() string { return fmt.Sprintf("%s: %q", e.ProcessState, e.said) }

// start runs a program that reads what is written to to, and writes what is read from out.
func start(args []string) (p *os.Process, to, out *os.File, err error) {
	path, err := program(args[0])
	if err != nil {
		return nil, nil, nil, err
	}
	in, to, err := os.Pipe()
	if err != nil {
		return nil, nil, nil, err
	}
	defer in.Close()
	out, says, err := os.Pipe()
	if err != nil {
		return nil, nil, nil, errors.Join(err, to.Close())
	}
	defer says.Close()
	if p, err = os.StartProcess(path, args, &os.ProcAttr{Files: []*os.File{in, says, says}}); err != nil {
		return nil, nil, nil, errors.Join(err, to.Close(), out.Close())
	}
	return p, to, out, nil
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
