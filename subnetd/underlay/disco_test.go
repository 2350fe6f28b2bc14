package underlay

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"subnetd/subnetd/mesh"

	"tailscale.com/disco"
	"tailscale.com/types/key"
)

// Peers that share a disco key are told apart by the node key that a ping names:
// it is that of the newest netmap.
func TestPingNamesOurNode(t *testing.T) {
	noLeak(t)
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	n, secret := startNode(t, nil), key.NewDisco()
	for id := range mesh.NodeID(3) {
		n.key = key.NewNode()
		peer := mesh.Node{ID: 1 + id, Key: key.NewNode().Public(), Disco: secret.Public(),
			Endpoints: []netip.AddrPort{conn.LocalAddr().(*net.UDPAddr).AddrPort()}}
		n.know(nil, peer)
		if err := n.Send(peer.Key, [][]byte{wireGuard("x")}); err == nil {
			t.Error("there is no path yet")
		}
		if got := nextPing(t, conn, secret.Shared(n.Disco())).NodeKey; got != n.key.Public() {
			t.Errorf("netmap %d: a ping of %v, want %v", id, got, n.key.Public())
		}
	}
}

// nextPing is the next disco ping that comes, opened.
func nextPing(t *testing.T, conn *net.UDPConn, shared key.DiscoShared) *disco.Ping {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, packetSize)
	for {
		n, err := conn.Read(b)
		if err != nil {
			t.Fatalf("no ping came: %v", err)
		}
		if _, ok := disco.Source(b[:n]); !ok {
			continue
		}
		plain, ok := shared.Open(b[len(disco.Magic)+keySize : n])
		if !ok {
			t.Fatal("a message of the node does not open")
		}
		if m, err := disco.Parse(plain); err == nil {
			if ping, ok := m.(*disco.Ping); ok {
				return ping
			}
		}
	}
}
