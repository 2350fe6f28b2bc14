package front

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"maps"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
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
		DialContext: s.dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		TLSHandshakeTimeout: dialTimeout, IdleConnTimeout: wayIdle, MaxIdleConnsPerHost: waysKept,
		DisableCompression: true, // what the browser and the device agree on passes
	}
}

var errGone = errors.New("it is not served any more")

// dial reaches a device, named as outgoing does, where it is now.
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
		s.asks(m.LAN)
		d := net.Dialer{Timeout: dialTimeout}
		if c, err = d.DialContext(ctx, network, net.JoinHostPort(m.LAN.String(), strconv.Itoa(int(sites[i].Port)))); err == nil {
			return c, nil
		}
	}
	return nil, err
}

// ask has a device answer a request.
func (s *Server) ask(w http.ResponseWriter, r *http.Request, c *conn) {
	out := s.outgoing(r, c)
	if out.Body != nil { // the transport may still read it when it has an answer
		defer out.Body.Close()
	}
	res, err := s.ways.RoundTrip(out)
	if err != nil {
		s.cfg.Log.Debug("a device does not answer", "device", c.site.Names[0], "err", err)
		http.Error(w, c.site.Names[0]+" does not answer at its port "+strconv.Itoa(int(c.site.Port))+".", http.StatusBadGateway)
		return
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusSwitchingProtocols {
		s.join(w, out, res)
		return
	}
	hop(res.Header)
	h := w.Header()
	maps.Copy(h, res.Header)
	for name := range res.Trailer {
		h.Add("Trailer", name)
	}
	w.WriteHeader(res.StatusCode)
	if err := s.pass(w, res); err != nil {
		panic(http.ErrAbortHandler) // half an answer shall not look like a whole one
	}
	maps.Copy(h, res.Trailer)
}

// outgoing makes the request to a device of one that came. Of what tells who calls and by
// which way nothing is taken over from outside.
func (s *Server) outgoing(r *http.Request, c *conn) *http.Request {
	to := *r.URL
	to.Scheme, to.Host = c.site.Scheme, net.JoinHostPort(c.site.Names[0], strconv.Itoa(int(c.site.Port)))
	h := r.Header.Clone()
	upgrade := upgradeOf(h)
	hop(h)
	for name := range h {
		if reserved(name) {
			delete(h, name)
		}
	}
	if upgrade != "" {
		h.Set("Connection", "Upgrade")
		h.Set("Upgrade", upgrade)
	}
	if _, ok := h["User-Agent"]; !ok {
		h.Set("User-Agent", "") // else it would be ours
	}
	h.Set("X-Forwarded-For", c.from.String())
	h.Set("X-Forwarded-Host", r.Host)
	h.Set("X-Forwarded-Proto", "http")
	if c.secure {
		h.Set("X-Forwarded-Proto", "https")
	}
	if who, ok := s.cfg.Who(c.from); ok && c.site.called(hostOf(r)) {
		h.Set("Tailscale-User-Login", encoded(who.Login))
		h.Set("Tailscale-User-Name", encoded(cmp.Or(who.Name, who.Login)))
		h.Set("Tailscale-User-Profile-Pic", encoded(who.Picture))
		h.Set("Tailscale-Headers-Info", "https://tailscale.com/s/serve-headers")
	}
	out := &http.Request{Method: r.Method, URL: &to, Host: r.Host, Header: h, Body: r.Body, ContentLength: r.ContentLength}
	if r.ContentLength == 0 {
		out.Body = nil
	}
	return out.WithContext(r.Context())
}

// hop takes out what is for one connection only: RFC 9110, 7.6.1.
func hop(h http.Header) {
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range [...]string{"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade"} {
		delete(h, name)
	}
}

// upgradeOf is the protocol that a connection is to change to; "": none.
func upgradeOf(h http.Header) string {
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			if strings.EqualFold(strings.TrimSpace(name), "upgrade") {
				return h.Get("Upgrade")
			}
		}
	}
	return ""
}

// pass sends on what a device answers. Of what has no length each piece goes at once: it
// may be all for a while.
func (s *Server) pass(w http.ResponseWriter, res *http.Response) error {
	live := res.ContentLength < 0
	rc := http.NewResponseController(w)
	if live {
		_ = rc.Flush()
	}
	buf, ok := s.buffers.Get().(*[bufferSize]byte)
	if !ok {
		buf = new([bufferSize]byte)
	}
	defer s.buffers.Put(buf)
	for {
		n, err := res.Body.Read(buf[:])
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
			if live {
				_ = rc.Flush()
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// bufferSize is in bytes.
const bufferSize = 32 << 10

// join makes one connection of two, for a protocol that both have agreed on.
func (s *Server) join(w http.ResponseWriter, out *http.Request, res *http.Response) {
	back, ok := res.Body.(io.ReadWriteCloser)
	if !ok || !strings.EqualFold(upgradeOf(res.Header), upgradeOf(out.Header)) {
		http.Error(w, "the device speaks another protocol than was asked for", http.StatusBadGateway)
		return
	}
	front, both, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "this connection cannot change its protocol", http.StatusBadGateway)
		return
	}
	_ = front.SetDeadline(time.Time{})
	_, _ = both.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	_ = res.Header.Write(both)
	_, _ = both.WriteString("\r\n")
	err = both.Flush()
	ended := make(chan struct{}, 2)
	if err == nil {
		go func() {
			_, _ = io.Copy(back, both.Reader)
			ended <- struct{}{}
		}()
		go func() {
			_, _ = io.Copy(front, back)
			ended <- struct{}{}
		}()
		<-ended
	}
	_, _ = front.Close(), back.Close()
	if err == nil {
		<-ended
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
