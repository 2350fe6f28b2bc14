package api

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"slices"

	"subnetd/subnetd/qr"
	"subnetd/subnetd/status"
)

// Page is what the page asks beyond what the command line does. All must be set, and
// safe for concurrent use. An error made with BadRequest is the asker's mistake.
type Page struct {
	Settings func() status.Settings
	// Change puts wishes in force, and back unless they are confirmed. ErrTrial.
	Change func(ctx context.Context, c status.SettingsChange) (status.Trial, error)
	// Confirm keeps the change of that trial, Undo takes it back at once. ErrNoTrial.
	Confirm, Undo func(ctx context.Context, id string) error
	// Diagnose is what helps to find a trouble, without secrets, as something that
	// marshals to JSON.
	Diagnose func(ctx context.Context) (any, error)
	// Backup is all that makes this router what it is, Restore puts such a file of
	// at most MaxBackup bytes in its place and has the daemon start anew.
	Backup  func(ctx context.Context) (any, error)
	Restore func(ctx context.Context, file []byte) error
	// SetPassword makes a password the page's.
	SetPassword func(ctx context.Context, password string) error
}

// What a Page func returns, wrapped or not; it arrives at the client as text.
var (
	ErrTrial   = errors.New("another change waits to be confirmed or undone: wait for that, 90 seconds at most")
	ErrNoTrial = errors.New("there is no change that waits to be confirmed: it was undone, or is kept already")
)

const (
	MaxBackup = 4 << 20 // bytes of a backup
	maxQR     = 1 << 10 // bytes of what is made a code
)

func (s *Server) pageRoutes() []route {
	p := s.funcs.Page
	return []route{
		{"GET", "/v1/settings", 0, func(http.ResponseWriter, *http.Request) (any, error) { return p.Settings(), nil }},
		{"POST", "/v1/settings", checkTimeout, asked(func(ctx context.Context, c status.SettingsChange) (any, error) { return p.Change(ctx, c) })},
		{"POST", "/v1/settings/confirm", checkTimeout, asked(func(ctx context.Context, r status.TrialRequest) (any, error) {
			return struct{}{}, p.Confirm(ctx, r.ID)
		})},
		{"POST", "/v1/settings/undo", checkTimeout, asked(func(ctx context.Context, r status.TrialRequest) (any, error) {
			return struct{}{}, p.Undo(ctx, r.ID)
		})},
		{"POST", "/v1/diagnostics", checkTimeout, file("subnetd-diagnostics.json", p.Diagnose)},
		{"POST", "/v1/backup", checkTimeout, file("subnetd-backup.json", p.Backup)},
		{"POST", "/v1/restore", checkTimeout, func(w http.ResponseWriter, q *http.Request) (any, error) {
			data := bytes.NewBuffer(make([]byte, 0, min(max(q.ContentLength, 0), MaxBackup)+bytes.MinRead)) // it grows by twice
			if _, err := data.ReadFrom(http.MaxBytesReader(w, q.Body, MaxBackup)); err != nil {
				return nil, badRequest{err}
			}
			return struct{}{}, p.Restore(q.Context(), data.Bytes())
		}},
		{"POST", "/v1/page/reset", checkTimeout, asked(func(ctx context.Context, r status.PageSecret) (any, error) {
			return struct{}{}, p.SetPassword(ctx, r.Password)
		})},
		{"GET", "/v1/qr", 0, drawCode},
	}
}

// file has a browser keep the answer under that name.
func file(name string, make func(context.Context) (any, error)) func(http.ResponseWriter, *http.Request) (any, error) {
	return func(w http.ResponseWriter, q *http.Request) (any, error) {
		v, err := make(q.Context())
		if err == nil {
			w.Header().Set("Content-Disposition", `attachment; filename="`+name+`"`)
		}
		return v, err
	}
}

// drawCode answers with a text as a picture of its QR code.
func drawCode(w http.ResponseWriter, q *http.Request) (any, error) {
	text := q.URL.Query().Get("text")
	if text == "" || len(text) > maxQR {
		return nil, badRequest{errors.New("a text is wanted, of at most 1,024 bytes")}
	}
	code, err := qr.Encode(text)
	if err != nil {
		return nil, badRequest{err}
	}
	w.Header().Set("Content-Type", "image/svg+xml")
	_, _ = w.Write(qr.SVG(code))
	return nil, errStreamed
}

// Asker is how much somebody may who asks.
type Asker int

// From the least to the most.
const (
	Guest Asker = iota // may look at what is no secret
	Owner
	Local // the administrator of this machine, by its socket
)

// ErrLookOnly is the answer to a Guest who wants more.
var ErrLookOnly = errors.New("you may look, but only the owner of this router may do that")

// needs is who may ask for a route: whoever looks only changes nothing.
func (r route) needs() Asker {
	switch {
	case r.path == "/v1/page/reset", r.path == "/v1/watch": // the page has events, which are bounded
		return Local
	case r.method != http.MethodGet || slices.Contains(forOwner, r.path):
		return Owner
	}
	return Guest
}

// forOwner is what only the owner may see.
var forOwner = []string{"/v1/debug/{what}", "/v1/settings", "/v1/devices/log", "/v1/home/keys", "/v1/home/policy", "/v1/drop", "/v1/drop/file"}

// SetPassword makes a password the page's.
func (c *Client) SetPassword(ctx context.Context, password string) error {
	return c.json(ctx, http.MethodPost, "/v1/page/reset", status.PageSecret{Password: password}, nil)
}
