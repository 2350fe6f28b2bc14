package underlay

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"time"
)

const (
	upnpWait      = 4 * time.Second  // for answers to a search
	upnpAgain     = time.Second      // search once more after that
	upnpStep      = 4 * time.Second  // one request by HTTP, all told
	upnpWhole     = 20 * time.Second // from search to grant
	upnpLeave     = 2 * time.Second  // to delete a mapping
	upnpLocations = 4                // descriptions of one router that we look at
	upnpConflicts = 3                // other outer ports that we try
	upnpLargest   = 64 << 10         // answer by HTTP
	ssdpLargest   = 2048             // answer to a search
)

var (
	errUPnPSilent  = errors.New("no UPnP gateway")
	errUPnPUseless = errors.New("the router is itself behind a NAT") // or offline
)

// upnpRefusal is a router that answers no.
type upnpRefusal struct {
	action string
	code   int
}

func (e *upnpRefusal) Error() string { return fmt.Sprintf("%s: UPnP error %d", e.action, e.code) }

func refusedWith(err error, codes ...int) bool {
	var no *upnpRefusal
	return errors.As(err, &no) && slices.Contains(codes, no.code)
}

// upnpNet is how UPnP reaches a router. All packets of ours carry our mark.
type upnpNet struct {
	ssdpPort uint16 // of the router
	group    netip.AddrPort
	listen   func(ctx context.Context, local netip.Addr) (net.PacketConn, error)
	dial     func(ctx context.Context, local netip.Addr, to netip.AddrPort) (net.Conn, error)
}

func newUPnPNet(port uint16, group netip.AddrPort, mark int, log *slog.Logger) *upnpNet {
	control := markControl(mark, log)
	return &upnpNet{ssdpPort: port, group: group,
		// Bound to our address toward the router, the kernel also sends what goes
		// to the group that way, and nothing from elsewhere comes in.
		listen: func(ctx context.Context, local netip.Addr) (net.PacketConn, error) {
			lc := net.ListenConfig{Control: control}
			return lc.ListenPacket(ctx, "udp4", netip.AddrPortFrom(local, 0).String())
		},
		dial: func(ctx context.Context, local netip.Addr, to netip.AddrPort) (net.Conn, error) {
			d := net.Dialer{Control: control, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0))}
			return d.DialContext(ctx, "tcp4", to.String())
		}}
}

// upnpMapping is a mapping at a router, or the wish for one.
type upnpMapping struct {
	net    *upnpNet
	router netip.Addr
	local  netip.Addr
	port   uint16 // ours

	service  upnpService
	external netip.AddrPort // valid: the router was asked for it, and did not refuse
	lifetime time.Duration
}

// acquire makes or renews the mapping. After an error other than a refusal,
// external says what the router may have granted nonetheless.
func (m *upnpMapping) acquire(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, upnpWhole)
	defer cancel()
	if m.service != (upnpService{}) {
		// A router that started anew may have its service at another port.
		err := m.grant(ctx)
		var no *upnpRefusal
		if err == nil || errors.Is(err, errUPnPUseless) || errors.As(err, &no) {
			return err
		}
	}
	services, err := m.discover(ctx)
	for _, s := range services {
		m.service = s
		if err = m.grant(ctx); err == nil || m.external.IsValid() {
			return err
		}
	}
	return err
}

