package firewall

import (
	"iter"
	"net/netip"
	"slices"
	"sort"

	"subnetd/subnetd/mesh"
)

// edge is where a range begins, or the first address after its end.
type edge struct {
	at    netip.Addr
	begin bool
	index int
}

// sweep cuts ranges of one family at all their ends and yields each piece that
// lies in at least one of them, ascending, with the indices of the ranges it
// lies in, ascending. The slice of indices is valid during the iteration only.
func sweep(ranges []mesh.Range) iter.Seq2[mesh.Range, []int] {
	edges := make([]edge, 0, 2*len(ranges))
	for i, r := range ranges {
		edges = append(edges, edge{r.From, true, i})
		if next := r.To.Next(); next.IsValid() {
			edges = append(edges, edge{next, false, i})
		}
	}
	sort.Slice(edges, func(i, j int) bool { return edges[i].at.Less(edges[j].at) })
	return func(yield func(mesh.Range, []int) bool) {
		var active []int
		for k := 0; k < len(edges); {
			at := edges[k].at
			for ; k < len(edges) && edges[k].at == at; k++ {
				active = toggle(active, edges[k])
			}
			if len(active) == 0 {
				continue
			}
			to := lastAddr(at)
			if k < len(edges) {
				to = edges[k].at.Prev()
			}
			if !yield(mesh.Range{From: at, To: to}, active) {
				return
			}
		}
	}
}

// toggle adds or removes the range of e.
func toggle(active []int, e edge) []int {
	i, found := slices.BinarySearch(active, e.index)
	switch {
	case e.begin && !found:
		return slices.Insert(active, i, e.index)
	case !e.begin && found:
		return slices.Delete(active, i, i+1)
	}
	return active
}

// lastAddr is the highest address of a's family.
func lastAddr(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.AddrFrom4([4]byte{255, 255, 255, 255})
	}
	return netip.AddrFrom16([16]byte(slices.Repeat([]byte{255}, 16)))
}

// prefixOf is the prefix that a range is, if it is one.
func prefixOf(r mesh.Range) (netip.Prefix, bool) {
	for bits := range r.From.BitLen() + 1 {
		if p := netip.PrefixFrom(r.From, bits); p.Masked() == p && lastOf(p) == r.To {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// mergeRanges returns the same addresses as ascending ranges with gaps between
// them. All ranges are of one family.
func mergeRanges(in []mesh.Range) []mesh.Range {
	in = slices.Clone(in)
	sort.Slice(in, func(i, j int) bool { return in[i].From.Less(in[j].From) })
	var out []mesh.Range
	for _, r := range in {
		if n := len(out); n > 0 {
			last := &out[n-1]
			next := last.To.Next()
			if !next.IsValid() {
				break
			}
			if r.From.Compare(next) <= 0 {
				if r.To.Compare(last.To) > 0 {
					last.To = r.To
				}
				continue
			}
		}
		out = append(out, r)
	}
	return out
}

// subtractRanges returns the addresses of from that are not in minus.
func subtractRanges(from, minus []mesh.Range) []mesh.Range {
	from = mergeRanges(from)
	both := append(slices.Clone(from), minus...)
	var out []mesh.Range
	for atom, active := range sweep(both) {
		// The indices of from are below those of minus.
		if active[0] < len(from) && active[len(active)-1] < len(from) {
			out = append(out, atom)
		}
	}
	return mergeRanges(out)
}

// rangesOf gives the ranges of the valid prefixes of one family.
func rangesOf(prefixes []netip.Prefix, v6 bool) []mesh.Range {
	var out []mesh.Range
	for _, p := range prefixes {
		if !p.IsValid() || p.Addr().Is6() != v6 || p.Addr().Is4In6() {
			continue
		}
		out = append(out, mesh.Range{From: p.Masked().Addr(), To: lastOf(p)})
	}
	return mergeRanges(out)
}

// lastOf is the highest address of p.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range b {
		if host := min(max(8*(i+1)-p.Bits(), 0), 8); host > 0 {
			b[i] |= byte(1<<host - 1)
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
