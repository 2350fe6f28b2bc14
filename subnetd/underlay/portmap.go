package underlay

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The port mapper asks the router before us to forward our UDP port, so that
// peers reach us through a NAT that would not let them in. It speaks PCP and
// NAT-PMP, and UPnP to routers that speak neither (see portmap_upnp.go).

const (
	mapServerPort = 5351
	mapLifetime   = 2 * time.Hour          // what we ask for; RFC 6886 recommends it
	mapLongest    = 24 * time.Hour         // what we believe (RFC 6887, 15)
	mapTries      = 9                      // requests of one round (RFC 6886, 3.1)
	mapRefusals   = 3                      // requests in a row that ICMP says nobody hears
	mapFirstPMP   = 250 * time.Millisecond // to the second request; then doubled
	mapFirstPCP   = 3 * time.Second        // the same for PCP
	mapWaitMost   = 64 * time.Second       // between two requests
	mapRenewLeast = 4 * time.Second        // between two rounds (RFC 6887, 11.2.1)
	mapCheckEvery = 5 * time.Minute        // look if the router rebooted
	mapRetry      = 30 * time.Minute       // after a refusal or silence
	mapRetrySoon  = 2 * time.Minute        // after a refusal that may pass, or a loss
	mapReadPause  = 100 * time.Millisecond // after an error of the socket
)

// mapKnown says which protocol the router speaks.
type mapKnown int

const (
	speaksUnknown mapKnown = iota
	speaksPCP
	speaksPMP
	speaksUPnP
)

// portMapper is the state of the port mapper's goroutine. Times that are zero
// are not planned.
type portMapper struct {
	port    uint16 // ours
	dial    func(context.Context, netip.Addr) (net.Conn, error)
	log     *slog.Logger
	gateway <-chan netip.Addr
	mapped  chan<- []netip.AddrPort
	upnp    *upnpNet        // nil: without UPnP
	ctx     context.Context // of run

	router netip.Addr
	link   *mapLink // nil: not connected
	nonce  mapNonce
	speaks mapKnown
	outer  netip.Addr     // NAT-PMP: the router's outer address, in this round
	denied time.Duration  // NAT-PMP: it does not tell; when to ask again
	held   netip.AddrPort // the mapping we have; invalid: none
	said   netip.AddrPort // what the loop knows

	epoch   uint32
	epochAt time.Time

	tries    int       // requests sent in this round
	refusals int       // the last so many in a row were refused by ICMP
	unheard  bool      // the last one was
	pcpSent  time.Time // while we do not know the protocol: the last PCP request

	try       *upnpTry    // under way; nil: none
	upnpTried bool        // since begin
	igd       upnpMapping // what is held, if it is by UPnP
	upnpJobs  sync.WaitGroup
	upnpLast  <-chan struct{} // closed when the newest job has ended

	resend time.Time // a round is under way
	renew  time.Time // held: the next round
	check  time.Time // held: the next look at the epoch
	expire time.Time // held: it is no longer ours
	retry  time.Time // nothing is held: begin again
}

// portMapLoop keeps our UDP port mapped at the router until ctx ends.
func (u *Underlay) portMapLoop(ctx context.Context) {
	d := net.Dialer{Control: markControl(u.cfg.Mark, u.cfg.Log)}
	m := portMapper{port: u.port, log: u.cfg.Log, gateway: u.gateway, mapped: u.mapped,
		upnp: newUPnPNet(u.ssdpPort, u.ssdpGroup, u.cfg.Mark, u.cfg.Log),
		dial: func(ctx context.Context, router netip.Addr) (net.Conn, error) {
			return d.DialContext(ctx, "udp4", netip.AddrPortFrom(router, u.mapPort).String())
		}}
	m.run(ctx)
}

func (m *portMapper) run(ctx context.Context) {
	_, _ = rand.Read(m.nonce[:]) // never fails, by its documentation
	m.ctx = ctx
	defer m.upnpJobs.Wait()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	defer m.leave()
	for ctx.Err() == nil {
		timer.Reset(m.wait())
		select {
		case a := <-m.gateway:
			m.setRouter(ctx, a)
		case b := <-m.link.incoming():
			m.take(b)
		case <-m.link.unheard():
			m.takeRefusal()
		case <-m.try.ended():
			m.takeUPnP()
		case <-timer.C:
			m.due(ctx)
		case <-ctx.Done():
		}
		m.report(ctx)
	}
}

