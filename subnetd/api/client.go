package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"

	"subnetd/subnetd/status"
)

// maxAnswer bounds what a client reads at once, in bytes.
const maxAnswer = 64 << 20

// ErrNotRunning means that no daemon answers at the socket.
var ErrNotRunning = errors.New("subnetd is not running")

// Client asks a daemon. It is safe for concurrent use.
type Client struct {
	http *http.Client
}

// Dial finds the daemon at the socket. The error is ErrNotRunning if none is there.
func Dial(path string) (*Client, error) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return nil, explain(path, err)
	}
	c.Close()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", path)
		if err != nil {
			return nil, explain(path, err)
		}
		return c, nil
	}
	return &Client{http: &http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConns: 1}}}, nil
}

// Close gives idle connections back.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func explain(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nothing answers at %s; start the service, or `subnetd run`", ErrNotRunning, path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("you may not speak to subnetd at %s: try as root: %w", path, fs.ErrPermission)
	}
	return fmt.Errorf("subnetd cannot be reached: %w", err)
}

// Status is the newest snapshot.
func (c *Client) Status(ctx context.Context) (s status.Snapshot, err error) {
	err = c.json(ctx, http.MethodGet, "/v1/status", nil, &s)
	return s, err
}

// Watch calls each with the newest snapshot and every new one, until it returns
// false (then nil is returned), ctx ends or the daemon stops (io.EOF).
func (c *Client) Watch(ctx context.Context, each func(status.Snapshot) bool) error {
	req, err := request(ctx, http.MethodGet, "/v1/watch", nil)
	if err != nil {
		return err
	}
	res, err := c.do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, maxAnswer)
	for lines.Scan() {
		var s status.Snapshot
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			return fmt.Errorf("subnetd's answer is not understood: %w", err)
		}
		if !each(s) {
			return nil
		}
	}
	switch err := lines.Err(); {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil, errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return io.EOF
	default:
		return fmt.Errorf("subnetd: %w", err)
	}
}

// Up asks the daemon to join; that it did is seen with Watch.
func (c *Client) Up(ctx context.Context, r UpRequest) error {
	return c.json(ctx, http.MethodPost, "/v1/up", r, nil)
}

// Down asks the daemon to leave the mesh.
func (c *Client) Down(ctx context.Context) error {
	return c.json(ctx, http.MethodPost, "/v1/down", nil, nil)
}

// Logout asks the daemon to leave and to forget who it was.
func (c *Client) Logout(ctx context.Context) error {
	return c.json(ctx, http.MethodPost, "/v1/logout", nil, nil)
}

// Ping asks for one answer of a peer.
func (c *Client) Ping(ctx context.Context, target string) (p PingResult, err error) {
	err = c.json(ctx, http.MethodGet, "/v1/ping?to="+url.QueryEscape(target), nil, &p)
	return p, err
}

// Netcheck is what the daemon finds out about this network, as JSON.
func (c *Client) Netcheck(ctx context.Context) (v json.RawMessage, err error) {
	err = c.json(ctx, http.MethodGet, "/v1/netcheck", nil, &v)
	return v, err
}

// Debug is the daemon's inside, as JSON.
func (c *Client) Debug(ctx context.Context, what string) (v json.RawMessage, err error) {
	err = c.json(ctx, http.MethodGet, "/v1/debug/"+url.PathEscape(what), nil, &v)
	return v, err
}

// Invite makes a pre-auth key for a new member.
func (c *Client) Invite(ctx context.Context, r status.InviteRequest) (i status.Invite, err error) {
	err = c.json(ctx, http.MethodPost, "/v1/home/invite", r, &i)
	return i, err
}

// Keys is every pre-auth key that is still remembered.
func (c *Client) Keys(ctx context.Context) (k []status.HomeKey, err error) {
	err = c.json(ctx, http.MethodGet, "/v1/home/keys", nil, &k)
	return k, err
}

// RevokeKey makes a pre-auth key worthless.
func (c *Client) RevokeKey(ctx context.Context, id string) error {
	return c.json(ctx, http.MethodPost, "/v1/home/keys/revoke", status.RevokeRequest{ID: id}, nil)
}

// Nodes is the members, and who waits to become one.
func (c *Client) Nodes(ctx context.Context) (n status.HomeNodes, err error) {
	err = c.json(ctx, http.MethodGet, "/v1/home/nodes", nil, &n)
	return n, err
}

// Approve lets the device in that shows r.Code.
func (c *Client) Approve(ctx context.Context, r status.NodeRequest) (status.HomeNode, error) {
	return c.change(ctx, "approve", r)
}

// Rename gives r.Node the name r.Name.
func (c *Client) Rename(ctx context.Context, r status.NodeRequest) (status.HomeNode, error) {
	return c.change(ctx, "rename", r)
}

// Expire makes r.Node log in again after r.In.
func (c *Client) Expire(ctx context.Context, r status.NodeRequest) (status.HomeNode, error) {
	return c.change(ctx, "expire", r)
}

// Probe asks r.Node whether it is there.
func (c *Client) Probe(ctx context.Context, r status.NodeRequest) (status.HomeNode, error) {
	return c.change(ctx, "probe", r)
}

// Remove throws r.Node out, and says who it was.
func (c *Client) Remove(ctx context.Context, r status.NodeRequest) (status.HomeNode, error) {
	return c.change(ctx, "remove", r)
}

// Routes approves exactly r.Routes for r.Node.
func (c *Client) Routes(ctx context.Context, r status.NodeRequest) (status.HomeNode, error) {
	return c.change(ctx, "routes", r)
}

func (c *Client) change(ctx context.Context, verb string, r status.NodeRequest) (n status.HomeNode, err error) {
	err = c.json(ctx, http.MethodPost, "/v1/home/nodes/"+verb, r, &n)
	return n, err
}

// Policy is the policy in force.
func (c *Client) Policy(ctx context.Context) (p status.HomePolicy, err error) {
	err = c.json(ctx, http.MethodGet, "/v1/home/policy", nil, &p)
	return p, err
}

// CheckPolicy asks whether the text could be the policy.
func (c *Client) CheckPolicy(ctx context.Context, text string) (v status.PolicyVerdict, err error) {
	err = c.json(ctx, http.MethodPost, "/v1/home/policy/check", status.PolicyText{Text: text}, &v)
	return v, err
}

func (c *Client) json(ctx context.Context, method, path string, in, out any) error {
	req, err := request(ctx, method, path, in)
	if err != nil {
		return err
	}
	return c.read(req, out)
}

// read sends a request, and reads the answer into out, if it is not nil.
func (c *Client) read(req *http.Request, out any) error {
	res, err := c.do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("subnetd stopped while answering: %w", err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("subnetd's answer is not understood: %w", err)
	}
	return nil
}

func request(ctx context.Context, method, path string, in any) (*http.Request, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(data)
	}
	return http.NewRequestWithContext(ctx, method, "http://subnetd"+path, body)
}

// do sends a request and returns a good answer, or the daemon's error.
func (c *Client) do(req *http.Request) (*http.Response, error) {
	res, err := c.http.Do(req)
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // the URL is our own business
	}
	if err != nil {
		return nil, err
	}
	if res.StatusCode == http.StatusOK {
		return res, nil
	}
	defer res.Body.Close()
	var f failure
	if err := json.NewDecoder(io.LimitReader(res.Body, maxBody)).Decode(&f); err != nil || f.Error == "" {
		return nil, fmt.Errorf("subnetd answers %q", res.Status)
	}
	return nil, errors.New(f.Error)
}
