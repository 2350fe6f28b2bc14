package config

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	mac1 = "02:00:00:00:00:01"
	mac2 = "02:00:00:00:00:02"
)

// lanOf is the section of a file with those entries.
func lanOf(t *testing.T, devices, names []string) LAN {
	t.Helper()
	src, err := Edit(nil, "f", "lan", "devices", devices)
	if err == nil {
		src, err = Edit(src, "f", "lan", "names", names)
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse(strings.NewReader(string(src)), "f")
	if err != nil {
		t.Fatal(err)
	}
	return c.LAN
}

func device(t *testing.T, s string) Device {
	t.Helper()
	d, ok := parseDevice(s)
	if !ok {
		t.Fatalf("%q is no device", s)
	}
	return d
}

func TestExposing(t *testing.T) {
	one := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}
	tests := []struct {
		name           string
		devices, names []string
		add            string
		has            []netip.Addr
		want, called   []string
		err            string
	}{
		{"first", nil, nil, "tv=" + mac1, nil, []string{"tv=" + mac1}, nil, ""},
		{"again, otherwise", []string{"a=10.0.0.9", "tv=" + mac1, mac2}, nil, "tv=" + mac1 + " tcp/80 wake", nil,
			[]string{"a=10.0.0.9", "tv=" + mac1 + " tcp/80 wake", mac2}, nil, ""},
		{"another name", []string{"tv=" + mac1}, nil, "set=" + mac1, nil, []string{"set=" + mac1}, nil, ""},
		{"it was known by its addresses", []string{"a=10.0.0.9", "tv=10.0.0.1", "tv=fd00::1"}, nil, "tv=" + mac1, one, []string{"a=10.0.0.9", "tv=" + mac1}, nil, ""},
		{"it had a name", nil, []string{"tv=" + mac1, "pc=" + mac2}, "set=" + mac1, nil, []string{"set=" + mac1}, []string{"pc=" + mac2}, ""},
		{"it keeps its name", nil, []string{"tv=" + mac1}, mac1, nil, []string{mac1}, []string{"tv=" + mac1}, ""},
		{"the name of another", []string{"tv=" + mac1}, nil, "tv=" + mac2, nil, nil, nil, "lan.devices then has tv at " + mac1 + " and at " + mac2},
		{"the name of one that is hidden", nil, []string{"tv=" + mac1}, "tv=" + mac2, nil, nil, nil, "lan.names then has tv, which is the name of another thing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := lanOf(t, tt.devices, tt.names)
			before := slices.Concat(written(l.Devices), written(l.Names))
			next, err := l.Exposing(device(t, tt.add), tt.has)
			if after := slices.Concat(written(l.Devices), written(l.Names)); !slices.Equal(before, after) {
				t.Errorf("it changed the wishes in force: %q", after)
			}
			if err != nil || tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || tt.err == "" {
					t.Fatalf("error %v, want %q", err, tt.err)
				}
				return
			}
			if diff := cmp.Diff(tt.want, written(next.Devices)); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(append([]string{}, tt.called...), written(next.Names)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestExposingIsBounded(t *testing.T) {
	l := LAN{}
	for i := range maxList {
		l.Devices = append(l.Devices, Device{Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})})
	}
	if _, err := l.Exposing(Device{MAC: mac1}, nil); err == nil {
		t.Error("one more than the file may hold")
	}
	if next, err := l.Exposing(Device{MAC: mac1}, []netip.Addr{l.Devices[7].Addr}); err != nil || next.Devices[7].MAC != mac1 {
		t.Errorf("in the place of another: %v", err)
	}
}

func TestHidingAndCalling(t *testing.T) {
	l := lanOf(t, []string{"tv=" + mac1 + " tcp/80", "nas=10.0.0.1", "nas=fd00::1", "10.0.0.2"}, []string{"pc=" + mac2})
	next := l.Hiding(mac1, nil)
	if diff := cmp.Diff([]string{"nas=10.0.0.1", "nas=fd00::1", "10.0.0.2"}, written(next.Devices)); diff != "" {
		t.Error(diff)
	}
	if next.Called(mac1) != "tv" || next.Called(mac2) != "pc" || next.Called("") != "" {
		t.Errorf("names are kept: %q", written(next.Names))
	}
	next = next.Hiding("", []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")})
	if diff := cmp.Diff([]string{"10.0.0.2"}, written(next.Devices)); diff != "" {
		t.Error(diff)
	}
	for _, tt := range []struct{ mac, name, want string }{
		{mac1, "Screen", "screen"}, {mac2, "", ""}, {mac2, "laptop", "laptop"}, {"02:00:00:00:00:03", "new", "new"},
	} {
		next, err := l.Calling(tt.mac, tt.name)
		if err != nil || next.Called(tt.mac) != tt.want {
			t.Errorf("%s is called %q: %v", tt.mac, next.Called(tt.mac), err)
		}
	}
	for _, name := range []string{"nas", "pc", "a b", "a.b", "-"} {
		if _, err := l.Calling(mac1, name); err == nil {
			t.Errorf("%q became a name", name)
		}
	}
	if diff := cmp.Diff(map[string]any{"devices": []string{"10.0.0.2"}, "names": []string{"pc=" + mac2, "tv=" + mac1}, "expose": "all"},
		l.Changes(LAN{Expose: ExposeAll, Devices: next.Devices, Names: next.Names})); diff != "" {
		t.Error(diff)
	}
}

// Whatever is done in whatever order, the file can be read again and says the same.
func TestWishesLast(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 0)) // the same in every run: what is red is so because of a change
	macs := []string{mac1, mac2, "02:00:00:00:00:03"}
	names := []string{"", "a", "b", "c"}
	addrs := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::1")}
	l := lanOf(t, nil, nil)
	src := []byte("[lan]\ndevices = [ # those that others reach\n]\n")
	for range 2000 {
		mac, name := macs[r.IntN(3)], names[r.IntN(4)]
		next, err := l, error(nil)
		switch r.IntN(4) {
		case 0:
			d := Device{Name: name, MAC: mac, Wake: r.IntN(2) == 0}
			if r.IntN(2) == 0 {
				d.Ports = []Ports{{"tcp", 80, uint16(80 + r.IntN(2))}}
			}
			next, err = l.Exposing(d, addrs[:r.IntN(3)])
		case 1:
			next, err = l.Exposing(Device{Name: name, Addr: addrs[r.IntN(3)]}, nil)
		case 2:
			next = l.Hiding(mac, addrs[r.IntN(3):])
		case 3:
			next, err = l.Calling(mac, name)
		}
		if err != nil {
			continue
		}
		for k, v := range l.Changes(next) {
			if src, err = Edit(src, "f", "lan", k, v); err != nil {
				t.Fatal(err)
			}
		}
		c, err := Parse(strings.NewReader(string(src)), "f")
		if err != nil {
			t.Fatalf("%v\n%s", err, src)
		}
		if ch := c.LAN.Changes(next); len(ch) > 0 {
			t.Fatalf("the file says otherwise: %v\n%s", ch, src)
		}
		l = next
	}
	if !strings.Contains(string(src), "# those that others reach") {
		t.Errorf("the comment is gone:\n%s", src)
	}
}
