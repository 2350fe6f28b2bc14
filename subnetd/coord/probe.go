package coord

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// probe is a question to a node that waits for its answer.
type probe struct {
	node   tailcfg.NodeID
	answer chan *http.Response
}

// maxProbes bounds the questions under way.
const maxProbes = 64

// Probe asks a node over its connection to us (c2n, "control to node") whether
// it is there, and gives the time that took.
func (c *Coordinator) Probe(ctx context.Context, who string) (time.Duration, error) {
	n, err := c.snap.Load().find(who, c.cfg.Domain)
	if err != nil {
		return 0, err
	}
	token := randomText(16)
	p := &probe{node: n.ID, answer: make(chan *http.Response, 1)}
	c.mu.Lock()
	s := c.sessions[n.ID]
	full := len(c.probes) >= maxProbes
	if s != nil && !full {
		c.probes[token] = p
	}
	c.mu.Unlock()
	switch {
	case s == nil:
		return 0, fmt.Errorf("%s is not connected", n.Name)
	case full:
		return 0, errors.New("too many nodes are asked at once")
	}
	defer func() {
		c.mu.Lock()
		delete(c.probes, token)
		c.mu.Unlock()
	}()
	began := time.Now()
	select {
	case s.pings <- &tailcfg.PingRequest{
		URL: "https://unused/c2n/" + token, Types: "c2n", // the host is the one it is connected to
		Payload: []byte("GET /echo HTTP/1.1\r\nHost: node\r\nContent-Length: 0\r\n\r\n"),
	}:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	select {
	case res := <-p.answer:
		if res.StatusCode != http.StatusOK {
			return 0, fmt.Errorf("%s answers %q", n.Name, res.Status)
		}
		return time.Since(began), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("%s has a connection, but does not answer: %w", n.Name, ctx.Err())
	}
}

// serveProbeAnswer takes a node's answer: an HTTP response as a request's body.
func (c *Coordinator) serveProbeAnswer(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	p := c.probes[r.PathValue("token")]
	c.mu.Unlock()
	if n := c.snap.Load().ofMachine(callerOf(r).machine); p == nil || n == nil || n.ID != p.node {
		http.NotFound(w, r)
		return
	}
	res, err := http.ReadResponse(bufio.NewReader(io.LimitReader(r.Body, maxBody)), nil)
	if err != nil {
		http.Error(w, "this is no answer", http.StatusBadRequest)
		return
	}
	defer res.Body.Close()
	select {
	case p.answer <- res:
	default: // it has answered already
	}
}

// ofMachine is the member whose machine that is.
func (s *snapshot) ofMachine(k key.MachinePublic) *node {
	for _, n := range s.nodes {
		if n.Machine == k {
			return n
		}
	}
	return nil
}