// report tells the loop what changed.
func (m *portMapper) report(ctx context.Context) {
	if m.held == m.said {
		return
	}
	var all []netip.AddrPort
	if m.held.IsValid() {
		all = []netip.AddrPort{m.held}
	}
	m.log.Debug("port mapping", "router", m.router, "addr", m.held)
	select {
	case m.mapped <- all:
		m.said = m.held
	case <-ctx.Done():
	}
}

// wait is the time until something is due; an hour if nothing is.
func (m *portMapper) wait() time.Duration {
	wait := time.Hour
	for _, t := range []time.Time{m.resend, m.renew, m.check, m.expire, m.retry} {
		if !t.IsZero() {
			wait = min(wait, max(time.Until(t), 0))
		}
	}
	return wait
}

func (m *portMapper) due(ctx context.Context) {
	now := time.Now()
	passed := func(t time.Time) bool { return !t.IsZero() && !now.Before(t) }
	switch {
	case passed(m.expire):
		m.giveUp(mapRetrySoon)
	case passed(m.resend):
		m.ask()
	case passed(m.renew):
		m.newRound()
	case passed(m.check):
		m.check = now.Add(mapCheckEvery)
		m.look()
	case passed(m.retry):
		m.begin(ctx)
	}
}

// setRouter takes the newest default gateway. It comes with every change of
// the machine's facts, so most often nothing is new; but behind a router of the
// same address we may have another address of our own.
func (m *portMapper) setRouter(ctx context.Context, a netip.Addr) {
	if !a.IsValid() {
		m.leave()
		m.router = a
		return
	}
	if a == m.router && m.link != nil {
		fresh, err := m.dial(ctx, a)
		if err == nil {
			fresh.Close()
			if localIP(fresh) == m.link.local {
				return
			}
		}
	}
	m.leave()
	m.router = a
	m.begin(ctx)
}

// begin asks from the start, from a new socket.
func (m *portMapper) begin(ctx context.Context) {
	m.link.close()
	m.link, m.retry = nil, time.Time{}
	conn, err := m.dial(ctx, m.router)
	if err != nil {
		m.log.Debug("port mapping: no way to the router", "router", m.router, "err", err)
		m.giveUp(mapRetrySoon)
		return
	}
	m.link = newMapLink(conn)
	m.upnpTried = false
	m.speaks, m.epochAt, m.pcpSent = speaksUnknown, time.Time{}, time.Time{}
	m.newRound()
}

// leave deletes the mapping, as far as the router still hears us, and forgets
// the router. One datagram must do: we do not wait for its answer. By UPnP it
// takes longer, but not here.
func (m *portMapper) leave() {
	m.unmap()
	m.dropUPnP()
	m.link.close()
	m.link, m.router = nil, netip.Addr{}
	m.giveUp(0)
	m.retry = time.Time{}
}

func (m *portMapper) unmap() {
	if !m.held.IsValid() && m.resend.IsZero() {
		return
	}
	switch m.speaks { // a request under way may be granted after we have left
	case speaksPCP:
		m.send(m.request(0).pcp())
	case speaksPMP:
		m.send(m.request(0).pmp())
	case speaksUnknown:
		if !m.pcpSent.IsZero() {
			m.send(m.request(0).pcp())
		}
	case speaksUPnP:
		m.releaseUPnP(m.igd)
	}
}

// refused ends the round in PCP and NAT-PMP. UPnP may do better.
func (m *portMapper) refused(retry time.Duration) {
	m.giveUp(retry)
	m.tryUPnP()
}

// giveUp ends the round and what was held. Nobody is told: most routers speak
// neither protocol, and the mesh works without.
func (m *portMapper) giveUp(retry time.Duration) {
	m.held, m.outer = netip.AddrPort{}, netip.Addr{}
	m.resend, m.renew, m.check, m.expire = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	m.retry = time.Now().Add(retry)
}

func (m *portMapper) newRound() {
	m.tries, m.outer, m.denied, m.renew = 0, netip.Addr{}, 0, time.Time{}
	m.refusals, m.unheard = 0, false
	if m.speaks == speaksUPnP {
		m.startUPnP(m.igd)
		return
	}
	m.ask()
}

// ask sends what this round still needs to know, later and later.
func (m *portMapper) ask() {
	now := time.Now()
	if !m.unheard {
		m.refusals = 0
	}
	m.unheard = false
	switch unknown := m.speaks == speaksUnknown; {
	case m.tries == mapTries || m.refusals >= mapRefusals:
		m.noAnswer()
		return
	case unknown && m.denied != 0:
		m.refused(m.denied)
		return
	case unknown && m.outer.IsValid():
		m.speaks = speaksPMP // it answered that and not the other
	}
	if m.tries >= mapSilent && !m.held.IsValid() {
		m.tryUPnP()
	}
	first := mapFirstPMP
	if m.speaks == speaksPCP {
		first = mapFirstPCP
	}
	m.resend = now.Add(jitter(min(first<<m.tries, mapWaitMost)))
	m.tries++
	switch m.speaks {
	case speaksPCP:
		m.send(m.request(mapLifetime).pcp())
	case speaksPMP:
		m.askPMP()
	case speaksUnknown:
		if m.pcpSent.IsZero() || now.Sub(m.pcpSent) >= mapFirstPCP {
			m.pcpSent = now
			m.send(m.request(mapLifetime).pcp())
		}
		m.send(pmpExternal()) // it changes nothing at the router, so both may be asked
	}
}

