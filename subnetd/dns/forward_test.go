package dns

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// said is how one resolver behaves.
type said struct {
	after time.Duration // 0: never
	rcode dnsmessage.RCode
	err   error
}

// TestRace follows one question among resolvers, in virtual time.
func TestRace(t *testing.T) {
	const ms = time.Millisecond
	broken := errors.New("no route")
	for what, c := range map[string]struct {
		to    []said
		want  dnsmessage.RCode // 99: nobody
		took  time.Duration
		asked []int
		next  []int // the order of the next question
	}{
		"the first":             {[]said{{after: 20 * ms}, {after: 1 * ms}}, 0, 20 * ms, []int{0}, []int{0, 1}},
		"a slow one":            {[]said{{after: 800 * ms}, {after: 500 * ms}}, 0, 800 * ms, []int{0, 1}, []int{0, 1}},
		"a dead one":            {[]said{{}, {after: 30 * ms}}, 0, 730 * ms, []int{0, 1}, []int{1, 0}},
		"two dead ones":         {[]said{{}, {}, {after: 30 * ms}}, 0, 1830 * ms, []int{0, 1, 2}, []int{2, 0, 1}},
		"an unreachable one":    {[]said{{after: ms, err: broken}, {after: 30 * ms}}, 0, 31 * ms, []int{0, 1}, []int{0, 1}},
		"all unreachable":       {[]said{{after: ms, err: broken}, {after: ms, err: broken}}, 99, 2 * ms, []int{0, 1}, []int{0, 1}},
		"all dead":              {[]said{{}, {}}, 99, 5000 * ms, []int{0, 1, 0, 1}, []int{0, 1}},
		"a failing one":         {[]said{{after: 10 * ms, rcode: 2}, {after: 10 * ms}}, 0, 20 * ms, []int{0, 1}, []int{0, 1}},
		"a refusing one, alone": {[]said{{after: 10 * ms, rcode: 5}}, 5, 10 * ms, []int{0}, []int{0}},
		"failing, then dead":    {[]said{{after: 10 * ms, rcode: 2}, {}}, 2, 5000 * ms, []int{0, 1, 1, 1}, []int{0, 1}},
		"no such name":          {[]said{{after: 10 * ms, rcode: 3}, {after: ms}}, 3, 10 * ms, []int{0}, []int{0, 1}},
		"a datagram lost":       {[]said{{after: -1}}, 0, 710 * ms, []int{0, 0}, []int{0}},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newForwarder(Config{Now: time.Now})
				defer f.close()
				var to []netip.AddrPort
				for i := range c.to {
					to = append(to, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 53))
				}
				number := func(at netip.AddrPort) int { return int(at.Addr().As4()[3]) }
				var mu sync.Mutex
				var asked []int
				f.one = func(ctx context.Context, at netip.AddrPort, q *query) ([]byte, error) {
					mu.Lock()
					asked = append(asked, number(at))
					s, first := c.to[number(at)], len(asked) == 1
					mu.Unlock()
					if s.after < 0 {
						s.after = 10 * ms
						if first {
							s.after = 0
						}
					}
					if s.after == 0 {
						<-ctx.Done()
						return nil, ctx.Err()
					}
					select {
					case <-time.After(s.after):
					case <-ctx.Done():
						return nil, ctx.Err()
					}
					return reply("x.", dnsmessage.TypeA, s.rcode, nil, nil), s.err
				}
				q, _, _ := parse(ask("x.", dnsmessage.TypeA))
				start := time.Now()
				msg, _ := f.ask(t.Context(), &q, to)
				rcode := dnsmessage.RCode(99)
				if len(msg) > 0 {
					rcode = dnsmessage.RCode(msg[3] & 0xf)
				}
				if took := time.Since(start); rcode != c.want || took != c.took {
					t.Errorf("rcode %d after %v, want %d after %v", rcode, took, c.want, c.took)
				}
				mu.Lock()
				defer mu.Unlock()
				if !slices.Equal(asked, c.asked) {
					t.Errorf("asked %v, want %v", asked, c.asked)
				}
				var next []int
				for _, at := range f.order(to) {
					next = append(next, number(at))
				}
				if !slices.Equal(next, c.next) {
					t.Errorf("next time %v, want %v", next, c.next)
				}
			})
		})
	}
}

