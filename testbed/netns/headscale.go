package netns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Headscale is a stock Headscale at 203.0.113.10 and 2001:db8::10, with its own relay and STUN.
// Control and relay share one TLS listener whose certificate comes from the lab's authority.
type Headscale struct {
	t     testing.TB
	lab   *Lab
	bin   string
	conf  string
	sock  string
	proc  *Process
	users map[string]string // name to id

	Host *Host
	URL  string // what a client is given as its login server
}

// Headscale makes the coordinator's host and starts it; the policy allows everything until SetPolicy.
func (l *Lab) Headscale() *Headscale {
	l.t.Helper()
	return l.headscale("https")
}

// HeadscaleHTTP is a Headscale without TLS.
func (l *Lab) HeadscaleHTTP() *Headscale {
	l.t.Helper()
	return l.headscale("http")
}

func (l *Lab) headscale(scheme string) *Headscale {
	l.t.Helper()
	hs := &Headscale{t: l.t, lab: l, users: map[string]string{}, URL: scheme + "://203.0.113.10:8443"}
	hs.bin = peer(l.t, "headscale", headscaleVersion, "headscale")
	hs.Host = l.newHost("hs")
	l.public(hs.Host, "wan0", 10)
	dir := l.mkdir("headscale")
	hs.sock = filepath.Join(dir, "sock")
	l.ca.issue(l.t, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), []string{"203.0.113.10", "2001:db8::10"}, "headscale.test")
	hs.conf = l.write("headscale/config.yaml", headscaleConfig(hs.URL, dir))
	hs.Start()
	return hs
}

func headscaleConfig(url, dir string) string {
	tls := "tls_cert_path: $DIR/cert.pem\ntls_key_path: $DIR/key.pem"
	if strings.HasPrefix(url, "http:") {
		tls = ""
	}
	return strings.NewReplacer("$URL", url, "$DIR", dir).Replace(strings.Replace(`
server_url: $URL
listen_addr: "[::]:8443"
metrics_listen_addr: 127.0.0.1:9090
grpc_listen_addr: 127.0.0.1:50443
$TLS
noise: {private_key_path: $DIR/noise.key}
prefixes: {v4: 100.64.0.0/10, v6: "fd7a:115c:a1e0::/48", allocation: sequential}
derp:
  server:
    enabled: true
    region_id: 999
    region_code: lab
    region_name: Lab
    verify_clients: true
    stun_listen_addr: "[::]:3478"
    private_key_path: $DIR/derp.key
    automatically_add_embedded_derp_region: true
    ipv4: 203.0.113.10
    ipv6: 2001:db8::10
  urls: []
  paths: []
  auto_update_enabled: false
disable_check_updates: true
node: {ephemeral: {inactivity_timeout: 30m}}
database: {type: sqlite, sqlite: {path: $DIR/db.sqlite, write_ahead_log: true}}
log: {level: info, format: text}
policy: {mode: database}
dns: {magic_dns: true, base_domain: lab.test, override_local_dns: false, nameservers: {global: []}}
unix_socket: $DIR/sock
unix_socket_permission: "0700"
logtail: {enabled: false}
tuning: {batch_change_delay: 100ms, node_store_batch_timeout: 50ms}
`, "$TLS", tls, 1))
}

// Start starts the server, again after Kill or Stop, and waits until it answers.
func (hs *Headscale) Start() {
	hs.t.Helper()
	hs.proc = hs.Host.Start(hs.bin, "serve", "-c", hs.conf)
	Eventually(hs.t, 30*time.Second, "Headscale answers", func() error {
		select {
		case <-hs.proc.Done():
			hs.t.Fatalf("Headscale ended:\n%s", hs.proc.Tail(30))
		default:
		}
		c, err := net.Dial("unix", hs.sock) // the command itself waits long for a missing server
		if err != nil {
			return err
		}
		c.Close()
		_, err = hs.CLI("users", "list", "-o", "json")
		return err
	})
}

// Requests counts the requests for a path that this run of the server has logged.
func (hs *Headscale) Requests(path string) int {
	n := 0
	for _, l := range hs.proc.Lines() {
		if strings.Contains(l, "http request") && strings.Contains(l, "path="+path+" ") {
			n++
		}
	}
	return n
}

// Kill ends the server at once, without a word to anybody.
func (hs *Headscale) Kill() { hs.proc.Kill() }

// CLI runs a headscale command against the server and gives its standard output.
func (hs *Headscale) CLI(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, hs.bin, append([]string{"-c", hs.conf}, args...)...)
	cmd.Env = append(os.Environ(), "HEADSCALE_CLI_TIMEOUT=15s")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("headscale %s: %w: %s%s", strings.Join(args, " "), err, stderr.String(), out)
	}
	return string(out), nil
}

func (hs *Headscale) must(args ...string) string {
	hs.t.Helper()
	out, err := hs.CLI(args...)
	if err != nil {
		hs.t.Fatal(err)
	}
	return out
}

// user gives the id of a user and makes the user at first mention.
func (hs *Headscale) user(name string) string {
	hs.t.Helper()
	if id, ok := hs.users[name]; ok {
		return id
	}
	var u struct{ ID json.Number }
	out := hs.must("users", "create", name, "-o", "json")
	if err := json.Unmarshal([]byte(out), &u); err != nil {
		hs.t.Fatalf("headscale users create: %v: %s", err, out)
	}
	hs.users[name] = u.ID.String()
	return u.ID.String()
}

