package web

import (
	"context"
	"encoding/json"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"subnetd/subnetd/api"
)

// writeTimeout is how long one answer may take.
const writeTimeout = 20 * time.Second

// policy lets a browser load and ask nothing but us, and show us in nobody's frame.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
	"manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

type contextKey int

const (
	keyEnds  contextKey = iota // ends of the connection
	keyAsker                   // api.Asker of the request
)

// ends are who called, and which of our addresses.
type ends struct {
	from netip.Addr
	at   netip.AddrPort
}

func (s *Server) connected(ctx context.Context, c net.Conn) context.Context {
	at := c.LocalAddr().(*net.TCPAddr).AddrPort()
	return context.WithValue(ctx, keyEnds, ends{sourceOf(c), netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port())})
}

// visit is a request whose sender may be here.
type visit struct {
	from   netip.Addr
	over   string
	member Member // if over is overMesh
}

// identified reports whether the mesh says who it is.
func (v visit) identified() bool { return v.over == overMesh && !v.member.Router }

func (s *Server) visit(r *http.Request) (visit, bool) {
	e, _ := r.Context().Value(keyEnds).(ends)
	v := visit{from: e.from, over: s.over(e.from)}
	if v.over == overMesh {
		v.member, _ = s.cfg.Member(v.from)
	}
	return v, v.over != "" && slices.Contains(s.now.Load().listen(), e.at)
}

// asker is how much the sender of a request may.
func asker(r *http.Request) api.Asker {
	who, _ := r.Context().Value(keyAsker).(api.Asker)
	return who
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	if trustworthy(r) { // elsewhere browsers take no notice, and complain
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
	}
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	v, ok := s.visit(r)
	if !ok {
		// He was here before the netmap, the LAN or the page's address was another. A page that
		// went on by an old connection would confirm a change that cuts it off.
		h.Set("Connection", "close")
		refuse(w, http.StatusForbidden, "this page is for the home and the mesh only, at the addresses that it has now")
		return
	}
	if !s.called(r) {
		refuse(w, http.StatusMisdirectedRequest, "this router is not called "+strconv.QuoteToASCII(clip(r.Host))+": open the page by its address, as in http://"+localOf(r))
		return
	}
	path, isAPI := r.URL.Path, strings.HasPrefix(r.URL.Path, "/v1/")
	if code, why := s.refusal(r, isAPI); code != 0 {
		h.Set("Connection", "close") // what else he sends is not read
		refuse(w, code, why)
		return
	}
	switch {
	case !isAPI:
		s.file(w, r)
	case path == "/v1/page" || strings.HasPrefix(path, "/v1/page/"):
		s.page(w, r, v)
	default:
		s.ask(w, r, v)
	}
}

// refusal is why a request is not even looked at, if it is not. What changes things
// comes from our own page and is JSON, which no form of another page can send, or an
// image or a file for a member, which come by PUT.
func (s *Server) refusal(r *http.Request, isAPI bool) (code int, why string) {
	wanted, most := "application/json", int64(api.MaxBackup)
	switch {
	case r.Method == http.MethodGet, r.Method == http.MethodHead:
		return 0, ""
	case r.Method == http.MethodPost:
	case r.Method == http.MethodPut && strings.HasPrefix(r.URL.Path, api.SystemPath):
		wanted, most = "application/octet-stream", api.MaxImage
	case r.Method == http.MethodPut && r.URL.Path == api.SendPath:
		wanted, most = "application/octet-stream", api.MaxFile
	default:
		return http.StatusMethodNotAllowed, "this wants GET or POST"
	}
	if !isAPI {
		return http.StatusMethodNotAllowed, "this wants GET"
	}
	if s.origin.Check(r) != nil {
		return http.StatusForbidden, "this was sent by the page of another site"
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != wanted {
		return http.StatusUnsupportedMediaType, "this wants " + wanted
	}
	if r.ContentLength < 0 { // no browser does that with what is no stream
		return http.StatusLengthRequired, "this wants a Content-Length"
	}
	if r.ContentLength > most {
		return http.StatusRequestEntityTooLarge, "that is too big"
	}
	return 0, ""
}

// ask answers whoever is logged in.
func (s *Server) ask(w http.ResponseWriter, r *http.Request, v visit) {
	x, who := s.session(r, v)
	if x == nil {
		refuse(w, http.StatusUnauthorized, "log in first")
		return
	}
	if v.over == overMesh && wholeRouter(r) {
		refuse(w, http.StatusForbidden, "keys and systems leave and enter this router at home only: open the page there")
		return
	}
	ctx, cancel := context.WithCancel(context.WithValue(r.Context(), keyAsker, who))
	defer cancel()
	defer context.AfterFunc(x.life, cancel)() // the end of the session ends what it began
	r = r.WithContext(ctx)
	allowed := func() bool {
		v, ok := s.visit(r)
		still, now := s.session(r, v)
		return ok && still == x && now >= who
	}
	switch {
	case r.Method == http.MethodGet && r.URL.Path == "/v1/events":
		s.stream(w, r, v, allowed, s.events)
	case r.Method == http.MethodGet && r.URL.Path == "/v1/logs":
		if who < api.Owner {
			refuse(w, http.StatusForbidden, api.ErrLookOnly.Error())
			return
		}
		s.stream(w, r, v, allowed, s.logs)
	default:
		s.api.ServeHTTP(w, r)
	}
}

// wholeRouter reports whether a request is about all that this router is: what its keys
// are, one for a certificate, or what it runs. Every program on the owner's devices is the owner to us in the mesh.
func wholeRouter(r *http.Request) bool {
	key := r.URL.Path == "/v1/cert" && r.Method == http.MethodPost
	return key || r.URL.Path == "/v1/backup" || r.URL.Path == "/v1/restore" || r.Method == http.MethodPut && strings.HasPrefix(r.URL.Path, api.SystemPath)
}

// trustworthy reports whether the browser's context is a secure one (W3C Secure Contexts,
// section 3.1): TLS, or a way that does not leave the machine.
func trustworthy(r *http.Request) bool {
	host := hostOf(r)
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return r.TLS != nil || host == "localhost" || err == nil && a.IsLoopback()
}

// called reports whether a request is meant for this router: a page elsewhere whose
// name was led here (DNS rebinding) says that name.
func (s *Server) called(r *http.Request) bool {
	host := hostOf(r)
	set := s.now.Load()
	if a, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		a = a.Unmap()
		return a.IsLoopback() || slices.Contains(set.Mesh, a) || slices.ContainsFunc(set.Home, func(p netip.Prefix) bool { return p.Addr() == a })
	}
	return host == "localhost" || slices.Contains(set.Names, host)
}

// hostOf is what a request calls this router, in lower case and without a port.
func hostOf(r *http.Request) string {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.TrimSuffix(strings.ToLower(host), ".")
}

// localOf is the address and port that a request came to.
func localOf(r *http.Request) string {
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		return a.String()
	}
	return ""
}

// failure is the body of every answer that is no success.
type failure struct {
	Error string `json:"error"`
	Retry int    `json:"retry,omitempty"` // seconds
}

func refuse(w http.ResponseWriter, code int, why string) { answer(w, code, failure{Error: why}) }

func answer(w http.ResponseWriter, code int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		code, body = http.StatusInternalServerError, []byte(`{"error":"the answer cannot be written as JSON"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n'))
}

func clip(s string) string { return s[:min(len(s), 80)] }
