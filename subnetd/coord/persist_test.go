package coord

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"subnetd/subnetd/coord/policy"
	"subnetd/subnetd/status"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// answered is a client, and how many ledgers were saved when it was let in.
type answered struct {
	*client
	node  key.NodePublic
	saves int
}

// Killed at whatever moment, the coordinator that is started next knows everybody
// who was let in, with name and addresses, and no key is good once more.
func TestCrashes(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		var in []answered
		note := func(c *client) { in = append(in, answered{c, c.node, m.disk.count(LedgerFile)}) }
		join := func(name string, edit ...func(*status.InviteRequest)) *client {
			c := m.member(name, edit...)
			note(c)
			return c
		}
		a := join("a")
		join("b", reusable)
		p := join("p", tagged)
		page := m.client("page", "192.0.2.7")
		url := page.ask()
		_, err := m.c.Approve(t.Context(), code(url), "anna")
		m.must(err)
		page.mustRegister(followingUp(url))
		note(page)
		_, err = m.c.SetDevices(t.Context(), a.node, []Device{{Name: "tv", V6: true}})
		m.must(err)
		a.node = key.NewNode().Public()
		a.mustRegister(withAuth(m.invite()))
		note(a)
		_, err = m.c.Rename(t.Context(), "b", "bb")
		m.must(err)
		p.host.RoutableIPs = prefixes("10.0.0.0/24")
		p.mustTell()
		past := m.disk.past
		for i, ledger := range past {
			crashed := start(t, with(ledger, nil))
			crashed.invariants()
			if crashed.c.noise.Public() != m.c.noise.Public() {
				t.Fatalf("killed after save %d it has another key", i+1)
			}
			for _, c := range in {
				if c.saves > i+1 || c.client == a && c.node != a.node && crashed.node(a.node) != nil {
					continue // not answered yet, or answered under another key later
				}
				again := c.client.at(crashed)
				again.node = c.node
				if res := again.mustRegister(); !res.MachineAuthorized {
					t.Errorf("killed after save %d it does not know %s: %+v", i+1, c.host.Hostname, res)
				} else if n, now := crashed.node(c.node), m.c.snap.Load().nodes[crashed.node(c.node).ID]; now == nil || n.Number != now.Number || n.V6 != now.V6 {
					t.Errorf("killed after save %d: %+v became %+v", i+1, n, now)
				}
			}
			uses := 0
			for _, k := range crashed.c.Keys() {
				uses += k.Uses
			}
			nodes := map[tailcfg.NodeID]bool{}
			rekeyed := 0
			for _, n := range crashed.c.snap.Load().nodes {
				if nodes[n.ID] = true; n.Key == a.node {
					rekeyed++
				}
				if n.Key == page.node {
					rekeyed-- // came in without a key
				}
			}
			if uses != len(nodes)+rekeyed {
				t.Errorf("killed after save %d: %d uses of keys, %d nodes and %d more", i+1, uses, len(nodes), rekeyed)
			}
			crashed.stop()
		}
	})
}

// Nobody is answered, and nobody sees what is not on the disk yet; meanwhile
// everything else goes on.
func TestSlowDisk(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		old := m.member("old")
		p := old.stream()
		k := m.invite()
		pass(time.Second)
		p.got()
		release := make(chan struct{})
		m.disk.refuse(func(name string) error { <-release; return nil })
		c := m.client("c", "192.0.2.1")
		m.must(c.connect())
		answer := make(chan *tailcfg.RegisterResponse, 1)
		go func() {
			res, err := c.register(context.Background(), withAuth(k))
			if err != nil {
				t.Error(err)
			}
			answer <- res
		}()
		pass(10 * time.Minute)
		if len(answer) != 0 || len(m.c.Nodes()) != 1 || m.c.Keys()[0].Uses != 0 {
			t.Error("it is a member before it is on the disk")
		}
		if fs := p.got(); len(fs) < 9 || !fs[0].KeepAlive {
			t.Errorf("another client heard %d keep-alives in ten minutes", len(fs))
		}
		close(release)
		if res := <-answer; !res.MachineAuthorized {
			t.Errorf("answered %+v", res)
		}
		m.invariants()
	})
}

