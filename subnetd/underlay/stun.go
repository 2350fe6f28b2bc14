package underlay

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"
	"sort"
	"time"

	"subnetd/subnetd/mesh"

	"tailscale.com/net/stun"
)

const (
	stunPort    = 3478
	stunTimeout = 3 * time.Second        // no answer by then: there will be none
	stunEnough  = 700 * time.Millisecond // some answered by then: the rest is too far
	stunTargets = 128                    // requests of one round at most
)

// stunReply is one STUN answer.
type stunReply struct {
	id     stun.TxID
	mapped netip.AddrPort
	at     time.Time
}

// measurement is the result of one round of STUN, or of TCP where STUN fails.
type measurement struct {
	asked   bool                  // some server was there to ask
	udp     bool                  // some answered
	v4      netip.AddrPort        // our address as seen over IPv4; invalid: no answer
	v6      netip.AddrPort        // over IPv6
	varies  bool                  // two servers saw different IPv4 addresses or ports
	servers int                   // servers that answered over IPv4
	latency map[int]time.Duration // by region
	full    bool                  // all regions were asked
}

// measureOrder asks the measuring goroutine for a round.
type measureOrder struct {
	regions []mesh.RelayRegion
	full    bool
}

// target is one server in one family.
type target struct {
	region int
	addr   netip.AddrPort
	id     stun.TxID
	sent   time.Time
	done   bool
}

// prober does one round. Its functions are the socket, the clock and the
// resolver.
type prober struct {
	send    func(netip.AddrPort, []byte) error
	replies <-chan stunReply
	now     func() time.Time
	lookup  func(ctx context.Context, host string) ([]netip.Addr, error)
	v4, v6  bool // families we have
}

// run asks the regions' servers and waits until all have answered, enough
// time has passed since some have, or none has within stunTimeout.
func (p *prober) run(ctx context.Context, regions []mesh.RelayRegion) measurement {
	targets := p.targets(ctx, regions)
	m := measurement{asked: len(targets) > 0, latency: map[int]time.Duration{}}
	for again := range 3 {
		waiting := p.ask(targets)
		if waiting == 0 {
			break
		}
		wait := stunTimeout / 3
		if again == 0 || m.udp {
			wait = stunEnough
		}
		p.collect(ctx, targets, &m, wait)
		if m.udp || ctx.Err() != nil {
			break
		}
	}
	return m
}

// ask sends a request to all that have not answered; what cannot be sent to
// counts as done.
func (p *prober) ask(targets []*target) (waiting int) {
	for _, t := range targets {
		if t.done {
			continue
		}
		t.sent = p.now()
		if p.send(t.addr, stun.Request(t.id)) != nil {
			t.done = true
			continue
		}
		waiting++
	}
	return waiting
}

