package cli

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/qr"
	"subnetd/subnetd/status"
)

func inviteCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	r := status.InviteRequest{Expires: 24 * time.Hour}
	fs.StringVar(&r.User, "user", "", "whose device it becomes (default: the owner's)")
	fs.Func("tags", "what the device is for, instead of a user: `tag:a,tag:b`", func(s string) (err error) {
		r.Tags, err = tags(s)
		return err
	})
	fs.Var((*span)(&r.Expires), "expires", "how long the key is good: a `time` like 12h or 30d")
	fs.BoolVar(&r.Reusable, "reusable", false, "the key lets in any number of devices")
	fs.BoolVar(&r.Ephemeral, "ephemeral", false, "the device is forgotten once it is gone")
	asJSON := fs.Bool("json", false, "for programs")
	noQR := fs.Bool("no-qr", false, "no QR code")
	return asking(fs, func(ctx context.Context, c *api.Client, _ []string) error {
		i, err := c.Invite(ctx, r)
		if err != nil {
			return err
		}
		if *asJSON {
			return writeJSON(p.out, i)
		}
		return showInvite(p.out, i, invitation{reusable: r.Reusable, qr: !*noQR, colour: p.colour})
	})
}

// invitation is how an invite is shown.
type invitation struct{ reusable, qr, colour bool }

// showInvite tells how a device joins, and last, where it is seen, what stands
// between.
func showInvite(w io.Writer, i status.Invite, how invitation) error {
	b := &bytes.Buffer{}
	url := printable(i.URL, "")
	fmt.Fprintf(b, "On a computer with Tailscale:\n\n\t%s\n\n", printable(i.Line, ""))
	fmt.Fprintf(b, "On a phone, in the Tailscale app: account settings, then \"use an alternate server\" (or \"custom coordination server\"):\n\n\t%s\n\n", url)
	if code, err := qr.Encode(i.URL); how.qr && err == nil { // one that is too long for a code can be typed
		drawQR(b, code, how.colour)
		b.WriteByte('\n')
	}
	fmt.Fprintf(b, "Then give it the key %s, or log in: the page shows a code, and `subnetd nodes approve CODE` lets the phone in.\n\n", printable(i.Key, ""))
	uses := "one device"
	if how.reusable {
		uses = "any number of devices"
	}
	fmt.Fprintf(b, "The key is good for %s, until %s. `subnetd keys revoke %s` takes it back.\n", uses, day(i.Expires), printable(i.ID, ""))
	if len(i.Missing) > 0 {
		b.WriteByte('\n')
	}
	for _, m := range i.Missing {
		fmt.Fprintf(b, "! %s\n", printable(m, ""))
	}
	_, err := w.Write(b.Bytes())
	return err
}

// tags reads a list of tags.
func tags(s string) ([]string, error) {
	all := strings.Split(s, ",")
	for _, t := range all {
		if name, ok := strings.CutPrefix(t, "tag:"); !ok || name == "" {
			return nil, fmt.Errorf("%q is no tag: write tag:NAME, several as tag:a,tag:b", t)
		}
	}
	return all, nil
}

// mostSpan is ten years.
const mostSpan = 3653 * 24 * time.Hour

// span is a flag for a time from now: what time.ParseDuration reads, and days,
// as in 30d or 1d12h.
type span time.Duration

// String is the flag's default (flag.Value).
func (s *span) String() string {
	if *s == 0 {
		return ""
	}
	return fmt.Sprintf("%gh", time.Duration(*s).Hours())
}

// Set takes what stands behind the flag (flag.Value).
func (s *span) Set(text string) error {
	d, err := parseSpan(text)
	if err != nil || d <= 0 || d > mostSpan {
		return errors.New("a time like 12h or 30d is wanted, more than 0 and at most 10 years")
	}
	*s = span(d)
	return nil
}

func parseSpan(text string) (time.Duration, error) {
	before, rest, ok := strings.Cut(text, "d")
	if !ok {
		return time.ParseDuration(text)
	}
	days, err := strconv.ParseUint(before, 10, 12)
	if err != nil {
		return 0, err
	}
	d := time.Duration(days) * 24 * time.Hour
	if rest == "" {
		return d, nil
	}
	more, err := time.ParseDuration(rest)
	if more < 0 || more > mostSpan {
		return 0, fmt.Errorf("%q is out of range", rest)
	}
	return d + more, err
}