// A full disk: who would join is told so, and nothing has changed; who is a
// member goes on, also one that has something else to say than where it is.
func TestFullDisk(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		old, peer, e := m.member("old"), m.member("peer"), m.member("e", ephemeral)
		w, left, gone := peer.stream(), e.stream(), old.stream()
		k := m.invite()
		pass(time.Second)
		m.disk.refuse(diskFull)
		c := m.client("c", "192.0.2.1")
		c.refused("the router cannot keep it: the disk is full", withAuth(k))
		for what, err := range map[string]error{
			"invite": third(m.c.Invite(t.Context(), status.InviteRequest{})), "rename": second(m.c.Rename(t.Context(), "old", "new")),
			"remove": second(m.c.Remove(t.Context(), "old")), "revoke": m.c.RevokeKey(t.Context(), m.c.Keys()[0].ID),
		} {
			if !errors.Is(err, errDiskFull) {
				t.Errorf("%s: %v", what, err)
			}
		}
		m.invariants()
		old.endpoints = endpoints("192.0.2.1:1")
		old.host.IPNVersion = "2.0"
		if err := old.tell(); err == nil {
			t.Error("a new version is told, and not kept, and nobody hears of that")
		}
		old.disco = key.NewDisco().Public()
		old = old.at(m) // it was upgraded, and comes back
		old.mustRegister()
		gone.cancel()
		p := old.stream()
		pass(time.Second)
		if fs := p.got(); len(fs) == 0 || fs[0].Node == nil {
			t.Error("an upgraded client is shut out while the disk is full")
		}
		if n := w.now().peer(old.node); len(n.Endpoints) != 1 || n.DiscoKey != old.disco || n.Hostinfo.IPNVersion() != "1.2.3" {
			t.Errorf("its peer knows %+v", n)
		}
		left.cancel()
		pass(2 * ephemeralAfter)
		p.cancel()
		pass(offlineAfter + time.Second)
		if *w.now().peer(old.node).Online {
			t.Error("nobody goes offline while the disk is full")
		}
		m.invariants()
		m.disk.refuse(nil)
		pass(time.Minute)
		if m.node(e.node) != nil {
			t.Error("the ephemeral node stays though there is room on the disk again")
		}
		if res := c.mustRegister(withAuth(k)); !res.MachineAuthorized {
			t.Errorf("after the disk has room: %+v", res)
		}
		pass(time.Second)
		peer.check(w, "after the disk was full")
		m.invariants()
	})
}

func third[A, B any](_ A, _ B, err error) error { return err }

// Of many changes at once that share a write which fails, those that need none are made.
func TestFullDiskBatch(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		var members, strangers []*client
		for i := range 5 {
			members = append(members, m.member(fmt.Sprint("m", i)))
			strangers = append(strangers, m.client(fmt.Sprint("s", i), "192.0.2.1"))
			m.must(strangers[i].connect())
		}
		k := m.invite(reusable)
		var once sync.Once
		m.disk.refuse(func(name string) error {
			if name == LedgerFile {
				once.Do(func() { time.Sleep(time.Minute) }) // so that the rest waits in one batch
			}
			return errDiskFull
		})
		var wg sync.WaitGroup
		for i := range members {
			wg.Go(func() {
				if res := strangers[i].mustRegister(withAuth(k)); !strings.Contains(res.Error, "disk is full") {
					t.Errorf("answered %+v", res)
				}
			})
			wg.Go(func() {
				members[i].endpoints = []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(i+1))}
				members[i].mustTell()
			})
			wg.Go(func() {
				if _, err := m.c.Rename(t.Context(), "nobody", "x"); !errors.Is(err, ErrUnknownNode) {
					t.Errorf("an error of its own became %v", err)
				}
			})
		}
		wg.Wait()
		for i, c := range members {
			if n := m.node(c.node); len(n.Endpoints) != 1 || int(n.Endpoints[0].Port()) != i+1 {
				t.Errorf("endpoints %v", n.Endpoints)
			}
		}
		m.invariants()
	})
}

