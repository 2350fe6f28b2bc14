// Package cli is the command line: it starts the daemon, or asks a running one.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os/signal"
	"strings"
	"syscall"

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
}

// Build is what the program is told of itself by main.
type Build struct {
	Version string
	Run     func(RunOptions) error // serves until a signal
}

// Main does what the arguments (without the program's name) say and returns
// the exit code: 0, 1 for a failure, 2 for arguments that make no sense.
func Main(args []string, stdout, stderr io.Writer, b Build) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	p := &program{out: stdout, err: stderr, build: b}
	err := p.main(ctx, args)
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "subnetd: %v\n", err)
		return exitUsage
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return exitFailed // the user pressed Ctrl-C and knows
	}
	fmt.Fprintf(stderr, "subnetd: %v\n", err)
	return exitFailed
}

// usageError is a mistake in the arguments.
type usageError string

func (e usageError) Error() string { return string(e) }

func usagef(format string, a ...any) error { return usageError(fmt.Sprintf(format, a...)) }

// program is one call of the command line.
type program struct {
	out, err io.Writer
	build    Build
}

// command is one verb.
type command struct {
	name, args, text string
	// start declares the flags and gives what is done once they are parsed.
	start func(p *program, fs *flag.FlagSet) func(ctx context.Context, args []string) error
}

func commands() []command {
	return []command{
		{"run", "", "be the daemon, until a signal", runCommand},
		{"up", "", "join a mesh", upCommand},
		{"down", "", "leave the mesh until `up`, and take every trace off this machine's network", downCommand},
		{"logout", "", "leave the mesh for good: the coordinator forgets this node", logoutCommand},
		{"status", "", "how this node and its peers stand", statusCommand},
		{"ping", "NAME|ADDRESS", "ask a peer, and say over which way", pingCommand},
		{"netcheck", "", "how this network treats us: UDP, NAT, relays", netcheckCommand},
		{"debug", "plan|netmap|paths", "the daemon's inside, as JSON", debugCommand},
		{"version", "", "print the version", versionCommand},
	}
}

func (p *program) main(ctx context.Context, args []string) error {
	if len(args) == 0 {
		p.usage(p.err)
		return usagef("no command given")
	}
	name, args := args[0], args[1:]
	if name == "help" || name == "-h" || name == "-help" || name == "--help" {
		if len(args) == 0 {
			p.usage(p.out)
			return nil
		}
		name, args = args[0], []string{"--help"}
	}
	if name == "--version" {
		name = "version"
	}
	for _, c := range commands() {
		if c.name == name {
			return p.command(ctx, c, args)
		}
	}
	return usagef("there is no command %q: `subnetd help` lists them", name)
}

func (p *program) usage(w io.Writer) {
	fmt.Fprint(w, "subnetd opens a home LAN to a private mesh.\n\nusage: subnetd COMMAND [flags]\n\n")
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-24s %s\n", strings.TrimSpace(c.name+" "+c.args), c.text)
	}
	fmt.Fprint(w, "\n`subnetd help COMMAND` lists its flags.\n")
}

func (p *program) command(ctx context.Context, c command, args []string) error {
	fs := flag.NewFlagSet(c.name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	do := c.start(p, fs)
	rest, err := parse(fs, args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(p.out, "usage: subnetd %s\n\n%s.\n\n", strings.TrimSpace(c.name+" [flags] "+c.args), c.text)
		fs.SetOutput(p.out)
		fs.PrintDefaults()
		return nil
	}
	if err != nil {
		return usagef("%s: %v; `subnetd help %s` lists its flags", c.name, err, c.name)
	}
	if c.args == "" && len(rest) > 0 {
		return usagef("%s takes no arguments, got %q", c.name, rest[0])
	}
	if c.args != "" && len(rest) != 1 {
		return usagef("usage: subnetd %s %s", c.name, c.args)
	}
	return do(ctx, rest)
}

// parse allows flags before and after the other arguments.
func parse(fs *flag.FlagSet, args []string) (rest []string, err error) {
	for {
		if err := fs.Parse(args); err != nil {
			return nil, err
		}
		if fs.NArg() == 0 {
			return rest, nil
		}
		rest, args = append(rest, fs.Arg(0)), fs.Args()[1:]
	}
}

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
	return func(context.Context, []string) error { return p.build.Run(o) }
}
