package front

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

type contextKey struct{}

func connected(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	return context.WithValue(ctx, contextKey{}, c.(*conn))
}

// From is who sent a request that came by a Server, and which address he meant.
func From(r *http.Request) (from netip.Addr, at netip.AddrPort, ok bool) {
	c, ok := r.Context().Value(contextKey{}).(*conn)
	if !ok {
		return from, at, false
	}
	return c.from, c.at, true
}

// ServeHTTP answers one request. The door that its connection came by is open still: Set
// closes those that are not.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := r.Context().Value(contextKey{}).(*conn)
	if c.site != nil {
		s.device(w, r, c)
		return
	}
	names := s.now.Load().Names
	switch host := hostOf(r); {
	case s.cfg.Drop != nil && host == names.Drop:
		s.cfg.Drop.ServeHTTP(w, r)
	case s.cfg.CA != nil && host == names.CA:
		s.cfg.CA.ServeHTTP(w, r)
	case s.cfg.Page == nil:
		http.Error(w, "there is no such thing here", http.StatusNotFound)
	case !c.secure:
		if !slices.Contains(names.all(), host) {
			host = names.Page
		}
		redirect(w, r, host)
	default:
		s.cfg.Page.ServeHTTP(w, r)
	}
}

// device answers for a device: as itself does where it is called as itself speaks, else
// by TLS.
func (s *Server) device(w http.ResponseWriter, r *http.Request, c *conn) {
	if !c.secure && c.at.Port() != c.site.Port {
		redirect(w, r, c.site.Names[0])
		return
	}
	if r.Method == http.MethodConnect {
		http.Error(w, "a device is no proxy", http.StatusMethodNotAllowed)
		return
	}
	s.ask(w, r, c)
}

// redirect sends a browser to https. What is no page of a browser is told so: it would
// send again what it has sent in the clear.
func redirect(w http.ResponseWriter, r *http.Request, host string) {
	if host == "" {
		http.Error(w, "this router has no name in the mesh yet", http.StatusServiceUnavailable)
		return
	}
	to := "https://" + host + r.URL.RequestURI()
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Connection", "close") // what else he sends is not read
		http.Error(w, "this is at "+to, http.StatusUpgradeRequired)
		return
	}
	http.Redirect(w, r, to, http.StatusTemporaryRedirect)
}

// hostOf is whom a request calls, in lower case and without a port.
func hostOf(r *http.Request) string {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.TrimSuffix(strings.ToLower(host), ".")
}
