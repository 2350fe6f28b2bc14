package netns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Invite is what a new member needs, as `subnetd invite --json` prints it.
type Invite struct {
	URL     string
	Key     string
	ID      string
	Expires time.Time
	Line    string
	Outside bool
	Missing []string
}

// Invite makes a pre-auth key with the flags of `subnetd invite`.
func (h *HomeMesh) Invite(flags ...string) Invite {
	h.t.Helper()
	var i Invite
	if err := h.decode(&i, append([]string{"invite", "--json"}, flags...)...); err != nil {
		h.t.Fatal(err)
	}
	if i.URL == "" || i.Key == "" {
		h.t.Fatalf("an invitation without URL or key: %+v", i)
	}
	return i
}

// HomeKey is a pre-auth key as `subnetd keys --json` prints it.
type HomeKey struct {
	ID        string
	User      string
	Tags      []string
	Reusable  bool
	Ephemeral bool
	Expires   time.Time
	Uses      int
	State     string // good | used | expired | revoked
}

// Keys lists the pre-auth keys.
func (h *HomeMesh) Keys() ([]HomeKey, error) {
	var keys []HomeKey
	err := h.decode(&keys, "keys", "--json")
	return keys, err
}

// HomeNodes is everybody in the mesh and everybody at the door, as `subnetd nodes --json` prints it.
type HomeNodes struct {
	Nodes   []HomeNode
	Pending []HomePending
}

// HomeNode is one member.
type HomeNode struct {
	ID        int64
	Name      string // fully qualified
	User      string
	Tags      []string
	Addresses []netip.Addr
	OS        string
	Client    string
	Self      bool
	Online    bool
	LastSeen  time.Time
	KeyExpiry time.Time
	Expired   bool
	Ephemeral bool
	Routes    []HomeRoute
	Devices   []HomeDevice
}

// HomeRoute is a prefix that a node offers.
type HomeRoute struct {
	Prefix                     netip.Prefix
	Offered, Approved, Primary bool
}

// HomeDevice is a thing behind a node, with addresses of its own in the mesh.
type HomeDevice struct {
	Name      string // fully qualified
	Addresses []netip.Addr
}

// HomePending is a device that waits for approval.
type HomePending struct {
	Code     string
	Hostname string
	OS       string
	From     string
}

// Nodes lists the members and those who wait.
func (h *HomeMesh) Nodes() (HomeNodes, error) {
	var n HomeNodes
	err := h.decode(&n, "nodes", "--json")
	return n, err
}

// Node gives the member of that name: the full one or its first label.
func (h *HomeMesh) Node(name string) (HomeNode, error) {
	all, err := h.Nodes()
	if err != nil {
		return HomeNode{}, err
	}
	i := slices.IndexFunc(all.Nodes, func(n HomeNode) bool { return n.Name == name || firstLabel(n.Name) == name })
	if i < 0 {
		return HomeNode{}, fmt.Errorf("the coordinator knows no node %q", name)
	}
	return all.Nodes[i], nil
}

// MeshAddrs gives the mesh addresses of a member, or of a device behind one.
func (h *HomeMesh) MeshAddrs(name string) (v4, v6 netip.Addr, err error) {
	all, err := h.Nodes()
	if err != nil {
		return v4, v6, err
	}
	for _, n := range all.Nodes {
		if firstLabel(n.Name) == name {
			return twoFamilies(name, n.Addresses)
		}
		for _, d := range n.Devices {
			if firstLabel(d.Name) == name {
				return twoFamilies(name, d.Addresses)
			}
		}
	}
	return v4, v6, fmt.Errorf("the coordinator knows no %q", name)
}

func firstLabel(name string) string {
	label, _, _ := strings.Cut(name, ".")
	return label
}

// twoFamilies sorts addresses by family. A device may have IPv4 only.
func twoFamilies(name string, addrs []netip.Addr) (v4, v6 netip.Addr, err error) {
	for _, a := range addrs {
		if a.Is4() {
			v4 = a
		} else {
			v6 = a
		}
	}
	if !v4.IsValid() {
		err = fmt.Errorf("%s has no IPv4 address in the mesh", name)
	}
	return v4, v6, err
}

// Approve lets a waiting device in, with the further flags of `subnetd nodes approve`.
func (h *HomeMesh) Approve(code string, flags ...string) {
	h.t.Helper()
	h.Must(append([]string{"nodes", "approve", code}, flags...)...)
}

// Remove removes a member, as the owner does.
func (h *HomeMesh) Remove(name string) {
	h.t.Helper()
	h.Must("nodes", "remove", name)
}

// ApproveRoutes waits until a member offers all the prefixes and approves exactly them.
func (h *HomeMesh) ApproveRoutes(name string, prefixes ...netip.Prefix) {
	h.t.Helper()
	args := []string{"nodes", "routes", name}
	for _, p := range prefixes {
		args = append(args, p.String())
	}
	Eventually(h.t, 20*time.Second, name+" offers its routes", func() error {
		n, err := h.Node(name)
		if err != nil {
			return err
		}
		for _, p := range prefixes {
			if !slices.ContainsFunc(n.Routes, func(r HomeRoute) bool { return r.Prefix == p && r.Offered }) {
				return fmt.Errorf("it offers %+v", n.Routes)
			}
		}
		return nil
	})
	h.Must(args...)
}

// Must runs a subnetd command that has to succeed and gives what it printed.
func (h *HomeMesh) Must(args ...string) string {
	h.t.Helper()
	out, err := h.CLI(args...)
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}

// decode runs a command with --json and decodes its standard output.
func (h *HomeMesh) decode(into any, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := h.Cmd(ctx, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("subnetd %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("subnetd %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// HomePolicy is the policy in force, as the daemon's socket tells it.
type HomePolicy struct {
	File  string
	Text  string
	Error string // why the file is not what is in force
}

// PolicyInForce asks the daemon for its policy.
func (h *HomeMesh) PolicyInForce() (HomePolicy, error) {
	var p HomePolicy
	err := h.Get("/v1/home/policy", &p)
	return p, err
}

// Get asks the daemon's socket and decodes the answer.
func (h *HomeMesh) Get(path string, into any) error {
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", h.Socket)
	}}
	c := http.Client{Transport: tr, Timeout: 10 * time.Second}
	resp, err := c.Get("http://subnetd" + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s: %s", path, resp.Status, body)
	}
	return json.Unmarshal(body, into)
}

// SetPolicy writes the policy file, tells the daemon, and waits until it is in force or refused: then the reason is
// given. A daemon without a policy file gets one.
func (h *HomeMesh) SetPolicy(hujson string) error {
	h.t.Helper()
	before, err := h.PolicyInForce()
	if err != nil {
		return err
	}
	h.Host.lab.replace(h.Policy, hujson)
	if h.Options.Policy = hujson; before.File == "" {
		h.SetOptions(h.Options)
	} else if err := h.proc.Signal(syscall.SIGHUP); err != nil {
		return err
	}
	// The same complaint as before may be the new one: after a while it is.
	settled := time.Now().Add(2 * time.Second)
	var refused error
	Eventually(h.t, 10*time.Second, "the policy is in force or refused", func() error {
		now, err := h.PolicyInForce()
		switch {
		case err != nil:
			return err
		case now.Error != "" && (now.Error != before.Error || time.Now().After(settled)):
			refused = errors.New(now.Error)
			return nil
		case now.Error == "" && strings.TrimSpace(now.Text) == strings.TrimSpace(hujson):
			return nil
		}
		return fmt.Errorf("it has %q, %q", now.Text, now.Error)
	})
	return refused
}
