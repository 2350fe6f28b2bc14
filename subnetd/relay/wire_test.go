package relay

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"tailscale.com/derp"
	"tailscale.com/disco"
	"tailscale.com/types/key"
)

// wire is a client of our own that says whatever the test wants.
type wire struct {
	net.Conn
	t    *testing.T
	peer net.Conn // the relay's end
	br   *bufio.Reader
	key  key.NodePrivate
	them key.NodePublic
}

// dialWire connects in memory, and reads the relay's key.
func dialWire(t *testing.T, s *Server, k key.NodePrivate) *wire {
	t.Helper()
	ours, theirs := pipe()
	s.serve(theirs, nil, nil)
	w := &wire{Conn: ours, t: t, peer: theirs, br: bufio.NewReaderSize(ours, 128<<10), key: k}
	typ, body := w.frame()
	if typ != derp.FrameServerKey || len(body) != 40 || string(body[:8]) != derp.Magic {
		t.Fatalf("greeted with %x %x", typ, body)
	}
	w.them = s.public
	return w
}

// joinWire connects and is let in.
func joinWire(t *testing.T, s *Server, k key.NodePrivate) *wire {
	t.Helper()
	w := dialWire(t, s, k)
	w.send(derp.FrameClientInfo, w.info(`{"version":2}`))
	if typ, _ := w.frame(); typ != derp.FrameServerInfo {
		t.Fatalf("got frame %x", typ)
	}
	return w
}

func (w *wire) info(text string) []byte {
	return append(w.key.Public().AppendTo(nil), w.key.SealTo(w.them, []byte(text))...)
}

func (w *wire) send(typ derp.FrameType, body []byte) {
	w.Write(append(appendHeader(nil, typ, len(body)), body...)) // the answer, or the end, is what tests look at
}

func (w *wire) packet(to key.NodePublic, text string) {
	w.send(derp.FrameSendPacket, append(to.AppendTo(nil), text...))
}

// frame reads one frame; 0 if the connection has ended.
func (w *wire) frame() (derp.FrameType, []byte) {
	typ, n, err := derp.ReadFrameHeader(w.br)
	if err != nil {
		return 0, nil
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(w.br, body); err != nil {
		return 0, nil
	}
	return typ, body
}

func (w *wire) expect(typ derp.FrameType, body string) {
	w.t.Helper()
	if gotType, got := w.frame(); gotType != typ || string(got) != body {
		w.t.Fatalf("got frame %x %.60q, want %x %.60q", gotType, got, typ, body)
	}
}

func (w *wire) expectPacket(from key.NodePrivate, text string) {
	w.t.Helper()
	w.expect(derp.FrameRecvPacket, string(from.Public().AppendTo(nil))+text)
}

// skipTo reads until the packet comes. What else there is, is said by others.
func (w *wire) skipTo(from key.NodePrivate, text string) {
	w.t.Helper()
	for {
		typ, body := w.frame()
		if typ == derp.FrameRecvPacket && string(body) == string(from.Public().AppendTo(nil))+text {
			return
		}
		if typ != derp.FrameHealth && typ != derp.FramePeerGone && typ != derp.FrameKeepAlive {
			w.t.Fatalf("got frame %x %.60q, want %q", typ, body, text)
		}
	}
}

// skipNotHere reads until the relay says that it does not know the key.
func (w *wire) skipNotHere(k key.NodePublic) {
	w.t.Helper()
	for {
		typ, body := w.frame()
		if typ == derp.FramePeerGone && string(body) == string(k.AppendTo(nil))+"\x01" {
			return
		}
		if typ != derp.FrameHealth && typ != derp.FramePeerGone && typ != derp.FrameKeepAlive {
			w.t.Fatalf("got frame %x %.60q", typ, body)
		}
	}
}

func pipe() (ours, theirs net.Conn) { return net.Pipe() }

// endsSoon reads what there is, up to the end.
func (w *wire) endsSoon() {
	for typ := derp.FrameType(1); typ != 0; typ, _ = w.frame() {
	}
}

func (w *wire) ended() {
	w.t.Helper()
	if typ, body := w.frame(); typ != 0 {
		w.t.Fatalf("got frame %x %.60q, want the end", typ, body)
	}
}

func TestHandshake(t *testing.T) {
	k := key.NewNode()
	long := `{"version":2,"AppName":"` + strings.Repeat("x", maxInfo) + `"}`
	for _, tt := range []struct {
		name string
		do   func(w *wire)
		in   bool
	}{
		{"as it should be", func(w *wire) { w.send(derp.FrameClientInfo, w.info(`{"version":2,"CanAckPings":true}`)) }, true},
		{"from the future", func(w *wire) { w.send(derp.FrameClientInfo, w.info(`{"version":3,"New":[{}]}`)) }, true},
		{"too old", func(w *wire) { w.send(derp.FrameClientInfo, w.info(`{"version":1}`)) }, false},
		{"no version", func(w *wire) { w.send(derp.FrameClientInfo, w.info(`{}`)) }, false},
		{"no JSON", func(w *wire) { w.send(derp.FrameClientInfo, w.info(`hello`)) }, false},
		{"another key", func(w *wire) {
			b := w.info(`{"version":2}`)
			copy(b, key.NewNode().Public().AppendTo(nil))
			w.send(derp.FrameClientInfo, b)
		}, false},
		{"no key", func(w *wire) {
			b := w.info(`{"version":2}`)
			clear(b[:32])
			w.send(derp.FrameClientInfo, b)
		}, false},
		{"too short", func(w *wire) { w.send(derp.FrameClientInfo, make([]byte, 55)) }, false},
		{"too long", func(w *wire) { w.send(derp.FrameClientInfo, w.info(long)) }, false},
		{"much too long", func(w *wire) { w.Write(appendHeader(nil, derp.FrameClientInfo, 1<<30)) }, false},
		{"another frame", func(w *wire) { w.send(derp.FramePing, make([]byte, 8)) }, false},
		{"garbage", func(w *wire) { w.Write(bytes.Repeat([]byte("garbage"), 20)) }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			noLeak(t)
			s := newServer(t, Config{})
			defer s.Close()
			w := dialWire(t, s, k)
			defer w.Close()
			w.SetReadDeadline(time.Now().Add(patience))
			go tt.do(w)
			typ, body := w.frame()
			if in := typ == derp.FrameServerInfo; in != tt.in {
				t.Fatalf("got frame %x", typ)
			}
			if !tt.in {
				return
			}
			text, ok := k.OpenFrom(s.public, body)
			var info derp.ServerInfo
			if err := json.Unmarshal(text, &info); !ok || err != nil || info.Version != derp.ProtocolVersion {
				t.Errorf("server info %q, %v", text, err)
			}
		})
	}
}

