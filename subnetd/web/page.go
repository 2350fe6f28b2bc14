package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"

	"subnetd/subnetd/api"
	"subnetd/subnetd/status"
)

// mostSmall bounds the body of what concerns the login, in bytes.
const mostSmall = 4 << 10

// page answers what may be asked before a login.
func (s *Server) page(w http.ResponseWriter, r *http.Request, v visit) {
	x, who := s.session(r, v)
	if r.URL.Path == "/v1/page" && r.Method != http.MethodPost {
		answer(w, http.StatusOK, s.described(v, x, who))
		return
	}
	do := map[string]func(http.ResponseWriter, *http.Request, visit, *session) (*session, error){
		"/v1/page/setup": s.setup, "/v1/page/login": s.login, "/v1/page/logout": s.logout, "/v1/page/password": s.password,
	}[r.URL.Path]
	switch {
	case do == nil:
		refuse(w, http.StatusNotFound, "there is no such thing here")
	case r.Method != http.MethodPost:
		refuse(w, http.StatusMethodNotAllowed, "this wants POST")
	default:
		x, err := do(w, r, v, x)
		if err != nil {
			s.fail(w, v, err)
			return
		}
		who = api.Guest
		if x != nil && (x.password || v.member.Owner) {
			who = api.Owner
		}
		answer(w, http.StatusOK, s.described(v, x, who))
	}
}

// Why somebody is not let in.
var (
	errSet  = errors.New("a password is set already: log in with it")
	errBusy = errors.New("too many passwords are told at once: wait a moment")
	errWait = errors.New("too many wrong passwords: wait before the next")
	// ErrNoPassword is what Config.Login says of a machine that is open.
	ErrNoPassword = errors.New("this router's root has no password: set one with `passwd`, or in LuCI under System, Administration, and log in with it here")
	errMeshOnly   = errors.New("over the mesh it counts whose device asks, not a password: log in without one")
	errShut       = errors.New("the first password can be set from home only, within an hour after the start: restart this router, or run `subnetd web password` on it")
	errLost       = errors.New("the file of the page's password was damaged: run `subnetd web password` on this router to set a new one")
	errLogIn      = errors.New("log in first")
)

func (s *Server) fail(w http.ResponseWriter, v visit, err error) {
	code := http.StatusBadRequest
	f := failure{Error: err.Error()}
	var tooBig *http.MaxBytesError
	switch {
	case errors.As(err, &tooBig):
		code = http.StatusRequestEntityTooLarge
	case errors.Is(err, errWrong), errors.Is(err, errLogIn):
		code = http.StatusUnauthorized
	case errors.Is(err, errWait), errors.Is(err, errBusy):
		code, f.Retry = http.StatusTooManyRequests, max(s.retry(v), 1)
		w.Header().Set("Retry-After", strconv.Itoa(f.Retry))
	case errors.Is(err, errSet), errors.Is(err, errShut), errors.Is(err, errLost), errors.Is(err, errMeshOnly), errors.Is(err, ErrNoPassword), errors.Is(err, api.ErrLookOnly):
		code = http.StatusForbidden
	}
	answer(w, code, f)
}

// retry is how many seconds no password of theirs is looked at.
func (s *Server) retry(v visit) int {
	return int(math.Ceil(s.tries.wait(s.cfg.Now(), v.from).Seconds()))
}

// described is what the browser is told first.
func (s *Server) described(v visit, x *session, who api.Asker) status.Page {
	p := status.Page{
		State: status.PageLogin, Over: v.over, Member: v.member.Name, Who: v.member.User,
		Boot: s.boot, Now: s.cfg.Now(), Retry: s.retry(v),
	}
	if names := s.now.Load().Names; len(names) > 0 {
		p.Host = names[0]
	}
	if v.member.Router {
		p.Member = "" // whoever is behind it
	}
	set, lost := s.secret.state()
	switch err := s.maySet(v); {
	case x != nil:
		p.State, p.Owner, p.Version = status.PageIn, who == api.Owner, s.cfg.Version
		if x.user != "" {
			p.Who = x.user
		}
	case v.identified() || set || s.cfg.Login != nil:
		p.Owner, p.Root = v.member.Owner, !set && s.cfg.Login != nil
	case lost:
		p.State, p.Text = status.PageShut, errLost.Error()
	case err != nil:
		p.State, p.Text = status.PageShut, err.Error()
	default:
		p.State = status.PageSetup
	}
	return p
}

// maySet reports with nil that the first password may be set.
func (s *Server) maySet(v visit) error {
	set, lost := s.secret.state()
	switch {
	case set || s.cfg.Login != nil:
		return errSet
	case lost:
		return errLost
	case v.over == overMesh || s.cfg.Now().Sub(s.began) > setupFor:
		return errShut
	}
	return nil
}

