package cli

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"subnetd/subnetd/api"

	"golang.org/x/sys/unix"
)

// webPasswordCommand sets the page's password to the first line of standard input.
func webPasswordCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	return asking(fs, func(ctx context.Context, c *api.Client, _ []string) error {
		password, err := p.secretLine("New password of the page: ")
		if err != nil {
			return err
		}
		if err := c.SetPassword(ctx, password); err != nil {
			return err
		}
		_, err = fmt.Fprintln(p.out, "The page has that password now; whoever was logged in by another must log in again.")
		return err
	})
}

// mostLine bounds what is read of standard input for one line, in bytes.
const mostLine = 1 << 10

// secretLine reads a line; on a terminal it asks for it, and nobody sees what is typed.
func (p *program) secretLine(ask string) (string, error) {
	if f, ok := p.in.(*os.File); ok {
		if was, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			fmt.Fprint(p.err, ask)
			quiet := *was
			quiet.Lflag &^= unix.ECHO
			if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, &quiet); err != nil {
				return "", err
			}
			defer func() {
				_ = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, was)
				fmt.Fprintln(p.err)
			}()
		}
	}
	line, err := bufio.NewReader(io.LimitReader(p.in, mostLine)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return strings.TrimRight(line, "\r\n"), nil
}
