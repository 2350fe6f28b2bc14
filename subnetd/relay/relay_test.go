package relay

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

func TestPackets(t *testing.T) {
	r := start(t, Config{})
	a, b := r.node(), r.node()
	for _, n := range []int{0, 1, 100, 1280, smallFrame - recvHeader, smallFrame - recvHeader + 1, readBuffer, 9000, derp.MaxPacketSize} {
		text := strings.Repeat("x", n)
		a.send(b.key, text)
		b.expect(packetFrom(a, text))
		b.send(a.key, text)
		a.expect(packetFrom(b, text))
	}
	a.send(a.key, "myself")
	a.expect(packetFrom(a, "myself"))
	if s := r.s.Stats(); s.Clients != 2 || s.Packets != 19 || s.Dropped != 0 {
		t.Errorf("%+v", s)
	}
	if s := r.in.Stats(); s.Established != 2 || s.Pending != 0 {
		t.Errorf("the port says %+v", s)
	}
}

// Order is kept, and nothing is lost as long as the queue has room.
func TestOrder(t *testing.T) {
	r := start(t, Config{})
	a, b := r.node(), r.node()
	for i := range 50 {
		for j := range 20 {
			a.send(b.key, fmt.Sprint(i, " ", j))
		}
		for j := range 20 {
			b.expect(packetFrom(a, fmt.Sprint(i, " ", j)))
		}
	}
}

// Without TLS, as at home under a private address.
func TestPlainHTTP(t *testing.T) {
	r := start(t, Config{})
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	a, b := newNode(t, conn, key.NewNode()), r.node()
	b.send(a.key, "hello")
	a.expect(packetFrom(b, "hello"))
	if s := r.in.Stats(); s.Established != 2 {
		t.Errorf("the port says %+v", s)
	}
}

// A client that knows our key already sends its own with the request, and wants
// no HTTP answer.
func TestFastStart(t *testing.T) {
	k := key.NewNode()
	r := start(t, Config{Key: k})
	conn := r.tls()
	brw := bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))
	io.WriteString(brw, "GET /derp HTTP/1.1\r\nHost: relay\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Fast-Start: 1\r\n\r\n")
	c, err := derp.NewClient(key.NewNode(), conn, brw, t.Logf, derp.ServerPublicKey(k.Public()))
	if err != nil {
		t.Fatal(err)
	}
	if m, err := c.Recv(); err != nil {
		t.Fatal(err)
	} else if _, ok := m.(derp.ServerInfoMessage); !ok {
		t.Fatalf("the first is %T", m)
	}
}

func TestPing(t *testing.T) {
	r := start(t, Config{})
	a := r.node()
	for i := range byte(3) {
		data := [8]byte{i, 2, 3, 4, 5, 6, 7, 8}
		if err := a.SendPing(data); err != nil {
			t.Fatal(err)
		}
		a.expect(derp.PongMessage(data))
	}
}

func TestPreferred(t *testing.T) {
	r := start(t, Config{})
	a := r.node()
	for _, want := range []int{1, 0, 1} {
		if err := a.NotePreferred(want == 1); err != nil {
			t.Fatal(err)
		}
		until(t, "the preference", func() bool { return r.s.Stats().Home == want })
	}
	a.conn.Close()
	until(t, "its end", func() bool { return r.s.Stats().Home == 0 })
}

// Who got something from a peer hears that it has left, and nobody else.
func TestPeerGone(t *testing.T) {
	r := start(t, Config{})
	a, b, c := r.node(), r.node(), r.node()
	a.send(b.key, "hello")
	b.expect(packetFrom(a, "hello"))
	a.conn.Close()
	b.expect(derp.PeerGoneMessage{Peer: a.key, Reason: derp.PeerGoneReasonDisconnected})
	b.send(c.key, "still here")
	c.expect(packetFrom(b, "still here")) // and nothing of a before

	a = r.nodeOf(key.NewNode())
	a.send(b.key, "another")
	b.expect(packetFrom(a, "another"))
	b.conn.Close()
	until(t, "b to leave", func() bool { return r.s.find(b.key) == nil })
	a.send(b.key, "gone?")
	a.expect(derp.PeerGoneMessage{Peer: b.key, Reason: derp.PeerGoneReasonNotHere})
}

// A peer that comes back is found again by those who knew it.
func TestPeerBack(t *testing.T) {
	r := start(t, Config{})
	k := key.NewNode()
	a, b := r.node(), r.nodeOf(k)
	for range 5 {
		a.send(b.key, "hello")
		b.expect(packetFrom(a, "hello"))
		b.conn.Close()
		until(t, "b to leave", func() bool { return r.s.find(b.key) == nil })
		b = r.nodeOf(k)
	}
}

