package netns

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"go4.org/mem"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
	"tailscale.com/disco"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// Member is the least that a peer of a mesh can be: WireGuard and answers to disco pings at one UDP port, in the test
// process. It knows one other node and no coordinator.
type Member struct {
	Addr     netip.Addr // in the mesh
	Endpoint netip.AddrPort

	node  key.NodePrivate
	disco key.DiscoPrivate
	wire  net.PacketConn
	dev   *device.Device
	tun   *tuntest.ChannelTUN
	other netip.Addr
}

// NewMember makes keys; nothing runs yet.
func NewMember(addr netip.Addr, endpoint netip.AddrPort) *Member {
	return &Member{Addr: addr, Endpoint: endpoint, node: key.NewNode(), disco: key.NewDisco()}
}

// Node is the member as a coordinator tells of it.
func (m *Member) Node(id tailcfg.NodeID, region int) *tailcfg.Node {
	own, yes := []netip.Prefix{netip.PrefixFrom(m.Addr, m.Addr.BitLen())}, true
	return &tailcfg.Node{ID: id, StableID: tailcfg.StableNodeID(fmt.Sprint(id)), Name: fmt.Sprintf("member-%d.still.test.", id),
		Key: m.node.Public(), DiscoKey: m.disco.Public(), Addresses: own, AllowedIPs: own, Endpoints: []netip.AddrPort{m.Endpoint},
		HomeDERP: region, Online: &yes, Cap: tailcfg.CurrentCapabilityVersion, MachineAuthorized: true,
		Hostinfo: (&tailcfg.Hostinfo{OS: "linux", Hostname: fmt.Sprintf("member-%d", id)}).View()}
}

// Start brings the member to life on a host, as a peer of the node with that key, endpoint and mesh address. It
// ends with the test.
func (m *Member) Start(h *Host, other key.NodePublic, at netip.AddrPort, addr netip.Addr) {
	t := h.lab.t
	t.Helper()
	var err error
	if m.wire, err = h.ListenPacket(m.Endpoint.String()); err != nil {
		t.Fatal(err)
	}
	m.tun, m.other = tuntest.NewChannelTUN(), addr
	m.dev = device.NewDevice(m.tun.TUN(), memberBind{m}, &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf})
	_, digits, _ := strings.Cut(other.String(), ":")
	err = m.dev.IpcSet(fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=%s\nallowed_ip=%s/32\n",
		m.node.UntypedHexString(), digits, at, addr))
	if err == nil {
		err = m.dev.Up()
	}
	if err != nil {
		t.Fatalf("member %v: %v", m.Addr, err)
	}
	t.Cleanup(func() { m.dev.Close(); m.wire.Close() })
}

// Ping asks the other node for an echo and says whether it came within limit.
func (m *Member) Ping(limit time.Duration) bool {
	late := time.After(limit)
	select {
	case m.tun.Outbound <- tuntest.Ping(m.other, m.Addr):
	case <-late:
		return false
	}
	select {
	case <-m.tun.Inbound: // nobody sends anything else
		return true
	case <-late:
		return false
	}
}

// answer answers a disco ping.
func (m *Member) answer(packet []byte, from net.Addr) {
	raw, ok := disco.Source(packet)
	if !ok {
		return
	}
	shared := m.disco.Shared(key.DiscoPublicFromRaw32(mem.B(raw)))
	text, ok := shared.Open(packet[len(disco.Magic)+len(raw):])
	if !ok {
		return
	}
	msg, err := disco.Parse(text)
	ping, ok := msg.(*disco.Ping)
	if err != nil || !ok {
		return
	}
	pong := disco.Pong{TxID: ping.TxID, Src: from.(*net.UDPAddr).AddrPort()}
	out := m.disco.Public().AppendTo([]byte(disco.Magic))
	_, _ = m.wire.WriteTo(append(out, shared.Seal(pong.AppendMarshal(nil))...), from)
}

// memberBind gives WireGuard what is not disco.
type memberBind struct{ m *Member }

func (b memberBind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	return []conn.ReceiveFunc{b.receive}, b.m.Endpoint.Port(), b.m.wire.SetReadDeadline(time.Time{})
}

func (b memberBind) receive(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	for {
		n, from, err := b.m.wire.ReadFrom(packets[0])
		if err != nil {
			return 0, net.ErrClosed
		}
		if disco.LooksLikeDiscoWrapper(packets[0][:n]) {
			b.m.answer(packets[0][:n], from)
			continue
		}
		sizes[0], eps[0] = n, memberEndpoint(from.(*net.UDPAddr).AddrPort())
		return 1, nil
	}
}

// Close wakes the reader; the socket stays for the next Open.
func (b memberBind) Close() error { return b.m.wire.SetReadDeadline(time.Now()) }

func (b memberBind) SetMark(uint32) error { return nil }
func (b memberBind) BatchSize() int       { return 1 }

func (b memberBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	for _, buf := range bufs {
		if _, err := b.m.wire.WriteTo(buf, net.UDPAddrFromAddrPort(netip.AddrPort(ep.(memberEndpoint)))); err != nil {
			return err
		}
	}
	return nil
}

func (b memberBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	ap, err := netip.ParseAddrPort(s)
	return memberEndpoint(ap), err
}

// memberEndpoint is where packets go; the source is the socket's.
type memberEndpoint netip.AddrPort

func (e memberEndpoint) ClearSrc()           {}
func (e memberEndpoint) SrcToString() string { return "" }
func (e memberEndpoint) SrcIP() netip.Addr   { return netip.Addr{} }
func (e memberEndpoint) DstToString() string { return netip.AddrPort(e).String() }
func (e memberEndpoint) DstIP() netip.Addr   { return netip.AddrPort(e).Addr() }
func (e memberEndpoint) DstToBytes() []byte {
	b, _ := netip.AddrPort(e).MarshalBinary()
	return b
}