// KeyOptions shapes a pre-auth key. The zero value is a single-use key that is good for an hour.
type KeyOptions struct {
	Reusable  bool
	Ephemeral bool
	Tags      []string // with the "tag:" in front
	Expires   time.Duration
}

// PreAuthKey makes a key that lets a machine join as user.
func (hs *Headscale) PreAuthKey(user string, o KeyOptions) string {
	hs.t.Helper()
	args := []string{"preauthkeys", "create", "-o", "json", "--user", hs.user(user)}
	if o.Reusable {
		args = append(args, "--reusable")
	}
	if o.Ephemeral {
		args = append(args, "--ephemeral")
	}
	if len(o.Tags) > 0 {
		args = append(args, "--tags", strings.Join(o.Tags, ","))
	}
	if o.Expires > 0 {
		args = append(args, "--expiration", o.Expires.String())
	}
	var k struct{ Key string }
	out := hs.must(args...)
	if err := json.Unmarshal([]byte(out), &k); err != nil || k.Key == "" {
		hs.t.Fatalf("headscale preauthkeys create: %v: %s", err, out)
	}
	return k.Key
}

// SetPolicy replaces the policy (HuJSON); it is in force for the server when this returns.
func (hs *Headscale) SetPolicy(hujson string) {
	hs.t.Helper()
	hs.must("policy", "set", "-f", hs.lab.write("policy.hujson", hujson))
}

// Register approves an interactive login as user. login is the URL that the machine showed.
func (hs *Headscale) Register(user, login string) {
	hs.t.Helper()
	hs.user(user)
	login = strings.TrimSpace(login)
	hs.must("auth", "register", "--user", user, "--auth-id", login[strings.LastIndex(login, "/")+1:])
}

// HeadscaleNode is a machine as the coordinator knows it.
type HeadscaleNode struct {
	ID              json.Number `json:"id"`
	Name            string      `json:"name"`
	GivenName       string      `json:"given_name"`
	NodeKey         string      `json:"node_key"`
	IPAddresses     []string    `json:"ip_addresses"`
	Online          bool        `json:"online"`
	ApprovedRoutes  []string    `json:"approved_routes"`
	AvailableRoutes []string    `json:"available_routes"`
	SubnetRoutes    []string    `json:"subnet_routes"`
}

// Nodes lists the machines.
func (hs *Headscale) Nodes() ([]HeadscaleNode, error) {
	out, err := hs.CLI("nodes", "list", "-o", "json")
	if err != nil {
		return nil, err
	}
	var nodes []HeadscaleNode
	if err := json.Unmarshal([]byte(out), &nodes); err != nil {
		return nil, fmt.Errorf("headscale nodes list: %w: %s", err, out)
	}
	return nodes, nil
}

// Node gives the machine of that name.
func (hs *Headscale) Node(name string) (HeadscaleNode, error) {
	nodes, err := hs.Nodes()
	if err != nil {
		return HeadscaleNode{}, err
	}
	for _, n := range nodes {
		if n.GivenName == name || n.Name == name {
			return n, nil
		}
	}
	return HeadscaleNode{}, fmt.Errorf("the coordinator knows no machine %q", name)
}

// ApproveRoutes waits until the machine offers all the prefixes and approves them.
func (hs *Headscale) ApproveRoutes(name string, prefixes ...netip.Prefix) {
	hs.t.Helper()
	var want []string
	for _, p := range prefixes {
		want = append(want, p.String())
	}
	Eventually(hs.t, 20*time.Second, name+" offers "+strings.Join(want, " "), func() error {
		n, err := hs.Node(name)
		if err != nil {
			return err
		}
		for _, p := range want {
			if !slices.Contains(n.AvailableRoutes, p) {
				return fmt.Errorf("it offers %v", n.AvailableRoutes)
			}
		}
		_, err = hs.CLI("nodes", "approve-routes", "-i", n.ID.String(), "-r", strings.Join(want, ","))
		return err
	})
}

// Expire makes the node key of a machine invalid at once.
func (hs *Headscale) Expire(name string) {
	hs.t.Helper()
	n, err := hs.Node(name)
	if err != nil {
		hs.t.Fatal(err)
	}
	hs.must("nodes", "expire", "-i", n.ID.String())
}

// Delete removes a machine, as an admin does.
func (hs *Headscale) Delete(name string) {
	hs.t.Helper()
	n, err := hs.Node(name)
	if err != nil {
		hs.t.Fatal(err)
	}
	hs.must("nodes", "delete", "--force", "-i", n.ID.String())
}

// MeshAddrs gives the mesh addresses of a machine, IPv4 first.
func (hs *Headscale) MeshAddrs(name string) (v4, v6 netip.Addr, err error) {
	n, err := hs.Node(name)
	if err != nil {
		return v4, v6, err
	}
	for _, s := range n.IPAddresses {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return v4, v6, err
		}
		if a.Is4() {
			v4 = a
		} else {
			v6 = a
		}
	}
	if !v4.IsValid() || !v6.IsValid() {
		return v4, v6, errors.New(name + " lacks an address of one family")
	}
	return v4, v6, nil
}
