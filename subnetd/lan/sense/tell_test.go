package sense

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"subnetd/subnetd/lan"
)

// What must survive is written when it changed: after a minute, and ever more seldom where
// there is something new all the time; never because somebody was seen.
func TestSave(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	begun := now
	var saves []time.Duration
	var last lan.Memory
	var fail error
	s := New(Config{Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }, LeaseFiles: []string{}, Save: func(m lan.Memory) error {
		saves, last = append(saves, now.Sub(begun)), m
		return fail
	}})
	teller := newTeller(s)
	// run lets time pass, as the loop does
	run := func(until time.Duration) {
		for {
			d, ok := teller.wait()
			if !ok || now.Add(d).Sub(begun) > until {
				break
			}
			now = now.Add(d)
			teller.stale()
			teller.tell()
		}
		now = begun.Add(until)
	}
	name := func(n int) {
		s.SetNames(map[string]string{deviceMAC: "drucker"})
		s.write(func(now time.Time, b *lan.Book) bool {
			return b.Heard(now, lan.Heard{MAC: deviceMAC, Interface: "lan0", Source: lan.DHCP, Name: fmt.Sprint("n", n)})
		})
		teller.tell()
	}
	expect := func(what string, want ...time.Duration) {
		t.Helper()
		if fmt.Sprint(saves) != fmt.Sprint(want) {
			t.Errorf("%s: saved after %v, not %v", what, saves, want)
		}
		saves = nil
	}

	teller.tell()
	expect("nothing is known")
	name(1)
	expect("not at once")
	run(10 * time.Minute)
	expect("after a minute", time.Minute)
	for n := range 60 {
		s.write(func(now time.Time, b *lan.Book) bool {
			return b.Heard(now, lan.Heard{MAC: deviceMAC, Interface: "lan0", Source: lan.DHCP, Name: "n1"})
		})
		teller.tell()
		run(10*time.Minute + time.Duration(n)*time.Minute)
	}
	expect("it was seen again")
	run(3 * time.Hour)
	now = begun.Add(3 * time.Hour)
	for n := range 300 { // a new name each minute, for five hours
		name(n + 2)
		run(3*time.Hour + time.Duration(n)*time.Minute)
	}
	if len(saves) > 11 || len(saves) < 7 {
		t.Errorf("saved %d times in five hours: %v", len(saves), saves)
	}
	saves = nil
	name(1000)
	teller.save()
	if len(saves) != 1 || last.Things[0].Names["dhcp"] != "n1000" {
		t.Errorf("at the end: %v %+v", saves, last)
	}
	// a full disk: tried again
	fail, saves = errors.New("disk is full"), nil
	name(1001)
	teller.save()
	fail = nil
	teller.save()
	if len(saves) != 2 || !last.Equal(teller.saved) {
		t.Errorf("after a failure: %v", saves)
	}
	teller.save()
	if len(saves) != 2 {
		t.Error("saved without need")
	}
}

// Before a thing is taken to be off because nothing was heard, the kernel is asked once;
// then it is told once, and not looked at again.
func TestAlarms(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	begun := now
	told := 0
	s := New(Config{Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }, LeaseFiles: []string{}, OnChange: func([]lan.Thing) { told++ }})
	heard := func() {
		s.write(func(now time.Time, b *lan.Book) bool {
			return b.Neighbour(now, lan.Neighbour{Addr: netip.MustParseAddr("10.0.0.1"), MAC: deviceMAC, Interface: "lan0", Seen: now})
		})
	}
	teller := newTeller(s)
	heard()
	teller.tell()
	var story []string
	for {
		d, ok := teller.wait()
		if !ok {
			break
		}
		now = now.Add(d)
		stale := teller.stale()
		if stale && len(story) == 0 {
			heard() // the kernel knows better
		}
		before := told
		teller.tell()
		story = append(story, fmt.Sprint(now.Sub(begun), " asked:", stale, " told:", told > before))
	}
	want := []string{"4m45s asked:true told:false", "9m30s asked:true told:false", "9m55s asked:false told:true"}
	if fmt.Sprint(story) != fmt.Sprint(want) {
		t.Errorf("\n%v\n%v", story, want)
	}
}

// What was saved is there after a restart, before anybody is heard.
func TestRestart(t *testing.T) {
	seen := time.Now().Add(-time.Hour)
	r := start(t, Config{
		Interfaces: []string{}, Names: map[string]string{deviceMAC: ""},
		Known: lan.Memory{Things: []lan.Remembered{{MAC: deviceMAC, First: seen, Last: seen, Names: map[string]string{"dhcp": "BRN1"}, Services: []string{"_ipp._tcp"}}}},
	})
	r.wait("it is remembered", func(all []lan.Thing) bool {
		d := thing(all, deviceMAC)
		return d.Name == "BRN1" && d.Kind == lan.KindPrinter && !d.Online && d.Pinned && d.FirstSeen.Equal(seen)
	})
}

// The queue of who is asked is bounded, and nobody is asked twice in an hour.
func TestAskOnce(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := New(Config{Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }, LeaseFiles: []string{}})
	thing := func(n byte, online bool) lan.Thing {
		addr := groupV4.As4()
		addr[0], addr[3] = 10, n
		return lan.Thing{MAC: lan.MAC([]byte{0, 0, 0, 0, 0, n}), Online: online, Addresses: []lan.Address{{Addr: netip.AddrFrom4(addr), Interface: "lan0", Known: true}}}
	}
	queued := func() int { return len(s.asks.queue["lan0"]) }
	a, off := []lan.Thing{thing(1, true)}, []lan.Thing{thing(1, false)}
	for i, step := range []struct {
		before, now []lan.Thing
		after       time.Duration
		want        int
	}{{nil, off, 0, 0}, {off, a, 0, 1}, {a, a, 0, 1}, {off, a, time.Minute, 1}, {a, a, 2 * time.Hour, 1}, {off, a, 0, 2}} {
		now = now.Add(step.after)
		if s.asks.meet(step.before, step.now); queued() != step.want {
			t.Errorf("step %d: %d are asked, not %d", i, queued(), step.want)
		}
	}
	var many []lan.Thing
	for n := range byte(200) {
		many = append(many, thing(n+2, true))
	}
	if s.asks.meet(nil, many); queued() != maxAsked {
		t.Errorf("%d are asked", queued())
	}
}
