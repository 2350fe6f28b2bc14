package coord

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"subnetd/subnetd/coord/policy"
	"subnetd/subnetd/status"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

var walkPolicies = []string{
	policy.DefaultText,
	`{"acls": []}`,
	`{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}`,
	`{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["tag:a:631"]}], "tagOwners": {"tag:a": []}}`,
	`{"acls": [{"action": "accept", "src": ["anna@"], "dst": ["autogroup:self:*"]}, {"action": "accept", "src": ["tag:a"], "dst": ["home@:22"]}],
	 "tagOwners": {"tag:a": []}, "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:a", "anna@"]}, "exitNode": ["anna@"]}}`,
	`{"acls": [{"action": "accept", "src": ["anna@"], "dst": ["10.1.0.0/16:*"]}, {"action": "accept", "src": ["home@"], "dst": ["*:443"]}],
	 "nodeAttrs": [{"target": ["anna@"], "attr": ["funnel"]}]}`,
}

// walker goes at random through the states of a mesh.
type walker struct {
	m       *mesh
	rng     *rand.Rand
	home    *client
	clients []*client
	polls   map[*client]*poll
	step    string
}

// After whatever happens every client knows from its first map and all changes
// what a new session would be told. With the race detector, which makes each step
// thirty times as slow, they are few.
func TestWalk(t *testing.T) {
	walks, steps := uint64(6), 150
	if raceEnabled {
		walks, steps = 2, 60
	}
	for seed := range walks { // the same in every run: what is red is so because of a change
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, func(t *testing.T, m *mesh) {
				w := &walker{m: m, rng: rand.New(rand.NewPCG(seed, 0)), home: m.client("router", ""), polls: map[*client]*poll{}}
				w.home.mustRegister()
				w.clients = append(w.clients, w.home)
				w.polls[w.home] = w.home.stream()
				for range steps {
					w.walk()
				}
			})
		})
	}
}

func (w *walker) walk() {
	ops := []func(*client){
		w.join, w.join, w.endpoints, w.endpoints, w.relay, w.disco, w.hostname, w.services, w.rename, w.expire, w.login, w.login, w.remove,
		w.offer, w.offer, w.approve, w.swap, w.offline, w.online, w.online, w.online, w.devices, w.names, w.place, w.time, w.version, w.again,
	}
	for range 1 + w.rng.IntN(3) { // several at once, sometimes
		ops[w.rng.IntN(len(ops))](w.clients[w.rng.IntN(len(w.clients))])
	}
	pass(time.Second)
	w.m.invariants()
	for c, p := range w.polls {
		if p.over() {
			delete(w.polls, c)
			continue
		}
		if w.m.node(c.node) != nil {
			c.check(p, w.step)
		}
	}
	w.step = ""
}

func (w *walker) did(format string, a ...any) { w.step += fmt.Sprintf(format, a...) + "; " }

// known reports whether the client is a member who may speak.
func (w *walker) known(c *client) bool { return w.m.node(c.node) != nil }

func (w *walker) tell(c *client) {
	if w.known(c) {
		c.mustTell()
	}
}

func (w *walker) join(*client) {
	if len(w.clients) > 8 {
		return
	}
	c := w.m.client([]string{"nas", "tv", "phone", "tag"}[w.rng.IntN(4)], "192.0.2.1")
	c.version += tailcfg.CapabilityVersion(w.rng.IntN(2) * 12)
	k := w.m.invite(func(r *status.InviteRequest) {
		r.User = []string{"", "anna"}[w.rng.IntN(2)]
		if w.rng.IntN(3) == 0 {
			r.Tags = []string{"tag:a"}
		}
		r.Ephemeral = w.rng.IntN(5) == 0
	})
	c.mustRegister(withAuth(k))
	w.clients = append(w.clients, c)
	w.did("%s joins", c.host.Hostname)
	if w.rng.IntN(4) > 0 {
		w.online(c)
	}
}

func (w *walker) endpoints(c *client) {
	c.endpoints = nil
	for range w.rng.IntN(4) {
		c.endpoints = append(c.endpoints, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(w.rng.IntN(4))}), uint16(1+w.rng.IntN(3))))
	}
	w.did("%s is at %v", c.host.Hostname, c.endpoints)
	w.tell(c)
}

func (w *walker) relay(c *client) {
	c.host.NetInfo = &tailcfg.NetInfo{PreferredDERP: w.rng.IntN(3) * 900}
	w.did("relay of %s", c.host.Hostname)
	w.tell(c)
}

func (w *walker) disco(c *client) {
	c.disco = key.NewDisco().Public()
	w.did("disco of %s", c.host.Hostname)
	w.tell(c)
}

func (w *walker) hostname(c *client) {
	c.host.Hostname = []string{"nas", "tv", "phone", "TV", "nas.lan", ""}[w.rng.IntN(6)]
	w.did("hostname %s", c.host.Hostname)
	w.tell(c)
}

func (w *walker) services(c *client) {
	c.host.Services = nil
	for i := range w.rng.IntN(3) {
		c.host.Services = append(c.host.Services, tailcfg.Service{Proto: tailcfg.PeerAPI4, Port: uint16(i + 1)})
	}
	w.did("services of %s", c.host.Hostname)
	w.tell(c)
}