// setup sets the first password.
func (s *Server) setup(w http.ResponseWriter, r *http.Request, v visit, _ *session) (*session, error) {
	var b status.PageSecret
	if err := read(w, r, &b); err != nil {
		return nil, err
	}
	if !s.tries.enter() {
		return nil, errBusy
	}
	defer s.tries.leave()
	s.first.Lock() // two browsers at once: one is the first
	defer s.first.Unlock()
	if err := s.maySet(v); err != nil {
		return nil, err
	}
	if err := s.setPassword(b.Password); err != nil {
		return nil, err
	}
	s.cfg.Log.Info("the first password is set", "from", v.from)
	x := &session{password: true}
	return x, s.logIn(w, x)
}

// login lets somebody in: a member by who it is, others by a password.
func (s *Server) login(w http.ResponseWriter, r *http.Request, v visit, _ *session) (*session, error) {
	var b status.PageSecret
	if err := read(w, r, &b); err != nil {
		return nil, err
	}
	x := &session{password: !v.identified()}
	if v.over == overMesh {
		x.member = v.from
	}
	if s.cfg.Login == nil {
		b.User = ""
	} else if set, _ := s.secret.state(); !set && b.User == "" {
		b.User = root
	}
	if x.password {
		x.user = b.User
	}
	right := s.right(b.User, b.Password)
	in := func() error {
		s.cfg.Log.Info("somebody logged in", "from", v.from, "member", v.member.Name)
		return s.logIn(w, x)
	}
	switch {
	case x.password: // nobody sets another one in between
		return x, s.guess(r.Context(), v, right, in)
	case b.Password != "":
		return nil, errMeshOnly
	}
	return x, in()
}

// root is whose password counts as long as the page has none of its own.
const root = "root"

// right asks whose password that is: the page's own, or a user's of this machine.
func (s *Server) right(user, password string) func(context.Context) error {
	return func(ctx context.Context) error {
		if user != "" {
			return s.cfg.Login(ctx, user, password)
		}
		return s.secret.check(password)
	}
}

// guess has a password looked at, if it is its sender's turn, and does what follows if it
// is right. Meanwhile no other is looked at or set.
func (s *Server) guess(ctx context.Context, v visit, right func(context.Context) error, then func() error) error {
	if s.tries.wait(s.cfg.Now(), v.from) > 0 {
		return errWait
	}
	if !s.tries.enter() {
		return errBusy
	}
	defer s.tries.leave()
	select {
	case s.tries.hashing <- struct{}{}:
	case <-ctx.Done():
		return errBusy
	}
	defer func() { <-s.tries.hashing }()
	if s.tries.wait(s.cfg.Now(), v.from) > 0 { // by what was wrong meanwhile
		return errWait
	}
	err := right(ctx)
	switch {
	case errors.Is(err, ErrNoPassword):
		return err
	case err != nil:
		if s.tries.wrong(s.cfg.Now(), v.from) == freeTries {
			s.cfg.Log.Warn("wrong passwords, more are slowed down", "from", v.from)
		}
		return errWrong
	}
	s.tries.right(v.from)
	return then()
}

func (s *Server) logout(w http.ResponseWriter, r *http.Request, _ visit, x *session) (*session, error) {
	var b struct{}
	if err := read(w, r, &b); err != nil {
		return nil, err
	}
	s.sessions.end(func(o *session) bool { return o == x })
	gone := cookie("")
	gone.MaxAge = -1
	http.SetCookie(w, gone)
	return nil, nil
}

// password sets another one.
func (s *Server) password(w http.ResponseWriter, r *http.Request, v visit, x *session) (*session, error) {
	var b status.PagePassword
	if err := read(w, r, &b); err != nil {
		return nil, err
	}
	switch {
	case x == nil:
		return nil, errLogIn
	case !x.password && !v.member.Owner:
		return nil, api.ErrLookOnly
	}
	if err := checkPassword(b.New); err != nil {
		return nil, err
	}
	if x.password {
		old := s.right(x.user, b.Old)
		x = &session{password: true, member: x.member}
		return x, s.guess(r.Context(), v, old, func() error {
			if err := s.setLocked(b.New); err != nil {
				return err
			}
			return s.logIn(w, x)
		})
	}
	return x, s.setPassword(b.New)
}

// read reads exactly one small JSON value with no unknown fields.
func read(w http.ResponseWriter, r *http.Request, v any) error {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, mostSmall))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("the request is not understood: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("the request is not understood: more than one value")
	}
	return nil
}
