package netns_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"time"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

// relayConn is a raw member's connection to the relay.
type relayConn struct {
	*derp.Client
	nc  net.Conn
	brw *bufio.ReadWriter
}

// dialRelay connects to the relay as a node. It verifies no certificate: that is the stock client's part.
func dialRelay(ctx context.Context, dial func(context.Context) (net.Conn, error), node key.NodePrivate) (*relayConn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	nc, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	tc := tls.Client(nc, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	c := &relayConn{nc: tc, brw: bufio.NewReadWriter(bufio.NewReader(tc), bufio.NewWriter(tc))}
	if err := c.upgrade(); err != nil {
		nc.Close()
		return nil, err
	}
	c.Client, err = derp.NewClient(node, tc, c.brw, func(string, ...any) {})
	if err == nil {
		// Only what comes now tells whether the relay takes this node: its greeting, or the end.
		_, err = c.Recv()
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	return c, nil
}

func (c *relayConn) upgrade() error {
	req, err := http.NewRequest(http.MethodGet, "https://relay/derp", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Upgrade", "DERP")
	req.Header.Set("Connection", "Upgrade")
	if err := req.Write(c.brw); err != nil {
		return err
	}
	if err := c.brw.Flush(); err != nil {
		return err
	}
	res, err := http.ReadResponse(c.brw.Reader, req)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("/derp: %s", res.Status)
	}
	return nil
}

// hears waits for a packet from a node.
func (c *relayConn) hears(from key.NodePublic, limit time.Duration) ([]byte, error) {
	_ = c.nc.SetReadDeadline(time.Now().Add(limit))
	for {
		m, err := c.Recv()
		if err != nil {
			return nil, err
		}
		if p, ok := m.(derp.ReceivedPacket); ok && p.Source == from {
			return append([]byte(nil), p.Data...), nil
		}
	}
}
