package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"subnetd/subnetd/status"
)

// Drop is the files that members send here, and those that go to them. All must be set,
// and safe for concurrent use. An error that has a method HTTPStatus is answered with it.
type Drop struct {
	Show func() status.Drop
	// Send sends a file of that many bytes, -1: not known, to a member, and returns when
	// that has it.
	Send func(ctx context.Context, to, name string, size int64, file io.Reader) (status.DropSent, error)
	// Open gives a file of the inbox and how many bytes it has, Remove removes one.
	Open   func(name string) (io.ReadCloser, int64, error)
	Remove func(ctx context.Context, name string) error
	// Folder and Allow write the wish into the configuration.
	Folder func(ctx context.Context, folder string) (status.Drop, error)
	Allow  func(ctx context.Context, r status.DropAllow) (status.Drop, error)
}

const (
	// SendPath takes a file as it is for a member, by PUT.
	SendPath = "/v1/drop/send"
	// MaxFile bounds such a file, in bytes: the receiver knows how much room there is.
	MaxFile = math.MaxInt64

	fileStall = 5 * time.Minute // in which some of a file must come, or go
	maxFile   = 4095            // bytes of a path
)

func (s *Server) dropRoutes() []route {
	d := s.funcs.Drop
	return []route{
		{"GET", "/v1/drop", 0, func(http.ResponseWriter, *http.Request) (any, error) { return d.Show(), nil }},
		{"PUT", SendPath, 0, s.send},
		{"GET", "/v1/drop/file", 0, s.fetch},
		{"POST", "/v1/drop/remove", checkTimeout, asked(func(ctx context.Context, r status.DropRequest) (any, error) {
			if err := wanted("the name of a file", r.Name); err != nil {
				return nil, err
			}
			return struct{}{}, d.Remove(ctx, r.Name)
		})},
		{"POST", "/v1/drop/folder", checkTimeout, asked(func(ctx context.Context, r status.DropFolder) (any, error) {
			if len(r.Folder) > maxFile {
				return nil, badRequest{fmt.Errorf("a path has at most %d bytes", maxFile)}
			}
			return d.Folder(ctx, r.Folder)
		})},
		{"POST", "/v1/drop/allow", checkTimeout, asked(func(ctx context.Context, r status.DropAllow) (any, error) {
			if err := wantDevice(r.Device); err != nil {
				return nil, err
			}
			return d.Allow(ctx, r)
		})},
	}
}

// send hands a file on as it comes.
func (s *Server) send(w http.ResponseWriter, q *http.Request) (any, error) {
	to, name := q.URL.Query().Get("to"), q.URL.Query().Get("name")
	if err := errors.Join(wanted("the name of a node", to), wanted("the name of a file", name)); err != nil {
		return nil, badRequest{err}
	}
	in := upload{q.Body, http.NewResponseController(w), fileStall}
	sent, err := s.funcs.Drop.Send(q.Context(), to, name, q.ContentLength, in)
	if err != nil {
		in.drain()
	}
	return sent, err
}

// fetch gives a file of the inbox, for a browser to keep.
func (s *Server) fetch(w http.ResponseWriter, q *http.Request) (any, error) {
	name := q.URL.Query().Get("name")
	if err := wanted("the name of a file", name); err != nil {
		return nil, err
	}
	f, size, err := s.funcs.Drop.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": name}))
	_, _ = io.CopyBuffer(download{w, http.NewResponseController(w)}, io.LimitReader(f, size), make([]byte, 64<<10)) // who left needs no more
	return nil, errStreamed
}

// download is an answer that may take as long as some of it goes.
type download struct {
	w    io.Writer
	conn *http.ResponseController
}

// Write implements io.Writer.
func (d download) Write(b []byte) (int, error) {
	_ = d.conn.SetWriteDeadline(time.Now().Add(fileStall))
	return d.w.Write(b)
}

// Drop is the files that arrived, and those under way.
func (c *Client) Drop(ctx context.Context) (d status.Drop, err error) {
	err = c.json(ctx, http.MethodGet, "/v1/drop", nil, &d)
	return d, err
}

// DropSend sends a file of that many bytes, -1: not known, to a member.
func (c *Client) DropSend(ctx context.Context, to, name string, size int64, file io.Reader) (sent status.DropSent, err error) {
	query := url.Values{"to": {to}, "name": {name}}.Encode()
	if size == 0 {
		file = http.NoBody
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://subnetd"+SendPath+"?"+query, file)
	if err != nil {
		return sent, err
	}
	if size >= 0 {
		req.ContentLength = size
	}
	err = c.read(req, &sent)
	return sent, err
}

// DropGet writes a file of the inbox.
func (c *Client) DropGet(ctx context.Context, name string, w io.Writer) error {
	req, err := request(ctx, http.MethodGet, "/v1/drop/file?name="+url.QueryEscape(name), nil)
	if err != nil {
		return err
	}
	res, err := c.do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(w, res.Body)
	return err
}

// DropRemove removes a file of the inbox.
func (c *Client) DropRemove(ctx context.Context, name string) error {
	return c.json(ctx, http.MethodPost, "/v1/drop/remove", status.DropRequest{Name: name}, nil)
}

// DropFolder says where files land from now on.
func (c *Client) DropFolder(ctx context.Context, folder string) (d status.Drop, err error) {
	err = c.json(ctx, http.MethodPost, "/v1/drop/folder", status.DropFolder{Folder: folder}, &d)
	return d, err
}

// DropAllow lets something at home send, or ends that.
func (c *Client) DropAllow(ctx context.Context, r status.DropAllow) (d status.Drop, err error) {
	err = c.json(ctx, http.MethodPost, "/v1/drop/allow", r, &d)
	return d, err
}
