package underlay

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	hexNonce  = "000102030405060708090a0b"
	hexClient = "00000000000000000000ffffc0a80102" // 192.168.1.2
	hexOuter  = "00000000000000000000ffffcb007107" // 203.0.113.7
	hexNone   = "00000000000000000000ffff00000000"
)

func testNonce() (n mapNonce) {
	for i := range n {
		n[i] = byte(i)
	}
	return n
}

func TestMapRequests(t *testing.T) {
	req := func(external string, lifetime uint32) mapRequest {
		return mapRequest{nonce: testNonce(), client: netip.MustParseAddr("192.168.1.2"), internal: 0xa2b3,
			external: netip.MustParseAddrPort(external), lifetime: lifetime}
	}
	first := req("0.0.0.0:41651", 7200)
	first.external = netip.AddrPortFrom(netip.Addr{}, 41651)
	tests := []struct {
		name string
		got  []byte
		want string
	}{
		{"NAT-PMP outer address", pmpExternal(), "0000"},
		{"NAT-PMP map", first.pmp(), "00 01 0000 a2b3 a2b3 00001c20"},
		{"NAT-PMP renew", req("203.0.113.7:700", 7200).pmp(), "00 01 0000 a2b3 02bc 00001c20"},
		{"NAT-PMP delete", req("203.0.113.7:700", 0).pmp(), "00 01 0000 a2b3 0000 00000000"},
		{"PCP map", first.pcp(),
			"02 01 0000 00001c20" + hexClient + hexNonce + "11 000000 a2b3 a2b3" + hexNone},
		{"PCP renew", req("203.0.113.7:700", 7200).pcp(),
			"02 01 0000 00001c20" + hexClient + hexNonce + "11 000000 a2b3 02bc" + hexOuter},
		{"PCP delete", req("203.0.113.7:700", 0).pcp(),
			"02 01 0000 00000000" + hexClient + hexNonce + "11 000000 a2b3 0000" + hexNone},
		{"PCP announce", pcpAnnounce(netip.MustParseAddr("192.168.1.2")), "02 00 0000 00000000" + hexClient},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(hex.EncodeToString(unhex(t, tt.want)), hex.EncodeToString(tt.got)); diff != "" {
				t.Fatal(diff)
			}
		})
	}
}

// mapAnswers are messages of routers; the fuzz test begins with them.
var mapAnswers = []struct {
	name, wire string
	want       mapAnswer // zero: refused
}{
	{"NAT-PMP outer address", "00 80 0000 00000e10 cb007107",
		mapAnswer{op: opExternal, epoch: 3600, external: netip.MustParseAddrPort("203.0.113.7:0")}},
	{"NAT-PMP outer address refused", "00 80 0003 00000e10", mapAnswer{op: opExternal, result: 3, epoch: 3600}},
	{"NAT-PMP map", "00 81 0000 00000e10 a2b3 02bc 00001c20",
		mapAnswer{op: opMap, epoch: 3600, internal: 0xa2b3, external: netip.AddrPortFrom(netip.Addr{}, 700), lifetime: 7200}},
	{"NAT-PMP map refused", "00 81 0002 00000e10 a2b3 0000 00000000",
		mapAnswer{op: opMap, result: 2, epoch: 3600, internal: 0xa2b3, external: netip.AddrPortFrom(netip.Addr{}, 0)}},
	{"NAT-PMP does not know PCP", "00 81 0001 00000e10", mapAnswer{op: opMap, result: 1, epoch: 3600}},
	{"PCP map", "02 81 00 00 00001c20 00000e10 000000000000000000000000" + hexNonce + "11 000000 a2b3 02bc" + hexOuter,
		mapAnswer{proto: protoPCP, op: opMap, epoch: 3600, lifetime: 7200, nonce: testNonce(), internal: 0xa2b3,
			external: netip.MustParseAddrPort("203.0.113.7:700")}},
	{"PCP map refused", "02 81 00 08 0000001e 00000e10 000000000000000000000000" + hexNonce + "11 000000 a2b3 0000" + hexNone,
		mapAnswer{proto: protoPCP, op: opMap, result: 8, epoch: 3600, lifetime: 30, nonce: testNonce(), internal: 0xa2b3,
			external: netip.MustParseAddrPort("0.0.0.0:0")}},
	{"PCP announce", "02 80 00 00 00000000 00000e10 000000000000000000000000",
		mapAnswer{proto: protoPCP, op: opAnnounce, epoch: 3600}},

	{name: "empty"},
	{name: "only a version", wire: "00"},
	{name: "a request", wire: "00 01 0000 a2b3 02bc 00001c20"},
	{name: "NAT-PMP cut in the epoch", wire: "00 81 0001 00000e"},
	{name: "NAT-PMP outer address cut", wire: "00 80 0000 00000e10 cb0071"},
	{name: "NAT-PMP map cut", wire: "00 81 0000 00000e10 a2b3 02bc 00001c"},
	{name: "NAT-PMP map of TCP", wire: "00 82 0000 00000e10 a2b3 02bc 00001c20"},
	{name: "unknown version", wire: "01 81 0000 00000e10 a2b3 02bc 00001c20"},
	{name: "PCP header cut", wire: "02 80 00 00 00000000 00000e10 0000000000000000"},
	{name: "PCP map cut", wire: "02 81 00 00 00001c20 00000e10 000000000000000000000000" + hexNonce + "11 000000 a2b3 02bc" + hexOuter[:24]},
	{name: "PCP map of TCP", wire: "02 81 00 00 00001c20 00000e10 000000000000000000000000" + hexNonce + "06 000000 a2b3 02bc" + hexOuter},
	{name: "PCP peer", wire: "02 82 00 00 00001c20 00000e10 000000000000000000000000" + hexNonce + "11 000000 a2b3 02bc" + hexOuter},
	{name: "PCP of odd length", wire: "02 80 00 00 00000000 00000e10 00000000000000000000000000"},
	{name: "PCP too large", wire: "02 80 00 00 00000000 00000e10" + strings.Repeat("00", 1092)},
}

