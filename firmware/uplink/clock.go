package uplink

import (
	"cmp"
	"encoding/binary"
	"errors"
	"slices"
	"time"
)

// SNTP, RFC 4330 and 5905: the simple use of NTP by one that serves nobody.
const (
	ntpSize   = 48
	ntpClient = 4<<3 | 3 // version 4, client
	ntpEpoch  = 2208988800

	agreeWithin = 500 * time.Millisecond // two servers, beyond what the ways to them explain
	mostDelay   = 5 * time.Second
	stepFrom    = 500 * time.Millisecond // less than that is slewed
	lifeYears   = 40                     // of a router
)

// written is the year of this file: what is built is not older.
func written() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }

// answerOfClock is what one server says: how far our clock is behind, and how long that
// took to ask.
type answerOfClock struct{ offset, delay time.Duration }

// ntpRequest is the question; nonce comes back, so that nobody else can answer.
func ntpRequest(nonce uint64) []byte {
	b := make([]byte, ntpSize)
	b[0] = ntpClient
	binary.BigEndian.PutUint64(b[40:], nonce)
	return b
}

// ntpAnswer reads an answer to what was sent at a time by our clock, and took delay. Which
// times make sense is for RFC 4330, 5.
func ntpAnswer(b []byte, nonce uint64, sent time.Time, took time.Duration, built time.Time) (answerOfClock, error) {
	if len(b) < ntpSize || b[0]&7 != 4 || binary.BigEndian.Uint64(b[24:]) != nonce {
		return answerOfClock{}, errors.New("no answer to our question")
	}
	if b[0]>>6 == 3 || b[1] == 0 || b[1] > 15 {
		return answerOfClock{}, errors.New("a server that does not know the time itself")
	}
	received, transmitted := ntpTime(b[32:], built), ntpTime(b[40:], built)
	inside := transmitted.Sub(received)
	if binary.BigEndian.Uint64(b[40:]) == 0 || transmitted.Before(built) || transmitted.After(built.AddDate(lifeYears, 0, 0)) || inside < 0 || inside > took+time.Second || took > mostDelay {
		return answerOfClock{}, errors.New("a time that cannot be")
	}
	middle := sent.Add(took / 2)
	return answerOfClock{offset: received.Add(inside / 2).Sub(middle), delay: took}, nil
}

// ntpTime reads a timestamp. There are only 136 years: it is in those since built, so that a
// server that is years behind seems to be far ahead.
func ntpTime(b []byte, built time.Time) time.Time {
	seconds, fraction := int64(binary.BigEndian.Uint32(b)), int64(binary.BigEndian.Uint32(b[4:]))
	unix := seconds - ntpEpoch
	const era = 1 << 32
	for unix < built.Unix() {
		unix += era
	}
	return time.Unix(unix, fraction*int64(time.Second)>>32)
}

// judge says how far the clock is off, if two servers agree; false: nobody knows. One that
// lies, or three that differ, set no clock.
func judge(answers []answerOfClock) (time.Duration, bool) {
	all := slices.SortedFunc(slices.Values(answers), func(a, b answerOfClock) int { return cmp.Compare(a.offset, b.offset) })
	best, found := time.Duration(0), false
	closest := time.Duration(0)
	for i := 1; i < len(all); i++ {
		a, b := all[i-1], all[i]
		apart := b.offset - a.offset
		if apart <= agreeWithin+a.delay/2+b.delay/2 && (!found || apart < closest) {
			best, closest, found = a.offset+apart/2, apart, true
		}
	}
	return best, found
}
