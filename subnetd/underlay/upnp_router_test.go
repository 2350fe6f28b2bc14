package underlay

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// igdRouter is a router that maps ports by UPnP, written from the
// specifications and not with our codec.
type igdRouter struct {
	mu            sync.Mutex     // guards all below
	at            netip.AddrPort // of its description
	device        string
	kind          string // of its service
	outer         string
	permanentOnly bool
	taken         int // so many requests meet a port that another has
	refuse        int // error of AddPortMapping
	silent        bool
	deaf          bool              // it describes itself, but does nothing that it is asked
	lose          bool              // it does what it is asked, but the answer to AddPortMapping never comes
	page          string            // in place of its description
	padding       string            // after it
	location      string            // in place of its own
	mapped        map[string]string // outer port: client, inner port and lease

	asked chan string
}

func newIGD(setup func(*igdRouter)) *igdRouter {
	r := &igdRouter{kind: kindIP1, outer: "203.0.113.7", mapped: map[string]string{}, asked: make(chan string, 1000)}
	setup(r)
	if r.device == "" {
		r.device = device(service(r.kind, "/ctl"))
	}
	return r
}

func (r *igdRouter) set(change func(*igdRouter)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(r)
}

// requests are those since the last call.
func (r *igdRouter) requests() []string {
	var all []string
	for len(r.asked) > 0 {
		all = append(all, <-r.asked)
	}
	return all
}

func (r *igdRouter) mappings() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := map[string]string{}
	for k, v := range r.mapped {
		all[k] = v
	}
	return all
}

// search answers one datagram; nil: not at all.
func (r *igdRouter) search(b []byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
	if err != nil || req.Method != "M-SEARCH" || req.Header.Get("MAN") != `"ssdp:discover"` {
		r.asked <- fmt.Sprintf("garbage %q", b)
		return nil
	}
	r.asked <- "search"
	if r.silent {
		return nil
	}
	location := r.location
	if location == "" {
		location = "http://" + r.at.String() + "/desc.xml"
	}
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nST: %s\r\nEXT:\r\nLOCATION: %s\r\n\r\n", req.Header.Get("ST"), location)
}

func (r *igdRouter) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(req.Body)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case req.URL.Path == "/moved":
		w.Header().Set("Location", "/desc.xml")
		w.WriteHeader(http.StatusFound)
		io.WriteString(w, r.device)
	case req.Method == http.MethodGet:
		r.asked <- "describe"
		io.WriteString(w, r.page+r.device+r.padding)
	case r.deaf:
		panic(http.ErrAbortHandler)
	default:
		r.act(w, req.Header.Get("SOAPAction"), string(body))
	}
}

var soapArg = regexp.MustCompile(`<(New\w+)>([^<]*)</`)

func (r *igdRouter) act(w http.ResponseWriter, soapAction, body string) {
	kind, action, _ := strings.Cut(strings.Trim(soapAction, `"`), "#")
	arg := map[string]string{}
	for _, m := range soapArg.FindAllStringSubmatch(body, -1) {
		arg[m[1]] = m[2]
	}
	port, lease := arg["NewExternalPort"], arg["NewLeaseDuration"]
	r.asked <- strings.TrimSpace(action + " " + port + " " + lease)
	code, out := 0, ""
	switch {
	case kind != r.kind || !strings.Contains(body, "<u:"+action+" xmlns:u=\""+kind+"\">"):
		code = 401
	case action == "GetExternalIPAddress":
		out = "<NewExternalIPAddress>" + r.outer + "</NewExternalIPAddress>"
	case arg["NewProtocol"] != "UDP":
		code = 402
	case action == "DeletePortMapping":
		delete(r.mapped, port)
	case action != "AddPortMapping" || arg["NewEnabled"] != "1" || arg["NewPortMappingDescription"] != "subnetd":
		code = 402
	case r.refuse != 0:
		code = r.refuse
	case r.permanentOnly && lease != "0":
		code = 725
	case r.taken > 0:
		r.taken--
		code = 718
	default:
		r.mapped[port] = arg["NewInternalClient"] + " " + arg["NewInternalPort"] + " " + lease
	}
	if code != 0 {
		w.WriteHeader(http.StatusInternalServerError)
		io.WriteString(w, fault(fmt.Sprint(code)))
		return
	}
	io.WriteString(w, envelope(fmt.Sprintf("<u:%sResponse xmlns:u=%q>%s</u:%sResponse>", action, kind, out, action)))
}

