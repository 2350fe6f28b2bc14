package relay

import (
	"bytes"
	"io"
	"testing"
	"time"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

// FuzzFrames: whatever a member sends, the relay outlives it, says nothing that
// is no frame, and other members only get packets that were sent to them.
func FuzzFrames(f *testing.F) {
	s := newServer(f, Config{})
	f.Cleanup(s.Close)
	there := &seat{key: key.NewNode().Public()}
	to := &client{s: s, key: there.key, seat: there}
	to.out.init(&s.budget)
	there.active.Store(to)
	there.conns = []*client{to}
	s.seats[there.key] = there
	packet := func(k key.NodePublic, text string) []byte {
		b := k.AppendTo(appendHeader(nil, derp.FrameSendPacket, derp.KeyLen+len(text)))
		return append(b, text...)
	}
	ping := append(appendHeader(nil, derp.FramePing, 8), "12345678"...)
	f.Add([]byte{})
	f.Add(ping)
	f.Add(packet(there.key, "hello"))
	f.Add(append(packet(key.NewNode().Public(), "hello"), packet(there.key, discoMagic+string(make([]byte, 100)))...))
	f.Add(append(append(appendHeader(nil, derp.FrameNotePreferred, 1), 1), ping...))
	f.Add(appendHeader(nil, derp.FrameSendPacket, 1<<31-1))
	f.Add(append(appendHeader(nil, 0x77, 3), "abc\x04\x00\x00\x00\x00"...))
	k := key.NewNode()
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := pipe()
		s.serve(theirs, nil, nil)
		ours.SetDeadline(time.Now().Add(patience))
		go func() {
			info := append(k.Public().AppendTo(nil), k.SealTo(s.public, []byte(`{"version":2}`))...)
			ours.Write(append(appendHeader(nil, derp.FrameClientInfo, len(info)), info...))
			ours.Write(data)
			time.AfterFunc(time.Millisecond, func() { ours.Close() })
		}()
		said, err := io.ReadAll(ours)
		if isTimeout(err) {
			t.Fatal("the connection hangs")
		}
		until(t, "the connection's end", func() bool { return s.openNow() == 0 })
		frames(t, said)
		_, batch, _ := to.out.take(nil, nil)
		for _, p := range batch {
			want := packet(there.key, string(p.frame[recvHeader:]))
			if p.frame[0] != byte(derp.FrameRecvPacket) || !bytes.Contains(data, want) {
				t.Fatalf("got %x, which was not sent", p.frame)
			}
		}
	})
}

// frames checks that b is whole frames, but for the last, and begins with the greeting.
func frames(t *testing.T, b []byte) {
	known := []derp.FrameType{derp.FrameServerKey, derp.FrameServerInfo, derp.FramePong, derp.FramePeerGone, derp.FrameRecvPacket}
	for i := 0; len(b) >= derp.FrameHeaderLen; i++ {
		typ, n := derp.FrameType(b[0]), int(uint32(b[1])<<24|uint32(b[2])<<16|uint32(b[3])<<8|uint32(b[4]))
		if n > recvHeader+derp.MaxPacketSize || i < 2 && typ != known[i] || !bytes.ContainsRune([]byte("\x01\x03\x13\x08\x05"), rune(typ)) {
			t.Fatalf("frame %d: type %x, %d bytes", i, typ, n)
		}
		b = b[min(len(b), derp.FrameHeaderLen+n):]
	}
}

// FuzzInfo: whatever a stranger sends first, he is nobody.
func FuzzInfo(f *testing.F) {
	s := newServer(f, Config{})
	f.Cleanup(s.Close)
	k := key.NewNode()
	info := append(k.Public().AppendTo(nil), k.SealTo(key.NewNode().Public(), []byte(`{"version":2}`))...)
	f.Add(append(appendHeader(nil, derp.FrameClientInfo, len(info)), info...))
	f.Add(make([]byte, 200))
	f.Add(append(appendHeader(nil, derp.FrameClientInfo, 100), make([]byte, 100)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := pipe()
		s.serve(theirs, nil, nil)
		ours.SetDeadline(time.Now().Add(patience))
		go func() {
			ours.Write(data)
			time.AfterFunc(time.Millisecond, func() { ours.Close() })
		}()
		said, err := io.ReadAll(ours)
		if isTimeout(err) || len(said) != derp.FrameHeaderLen+8+derp.KeyLen {
			t.Fatalf("told %x, %v", said, err)
		}
	})
}
