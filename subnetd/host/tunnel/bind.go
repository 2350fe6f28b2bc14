package tunnel

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"subnetd/subnetd/host"

	"golang.zx2c4.com/wireguard/conn"
	"tailscale.com/types/key"
)

// endpoint is a node: where it is, the transport knows.
type endpoint struct {
	key  key.NodePublic // zero: the sender of a packet is not known
	text string         // the key in hex
	raw  []byte
	ip   netip.Addr // stands for the node in the device's rate limits
	// waiting is the type of our last handshake message while it is not
	// answered, 0 if it is: the way it went may have led nowhere.
	waiting atomic.Uint32
	// met is set once the node and we have shaken hands, or are about to.
	met atomic.Bool
}

func newEndpoint(k key.NodePublic) *endpoint {
	raw := k.AppendTo(nil)
	return &endpoint{key: k, text: hexKey(k), raw: raw, ip: netip.AddrFrom16([16]byte(raw[:16]))}
}

func (e *endpoint) ClearSrc()           {}
func (e *endpoint) SrcToString() string { return "" }
func (e *endpoint) DstToString() string { return e.text }
func (e *endpoint) DstToBytes() []byte  { return e.raw }
func (e *endpoint) DstIP() netip.Addr   { return e.ip }
func (e *endpoint) SrcIP() netip.Addr   { return netip.Addr{} }

// roster is the peers of the device, never changed once published.
type roster struct {
	byKey  map[key.NodePublic]*endpoint
	byText map[string]key.NodePublic
}

// bind makes the transport wireguard-go's Bind: its endpoints are node keys.
type bind struct {
	transport Transport
	stranger  *endpoint
	// lost is set once data came from nobody known: some node goes on sending
	// under session keys of before our start.
	lost atomic.Bool
	// orphan is told of a node that sends under session keys we never had.
	orphan func(key.NodePublic)

	mu     sync.Mutex // orders writers of roster
	roster atomic.Pointer[roster]
}

var _ conn.Bind = (*bind)(nil)

func newBind(t Transport, orphan func(key.NodePublic)) *bind {
	b := &bind{transport: t, stranger: newEndpoint(key.NodePublic{}), orphan: orphan}
	b.roster.Store(&roster{})
	return b
}

// setPeers publishes the peers' endpoints; those that stay are kept.
func (b *bind) setPeers(peers []host.Peer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.roster.Load()
	r := &roster{
		byKey:  make(map[key.NodePublic]*endpoint, len(peers)),
		byText: make(map[string]key.NodePublic, len(peers)),
	}
	for _, p := range peers {
		e := old.byKey[p.Key]
		if e == nil {
			e = newEndpoint(p.Key)
		}
		r.byKey[p.Key], r.byText[e.text] = e, p.Key
	}
	b.roster.Store(r)
}

func (b *bind) keys() map[string]key.NodePublic { return b.roster.Load().byText }

// takeWaiting reports, once, whether a handshake with the peer is not answered,
// or should have been made by us.
func (b *bind) takeWaiting(k key.NodePublic) bool {
	e := b.roster.Load().byKey[k]
	return e != nil && (e.waiting.Swap(0) != 0 || b.lost.Load() && !e.met.Swap(true))
}

// Open gives the transport's receivers. The port is the transport's own.
func (b *bind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	receivers, port, err := b.transport.Open()
	if err != nil {
		return nil, 0, err
	}
	var all []conn.ReceiveFunc
	for _, r := range receivers {
		all = append(all, b.receiver(r))
	}
	return all, port, nil
}

func (b *bind) receiver(receive func([][]byte, []int, []key.NodePublic) (int, error)) conn.ReceiveFunc {
	from := make([]key.NodePublic, b.BatchSize())
	return func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		packets = packets[:min(len(packets), len(from))]
		n, err := receive(packets, sizes, from)
		if err != nil {
			return 0, err
		}
		r := b.roster.Load()
		last := b.stranger
		for i := range n {
			if from[i] != last.key {
				if last = r.byKey[from[i]]; last == nil {
					last = b.stranger
				}
			}
			eps[i] = last
			b.heard(last, packets[i][:sizes[i]])
		}
		return n, nil
	}
}

// heard watches for answers to handshakes, and for nodes that do not know of
// our restart: until they do, what they send is lost, for fifteen seconds by
// WireGuard's own timers.
func (b *bind) heard(e *endpoint, packet []byte) {
	if len(packet) == 0 {
		return
	}
	if e == b.stranger {
		if packet[0] == messageTransport && !b.lost.Load() {
			b.lost.Store(true)
		}
		return
	}
	// Data answers a response only: the node may go on under older keys while
	// our initiation is on its way.
	switch waiting := e.waiting.Load(); {
	case waiting == messageInitiation && packet[0] == messageResponse, waiting == messageResponse && packet[0] == messageTransport:
		e.waiting.Store(0)
	}
	if !e.met.Load() && !e.met.Swap(true) && packet[0] == messageTransport {
		b.orphan(e.key)
	}
}

// Close ends the receivers.
func (b *bind) Close() error { return b.transport.CloseReceivers() }

// SetMark does nothing: the transport has marked its sockets.
func (b *bind) SetMark(uint32) error { return nil }

// The first byte of a message tells its type.
const (
	messageInitiation = 1
	messageResponse   = 2
	messageTransport  = 4
)

// Send sends to a node. What is meant for a stranger (a cookie reply, under
// load) is dropped: there is no telling where it was.
func (b *bind) Send(packets [][]byte, ep conn.Endpoint) error {
	e, ok := ep.(*endpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	if e == b.stranger {
		return nil
	}
	if len(packets) > 0 && len(packets[0]) > 0 {
		switch t := packets[0][0]; t {
		case messageInitiation, messageResponse:
			e.waiting.Store(uint32(t))
		}
	}
	return b.transport.Send(e.key, packets)
}

// ParseEndpoint finds the peer with that key in hex.
func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	r := b.roster.Load()
	e := r.byKey[r.byText[s]]
	if e == nil {
		return nil, fmt.Errorf("no peer %q", s)
	}
	return e, nil
}

// BatchSize is the transport's.
func (b *bind) BatchSize() int { return b.transport.BatchSize() }
