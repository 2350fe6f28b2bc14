package tunnel

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go4.org/mem"
	"golang.org/x/sys/unix"
	"tailscale.com/types/key"
)

// keyOf is a public key of one byte again and again.
func keyOf(b byte) key.NodePublic {
	return key.NodePublicFromRaw32(mem.B(bytes.Repeat([]byte{b}, 32)))
}

// native gives the one that is in this machine's byte order, spaces taken out.
func native(little, big string) string {
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		big = little
	}
	return strings.NewReplacer(" ", "", "\n", "", "\t", "").Replace(big)
}

func TestWGEncode(t *testing.T) {
	private := [32]byte(bytes.Repeat([]byte{0xee}, 32))
	ee, aa, bb := strings.Repeat("ee", 32), strings.Repeat("aa", 32), strings.Repeat("bb", 32)
	for _, tt := range []struct {
		name        string
		set         wgSet
		little, big string
	}{
		{"device", wgSet{bare: true, device: &wgDevice{private: private, port: 51820, mark: 0x05000000}},
			`01010000 0a000200 6d6573683000 0000 08000500 01000000 24000300` + ee + `06000600 6cca0000 08000700 00000005`,
			`01010000 000a0002 6d6573683000 0000 00080005 00000001 00240003` + ee + `00060006 ca6c0000 00080007 05000000`},
		{"add", wgSet{peers: []wgChange{{key: keyOf(0xaa), add: true, replace: true, aim: true, endpoint: netip.MustParseAddrPort("127.64.1.2:4242"),
			allowed: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd7a::1/128")}}}},
			`01010000 0a000200 6d6573683000 0000 90000880 8c000080 24000100` + aa + `08000300 02000000 14000400 0200 1092 7f400102 0000000000000000
				48000980 1c000080 06000100 02000000 08000200 64400000 05000300 0a000000
				28000080 06000100 0a000000 14000200 fd7a0000000000000000000000000001 05000300 80000000`,
			`01010000 000a0002 6d6573683000 0000 00908008 008c8000 00240001` + aa + `00080003 00000002 00140004 0002 1092 7f400102 0000000000000000
				00488009 001c8000 00060001 00020000 00080002 64400000 00050003 0a000000
				00288000 00060001 000a0000 00140002 fd7a0000000000000000000000000001 00050003 80000000`},
		{"pin v6", wgSet{peers: []wgChange{{key: keyOf(0xaa), aim: true, endpoint: netip.MustParseAddrPort("[2001:db8::7]:41641")}}},
			`01010000 0a000200 6d6573683000 0000 54000880 50000080 24000100` + aa + `08000300 04000000 20000400 0a00 a2a9 00000000 20010db8000000000000000000000007 00000000`,
			`01010000 000a0002 6d6573683000 0000 00548008 00508000 00240001` + aa + `00080003 00000004 00200004 000a a2a9 00000000 20010db8000000000000000000000007 00000000`},
		{"remove, and again", wgSet{peers: []wgChange{{key: keyOf(0xaa), remove: true}, {key: keyOf(0xbb), remove: true, add: true}}},
			`01010000 0a000200 6d6573683000 0000 94000880 30000080 24000100` + aa + `08000300 01000000 30000080 24000100` + bb + `08000300 01000000 30000080 24000100` + bb + `08000300 00000000`,
			`01010000 000a0002 6d6573683000 0000 00948008 00308000 00240001` + aa + `00080003 00000001 00308000 00240001` + bb + `00080003 00000001 00308000 00240001` + bb + `00080003 00000000`},
		{"nudge", wgSet{peers: []wgChange{{key: keyOf(0xaa), nudge: true}}},
			`01010000 0a000200 6d6573683000 0000 74000880 38000080 24000100` + aa + `08000300 04000000 06000500 01000000 38000080 24000100` + aa + `08000300 04000000 06000500 00000000`,
			`01010000 000a0002 6d6573683000 0000 00748008 00388000 00240001` + aa + `00080003 00000004 00060005 00010000 00388000 00240001` + aa + `00080003 00000004 00060005 00000000`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if d := cmp.Diff(native(tt.little, tt.big), hex.EncodeToString(tt.set.encode("mesh0"))); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestWGSockaddr(t *testing.T) {
	for _, s := range []string{"192.0.2.7:41641", "[2001:db8::7]:1", "[fe80::1%3]:65535"} {
		a := netip.MustParseAddrPort(s)
		if got := parseSockaddr(sockaddr(a)); got != a {
			t.Errorf("%v became %v", a, got)
		}
		for n := range sockaddr(a) {
			parseSockaddr(sockaddr(a)[:n])
		}
	}
	if a, b := sockaddr(netip.MustParseAddrPort("[::ffff:192.0.2.7]:1")), sockaddr(netip.MustParseAddrPort("192.0.2.7:1")); !bytes.Equal(a, b) {
		t.Errorf("a mapped address is %x, want %x", a, b)
	}
}

// answer writes what the kernel tells of peers in one message. The first one's
// allowed IPs are more of the peer before if more is set.
func answer(d *wgDevice, more bool, peers []wgPeer) []byte {
	a := attributes{unix.WG_CMD_GET_DEVICE, wgVersion, 0, 0}
	if d != nil {
		a.put16(unix.WGDEVICE_A_LISTEN_PORT, d.port)
		a.put32(unix.WGDEVICE_A_FWMARK, d.mark)
		a.put32(unix.WGDEVICE_A_IFINDEX, 7)
		a.text(unix.WGDEVICE_A_IFNAME, "mesh0")
		a.put(unix.WGDEVICE_A_PRIVATE_KEY, d.private[:])
		a.put(unix.WGDEVICE_A_PUBLIC_KEY, make([]byte, 32))
	}
	a.nest(unix.WGDEVICE_A_PEERS, func() {
		for i, p := range peers {
			a.nest(0, func() { answerPeer(&a, &p, more && i == 0) })
		}
	})
	return a
}

func answerPeer(a *attributes, p *wgPeer, more bool) {
	put64 := func(kind uint16, v ...uint64) {
		var b []byte
		for _, x := range v {
			b = binary.NativeEndian.AppendUint64(b, x)
		}
		a.put(kind, b)
	}
	a.put(unix.WGPEER_A_PUBLIC_KEY, p.key.AppendTo(nil))
	if !more {
		secret := make([]byte, 32)
		if p.foreign {
			secret[31] = 1
		}
		a.put(unix.WGPEER_A_PRESHARED_KEY, secret)
		var sec, nsec uint64
		if !p.stat.Handshake.IsZero() {
			sec, nsec = uint64(p.stat.Handshake.Unix()), uint64(p.stat.Handshake.Nanosecond())
		}
		put64(unix.WGPEER_A_LAST_HANDSHAKE_TIME, sec, nsec)
		a.put16(unix.WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, 0)
		put64(unix.WGPEER_A_TX_BYTES, p.stat.Tx)
		a.put(unix.WGPEER_A_UNSPEC, nil) // padding, on machines that need it
		put64(unix.WGPEER_A_RX_BYTES, p.stat.Rx)
		a.put32(unix.WGPEER_A_PROTOCOL_VERSION, 1)
		if p.endpoint.IsValid() {
			a.put(unix.WGPEER_A_ENDPOINT, sockaddr(p.endpoint))
		}
	}
	a.nest(unix.WGPEER_A_ALLOWEDIPS, func() {
		for _, ip := range p.allowed {
			a.nest(0, func() { putPrefix(a, ip) })
		}
	})
}

var (
	answerDevice = wgDevice{private: [32]byte{8, 31: 64}, port: 51820, mark: 0x05000000}
	answerPeers  = []wgPeer{
		{key: keyOf(1), endpoint: netip.MustParseAddrPort("192.0.2.7:41641"), stat: Stat{Rx: 1 << 40, Tx: 7, Handshake: time.Unix(1790000000, 5)},
			allowed: []netip.Prefix{netip.MustParsePrefix("100.64.0.1/32"), netip.MustParsePrefix("fd7a::1/128"), netip.MustParsePrefix("0.0.0.0/0")}},
		{key: keyOf(2), foreign: true},
		{key: keyOf(3), endpoint: netip.MustParseAddrPort("[2001:db8::7]:1"), allowed: []netip.Prefix{netip.MustParsePrefix("::/0")}},
	}
)

// parse reads messages; it gives deep copies.
func parse(messages ...[]byte) (wgDevice, []wgPeer, error) {
	var all []wgPeer
	d := wgDump{each: func(p *wgPeer) {
		own := *p
		own.allowed = slices.Clone(p.allowed)
		all = append(all, own)
	}}
	for _, m := range messages {
		if err := d.message(m); err != nil {
			return wgDevice{}, nil, err
		}
	}
	d.end()
	return d.device, all, nil
}

func comparePeers(a, b []wgPeer) string {
	return cmp.Diff(a, b, cmp.AllowUnexported(wgPeer{}), cmpopts.EquateEmpty(),
		cmpopts.EquateComparable(key.NodePublic{}, netip.AddrPort{}, netip.Prefix{}))
}

func TestWGDump(t *testing.T) {
	half := slices.Clone(answerPeers)
	rest := wgPeer{key: keyOf(1), allowed: half[0].allowed[1:]}
	half[0].allowed = half[0].allowed[:1]
	for _, tt := range []struct {
		name     string
		messages [][]byte
	}{
		{"at once", [][]byte{answer(&answerDevice, false, answerPeers)}},
		{"peer by peer", [][]byte{answer(&answerDevice, false, nil), answer(nil, false, answerPeers[:1]), answer(nil, false, answerPeers[1:])}},
		{"within a peer", [][]byte{answer(&answerDevice, false, half[:1]), answer(nil, true, append([]wgPeer{rest}, half[1:]...))}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, peers, err := parse(tt.messages...)
			if err != nil || d != answerDevice {
				t.Errorf("%v, device %+v", err, d)
			}
			if diff := comparePeers(answerPeers, peers); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, peers, err := parse(answer(&answerDevice, false, nil)); err != nil || len(peers) != 0 {
		t.Errorf("%v, peers %v of none", err, peers)
	}
}

// TestWGDumpShort: an answer that was cut is an error and nothing worse, or is
// what it says.
func TestWGDumpShort(t *testing.T) {
	whole := answer(&answerDevice, false, answerPeers)
	failed := 0
	for n := range whole {
		if _, peers, err := parse(whole[:n]); err != nil {
			failed++
		} else if len(peers) > 0 {
			t.Errorf("%d of %d bytes give %d peers", n, len(whole), len(peers))
		}
	}
	if failed < len(whole)-20 {
		t.Errorf("%d of %d cuts were found out", failed, len(whole))
	}
}

// FuzzWGDump: no peer is reported twice or without a key.
func FuzzWGDump(f *testing.F) {
	f.Add(answer(&answerDevice, false, answerPeers), []byte{})
	f.Add(answer(&answerDevice, false, answerPeers[:1]), answer(nil, true, answerPeers))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		_, peers, err := parse(a, b)
		for i, p := range peers {
			if p.key.IsZero() || i > 0 && peers[i-1].key == p.key {
				t.Errorf("peer %d is %+v", i, p)
			}
			for _, ip := range p.allowed {
				if !ip.IsValid() {
					t.Errorf("allowed IP %v", ip)
				}
			}
		}
		if err != nil || len(peers) == 0 {
			return
		}
		// What was understood can be said again, and is understood the same way.
		for i := range peers {
			peers[i].stat.Handshake = time.Time{} // any two numbers are a time
			if peers[i].endpoint.IsValid() {
				peers[i].endpoint = netip.AddrPortFrom(peers[i].endpoint.Addr().Unmap(), peers[i].endpoint.Port())
			}
			peers[i].foreign = false // two reasons, one way to say it
		}
		_, again, err := parse(answer(nil, false, peers))
		if err != nil || comparePeers(peers, again) != "" {
			t.Errorf("%v: %s", err, comparePeers(peers, again))
		}
	})
}

func FuzzWGLink(f *testing.F) {
	a := ifinfo(7, unix.IFF_UP, 0)
	a.text(unix.IFLA_IFNAME, "mesh0")
	a.put32(unix.IFLA_MTU, 1280)
	var counters []byte
	for i := range uint64(24) {
		counters = binary.NativeEndian.AppendUint64(counters, i)
	}
	a.put(unix.IFLA_STATS64, counters)
	a.nest(unix.IFLA_LINKINFO, func() { a.text(unix.IFLA_INFO_KIND, wgName) })
	f.Add([]byte(a))
	if l, err := parseLink(a); err != nil || l != (wgLink{index: 7, name: "mesh0", kind: wgName, up: true, mtu: 1280, rx: 2, tx: 3}) {
		f.Errorf("%+v, %v", l, err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := parseLink(b); err == nil && len(b) < unix.SizeofIfInfomsg {
			t.Error("half a header is no link")
		}
		if n, err := parseFamily(b); err == nil && len(b) < 4 {
			t.Errorf("half a header is family %d", n)
		}
	})
}

// BenchmarkWGDump reads a thousand peers.
func BenchmarkWGDump(b *testing.B) {
	peers := make([]wgPeer, 1000)
	for i := range peers {
		peers[i] = answerPeers[0]
		raw := [32]byte{byte(i), byte(i >> 8), 1}
		peers[i].key = key.NodePublicFromRaw32(mem.B(raw[:]))
	}
	var messages [][]byte
	for chunk := range slices.Chunk(peers, 16) {
		messages = append(messages, answer(nil, false, chunk))
	}
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		d := wgDump{each: func(*wgPeer) { n++ }}
		for _, m := range messages {
			if err := d.message(m); err != nil {
				b.Fatal(err)
			}
		}
		if d.end(); n != len(peers) {
			b.Fatal(n)
		}
	}
}
