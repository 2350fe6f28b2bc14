package underlay

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sort"
	"strings"
	"sync"
	"time"

	"subnetd/subnetd/mesh"

	"tailscale.com/net/stun"
)

// Report is what Netcheck found.
type Report struct {
	UDP           bool                  `json:"udp"`             // some STUN server answered
	V6            bool                  `json:"v6"`              // one answered over IPv6
	MappingVaries bool                  `json:"mappingVaries"`   // the NAT is hard
	VariesKnown   bool                  `json:"variesKnown"`     // two servers answered, so that we can tell
	V4Addr        netip.AddrPort        `json:"v4Addr,omitzero"` // our public addresses
	V6Addr        netip.AddrPort        `json:"v6Addr,omitzero"`
	Latency       map[int]time.Duration `json:"latency"`           // by region; over TCP if UDP is false
	Nearest       int                   `json:"nearest,omitempty"` // region; 0: none answered
	Err           string                `json:"err,omitempty"`     // why nothing could be measured
	names         map[int]string
}

// Netcheck looks at the network from a socket of its own: what works, and how
// far the relays are. It takes up to about six seconds.
func Netcheck(ctx context.Context, relays []mesh.RelayRegion, mark int) Report {
	rep := Report{names: map[int]string{}}
	for _, r := range relays {
		rep.names[r.ID] = cmp.Or(r.Name, r.Code)
	}
	log := slog.New(slog.DiscardHandler)
	v4, v6, _, err := listenPair(0, 0, mark, log)
	if err != nil {
		rep.Err = err.Error()
		return rep
	}
	replies := make(chan stunReply, 32)
	var readers sync.WaitGroup
	defer readers.Wait() // after both are closed: the reader of one outlives the other
	for _, s := range []*socket{v4, v6} {
		if s != nil {
			readers.Go(func() { readSTUN(s, replies) })
			defer s.conn.Close()
		}
	}
	p := prober{replies: replies, now: time.Now, lookup: lookupHost, v4: v4 != nil, v6: v6 != nil,
		send: func(to netip.AddrPort, b []byte) error {
			s := v4
			if to.Addr().Is6() {
				s = v6
			}
			_, err := s.conn.WriteToUDPAddrPort(b, to)
			return err
		}}
	m := p.run(ctx, relays)
	if !m.udp {
		m.latency = tcpLatency(ctx, &dialer{mark: mark, now: time.Now, log: log}, relays)
	}
	rep.UDP, rep.V6, rep.MappingVaries, rep.VariesKnown = m.udp, m.v6.IsValid(), m.varies, m.servers > 1
	rep.V4Addr, rep.V6Addr, rep.Latency = m.v4, m.v6, m.latency
	rep.Nearest = chooseHome(0, relays, m.latency)
	return rep
}

// readSTUN hands on answers until the socket is closed.
func readSTUN(s *socket, replies chan<- stunReply) {
	r := newReader(s)
	for {
		b, _, ok := r.take()
		if !ok {
			if r.fill() != nil {
				return
			}
			continue
		}
		if classify(b) != kindSTUN {
			continue
		}
		if id, mapped, err := stun.ParseResponse(b); err == nil {
			select {
			case replies <- stunReply{id: id, mapped: unmap(mapped), at: time.Now()}:
			default:
			}
		}
	}
}

// String is the report in plain words.
func (r Report) String() string {
	if r.Err != "" {
		return "cannot measure: " + r.Err + "\n"
	}
	var b strings.Builder
	line := func(name, value string) { fmt.Fprintf(&b, "%-10s %s\n", name+":", value) }
	if r.UDP {
		line("UDP", "works")
	} else {
		line("UDP", "blocked: peers are reached through relays only")
	}
	line("IPv4", seen(r.V4Addr))
	line("IPv6", seen(r.V6Addr))
	switch {
	case r.MappingVaries:
		line("NAT", "hard: it gives every destination another port, so direct paths need an easy NAT on the other side")
	case r.VariesKnown:
		line("NAT", "easy: every destination sees the same port")
	default:
		line("NAT", "unknown: fewer than two servers answered")
	}
	ids := make([]int, 0, len(r.Latency))
	for id := range r.Latency {
		ids = append(ids, id)
	}
	sort.Slice(ids, func(i, j int) bool {
		return cmp.Or(cmp.Compare(r.Latency[ids[i]], r.Latency[ids[j]]), cmp.Compare(ids[i], ids[j])) < 0
	})
	if len(ids) == 0 {
		line("Relays", "none answered")
	}
	for _, id := range ids {
		line(fmt.Sprintf("Relay %d", id), fmt.Sprintf("%.1f ms %s", float64(r.Latency[id].Microseconds())/1000, r.names[id]))
	}
	return b.String()
}

func seen(a netip.AddrPort) string {
	if !a.IsValid() {
		return "no answer"
	}
	return "works, we are seen as " + a.String()
}
