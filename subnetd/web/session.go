package web

import (
	"context"
	"crypto/sha256"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"subnetd/subnetd/api"
)

const (
	cookieName   = "subnetd"
	mostSessions = 64
	idleSession  = 8 * time.Hour
	longSession  = 7 * 24 * time.Hour
)

// session is somebody who logged in. It is told by 256 random bits in a cookie, of
// which only the digest is kept.
type session struct {
	life        context.Context // ends with the session
	end         context.CancelFunc
	password    bool       // came by one; else by the identity of member
	user        string     // of this machine, whose password it was; "": the page's own
	member      netip.Addr // came by the mesh from there, if valid
	begun, used time.Time
}

// sessions are all there are. The zero sessions has none.
type sessions struct {
	mu  sync.Mutex // guards all below
	all map[[sha256.Size]byte]*session
}

func digest(token string) [sha256.Size]byte { return sha256.Sum256([]byte(token)) }

// begin keeps a session, in place of the one that was longest not used if there are
// too many.
func (s *sessions) begin(now time.Time, token string, x *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x.life, x.end = context.WithCancel(context.Background())
	x.begun, x.used = now, now
	if s.all == nil {
		s.all = map[[sha256.Size]byte]*session{}
	}
	var oldest *session
	var at [sha256.Size]byte
	for k, o := range s.all {
		switch {
		case o.over(now), !x.password && o.member == x.member: // a node has one
			s.drop(k)
		case oldest == nil || o.used.Before(oldest.used):
			oldest, at = o, k
		}
	}
	if len(s.all) >= mostSessions {
		s.drop(at)
	}
	s.all[digest(token)] = x
}

func (x *session) over(now time.Time) bool {
	return now.Sub(x.used) > idleSession || now.Sub(x.begun) > longSession
}

// drop ends one; s.mu is held.
func (s *sessions) drop(k [sha256.Size]byte) {
	s.all[k].end()
	delete(s.all, k)
}

// find gives the session of a token; nil: there is none.
func (s *sessions) find(now time.Time, token string) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := digest(token)
	x := s.all[k]
	if x == nil {
		return nil
	}
	if x.over(now) {
		s.drop(k)
		return nil
	}
	x.used = now
	return x
}

// end ends those of which is true.
func (s *sessions) end(which func(*session) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, x := range s.all {
		if which(x) {
			s.drop(k)
		}
	}
}

// session is the one of a request, and how much it may now; nil: log in first. One that
// came by the mesh is good from that node only and, unless a password was told, is what
// that node's user is now.
func (s *Server) session(r *http.Request, v visit) (*session, api.Asker) {
	for _, c := range r.CookiesNamed(cookieName) {
		x := s.sessions.find(s.cfg.Now(), c.Value)
		at := netip.Addr{}
		if v.over == overMesh {
			at = v.from
		}
		switch {
		case x == nil || x.member != at || v.member.Router && !x.password:
		case x.password || v.member.Owner:
			return x, api.Owner
		default:
			return x, api.Guest
		}
	}
	return nil, api.Guest
}

// logIn begins a session and gives the browser its cookie.
func (s *Server) logIn(w http.ResponseWriter, x *session) error {
	token, err := randomText(s.cfg.Random)
	if err != nil {
		return err
	}
	s.sessions.begin(s.cfg.Now(), token, x)
	http.SetCookie(w, cookie(token))
	return nil
}

func cookie(token string) *http.Cookie {
	return &http.Cookie{Name: cookieName, Value: token, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode}
}
