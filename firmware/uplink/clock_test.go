package uplink

import (
	"encoding/binary"
	"testing"
	"time"
)

var builtAt = time.Unix(1700000000, 0)

// ntpSays is a server's answer at a time.
func ntpSays(nonce uint64, at time.Time, change func([]byte)) []byte {
	b := make([]byte, ntpSize)
	b[0], b[1] = 4<<3|4, 2
	binary.BigEndian.PutUint64(b[24:], nonce)
	for _, o := range []int{32, 40} {
		binary.BigEndian.PutUint32(b[o:], uint32(at.Unix()+ntpEpoch))
		binary.BigEndian.PutUint32(b[o+4:], uint32(int64(at.Nanosecond())<<32/int64(time.Second)))
	}
	if change != nil {
		change(b)
	}
	return b
}

func TestNTPAnswer(t *testing.T) {
	for _, at := range []time.Time{builtAt, time.Unix(1800000000, 5e8), time.Unix(1<<32-ntpEpoch-1, 0)} {
		a, err := ntpAnswer(ntpSays(7, at, nil), 7, time.Unix(5, 0), 200*time.Millisecond, builtAt)
		want := at.Sub(time.Unix(5, 1e8))
		if err != nil || (a.offset-want).Abs() > time.Microsecond || a.delay != 200*time.Millisecond {
			t.Errorf("%v: offset %v, want %v, %v", at, a.offset, want, err)
		}
	}
	// After 2036 seconds begin anew: RFC 4330, 3.
	late := time.Date(2040, 6, 1, 0, 0, 0, 0, time.UTC)
	if a, err := ntpAnswer(ntpSays(7, late, nil), 7, late, 0, builtAt); err != nil || a.offset.Abs() > time.Microsecond {
		t.Errorf("2040: %v, %v", a.offset, err)
	}
	for name, change := range map[string]func([]byte){
		"another question": func(b []byte) { b[31] ^= 1 },
		"a client":         func(b []byte) { b[0] = 4<<3 | 3 },
		"not synchronized": func(b []byte) { b[0] |= 3 << 6 },
		"a kiss of death":  func(b []byte) { b[1] = 0 },
		"stratum 16":       func(b []byte) { b[1] = 16 },
		"twenty years ago": func(b []byte) {
			for _, o := range []int{32, 40} {
				binary.BigEndian.PutUint32(b[o:], binary.BigEndian.Uint32(b[o:])-20*365*86400)
			}
		},
		"no time":             func(b []byte) { clear(b[40:48]) },
		"sent before it came": func(b []byte) { b[43]-- },
		"an hour inside":      func(b []byte) { binary.BigEndian.PutUint32(b[40:], binary.BigEndian.Uint32(b[40:])+3600) },
	} {
		if a, err := ntpAnswer(ntpSays(7, builtAt.Add(time.Hour), change), 7, builtAt, time.Second, builtAt); err == nil {
			t.Errorf("%s is believed: %v", name, a)
		}
	}
	if _, err := ntpAnswer(make([]byte, 47), 0, builtAt, 0, builtAt); err == nil {
		t.Error("a short answer is believed")
	}
	if _, err := ntpAnswer(ntpSays(7, builtAt.Add(time.Hour), nil), 7, builtAt, time.Minute, builtAt); err == nil {
		t.Error("an answer of a minute is believed")
	}
}

func TestJudge(t *testing.T) {
	a := func(offset, delay time.Duration) answerOfClock { return answerOfClock{offset, delay} }
	const s = time.Second
	for name, c := range map[string]struct {
		answers []answerOfClock
		want    time.Duration
		ok      bool
	}{
		"nobody":             {nil, 0, false},
		"one":                {[]answerOfClock{a(5*s, 0)}, 0, false},
		"two that agree":     {[]answerOfClock{a(100*s, 0), a(100*s+s/10, 0)}, 100*s + s/20, true},
		"two that do not":    {[]answerOfClock{a(100*s, 0), a(110*s, 0)}, 0, false},
		"far away":           {[]answerOfClock{a(100*s, 2*s), a(101*s, 2*s)}, 100*s + s/2, true},
		"one who lies":       {[]answerOfClock{a(-9999*s, 0), a(2*s, 0), a(2*s+s/50, 0)}, 2*s + s/100, true},
		"three who disagree": {[]answerOfClock{a(-9999*s, 0), a(2*s, 0), a(9999*s, 0)}, 0, false},
		"the closest two":    {[]answerOfClock{a(0, 0), a(s/3, 0), a(s/3+s/100, 0)}, s/3 + s/200, true},
	} {
		if got, ok := judge(c.answers); got != c.want || ok != c.ok {
			t.Errorf("%s: %v, %v", name, got, ok)
		}
	}
}
