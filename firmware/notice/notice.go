// Package notice says what an attacker may cause as often as he likes once only.
package notice

import (
	"log/slog"
	"sync"
	"time"
)

const (
	quiet = time.Hour // until a cause is worth another line
	most  = 64        // causes that are told apart
)

// Log writes one line per cause and hour, and how often it was meanwhile.
type Log struct {
	log *slog.Logger
	now func() time.Time

	mu     sync.Mutex
	causes map[string]*cause
}

type cause struct {
	since time.Time
	more  int // times since it was said
}

// New gives a Log that asks now for the time.
func New(log *slog.Logger, now func() time.Time) *Log {
	return &Log{log: log, now: now, causes: map[string]*cause{}}
}

// Warn says what happened, unless the same was said within the hour. What is the same is
// told by the text; args are of the one that is written.
func (l *Log) Warn(text string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	c, known := l.causes[text]
	switch {
	case !known && len(l.causes) >= most:
		return
	case !known:
		l.causes[text] = &cause{since: now}
	case now.Sub(c.since) < quiet:
		c.more++
		return
	default:
		args = append(args, "more", c.more)
		*c = cause{since: now}
	}
	l.log.Warn(text, args...)
}
