package netns_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale.com/net/stun"
)

// stun asks over both families from where one is seen.
func (k *conform) stun(t *testing.T) {
	for _, to := range []netip.Addr{k.home.Router.Addr4, k.home.Router.Addr6} {
		local := map[bool]string{true: "0.0.0.0:0", false: "[::]:0"}[to.Is4()]
		pc, err := k.c.ListenPacket(local)
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		tx := stun.NewTxID()
		if _, err := pc.WriteTo(stun.Request(tx), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 3478))); err != nil {
			t.Fatal(err)
		}
		_ = pc.SetReadDeadline(time.Now().Add(patience))
		b := make([]byte, 1500)
		n, from, err := pc.ReadFrom(b)
		if err != nil {
			t.Fatalf("STUN at %v: %v", to, err)
		}
		got, seen, err := stun.ParseResponse(b[:n])
		want := k.c.Addr4
		if to.Is6() {
			want = k.c.Addr6
		}
		if err != nil || got != tx || seen.Addr() != want || int(seen.Port()) != pc.LocalAddr().(*net.UDPAddr).Port {
			t.Errorf("STUN at %v from %v: %v %v %v, want %v", to, from, got, seen, err, want)
		}
	}
}

// records: what the owner writes into home.records is told to members at each of many changes.
func (k *conform) records(t *testing.T) {
	_, s := k.c.joinOne(t, k.key, 9)
	records := func(want ...string) func(rawMap) error {
		return func(m rawMap) error {
			var have []string
			for _, r := range m.DNS.ExtraRecords {
				if !strings.HasSuffix(r.Name, ".home.mesh.internal") { // the router's own services
					have = append(have, strings.TrimSuffix(r.Name, ".")+"="+r.Value)
				}
			}
			for _, w := range want {
				if !slices.Contains(have, w) {
					return fmt.Errorf("records %v, want %v", have, want)
				}
			}
			if len(have) != len(want) {
				return fmt.Errorf("records %v, want %v", have, want)
			}
			return nil
		}
	}
	s.wait(t, patience, "the first record", records("nas.mesh.internal=192.168.77.50"))
	o := k.mesh.Options
	for i := range 20 {
		o.Records = []string{"nas=192.168.77.50", fmt.Sprintf("thing=192.168.77.%d", 100+i), "thing=fd77:77::9"}
		k.mesh.SetOptions(o)
		s.wait(t, patience, fmt.Sprintf("change %d", i), records("nas.mesh.internal=192.168.77.50",
			fmt.Sprintf("thing.mesh.internal=192.168.77.%d", 100+i), "thing.mesh.internal=fd77:77::9"))
	}
	o.Records = nil
	k.mesh.SetOptions(o)
	s.wait(t, patience, "no record", records())
}

// slowReader: a member that does not read its stream costs the others nothing, and finds the truth when it reads again.
func (k *conform) slowReader(t *testing.T) {
	// Four who talk, each less than what one may in a row, and one who listens.
	nodes, streams := k.c.join(t, k.key, 20, 25)
	slow := newRawNode(k.c, 12)
	gate := new(gate)
	t.Cleanup(gate.open)
	dial := slow.dial
	slow.dial = func(ctx context.Context) (net.Conn, error) {
		c, err := dial(ctx)
		if err == nil {
			_ = c.(*net.TCPConn).SetReadBuffer(4096)
		}
		return &gated{Conn: c, g: gate}, err
	}
	s, err := slow.open(t.Context(), k.key)
	if err != nil {
		t.Fatal(err)
	}
	gate.shut()
	before := memoryOf(t, k.mesh.Pid(), "VmRSS")
	var slowest time.Duration
	for i := range 160 {
		talker, conn := nodes[i%4], streams[i%4].wire
		many := make([]netip.AddrPort, 60)
		for p := range many {
			many[p] = randomEndpoint() // which nothing can pack well
		}
		talker.moves(many...)
		start := time.Now()
		if err := talker.lite(t.Context(), conn); err != nil {
			t.Fatal(err)
		}
		streams[4].wait(t, patience, "others learn of it", func(m rawMap) error {
			p, err := m.named(talker.name)
			if err == nil && !slices.Equal(p.Endpoints, many) {
				err = errors.New("not yet")
			}
			return err
		})
		slowest = max(slowest, time.Since(start))
	}
	after := memoryOf(t, k.mesh.Pid(), "VmRSS")
	t.Logf("160 changes beside a reader that stands still: slowest %v, memory %s, then %s", slowest.Round(time.Millisecond), mb(before), mb(after))
	if after > before+20<<20 {
		t.Errorf("memory grew from %s to %s", mb(before), mb(after))
	}
	gate.open()
	truth := func(m rawMap) error {
		p, err := m.named(nodes[0].name)
		if err == nil && !slices.Equal(p.Endpoints, nodes[0].where()) {
			err = errors.New("not yet")
		}
		return err
	}
	if err := s.until(patience, truth); err != nil {
		t.Logf("the reader was hung up on: %v", err)
		if s, err = slow.open(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		s.wait(t, patience, "and finds the truth", truth)
	}
	s.close()
}

func randomEndpoint() netip.AddrPort {
	b := netip.MustParseAddr("2001:db8:f::").As16()
	binary.BigEndian.PutUint64(b[8:], rand.Uint64())
	return netip.AddrPortFrom(netip.AddrFrom16(b), uint16(1+rand.IntN(65535)))
}

// largeBodies: a megabyte is taken or clearly refused; more is refused; nothing else suffers.
func (k *conform) largeBodies(t *testing.T) {
	n, s := k.c.joinOne(t, k.key, 13)
	for _, size := range []int{1<<20 - 4096, 2 << 20, 8 << 20} {
		for _, path := range []string{"/machine/register", "/machine/map"} {
			w, err := n.connect(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			body := fmt.Appendf(nil, `{"Version":%d,"NodeKey":%q,"OmitPeers":true,"Hostinfo":{"Hostname":"big","OS":"linux","App":%q}}`,
				rawVersion, n.node.Public(), strings.Repeat("x", size))
			res, err := w.post(ctx, path, body)
			var no *refused
			switch {
			case err == nil:
				res.Body.Close()
				if size > 1<<20 {
					t.Errorf("%s takes %d bytes", path, len(body))
				}
			case errors.As(err, &no):
				t.Logf("%s, %d bytes: %v", path, len(body), err)
			case size <= 1<<20:
				t.Errorf("%s, %d bytes: %v", path, len(body), err)
			}
			cancel()
			w.close()
		}
	}
	if err := s.ended(); err != nil {
		t.Errorf("the node's stream has ended: %v", err)
	}
	if _, err := k.mesh.StatusJSON(); err != nil {
		t.Error(err)
	}
}
