package dns

import (
	"encoding/binary"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	ttl         = 60 // seconds: a device that leaves home is soon asked for again
	ttlNegative = 10 // seconds: a name that is mistyped before the node joins

	rcodeBadVersion dnsmessage.RCode = 16 // RFC 6891, 9
)

// query is one question that was parsed.
type query struct {
	header   dnsmessage.Header
	question dnsmessage.Question
	known    bool   // there is a question to repeat
	name     string // folded
	edns     bool
	payload  int  // bytes that the asker takes in a datagram
	dnssec   bool // he wants signatures
}

// parse reads a question. Without ok there is no answer, since that might be an
// answer, too; else another rcode than success says why it is refused.
func parse(msg []byte) (q query, rcode dnsmessage.RCode, ok bool) {
	var p dnsmessage.Parser
	var err error
	if q.header, err = p.Start(msg); err != nil || q.header.Response {
		return q, 0, false
	}
	if q.header.OpCode != 0 {
		return q, dnsmessage.RCodeNotImplemented, true
	}
	if binary.BigEndian.Uint16(msg[4:]) != 1 { // RFC 9619
		return q, dnsmessage.RCodeFormatError, true
	}
	if q.question, err = p.Question(); err != nil {
		return q, dnsmessage.RCodeFormatError, true
	}
	q.known, q.name = true, fold(string(q.question.Name.Data[:q.question.Name.Length]))
	if rcode := q.options(&p); rcode != dnsmessage.RCodeSuccess {
		return q, rcode, true
	}
	if q.question.Class != dnsmessage.ClassINET {
		return q, dnsmessage.RCodeRefused, true
	}
	return q, dnsmessage.RCodeSuccess, true
}

// options reads what EDNS says: RFC 6891.
func (q *query) options(p *dnsmessage.Parser) dnsmessage.RCode {
	if p.SkipAllQuestions() != nil || p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return dnsmessage.RCodeFormatError
	}
	var version uint32
	for {
		h, err := p.AdditionalHeader()
		if err == dnsmessage.ErrSectionDone {
			break
		}
		if err != nil || h.Type == dnsmessage.TypeOPT && q.edns || p.SkipAdditional() != nil {
			return dnsmessage.RCodeFormatError
		}
		if h.Type == dnsmessage.TypeOPT {
			q.edns, q.payload, q.dnssec = true, int(h.Class), h.DNSSECAllowed()
			version = h.TTL >> 16 & 0xff
		}
	}
	if version != 0 {
		return rcodeBadVersion
	}
	return dnsmessage.RCodeSuccess
}

// limit is the size that an answer may have where the way carries most bytes.
func (q *query) limit(most int) int {
	switch {
	case most != maxDatagram:
		return most
	case !q.edns:
		return smallDatagram
	}
	return min(max(q.payload, smallDatagram), most)
}

// reply is the header of every answer.
func (q *query) reply(rcode dnsmessage.RCode) dnsmessage.Header {
	return dnsmessage.Header{
		ID: q.header.ID, Response: true, OpCode: q.header.OpCode, RecursionDesired: q.header.RecursionDesired,
		RecursionAvailable: true, CheckingDisabled: q.header.CheckingDisabled, RCode: rcode & 0xf,
	}
}

// refusal is an answer without anything, in buf if it fits.
func (q *query) refusal(buf []byte, rcode dnsmessage.RCode) []byte {
	return q.build(buf, q.reply(rcode), rcode, nil)
}

// answer is the zone's, of no more than limit bytes.
func (q *query) answer(buf []byte, v *verdict, limit int) []byte {
	if v.kind == refuse {
		return q.refusal(buf, dnsmessage.RCodeRefused)
	}
	h := q.reply(dnsmessage.RCodeSuccess)
	h.Authoritative = true
	if v.kind == nxdomain {
		h.RCode = dnsmessage.RCodeNameError
	}
	out := q.build(buf, h, h.RCode, v)
	if len(out) > limit {
		h.Truncated = true
		return q.build(buf, h, h.RCode, nil)
	}
	return out
}

// build writes a message; with a verdict, its records. What cannot be written
// into it is nobody's fault but ours: it becomes a failure.
func (q *query) build(buf []byte, h dnsmessage.Header, rcode dnsmessage.RCode, v *verdict) []byte {
	b := dnsmessage.NewBuilder(buf[:0], h)
	b.EnableCompression()
	err := q.write(&b, rcode, v)
	out, e := b.Finish()
	if err == nil && e == nil {
		return out
	}
	h.RCode, h.Authoritative = dnsmessage.RCodeServerFailure, false
	b = dnsmessage.NewBuilder(buf[:0], h)
	out, _ = b.Finish()
	return out
}

func (q *query) write(b *dnsmessage.Builder, rcode dnsmessage.RCode, v *verdict) error {
	err := b.StartQuestions()
	if err == nil && q.known {
		err = b.Question(q.question)
	}
	if err == nil && v != nil {
		err = q.records(b, v)
	}
	if err != nil || !q.edns {
		return err
	}
	if err := b.StartAdditionals(); err != nil {
		return err
	}
	return writeOPT(b, rcode, q.dnssec)
}

// writeOPT says what we take ourselves.
func writeOPT(b *dnsmessage.Builder, rcode dnsmessage.RCode, dnssec bool) error {
	var h dnsmessage.ResourceHeader
	if err := h.SetEDNS0(maxDatagram, rcode, dnssec); err != nil {
		return err
	}
	return b.OPTResource(h, dnsmessage.OPTResource{})
}

func (q *query) records(b *dnsmessage.Builder, v *verdict) error {
	h := dnsmessage.ResourceHeader{Name: q.question.Name, Class: dnsmessage.ClassINET, TTL: ttl}
	if v.kind != found {
		return writeSOA(b, b.StartAuthorities, v.zone, ttlNegative)
	}
	switch {
	case q.question.Type == dnsmessage.TypeALL: // RFC 8482, 4.2
		if err := b.StartAnswers(); err != nil {
			return err
		}
		h.Type = dnsmessage.TypeHINFO
		return b.UnknownResource(h, dnsmessage.UnknownResource{Type: dnsmessage.TypeHINFO, Data: []byte("\x07RFC8482\x00")})
	case q.question.Type == dnsmessage.TypeSOA:
		return writeSOA(b, b.StartAnswers, v.zone, ttl)
	}
	if err := b.StartAnswers(); err != nil {
		return err
	}
	if v.ptr != "" {
		name, err := dnsmessage.NewName(v.ptr + ".")
		if err != nil {
			return err
		}
		return b.PTRResource(h, dnsmessage.PTRResource{PTR: name})
	}
	for _, a := range v.addrs {
		var err error
		if a.Is4() {
			err = b.AResource(h, dnsmessage.AResource{A: a.As4()})
		} else {
			err = b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: a.As16()})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writeSOA writes what says how long there is nothing: RFC 2308, 3. The rest of it
// is for transfers, which nobody gets.
func writeSOA(b *dnsmessage.Builder, start func() error, zone string, ttl uint32) error {
	if err := start(); err != nil {
		return err
	}
	name, err := dnsmessage.NewName(zone + ".")
	if err != nil {
		return err
	}
	nobody, err := dnsmessage.NewName("nobody.invalid.") // RFC 2606
	if err != nil {
		return err
	}
	return b.SOAResource(dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: ttl}, dnsmessage.SOAResource{
		NS: name, MBox: nobody, Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, MinTTL: ttlNegative,
	})
}
