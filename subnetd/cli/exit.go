package cli

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/status"
)

func exitVerbs() []command {
	return []command{
		{"use", "NODE[,NODE...] [DEVICE...]", "send devices to the internet through a node, blocked while none of them answers (a last node \"direct\": not blocked); " +
			"a device is a MAC, an address, a name, an interface, lan or router; none: the whole home", "exit use cabin,far 02:00:00:00:00:01 br-guest", exitUseCommand, nil},
		{"off", "[DEVICE...]", "let devices use the internet directly; none: all, and no row is left", "exit off printer", exitOffCommand, nil},
		{"offer", "on|off", "whether members of the mesh may use the internet from here", "exit offer on", exitOfferCommand, nil},
		{"test", "MAC|ADDRESS|NAME", "where the internet traffic of a device goes, and why", "exit test 02:00:00:00:00:01", exitTestCommand, nil},
	}
}

func exitCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	asJSON := fs.Bool("json", false, "for programs")
	return asking(fs, func(ctx context.Context, c *api.Client, _ []string) error {
		s, err := c.Status(ctx)
		if err != nil {
			return err
		}
		if *asJSON {
			return writeJSON(p.out, s.Exits)
		}
		return showExits(p.out, s.Exits, p.now())
	})
}

func exitUseCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		x, err := c.ExitUse(ctx, status.ExitUse{Exits: strings.Split(args[0], ","), Devices: args[1:]})
		return p.exits(x, err)
	})
}

func exitOffCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		if len(args) == 0 {
			if err := p.showGone(ctx, c); err != nil {
				return err
			}
		}
		x, err := c.ExitOff(ctx, status.ExitOff{Devices: args})
		return p.exits(x, err)
	})
}

// showGone says which rows go, so that they can be made again.
func (p *program) showGone(ctx context.Context, c *api.Client) error {
	s, err := c.Status(ctx)
	for _, r := range s.Exits.Rows {
		fmt.Fprintf(p.out, "off: %s\n", printable(strings.Join(r.Sources, ", ")+" -> "+strings.Join(r.Exits, ", "), ""))
	}
	return err
}

func exitOfferCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	ask := asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		x, err := c.ExitOffer(ctx, status.ExitOffer{On: args[0] == "on"})
		return p.exits(x, err)
	})
	return func(ctx context.Context, args []string) error {
		if args[0] != "on" && args[0] != "off" {
			return usagef("exit offer takes on or off, not %q", args[0])
		}
		return ask(ctx, args)
	}
}

func exitTestCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	asJSON := fs.Bool("json", false, "for programs")
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		t, err := c.ExitTest(ctx, args[0])
		if err != nil {
			return err
		}
		if *asJSON {
			return writeJSON(p.out, t)
		}
		_, err = fmt.Fprintln(p.out, printable(tested(t, p.now()), "\n"))
		return err
	})
}

// exits shows how all is after a change.
func (p *program) exits(x status.Exits, err error) error {
	if err != nil {
		return err
	}
	return showExits(p.out, x, p.now())
}

// manySources is how many of a row are shown.
const manySources = 4

func showExits(w io.Writer, x status.Exits, now time.Time) error {
	b := &bytes.Buffer{}
	table(b, [][]string{{"offer", offered(x)}, {"exits", cmp.Or(strings.Join(x.There, ", "), "no node of the mesh offers one")}})
	b.WriteByte('\n')
	if len(x.Rows) == 0 {
		b.WriteString("This home uses no exit: everything goes out here. `subnetd exit use NODE` changes that.\n")
	} else {
		rows := [][]string{{"ROW", "WHO", "THROUGH", "NOW"}}
		for _, r := range x.Rows {
			rows = append(rows, []string{strconv.Itoa(r.Row), sources(r.Sources), strings.Join(r.Exits, ", "), goesNow(r, now)})
		}
		table(b, rows)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// offered says whether members may use the internet from here.
func offered(x status.Exits) string {
	switch {
	case x.Offer && x.Approved:
		return "members may use the internet from here"
	case x.Offer:
		return "yes, but not approved by the coordinator"
	}
	return "no"
}

func sources(all []string) string {
	if len(all) <= manySources+1 {
		return strings.Join(all, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(all[:manySources], ", "), len(all)-manySources)
}

// goesNow is where a row leads, and why not where it should.
func goesNow(r status.ExitRow, now time.Time) string {
	text := r.Now
	switch {
	case r.No4:
		text += ", IPv4 blocked"
	case r.No6:
		text += ", IPv6 blocked"
	}
	why := r.Why
	if why != "" && !r.Since.IsZero() {
		why += ", for " + ago(now, r.Since)
	}
	return text + because(why)
}

// tested says what `exit test` has found.
func tested(t status.ExitTest, now time.Time) string {
	text := t.What
	if len(t.Addresses) > 0 {
		text += because(strings.Join(t.Addresses, ", "))
	}
	if t.Interface != "" {
		text += " on " + t.Interface
	}
	if t.Row == nil {
		text += " goes direct: no row is about it"
	} else {
		text += ": row " + strconv.Itoa(t.Row.Row) + ", " + sources(t.Row.Sources) + " -> " + strings.Join(t.Row.Exits, ", ") + "\nnow: " + goesNow(*t.Row, now)
	}
	if t.Unsure != "" {
		text += "\nbut " + t.Unsure
	}
	return text
}

// exitsLine is what `status` says of the rows: nothing if there are none.
func exitsLine(x status.Exits, now time.Time) string {
	var out []string
	if x.Offer {
		out = append(out, "offered"+map[bool]string{false: " (not approved)"}[x.Approved])
	}
	for _, r := range x.Rows {
		out = append(out, sources(r.Sources)+" -> "+goesNow(r, now))
	}
	return strings.Join(out, "; ")
}

// withoutInternet is what is offered of the LAN.
func withoutInternet(ps []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(ps), func(p netip.Prefix) bool { return p.Bits() == 0 })
}
