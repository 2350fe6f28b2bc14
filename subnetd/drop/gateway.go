package drop

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"subnetd/subnetd/mesh"
	"subnetd/subnetd/status"
)

// Gateway sends into the mesh what things at home give it by a plain PUT:
//
//	curl -T photo.jpg http://drop.cabin.mesh.internal/phone/
//
// It is an http.Handler. The member sees the file come from this router.
type Gateway struct {
	Store *Store
	// From is who is at an address, and whether that may send; "": nobody of this home.
	From func(netip.Addr) (name string, may bool)
	// To is the member of that name, this router among them; nil: there is none.
	To func(name string) *mesh.Node
	// Asker is the address that a request comes from.
	Asker func(*http.Request) netip.Addr
}

const usage = "A file is sent to a member of the mesh by PUT: curl -T FILE http://%s/NODE/\n"

// ServeHTTP sends one file.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Time{})
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	who, may := g.From(g.Asker(r))
	sent, err := status.DropSent{}, error(nil)
	switch {
	case who == "":
		err = &Error{"only what is at home sends files here", http.StatusForbidden}
	case r.Method == http.MethodGet, r.Method == http.MethodHead:
		fmt.Fprintf(w, usage, clip(r.Host, mostName))
		return
	case r.Method != http.MethodPut:
		w.Header().Set("Allow", "GET, PUT")
		err = &Error{"a file is sent by PUT", http.StatusMethodNotAllowed}
	case r.Header.Get("Origin") != "": // a page that some browser shows
		err = &Error{"pages of other sites send nothing here", http.StatusForbidden}
	case !may:
		err = &Error{who + " may not send files into the mesh: the owner allows it by `subnetd inbox allow`", http.StatusForbidden}
	default:
		sent, err = g.send(r, rc, who)
	}
	_ = rc.SetWriteDeadline(time.Now().Add(patience))
	if err != nil {
		g.Store.cfg.Log.Info("a file from home is not sent", "from", who, "err", err)
		http.Error(w, err.Error(), code(err))
		return
	}
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, "%s has %s, %d bytes\n", sent.To, sent.Name, sent.Size)
}

func (g *Gateway) send(r *http.Request, rc *http.ResponseController, who string) (status.DropSent, error) {
	node, name, _ := strings.Cut(strings.TrimPrefix(r.URL.EscapedPath(), "/"), "/")
	node, errNode := url.PathUnescape(node)
	name, errName := url.PathUnescape(name)
	if errNode != nil || errName != nil || node == "" {
		return status.DropSent{}, fmt.Errorf("%w; it is sent to /NODE/NAME", ErrName)
	}
	to := g.To(node)
	if to == nil {
		return status.DropSent{}, fmt.Errorf("%w: %q", ErrNobody, clip(node, 80))
	}
	body := &alive{r.Body, rc}
	nm := g.Store.cfg.Netmap()
	if nm == nil || to.ID != nm.Self.ID {
		return g.Store.Send(r.Context(), to, name, r.ContentLength, body)
	}
	name, err := safe(name)
	if err != nil {
		return status.DropSent{}, err
	}
	in := incoming{key: "home " + who, peer: who, name: name, size: r.ContentLength, body: r.Body, until: rc.SetReadDeadline}
	f, err := g.Store.take(r.Context(), in)
	return status.DropSent{To: plain(to.Name), Name: f.Name, Size: f.Size}, err
}

// alive is a body whose sender may fall silent.
type alive struct {
	io.Reader
	rc *http.ResponseController
}

func (a *alive) Read(b []byte) (int, error) {
	_ = a.rc.SetReadDeadline(time.Now().Add(patience))
	return a.Reader.Read(b)
}