// Who sends to a stranger is told that he is not here, for any kind of packet,
// but not without end.
func TestNotHere(t *testing.T) {
	r := start(t, Config{})
	a, stranger := r.node(), key.NewNode().Public()
	disco := discoMagic + strings.Repeat("d", 100)
	for _, text := range []string{"data", disco} {
		a.send(stranger, text)
		a.expect(derp.PeerGoneMessage{Peer: stranger, Reason: derp.PeerGoneReasonNotHere})
	}
	const more = 1000
	for range more {
		a.send(stranger, "data")
	}
	a.SendPing([8]byte{})
	n := 0
	for {
		if _, ok := a.next().(derp.PongMessage); ok {
			break
		}
		n++
	}
	// The pong overtakes what is told before it, so some may come still.
	if n > 4*notHereBurst {
		t.Errorf("%d answers to %d packets", n, more)
	}
	if s := r.s.Stats(); s.Dropped != more+2 {
		t.Errorf("%+v", s)
	}
}

func TestRefused(t *testing.T) {
	r := start(t, Config{})
	k := key.NewNode()
	r.remove(k.Public())
	refused(t, r, k)
	if s := r.s.Stats(); s.Clients != 0 {
		t.Errorf("%+v", s)
	}
	until(t, "the port to forget", func() bool { s := r.in.Stats(); return s.Established+s.Pending == 0 })
}

// refused checks that the key is not let in.
func refused(t *testing.T, r *rig, k key.NodePrivate) {
	t.Helper()
	conn := r.tls()
	brw := bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))
	io.WriteString(brw, "GET /derp HTTP/1.1\r\nHost: relay\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n")
	brw.Flush()
	if _, err := http.ReadResponse(brw.Reader, nil); err != nil {
		t.Fatal(err)
	}
	c, err := derp.NewClient(k, conn, brw, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := c.Recv(); err == nil {
		t.Errorf("let in, and told %T", m)
	}
}

// A removed member is out at once, with all its connections; the others hear it.
func TestExpel(t *testing.T) {
	r := start(t, Config{})
	k := key.NewNode()
	a, b, twin := r.nodeOf(k), r.node(), r.nodeOf(k)
	twin.send(b.key, "hello")
	b.expect(packetFrom(twin, "hello"))
	r.remove(k.Public())
	r.s.Expel(k.Public())
	a.ends()
	twin.ends()
	b.expect(derp.PeerGoneMessage{Peer: a.key, Reason: derp.PeerGoneReasonDisconnected})
	refused(t, r, k)
	b.send(a.key, "anybody?")
	b.expect(derp.PeerGoneMessage{Peer: a.key, Reason: derp.PeerGoneReasonNotHere})
	r.s.Expel(key.NewNode().Public()) // a stranger is out already
}

// Who is removed while it comes in is out, whichever of both is first.
func TestExpelRace(t *testing.T) {
	var m members
	asked := 0
	var s *Server
	k := key.NewNode()
	s = newServer(t, Config{Admit: func(p key.NodePublic) bool {
		ok := m.admit(p)
		if asked++; asked == 1 { // the coordinator removes it between the question and the seat
			m.remove(p)
			s.Expel(p)
		}
		return ok
	}})
	noLeak(t)
	defer s.Close()
	ours, theirs := net.Pipe()
	s.serve(theirs, nil, nil)
	c, err := derp.NewClient(k, ours, bufio.NewReadWriter(bufio.NewReader(ours), bufio.NewWriter(ours)), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := c.Recv(); err == nil {
		t.Errorf("let in, and told %T", m)
	}
}

// When the relay ends, so does every connection, whatever state it is in.
func TestClose(t *testing.T) {
	r := start(t, Config{})
	a := r.node()
	raw := r.tls()
	io.WriteString(raw, "GET /derp HTTP/1.1\r\nHost: relay\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n")
	if _, err := http.ReadResponse(bufio.NewReader(raw), nil); err != nil {
		t.Fatal(err)
	}
	r.s.Close()
	a.ends()
	raw.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, raw); isTimeout(err) {
		t.Error("a connection without a handshake lives")
	}
	late := r.tls()
	io.WriteString(late, "GET /derp HTTP/1.1\r\nHost: relay\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n")
	late.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, late); isTimeout(err) {
		t.Error("a late connection lives")
	}
}
