package web

import (
	"context"
	"log/slog"
	"strings"
	"sync"

	"subnetd/subnetd/status"
)

const (
	mostLines = 512
	mostLine  = 512 // bytes of a line's text
)

// Ring is the last lines of the log.
type Ring struct {
	mu      sync.Mutex // guards all below
	lines   [mostLines]status.LogLine
	next    uint64        // number of the next line; its place is next % mostLines
	changed chan struct{} // closed and replaced at each line
}

// NewRing gives an empty one.
func NewRing() *Ring { return &Ring{changed: make(chan struct{})} }

// Tee is a handler for what goes to another one and into the ring.
func (r *Ring) Tee(to slog.Handler) slog.Handler { return &tee{Handler: to, ring: r} }

func (r *Ring) add(l status.LogLine) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines[r.next%mostLines] = l
	r.next++
	close(r.changed)
	r.changed = make(chan struct{})
}

// Lines is all that are still there.
func (r *Ring) Lines() []status.LogLine {
	lines, _, _ := r.since(0)
	return lines
}

// since is the lines with at least that number, and the number of the next.
func (r *Ring) since(n uint64) (lines []status.LogLine, next uint64, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next > mostLines {
		n = max(n, r.next-mostLines)
	}
	for ; n < r.next; n++ {
		lines = append(lines, r.lines[n%mostLines])
	}
	return lines, r.next, r.changed
}

// logs sends the log until its reader leaves or may not look any more.
func (s *Server) logs(ctx context.Context, send sender, allowed func() bool) {
	next := uint64(0)
	for {
		lines, n, changed := s.cfg.Ring.since(next)
		next = n
		if !allowed() {
			return
		}
		for _, l := range lines {
			if send("log", marshal(l)) != nil {
				return
			}
		}
		if !rest(ctx, leastGap/2) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// tee is a slog.Handler. Attributes that were bound before stand in a line's text as
// they do in the log, those of groups with the group's name.
type tee struct {
	slog.Handler
	ring  *Ring
	part  string
	bound string // attributes, each after a space
	group string // with a dot at its end
}

// Handle implements slog.Handler.
func (t *tee) Handle(ctx context.Context, rec slog.Record) error {
	var b strings.Builder
	b.WriteString(rec.Message)
	b.WriteString(t.bound)
	rec.Attrs(func(a slog.Attr) bool {
		write(&b, t.group, a)
		return b.Len() < mostLine
	})
	line := b.String()
	if len(line) > mostLine {
		line = strings.ToValidUTF8(line[:mostLine], "") + "..."
	}
	t.ring.add(status.LogLine{Time: rec.Time, Level: rec.Level.String(), Part: t.part, Text: line})
	return t.Handler.Handle(ctx, rec)
}

func write(b *strings.Builder, group string, a slog.Attr) {
	b.WriteString(" " + group + a.Key + "=" + a.Value.Resolve().String())
}

// WithAttrs implements slog.Handler.
func (t *tee) WithAttrs(as []slog.Attr) slog.Handler {
	next := *t
	next.Handler = t.Handler.WithAttrs(as)
	var b strings.Builder
	b.WriteString(t.bound)
	for _, a := range as {
		if a.Key == "part" && t.group == "" {
			next.part = a.Value.String()
			continue
		}
		write(&b, t.group, a)
	}
	next.bound = b.String()
	return &next
}

// WithGroup implements slog.Handler.
func (t *tee) WithGroup(name string) slog.Handler {
	next := *t
	next.Handler = t.Handler.WithGroup(name)
	next.group += name + "."
	return &next
}
