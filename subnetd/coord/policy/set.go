package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"
)

// span is the addresses from ... to of one family, both included.
type span struct{ from, to netip.Addr }

// set is spans in ascending order, IPv4 first, that neither overlap nor touch:
// equal sets are equal slices.
type set []span

// The addresses of all nodes and devices; and what no home calls its own. As
// with Tailscale the internet begins at 0.0.0.0 and 2000::, by which an exit
// node asks its filter whether a peer may use its DNS.
const (
	meshText   = "100.64.0.0/10 fd7a:115c:a1e0::/48"
	publicText = "0.0.0.0-9.255.255.255 11.0.0.0-100.63.255.255 100.128.0.0-126.255.255.255 " +
		"128.0.0.0-169.253.255.255 169.255.0.0-172.15.255.255 172.32.0.0-192.167.255.255 " +
		"192.169.0.0-223.255.255.255 2000::/3"
)

// constant reads spans that are part of the program.
func constant(text string) set {
	var out []span
	for _, s := range strings.Fields(text) {
		sp, err := parseSpan(s)
		if err != nil {
			panic(s + ": " + err.Error())
		}
		out = append(out, sp)
	}
	return union(out)
}

// parseSpan reads an address, a prefix or a range a-b. IPv4 is never written as
// IPv6, and zones have no meaning in a mesh.
func parseSpan(s string) (span, error) {
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil || p.Addr().Is4In6():
			return span{}, errors.New("this is not an address with a prefix length")
		case p.Bits() == 0:
			return span{}, errors.New(`for everything write "*", for the internet "autogroup:internet"`)
		case p != p.Masked():
			return span{}, fmt.Errorf("there are bits set behind the prefix length; write %v", p.Masked())
		}
		return spanOf(p), nil
	}
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	from, err := netip.ParseAddr(first)
	to, err2 := netip.ParseAddr(last)
	switch {
	case err != nil || err2 != nil || from.Zone()+to.Zone() != "" || from.Is4In6() || to.Is4In6():
		return span{}, errors.New("this is not an address")
	case from.BitLen() != to.BitLen() || to.Less(from):
		return span{}, errors.New("a range goes from the lower to the higher address of one family")
	}
	return span{from, to}, nil
}

// spanOf returns the first and the last address of p.
func spanOf(p netip.Prefix) span {
	p = p.Masked()
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	to, _ := netip.AddrFromSlice(b)
	return span{p.Addr(), to}
}

// one is the span of a single address.
func one(a netip.Addr) span { return span{a, a} }

// union makes a set of spans, whose slice it takes over.
func union(spans []span) set {
	sort.Slice(spans, func(i, j int) bool { return spans[i].from.Less(spans[j].from) })
	out := spans[:0]
	for _, s := range spans {
		if n := len(out) - 1; n >= 0 && out[n].touches(s) {
			if out[n].to.Less(s.to) {
				out[n].to = s.to
			}
			continue
		}
		out = append(out, s)
	}
	return slices.Clip(out)
}

// touches reports whether t, which does not begin before s, overlaps or follows s at once.
func (s span) touches(t span) bool {
	next := s.to.Next() // invalid behind the last address of the family
	return s.to.BitLen() == t.from.BitLen() && (!next.IsValid() || !next.Less(t.from))
}

// intersect returns what a and b have in common.
func intersect(a, b set) set {
	var out set
	for i, j := 0, 0; i < len(a) && j < len(b); {
		from, to := a[i].from, a[i].to
		if from.Less(b[j].from) {
			from = b[j].from
		}
		if b[j].to.Less(to) {
			to = b[j].to
		}
		if !to.Less(from) { // IPv4 is less than IPv6, so families never mix
			out = append(out, span{from, to})
		}
		if a[i].to.Less(b[j].to) {
			i++
		} else {
			j++
		}
	}
	return out
}

// find returns the span that holds a.
func (s set) find(a netip.Addr) (span, bool) {
	i, ok := slices.BinarySearchFunc(s, a, func(s span, a netip.Addr) int { return s.from.Compare(a) })
	if !ok {
		i--
	}
	if i < 0 || s[i].to.Less(a) || s[i].to.BitLen() != a.BitLen() {
		return span{}, false
	}
	return s[i], true
}

func (s set) contains(a netip.Addr) bool {
	_, ok := s.find(a)
	return ok
}

// covers reports whether all of t is in s.
func (s set) covers(t set) bool {
	return !slices.ContainsFunc(t, func(t span) bool {
		in, ok := s.find(t.from)
		return !ok || in.to.Less(t.to)
	})
}

// key is a digest: equal keys are equal sets.
func (s set) key() string {
	h := sha256.New()
	var buf [32]byte
	for _, s := range s {
		h.Write(s.append(buf[:0]))
	}
	return string(h.Sum(nil))
}

// append adds 32 bytes that say which span this is.
func (s span) append(b []byte) []byte {
	from, to := s.from.As16(), s.to.As16() // no address here is IPv4 within IPv6
	return append(append(b, from[:]...), to[:]...)
}

// appendInt adds n, for digests.
func appendInt(b []byte, n int) []byte { return binary.BigEndian.AppendUint32(b, uint32(n)) }

// strings returns the shortest list in the forms of a filter rule: address, prefix, range.
func (s set) strings() []string {
	out := make([]string, 0, len(s))
	for _, s := range s {
		out = append(out, s.String())
	}
	return out
}

func (s span) String() string {
	if s.from == s.to {
		return s.from.String()
	}
	if p := s.widest(); spanOf(p) == s {
		return p.String()
	}
	return s.from.String() + "-" + s.to.String()
}

// widest is the largest prefix that begins where s begins and does not leave it.
func (s span) widest() netip.Prefix {
	best := netip.PrefixFrom(s.from, s.from.BitLen())
	for bits := s.from.BitLen() - 1; bits >= 0; bits-- {
		p := netip.PrefixFrom(s.from, bits)
		if p.Masked() != p || s.to.Less(spanOf(p).to) {
			break
		}
		best = p
	}
	return best
}

// prefixes returns the shortest list of prefixes that is the set.
func (s set) prefixes() []netip.Prefix {
	var out []netip.Prefix
	for _, s := range s {
		for {
			p := s.widest()
			out = append(out, p)
			last := spanOf(p).to
			if last == s.to {
				break
			}
			s.from = last.Next()
		}
	}
	return out
}
