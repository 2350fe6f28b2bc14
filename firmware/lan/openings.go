package lan

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"
)

// openings are the ports that subnetd needs for the internet.
type openings struct{ UDP, TCP []uint16 }

const (
	askAgain   = 30 * time.Second // a daemon that nobody has told of
	mostAnswer = 8 << 20
)

// doorman is told by subnetd, over its socket, which ports it needs, whenever these are
// others: the owner changes them on the page, too.
type doorman struct {
	socket string
	wake   <-chan struct{} // subnetd may have come up
	tell   func(context.Context, openings)
}

func (d *doorman) run(ctx context.Context) error {
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", d.socket)
	}}}
	defer c.CloseIdleConnections()
	for {
		_ = d.follow(ctx, c) // it ends when the daemon does; the ports stay as they are
		select {
		case <-ctx.Done():
			return nil
		case <-d.wake:
		case <-time.After(askAgain):
		}
	}
}

// follow reads the daemon's snapshots, one a line, as long as it runs.
func (d *doorman) follow(ctx context.Context, c *http.Client) error {
	body, err := get(ctx, c, "/v1/watch")
	if err != nil {
		return err
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, mostAnswer)
	var last openings
	for lines.Scan() {
		var snapshot struct{ Openings openings }
		if err := json.Unmarshal(lines.Bytes(), &snapshot); err != nil {
			return err
		}
		now := snapshot.Openings
		if len(now.UDP) == 0 || slices.Equal(now.UDP, last.UDP) && slices.Equal(now.TCP, last.TCP) {
			continue // it has not chosen its port yet; or something else is new
		}
		d.tell(ctx, now)
		last = now
	}
	return errors.Join(lines.Err(), io.EOF)
}

func get(ctx context.Context, c *http.Client, path string) (io.ReadCloser, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://subnetd"+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := c.Do(r)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		_ = res.Body.Close()
		return nil, fmt.Errorf("subnetd: %s: %s", path, res.Status)
	}
	return res.Body, nil
}
