package underlay

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"
)

// mapRouter is a router that maps ports, written from the RFCs and not with
// our codec.
type mapRouter struct {
	mu        sync.Mutex // guards all below
	pcp, pmp  bool       // protocols it speaks
	toldPCP   bool       // it answers PCP, which it does not speak, in NAT-PMP's words
	silent    bool
	outer     netip.Addr
	port      uint16        // given out; 0: the one that was asked for
	life      time.Duration // granted at most
	pcpResult byte
	pcpError  time.Duration // lifetime of a PCP refusal
	pmpResult uint16
	booted    time.Time
	frozen    bool // its epoch never moves
	mangle    func([]byte) []byte
	mapped    map[uint16]bool // inner ports that are mapped

	began time.Time
	seen  []string // requests, with the seconds since began
	asked chan string
}

func newMapRouter() *mapRouter {
	now := time.Now()
	return &mapRouter{pcp: true, pmp: true, outer: netip.MustParseAddr("203.0.113.7"), port: 700, life: 24 * time.Hour,
		booted: now.Add(-time.Hour), began: now, mapped: map[uint16]bool{}, asked: make(chan string, 1000)}
}

// set changes the router under its lock.
func (r *mapRouter) set(change func(*mapRouter)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(r)
}

// requests are those seen since the last call.
func (r *mapRouter) requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.seen
	r.seen = nil
	return seen
}

func (r *mapRouter) note(format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	r.seen = append(r.seen, fmt.Sprintf("%.0f %s", time.Since(r.began).Seconds(), what))
	r.asked <- what
}

func (r *mapRouter) epoch() uint32 {
	if r.frozen {
		return 7
	}
	return uint32(time.Since(r.booted) / time.Second)
}

func (r *mapRouter) reboot() {
	r.booted, r.mapped = time.Now(), map[uint16]bool{}
}

// answer is what the router says to one datagram; nil: nothing.
func (r *mapRouter) answer(b []byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []byte
	switch {
	case len(b) >= 24 && b[0] == 2:
		out = r.answerPCP(b)
	case len(b) >= 2 && b[0] == 0:
		out = r.answerPMP(b)
	default:
		r.note("garbage %x", b)
	}
	if r.silent || out == nil {
		return nil
	}
	if r.mangle != nil {
		return r.mangle(out)
	}
	return out
}

func (r *mapRouter) answerPMP(b []byte) []byte {
	out := binary.BigEndian.AppendUint32([]byte{0, b[1] | 0x80, byte(r.pmpResult >> 8), byte(r.pmpResult)}, r.epoch())
	if b[1] == 0 {
		r.note("pmp outer")
		if !r.pmp {
			return nil
		}
		return append(out, r.outer.AsSlice()...)
	}
	inner, outer := binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:])
	life := binary.BigEndian.Uint32(b[8:])
	r.note("pmp map %d %d", outer, life)
	if !r.pmp {
		return nil
	}
	if r.port != 0 {
		outer = r.port
	}
	life = r.grant(inner, life, r.pmpResult == 0)
	out = append(out, b[4:6]...)
	out = binary.BigEndian.AppendUint16(out, outer)
	return binary.BigEndian.AppendUint32(out, life)
}

// grant makes or ends a mapping, and says for how long.
func (r *mapRouter) grant(inner uint16, life uint32, ok bool) uint32 {
	if ok {
		r.mapped[inner] = life > 0
	}
	return min(life, uint32(r.life/time.Second))
}

func (r *mapRouter) answerPCP(b []byte) []byte {
	client := netip.AddrFrom16([16]byte(b[8:24])).Unmap()
	life := binary.BigEndian.Uint32(b[4:])
	if b[1] == 0 {
		r.note("pcp announce")
	} else {
		r.note("pcp map %s %d %d", client, binary.BigEndian.Uint16(b[42:]), life)
	}
	if !r.pcp {
		if r.toldPCP {
			return []byte{0, 0x81, 0, 1, 0, 0, 0, 9}
		}
		return nil
	}
	out := append([]byte(nil), b...)
	out[1], out[3] = b[1]|0x80, r.pcpResult
	clear(out[12:24])
	binary.BigEndian.PutUint32(out[8:], r.epoch())
	if b[1] == 0 {
		return out
	}
	life = r.grant(binary.BigEndian.Uint16(b[40:]), life, r.pcpResult == 0)
	if r.pcpResult != 0 {
		life = uint32(r.pcpError / time.Second)
	}
	binary.BigEndian.PutUint32(out[4:], life)
	if r.port != 0 {
		binary.BigEndian.PutUint16(out[42:], r.port)
	}
	addr := r.outer.As16()
	copy(out[44:60], addr[:])
	return out
}

// listen serves the router on loopback until the test ends.
func (r *mapRouter) listen(t *testing.T) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 2000)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if out := r.answer(b[:n]); out != nil {
				_, _ = conn.WriteToUDPAddrPort(out, from)
			}
		}
	})
	t.Cleanup(func() { conn.Close(); wg.Wait() })
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// memLink is a connection to a mapRouter in memory, for bubbles of fake time:
// the answer is there as soon as the request was written.
type memLink struct {
	router *mapRouter
	local  netip.Addr
	in     chan []byte
	closed chan struct{}
	once   sync.Once
}

func (r *mapRouter) connect(local string) *memLink {
	return &memLink{router: r, local: netip.MustParseAddr(local), in: make(chan []byte, 100), closed: make(chan struct{})}
}

func (l *memLink) Write(b []byte) (int, error) {
	select {
	case <-l.closed:
		return 0, net.ErrClosed
	default:
	}
	if out := l.router.answer(b); out != nil {
		l.in <- out
	}
	return len(b), nil
}

func (l *memLink) Read(b []byte) (int, error) {
	select {
	case in := <-l.in:
		return copy(b, in), nil
	case <-l.closed:
		return 0, net.ErrClosed
	}
}

func (l *memLink) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *memLink) LocalAddr() net.Addr {
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(l.local, 40000))
}
func (l *memLink) RemoteAddr() net.Addr             { return &net.UDPAddr{} }
func (l *memLink) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (l *memLink) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (l *memLink) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }
