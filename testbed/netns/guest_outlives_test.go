package netns_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// flowsOnly allows what the streams, iperf3, an echo and one web server need; tcp/81 is not among it.
const flowsOnly = `{"acls": [{"action": "accept", "src": ["*"], "dst": [
	"192.168.77.50/32:7,80,9000", "192.168.99.50/32:80,5201,9000", "192.168.88.50/32:9000", "100.64.0.0/10:*"]}]}`

// left is what a daemon leaves in the kernel and takes over when it is started again.
type left struct {
	d     *netns.Subnetd
	key   string // of the peer that is looked at
	index string // of mesh0
	from  *netns.Host
	to    *netns.Host // a LAN host behind the daemon
}

func leave(t *testing.T, d *netns.Subnetd, key string, from, to *netns.Host) *left {
	t.Helper()
	to.ServePayload("[::]:80", 1, 1000)
	to.ServePayload("[::]:81", 1, 1000)
	return &left{d, key, linkIndex(t, d.Host), from, to}
}

// meshChange is in what `ip monitor` says of the mesh's interface, its routes and their rules.
var meshChange = regexp.MustCompile(`mesh0|table 8410|^(Deleted )?518\d:`)

// wantPolicy: what the policy allows gets in, what it does not is refused.
func (l *left) wantPolicy(t *testing.T, when string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, _, err := l.from.Fetch(ctx, fmt.Sprintf("http://%s:80/", l.to.Addr4)); err != nil {
		t.Errorf("%s: tcp/80, which is allowed: %v", when, err)
	}
	if letsIn(l.from, netip.AddrPortFrom(l.to.Addr4, 81)) {
		t.Errorf("%s: tcp/81 is let in, which is not allowed", when)
	}
}

// wantTakenOver starts the daemon by start and wants the kernel's interface, sessions, addresses, routes and rules to stay
// what they were, at any moment.
func (l *left) wantTakenOver(t *testing.T, how string, start func()) {
	t.Helper()
	netns.Eventually(t, 90*time.Second, "the keys are young", func() error { // none is due in the next half minute
		if age := clock(t, l.d.Host) - kernelPeer(t, l.d.Host, l.key).handshake; age > 85 {
			return fmt.Errorf("%d s old", age)
		}
		return nil
	})
	before, rules := kernelPeer(t, l.d.Host, l.key), rulesOf(t, l.d.Host)
	changes := l.d.Host.Start("ip", "monitor", "link", "address", "route", "rule")
	defer changes.Kill()
	start()
	wantPhase(t, l.d, "joined")
	time.Sleep(8 * time.Second) // what is taken over is looked at again after five
	if now := rulesOf(t, l.d.Host); now != rules {
		t.Errorf("%s: the rules are others:\n%s", how, difference(rules, now))
	}
	for _, line := range changes.Lines() {
		if meshChange.MatchString(line) {
			t.Errorf("%s: changed: %s", how, line)
		}
	}
	wantKernel(t, l.d)
	after := kernelPeer(t, l.d.Host, l.key)
	if now := linkIndex(t, l.d.Host); now != l.index {
		t.Errorf("%s: mesh0 is another interface, %s instead of %s", how, now, l.index)
	}
	if after.handshake != before.handshake {
		t.Errorf("%s: there was a handshake", how)
	}
	if after.tx < before.tx || after.rx < before.rx {
		t.Errorf("%s: the peer was added anew: %+v, was %+v", how, after, before)
	}
	l.wantPolicy(t, how)
	t.Logf("%s: the same interface, no handshake, endpoint %s", how, after.endpoint)
}

// upgrade puts another version of the program in place, starts it, and gives for how long there was no daemon.
func (l *left) upgrade(t *testing.T) time.Duration {
	t.Helper()
	was, now := l.d.Upgrade()
	begin := time.Now()
	if err := l.d.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	l.d.Start()
	away := time.Since(begin)
	if m, err := l.d.StatusJSON(); err != nil || m["version"] != now {
		t.Errorf("it is still version %v, was %s (%v)", m["version"], was, err)
	}
	return away
}

// wantRestartUnnoticed: a stock phone notices nothing when the daemon is killed and a supervisor starts it again, nor
// when it is upgraded. Without any daemon stock sends by the relay only, 6.5 s after our last answer to its pings.
func wantRestartUnnoticed(t *testing.T, s *guestScene) {
	t.Helper()
	s.hs.SetPolicy(flowsOnly)
	defer s.hs.SetPolicy(allowAll)
	wantDirect(t, &s.scene)
	l := leave(t, s.daemon, wgKey(t, s.hs, s.phone.Host.Name), s.phone.Host, s.home.LAN)
	untilRefused(s.phone.Host, 81, []netip.Addr{s.home.LAN.Addr4})
	down, up := s.streams(t)
	kernel := watchEndpoint(t, s.home.Router, l.key, nil, "")
	var away time.Duration // at most
	l.wantTakenOver(t, "killed and started again", func() {
		hide(t, s.hs, s.home.Router)
		begin := time.Now()
		s.daemon.Kill9()
		l.wantPolicy(t, "without the daemon")
		s.daemon.Start()
		away = time.Since(begin)
	})
	l.wantTakenOver(t, "upgraded", func() {
		hide(t, s.hs, s.home.Router)
		away = max(away, l.upgrade(t))
	})
	wantWhole(t, down)
	t.Logf("the daemon was away for %v at most", away)
	wantWholeUnless(t, up, away)
	kernel.wantSteady(t)
}

// stockPatience is for how long a stock client sends directly, at least, to somebody who answers no pings: it asks every
// three seconds and believes an answer for 6.5 s.
const stockPatience = 3500 * time.Millisecond

// wantWholeUnless is wantWhole of what a stock client sends to a router whose daemon was away for so long, unless it had
// reason to give up the direct path: an emulated router on a busy machine starts slowly.
func wantWholeUnless(t *testing.T, up *stream, away time.Duration) {
	t.Helper()
	if away < stockPatience {
		wantWhole(t, up)
		return
	}
	sent, holes := up.end()
	t.Logf("%s (stock had given up the direct path): %d datagrams sent, missing %s", up.what, sent, tell(holes))
}

// wantOutlivesDaemon kills one home's daemon while datagrams run at a fixed rate in both directions, for so long that
// WireGuard needs new keys: none is lost and the policy holds. Started again it takes over what is there: no handshake,
// nothing lost. And the same with another version of the program. What has nothing to do with these homes happens meanwhile.
func wantOutlivesDaemon(t *testing.T, h *homes, meanwhile func()) {
	t.Helper()
	const dead = 180 * time.Second  // at most; without time to spare, until there are new keys
	const rekey = 120 * time.Second // after the last handshake
	wantHomesDirect(t, h)
	h.hs.SetPolicy(flowsOnly)
	defer h.hs.SetPolicy(allowAll)
	l := leave(t, h.northD, wgKey(t, h.hs, "south"), h.south.LAN, h.north.LAN)
	untilRefused(h.south.LAN, 81, []netip.Addr{h.north.LAN.Addr4})
	there, back := h.streams(t)
	server := h.north.LAN.Start("iperf3", "-s")
	defer server.Kill()
	kernel := watchEndpoint(t, h.north.Router, l.key, nil, "")
	type loss struct {
		sent, lost float64
		err        error
	}
	before := kernelPeer(t, h.north.Router, l.key)
	span := max(30*time.Second, rekey-time.Duration(clock(t, h.north.Router)-before.handshake)*time.Second+20*time.Second)
	if long() {
		span = dead + 30*time.Second
	}
	counted := make(chan loss, 1)
	go func() {
		var c loss
		c.sent, c.lost, c.err = pipeUDP(context.Background(), h.south.LAN, h.north.LAN.Addr4, span)
		counted <- c
	}()
	hide(t, h.hs, h.north.Router)
	h.northD.Kill9()
	killed := time.Now()
	l.wantPolicy(t, "right after the kill")
	meanwhile()
	netns.Eventually(t, dead, "WireGuard has new keys", func() error {
		if p := kernelPeer(t, h.north.Router, l.key); p.handshake == before.handshake {
			return errors.New("the last handshake is the same")
		}
		return nil
	})
	after := 5 * time.Second // of traffic with the new keys
	if long() {
		after = dead - time.Since(killed)
	}
	time.Sleep(after)
	l.wantPolicy(t, "with new keys")
	t.Logf("%v without the daemon; the last handshake was %d s after the one before",
		time.Since(killed).Round(time.Second), kernelPeer(t, h.north.Router, l.key).handshake-before.handshake)
	l.wantTakenOver(t, "started again", h.northD.Start)
	l.wantTakenOver(t, "upgraded", func() {
		hide(t, h.hs, h.north.Router)
		t.Logf("without a daemon for %v", l.upgrade(t).Round(time.Millisecond))
	})
	if c := <-counted; c.err != nil || c.lost > 0 {
		t.Errorf("iperf3 over UDP: %.0f of %.0f lost, %v", c.lost, c.sent, c.err)
	} else {
		t.Logf("iperf3 over UDP: 0 of %.0f lost", c.sent)
	}
	wantWhole(t, there)
	wantWhole(t, back)
	kernel.tell(t) // a daemon that starts on a busy machine may doubt a path for a moment: no packet is lost for that
}

// hide keeps from Headscale that the connections end which it has from a router now; new ones are let through. It takes the
// routes from a router that is away for ten seconds: everybody else then forgets the way to its LAN. An emulated router on a
// busy machine takes longer than that to start.
func hide(t *testing.T, hs *netns.Headscale, router *netns.Host) {
	t.Helper()
	addr := router.Addr4
	if box := router.Behind(); box != nil {
		addr = box.Addr4
	}
	out, err := hs.Host.Output(t.Context(), "ss", "-Htn", "state", "established")
	if err != nil {
		t.Fatal(err)
	}
	var ports []string
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if peer, err := netip.ParseAddrPort(f[len(f)-1]); err == nil && peer.Addr().Unmap() == addr {
			ports = append(ports, fmt.Sprint(peer.Port()))
		}
	}
	if len(ports) == 0 {
		t.Fatalf("Headscale has no connection from %v:\n%s", addr, out)
	}
	hs.Host.NFT(fmt.Sprintf(`table ip hide {}
delete table ip hide
table ip hide {
	chain in { type filter hook input priority -10; ip saddr %s tcp sport { %s } drop; }
}
`, addr, strings.Join(ports, ", ")))
}

// clock is a host's clock, in seconds since 1970.
func clock(t *testing.T, h *netns.Host) int64 {
	t.Helper()
	out, err := h.Output(t.Context(), "date", "+%s")
	if err != nil {
		t.Fatal(err)
	}
	var n int64
	if _, err := fmt.Sscan(string(out), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// linkIndex is the number that the kernel gave mesh0 when it was made.
func linkIndex(t *testing.T, h *netns.Host) string {
	t.Helper()
	out, err := h.Output(t.Context(), "cat", "/sys/class/net/mesh0/ifindex")
	if err == nil && strings.TrimSpace(string(out)) == "" {
		err = errors.New("it is empty")
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
