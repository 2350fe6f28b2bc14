package names

import (
	"encoding/binary"
	"slices"
	"sync"
	"time"
)

const (
	mostAnswers  = 2000
	mostAnswer   = 4096      // bytes of one that is remembered
	mostBytes    = 1 << 20   // of all
	longestLife  = time.Hour // whatever they say
	mostNegative = 5 * time.Minute
)

// cache remembers answers. When it is full, what came first goes.
type cache struct {
	mu      sync.Mutex
	answers map[string]remembered
	order   []string // keys, the oldest first; some may be gone
	bytes   int
}

type remembered struct {
	answer []byte
	ttls   []int // where they are
	at     time.Time
	until  time.Time
}

func newCache() *cache { return &cache{answers: map[string]remembered{}} }

func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.answers)
	c.order, c.bytes = nil, 0
}

// get gives what was answered to the same question, older by the time that has passed.
func (c *cache) get(q question, now time.Time) []byte {
	c.mu.Lock()
	r, ok := c.answers[q.key]
	c.mu.Unlock()
	if !ok || !now.Before(r.until) || now.Before(r.at) || len(r.answer) < q.end {
		return nil
	}
	a := own(r.answer, q)
	passed := uint32(now.Sub(r.at) / time.Second)
	for _, at := range r.ttls {
		ttl := binary.BigEndian.Uint32(a[at:])
		binary.BigEndian.PutUint32(a[at:], ttl-min(ttl, passed))
	}
	return a
}

func (c *cache) put(q question, a []byte, now time.Time) {
	ttls, life := lifetimes(a, q.end)
	if life <= 0 || len(a) > mostAnswer {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remove(q.key)
	c.answers[q.key] = remembered{slices.Clone(a), ttls, now, now.Add(life)}
	c.order = append(c.order, q.key)
	c.bytes += len(a)
	for len(c.order) > mostAnswers || c.bytes > mostBytes {
		c.remove(c.order[0])
	}
}

// remove forgets an answer; it may not be there.
func (c *cache) remove(key string) {
	r, ok := c.answers[key]
	if !ok {
		return
	}
	c.bytes -= len(r.answer)
	delete(c.answers, key)
	i := slices.Index(c.order, key)
	c.order = slices.Delete(c.order, i, i+1)
}

// lifetimes says how long an answer may be remembered, and where in it that is written.
// Zero: not at all. That a name is not there holds as long as the zone says (RFC 2308, 5).
func lifetimes(a []byte, end int) (ttls []int, life time.Duration) {
	rcode := a[3] & 0xf
	if a[2]&flagTruncated != 0 || rcode != 0 && rcode != rcodeNXDomain {
		return nil, 0
	}
	answers := int(binary.BigEndian.Uint16(a[6:]))
	authority := int(binary.BigEndian.Uint16(a[8:]))
	count := answers + authority + int(binary.BigEndian.Uint16(a[10:]))
	life = longestLife
	soa := false
	for i, at := 0, end; i < count; i++ {
		r, ok := readRecord(a, at)
		if !ok {
			return nil, 0
		}
		at = r.end
		if r.kind == typeOPT {
			continue
		}
		ttls = append(ttls, r.ttlAt)
		life = min(life, time.Duration(binary.BigEndian.Uint32(a[r.ttlAt:]))*time.Second)
		if r.kind == typeSOA && i >= answers && i < answers+authority && r.end-r.ttlAt >= 4+2+22 {
			soa = true
			life = min(life, mostNegative, time.Duration(binary.BigEndian.Uint32(a[r.end-4:]))*time.Second)
		}
	}
	if (answers == 0 || rcode == rcodeNXDomain) && !soa {
		return nil, 0
	}
	return ttls, life
}
