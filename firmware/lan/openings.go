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
	"time"
)

// openings are the ports that subnetd needs for the internet.
type openings struct{ UDP, TCP []uint16 }

const (
	askAgain   = 30 * time.Second // a daemon that nobody has told of
	mostAnswer = 8 << 20
)

// doorman asks subnetd by its socket which ports it needs, whenever its configuration is
// another: the owner changes that on the page, too.
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
	known, last := false, uint64(0)
	for lines.Scan() {
		var snapshot struct{ Generation uint64 } // of the configuration
		if err := json.Unmarshal(lines.Bytes(), &snapshot); err != nil {
			return err
		}
		if known && snapshot.Generation == last {
			continue
		}
		o, err := ask(ctx, c)
		if err != nil {
			return err
		}
		if known, last = len(o.UDP) > 0, snapshot.Generation; known { // else it has not chosen its port yet
			d.tell(ctx, o)
		}
	}
	return errors.Join(lines.Err(), io.EOF)
}

func ask(ctx context.Context, c *http.Client) (openings, error) {
	body, err := get(ctx, c, "/v1/debug/plan")
	if err != nil {
		return openings{}, err
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, mostAnswer))
	if err != nil {
		return openings{}, err
	}
	return parsePlan(text)
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

func parsePlan(text []byte) (openings, error) {
	var plan struct {
		Host struct{ Firewall struct{ Openings openings } }
	}
	err := json.Unmarshal(text, &plan)
	return plan.Host.Firewall.Openings, err
}
