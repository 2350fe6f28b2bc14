package control

import (
	"net/netip"
	"slices"
	"time"

	"subnetd/subnetd/mesh"
	"tailscale.com/tailcfg"
)

const (
	refreshFirst = time.Second // between two refreshes, the second of them not in vain
	refreshMost  = 5 * time.Minute
)

// refresh decides when the whole map is asked for anew. Headscale tells the
// peers of a router that its routes were approved or withdrawn, but not the
// router: all it hears is a packet filter without a word about itself.
// Refreshes in vain become rare, since a busy mesh sends many filters, and each
// refresh is answered by one more. With other routes they begin anew: an approval
// is then known after as long again as it took, at most.
type refresh struct {
	routes []netip.Prefix // that were offered at the last hint
	pause  time.Duration  // from the last to the next
	last   time.Time      // the last began
	asked  bool           // and its answer is awaited
}

// offered takes what this node offers now.
func (r *refresh) offered(routes []netip.Prefix) {
	if !slices.Equal(r.routes, routes) {
		r.routes, r.pause = slices.Clone(routes), 0
	}
}

// hint reports whether a message may hide that our routes were approved.
func hint(m *tailcfg.MapResponse, routes bool) bool {
	return routes && m.Node == nil && (m.PacketFilter != nil || m.PacketFilters != nil)
}

// wait is how long to wait before the next refresh.
func (r *refresh) wait(now time.Time) time.Duration {
	if r.last.IsZero() {
		return 0
	}
	return min(max(r.last.Add(r.pause).Sub(now), 0), r.pause)
}

func (r *refresh) begin(now time.Time) { r.last, r.asked = now, true }

// answered takes what the coordinator says of this node, after what it said before.
func (r *refresh) answered(before, after *mesh.Netmap) {
	if !r.asked || after == nil {
		return
	}
	r.asked = false
	if before == nil || !slices.Equal(before.Self.AllowedIPs, after.Self.AllowedIPs) {
		r.pause = refreshFirst
	} else {
		r.pause = min(max(2*r.pause, refreshFirst), refreshMost)
	}
}