// Days of ordinary life write nothing that must last.
func TestNoWrites(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		a, b := m.member("a"), m.member("b")
		a.stream()
		m.must(m.c.SetPlace(t.Context(), Place{Relays: relayMap(900)}))
		saves := m.disk.count(LedgerFile)
		for range 4 {
			p := b.stream()
			pass(time.Hour)
			b.disco, b.host.NetInfo = key.NewDisco().Public(), &tailcfg.NetInfo{PreferredDERP: 901}
			b.endpoints = append(b.endpoints, netip.MustParseAddrPort("192.0.2.1:1"))
			b.mustTell()
			b.mustRegister()
			p.cancel()
			pass(time.Hour)
			m.client("stranger", "192.0.2.4").ask()
			m.setPolicy(policy.DefaultText)
			m.must(m.c.SetNames(t.Context(), Names{}))
		}
		if n := m.disk.count(LedgerFile) - saves; n != 0 {
			t.Errorf("%d writes of the ledger", n)
		}
		m = m.restart()
		if n := m.disk.count(LedgerFile) - saves; n != 0 {
			t.Errorf("%d writes of the ledger at a restart", n)
		}
		m.invariants()
	})
}

// A coordinator that cannot read who its members are does not begin.
func TestBadLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, d := range map[string]*disk{
			"damaged": with([]byte("{"), nil), "no key": with([]byte("{}"), nil), "full": {files: map[string][]byte{}, before: diskFull},
		} {
			c, err := New(Config{Domain: domain, Store: d, Policy: policy.Default(), Now: time.Now, Log: slog.New(slog.DiscardHandler)})
			if err == nil || c != nil {
				t.Errorf("%s: it begins", name)
			}
		}
		m := start(t, newDisk())
		m.member("a")
		m.stop()
		m.disk.files[hintsFile] = []byte("{")
		m = start(t, m.disk) // without hints it can
		if len(m.c.Nodes()) != 1 {
			t.Error("the members are forgotten with the hints")
		}
	})
}

// Whoever asks while the coordinator stops is told to try again; nobody waits for ever.
func TestStopping(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c := m.member("c")
		p := c.stream()
		k := m.invite(reusable)
		waits := m.client("waits", "192.0.2.1")
		answer := waits.wait(t.Context(), waits.ask())
		pass(time.Second)
		m.disk.refuse(func(string) error { time.Sleep(time.Minute); return nil })
		var cs []*client
		for range 10 {
			c := m.client("late", "192.0.2.1")
			m.must(c.connect())
			cs = append(cs, c)
		}
		var wg sync.WaitGroup
		for _, c := range cs {
			wg.Go(func() {
				if res, err := c.register(context.Background(), withAuth(k)); err == nil && !res.MachineAuthorized {
					t.Errorf("it takes for a refusal: %+v", res)
				}
			})
		}
		pass(time.Second)
		m.stop()
		wg.Wait()
		<-answer
		pass(0)
		if !p.over() {
			t.Error("a long poll goes on without a coordinator")
		}
		for what, err := range map[string]error{
			"rename": second(m.c.Rename(t.Context(), "c", "d")), "dial": second(m.c.Dial(t.Context())), "policy": m.c.SetPolicy(t.Context(), policy.Default()),
		} {
			if err == nil {
				t.Errorf("%s works after the end", what)
			}
		}
		var l ledger
		m.must(json.Unmarshal(m.disk.file(LedgerFile), &l))
		for _, c := range cs {
			if n := m.node(c.node); n != nil && !strings.Contains(string(m.disk.file(LedgerFile)), c.node.String()) {
				t.Errorf("%v is seen and not kept", n.Name)
			}
		}
	})
}
