// Package cli is the command line: it starts the daemon, or asks a running one.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"subnetd/subnetd/api"
)

// Where things are unless a flag says otherwise.
const (
	defaultConfig = "/etc/subnetd/subnetd.toml"
	defaultState  = "/var/lib/subnetd"
	defaultSocket = "/run/subnetd/subnetd.sock"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// RunOptions is where a daemon finds its things.
type RunOptions struct {
	Config, State, Socket string // paths
	LogLevel              slog.Level
	System                string // program that installs what this machine runs; "": none
}

// Build is what the program is told of itself by main.
type Build struct {
	Version string
	Run     func(context.Context, RunOptions) error       // serves until ctx ends, as it does at SIGINT and SIGTERM
	Guard   func(ctx context.Context, state string) error // closes what the daemon kept closed when it last ran
}

// Main does what the arguments (without the program's name) say and returns
// the exit code: 0, 1 for a failure, 2 for arguments that make no sense.
func Main(args []string, stdout, stderr io.Writer, b Build) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	p := &program{in: os.Stdin, out: stdout, err: stderr, colour: isTerminal(stdout), now: time.Now, build: b}
	return p.exit(ctx, args)
}

// program is one call of the command line.
type program struct {
	in       io.Reader
	out, err io.Writer
	colour   bool // out is a terminal
	now      func() time.Time
	build    Build
}

// exit does what the arguments say, complains if it fails, and gives the exit code.
func (p *program) exit(ctx context.Context, args []string) int {
	err := p.main(ctx, args)
	if err == nil {
		return exitOK
	}
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return exitFailed // the user pressed Ctrl-C and knows
	}
	fmt.Fprintf(p.err, "subnetd: %s\n", printable(err.Error(), "\n\t"))
	var usage usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailed
}

// usageError is a mistake in the arguments.
type usageError string

func (e usageError) Error() string { return string(e) }

func usagef(format string, a ...any) error { return usageError(fmt.Sprintf(format, a...)) }

// asking declares what every command has that asks the daemon.
func asking(fs *flag.FlagSet, do func(ctx context.Context, c *api.Client, args []string) error) func(context.Context, []string) error {
	socket := fs.String("socket", defaultSocket, "the daemon's socket")
	return func(ctx context.Context, args []string) error {
		c, err := api.Dial(*socket)
		if err != nil {
			return err
		}
		defer c.Close()
		return do(ctx, c, args)
	}
}

func versionCommand(p *program, _ *flag.FlagSet) func(context.Context, []string) error {
	return func(context.Context, []string) error {
		_, err := fmt.Fprintln(p.out, p.build.Version)
		return err
	}
}

func runCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	var o RunOptions
	fs.StringVar(&o.Config, "config", defaultConfig, "the owner's wishes, TOML")
	fs.StringVar(&o.State, "state", defaultState, "directory for keys and what else must last")
	fs.StringVar(&o.Socket, "socket", defaultSocket, "where the other commands find the daemon")
	fs.TextVar(&o.LogLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	fs.StringVar(&o.System, "system", "", "the program that updates this machine's system, and restarts it")
	return func(ctx context.Context, _ []string) error { return p.build.Run(ctx, o) }
}

func guardCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	dir := fs.String("state", defaultState, "the daemon's directory for what must last")
	return func(ctx context.Context, _ []string) error { return p.build.Guard(ctx, *dir) }
}
