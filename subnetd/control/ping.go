package control

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"tailscale.com/tailcfg"
)

const (
	pingTimeout = 10 * time.Second
	pingsKept   = 64 // addresses remembered, so that none is answered twice
	pingsAtOnce = 2
)

// pingLog remembers the pings seen. The zero value is ready.
type pingLog struct {
	mu     sync.Mutex
	seen   []string
	active int
}

// start answers p in the background, unless it was seen before or too many run.
func (g *pingLog) start(ctx context.Context, c *Client, l *link, p *tailcfg.PingRequest) {
	if !g.admit(p.URL) {
		return
	}
	go func() {
		defer g.done()
		ctx, cancel := context.WithTimeout(ctx, pingTimeout)
		defer cancel()
		if err := answerPing(ctx, c.web, l, p); err != nil {
			c.cfg.Log.Debug("coordinator's ping not answered", "err", err)
		}
	}()
}

func (g *pingLog) admit(url string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if url == "" || g.active >= pingsAtOnce || slices.Contains(g.seen, url) {
		return false
	}
	if len(g.seen) == pingsKept {
		g.seen = slices.Delete(g.seen, 0, 1)
	}
	g.seen = append(g.seen, url)
	g.active++
	return true
}

func (g *pingLog) done() {
	g.mu.Lock()
	g.active--
	g.mu.Unlock()
}

// answerPing does what p asks. A coordinator may not send us to other hosts:
// over Noise only the path of the address counts, else the host must be its own.
func answerPing(ctx context.Context, w *web, l *link, p *tailcfg.PingRequest) error {
	u, err := url.Parse(p.URL)
	if err != nil {
		return err
	}
	switch {
	case p.Types == "c2n":
		return overNoise(ctx, l, http.MethodPost, u, answerC2N(p.Payload))
	case p.Types == "" && p.URLIsNoise:
		return overNoise(ctx, l, http.MethodHead, u, nil)
	case p.Types == "" && u.Hostname() == w.base.Hostname():
		return overWeb(ctx, w, u)
	}
	return nil // probes of peers are not offered
}

func overNoise(ctx context.Context, l *link, method string, u *url.URL, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+l.host+u.RequestURI(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := l.tr.RoundTrip(req)
	if err != nil {
		return err
	}
	return res.Body.Close()
}

func overWeb(ctx context.Context, w *web, u *url.URL) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, u.String(), nil)
	if err != nil {
		return err
	}
	hc := w.client(ctx)
	hc.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // it may lead to any host
	res, err := hc.Do(req)
	if err != nil {
		return err
	}
	return res.Body.Close()
}

// answerC2N returns the written-out answer to a written-out request: /echo
// sends the body back, all else is not found.
func answerC2N(payload []byte) []byte {
	res := &http.Response{StatusCode: http.StatusNotFound, ProtoMajor: 1, ProtoMinor: 1, Header: make(http.Header)}
	req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(payload)))
	switch {
	case err != nil:
		res.StatusCode = http.StatusBadRequest
	case req.URL.Path == "/echo":
		body, err := io.ReadAll(io.LimitReader(req.Body, maxAnswer))
		if err != nil {
			res.StatusCode = http.StatusBadRequest
			break
		}
		res.StatusCode, res.ContentLength = http.StatusOK, int64(len(body))
		res.Body = io.NopCloser(bytes.NewReader(body))
	}
	var out bytes.Buffer
	if err := res.Write(&out); err != nil {
		return nil
	}
	return out.Bytes()
}