// listen serves the router on loopback until the test ends, and says where
// searches go.
func (r *igdRouter) listen(t *testing.T) uint16 { return r.listenAt(t, loopback) }

// listenAt is the same with searches answered from another address.
func (r *igdRouter) listenAt(t *testing.T, search netip.Addr) uint16 {
	t.Helper()
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	r.set(func(r *igdRouter) { r.at = server.Listener.Addr().(*net.TCPAddr).AddrPort() })
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(search, 0)))
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
			if out := r.search(b[:n]); out != nil {
				_, _ = conn.WriteToUDPAddrPort(out, from)
			}
		}
	})
	t.Cleanup(func() { conn.Close(); wg.Wait() })
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

// memory is a network of this router only, for bubbles of fake time.
func (r *igdRouter) memory() *upnpNet {
	r.at = netip.AddrPortFrom(router1, 5000)
	return &upnpNet{ssdpPort: ssdpPort, group: netip.MustParseAddrPort("239.255.255.250:1900"),
		listen: func(context.Context, netip.Addr) (net.PacketConn, error) {
			return &memSearch{router: r, in: make(chan []byte, 100), closed: make(chan struct{})}, nil
		},
		dial: func(_ context.Context, _ netip.Addr, to netip.AddrPort) (net.Conn, error) {
			if to != r.at {
				return nil, errNoRouter
			}
			near, far := net.Pipe()
			go r.serve(far)
			return near, nil
		}}
}

// serve answers one request.
func (r *igdRouter) serve(conn net.Conn) {
	defer conn.Close()
	req, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return
	}
	r.mu.Lock()
	deaf := r.deaf || r.silent
	r.mu.Unlock()
	if deaf { // the body stays unread, so that the other side waits
		_, _ = io.Copy(io.Discard, conn)
		return
	}
	w := httptest.NewRecorder()
	r.ServeHTTP(w, req)
	r.mu.Lock()
	lost := r.lose && strings.Contains(req.Header.Get("SOAPAction"), "#Add")
	r.mu.Unlock()
	if lost {
		_, _ = io.Copy(io.Discard, conn)
		return
	}
	_ = w.Result().Write(conn)
}

// memSearch is a socket on which a search is answered at once.
type memSearch struct {
	router *igdRouter
	in     chan []byte
	closed chan struct{}
	once   sync.Once
	until  time.Time // only the reader sets it
}

func (s *memSearch) WriteTo(b []byte, to net.Addr) (int, error) {
	if to.(*net.UDPAddr).AddrPort().Addr() == router1 {
		if out := s.router.search(b); out != nil {
			s.in <- out
		}
	}
	return len(b), nil
}

func (s *memSearch) ReadFrom(b []byte) (int, net.Addr, error) {
	timeout := time.NewTimer(time.Until(s.until))
	defer timeout.Stop()
	select {
	case in := <-s.in:
		return copy(b, in), &net.UDPAddr{IP: router1.AsSlice(), Port: 1900}, nil
	case <-timeout.C:
		return 0, nil, os.ErrDeadlineExceeded
	case <-s.closed:
		return 0, nil, net.ErrClosed
	}
}

func (s *memSearch) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *memSearch) SetReadDeadline(t time.Time) error { s.until = t; return nil }
func (s *memSearch) SetDeadline(time.Time) error       { return os.ErrNoDeadline }
func (s *memSearch) SetWriteDeadline(time.Time) error  { return os.ErrNoDeadline }
func (s *memSearch) LocalAddr() net.Addr               { return &net.UDPAddr{} }
