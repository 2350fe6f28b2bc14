package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
)

const (
	maxBody  = 64 << 10 // bytes of a request
	maxConns = 64
	// maxPath is what the kernel allows for a socket (unix(7)), less our suffix.
	maxPath      = 107 - len(newSuffix)
	newSuffix    = ".new"
	pingTimeout  = 10 * time.Second
	checkTimeout = 30 * time.Second
	writeTimeout = 10 * time.Second
)

// Server is the daemon's end, a task.
type Server struct {
	path  string
	funcs Funcs
	log   *slog.Logger
	there chan struct{} // closed when it can be asked
}

// NewServer makes the server for a socket at path, which only the daemon's user
// can open (0600).
func NewServer(path string, funcs Funcs, log *slog.Logger) *Server {
	return &Server{path: path, funcs: funcs, log: log, there: make(chan struct{})}
}

// There is closed when whoever asks is not refused any more.
func (s *Server) There() <-chan struct{} { return s.there }

func (s *Server) String() string { return "api" }

// Run serves until ctx ends. It takes the place of a dead daemon's socket, and
// fails if a living one answers there.
func (s *Server) Run(ctx context.Context) error {
	l, err := listen(s.path)
	if err != nil {
		return err
	}
	defer os.Remove(s.path)
	close(s.there)
	srv := &http.Server{
		Handler:           s.handler(func(*http.Request) Asker { return Local }),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	})
	err = srv.Serve(netutil.LimitListener(l, maxConns))
	if stop() { // ctx lives: the listener broke
		srv.Close()
		return fmt.Errorf("socket %s: %w", s.path, err)
	}
	<-stopped
	return nil
}

// listen makes the socket under another name and renames it once its mode is
// right, so that nobody can open it before.
func listen(path string) (net.Listener, error) {
	if len(path) > maxPath {
		return nil, fmt.Errorf("socket %s: the path is longer than %d bytes", path, maxPath)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := vacant(path); err != nil {
		return nil, err
	}
	temp := path + newSuffix
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(temp, 0o600), os.Rename(temp, path)); err != nil {
		os.Remove(temp)
		return nil, fmt.Errorf("socket: %w", errors.Join(err, l.Close()))
	}
	return l, nil
}

// vacant reports with nil that a socket may be put at path.
func vacant(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("socket: %s is something else, it is left alone", path)
	}
	c, err := net.DialTimeout("unix", path, 2*time.Second)
	if err == nil {
		c.Close()
		return fmt.Errorf("socket %s: another subnetd is running and answers there", path)
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil
	}
	return fmt.Errorf("socket: %w", err)
}

// route is one thing that can be asked. do returns what is sent as JSON.
type route struct {
	method, path string
	timeout      time.Duration // 0: none
	do           func(w http.ResponseWriter, r *http.Request) (any, error)
}

func (s *Server) routes() []route {
	return slices.Concat(s.homeRoutes(), s.exitRoutes(), s.deviceRoutes(), s.pageRoutes(), s.systemRoutes(), s.certRoutes(), s.dropRoutes(), []route{
		{"GET", "/v1/status", 0, s.status},
		{"GET", "/v1/watch", 0, s.watch},
		{"POST", "/v1/up", checkTimeout, s.up},
		{"POST", "/v1/down", checkTimeout, call(s.funcs.Down)},
		{"POST", "/v1/logout", checkTimeout, call(s.funcs.Logout)},
		{"GET", "/v1/ping", pingTimeout, s.ping},
		{"GET", "/v1/netcheck", checkTimeout, s.netcheck},
		{"GET", "/v1/debug/{what}", 0, s.debug},
	})
}

// Handler serves the same, one way or another, to whoever who says.
func Handler(funcs Funcs, who func(*http.Request) Asker) http.Handler {
	return (&Server{funcs: funcs}).handler(who)
}

func (s *Server) handler(who func(*http.Request) Asker) http.Handler {
	mux := http.NewServeMux()
	allow := http.NewServeMux() // the same paths, for any method
	methods := map[string]string{}
	for _, r := range s.routes() {
		mux.Handle(r.method+" "+r.path, serve(r, who))
		if methods[r.path] != "" {
			methods[r.path] += ", " + r.method
			continue
		}
		methods[r.path] = r.method
		allow.HandleFunc(r.path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Allow", methods[r.path])
			answer(w, http.StatusMethodNotAllowed, failure{"this wants " + methods[r.path]})
		})
	}
	allow.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusNotFound, failure{"there is no such thing here"})
	})
	mux.Handle("/", allow)
	return mux
}

