package cli

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"time"

	"subnetd/subnetd/api"
)

const (
	pingsMost  = 10 // without -c: unless a direct path is found before
	pingsPause = time.Second
)

func pingCommand(p *program, fs *flag.FlagSet) func(context.Context, []string) error {
	count := fs.Int("c", 0, "how many pings; 0: until the path is direct, at most 10")
	return asking(fs, func(ctx context.Context, c *api.Client, args []string) error {
		if *count < 0 {
			return usagef("ping: -c %d makes no sense", *count)
		}
		return p.ping(ctx, c, args[0], *count)
	})
}

// ping succeeds if any answer came.
func (p *program) ping(ctx context.Context, c *api.Client, target string, count int) error {
	most := count
	if count == 0 {
		most = pingsMost
	}
	var answered bool
	var failed error
	tick := time.NewTicker(pingsPause)
	defer tick.Stop()
	for i := range most {
		if i > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
		}
		r, err := c.Ping(ctx, target)
		if err != nil && !strings.HasPrefix(err.Error(), api.ErrSilent.Error()) {
			return err // asking again will not help
		}
		if err != nil {
			failed = err
			fmt.Fprintln(p.err, printable(err.Error(), ""))
			continue
		}
		answered = true
		fmt.Fprintln(p.out, pong(r))
		if count == 0 && r.Path.Kind == "direct" {
			return nil
		}
	}
	if answered {
		return nil
	}
	return failed
}

func pong(r api.PingResult) string {
	way := "from " + r.Path.Addr.String()
	if r.Path.Kind != "direct" {
		way = "by relay " + r.Relay + because(r.Path.Reason)
	}
	return fmt.Sprintf("pong of %s (%s) %s in %.1f ms", printable(r.Name, ""), r.Addr, printable(way, ""), float64(r.Path.RTT)/float64(time.Millisecond))
}
