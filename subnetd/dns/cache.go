package dns

import (
	"container/list"
	"encoding/binary"
	"time"
)

const (
	mostEntries  = 1024
	mostBytes    = 256 << 10
	entryCost    = 200 // bytes, about, besides message and key
	mostNegative = 600 // seconds that nothing counts as nothing: RFC 2308, 5 allows hours
)

// cache keeps resolvers' messages for as long as they say, those longest not
// asked for go first. It is not safe for concurrent use.
type cache struct {
	entries map[string]*list.Element
	order   *list.List // of *entry, the last used first
	bytes   int
}

type entry struct {
	key       string
	msg       []byte // without EDNS, never changed
	at, until time.Time
}

func (e *entry) cost() int { return len(e.key) + len(e.msg) + entryCost }

func newCache() *cache { return &cache{entries: map[string]*list.Element{}, order: list.New()} }

// get gives a message and its age, or nil.
func (c *cache) get(key string, now time.Time) ([]byte, time.Duration) {
	el := c.entries[key]
	if el == nil {
		return nil, 0
	}
	e := el.Value.(*entry)
	if !now.Before(e.until) || now.Before(e.at) {
		c.remove(el)
		return nil, 0
	}
	c.order.MoveToFront(el)
	return e.msg, now.Sub(e.at)
}

// put keeps a message for that time.
func (c *cache) put(key string, msg []byte, now time.Time, keep time.Duration) {
	if el := c.entries[key]; el != nil {
		c.remove(el)
	}
	e := &entry{key: key, msg: msg, at: now, until: now.Add(keep)}
	if keep <= 0 || e.cost() > mostBytes/4 {
		return
	}
	c.entries[key] = c.order.PushFront(e)
	c.bytes += e.cost()
	for len(c.entries) > mostEntries || c.bytes > mostBytes {
		c.remove(c.order.Back())
	}
}

func (c *cache) remove(el *list.Element) {
	e := c.order.Remove(el).(*entry)
	delete(c.entries, e.key)
	c.bytes -= e.cost()
}

// keepFor is how long a message that was walked may be kept: the shortest of its
// records' times and, where there is nothing, no longer than the zone says of that
// (RFC 2308, 5). Failures are not kept, nor what is cut.
func keepFor(msg []byte, question int) time.Duration {
	rcode := msg[3] & 0xf
	if rcode != 0 && rcode != 3 || msg[2]&bitTruncated != 0 {
		return 0
	}
	least, negative := uint32(mostLifetime), binary.BigEndian.Uint16(msg[6:]) == 0 || rcode == 3
	spoken := !negative // somebody says how long
	_, err := walk(msg, question, func(r record) {
		if r.section == 2 {
			return
		}
		least = min(least, lifetime(msg, r))
		if r.section == 1 && r.kind == typeSOA && r.next-r.data >= 20 {
			spoken = true
			least = min(least, binary.BigEndian.Uint32(msg[r.next-4:])) // MINIMUM, its last field
			if negative {
				least = min(least, mostNegative)
			}
		}
	})
	if err != nil || !spoken {
		return 0
	}
	return time.Duration(least) * time.Second
}
