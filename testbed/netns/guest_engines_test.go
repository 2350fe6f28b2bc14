package netns_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// engineView is what one engine made of the router: the policy's table, and what status says but for figures that move.
type engineView struct{ rules, status string }

// wantEnginesAlike joins with the userspace engine, goes over to the kernel's with the next start, and wants the same
// policy rules and the same status from both. The kernel engine stays.
func wantEnginesAlike(t *testing.T, s *guestScene) {
	t.Helper()
	s.begin(t, "userspace")
	s.hs.SetPolicy(webAndPing)
	defer s.hs.SetPolicy(allowAll)
	wantApproved(t, s.daemon)
	wantSettled(t, s)
	user := lookAt(t, s.daemon)
	setEngine(t, s.daemon, "kernel")
	wantKernel(t, s.daemon)
	wantSettled(t, s)
	var kernel engineView
	netns.Eventually(t, 20*time.Second, "both engines give the same", func() error {
		if kernel = lookAt(t, s.daemon); kernel != user {
			return errors.New(difference(user.rules, kernel.rules) + difference(user.status, kernel.status))
		}
		return nil
	})
	t.Logf("the same %d lines of rules and %d lines of status from both engines", strings.Count(user.rules, "\n"), strings.Count(user.status, "\n"))
}

// webAndPing is a policy with ports, prefixes and protocols.
const webAndPing = `{"acls": [
	{"action": "accept", "proto": "tcp", "src": ["*"], "dst": ["192.168.77.50/32:80,8000-8080", "fd77:77::50/128:80"]},
	{"action": "accept", "proto": "icmp", "src": ["*"], "dst": ["*:*"]},
	{"action": "accept", "proto": "ipv6-icmp", "src": ["*"], "dst": ["*:*"]},
]}`

// wantSettled waits until the phone reaches the LAN by a direct path, and until the home knows.
func wantSettled(t *testing.T, s *guestScene) {
	t.Helper()
	netns.Eventually(t, 60*time.Second, "the path to the phone is direct", func() error {
		if err := s.phone.Host.Ping(context.Background(), s.home.LAN.Addr4); err != nil {
			return err
		}
		p, err := peerStatus(s.daemon, s.phone.Host.Name)
		if err == nil && p["path"] != "direct" {
			err = fmt.Errorf("path %v %v", p["path"], p["reason"])
		}
		return err
	})
}

// setEngine ends the daemon in good order and starts it with another engine.
func setEngine(t *testing.T, d *netns.Subnetd, engine string) {
	t.Helper()
	if err := d.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	text, err := d.Host.ReadFile(d.Config)
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{"userspace", "kernel"} {
		text = []byte(strings.Replace(string(text), fmt.Sprintf("engine = %q", other), fmt.Sprintf("engine = %q", engine), 1))
	}
	d.Host.WriteFile(d.Config, string(text))
	d.Start()
}

// lookAt gives the policy's table and the status, without what moves from one moment to the next.
func lookAt(t *testing.T, d *netns.Subnetd) engineView {
	t.Helper()
	rules, err := d.Host.Output(t.Context(), "nft", "-s", "list", "table", "inet", "subnetd")
	if err != nil {
		t.Fatal(err)
	}
	m, err := d.StatusJSON()
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"engine", "engineReason", "generation", "lastContact"} {
		delete(m, field)
	}
	peers, _ := m["peers"].([]any)
	for _, p := range peers {
		for _, field := range []string{"rx", "tx", "rtt", "handshake"} {
			if p, ok := p.(map[string]any); ok {
				delete(p, field)
			}
		}
	}
	text, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return engineView{without(string(rules)), string(text)}
}

// difference lists the lines that only one of two texts has.
func difference(a, b string) string {
	var out strings.Builder
	only := func(sign, text, other string) {
		has := map[string]bool{}
		for line := range strings.Lines(other) {
			has[line] = true
		}
		for line := range strings.Lines(text) {
			if !has[line] {
				out.WriteString(sign + line)
			}
		}
	}
	only("userspace: ", a, b)
	only("kernel: ", b, a)
	if out.Len() == 0 && a != b {
		return "the same lines in another order:\n" + b
	}
	return out.String()
}
