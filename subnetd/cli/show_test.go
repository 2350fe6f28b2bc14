package cli

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"subnetd/subnetd/status"

	"github.com/google/go-cmp/cmp"
)

func TestShow(t *testing.T) {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	s := status.Snapshot{
		Phase: status.PhaseCached, Control: "https://c.example", LastContact: now.Add(-90 * time.Second), Error: "It does not answer.",
		Name: "home.lab", Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd7a::1")},
		Engine: "userspace", EngineReason: "the kernel has no WireGuard", Port: 21000, HomeRelay: "lab",
		LANs: []string{"br-lan"}, Exposed: []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24"), netip.MustParsePrefix("fd00::/64")},
		Approved: []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")},
		Peers: []status.Peer{
			{Name: "phone.lab.", Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.2")}, OS: "android", Path: "direct", Endpoint: "203.0.113.5:1", RTT: 1.25, Rx: 999, Tx: 1_500_000},
			{Name: "tv.lab.", Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.3")}, Online: true, Path: "relay", Relay: "lab", Reason: "UDP is blocked"},
			{Name: "old.lab.", Path: "none"},
			{Name: "new.lab.", Online: true, Path: "none", Reason: "not in use"},
		},
		Problems: []status.Problem{{Code: "x", Text: "The disk is full.", Fix: "Free some.", Since: now.Add(-3 * time.Hour)}},
	}
	want := `! The disk is full. (for 3 h)
  Free some.

mesh       on the last known mesh, https://c.example does not answer, last heard 1 min ago
error      It does not answer.
name       home.lab
addresses  100.64.0.1, fd7a::1
lan        br-lan
offers     192.168.1.0/24, fd00::/64 (not approved)
network    port 21000, UDP is blocked, relay lab
engine     userspace (the kernel has no WireGuard)

PEER       ADDRESS     OS       PATH                        RTT     RECEIVED  SENT
phone.lab  100.64.0.2  android  direct 203.0.113.5:1        1.2 ms  999 B     1.5 MB
tv.lab     100.64.0.3           relay lab (UDP is blocked)  -       0 B       0 B
old.lab                         offline                     -       0 B       0 B
new.lab                         idle (not in use)           -       0 B       0 B
`
	var b bytes.Buffer
	if err := show(&b, s, now); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Error(d)
	}
}

func TestMembership(t *testing.T) {
	now := time.Unix(1e9, 0)
	for _, tt := range []struct {
		s    status.Snapshot
		want string
	}{
		{status.Snapshot{Phase: status.PhaseDown}, "down"},
		{status.Snapshot{Phase: status.PhaseJoined, Control: "https://c"}, "joined at https://c"},
		{status.Snapshot{Phase: status.PhaseConnecting}, "connecting to no coordinator"},
		{status.Snapshot{Phase: status.PhaseNeedsLogin, Control: "https://c", LastContact: now.Add(-time.Second)}, "waiting for a login at https://c, last heard 1 s ago"},
		{status.Snapshot{Phase: status.PhaseWaiting, Control: "https://c"}, "waiting for an approval at https://c"},
	} {
		if got := membership(tt.s, now); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

func TestUnits(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 999_940: "999.9 kB", 999_960: "1.0 MB", 1 << 63: "9.2 EB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	now := time.Unix(1e9, 0)
	for d, want := range map[time.Duration]string{-time.Hour: "0 s", 0: "0 s", 59 * time.Second: "59 s", time.Minute: "1 min", 47 * time.Hour: "47 h", 49 * time.Hour: "2 days"} {
		if got := ago(now, now.Add(-d)); got != want {
			t.Errorf("ago %v = %q, want %q", d, got, want)
		}
	}
}

// What others call themselves, or the coordinator says, paints no terminal and breaks no table.
func TestShowHostile(t *testing.T) {
	const bad = "a\x1b[2J\t\n\u009b"
	s := status.Snapshot{
		Phase: status.PhaseJoined, Control: bad, LoginURL: bad, Error: bad, Name: bad, HomeRelay: bad,
		Peers:    []status.Peer{{Name: bad, OS: bad, Path: "relay", Relay: bad, Reason: bad}},
		Problems: []status.Problem{{Text: bad, Fix: bad}},
	}
	var b bytes.Buffer
	if err := show(&b, s, time.Now()); err != nil {
		t.Fatal(err)
	}
	if got := b.String(); got != printable(got, "\n") || bytes.Count(b.Bytes(), []byte("\n")) != 11 {
		t.Errorf("%q", got)
	}
}
