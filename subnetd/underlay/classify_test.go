package underlay

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"subnetd/subnetd/path"

	"tailscale.com/disco"
	"tailscale.com/net/stun"
	"tailscale.com/types/key"
)

func stunAnswer() []byte {
	return stun.Response(stun.TxID{1, 2, 3}, netip.MustParseAddrPort("203.0.113.7:700"))
}

func discoBytes() []byte {
	return append([]byte(disco.Magic), make([]byte, keySize+24+16)...)
}

// confused is a WireGuard message of a type whose receiver index, bytes 4 to
// 8, is STUN's magic cookie. Indexes are random, so one in four billion is.
func confused(typ byte, size int) []byte {
	return append([]byte{typ, 0, 0, 0, 0x21, 0x12, 0xa4, 0x42}, make([]byte, size-8)...)
}

var classifyCases = []struct {
	name string
	b    []byte
	want kind
}{
	{"empty", nil, kindWireGuard},
	{"one byte", []byte{1}, kindWireGuard},
	{"handshake initiation", confused(1, 148), kindWireGuard},
	{"handshake response", confused(2, 92), kindWireGuard},
	{"cookie reply", confused(3, 64), kindWireGuard},
	{"data with STUN's cookie as receiver", confused(4, 64), kindWireGuard},
	{"keepalive", confused(4, 32), kindWireGuard},
	{"STUN answer", stunAnswer(), kindSTUN},
	{"STUN error answer", append([]byte{1, 0x11}, stunAnswer()[2:]...), kindSTUN},
	{"STUN request: nobody may ask us", stun.Request(stun.TxID{}), kindWireGuard},
	{"STUN cut in its header", stunAnswer()[:19], kindWireGuard},
	{"STUN with another cookie", append([]byte{1, 1, 0, 0, 9, 9, 9, 9}, stunAnswer()[8:]...), kindWireGuard},
	{"disco", discoBytes(), kindDisco},
	{"disco without room for a key", []byte(disco.Magic), kindWireGuard},
}

func TestClassify(t *testing.T) {
	for _, tt := range classifyCases {
		t.Run(tt.name, func(t *testing.T) {
			if got := classify(tt.b); got != tt.want {
				t.Fatalf("got %d, want %d", got, tt.want)
			}
		})
	}
}

// FuzzClassify: no message of WireGuard is ever taken for something else, and
// what counts as STUN or disco is long enough for those who read it.
func FuzzClassify(f *testing.F) {
	for _, c := range classifyCases {
		f.Add(c.b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got := classify(b)
		switch wireguard := len(b) >= 4 && b[0] >= 1 && b[0] <= 4 && b[1] == 0 && b[2] == 0 && b[3] == 0; {
		case wireguard && got != kindWireGuard:
			t.Fatalf("a WireGuard message of type %d is taken for %d", b[0], got)
		case got == kindSTUN && (len(b) < 20 || !stun.Is(b)):
			t.Fatalf("%x is no STUN", b)
		case got == kindDisco && !bytes.HasPrefix(b, []byte(disco.Magic)):
			t.Fatalf("%x is no disco", b)
		}
	})
}

// FuzzSTUN: whatever looks like a STUN answer is read within its bounds; what
// is handed on names an address.
func FuzzSTUN(f *testing.F) {
	f.Add(stunAnswer())
	f.Add(stun.Response(stun.TxID{}, netip.MustParseAddrPort("[2001:db8::1]:700")))
	f.Add(append([]byte{1, 0x11}, stunAnswer()[2:]...))
	f.Add(append(stunAnswer()[:20], 0, 0x20, 0xff, 0xff))
	f.Add(append(stunAnswer()[:20], 0, 0x20, 0, 0))
	u := &Underlay{stunIn: make(chan stunReply, 1)}
	u.cfg.Now = time.Now
	f.Fuzz(func(t *testing.T, b []byte) {
		if classify(b) != kindSTUN {
			return
		}
		u.takeSTUN(b)
		select {
		case r := <-u.stunIn:
			if !r.mapped.IsValid() || r.mapped.Addr().Is4In6() {
				t.Fatalf("%x gives address %s", b, r.mapped)
			}
		default:
		}
	})
}

// bareLoop is a loop without sockets whose only peer has a disco key.
func bareLoop(peerKey key.NodePublic, peerDisco key.DiscoPublic) *loop {
	u := &Underlay{disco: key.NewDisco(), inbound: make(chan *packet, 2), hints: make(chan path.Event, 2)}
	u.packets.New = func() any { return new(packet) }
	u.peers.Store(&map[key.NodePublic]*peer{peerKey: {key: peerKey}})
	u.addrs.Store(&map[netip.AddrPort]*peer{})
	u.relays.Store(&map[int]*relay{})
	return &loop{u: u, disco: map[key.DiscoPublic]*key.DiscoShared{peerDisco: nil}}
}

// seal is a disco message as a peer sends it.
func seal(from key.DiscoPrivate, to key.DiscoPublic, m []byte) []byte {
	b := append([]byte(disco.Magic), from.Public().AppendTo(nil)...)
	return append(b, from.Shared(to).Seal(m)...)
}

