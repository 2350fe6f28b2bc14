package netns

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"tailscale.com/control/controlbase"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// Still is a coordinator that admits whoever comes and tells each the same netmap, which never changes: for meshes larger
// than a real coordinator on this machine fills in the time of a test. It speaks plain HTTP.
type Still struct {
	URL string

	noise key.MachinePrivate
	peers []*tailcfg.Node
	derp  *tailcfg.DERPMap

	mu     sync.Mutex
	joined key.NodePublic // who came last
}

// Joined is the key of the node that came last.
func (s *Still) Joined() key.NodePublic {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.joined
}

// Still serves at port 80 of a host until the test ends. Who comes gets the address self; everybody may reach everything.
func (l *Lab) Still(h *Host, self netip.Addr, peers []*tailcfg.Node, derp *tailcfg.DERPMap) *Still {
	l.t.Helper()
	s := &Still{URL: "http://" + h.Addr4.String(), noise: key.NewMachine(), peers: peers, derp: derp}
	ln, err := h.Listen("[::]:80")
	if err != nil {
		l.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /key", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(tailcfg.OverTLSPublicKeyResponse{PublicKey: s.noise.Public()})
	})
	mux.HandleFunc("POST /ts2021", func(w http.ResponseWriter, r *http.Request) { s.upgrade(w, r, self) })
	web := &http.Server{Handler: mux, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { _ = web.Serve(ln) }()
	l.t.Cleanup(func() { _ = web.Close() })
	return s
}

// upgrade speaks HTTP/2 within Noise until the client leaves.
func (s *Still) upgrade(w http.ResponseWriter, r *http.Request, self netip.Addr) {
	hello, err := base64.StdEncoding.DecodeString(r.Header.Get("X-Tailscale-Handshake"))
	if err != nil {
		http.Error(w, "no handshake", http.StatusBadRequest)
		return
	}
	raw, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return // the server is closing
	}
	defer raw.Close()
	_, _ = io.WriteString(raw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\n")
	conn, err := controlbase.Server(context.Background(), raw, s.noise, hello)
	if err != nil {
		return // a stranger
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /machine/register", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(tailcfg.RegisterResponse{MachineAuthorized: true})
	})
	mux.HandleFunc("POST /machine/map", func(w http.ResponseWriter, r *http.Request) { s.serveMap(w, r, self) })
	one := &single{conn: make(chan net.Conn, 1), done: make(chan struct{})}
	one.conn <- conn
	web := &http.Server{Handler: mux, Protocols: new(http.Protocols), ErrorLog: log.New(io.Discard, "", 0),
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateClosed {
				_ = one.Close()
			}
		}}
	web.Protocols.SetUnencryptedHTTP2(true)
	_ = web.Serve(one)
}

// serveMap tells the netmap once and keeps the stream alive.
func (s *Still) serveMap(w http.ResponseWriter, r *http.Request, self netip.Addr) {
	var req tailcfg.MapRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil || !req.Stream {
		return
	}
	s.mu.Lock()
	s.joined = req.NodeKey
	s.mu.Unlock()
	own := []netip.Prefix{netip.PrefixFrom(self, self.BitLen())}
	say := func(m *tailcfg.MapResponse) {
		_, _ = w.Write(frame(m, req.Compress))
		w.(http.Flusher).Flush()
	}
	say(&tailcfg.MapResponse{Peers: s.peers, DERPMap: s.derp, Domain: "still.test",
		Node: &tailcfg.Node{ID: 1, StableID: "1", Name: "home.still.test.", Key: req.NodeKey, DiscoKey: req.DiscoKey,
			Addresses: own, AllowedIPs: own, MachineAuthorized: true},
		PacketFilters: map[string][]tailcfg.FilterRule{"base": {{SrcIPs: []string{"*"},
			DstPorts: []tailcfg.NetPortRange{{IP: "*", Ports: tailcfg.PortRangeAny}}}}}})
	for {
		select {
		case <-r.Context().Done():
			return
		case <-time.After(50 * time.Second):
			say(&tailcfg.MapResponse{KeepAlive: true})
		}
	}
}

// frame is a map frame: its length and JSON, packed if the client asks for it.
func frame(m *tailcfg.MapResponse, packing string) []byte {
	text, err := json.Marshal(m)
	if err != nil {
		panic(err) // of a type made for it
	}
	if packing == "zstd" {
		text = packed(text)
	}
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(text))), text...)
}

func packed(text []byte) []byte {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(128<<10))
	if err != nil {
		panic(err) // the options are constant
	}
	defer z.Close()
	return z.EncodeAll(text, nil)
}

// single is a listener with one connection.
type single struct {
	conn chan net.Conn
	done chan struct{}
	once sync.Once
}

func (l *single) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *single) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *single) Addr() net.Addr { return &net.TCPAddr{} }
