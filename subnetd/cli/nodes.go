package cli

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/status"
)

func nodesVerbs() []command {
	return []command{
		{"approve", "CODE", "let the device in that shows this code", "nodes approve ABCD-EFGH --user anna", approveCommand, nil},
		{"rename", "NODE NAME", "give a node another name", "nodes rename localhost tablet", renameCommand, nil},
		{"expire", "NODE", "make a node log in again, now or later", "nodes expire tablet --in 30d", expireCommand, nil},
		{"remove", "NODE", "throw a node out", "nodes remove tablet", removeCommand, nil},
		{"probe", "NODE", "ask a node over its connection to the coordinator whether it is there", "nodes probe tablet", probeCommand, nil},
		{"routes", "NODE [PREFIX...]", "show a node's routes, or approve exactly these; none: no one", "nodes routes cabin 192.168.7.0/24 fd07::/64", routesCommand, nil},
	}
}

func nodesCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	asJSON := fs.Bool("json", false, "for programs")
	return asking(fs, func(ctx context.Context, c *api.Client, _ []string) error {
		n, err := c.Nodes(ctx)
		if err != nil {
			return err
		}
		if *asJSON {
			return writeJSON(p.out, n)
		}
		return showNodes(p.out, n, p.now())
	})
}

func approveCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	user := fs.String("user", "", "whose device it becomes (default: as before, or the owner's)")
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		n, err := c.Approve(ctx, status.NodeRequest{Code: args[0], User: *user})
		return p.done(err, "%s is let in", who(n))
	})
}

func probeCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		n, err := c.Probe(ctx, status.NodeRequest{Node: args[0]})
		return p.done(err, "%s answers in %s", who(n), rtt(n.Answer))
	})
}

func renameCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		n, err := c.Rename(ctx, status.NodeRequest{Node: args[0], Name: args[1]})
		return p.done(err, "%s is %s now", args[0], who(n))
	})
}

func expireCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	var in time.Duration
	fs.Var((*span)(&in), "in", "how long from now: a `time` like 12h or 30d (default: now)")
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		n, err := c.Expire(ctx, status.NodeRequest{Node: args[0], In: in})
		if in > 0 {
			return p.done(err, "%s must log in again after %s", who(n), day(n.KeyExpiry))
		}
		return p.done(err, "%s must log in again", who(n))
	})
}

func removeCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		n, err := c.Remove(ctx, status.NodeRequest{Node: args[0]})
		return p.done(err, "%s is out", who(n))
	})
}

func routesCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	var approved []netip.Prefix
	ask := asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		if len(args) == 1 {
			n, err := findNode(ctx, c, args[0])
			if err != nil {
				return err
			}
			return showRoutes(p.out, n)
		}
		n, err := c.Routes(ctx, status.NodeRequest{Node: args[0], Routes: approved})
		if err != nil {
			return err
		}
		return showRoutes(p.out, n)
	})
	return func(ctx context.Context, args []string) (err error) {
		if approved, err = prefixes(args[1:]); err != nil {
			return err
		}
		return ask(ctx, args)
	}
}

// done says what has been done, unless err says that it has not.
func (p *program) done(err error, format string, a ...any) error {
	if err == nil {
		_, err = fmt.Fprintf(p.out, format+"\n", a...)
	}
	return err
}

// who names a node to people.
func who(n status.HomeNode) string {
	if len(n.Addresses) == 0 {
		return printable(n.Name, "")
	}
	return fmt.Sprintf("%s (%s)", printable(n.Name, ""), addresses(n.Addresses))
}

// prefixes reads what shall be approved: nothing if that is "none".
func prefixes(args []string) ([]netip.Prefix, error) {
	if len(args) == 1 && args[0] == "none" {
		return nil, nil
	}
	var out []netip.Prefix
	for _, s := range args {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, usagef("nodes routes: %q is no prefix: write it as 192.168.7.0/24 or fd07::/64, or none alone", s)
		}
		if p != p.Masked() {
			return nil, usagef("nodes routes: %s is an address in a network: the network is %s", p, p.Masked())
		}
		out = append(out, p)
	}
	return out, nil
}

