package api

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"subnetd/subnetd/status"
)

// System is this machine's own system, which an image replaces. All must be set, and safe
// for concurrent use: ErrNoSystem if this daemon can do nothing about it.
type System struct {
	// Update installs an image of that size and SHA-256, in hexadecimal digits, if it is
	// one; until then nothing changes. ErrUpdating.
	Update  func(ctx context.Context, sum string, image io.Reader, size int64) (status.Updated, error)
	Restart func(ctx context.Context) error
}

// What a System func returns, wrapped or not; it arrives at the client as text.
var (
	ErrNoSystem = errors.New("the system of this machine is not updated by subnetd")
	ErrUpdating = errors.New("another update is under way: wait for its end")
)

const (
	// SystemPath is the way to what concerns the machine's system.
	SystemPath = "/v1/system/"
	// MaxImage bounds an image, in bytes. The installing program knows how much room there is.
	MaxImage = 512 << 20

	updateTimeout = 30 * time.Minute // by slow radio, to slow flash
	stallTimeout  = 30 * time.Second // in which some of the image must come
	drainTimeout  = 30 * time.Second // in which the rest of a refused one must
)

func (s *Server) systemRoutes() []route {
	return []route{
		{"PUT", SystemPath + "image/{sha256}", updateTimeout, s.update},
		{"POST", SystemPath + "restart", checkTimeout, call(s.funcs.System.Restart)},
	}
}

// update hands an image on as it comes.
func (s *Server) update(w http.ResponseWriter, q *http.Request) (any, error) {
	sum, size := q.PathValue("sha256"), q.ContentLength
	if b, err := hex.DecodeString(sum); err != nil || len(b) != 32 {
		return nil, badRequest{errors.New("the image is named by its SHA-256: 64 hexadecimal digits")}
	}
	switch {
	case size <= 0:
		return nil, badRequest{errors.New("an image with a known size is wanted")}
	case size > MaxImage:
		return nil, fmt.Errorf("no image is that large: %w", &http.MaxBytesError{Limit: MaxImage})
	}
	in := upload{q.Body, http.NewResponseController(w), stallTimeout}
	done, err := s.funcs.System.Update(q.Context(), sum, in, size)
	if err != nil {
		in.drain()
	}
	return done, err
}

// upload is a body that may take as long as some of it comes.
type upload struct {
	body  io.Reader
	conn  *http.ResponseController
	stall time.Duration // in which some of it must
}

// Read implements io.Reader.
func (u upload) Read(b []byte) (int, error) {
	_ = u.conn.SetReadDeadline(time.Now().Add(u.stall)) // always there on a socket
	n, err := u.body.Read(b)
	if errors.Is(err, io.EOF) {
		_ = u.conn.SetReadDeadline(time.Time{}) // whoever waits for the answer is not gone
	}
	return n, err
}

// drain takes what still comes, since a browser hears no answer before it has said all.
func (u upload) drain() {
	_ = u.conn.SetReadDeadline(time.Now().Add(drainTimeout))
	_, _ = io.Copy(io.Discard, u.body)
}

// Update sends an image of that size and SHA-256, in hexadecimal digits.
func (c *Client) Update(ctx context.Context, sum string, image io.Reader, size int64) (done status.Updated, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://subnetd"+SystemPath+"image/"+sum, image)
	if err != nil {
		return done, err
	}
	req.ContentLength = size
	err = c.read(req, &done)
	return done, err
}

// Restart has the machine start anew.
func (c *Client) Restart(ctx context.Context) error {
	return c.json(ctx, http.MethodPost, SystemPath+"restart", nil, nil)
}