func (p *prober) collect(ctx context.Context, targets []*target, m *measurement, wait time.Duration) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for slices.ContainsFunc(targets, func(t *target) bool { return !t.done }) {
		select {
		case r := <-p.replies:
			i := slices.IndexFunc(targets, func(t *target) bool { return t.id == r.id && !t.done })
			if i >= 0 {
				m.add(targets[i], r)
			}
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (m *measurement) add(t *target, r stunReply) {
	t.done, m.udp = true, true
	if rtt := max(r.at.Sub(t.sent), time.Microsecond); m.latency[t.region] == 0 || rtt < m.latency[t.region] {
		m.latency[t.region] = rtt
	}
	if t.addr.Addr().Is6() {
		m.v6 = r.mapped
		return
	}
	if m.servers++; m.v4.IsValid() && m.v4 != r.mapped {
		m.varies = true
	}
	if !m.v4.IsValid() {
		m.v4 = r.mapped
	}
}

// targets are the STUN servers to ask: the first of every region, two if there
// is only one region, since one server cannot show a hard NAT.
func (p *prober) targets(ctx context.Context, regions []mesh.RelayRegion) []*target {
	perRegion := 1
	if len(regions) == 1 {
		perRegion = 2
	}
	var all []*target
	for _, r := range regions {
		servers := 0
		for _, n := range r.Nodes {
			if servers == perRegion {
				break
			}
			if n.STUNPort < 0 {
				continue
			}
			servers++
			port := uint16(n.STUNPort)
			if port == 0 {
				port = stunPort
			}
			for _, a := range p.addresses(ctx, n) {
				all = append(all, &target{region: r.ID, addr: netip.AddrPortFrom(a, port), id: stun.NewTxID()})
			}
		}
	}
	return all[:min(len(all), stunTargets)]
}

// addresses are the node's, one of each family that we have.
func (p *prober) addresses(ctx context.Context, n mesh.RelayNode) []netip.Addr {
	var all []netip.Addr
	for _, v6 := range []bool{false, true} {
		if v6 && !p.v6 || !v6 && !p.v4 {
			continue
		}
		literal := n.IPv4
		if v6 {
			literal = n.IPv6
		}
		host, ok := dialHost(n.Host, literal, v6)
		if !ok {
			continue
		}
		if a, err := netip.ParseAddr(host); err == nil {
			all = append(all, a)
			continue
		}
		found, _ := p.lookup(ctx, host)
		if i := slices.IndexFunc(found, func(a netip.Addr) bool { return a.Unmap().Is6() == v6 }); i >= 0 {
			all = append(all, found[i].Unmap())
		}
	}
	return all
}

func lookupHost(ctx context.Context, host string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// takeSTUN reads an answer; the measuring goroutine matches it by its number.
func (u *Underlay) takeSTUN(b []byte) {
	id, mapped, err := stun.ParseResponse(b)
	if err != nil {
		return
	}
	select {
	case u.stunIn <- stunReply{id: id, mapped: netip.AddrPortFrom(mapped.Addr().Unmap(), mapped.Port()), at: u.cfg.Now()}:
	default:
	}
}

// measureLoop does the rounds that the loop orders.
func (u *Underlay) measureLoop(ctx context.Context) {
	p := prober{replies: u.stunIn, now: u.cfg.Now, lookup: lookupHost, v4: u.v4 != nil, v6: u.v6 != nil,
		send: func(to netip.AddrPort, b []byte) error { return u.sendUDP(to, [][]byte{b}) }}
	d := dialer{mark: u.cfg.Mark, now: u.cfg.Now, log: u.cfg.Log}
	for {
		var order measureOrder
		select {
		case order = <-u.measure:
		case <-ctx.Done():
			return
		}
		m := p.run(ctx, order.regions)
		m.full = order.full
		if !m.udp {
			m.latency = tcpLatency(ctx, &d, order.regions)
		}
		select {
		case u.results <- m:
		case <-ctx.Done():
			return
		}
	}
}

// tcpLatency measures by connecting to relays, for when UDP does not work.
func tcpLatency(ctx context.Context, d *dialer, regions []mesh.RelayRegion) map[int]time.Duration {
	ctx, cancel := context.WithTimeout(ctx, stunTimeout)
	defer cancel()
	type result struct {
		region int
		rtt    time.Duration
	}
	results := make(chan result, len(regions))
	slots := make(chan struct{}, 8)
	for _, r := range regions {
		go func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			results <- result{r.ID, tcpTime(ctx, d, r)}
		}()
	}
	latency := map[int]time.Duration{}
	for range regions {
		if r := <-results; r.rtt > 0 {
			latency[r.region] = r.rtt
		}
	}
	return latency
}

// tcpTime is the time to connect to the region's first relay; 0: failed.
func tcpTime(ctx context.Context, d *dialer, r mesh.RelayRegion) time.Duration {
	i := slices.IndexFunc(r.Nodes, func(n mesh.RelayNode) bool { return !n.STUNOnly })
	if i < 0 || ctx.Err() != nil {
		return 0
	}
	began := d.now()
	conn, err := d.tcp(ctx, r.Nodes[i])
	if err != nil {
		return 0
	}
	conn.Close()
	return max(d.now().Sub(began), time.Microsecond)
}

// chooseHome is the region with the lowest latency. The old home stays unless
// another is better by 10 ms and a third, or the old one did not answer while
// others did.
func chooseHome(old int, regions []mesh.RelayRegion, latency map[int]time.Duration) int {
	best := 0
	for _, r := range regions {
		l, ok := latency[r.ID]
		if !ok || r.NoMeasure || !hasRelay(r) {
			continue
		}
		if best == 0 || cmp.Or(cmp.Compare(l, latency[best]), cmp.Compare(r.ID, best)) < 0 {
			best = r.ID
		}
	}
	known := slices.ContainsFunc(regions, func(r mesh.RelayRegion) bool { return r.ID == old && hasRelay(r) })
	if best == 0 || best == old {
		if known {
			return old
		}
		return best
	}
	was, measured := latency[old]
	if !known || !measured {
		return best
	}
	if gain := was - latency[best]; gain >= 10*time.Millisecond && gain >= was/3 {
		return best
	}
	return old
}

func hasRelay(r mesh.RelayRegion) bool {
	return slices.ContainsFunc(r.Nodes, func(n mesh.RelayNode) bool { return !n.STUNOnly })
}

// nearest are the regions of a quick round: the home and the two next to it.
func nearest(home int, regions []mesh.RelayRegion, latency map[int]time.Duration) []mesh.RelayRegion {
	some := slices.DeleteFunc(slices.Clone(regions), func(r mesh.RelayRegion) bool {
		return latency[r.ID] == 0 && r.ID != home
	})
	sort.SliceStable(some, func(i, j int) bool {
		a, b := some[i].ID, some[j].ID
		if (a == home) != (b == home) {
			return a == home
		}
		return latency[a] < latency[b]
	})
	return some[:min(len(some), 3)]
}