// TestStampede: however many ask the same, resolvers are asked once, and not again
// while the answer counts; a failure counts for a second.
func TestStampede(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newForwarder(Config{Now: time.Now})
		defer f.close()
		to := []netip.AddrPort{resolver("10.0.0.1:53")}
		asked, answer := 0, reply("x.", dnsmessage.TypeA, 0, []dnsmessage.Resource{rrA("x.", 60, "1.2.3.4")}, nil)
		f.one = func(context.Context, netip.AddrPort, *query) ([]byte, error) {
			asked++
			time.Sleep(100 * time.Millisecond)
			return answer, nil
		}
		q, _, _ := parse(ask("x.", dnsmessage.TypeA))
		all := func(n int) {
			var wg sync.WaitGroup
			for range n {
				wg.Go(func() {
					if msg, _ := f.ask(t.Context(), &q, to); len(msg) == 0 {
						t.Error("no answer")
					}
				})
			}
			wg.Wait()
		}
		all(100)
		time.Sleep(59 * time.Second)
		if msg, age := f.ask(t.Context(), &q, to); len(msg) == 0 || age != 59*time.Second+0 {
			t.Errorf("after a minute: %x, %v old", msg, age)
		}
		if asked != 1 {
			t.Errorf("asked %d times for 101", asked)
		}
		time.Sleep(time.Second)
		all(3)
		other, _, _ := parse(ask("x.", dnsmessage.TypeA, edns(1232, 0, 0x80)))
		_, _ = f.ask(t.Context(), &other, to)
		_, _ = f.ask(t.Context(), &q, []netip.AddrPort{resolver("10.0.0.2:53")})
		unchecked, _, _ := parse(ask("x.", dnsmessage.TypeA, set(3, bitUnchecked)))
		_, _ = f.ask(t.Context(), &unchecked, to)
		if asked != 5 {
			t.Errorf("asked %d times, want 5: a minute later, with signatures, elsewhere, unchecked", asked)
		}
		answer, asked = nil, 0
		q, _, _ = parse(ask("y.", dnsmessage.TypeA))
		f.one = func(context.Context, netip.AddrPort, *query) ([]byte, error) { asked++; return nil, errRefused }
		for range 10 {
			if msg, _ := f.ask(t.Context(), &q, to); len(msg) != 0 {
				t.Error("an answer from nobody")
			}
		}
		time.Sleep(keepFailure)
		_, _ = f.ask(t.Context(), &q, to)
		if asked != 2 {
			t.Errorf("asked %d times for what fails, want 2", asked)
		}
	})
}

// TestLoop: a question that comes back to us as the resolver's own waits for
// itself, and ends.
func TestLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newForwarder(Config{Now: time.Now})
		defer f.close()
		to := []netip.AddrPort{resolver("127.0.0.1:53")}
		var asked atomic.Int32
		f.one = func(ctx context.Context, _ netip.AddrPort, q *query) ([]byte, error) {
			asked.Add(1)
			msg, _ := f.ask(ctx, q, to)
			if msg == nil {
				return nil, ctx.Err()
			}
			return msg, nil
		}
		q, _, _ := parse(ask("x.", dnsmessage.TypeA))
		if msg, _ := f.ask(t.Context(), &q, to); len(msg) > 0 {
			t.Error("an answer out of nothing")
		}
		if n := asked.Load(); n > mostAttempts {
			t.Errorf("asked %d times", n)
		}
	})
}

func TestShun(t *testing.T) {
	now := time.Unix(1000, 0)
	f := newForwarder(Config{Now: func() time.Time { return now }})
	defer f.close()
	a, b := resolver("10.0.0.1:53"), resolver("10.0.0.2:53")
	expect := func(what string, want ...netip.AddrPort) {
		t.Helper()
		if got := f.order([]netip.AddrPort{a, b}); !slices.Equal(got, want) {
			t.Errorf("%s: %v", what, got)
		}
	}
	f.shun(a, true)
	expect("silent", b, a)
	f.shun(a, false)
	expect("back", a, b)
	f.shun(a, true)
	now = now.Add(shunSilent)
	expect("after a while", a, b)
	for i := range 2 * mostShunned {
		f.shun(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}), 53), true)
	}
	f.shun(a, true)
	if expect("after many", b, a); len(f.shunned) > mostShunned {
		t.Errorf("%d are remembered", len(f.shunned))
	}
}

