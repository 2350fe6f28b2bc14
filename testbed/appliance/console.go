package appliance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// Console is a box's serial console: what it says, and a root's shell on it where the kernel's command line has
// appliance.shell.
type Console struct {
	conn net.Conn
	log  io.Writer

	mu    sync.Mutex
	said  []byte
	seen  int           // so much of it has been waited for
	more  chan struct{} // closed when there is more, or the end
	ended bool

	commands int
}

// newConsole reads a console. What it says goes to log, too, for whoever watches.
func newConsole(conn net.Conn, log io.Writer) *Console {
	c := &Console{conn: conn, log: log, more: make(chan struct{})}
	go c.read()
	return c
}

func (c *Console) read() {
	for buf := make([]byte, 4096); ; {
		n, err := c.conn.Read(buf)
		_, _ = c.log.Write(buf[:n])
		c.mu.Lock()
		c.said = append(c.said, buf[:n]...)
		close(c.more)
		c.more = make(chan struct{})
		c.ended = err != nil
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (c *Console) close() { _ = c.conn.Close() }

var errOff = errors.New("the power is off")

// Wait waits until something was said that no Wait has gone past yet.
func (c *Console) Wait(ctx context.Context, what string) error {
	_, err := c.match(ctx, regexp.MustCompile(regexp.QuoteMeta(what)))
	return err
}

// match waits for an expression and gives its groups.
func (c *Console) match(ctx context.Context, what *regexp.Regexp) ([]string, error) {
	for {
		c.mu.Lock()
		rest, more, ended := string(c.said[c.seen:]), c.more, c.ended
		at := what.FindStringSubmatchIndex(rest)
		if at != nil {
			c.seen += at[1]
		}
		c.mu.Unlock()
		switch {
		case at != nil:
			return what.FindStringSubmatch(rest), nil
		case ended:
			return nil, errOff
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Said reports whether the console has ever said something.
func (c *Console) Said(what string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Contains(string(c.said), what)
}

// Type types a line.
func (c *Console) Type(line string) error {
	_, err := c.conn.Write([]byte(line + "\n"))
	return err
}

// Run runs a line of the shell and gives what it printed, without what others say on the console meanwhile. An exit code is
// an error.
func (c *Console) Run(ctx context.Context, line string) (string, error) {
	c.commands++
	n := strconv.Itoa(c.commands)
	// Its lines are marked. Neither the mark nor its end is in what is typed, which the console repeats.
	if err := c.Type(`set -o pipefail; { ` + line + `; } 2>&1 | sed "s/^/=$((1))=/"; echo "en""d-` + n + `-$?-"`); err != nil {
		return "", err
	}
	m, err := c.match(ctx, regexp.MustCompile(`(?s)^(.*?)end-`+n+`-(\d+)-`))
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for _, l := range marked.FindAllStringSubmatch(m[1], -1) {
		out.WriteString(l[1] + "\n")
	}
	if m[2] != "0" {
		return out.String(), fmt.Errorf("%s: exit code %s: %s", line, m[2], out.String())
	}
	return out.String(), nil
}

// mark begins each line that a command prints.
const mark = "=1="

var marked = regexp.MustCompile(`(?m)^` + mark + `([^\r\n]*)`)

// Tail gives the last n lines.
func (c *Console) Tail(n int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := strings.Split(strings.TrimRight(string(c.said), "\r\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