// discover asks the router, and only it, for the services that map ports.
func (m *upnpMapping) discover(ctx context.Context) ([]upnpService, error) {
	conn, err := m.net.listen(ctx, m.local)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	now := time.Now()
	again, end := now.Add(upnpAgain), now.Add(upnpWait)
	m.search(conn)
	var seen []string
	b := make([]byte, ssdpLargest)
	for len(seen) < upnpLocations {
		if time.Now().Before(again) {
			err = conn.SetReadDeadline(again)
		} else {
			err = conn.SetReadDeadline(end)
		}
		if err != nil {
			return nil, err
		}
		n, from, err := conn.ReadFrom(b)
		if isTimeout(err) {
			if !time.Now().Before(end) {
				break
			}
			m.search(conn)
			continue
		}
		if err != nil {
			return nil, err
		}
		location, ok := parseSSDP(b[:n], m.router)
		if udp, isUDP := from.(*net.UDPAddr); !ok || !isUDP || udp.AddrPort().Addr().Unmap() != m.router || slices.Contains(seen, location) {
			continue
		}
		seen = append(seen, location)
		if services := m.describe(ctx, location); len(services) > 0 {
			return services, nil
		}
	}
	return nil, errUPnPSilent
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// search sends to the router and to the group: some routers hear only one. All
// of the group are not asked for everything, for they would all answer. Losses
// are made good by the second search.
func (m *upnpMapping) search(conn net.PacketConn) {
	router := net.UDPAddrFromAddrPort(netip.AddrPortFrom(m.router, m.net.ssdpPort))
	_, _ = conn.WriteTo(upnpSearch(ssdpGateway), router)
	_, _ = conn.WriteTo(upnpSearch(ssdpAll), router)
	_, _ = conn.WriteTo(upnpSearch(ssdpGateway), net.UDPAddrFromAddrPort(m.net.group))
}

func (m *upnpMapping) describe(ctx context.Context, location string) []upnpService {
	req, err := http.NewRequest(http.MethodGet, location, nil)
	if err != nil {
		return nil
	}
	status, body, err := m.exchange(ctx, req)
	if err != nil || status != http.StatusOK {
		return nil
	}
	return parseDevice(body, location)
}

// grant asks one service for the mapping.
func (m *upnpMapping) grant(ctx context.Context) error {
	a, err := m.call(ctx, "GetExternalIPAddress")
	if err != nil {
		return err
	}
	if !reachable(a.external) {
		return errUPnPUseless
	}
	port, lease := m.port, mapLifetime
	if m.external.IsValid() {
		port = m.external.Port()
	}
	for conflicts := 0; ; {
		m.external = netip.AddrPortFrom(a.external, port)
		err := m.add(ctx, lease)
		switch {
		case err == nil:
			m.lifetime = mapLifetime // of a permanent one as well: the router may lose it
			return nil
		case refusedWith(err, upnpOnlyPermanent) && lease != 0:
			lease = 0
		case refusedWith(err, upnpConflict, upnpOtherConflict) && conflicts < upnpConflicts:
			conflicts++
			port = uint16(1<<15 + mathrand.N(1<<15))
		default:
			if _, no := err.(*upnpRefusal); no {
				m.external = netip.AddrPort{}
			}
			return err
		}
	}
}

func (m *upnpMapping) add(ctx context.Context, lease time.Duration) error {
	_, err := m.call(ctx, "AddPortMapping",
		upnpArg{"NewRemoteHost", ""},
		upnpArg{"NewExternalPort", strconv.Itoa(int(m.external.Port()))},
		upnpArg{"NewProtocol", "UDP"},
		upnpArg{"NewInternalPort", strconv.Itoa(int(m.port))},
		upnpArg{"NewInternalClient", m.local.String()},
		upnpArg{"NewEnabled", "1"},
		upnpArg{"NewPortMappingDescription", "subnetd"},
		upnpArg{"NewLeaseDuration", strconv.Itoa(int(lease / time.Second))})
	return err
}

// release deletes the mapping.
func (m *upnpMapping) release(ctx context.Context) error {
	_, err := m.call(ctx, "DeletePortMapping",
		upnpArg{"NewRemoteHost", ""},
		upnpArg{"NewExternalPort", strconv.Itoa(int(m.external.Port()))},
		upnpArg{"NewProtocol", "UDP"})
	return err
}

// call does one SOAP action. A router that does not do it is an error.
func (m *upnpMapping) call(ctx context.Context, action string, args ...upnpArg) (upnpAnswer, error) {
	req, err := http.NewRequest(http.MethodPost, m.service.control, bytes.NewReader(upnpCall(m.service.kind, action, args...)))
	if err != nil {
		return upnpAnswer{}, err
	}
	req.Header.Set("Content-Type", `text/xml; charset="utf-8"`)
	// Written as in the specification, for routers that compare it so.
	req.Header["SOAPAction"] = []string{`"` + m.service.kind + "#" + action + `"`}
	status, body, err := m.exchange(ctx, req)
	if err != nil {
		return upnpAnswer{}, fmt.Errorf("%s: %w", action, err)
	}
	a := parseSOAP(body, action)
	switch {
	case a.code != 0 || status == http.StatusInternalServerError || status == http.StatusForbidden || status == http.StatusUnauthorized:
		return upnpAnswer{}, &upnpRefusal{action, a.code}
	case status != http.StatusOK || !a.done:
		return upnpAnswer{}, fmt.Errorf("%s: not understood, HTTP status %d", action, status)
	}
	return a, nil
}

// exchange is one request on a connection of its own to the router, whatever
// the URL says. There is no client of net/http here: it follows redirections,
// and its goroutines would outlive us.
func (m *upnpMapping) exchange(ctx context.Context, req *http.Request) (status int, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, upnpStep)
	defer cancel()
	conn, err := m.net.dial(ctx, m.local, m.addressOf(req.URL))
	if err != nil {
		return 0, nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	req.Close = true
	req.Header.Set("User-Agent", "subnetd UPnP/1.1")
	if err := req.Write(conn); err != nil {
		return 0, nil, err
	}
	limited := io.LimitReader(conn, upnpLargest+1)
	resp, err := http.ReadResponse(bufio.NewReader(limited), req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	if err == nil && limited.(*io.LimitedReader).N == 0 {
		err = errors.New("answer too large")
	}
	return resp.StatusCode, body, err
}

func (m *upnpMapping) addressOf(u *url.URL) netip.AddrPort {
	return netip.AddrPortFrom(m.router, upnpPort(u))
}
