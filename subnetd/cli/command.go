package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// command is one thing that the program can be told to do, or the verbs that
// follow its name.
type command struct {
	name    string
	args    string // what it takes, as in "NODE [PREFIX...]": it is held to that
	text    string // what it does
	example string // how it is used, after the program's name
	// start declares the flags and gives what is done once they are parsed. Nil
	// if only the verbs do something.
	start func(p *program, fs *flag.FlagSet) func(ctx context.Context, args []string) error
	verbs []command
}

func commands() []command {
	return []command{
		{"run", "", "be the daemon, until a signal", "run --log-level debug", runCommand, nil},
		{"guard", "", "at boot, before the network: what may use the internet by an exit only is held back, daemon or not", "guard", guardCommand, nil},
		{"up", "", "join a mesh", "up --control https://headscale.example --auth-key file:/root/key", upCommand, nil},
		{"down", "", "leave the mesh until `up`, and take every trace off this machine's network", "down", downCommand, nil},
		{"logout", "", "leave the mesh for good: the coordinator forgets this node", "logout", logoutCommand, nil},
		{"status", "", "how this node and its peers stand", "status", statusCommand, nil},
		{"ping", "NAME|ADDRESS", "ask a peer, and say over which way", "ping phone", pingCommand, nil},
		{"netcheck", "", "how this network treats us: UDP, NAT, relays", "netcheck", netcheckCommand, nil},
		{"exit", "", "through which nodes this home uses the internet, and whether it is an exit itself", "exit", exitCommand, exitVerbs()},
		{"devices", "", "the things at home, and how the mesh reaches them", "devices", devicesCommand, devicesVerbs()},
		{"whois", "ADDRESS|NAME", "whose an address is: a member's, or a device's", "whois 100.64.5.5", whoisCommand, nil},
		{"cert", "[NAME]", "the certificates of this home; with the name of a member or a device: make one for it, and write it and its key", "cert nas --out /etc/nginx", certCommand, certVerbs()},
		{"send", "FILE... NODE", "send files to a member of the mesh; what arrived before a cut is not sent again", "send photo.jpg phone", sendCommand, nil},
		{"inbox", "", "the files that members have sent here, and those under way", "inbox", inboxCommand, inboxVerbs()},
		{"invite", "", "let a new device into the mesh of this router: a key, and how to use it", "invite --expires 7d --tags tag:printer", inviteCommand, nil},
		{"nodes", "", "who is in the mesh of this router, and who waits to be let in", "nodes", nodesCommand, nodesVerbs()},
		{"keys", "", "the keys that `invite` has made", "keys", keysCommand, []command{
			{"revoke", "ID", "make a key worthless; who came by it stays", "keys revoke 3", revokeCommand, nil},
		}},
		{"policy", "", "who may reach what in the mesh of this router", "", nil, []command{
			{"check", "FILE", "whether a policy could be put in force; -: standard input", "policy check /etc/subnetd/policy.hujson", checkCommand, nil},
			{"show", "", "the policy in force", "policy show > policy.hujson", policyCommand, nil},
		}},
		{"update", "FILE", "install another version of this machine's whole system: the next start tries it, once", "update --restart update.img", updateCommand, nil},
		{"web", "", "the page of this router", "", nil, []command{
			{"password", "", "set the page's password, whatever it was: a line of standard input", "web password", webPasswordCommand, nil},
		}},
		{"debug", "plan|netmap|paths", "the daemon's inside, as JSON", "debug plan", debugCommand, nil},
		{"version", "", "print the version", "version", versionCommand, nil},
	}
}

func (p *program) main(ctx context.Context, args []string) error {
	if len(args) == 0 {
		p.usage(p.err)
		return usagef("no command given")
	}
	switch args[0] {
	case "help", "-h", "-help", "--help":
		if len(args) == 1 {
			p.usage(p.out)
			return nil
		}
		args = append(slices.Clone(args[1:]), "--help")
	case "--version":
		args = append([]string{"version"}, args[1:]...)
	}
	c, ok := named(commands(), args[0])
	if !ok {
		return usagef("there is no command %q: `subnetd help` lists them", args[0])
	}
	return p.command(ctx, c, args[1:])
}

