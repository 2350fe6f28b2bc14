package cli

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/status"
)

func statusCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	asJSON := fs.Bool("json", false, "for programs")
	return asking(fs, func(ctx context.Context, c *api.Client, _ []string) error {
		s, err := c.Status(ctx)
		if err != nil {
			return err
		}
		if *asJSON {
			return writeJSON(p.out, s)
		}
		return show(p.out, s, p.now())
	})
}

func netcheckCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	return asking(fs, func(ctx context.Context, c *api.Client, _ []string) error {
		v, err := c.Netcheck(ctx)
		if err != nil {
			return err
		}
		return writeJSON(p.out, v)
	})
}

func debugCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		if !slices.Contains([]string{"plan", "netmap", "paths"}, args[0]) {
			return usagef("debug knows plan, netmap and paths, not %q", args[0])
		}
		v, err := c.Debug(ctx, args[0])
		if err != nil {
			return err
		}
		return writeJSON(p.out, v)
	})
}

// show draws a snapshot: troubles first.
func show(w io.Writer, s status.Snapshot, now time.Time) error {
	b := &bytes.Buffer{}
	for _, p := range s.Problems {
		fmt.Fprintf(b, "! %s", printable(p.Text, ""))
		if !p.Since.IsZero() {
			fmt.Fprintf(b, " (for %s)", ago(now, p.Since))
		}
		b.WriteByte('\n')
		if p.Fix != "" {
			fmt.Fprintf(b, "  %s\n", printable(p.Fix, ""))
		}
	}
	if len(s.Problems) > 0 {
		b.WriteByte('\n')
	}
	showSelf(b, s, now)
	showPeers(b, s.Peers)
	_, err := w.Write(b.Bytes())
	return err
}

func showSelf(b *bytes.Buffer, s status.Snapshot, now time.Time) {
	var rows [][]string
	row := func(name, value string) {
		if value != "" {
			rows = append(rows, []string{name, value})
		}
	}
	row("mesh", membership(s, now))
	row("login", s.LoginURL)
	row("error", s.Error)
	row("name", s.Name)
	row("addresses", addresses(s.Addresses))
	if !s.KeyExpiry.IsZero() {
		row("key expires", day(s.KeyExpiry))
	}
	row("lan", strings.Join(s.LANs, ", "))
	row("offers", offers(withoutInternet(s.Exposed), s.Approved))
	row("exits", exitsLine(s.Exits, now))
	row("network", network(s))
	if s.Engine != "" {
		row("engine", s.Engine+because(s.EngineReason))
	}
	row("resolver", s.Resolver)
	row("system", system(s.System))
	table(b, rows)
}

// system says what this machine runs, and what the next start brings.
func system(s *status.System) string {
	switch {
	case s == nil:
		return ""
	case s.Update != nil:
		return fmt.Sprintf("%s, an update comes in: %d %%", s.Version, 100*s.Update.Done/max(s.Update.Size, 1))
	case s.Waiting:
		return s.Version + ", the next start tries another version, once"
	}
	return s.Version
}

func membership(s status.Snapshot, now time.Time) string {
	at := s.Control
	if at == "" {
		at = "no coordinator"
	}
	var how string
	switch s.Phase {
	case status.PhaseJoined:
		return "joined at " + at
	case status.PhaseDown:
		how = "down"
	case status.PhaseConnecting:
		how = "connecting to " + at
	case status.PhaseNeedsLogin:
		how = "waiting for a login at " + at
	case status.PhaseWaiting:
		how = "waiting for an approval at " + at
	case status.PhaseCached:
		how = "on the last known mesh, " + at + " does not answer"
	default:
		how = string(s.Phase)
	}
	if s.Phase != status.PhaseDown && !s.LastContact.IsZero() {
		how += ", last heard " + ago(now, s.LastContact) + " ago"
	}
	return how
}

func offers(exposed, approved []netip.Prefix) string {
	var out []string
	for _, p := range exposed {
		text := p.String()
		if !slices.Contains(approved, p) {
			text += " (not approved)"
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

func network(s status.Snapshot) string {
	var out []string
	if s.Port != 0 {
		out = append(out, fmt.Sprintf("port %d", s.Port))
	}
	if s.Port != 0 && !s.UDP {
		out = append(out, "UDP is blocked")
	}
	if s.HomeRelay != "" {
		out = append(out, "relay "+s.HomeRelay)
	}
	for _, e := range s.Endpoints {
		out = append(out, e.String())
	}
	return strings.Join(out, ", ")
}

func showPeers(b *bytes.Buffer, peers []status.Peer) {
	if len(peers) == 0 {
		return
	}
	b.WriteByte('\n')
	rows := [][]string{{"PEER", "ADDRESS", "OS", "PATH", "RTT", "RECEIVED", "SENT"}}
	for _, p := range peers {
		rows = append(rows, []string{strings.TrimSuffix(p.Name, "."), firstOf(p.Addresses), p.OS, way(p), rtt(p.RTT), size(p.Rx), size(p.Tx)})
	}
	table(b, rows)
}

// way says how a peer is reached, and why not better.
func way(p status.Peer) string {
	switch {
	case p.Path == "direct":
		return "direct " + p.Endpoint
	case p.Path == "relay":
		return "relay " + p.Relay + because(p.Reason)
	case !p.Online:
		return "offline"
	}
	return "idle" + because(p.Reason)
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return " (" + reason + ")"
}

// rtt prints milliseconds.
func rtt(ms float64) string {
	if ms == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f ms", ms)
}

// size prints bytes with a decimal unit.
func size(n uint64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, units := float64(n), "kMGTPE"
	for i := range units {
		if v /= 1000; v < 999.95 || i == len(units)-1 {
			return fmt.Sprintf("%.1f %cB", v, units[i])
		}
	}
	return ""
}

// ago is the time since t in its biggest unit.
func ago(now, t time.Time) string {
	switch d := now.Sub(t); {
	case d < time.Minute:
		return fmt.Sprintf("%d s", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	default:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	}
}

// day prints a time as the machine's owner reads it.
func day(t time.Time) string { return t.Local().Format("2006-01-02 15:04") }
