package quota

import (
	"net/netip"
	"testing"
)

func TestConns(t *testing.T) {
	const most, each = 10, 3
	var q Conns
	one, other := netip.MustParseAddr("192.168.1.9"), netip.MustParseAddr("fd00::9")
	for i := range each + 1 {
		if got := q.Take(one, most, each); got != (i < each) {
			t.Fatalf("connection %d: %v", i, got)
		}
	}
	for range most - each {
		if !q.Take(other, most, most) {
			t.Fatal("another address has no more")
		}
	}
	if q.Take(other, most, most) {
		t.Error("there is no end of connections")
	}
	for range each {
		q.Return(one)
	}
	if len(q.from) != 1 || !q.Take(one, most, each) {
		t.Error("what ended still counts")
	}
}