func named(cs []command, name string) (command, bool) {
	i := slices.IndexFunc(cs, func(c command) bool { return c.name == name })
	if i < 0 {
		return command{}, false
	}
	return cs[i], true
}

func (p *program) usage(w io.Writer) {
	fmt.Fprint(w, "subnetd opens a home LAN to a private mesh.\n\nusage: subnetd COMMAND [flags]\n\n")
	list(w, "", commands())
	fmt.Fprint(w, "\n`subnetd help COMMAND` lists its flags.\n")
}

// list prints each command that does something, verbs after what they belong to.
func list(w io.Writer, before string, cs []command) {
	for _, c := range cs {
		if c.start != nil {
			fmt.Fprintf(w, "  %-30s %s\n", strings.TrimSpace(before+c.name+" "+c.args), c.text)
		}
		list(w, before+c.name+" ", c.verbs)
	}
}

// command does c, or the verb of it that stands first.
func (p *program) command(ctx context.Context, c command, args []string) error {
	if len(args) > 0 {
		if verb, ok := named(c.verbs, args[0]); ok {
			verb.name = c.name + " " + verb.name
			return p.command(ctx, verb, args[1:])
		}
	}
	fs := flag.NewFlagSet(c.name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	var do func(context.Context, []string) error
	if c.start != nil {
		do = c.start(p, fs)
	}
	rest, err := parse(fs, args)
	if errors.Is(err, flag.ErrHelp) {
		p.help(c, fs)
		return nil
	}
	if err != nil {
		return usagef("%s: %v; `subnetd help %s` lists its flags", c.name, err, c.name)
	}
	if err := c.takes(rest); err != nil {
		return err
	}
	return do(ctx, rest)
}

func (p *program) help(c command, fs *flag.FlagSet) {
	if c.start != nil {
		fmt.Fprintf(p.out, "usage: subnetd %s\n\n%s.\n\nexample: subnetd %s\n\n", strings.TrimSpace(c.name+" [flags] "+c.args), c.text, c.example)
	} else {
		fmt.Fprintf(p.out, "usage: subnetd %s VERB\n\n%s.\n", c.name, c.text)
	}
	fs.SetOutput(p.out)
	fs.PrintDefaults()
	if len(c.verbs) > 0 {
		fmt.Fprintln(p.out, "\nand its verbs:")
		list(p.out, c.name+" ", c.verbs)
	}
}

// takes refuses arguments that are too many or too few, or no verb.
func (c command) takes(args []string) error {
	least, most := arity(c.args)
	if c.start != nil && least <= len(args) && len(args) <= most {
		return nil
	}
	var verbs []string
	for _, v := range c.verbs {
		verbs = append(verbs, v.name)
	}
	switch {
	case len(verbs) == 0 && most == 0:
		return usagef("%s takes no arguments, got %q", c.name, args[0])
	case len(verbs) == 0:
		return usagef("usage: subnetd %s %s", c.name, c.args)
	case len(args) == 0:
		return usagef("%s what? There is %s", c.name, strings.Join(verbs, ", "))
	case slices.Contains(verbs, args[0]):
		return usagef("%s: flags stand behind the verb, as in `subnetd %s %s --help`", c.name, c.name, args[0])
	}
	return usagef("%s knows %s, not %q", c.name, strings.Join(verbs, ", "), args[0])
}

// arity reads how many arguments a command takes: words in brackets may be left
// out, and dots mean any number.
func arity(args string) (least, most int) {
	for _, word := range strings.Fields(args) {
		if !strings.HasPrefix(word, "[") {
			least++
		}
		if strings.Contains(word, "...") {
			most = math.MaxInt
		} else if most < math.MaxInt {
			most++
		}
	}
	return least, most
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