func TestOpenDisco(t *testing.T) {
	peerDisco, stranger := key.NewDisco(), key.NewDisco()
	node := key.NewNode().Public()
	l := bareLoop(node, peerDisco.Public())
	ours := l.u.disco.Public()
	udp := path.Source{Addr: netip.MustParseAddrPort("203.0.113.7:700")}
	relay := path.Source{Region: 1, Node: node}
	ping := (&disco.Ping{TxID: [12]byte{7}, NodeKey: node}).AppendMarshal(nil)
	pong := (&disco.Pong{TxID: [12]byte{7}, Src: netip.MustParseAddrPort("203.0.113.9:900")}).AppendMarshal(nil)
	call := (&disco.CallMeMaybe{MyNumber: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.9:900")}}).AppendMarshal(nil)
	good := seal(peerDisco, ours, ping)
	tests := []struct {
		name string
		from path.Source
		b    []byte
		want bool
	}{
		{"ping", udp, good, true},
		{"ping over a relay", relay, good, true},
		{"pong", udp, seal(peerDisco, ours, pong), true},
		{"call over a relay", relay, seal(peerDisco, ours, call), true},
		{"call over UDP: nobody vouches for it", udp, seal(peerDisco, ours, call), false},
		{"a key that no peer has", udp, seal(stranger, ours, ping), false},
		{"sealed for another", udp, seal(peerDisco, stranger.Public(), ping), false},
		{"a bit flipped", udp, flip(bytes.Clone(good), len(good)-1), false},
		{"cut", udp, good[:len(good)-1], false},
		{"nothing sealed", udp, seal(peerDisco, ours, nil), false},
		{"unknown type", udp, seal(peerDisco, ours, []byte{0x7f, 0, 1, 2, 3}), false},
		{"ping cut", udp, seal(peerDisco, ours, ping[:8]), false},
		{"only the magic", udp, []byte(disco.Magic), false},
		{"no disco", udp, wireGuard("x"), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if e, ok := l.open(tt.from, tt.b); ok != tt.want {
				t.Fatalf("got %+v, %t", e, ok)
			}
		})
	}
	e, _ := l.open(udp, seal(peerDisco, ours, pong))
	want := path.Pong{From: udp, Sender: peerDisco.Public(), TxID: path.TxID{7}, Src: netip.MustParseAddrPort("203.0.113.9:900")}
	if e != path.Event(want) {
		t.Fatalf("got %+v, want %+v", e, want)
	}
}

// A peer may name many addresses; we take no more than we can use.
func TestOpenDiscoLongCall(t *testing.T) {
	peerDisco := key.NewDisco()
	node := key.NewNode().Public()
	l := bareLoop(node, peerDisco.Public())
	var m disco.CallMeMaybe
	for i := range 100 {
		m.MyNumber = append(m.MyNumber, netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 700))
	}
	e, ok := l.open(path.Source{Region: 1, Node: node}, seal(peerDisco, l.u.disco.Public(), m.AppendMarshal(nil)))
	call, isCall := e.(path.CallMeMaybe)
	if !ok || !isCall || len(call.Endpoints) != maxCallEndpoint || call.Endpoints[0] != m.MyNumber[0] {
		t.Fatalf("got %+v, %t", e, ok)
	}
}

// FuzzDisco: whatever a peer seals, and whatever bytes come unsealed, is read
// within its bounds and is an event the machine knows, or nothing.
func FuzzDisco(f *testing.F) {
	node := key.NewNode().Public()
	f.Add((&disco.Ping{TxID: [12]byte{7}, NodeKey: node, Padding: 9}).AppendMarshal(nil), true)
	f.Add((&disco.Ping{TxID: [12]byte{7}}).AppendMarshal(nil), false)
	f.Add((&disco.Pong{Src: netip.MustParseAddrPort("[::ffff:203.0.113.9]:900")}).AppendMarshal(nil), false)
	f.Add((&disco.CallMeMaybe{MyNumber: []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::1]:9")}}).AppendMarshal(nil), true)
	f.Add([]byte{3, 0, 1}, true)
	f.Add([]byte{}, false)
	f.Add(discoBytes(), false)
	peerDisco := key.NewDisco()
	l := bareLoop(node, peerDisco.Public())
	f.Fuzz(func(t *testing.T, b []byte, relayed bool) {
		from := path.Source{Addr: netip.MustParseAddrPort("203.0.113.7:700")}
		if relayed {
			from = path.Source{Region: 1, Node: node}
		}
		if e, ok := l.open(from, b); ok {
			t.Fatalf("unsealed bytes are read as %+v", e)
		}
		e, ok := l.open(from, seal(peerDisco, l.u.disco.Public(), b))
		if !ok {
			return
		}
		switch e := e.(type) {
		case path.Ping:
		case path.Pong:
			if e.Src.Addr().Is4In6() {
				t.Fatalf("mapped address in %+v", e)
			}
		case path.CallMeMaybe:
			if !relayed || len(e.Endpoints) > maxCallEndpoint {
				t.Fatalf("got %+v", e)
			}
		default:
			t.Fatalf("unknown event %T", e)
		}
	})
}