// findNode looks for a node by name (full or first label), address or ID, as the
// coordinator does where something is changed.
func findNode(ctx context.Context, c *api.Client, target string) (status.HomeNode, error) {
	all, err := c.Nodes(ctx)
	if err != nil {
		return status.HomeNode{}, err
	}
	for _, n := range all.Nodes {
		if isNode(n, target) {
			return n, nil
		}
	}
	for _, n := range all.Nodes {
		if strconv.FormatInt(n.ID, 10) == target {
			return n, nil
		}
	}
	return status.HomeNode{}, fmt.Errorf("%w: %q; `subnetd nodes` lists them", api.ErrUnknownNode, target)
}

func isNode(n status.HomeNode, target string) bool {
	first, _, _ := strings.Cut(n.Name, ".")
	if strings.EqualFold(n.Name, strings.TrimSuffix(target, ".")) || strings.EqualFold(first, target) {
		return true
	}
	addr, err := netip.ParseAddr(target)
	for _, a := range n.Addresses {
		if err == nil && a == addr {
			return true
		}
	}
	return false
}

// showNodes draws who is in, each with what stands behind it, then who waits.
func showNodes(w io.Writer, all status.HomeNodes, now time.Time) error {
	b := &bytes.Buffer{}
	rows := [][]string{{"NAME", "ADDRESS", "USER/TAGS", "OS", "SEEN", "ROUTES"}}
	for _, n := range all.Nodes {
		rows = append(rows, []string{n.Name, firstOf(n.Addresses), owner(n.User, n.Tags), n.OS, seen(n, now), routes(n.Routes)})
		for _, d := range n.Devices {
			rows = append(rows, []string{"  " + d.Name, firstOf(d.Addresses)})
		}
	}
	table(b, rows)
	if len(all.Pending) > 0 {
		fmt.Fprint(b, "\nThese wait to be let in; `subnetd nodes approve CODE` does that:\n\n")
		rows = [][]string{{"CODE", "NAME", "OS", "FROM", "SINCE"}}
		for _, p := range all.Pending {
			rows = append(rows, []string{p.Code, p.Hostname, p.OS, p.From, ago(now, p.Since) + " ago"})
		}
		table(b, rows)
	}
	_, err := w.Write(b.Bytes())
	return err
}

func firstOf(as []netip.Addr) string {
	if len(as) == 0 {
		return ""
	}
	return as[0].String()
}

func owner(user string, tags []string) string {
	if len(tags) > 0 {
		return strings.Join(tags, ",")
	}
	return user
}

func seen(n status.HomeNode, now time.Time) string {
	var text string
	switch {
	case n.Self:
		return "this router"
	case n.Online:
		text = "online"
	case n.LastSeen.IsZero():
		text = "never"
	default:
		text = ago(now, n.LastSeen) + " ago"
	}
	if n.Expired {
		text += ", must log in again"
	}
	return text
}

func routes(rs []status.HomeRoute) string {
	var out []string
	for _, r := range rs {
		out = append(out, r.Prefix.String()+because(lacks(r)))
	}
	return strings.Join(out, ", ")
}

// lacks says why nothing goes this way; "": it does.
func lacks(r status.HomeRoute) string {
	switch {
	case !r.Approved:
		return "not approved"
	case !r.Offered:
		return "not offered"
	case !r.Primary:
		return "not in use"
	}
	return ""
}

func showRoutes(w io.Writer, n status.HomeNode) error {
	b := &bytes.Buffer{}
	if len(n.Routes) == 0 {
		fmt.Fprintf(b, "%s offers no routes, and none are approved\n", who(n))
	}
	var rows [][]string
	for _, r := range n.Routes {
		rows = append(rows, []string{r.Prefix.String(), cmp.Or(lacks(r), "in use")})
	}
	table(b, rows)
	_, err := w.Write(b.Bytes())
	return err
}