// noAnswer ends a round. What is held may be there still, until it expires.
func (m *portMapper) noAnswer() {
	if !m.held.IsValid() {
		m.refused(mapRetry)
		return
	}
	now := time.Now()
	m.resend, m.renew = time.Time{}, now.Add(max(m.expire.Sub(now)/2, mapRenewLeast))
}

// jitter keeps many clients of one router apart (RFC 6887, 8.1.1).
func jitter(d time.Duration) time.Duration { return d - d/10 + mathrand.N(d/5) }

// askPMP asks for the outer address first: if it is of no use, neither is a mapping.
func (m *portMapper) askPMP() {
	switch {
	case !m.outer.IsValid():
		m.send(pmpExternal())
	case !reachable(m.outer):
		m.giveUp(mapRetry)
	default:
		m.send(m.request(mapLifetime).pmp())
	}
}

// look asks for the router's epoch only. Losing it costs nothing.
func (m *portMapper) look() {
	if m.speaks == speaksPCP {
		m.send(pcpAnnounce(m.link.local))
		return
	}
	m.send(pmpExternal())
}

func (m *portMapper) request(lifetime time.Duration) mapRequest {
	want := m.held
	if !want.IsValid() {
		want = netip.AddrPortFrom(netip.Addr{}, m.port)
	}
	return mapRequest{nonce: m.nonce, client: m.link.local, internal: m.port, external: want,
		lifetime: uint32(lifetime / time.Second)}
}

// send tries twice: an ICMP answer to an earlier datagram fails one write.
func (m *portMapper) send(b []byte) {
	_, err := m.link.conn.Write(b)
	if err != nil {
		m.noteRefusal(err)
		_, err = m.link.conn.Write(b)
	}
	if err != nil {
		m.log.Debug("port mapping: request not sent", "router", m.router, "err", err)
	}
}

// noteRefusal counts requests of this round that reached nobody. One request
// may be several datagrams, and be refused as often.
func (m *portMapper) noteRefusal(err error) {
	if errors.Is(err, unix.ECONNREFUSED) && !m.unheard {
		m.unheard = true
		m.refusals++
	}
}

// takeRefusal takes that ICMP says nobody listens at the router.
func (m *portMapper) takeRefusal() {
	m.noteRefusal(unix.ECONNREFUSED)
	if m.refusals >= mapRefusals && !m.resend.IsZero() {
		m.noAnswer()
	}
}

// take reads an answer. The socket is connected: it comes from the router.
func (m *portMapper) take(b []byte) {
	a, ok := parseMapAnswer(b)
	if !ok || a.proto == protoPCP && a.op == opMap && a.nonce != m.nonce || m.speaks == speaksUPnP {
		return
	}
	m.refusals, m.unheard = 0, false
	switch {
	case a.op == opMap:
		m.takeMap(a)
	case a.proto == protoPMP:
		m.takeOuter(a)
	case m.speaks == speaksPCP && m.resend.IsZero():
		if m.rebooted(a.epoch) {
			m.newRound()
		}
	}
}

// takeOuter takes a router's outer address, which a round or look asked for.
func (m *portMapper) takeOuter(a mapAnswer) {
	asking := !m.resend.IsZero()
	switch {
	case m.speaks == speaksPCP || !asking && !m.held.IsValid():
		return
	case a.result != resultOK:
		switch {
		case asking && m.speaks == speaksPMP:
			m.refused(retryAfter(a))
		case asking:
			m.denied = retryAfter(a) // if PCP does not answer either
		}
		return
	}
	again := m.rebooted(a.epoch)
	if !asking {
		if again || a.external.Addr() != m.held.Addr() {
			m.newRound()
		}
		return
	}
	was := m.outer
	m.outer = a.external.Addr()
	if m.speaks == speaksPMP && m.outer != was { // an answer may come twice
		m.askPMP()
	}
}

