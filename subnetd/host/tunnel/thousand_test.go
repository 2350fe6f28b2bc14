package tunnel

import (
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/host"

	"tailscale.com/types/key"
)

// TestThousandPeers: as many peers fit into a router, and news of one peer touch one peer.
func TestThousandPeers(t *testing.T) {
	before := used()
	k := key.NewNode()
	w, _ := wires(k.Public(), key.NewNode().Public())
	s := newSide(t, w, k, key.NewNode().Public(), "100.64.0.2")
	defer s.Close()
	want := host.Tunnel{Name: "mesh0", Key: k}
	for i := range 1000 {
		a := netip.AddrFrom4([4]byte{100, 65, byte(i / 250), byte(1 + i%250)})
		want.Peers = append(want.Peers, host.Peer{Key: key.NewNode().Public(), Session: "1", AllowedIPs: []netip.Prefix{netip.PrefixFrom(a, 32)}})
	}
	slices.SortFunc(want.Peers, func(a, b host.Peer) int { return a.Key.Compare(b.Key) })
	start := time.Now()
	if err := s.Set(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	took, size := time.Since(start), used()-before
	t.Logf("1,000 peers: set in %v, %.1f MB of memory", took.Round(time.Millisecond), float64(size)/1e6)
	if limit := int64(64 << 20); size > limit {
		t.Errorf("1,000 peers take %d bytes, more than %d", size, limit)
	}
	next := want
	next.Peers = slices.Clone(want.Peers)
	next.Peers[500].AllowedIPs = append(slices.Clone(next.Peers[500].AllowedIPs), netip.MustParsePrefix("192.168.9.0/24"))
	text := change(want, next)
	if n := strings.Count(text, "public_key="); n != 1 || !strings.Contains(text, "public_key="+hexKey(next.Peers[500].Key)+"\n") {
		t.Errorf("news of one peer touch %d:\n%.400s", n, text)
	}
}

// used is the memory that is in use, stacks included.
func used() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
