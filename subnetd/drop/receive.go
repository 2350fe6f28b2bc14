package drop

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"subnetd/subnetd/mesh"
	"subnetd/subnetd/status"

	"golang.org/x/sys/unix"
)

// Prefix is where members send files to, with the name behind it.
const Prefix = "/v0/put/"

const (
	block   = 64 << 10 // bytes that have one checksum
	recheck = 4 << 20  // bytes after which it is looked again whether there is room
)

// checksum is of one block of what is there; the last may be shorter.
type checksum struct {
	Checksum  string `json:"checksum"` // SHA-256 in hex
	Algorithm string `json:"algo"`     // "sha256"
	Size      int64  `json:"size"`     // bytes
}

// incoming is a file that somebody sends here.
type incoming struct {
	key    string // of who sends it
	peer   string // its name
	name   string // as it may be here
	offset int64  // from where it goes on
	size   int64  // bytes that come; -1: not known
	body   io.Reader
	// until says how long the next read may take; the zero time: for ever.
	until func(time.Time) error
}

// Receive answers a request of a member below Prefix.
func (s *Store) Receive(w http.ResponseWriter, r *http.Request, from mesh.Node) {
	in := incoming{key: strconv.FormatInt(int64(from.ID), 10), peer: plain(from.Name), size: r.ContentLength, body: r.Body}
	rc := http.NewResponseController(w)
	in.until = rc.SetReadDeadline
	_ = rc.SetWriteDeadline(time.Time{}) // a file takes its time
	_ = rc.SetReadDeadline(time.Time{})
	var err error
	if !May(s.cfg.Netmap(), &from) {
		err = ErrMayNot
	} else if in.name, err = nameOf(r); err == nil {
		switch r.Method {
		case http.MethodGet:
			err = s.tell(r.Context(), w, in)
		case http.MethodPut:
			if in.offset, err = offsetOf(r.Header.Get("Range")); err == nil {
				_, err = s.take(r.Context(), in)
			}
		default:
			w.Header().Set("Allow", "GET, PUT")
			http.Error(w, "a file is sent by PUT", http.StatusMethodNotAllowed)
			return
		}
	}
	_ = rc.SetWriteDeadline(time.Now().Add(patience))
	switch {
	case err != nil:
		s.cfg.Log.Info("a file is not taken", "from", in.peer, "name", in.name, "err", err)
		http.Error(w, err.Error(), code(err))
	case r.Method == http.MethodPut:
		_, _ = io.WriteString(w, "{}\n")
	}
}

// nameOf is the file's name; "" asks about all.
func nameOf(r *http.Request) (string, error) {
	name, err := url.PathUnescape(strings.TrimPrefix(r.URL.EscapedPath(), Prefix))
	if err != nil {
		return "", ErrName
	}
	return safe(name)
}

// offsetOf reads a header Range: RFC 9110, 14.1.2, of which only "bytes=N-" is spoken.
func offsetOf(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	digits, ok := strings.CutPrefix(text, "bytes=")
	digits, open := strings.CutSuffix(digits, "-")
	n, err := strconv.ParseUint(digits, 10, 63)
	if !ok || !open || err != nil {
		return 0, fmt.Errorf("%w: %q", ErrOffset, clip(text, 40))
	}
	return int64(n), nil
}

// tell says what is there of a file: one checksum after another, none if there is
// nothing, or if it is arriving just now.
func (s *Store) tell(ctx context.Context, w http.ResponseWriter, in incoming) error {
	part := partName(in.key, in.name, 0)
	if s.moving(ctx, part) {
		return nil
	}
	p, err := s.open()
	if err != nil {
		return err
	}
	defer p.Close()
	f, err := p.openFile(part, unix.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	rc := http.NewResponseController(w)
	b := make([]byte, block)
	for enc := json.NewEncoder(w); ; {
		n, err := io.ReadFull(f, b)
		if n == 0 || err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil // what was told is true, and enough
		}
		sum := sha256.Sum256(b[:n])
		_ = rc.SetWriteDeadline(time.Now().Add(patience))
		if enc.Encode(checksum{hex.EncodeToString(sum[:]), "sha256", int64(n)}) != nil {
			return nil // the sender knows enough
		}
	}
}

// moving reports whether a file is arriving just now. The sender of one may be cut off
// without our hearing of it: more of a living one comes within a moment.
func (s *Store) moving(ctx context.Context, part string) bool {
	s.mu.Lock()
	t := s.arriving(part)
	if t == nil || t.Waits {
		defer s.mu.Unlock()
		return t != nil
	}
	if t.moves == nil {
		t.moves = make(chan struct{})
	}
	more := t.moves
	s.mu.Unlock()
	silence := time.NewTimer(s.silence)
	defer silence.Stop()
	select {
	case <-more:
		return true
	case <-t.ended:
	case <-silence.C:
	case <-ctx.Done():
	}
	return false
}

// silent reports whether the sender of a file may have gone without a word; s.mu is held.
func (s *Store) silent(t *transfer) bool {
	return !t.Waits && s.cfg.Now().Sub(t.heard).Abs() >= s.silence
}