func TestMapAnswers(t *testing.T) {
	for _, tt := range mapAnswers {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := parseMapAnswer(unhex(t, tt.wire))
			if got != tt.want || ok != (tt.want != mapAnswer{}) {
				t.Fatalf("got %+v, %t; want %+v", got, ok, tt.want)
			}
		})
	}
}

func TestReachable(t *testing.T) {
	tests := map[string]bool{
		"203.0.113.7": true, "8.8.8.8": true, "100.63.255.255": true, "100.128.0.0": true, "172.32.0.1": true,
		"10.0.0.1": false, "172.16.0.1": false, "172.31.255.255": false, "192.168.1.1": false,
		"100.64.0.1": false, "100.127.255.255": false, "192.0.0.2": false,
		"0.0.0.0": false, "127.0.0.1": false, "169.254.1.1": false, "224.0.0.1": false, "255.255.255.255": false,
		"2001:db8::1": false,
	}
	for addr, want := range tests {
		if got := reachable(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: got %t, want %t", addr, got, want)
		}
	}
	if reachable(netip.Addr{}) {
		t.Error("no address is reachable")
	}
}

func TestEpochBroken(t *testing.T) {
	tests := []struct {
		name          string
		was, is, here int64
		want          bool
	}{
		{"same answer twice", 100, 100, 0, false},
		{"goes with us", 100, 400, 300, false},
		{"one second back is rounding", 100, 99, 0, false},
		{"two back", 100, 98, 0, true},
		{"rebooted", 100000, 5, 300, true},
		{"rebooted long ago, and up for longer than before", 10, 100, 300, true},
		{"a slow clock", 0, 285, 300, false},
		{"too slow", 0, 270, 300, true},
		{"a fast clock", 0, 320, 300, false},
		{"too fast", 0, 330, 300, true},
		{"stands still", 7, 7, 300, true},
		{"the widest numbers", 0, 1<<32 - 1, 1 << 32, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := epochBroken(tt.was, tt.is, tt.here); got != tt.want {
				t.Fatalf("got %t, want %t", got, tt.want)
			}
		})
	}
}

// FuzzPortMap: whatever a router sends is read within its bounds, and bytes
// that follow a message change nothing of it.
func FuzzPortMap(f *testing.F) {
	for _, a := range mapAnswers {
		f.Add(unhex(f, a.wire))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := parseMapAnswer(b)
		if !ok {
			if a != (mapAnswer{}) {
				t.Fatalf("refused, but says %+v", a)
			}
			return
		}
		if a.proto != mapProto(b[0]) || a.op != b[1]&0x7f || a.op > opMap {
			t.Fatalf("%x read as %+v", b, a)
		}
		if a.proto == protoPCP && len(b)+4 <= pcpLargest {
			if again, ok := parseMapAnswer(append(b[:len(b):len(b)], 0, 3, 0, 0)); !ok || again != a {
				t.Fatalf("an option changes %+v to %+v, %t", a, again, ok)
			}
		}
	})
}