// Frames that no client sends end the connection; those that none knows yet do not.
func TestFrames(t *testing.T) {
	for _, tt := range []struct {
		name  string
		typ   derp.FrameType
		size  int
		stays bool
	}{
		{"unknown", 0x77, 5000, true},
		{"unknown and empty", 0x77, 0, true},
		{"unknown and endless", 0x77, maxIgnored + 1, false},
		{"pong", derp.FramePong, 8, true},
		{"keep-alive", derp.FrameKeepAlive, 0, true},
		{"longer ping", derp.FramePing, 1000, true},
		{"short ping", derp.FramePing, 7, false},
		{"too long a ping", derp.FramePing, 1001, false},
		{"preference", derp.FrameNotePreferred, 1, true},
		{"long preference", derp.FrameNotePreferred, 2, false},
		{"packet without destination", derp.FrameSendPacket, 31, false},
		{"packet too long", derp.FrameSendPacket, 32 + derp.MaxPacketSize + 1, false},
		{"forward", derp.FrameForwardPacket, 64, false},
		{"watch", derp.FrameWatchConns, 0, false},
		{"close peer", derp.FrameClosePeer, 32, false},
		{"endless", derp.FrameSendPacket, 1<<31 - 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			noLeak(t)
			s := newServer(t, Config{})
			defer s.Close()
			w := joinWire(t, s, key.NewNode())
			defer w.Close()
			w.SetDeadline(time.Now().Add(patience))
			go func() {
				if tt.size < 1<<30 {
					w.send(tt.typ, make([]byte, tt.size))
				} else {
					w.Write(appendHeader(nil, tt.typ, tt.size))
				}
				w.send(derp.FramePing, []byte("pingpong"))
			}()
			for {
				typ, body := w.frame()
				if typ == 0 {
					if tt.stays {
						t.Error("the connection has ended")
					}
					return
				}
				if typ == derp.FramePong && string(body) == "pingpong" {
					if !tt.stays {
						t.Error("the connection lives")
					}
					return
				}
			}
		})
	}
}

func TestHTTP(t *testing.T) {
	s := newServer(t, Config{})
	for _, tt := range []struct {
		method, path, upgrade string
		status                int
	}{
		{"GET", "/derp/probe", "", 200},
		{"HEAD", "/derp/probe", "", 200},
		{"GET", "/derp/latency-check", "", 200},
		{"POST", "/derp/latency-check", "", 405},
		{"GET", "/derp", "", 426},
		{"GET", "/derp", "websocket", 426},
		{"GET", "/derp", "DERP", 505}, // the recorder's connection cannot be taken over
		{"GET", "/derp/other", "", 404},
	} {
		q := httptest.NewRequest(tt.method, tt.path, nil)
		if tt.upgrade != "" {
			q.Header.Set("Upgrade", tt.upgrade)
		}
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, q)
		if w.Code != tt.status {
			t.Errorf("%s %s %s: got %d, want %d", tt.method, tt.path, tt.upgrade, w.Code, tt.status)
		}
		if tt.status == 200 && w.Header().Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s: browsers may not ask", tt.path)
		}
	}
	r := start(t, Config{})
	conn := r.tls()
	fmt.Fprint(conn, "GET /derp HTTP/1.1\r\nHost: a\r\nUpgrade: derp\r\nConnection: upgrade\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != 101 || res.Header.Get("Derp-Version") != "2" || res.Header.Get("Derp-Public-Key") != fmt.Sprintf("%x", r.s.public.AppendTo(nil)) {
		t.Errorf("got %s %v", res.Status, res.Header)
	}
}

func TestLooksDisco(t *testing.T) {
	for _, n := range []int{0, 5, 6, 61, 62, 63, 200} {
		for _, magic := range []string{disco.Magic, "TS\xf0\x9f\x92\xad", "\x04\x00\x00\x00ab"} {
			b := []byte(magic + strings.Repeat("x", 200))[:n]
			if got, want := looksDisco(b), disco.LooksLikeDiscoWrapper(b); got != want {
				t.Errorf("%q: got %t, want %t", b, got, want)
			}
		}
	}
}
