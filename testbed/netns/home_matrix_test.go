package netns_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// matrixPolicies are policies, and for each who reaches whom at which port of TCP: "from>to:port". Whatever is not in
// the list must not get through.
var matrixPolicies = []struct {
	name, rules string
	allowed     []string
}{
	{"nobody", `"acls": []`, nil},
	{"one user's devices", `"acls": [{"action": "accept", "src": ["ana@"], "dst": ["ana@:80"]}]`,
		[]string{"laptop>tablet:80", "tablet>laptop:80"}},
	{"members to a tag", `"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:server:80-81"]}]`,
		[]string{"laptop>server:80", "laptop>server:81", "tablet>server:80", "tablet>server:81", "other>server:80", "other>server:81"}},
	{"a group to its own devices", `"groups": {"group:staff": ["bea@"]},
		"acls": [{"action": "accept", "src": ["group:staff"], "dst": ["autogroup:self:*"]},
			{"action": "accept", "src": ["group:staff"], "dst": ["tag:server:81"]}]`,
		[]string{"other>server:81"}},
	{"grants", `"grants": [{"src": ["tag:server"], "dst": ["autogroup:member"], "ip": ["tcp:81"]}]`,
		[]string{"server>laptop:81", "server>tablet:81", "server>other:81"}},
	{"a host by address", `"hosts": {"tab": "$tablet"}, "acls": [{"action": "accept", "src": ["*"], "dst": ["tab:80"]}]`,
		[]string{"laptop>tablet:80", "other>tablet:80", "server>tablet:80"}},
}

// TestHomePolicyMatrix is case 46: for a few policies, every member tries two ports of every other one with real
// connections. Both ends are stock clients, so they judge what our coordinator made of the policy.
func TestHomePolicyMatrix(t *testing.T) {
	s := openHome(t, netns.HomeOptions{})
	m := &matrix{homeScene: s, at: map[string][]netip.Addr{}}
	if err := s.mesh.SetPolicy(matrixPolicy(`"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]`)); err != nil {
		t.Fatal(err)
	}
	for name, flags := range map[string][]string{"laptop": {"--user", "ana"}, "tablet": {"--user", "ana"}, "other": {"--user", "bea"},
		"server": {"--tags", "tag:server"}} {
		p := s.stock(name, netns.Public, flags...)
		m.peers = append(m.peers, p)
		m.at[name] = s.addrs(name)
		for _, port := range []string{"80", "81"} {
			p.Host.ServePayload("[::]:"+port, 1, 10)
		}
	}
	for _, p := range m.peers { // so that every pair has met, and a refusal is the policy's
		for name, addrs := range m.at {
			if name != p.Host.Name {
				wantReach(t, p.Host, addrs...)
			}
		}
	}
	for _, p := range matrixPolicies {
		t.Run(strings.ReplaceAll("46-"+p.name, " ", "-"), func(t *testing.T) { m.try(t, p.rules, p.allowed) })
	}
}

func matrixPolicy(rules string) string {
	return `{"tagOwners": {"tag:server": ["autogroup:member"]}, ` + rules + `}`
}

// matrix is the members of TestHomePolicyMatrix.
type matrix struct {
	*homeScene
	peers []*netns.StockPeer
	at    map[string][]netip.Addr
}

func (m *matrix) try(t *testing.T, rules string, allowed []string) {
	rules = strings.ReplaceAll(rules, "$tablet", m.at["tablet"][0].String())
	v4only := strings.Contains(rules, "hosts") // an entry of hosts is one address
	if err := m.mesh.SetPolicy(matrixPolicy(rules)); err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for _, a := range allowed {
		want[a+" v4"] = true
		want[a+" v6"] = !v4only
	}
	// First only what must get through. Who hears of a peer before that one hears of it sends a handshake in vain and the
	// next one five seconds later; and two handshakes that cross can leave stock clients with a session that works one
	// way, which WireGuard makes anew after fifteen seconds without an answer, but not while the other side's refused
	// attempts look like one.
	m.settle(t, want, 45*time.Second, func(try string) bool { return want[try] })
	m.settle(t, want, 15*time.Second, func(string) bool { return true })
}

// settle repeats the tries that are chosen until all of them go as wanted, and tells of those that do not in time.
func (m *matrix) settle(t *testing.T, want map[string]bool, limit time.Duration, chosen func(try string) bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	wrong := m.wrong(t.Context(), want, chosen)
	for len(wrong) > 0 && time.Now().Before(deadline) {
		wrong = m.wrong(t.Context(), want, chosen)
	}
	for _, w := range wrong {
		t.Error(w)
	}
}

// wrong does the chosen tries all at once and tells what went otherwise than wanted.
func (m *matrix) wrong(ctx context.Context, want map[string]bool, chosen func(try string) bool) (wrong []string) {
	var mu sync.Mutex
	var group sync.WaitGroup
	for _, p := range m.peers {
		for name, addrs := range m.at {
			for i, a := range addrs {
				for _, port := range []uint16{80, 81} {
					if name == p.Host.Name {
						continue
					}
					try := fmt.Sprintf("%s>%s:%d %s", p.Host.Name, name, port, []string{"v4", "v6"}[i])
					if !chosen(try) {
						continue
					}
					group.Go(func() {
						if got := answers(ctx, p.Host, netip.AddrPortFrom(a, port)); got != want[try] {
							mu.Lock()
							wrong = append(wrong, fmt.Sprintf("%s: let in %v", try, got))
							mu.Unlock()
						}
					})
				}
			}
		}
	}
	group.Wait()
	return wrong
}
