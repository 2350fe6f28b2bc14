package front

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"mime"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"subnetd/subnetd/host"
)

const (
	dialTimeout = 5 * time.Second
	wayIdle     = 30 * time.Second // that a connection to a device is kept for the next request
	waysKept    = 8                // for each device
)

// transport reaches devices. One that speaks TLS itself has a certificate that nobody
// vouches for: it is not looked at, and what is between it and us is the home's LAN, as
// with one that does not.
func (s *Server) transport() *http.Transport {
	return &http.Transport{
		DialContext: s.dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see above
		TLSHandshakeTimeout: dialTimeout, IdleConnTimeout: wayIdle, MaxIdleConnsPerHost: waysKept,
		DisableCompression: true, // what the browser and the device agree on passes
	}
}

var errGone = errors.New("it is not served any more")

// dial reaches a device, named as rewrite does, where it is now.
func (s *Server) dial(ctx context.Context, network, name string) (net.Conn, error) {
	full, _, _ := net.SplitHostPort(name)
	sites := s.now.Load().Sites
	i := slices.IndexFunc(sites, func(x Site) bool { return x.Names[0] == full })
	if i < 0 {
		return nil, errGone
	}
	err := errGone
	for _, m := range sites[i].Maps {
		var c net.Conn
		d := net.Dialer{Timeout: dialTimeout}
		if c, err = d.DialContext(ctx, network, net.JoinHostPort(m.LAN.String(), strconv.Itoa(int(sites[i].Port)))); err == nil {
			return c, nil
		}
	}
	return nil, err
}

// rewrite makes the request to a device of one that came. Of what tells who calls and by
// which way nothing is taken over from outside: hop-by-hop headers, which may name any
// other, are gone by now.
func (s *Server) rewrite(p *httputil.ProxyRequest) {
	c := p.In.Context().Value(contextKey{}).(*conn)
	p.Out.URL.Scheme = c.site.Scheme
	p.Out.URL.Host = net.JoinHostPort(c.site.Names[0], strconv.Itoa(int(c.site.Port)))
	for name := range p.Out.Header {
		if reserved(name) {
			delete(p.Out.Header, name)
		}
	}
	p.Out.Trailer = nil
	p.Out.Header.Set("X-Forwarded-For", c.from.String())
	p.Out.Header.Set("X-Forwarded-Host", p.In.Host)
	p.Out.Header.Set("X-Forwarded-Proto", "http")
	if c.secure {
		p.Out.Header.Set("X-Forwarded-Proto", "https")
	}
	if who, ok := s.cfg.Who(c.from); ok && c.site.called(hostOf(p.In)) {
		p.Out.Header.Set("Tailscale-User-Login", encoded(who.Login))
		p.Out.Header.Set("Tailscale-User-Name", encoded(cmp.Or(who.Name, who.Login)))
		p.Out.Header.Set("Tailscale-User-Profile-Pic", encoded(who.Picture))
		p.Out.Header.Set("Tailscale-Headers-Info", "https://tailscale.com/s/serve-headers")
	}
}

// called reports whether a device has that name. Who calls is not told to one that a
// browser was led to by a name of somebody else, whose page it is then (DNS rebinding).
func (s *Site) called(name string) bool {
	a, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return slices.Contains(s.Names, name) ||
		slices.ContainsFunc(s.Names, func(full string) bool { return strings.HasPrefix(full, name+".") && !strings.Contains(name, ".") }) ||
		err == nil && slices.ContainsFunc(s.Maps, func(m host.DeviceMap) bool { return m.Mesh == a || m.LAN == a })
}

// reserved reports whether a header is ours to set. Many take _ for - (CGI, RFC 3875,
// 4.1.18).
func reserved(name string) bool {
	name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	return strings.HasPrefix(name, "tailscale-") || strings.HasPrefix(name, "x-forwarded-") ||
		slices.Contains([]string{"forwarded", "x-real-ip", "x-client-ip", "true-client-ip"}, name)
}

// encoded is a text as it may stand in a header (RFC 2047), as `tailscale serve` has it.
func encoded(s string) string {
	if !utf8.ValidString(s) {
		return ""
	}
	return mime.QEncoding.Encode("utf-8", s)
}

// silent answers for a device that does not.
func (s *Server) silent(w http.ResponseWriter, r *http.Request, err error) {
	c := r.Context().Value(contextKey{}).(*conn)
	s.cfg.Log.Debug("a device does not answer", "device", c.site.Names[0], "err", err)
	http.Error(w, c.site.Names[0]+" does not answer at its port "+strconv.Itoa(int(c.site.Port))+".", http.StatusBadGateway)
}

// buffers is a pool of them (httputil.BufferPool).
type buffers struct{ sync.Pool }

const bufferSize = 32 << 10 // bytes

func (b *buffers) Get() []byte {
	if have, ok := b.Pool.Get().(*[bufferSize]byte); ok {
		return have[:]
	}
	return new([bufferSize]byte)[:]
}

func (b *buffers) Put(have []byte) { b.Pool.Put((*[bufferSize]byte)(have)) }