// take receives a file and gives it as it is then. Whatever goes wrong, nothing is to be
// seen of it in the folder; what the sender may go on with stays hidden there.
func (s *Store) take(ctx context.Context, in incoming) (status.DropFile, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(ctx, func() { _ = in.until(time.Now()) })()
	t, err := s.claim(ctx, in, stop)
	if err != nil {
		return status.DropFile{}, err
	}
	end, err := s.turns.take(ctx, in.key)
	if err != nil {
		s.leave(t)
		return status.DropFile{}, err
	}
	defer end() // the next one begins when this one is over
	defer s.leave(t)
	s.begun(t)
	p, err := s.open()
	if err != nil {
		return status.DropFile{}, err
	}
	defer p.Close()
	f, err := p.begin(t.part, in.offset)
	if err != nil {
		return status.DropFile{}, onDisk(err)
	}
	defer f.Close()
	out := status.DropFile{From: in.peer, At: s.cfg.Now()}
	err = s.fill(ctx, in, t, p, f)
	if err == nil {
		s.naming.Lock()
		out.Name, err = p.keep(f, t.part, in.name, in.peer)
		s.naming.Unlock()
		err = onDisk(err)
	}
	var cut *cutError
	if err != nil {
		if !errors.As(err, &cut) || t.Done == 0 || t.part != partName(in.key, in.name, 0) {
			_ = p.remove(t.part)
		}
		return status.DropFile{}, err
	}
	out.Size = t.Done
	s.arrived(out)
	s.cfg.Log.Info("a file arrived", "from", in.peer, "name", out.Name, "size", out.Size)
	return out, nil
}

// claim makes the file one that is under way. Who goes on with it takes it over from a
// connection that nobody is at any more; another of the same name stands beside it.
func (s *Store) claim(ctx context.Context, in incoming, stop context.CancelCauseFunc) (*transfer, error) {
	t := &transfer{stop: stop}
	t.Name, t.Peer, t.Size, t.Waits = in.name, in.peer, in.size, true
	if in.size >= 0 {
		t.Size += in.offset
	}
	t.Done = in.offset
	for nth := 0; ; {
		t.part = partName(in.key, in.name, nth)
		s.mu.Lock()
		was := s.arriving(t.part)
		over := was != nil && nth == 0 && (in.offset > 0 || s.silent(was))
		if was == nil {
			s.add(t)
		}
		s.mu.Unlock()
		switch {
		case was == nil:
			s.cfg.Changed()
			return t, nil
		case !over:
			nth++
			continue
		}
		was.stop(ErrMoved)
		select {
		case <-was.ended:
		case <-ctx.Done():
			return nil, &cutError{context.Cause(ctx)}
		}
	}
}

// fill copies what the sender sends.
func (s *Store) fill(ctx context.Context, in incoming, t *transfer, p *place, f *os.File) error {
	if err := s.room(p, t); err != nil {
		return err
	}
	b := make([]byte, buffer)
	for unchecked := 0; ; {
		_ = in.until(time.Now().Add(patience))
		if ctx.Err() != nil {
			return &cutError{context.Cause(ctx)}
		}
		n, err := in.body.Read(b)
		if n > 0 {
			if _, err := f.Write(b[:n]); err != nil {
				return onDisk(err)
			}
			s.moved(t, n)
			unchecked += n
		}
		last := errors.Is(err, io.EOF)
		if unchecked >= recheck || last {
			if err := s.room(p, t); err != nil {
				return err
			}
			unchecked = 0
		}
		switch {
		case last:
			return nil
		case ctx.Err() != nil:
			return &cutError{context.Cause(ctx)}
		case err != nil:
			return &cutError{err}
		}
	}
}

// cutError is a sender's that stopped amid a file.
type cutError struct{ err error }

func (e *cutError) Error() string { return "the file ended too early: " + e.err.Error() }

func (e *cutError) Unwrap() error { return e.err }

// room reports with nil that what is left of a transfer has room, beside what others have
// been promised. What nobody may go on with any more goes first.
func (s *Store) room(p *place, t *transfer) error {
	err := s.fits(p, t)
	if err == nil || s.tidy(p, 0) == 0 {
		return err
	}
	return s.fits(p, t)
}

func (s *Store) fits(p *place, t *transfer) error {
	s.mu.Lock()
	set, need, all := s.set, t.left(), int64(0)
	for _, o := range s.under {
		all += o.left()
	}
	s.mu.Unlock()
	free, err := p.free()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDisk, err)
	}
	if free-set.KeepFree < all {
		return fmt.Errorf("%w: %d bytes are wanted, %d are free, of which %d stay free", ErrFull, need, free, set.KeepFree)
	}
	if set.Quota <= 0 {
		return nil
	}
	used := int64(0)
	files, err := p.list()
	for _, f := range files {
		used += f.size
	}
	if err == nil && used+all > set.Quota {
		return fmt.Errorf("%w: %d bytes are wanted, %d of %d are taken", ErrQuota, need, used, set.Quota)
	}
	return err
}

// tidy removes what was left half-way so long ago, and says how many files that were.
func (s *Store) tidy(p *place, age time.Duration) (gone int) {
	files, err := p.list()
	if err != nil {
		return 0
	}
	now := s.cfg.Now()
	for _, f := range files {
		s.mu.Lock()
		left := f.part && now.Sub(f.at) >= age && s.arriving(f.name) == nil && p.remove(f.name) == nil
		s.mu.Unlock()
		if left {
			gone++
		}
	}
	return gone
}

// onDisk puts what a file system says in our words.
func onDisk(err error) error {
	switch {
	case err == nil, errors.Is(err, ErrOffset), errors.Is(err, ErrTaken):
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: %w", ErrFull, err)
	case errors.Is(err, unix.ENAMETOOLONG):
		return fmt.Errorf("%w: %w", ErrName, err)
	}
	return fmt.Errorf("%w: %w", ErrDisk, err)
}