func (m *portMapper) takeMap(a mapAnswer) {
	if m.resend.IsZero() {
		return // late, or about a mapping that we deleted
	}
	if m.speaks == speaksUnknown && a.result != resultOK {
		// It refuses PCP, in its own words or in those of NAT-PMP.
		m.speaks = speaksPMP
		m.newRound()
		return
	}
	if (a.proto == protoPMP) != (m.speaks == speaksPMP) {
		return // an answer in the other protocol, which we have left
	}
	switch {
	case a.result != resultOK:
		m.refused(retryAfter(a))
		return
	case a.internal != m.port || a.lifetime == 0 || a.external.Port() == 0:
		return
	case a.proto == protoPMP:
		if !m.outer.IsValid() {
			return
		}
		a.external = netip.AddrPortFrom(m.outer, a.external.Port())
	default:
		m.speaks = speaksPCP
	}
	m.hold(a)
}

// hold takes what the router granted.
func (m *portMapper) hold(a mapAnswer) {
	m.rebooted(a.epoch) // remembered only: the mapping is from after a reboot
	if !reachable(a.external.Addr()) {
		m.unmap()
		m.giveUp(mapRetry)
		return
	}
	now := time.Now()
	life := min(time.Duration(a.lifetime)*time.Second, mapLongest)
	m.held, m.resend, m.retry = a.external, time.Time{}, time.Time{}
	m.expire = now.Add(life)
	m.renew = now.Add(max(life/2, mapRenewLeast))
	m.check = now.Add(mapCheckEvery)
	m.dropUPnP() // it came second
}

// rebooted remembers a router's epoch and says if it is not the last one gone
// on: then the router has forgotten our mapping (RFC 6887, 8.5).
func (m *portMapper) rebooted(epoch uint32) bool {
	now := time.Now()
	was, at := int64(m.epoch), m.epochAt
	m.epoch, m.epochAt = epoch, now
	return !at.IsZero() && epochBroken(was, int64(epoch), int64(now.Sub(at)/time.Second))
}

// epochBroken compares how many seconds went by on the router and here.
func epochBroken(was, is, here int64) bool {
	there := is - was
	return there < -1 || here+2 < there-there/16 || there+2 < here-here/16
}

// retryAfter is when to ask again after a refusal.
func retryAfter(a mapAnswer) time.Duration {
	switch {
	case a.proto == protoPCP:
		return max(mapRetrySoon, min(time.Duration(a.lifetime)*time.Second, mapRetry))
	case a.result == resultPMPNetwork || a.result == resultPMPResources:
		return mapRetrySoon
	}
	return mapRetry
}

// reachable reports whether an outer address is of use to peers. One that is
// not means that the router is itself behind a NAT.
func reachable(a netip.Addr) bool {
	return a.Is4() && a.IsGlobalUnicast() && !a.IsPrivate() && !carrierNAT.Contains(a) && !dsLite.Contains(a)
}

var (
	carrierNAT = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598; constants, as meshV6
	dsLite     = netip.MustParsePrefix("192.0.0.0/24")  // RFC 6333
)

// mapLink is the socket to a router, with the goroutine that reads it. A nil
// mapLink is one that never says anything.
type mapLink struct {
	conn    net.Conn
	local   netip.Addr
	answers chan []byte
	refused chan struct{} // one slot: ICMP said that nobody listens
	ended   chan struct{}
	reader  sync.WaitGroup
}

func newMapLink(conn net.Conn) *mapLink {
	l := &mapLink{conn: conn, local: localIP(conn), answers: make(chan []byte),
		refused: make(chan struct{}, 1), ended: make(chan struct{})}
	l.reader.Go(l.read)
	return l
}

func localIP(conn net.Conn) netip.Addr {
	if a, ok := conn.LocalAddr().(*net.UDPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// read ends with the link. Errors before that are what ICMP says of a router
// that is not there, or not listening, now: it may come back.
func (l *mapLink) read() {
	b := make([]byte, pcpLargest+1)
	for {
		n, err := l.conn.Read(b)
		if err != nil {
			if errors.Is(err, unix.ECONNREFUSED) {
				signal(l.refused)
			}
			select {
			case <-time.After(mapReadPause):
				continue
			case <-l.ended:
				return
			}
		}
		select {
		case l.answers <- append([]byte(nil), b[:n]...):
		case <-l.ended:
			return
		}
	}
}

func (l *mapLink) incoming() <-chan []byte {
	if l == nil {
		return nil
	}
	return l.answers
}

func (l *mapLink) unheard() <-chan struct{} {
	if l == nil {
		return nil
	}
	return l.refused
}

func (l *mapLink) close() {
	if l == nil {
		return
	}
	close(l.ended)
	l.conn.Close()
	l.reader.Wait()
}
