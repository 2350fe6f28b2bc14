package netns

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// StockPeer is an unmodified Tailscale node: tailscaled with a TUN, and its command.
type StockPeer struct {
	t    testing.TB
	Host *Host
	cli  string
	bin  string
	dir  string
	sock string
	proc *Process
}

// StockPeer starts tailscaled on a host. It has no login yet.
func (l *Lab) StockPeer(h *Host) *StockPeer {
	l.t.Helper()
	dir := l.mkdir("ts-" + h.Name)
	p := &StockPeer{t: l.t, Host: h, dir: dir, sock: filepath.Join(dir, "s"),
		cli: peer(l.t, "tailscale", tailscaleVersion, "tailscale"), bin: peer(l.t, "tailscale", tailscaleVersion, "tailscaled")}
	p.Start()
	return p
}

// Start starts tailscaled, again after Stop or Kill, with the state it had.
func (p *StockPeer) Start() {
	p.t.Helper()
	p.proc = p.Host.StartEnv([]string{"TS_DEBUG_FIREWALL_MODE=nftables"}, p.bin, "--tun=tailscale0",
		"--statedir="+p.dir, "--state="+filepath.Join(p.dir, "state"), "--socket="+p.sock, "--no-logs-no-support")
	Eventually(p.t, 20*time.Second, "tailscaled answers on "+p.Host.Name, func() error {
		_, err := p.Status()
		return err
	})
}

// Pid is tailscaled's process id.
func (p *StockPeer) Pid() int { return p.proc.Pid() }

// Binaries are tailscaled and its command line.
func (p *StockPeer) Binaries() []string { return []string{p.bin, p.cli} }

// Kill ends tailscaled at once.
func (p *StockPeer) Kill() { p.proc.Kill() }

// Stop asks tailscaled to end.
func (p *StockPeer) Stop() { _ = p.proc.Stop(30 * time.Second) }

// CLI runs a tailscale command and gives what it printed.
func (p *StockPeer) CLI(ctx context.Context, args ...string) (string, error) {
	return p.Host.Run(ctx, p.cli, append([]string{"--socket=" + p.sock}, args...)...)
}

// Up joins with a key and the host's name, and waits until the node runs. The machine's DNS is left alone.
func (p *StockPeer) Up(url, key string, flags ...string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	args := append([]string{"up", "--login-server=" + url, "--auth-key=" + key, "--hostname=" + p.Host.Name,
		"--accept-dns=false", "--timeout=50s"}, flags...)
	if _, err := p.CLI(ctx, args...); err != nil {
		p.t.Fatal(err)
	}
}

// StockStatus is the part of `tailscale status --json` that tests look at.
type StockStatus struct {
	BackendState string
	AuthURL      string
	Health       []string
	Self         StockNode
	Peer         map[string]StockNode
}

// StockNode is one node as stock Tailscale sees it.
type StockNode struct {
	HostName      string
	DNSName       string
	TailscaleIPs  []netip.Addr
	PeerAPIURL    []string
	PrimaryRoutes []netip.Prefix
	Online        bool
	Expired       bool
	CurAddr       string // direct endpoint, empty if relayed or idle
	Relay         string
}

// Status asks tailscaled for its state.
func (p *StockPeer) Status() (StockStatus, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var s StockStatus
	out, err := p.Host.Output(ctx, p.cli, "--socket="+p.sock, "status", "--json")
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(out, &s); err != nil {
		return s, fmt.Errorf("tailscale status on %s: %w", p.Host.Name, err)
	}
	return s, nil
}

// PeerNamed gives a peer by its host name.
func (s StockStatus) PeerNamed(name string) (StockNode, error) {
	for _, n := range s.Peer {
		if n.HostName == name {
			return n, nil
		}
	}
	return StockNode{}, fmt.Errorf("no peer %q", name)
}

// Reach says how a peer was reached.
type Reach string

// How a peer was reached.
const (
	Direct      Reach = "direct"
	Relayed     Reach = "relayed"
	Unreachable Reach = "UNREACHABLE"
)

// Ping sends disco pings until a direct path answers, at most count of them a second apart, and tells the best
// reach that was seen.
func (p *StockPeer) Ping(ctx context.Context, target netip.Addr, count int) (Reach, string) {
	out, _ := p.CLI(ctx, "ping", "--until-direct=true", "--timeout=2s", fmt.Sprintf("--c=%d", count), target.String())
	best := Unreachable
	for line := range strings.Lines(out) {
		switch {
		case !strings.HasPrefix(line, "pong from"):
		case strings.Contains(line, "via DERP("):
			best = Relayed
		default:
			return Direct, out
		}
	}
	return best, out
}
