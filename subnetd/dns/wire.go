package dns

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"time"
)

// Messages of others are passed on as they came. This file finds its way in them
// without reading names: what a record holds is between the resolver and who asks.

const headerLen = 12 // bytes: RFC 1035, 4.1.1

// Bits of the third and fourth byte.
const (
	bitResponse  = 0x80
	bitTruncated = 0x02
	bitDesired   = 0x01 // recursion
	bitAvailable = 0x80 // recursion
	bitUnchecked = 0x10
)

const (
	typeOPT = 41
	typeSOA = 6
)

// mostLifetime bounds times to live, in seconds.
const mostLifetime = 24 * 60 * 60

var errMessage = errors.New("not a DNS message")

// record is where a record of a message is.
type record struct {
	section    int // 0 answer, 1 authority, 2 additional
	kind       uint16
	from       int // its first byte
	ttl        int // its time to live
	data, next int
}

// walk visits the records of a message with one question of that length, and
// says where they end.
func walk(msg []byte, question int, visit func(r record)) (end int, err error) {
	off := headerLen + question
	if len(msg) < off {
		return 0, errMessage
	}
	for section := range 3 {
		for range binary.BigEndian.Uint16(msg[6+2*section:]) {
			r := record{section: section, from: off}
			if r.ttl = skipName(msg, off) + 4; r.ttl < off || r.ttl+6 > len(msg) {
				return 0, errMessage
			}
			r.kind, r.data = binary.BigEndian.Uint16(msg[r.ttl-4:]), r.ttl+6
			r.next = r.data + int(binary.BigEndian.Uint16(msg[r.ttl+4:]))
			if r.next > len(msg) {
				return 0, errMessage
			}
			visit(r)
			off = r.next
		}
	}
	return off, nil
}

// skipName gives the offset behind a name, or one that is out of all messages.
func skipName(msg []byte, off int) int {
	const nowhere = -1 << 16
	for off < len(msg) {
		switch l := int(msg[off]); {
		case l == 0:
			return off + 1
		case l >= 0xc0:
			return off + 2
		case l >= 0x40:
			return nowhere
		default:
			off += 1 + l
		}
	}
	return nowhere
}

// stripped is a resolver's message without what EDNS said between it and us, and
// the upper bits of its rcode. Where more comes behind that, it goes, too: names
// in there may refer to what moves.
func stripped(msg []byte, question int) (out []byte, upper byte, err error) {
	opt, count := record{}, uint16(0)
	var kept uint16
	end, err := walk(msg, question, func(r record) {
		if r.section != 2 {
			return
		}
		if count++; r.kind == typeOPT && opt.next == 0 {
			opt, kept = r, count-1
		}
	})
	if err != nil || opt.next == 0 {
		return msg[:end:end], 0, err
	}
	upper = msg[opt.ttl]
	binary.BigEndian.PutUint16(msg[10:], kept)
	return msg[:opt.from:opt.from], upper, nil
}

// sameQuestion reports whether the message begins with the question, but for the
// case of its letters.
func sameQuestion(msg, question []byte) bool {
	if len(msg) < headerLen+len(question) || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return false
	}
	got, name := msg[headerLen:headerLen+len(question)], len(question)-4
	for i, c := range question[:name] {
		if lower(c) != lower(got[i]) { // no length of a label is a letter
			return false
		}
	}
	return string(got[name:]) == string(question[name:])
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// wire is the question as it stands in a message.
func (q *query) wire() []byte {
	n := &q.question.Name
	out := make([]byte, 0, int(n.Length)+5)
	for label := range bytes.SplitSeq(n.Data[:n.Length], []byte{'.'}) {
		if len(label) > 0 {
			out = append(append(out, byte(len(label))), label...)
		}
	}
	out = append(out, 0)
	out = binary.BigEndian.AppendUint16(out, uint16(q.question.Type))
	return binary.BigEndian.AppendUint16(out, uint16(q.question.Class))
}

// pass makes an answer of no more than size bytes, in buf if it fits, from a
// resolver's without EDNS that has that age. What a resolver says of its own
// authority, or of what it verified, counts for those only who know the way to it.
func (q *query) pass(buf, msg []byte, age time.Duration, size int) []byte {
	wire := q.wire()
	out := append(buf[:0], msg...)
	binary.BigEndian.PutUint16(out, q.header.ID)
	out[2], out[3] = bitResponse|out[2]&bitTruncated, bitAvailable|out[3]&0xf
	if q.header.RecursionDesired {
		out[2] |= bitDesired
	}
	if q.header.CheckingDisabled {
		out[3] |= bitUnchecked
	}
	copy(out[headerLen:], wire) // with the letters as they were asked
	if len(out) > size || q.edns && len(out)+optLen > size {
		out = out[:headerLen+len(wire)]
		out[2] |= bitTruncated
		clear(out[6:headerLen])
	} else {
		grow(out, len(wire), age)
	}
	if q.edns {
		binary.BigEndian.PutUint16(out[10:], binary.BigEndian.Uint16(out[10:])+1)
		out = appendOPT(out, q.dnssec)
	}
	return out
}

// grow takes the age off the times to live.
func grow(msg []byte, question int, age time.Duration) {
	secs := uint32(min(max(age/time.Second, 0), math.MaxUint32))
	_, _ = walk(msg, question, func(r record) { // it was walked when it came
		left := lifetime(msg, r)
		binary.BigEndian.PutUint32(msg[r.ttl:], left-min(left, secs))
	})
}

// lifetime is a record's time to live, in seconds: RFC 2181, 8.
func lifetime(msg []byte, r record) uint32 {
	t := binary.BigEndian.Uint32(msg[r.ttl:])
	if t > math.MaxInt32 {
		return 0
	}
	return min(t, mostLifetime)
}

const optLen = 11 // bytes of an OPT record without options

func appendOPT(msg []byte, dnssec bool) []byte {
	opt := [optLen]byte{2: typeOPT, 3: maxDatagram >> 8, 4: maxDatagram & 0xff}
	if dnssec {
		opt[7] = 0x80
	}
	return append(msg, opt[:]...)
}