func TestCacheBounds(t *testing.T) {
	c, now := newCache(), time.Unix(1000, 0)
	for i := range 5000 {
		key := strings.Repeat("k", i%200) + string(rune(i))
		c.put(key, make([]byte, i%3000), now, time.Minute)
		total := 0
		for _, el := range c.entries {
			total += el.Value.(*entry).cost()
		}
		if total != c.bytes || c.bytes > mostBytes || len(c.entries) > mostEntries || c.order.Len() != len(c.entries) {
			t.Fatalf("%d entries of %d bytes, counted %d", len(c.entries), total, c.bytes)
		}
		if msg, _ := c.get(key, now); msg == nil {
			t.Fatal("the newest is gone")
		}
	}
	c = newCache()
	c.put("a", []byte{1}, now, time.Minute)
	for i := range mostEntries {
		c.get("a", now)
		c.put(string(rune(i+1000)), []byte{2}, now, time.Minute)
	}
	if msg, _ := c.get("a", now); msg == nil {
		t.Error("what is asked for all the time is gone")
	}
	if msg, _ := c.get("a", now.Add(time.Minute)); msg != nil {
		t.Error("it lives too long")
	}
	if msg, _ := c.get("a", now); msg != nil {
		t.Error("it rose from the dead")
	}
	c.put("b", []byte{1}, now, time.Minute)
	if msg, _ := c.get("b", now.Add(-time.Hour)); msg != nil {
		t.Error("a clock that was set back makes it younger than it is")
	}
	c.put("big", make([]byte, mostBytes/4), now, time.Minute)
	if msg, _ := c.get("big", now); msg != nil {
		t.Error("one message takes it all")
	}
}

func TestNameservers(t *testing.T) {
	got := nameservers("# by hand\nnameserver 127.0.0.53\nsearch lan\n nameserver  fe80::1%eth0 # the router\noptions edns0\nnameserver x\nnameserver\nnameserver 100.100.100.100\nnameserver 127.0.0.53\nnameserver 1.1.1.1\nnameserver 2.2.2.2\n")
	want := []netip.AddrPort{resolver("127.0.0.53:53"), resolver("[fe80::1%eth0]:53"), resolver("1.1.1.1:53")}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestSystem: the system's resolvers are read again when their file changes, and
// never are ourselves.
func TestSystem(t *testing.T) {
	dir := t.TempDir()
	before, now := filepath.Join(dir, "before"), filepath.Join(dir, "resolv.conf")
	f := newForwarder(Config{Now: time.Now, ResolvConf: []string{before, now}})
	defer f.close()
	f.setTo(Settings{Listen: []netip.AddrPort{resolver("127.0.0.1:53")}})
	expect := func(want ...netip.AddrPort) {
		t.Helper()
		if got := f.resolvers(&verdict{system: true}); !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	write := func(file, text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	expect()
	write(now, "nameserver 127.0.0.1\nnameserver 10.0.0.1\n")
	expect(resolver("10.0.0.1:53"))
	write(now, "nameserver 10.0.0.22\n")
	expect(resolver("10.0.0.22:53"))
	write(before, "nameserver 10.0.0.33\n")
	expect(resolver("10.0.0.33:53"))
}

func TestLimiter(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLimiter(func() time.Time { return now })
	count := func(a string, n int) (allowed int) {
		for range n {
			if l.allow(addr(a)) {
				allowed++
			}
		}
		return allowed
	}
	if n := count("192.168.1.5", 1000); n != burst {
		t.Errorf("%d at once", n)
	}
	now = now.Add(500 * time.Millisecond)
	if n := count("192.168.1.5", 1000); n != perSecond/2 {
		t.Errorf("%d after half a second", n)
	}
	now = now.Add(-time.Hour)
	if n := count("192.168.1.5", 10); n != 0 {
		t.Errorf("%d as the clock was set back", n)
	}
	l = newLimiter(func() time.Time { return now }) // what follows must not share with what came before
	if n := count("fd00::1", 200) + count("fd00::2", 1000); n != burst {
		t.Errorf("%d from one v6 subnet", n)
	}
	for i := range mostForwards + 10 {
		if got := l.begin(addr("127.0.0.1")); got != (i < mostForwards) {
			t.Fatalf("place %d: %v", i, got)
		}
	}
	for range mostForwards {
		l.end(addr("127.0.0.1"))
	}
	for i := range mostPerSource + 1 {
		if got := l.begin(addr("10.0.0.1")); got != (i < mostPerSource) {
			t.Fatalf("place %d of one source: %v", i, got)
		}
	}
}
