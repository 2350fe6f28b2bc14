package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"

	"subnetd/subnetd/api"
	"subnetd/subnetd/status"
)

// authKeyEnv may hold the key, so that it is in no list of processes.
const authKeyEnv = "SUBNETD_AUTH_KEY"

func upCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	var r api.UpRequest
	fs.StringVar(&r.Control, "control", "", "the coordinator's URL (default: as before)")
	fs.StringVar(&r.AuthKey, "auth-key", "", "a key to join without a login: the key, or file:PATH (default: $"+authKeyEnv+")")
	fs.StringVar(&r.Hostname, "hostname", "", "this node's name in the mesh (default: as before, or the system's)")
	timeout := fs.Duration("timeout", 0, "give up waiting after this long; 0: wait for ever")
	return asking(fs, func(ctx context.Context, c *api.Client, _ []string) error {
		if *timeout < 0 {
			return usagef("up: a negative --timeout makes no sense")
		}
		var err error
		if r.AuthKey, err = authKey(r.AuthKey); err != nil {
			return err
		}
		if *timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, *timeout)
			defer cancel()
		}
		err = c.Up(ctx, r)
		if err == nil {
			err = p.waitJoined(ctx, c)
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("not joined after %v: the daemon goes on trying, `subnetd status` says how it stands", *timeout)
		}
		return err
	})
}

// authKey finds the key that the flag means.
func authKey(value string) (string, error) {
	if value == "" {
		value = os.Getenv(authKeyEnv)
	}
	file, ok := strings.CutPrefix(value, "file:")
	if !ok {
		return strings.TrimSpace(value), nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("the auth key cannot be read: %w", err)
	}
	if strings.TrimSpace(string(b)) == "" {
		return "", fmt.Errorf("the file %s holds no auth key", file)
	}
	return strings.TrimSpace(string(b)), nil
}

// waitJoined tells what stands between this node and the mesh until nothing does.
func (p *program) waitJoined(ctx context.Context, c *api.Client) error {
	var last string
	say := func(text string) {
		if text != last {
			fmt.Fprintln(p.out, text)
			last = text
		}
	}
	var refused error
	err := c.Watch(ctx, func(s status.Snapshot) bool {
		switch {
		case s.Phase == status.PhaseJoined:
			say(fmt.Sprintf("joined as %s (%s)", printable(s.Name, ""), addresses(s.Addresses)))
			return false
		case s.LoginURL != "":
			say("to let this node in, open:\n\n\t" + printable(s.LoginURL, "") + "\n")
		case s.Error != "":
			refused = errors.New(s.Error)
			return false
		case s.Phase == status.PhaseWaiting:
			say("waiting until an admin of the mesh approves this node")
		case s.Phase == status.PhaseDown:
			refused = errors.New("somebody said `subnetd down` meanwhile")
			return false
		}
		return true
	})
	switch {
	case refused != nil:
		return refused
	case errors.Is(err, io.EOF):
		return errors.New("the daemon stopped: its log says why")
	}
	return err
}

func downCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	return asking(fs, func(ctx context.Context, c *api.Client, _ []string) error { return c.Down(ctx) })
}

func logoutCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	return asking(fs, func(ctx context.Context, c *api.Client, _ []string) error { return c.Logout(ctx) })
}

func addresses(as []netip.Addr) string {
	var out []string
	for _, a := range as {
		out = append(out, a.String())
	}
	return strings.Join(out, ", ")
}
