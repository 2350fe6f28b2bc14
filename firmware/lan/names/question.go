package names

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
)

// The header of a message, RFC 1035, 4.1.1; names there are case-blind.
const (
	headerSize    = 12
	smallest      = 512 // an answer over UDP that everybody can take (RFC 1035, 2.3.4)
	largest       = 1232
	flagResponse  = 0x80
	opcodeMask    = 0x78
	flagTruncated = 0x02
	flagRA        = 0x80
	flagCD        = 0x10

	rcodeFormErr, rcodeServFail, rcodeNXDomain, rcodeNotImp = 1, 2, 3, 4

	typeSOA, typeOPT, typeAXFR, typeIXFR = 6, 41, 252, 251
)

var (
	errNone   = errors.New("no question")
	errForm   = errors.New("malformed")
	errNotImp = errors.New("another kind of question")
)

// question is a message with one question.
type question struct {
	message []byte
	name    string // in lower case, without the last dot
	kind    uint16
	end     int    // of the question in the message
	key     string // what answers depend on
	size    int    // bytes of an answer over UDP that the asker can take
}

// parse takes a message that came from anybody.
func parse(m []byte) (question, error) {
	q := question{message: m, size: smallest}
	if len(m) < headerSize || m[2]&flagResponse != 0 {
		return q, errNone
	}
	if m[2]&opcodeMask != 0 {
		return q, errNotImp
	}
	if binary.BigEndian.Uint16(m[4:]) != 1 || binary.BigEndian.Uint16(m[6:]) != 0 || binary.BigEndian.Uint16(m[8:]) != 0 {
		return q, errForm
	}
	name, at, ok := readName(m, headerSize)
	if !ok || at+4 > len(m) {
		return q, errForm
	}
	q.name, q.kind, q.end = name, binary.BigEndian.Uint16(m[at:]), at+4
	if q.kind == typeAXFR || q.kind == typeIXFR {
		return q, errNotImp
	}
	extra := ""
	more := int(binary.BigEndian.Uint16(m[10:]))
	if more > 2 {
		return q, errForm
	}
	for at = q.end; more > 0; more-- {
		r, ok := readRecord(m, at)
		if !ok {
			return q, errForm
		}
		if at = r.end; r.kind == typeOPT {
			q.size = min(largest, max(smallest, int(r.class)))
			extra = "e" + string(m[r.ttlAt+2]&0x80) // DO: RFC 3225
			if r.end > r.ttlAt+6 {
				extra += string(m[r.ttlAt+6 : r.end]) // options, such as a cookie, are one asker's own
			}
		}
	}
	q.key = name + "\x00" + string(m[q.end-4:q.end]) + string(m[3]&flagCD) + string(m[2]&1) + extra
	return q, nil
}

// answeredBy reports whether a message is the answer to what we asked, as far as one can
// know (RFC 5452, 9.1).
func (q question) answeredBy(a, mine []byte) bool {
	if len(a) < q.end || a[2]&flagResponse == 0 || !bytes.Equal(a[:2], mine[:2]) || a[2]&opcodeMask != 0 {
		return false
	}
	name, at, ok := readName(a, headerSize)
	return ok && at+4 == q.end && name == q.name && bytes.Equal(a[at:q.end], q.message[at:q.end]) && binary.BigEndian.Uint16(a[4:]) == 1
}

// refusal answers what is no question of ours; nil: silence.
func refusal(m []byte, err error) []byte {
	switch {
	case errors.Is(err, errForm):
		return failure(m, rcodeFormErr)
	case errors.Is(err, errNotImp):
		return failure(m, rcodeNotImp)
	}
	return nil
}

// failure is an answer that says only that there is none. It repeats the question, if
// there is one to repeat.
func failure(m []byte, rcode byte) []byte {
	a := make([]byte, headerSize, smallest)
	copy(a, m[:4])
	a[2] = a[2]&^flagTruncated | flagResponse
	a[3] = flagRA | rcode
	if _, at, ok := readName(m, headerSize); ok && at+4 <= len(m) {
		a[5] = 1
		a = append(a, m[headerSize:at+4]...)
	}
	return a
}

// truncated is the answer that has the asker come again over TCP.
func truncated(a []byte) []byte {
	short := failure(a, a[3]&0xf)
	short[2] |= flagTruncated
	return short
}

// readName reads a name, which ends before at. A name in a question points nowhere.
func readName(m []byte, at int) (name string, end int, ok bool) {
	var labels []string
	for size := 0; at < len(m); {
		n := int(m[at])
		at++
		if n == 0 {
			return strings.ToLower(strings.Join(labels, ".")), at, true
		}
		if size += n + 1; n > 63 || size > 255 || at+n > len(m) {
			return "", 0, false
		}
		labels = append(labels, string(m[at:at+n]))
		at += n
	}
	return "", 0, false
}

// record is one of an answer: where things are.
type record struct {
	kind, class uint16
	ttlAt, end  int
}

// readRecord reads the record at a place. Its name may point elsewhere.
func readRecord(m []byte, at int) (record, bool) {
	for at < len(m) && m[at] != 0 {
		if m[at]&0xc0 == 0xc0 {
			at++ // a pointer is two bytes and the end of the name
			break
		}
		if m[at]&0xc0 != 0 {
			return record{}, false
		}
		at += int(m[at]) + 1
	}
	at++
	if at+10 > len(m) {
		return record{}, false
	}
	r := record{kind: binary.BigEndian.Uint16(m[at:]), class: binary.BigEndian.Uint16(m[at+2:]), ttlAt: at + 4}
	r.end = at + 10 + int(binary.BigEndian.Uint16(m[at+8:]))
	return r, r.end <= len(m)
}
