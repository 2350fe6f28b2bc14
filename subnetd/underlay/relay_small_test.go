//go:build !derpserver

package underlay

import (
	"bufio"
	"context"
	"io"
	"sync"

	"tailscale.com/derp"
	"tailscale.com/types/key"

	"go4.org/mem"
)

// smallRelay is the least that is a relay, on the frames of package derp; our
// side of the connection is stock code. The tag derpserver puts the stock
// relay in its place.
type smallRelay struct {
	key key.NodePrivate

	mu      sync.Mutex // guards all below, and writes to clients
	closed  bool
	conns   map[io.Closer]bool
	clients map[key.NodePublic]*bufio.Writer
}

func newRelayBackend() relayBackend {
	return &smallRelay{key: key.NewNode(), conns: map[io.Closer]bool{}, clients: map[key.NodePublic]*bufio.Writer{}}
}

func (s *smallRelay) IsClientConnectedForTest(k key.NodePublic) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clients[k] != nil
}

func (s *smallRelay) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.conns {
		c.Close()
	}
	return nil
}

func (s *smallRelay) Accept(_ context.Context, conn derp.Conn, brw *bufio.ReadWriter, _ string) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		conn.Close()
		return
	}
	s.conns[conn] = true
	s.mu.Unlock()
	who, err := s.greet(brw)
	if err == nil {
		err = s.serve(who, brw.Reader)
	}
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
	if s.clients[who] == brw.Writer {
		delete(s.clients, who)
	}
}

func (s *smallRelay) greet(brw *bufio.ReadWriter) (who key.NodePublic, err error) {
	hello := s.key.Public().AppendTo([]byte(derp.Magic))
	if err := derp.WriteFrame(brw.Writer, derp.FrameServerKey, hello); err != nil {
		return who, err
	}
	t, b, err := readFrame(brw.Reader)
	if err != nil || t != derp.FrameClientInfo || len(b) < 32 {
		return who, io.ErrUnexpectedEOF
	}
	who = key.NodePublicFromRaw32(mem.B(b[:32]))
	if _, ok := s.key.OpenFrom(who, b[32:]); !ok {
		return who, io.ErrUnexpectedEOF
	}
	info := s.key.SealTo(who, []byte(`{"version":2}`))
	if err := derp.WriteFrame(brw.Writer, derp.FrameServerInfo, info); err != nil {
		return who, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients[who] = brw.Writer
	return who, nil
}

func (s *smallRelay) serve(who key.NodePublic, br *bufio.Reader) error {
	for {
		t, b, err := readFrame(br)
		if err != nil {
			return err
		}
		if t == derp.FrameSendPacket && len(b) >= 32 {
			s.forward(who, key.NodePublicFromRaw32(mem.B(b[:32])), b[32:])
		}
	}
}

// forward sends a packet on, or tells its sender that there is nobody.
func (s *smallRelay) forward(from, to key.NodePublic, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.clients[to]; w != nil {
		_ = derp.WriteFrame(w, derp.FrameRecvPacket, append(from.AppendTo(nil), b...))
		return
	}
	gone := append(to.AppendTo(nil), byte(derp.PeerGoneReasonNotHere))
	_ = derp.WriteFrame(s.clients[from], derp.FramePeerGone, gone)
}

func readFrame(br *bufio.Reader) (derp.FrameType, []byte, error) {
	t, n, err := derp.ReadFrameHeader(br)
	if err != nil {
		return 0, nil, err
	}
	b := make([]byte, n)
	_, err = io.ReadFull(br, b)
	return t, b, err
}
