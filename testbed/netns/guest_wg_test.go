package netns_test

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// wgPeer is one peer as the kernel has it.
type wgPeer struct {
	endpoint  string
	handshake int64 // seconds since 1970; 0: none
	rx, tx    int64
}

// wgDump asks the kernel of a router for the peers of mesh0, by their keys as wg(8) writes them.
func wgDump(h *netns.Host) (map[string]wgPeer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := h.Output(ctx, "wg", "show", "mesh0", "dump")
	if err != nil {
		return nil, err
	}
	all := map[string]wgPeer{}
	for i, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		f := strings.Split(line, "\t")
		if i == 0 { // the interface
			continue
		}
		if len(f) != 8 {
			return nil, fmt.Errorf("wg says %q", line)
		}
		handshake, err1 := strconv.ParseInt(f[4], 10, 64)
		rx, err2 := strconv.ParseInt(f[5], 10, 64)
		tx, err3 := strconv.ParseInt(f[6], 10, 64)
		if err := errors.Join(err1, err2, err3); err != nil {
			return nil, err
		}
		all[f[0]] = wgPeer{f[2], handshake, rx, tx}
	}
	return all, nil
}

// wgKey is the key of a node of Headscale's as wg(8) writes it.
func wgKey(t *testing.T, hs *netns.Headscale, name string) string {
	t.Helper()
	n, err := hs.Node(name)
	if err != nil {
		t.Fatal(err)
	}
	_, digits, _ := strings.Cut(n.NodeKey, ":")
	raw, err := hex.DecodeString(digits)
	if err != nil || len(raw) != 32 {
		t.Fatalf("%s has the key %q: %v", name, n.NodeKey, err)
	}
	return base64.StdEncoding.EncodeToString(raw)
}

// kernelPeer is one peer as the kernel has it now.
func kernelPeer(t *testing.T, h *netns.Host, key string) wgPeer {
	t.Helper()
	all, err := wgDump(h)
	if err != nil {
		t.Fatal(err)
	}
	p, ok := all[key]
	if !ok {
		t.Fatalf("the kernel of %s has no peer %s", h.Name, key)
	}
	return p
}

// isLoopback says whether the kernel sends to the relay's conduit.
func (p wgPeer) isLoopback() bool {
	ap, err := netip.ParseAddrPort(p.endpoint)
	return err == nil && ap.Addr().IsLoopback()
}

// wantKernel: the daemon runs with the kernel engine, and the kernel has the interface, or will when the firewall stands.
func wantKernel(t *testing.T, d *netns.Subnetd) {
	t.Helper()
	m, err := d.StatusJSON()
	if err != nil {
		t.Fatal(err)
	}
	if m["engine"] != "kernel" {
		t.Fatalf("the engine is %v: %v; problems: %v", m["engine"], m["engineReason"], m["problems"])
	}
	netns.Eventually(t, 10*time.Second, "the kernel has mesh0", func() error {
		_, err := wgDump(d.Host)
		return err
	})
}

// peerStatus is what `status --json` says of a peer.
func peerStatus(d *netns.Subnetd, name string) (map[string]any, error) {
	m, err := d.StatusJSON()
	if err != nil {
		return nil, err
	}
	peers, _ := m["peers"].([]any)
	for _, p := range peers {
		p, _ := p.(map[string]any)
		if short, _, _ := strings.Cut(fmt.Sprint(p["name"]), "."); short == name {
			return p, nil
		}
	}
	return nil, fmt.Errorf("status knows no peer %q", name)
}

// wantDirect waits until the phone reaches the LAN, the router's kernel sends straight to the phone, and both nodes say that
// the path is direct.
func wantDirect(t *testing.T, s *scene) {
	t.Helper()
	key := wgKey(t, s.hs, s.phone.Host.Name)
	netns.Eventually(t, 60*time.Second, "the path to "+s.phone.Host.Name+" is direct", func() error {
		if err := s.phone.Host.Ping(context.Background(), s.home.LAN.Addr4); err != nil {
			return err
		}
		if p := kernelPeer(t, s.home.Router, key); p.isLoopback() || p.endpoint == "(none)" {
			return fmt.Errorf("the kernel sends to %s", p.endpoint)
		}
		if p, err := peerStatus(s.daemon, s.phone.Host.Name); err != nil || p["path"] != "direct" {
			return fmt.Errorf("status says %v (%v)", p["path"], err)
		}
		if out, err := s.phone.CLI(context.Background(), "ping", "-c", "1", "--timeout", "2s", "home"); err != nil || strings.Contains(out, "via DERP") {
			return fmt.Errorf("the phone says %v %s", err, out)
		}
		return nil
	})
}

// endpointWatch notes every change of the kernel's endpoint of a peer, and how the daemon's status sees the path.
type endpointWatch struct {
	stop context.CancelFunc
	done sync.WaitGroup

	mu   sync.Mutex
	seen []string // one entry per change; the first is what was there at the beginning
	asks int
}

// watchEndpoint looks once a second. d may be nil: then only the kernel is asked.
func watchEndpoint(t *testing.T, h *netns.Host, key string, d *netns.Subnetd, name string) *endpointWatch {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &endpointWatch{stop: cancel}
	t.Cleanup(func() { cancel(); w.done.Wait() })
	w.done.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for ctx.Err() == nil {
			w.look(h, key, d, name)
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
	})
	return w
}

func (w *endpointWatch) look(h *netns.Host, key string, d *netns.Subnetd, name string) {
	all, err := wgDump(h)
	if err != nil {
		return
	}
	now := all[key].endpoint
	if d != nil {
		p, err := peerStatus(d, name)
		if err != nil {
			return
		}
		now += fmt.Sprintf(", status %v %v", p["path"], p["endpoint"])
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asks++
	if len(w.seen) == 0 || w.seen[len(w.seen)-1] != now {
		w.seen = append(w.seen, now)
	}
}

// tell ends the watch and prints what it saw.
func (w *endpointWatch) tell(t *testing.T) {
	t.Helper()
	w.stop()
	w.done.Wait()
	t.Logf("%d looks, a second apart: %s", w.asks, strings.Join(w.seen, "; then "))
}

// wantSteady ends the watch and wants no change.
func (w *endpointWatch) wantSteady(t *testing.T) {
	t.Helper()
	w.stop()
	w.done.Wait()
	if len(w.seen) != 1 || w.asks < 5 {
		t.Errorf("the endpoint changed %d times in %d looks: %s", len(w.seen)-1, w.asks, strings.Join(w.seen, "; then "))
		return
	}
	t.Logf("%d looks, a second apart: always %s", w.asks, w.seen[0])
}

// iperfLoss reads how many datagrams iperf3 sent and how many it missed.
func iperfLoss(out []byte) (sent, lost float64, err error) {
	var r struct {
		End struct {
			Sum struct {
				Packets float64 `json:"packets"`
				Lost    float64 `json:"lost_packets"`
			} `json:"sum"`
		} `json:"end"`
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return 0, 0, fmt.Errorf("iperf3: %w: %s", err, out)
	}
	if r.End.Sum.Packets == 0 {
		return 0, 0, fmt.Errorf("iperf3 sent nothing: %s", out)
	}
	return r.End.Sum.Packets, r.End.Sum.Lost, nil
}
