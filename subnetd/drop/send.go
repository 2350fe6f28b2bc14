package drop

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"subnetd/subnetd/mesh"
	"subnetd/subnetd/status"
)

const (
	answerTime = 10 * time.Second // in which a member says what it has of a file
	mostWords  = 400              // bytes of why it does not take it
	mostTries  = 20               // names for one file
)

// Send sends a file to a member, and returns when that has it. Size is in bytes, -1: not
// known. What is there of it since the last time is not sent again. It does not return
// while a Read of body is under way.
func (s *Store) Send(ctx context.Context, to *mesh.Node, name string, size int64, body io.Reader) (status.DropSent, error) {
	out := status.DropSent{To: plain(to.Name), Name: name}
	if err := sendable(name); err != nil {
		return out, err
	}
	base, err := s.door(to)
	if err != nil {
		return out, err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	t := &transfer{stop: stop}
	t.Name, t.Peer, t.Size, t.Sending, t.Waits = name, out.To, size, true, true
	s.mu.Lock()
	s.add(t)
	s.mu.Unlock()
	s.cfg.Changed()
	end, err := s.turns.take(ctx, "to "+strconv.FormatInt(int64(to.ID), 10))
	if err != nil {
		s.leave(t)
		return out, err
	}
	defer end()
	defer s.leave(t)
	s.begun(t)
	o := outgoing{
		base: base, name: name, size: size, to: out.To,
		body: &counted{Reader: body, add: func(n int) { s.moved(t, n) }}, http: s.client(),
	}
	defer o.http.CloseIdleConnections()
	if err := o.send(ctx); err != nil {
		return out, err
	}
	out.Name, out.Size = o.as, o.body.n
	s.cfg.Log.Info("a file was sent", "to", out.To, "name", out.Name, "size", out.Size)
	return out, nil
}

// sendable refuses names that are no file's anywhere; whether it is one there the
// receiver says.
func sendable(name string) error {
	control := func(r rune) bool { return r < ' ' || r == 0x7f || r == '/' || r == '\\' }
	if !utf8.ValidString(name) || len(name) > mostName || strings.ContainsFunc(name, control) || strings.Trim(name, " .") == "" {
		return fmt.Errorf("%w: %s", ErrName, clip(strconv.Quote(name), 80))
	}
	return nil
}

// door is the URL at which a member takes files.
func (s *Store) door(to *mesh.Node) (string, error) {
	nm := s.cfg.Netmap()
	if nm == nil {
		return "", ErrNobody
	}
	has := func(four bool) bool {
		for _, p := range nm.Self.Addresses {
			if p.Addr().Is4() == four {
				return true
			}
		}
		return false
	}
	for _, p := range to.Addresses {
		a, port := p.Addr(), to.PeerAPI4
		if a.Is6() {
			port = to.PeerAPI6
		}
		if port != 0 && to.Own(a) && has(a.Is4()) {
			return "http://" + netip.AddrPortFrom(a, port).String(), nil
		}
	}
	return "", fmt.Errorf("%s: %w", plain(to.Name), ErrNoFiles)
}

// client is for one file: every write must be done within patience.
func (s *Store) client() *http.Client {
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, answerTime)
		defer cancel()
		c, err := s.cfg.Dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &patient{c}, nil
	}
	return &http.Client{
		Transport:     &http.Transport{DialContext: dial, DisableCompression: true, MaxResponseHeaderBytes: 16 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// patient is a connection whose other end may be gone.
type patient struct{ net.Conn }

func (c *patient) Write(b []byte) (int, error) {
	_ = c.SetWriteDeadline(time.Now().Add(patience))
	return c.Conn.Write(b)
}

// counted is what is read of a file.
type counted struct {
	io.Reader
	n   int64
	add func(int)
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.n += int64(n)
	c.add(n)
	return n, err
}

// outgoing is a file on its way.
type outgoing struct {
	base, name, to string
	size           int64
	body           *counted
	http           *http.Client
	as             string // the name that it got
}

// send finds out from where to go on, and sends the rest. Stock receivers do not cut what
// is there if the first byte differs: what is longer would keep its end. Such a file goes
// under the next name, as it is another one anyway.
func (o *outgoing) send(ctx context.Context) error {
	rest := io.Reader(o.body)
	for n := range mostTries {
		o.as = numbered(o.name, n)
		offset, longer, read, err := o.resume(ctx, rest)
		if err != nil {
			return err
		}
		rest = read
		if !longer {
			return o.put(ctx, offset, rest)
		}
	}
	return fmt.Errorf("%w: halves of other files have that name at %s", ErrTaken, o.to)
}

// resume reads as much as the member has already, and says how much that is. longer:
// nothing of it is the same, and it is longer than the file may be. rest is what is to
// be read then.
func (o *outgoing) resume(ctx context.Context, body io.Reader) (offset int64, longer bool, rest io.Reader, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	res, err := o.do(ctx, http.MethodGet, nil, -1, 0)
	if err != nil {
		return 0, false, body, o.failed(err)
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
	case http.StatusForbidden:
		return 0, false, body, o.refused(res)
	default: // it knows nothing of that
		return 0, false, body, nil
	}
	b := make([]byte, block)
	there := int64(0)
	for d := json.NewDecoder(res.Body); ; {
		var c checksum
		if d.Decode(&c) != nil || c.Algorithm != "sha256" || c.Size <= 0 || c.Size > block {
			break
		}
		if there += c.Size; there != offset+c.Size {
			continue // it differs before
		}
		n, err := io.ReadFull(body, b[:c.Size])
		sum := sha256.Sum256(b[:n])
		if err == nil && hex.EncodeToString(sum[:]) == c.Checksum {
			offset += c.Size
			continue
		}
		body = io.MultiReader(bytes.NewReader(bytes.Clone(b[:n])), body)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return 0, false, body, err
		}
	}
	return offset, offset == 0 && there > 0 && (o.size < 0 || there > o.size), body, nil
}

// put sends what is left.
func (o *outgoing) put(ctx context.Context, offset int64, rest io.Reader) error {
	size := int64(-1)
	if o.size >= 0 {
		size = o.size - offset
	}
	res, err := o.do(ctx, http.MethodPut, rest, size, offset)
	if err != nil {
		return o.failed(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return o.refused(res)
	}
	return nil
}

func (o *outgoing) do(ctx context.Context, method string, body io.Reader, size, offset int64) (*http.Response, error) {
	if body == nil || size == 0 {
		body = http.NoBody
	}
	q, err := http.NewRequestWithContext(ctx, method, o.base+Prefix+url.PathEscape(o.as), body)
	if err != nil {
		return nil, err
	}
	q.Host = "peer"
	if body != http.NoBody {
		q.ContentLength = size
	}
	if offset > 0 {
		q.Header.Set("Range", "bytes="+strconv.FormatInt(offset, 10)+"-")
	}
	return o.http.Do(q)
}

// failed says who did not hear us; the URL is our own business.
func (o *outgoing) failed(err error) error {
	var e *url.Error
	if errors.As(err, &e) {
		err = e.Err
	}
	return fmt.Errorf("%s: %w: %w", o.to, ErrSilent, err)
}

// refused is what a member says instead of taking a file.
func (o *outgoing) refused(res *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(res.Body, mostWords))
	words := strings.TrimSpace(strings.ToValidUTF8(string(b), "?"))
	if words == "" {
		words = http.StatusText(res.StatusCode)
	}
	e := &Error{fmt.Sprintf("%s does not take it: %s", o.to, words), res.StatusCode}
	if e.code < 400 {
		e.code = http.StatusBadGateway
	}
	return e
}