func (w *walker) version(c *client) {
	c.host.IPNVersion = fmt.Sprint(w.rng.IntN(3))
	w.did("version of %s", c.host.Hostname)
	w.tell(c)
}

func (w *walker) again(c *client) {
	if w.known(c) {
		c.mustRegister()
	}
}

// by is how the owner calls a node.
func (w *walker) by(c *client) string {
	n := w.m.node(c.node)
	if n == nil {
		return "nobody"
	}
	return []string{n.Name, n.Name + "." + domain + ".", fmt.Sprint(int64(n.ID)), number4(n.Number).String(), n.V6.String()}[w.rng.IntN(5)]
}

func (w *walker) rename(c *client) {
	_, err := w.m.c.Rename(w.m.t.Context(), w.by(c), []string{"nas", "living-room", "tv-1", "x"}[w.rng.IntN(4)])
	w.did("rename: %v", err)
}

func (w *walker) expire(c *client) {
	_, err := w.m.c.Expire(w.m.t.Context(), w.by(c), time.Duration(w.rng.IntN(3))*time.Second)
	w.did("expire %s: %v", c.host.Hostname, err)
}

// login gives a node another key, be its old one expired or not.
func (w *walker) login(c *client) {
	if !w.known(c) {
		return
	}
	c.node = key.NewNode().Public()
	if c == w.home {
		c.mustRegister()
	} else {
		c.mustRegister(withAuth(w.m.invite()))
	}
	if p := w.polls[c]; p != nil {
		p.cancel()
		delete(w.polls, c)
	}
	w.did("%s logs in", c.host.Hostname)
	w.online(c)
}

func (w *walker) remove(c *client) {
	_, err := w.m.c.Remove(w.m.t.Context(), w.by(c))
	w.did("remove %s: %v", c.host.Hostname, err)
	if err == nil {
		w.forget(c)
	}
}

func (w *walker) forget(c *client) {
	if p := w.polls[c]; p != nil {
		p.cancel()
		delete(w.polls, c)
	}
	c.hangUp()
	for i := range w.clients {
		if w.clients[i] == c {
			w.clients = append(w.clients[:i:i], w.clients[i+1:]...)
			return
		}
	}
}

var walkRoutes = prefixes("10.1.0.0/16", "10.2.0.0/16", "fd00:1::/64", "0.0.0.0/0", "::/0", "192.168.1.0/24")

func (w *walker) some() (out []netip.Prefix) {
	for _, p := range walkRoutes {
		if w.rng.IntN(2) == 0 {
			out = append(out, p)
		}
	}
	return out
}

func (w *walker) offer(c *client) {
	c.host.RoutableIPs = w.some()
	w.did("%s offers %v", c.host.Hostname, c.host.RoutableIPs)
	w.tell(c)
}

func (w *walker) approve(c *client) {
	_, err := w.m.c.ApproveRoutes(w.m.t.Context(), w.by(c), w.some())
	w.did("routes of %s: %v", c.host.Hostname, err)
}

func (w *walker) swap(*client) {
	i := w.rng.IntN(len(walkPolicies))
	w.m.setPolicy(walkPolicies[i])
	w.did("policy %d", i)
}

func (w *walker) offline(c *client) {
	p := w.polls[c]
	if p == nil || len(w.polls) == 1 {
		return
	}
	p.cancel()
	delete(w.polls, c)
	w.did("%s leaves", c.host.Hostname)
	if w.rng.IntN(2) == 0 {
		c.hangUp()
		pass(offlineAfter)
	}
}

func (w *walker) online(c *client) {
	if !w.known(c) {
		w.forget(c) // an ephemeral node that was away
		return
	}
	if p := w.polls[c]; p != nil {
		p.cancel()
	}
	w.polls[c] = c.stream()
	synctest.Wait()
	w.did("%s comes", c.host.Hostname)
}

func (w *walker) devices(c *client) {
	if c != w.home && w.rng.IntN(4) > 0 || !w.known(c) {
		return
	}
	var ds []Device
	for range w.rng.IntN(4) {
		ds = append(ds, Device{Name: []string{"tv", "printer", "TV", "nas"}[w.rng.IntN(4)], V6: w.rng.IntN(2) == 0, ID: []string{"", "1", "2", "3"}[w.rng.IntN(4)]})
	}
	_, err := w.m.c.SetDevices(w.m.t.Context(), c.node, ds)
	w.m.must(err)
	w.did("devices %v", ds)
}

func (w *walker) names(*client) {
	n := Names{Split: map[string][]netip.AddrPort{"corp": endpoints("10.0.0.1:53")[:w.rng.IntN(2)]}}
	for i := range w.rng.IntN(3) {
		n.Records = append(n.Records, Record{Name: fmt.Sprint("r", i), Addr: number4(uint32(i))})
	}
	w.m.must(w.m.c.SetNames(w.m.t.Context(), n))
	w.did("names")
}

func (w *walker) place(*client) {
	w.m.must(w.m.c.SetPlace(w.m.t.Context(), Place{Relays: relayMap(900 + w.rng.IntN(3)), Inside: relayMap(910 + w.rng.IntN(3))}))
	w.did("place")
}

func (w *walker) time(*client) {
	d := time.Duration(1+w.rng.IntN(30)) * time.Second
	pass(d)
	w.did("%v pass", d)
}