func serve(r route, who func(*http.Request) Asker) http.HandlerFunc {
	return func(w http.ResponseWriter, q *http.Request) {
		if who(q) < r.needs() {
			answer(w, http.StatusForbidden, failure{ErrLookOnly.Error()})
			return
		}
		if r.timeout > 0 {
			ctx, cancel := context.WithTimeout(q.Context(), r.timeout)
			defer cancel()
			q = q.WithContext(ctx)
		}
		v, err := r.do(w, q)
		switch {
		case errors.Is(err, errStreamed):
		case err != nil:
			answer(w, code(err), failure{err.Error()})
		default:
			answer(w, http.StatusOK, v)
		}
	}
}

// errStreamed says that the answer has been written already.
var errStreamed = errors.New("streamed")

// badRequest is the asker's mistake.
type badRequest struct{ error }

func (b badRequest) Unwrap() error { return b.error }

func code(err error) int {
	var tooBig *http.MaxBytesError
	var bad badRequest
	var said interface{ HTTPStatus() int }
	switch {
	case errors.As(err, &tooBig):
		return http.StatusRequestEntityTooLarge
	case errors.As(err, &bad):
		return http.StatusBadRequest
	case errors.Is(err, ErrNotHome), errors.Is(err, ErrTrial), errors.Is(err, ErrNoTrial), errors.Is(err, ErrUpdating), errors.Is(err, ErrNoCertificates):
		return http.StatusConflict
	case errors.Is(err, ErrUnknownPeer), errors.Is(err, ErrUnknownDevice), errors.Is(err, ErrUnknownNode), errors.Is(err, ErrUnknownCode), errors.Is(err, ErrUnknownKey),
		errors.Is(err, ErrNoSystem), errors.Is(err, ErrUnknownName):
		return http.StatusNotFound
	case errors.As(err, &said):
		return said.HTTPStatus()
	case errors.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}

// answer marshals first, so that a value that cannot be sent is an error and no
// half answer.
func answer(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"error":"the answer cannot be written as JSON"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout)) // always there on a socket
	w.WriteHeader(status)
	w.Write(append(body, '\n')) // an asker who left needs no answer
}

func (s *Server) status(http.ResponseWriter, *http.Request) (any, error) {
	return s.funcs.Status(), nil
}

// watch streams snapshots, one JSON value a line, until the asker leaves.
func (s *Server) watch(w http.ResponseWriter, r *http.Request) (any, error) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	rc := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	for snap := range s.funcs.Watch(ctx) {
		line, err := json.Marshal(snap)
		if err != nil {
			return nil, errStreamed
		}
		rc.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, err := w.Write(append(line, '\n')); err != nil {
			return nil, errStreamed
		}
		if err := rc.Flush(); err != nil {
			return nil, errStreamed
		}
	}
	return nil, errStreamed
}

func (s *Server) up(w http.ResponseWriter, r *http.Request) (any, error) {
	var req UpRequest
	if err := body(w, r, maxBody, &req); err != nil {
		return nil, err
	}
	return struct{}{}, s.funcs.Up(r.Context(), req)
}

// body reads exactly one JSON value of at most limit bytes, with no unknown
// fields. Nothing else may read a body.
func body(w http.ResponseWriter, r *http.Request, limit int64, v any) error {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return badRequest{fmt.Errorf("the request is not understood: %w", err)}
	}
	if _, err := dec.Token(); err != io.EOF {
		return badRequest{errors.New("the request is not understood: more than one value")}
	}
	return nil
}

func call(f func(context.Context) error) func(http.ResponseWriter, *http.Request) (any, error) {
	return func(_ http.ResponseWriter, r *http.Request) (any, error) {
		return struct{}{}, f(r.Context())
	}
}

func (s *Server) ping(_ http.ResponseWriter, r *http.Request) (any, error) {
	to := r.URL.Query().Get("to")
	if to == "" || len(to) > 255 {
		return nil, badRequest{errors.New("ping whom? a name or an address is wanted")}
	}
	res, err := s.funcs.Ping(r.Context(), to)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w within %s: %w", ErrSilent, pingTimeout, context.DeadlineExceeded)
	}
	return res, err
}

func (s *Server) netcheck(_ http.ResponseWriter, r *http.Request) (any, error) {
	return s.funcs.Netcheck(r.Context())
}

func (s *Server) debug(_ http.ResponseWriter, r *http.Request) (any, error) {
	what := r.PathValue("what")
	switch what {
	case "plan", "netmap", "paths":
		return s.funcs.Debug(what)
	}
	return nil, badRequest{fmt.Errorf("there is plan, netmap and paths, but no %q", what)}
}
