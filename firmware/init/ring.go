package pid1

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	longest = 1024 // bytes of a line
	kept    = 256  // lines of a service
	queued  = 128  // lines that a slow console may lag behind
)

// ring is the last lines of one service, in memory.
type ring struct {
	mu    sync.Mutex
	began time.Time
	lines [kept]string
	next  int
}

func newRing() *ring { return &ring{began: time.Now()} }

// add keeps a line with the seconds since the boot: the clock may still be wrong.
func (r *ring) add(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines[r.next%kept] = fmt.Sprintf("[%10.3f] %s\n", time.Since(r.began).Seconds(), text)
	r.next++
}

func (r *ring) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	for i := max(0, r.next-kept); i < r.next; i++ {
		b.WriteString(r.lines[i%kept])
	}
	return b.String()
}

// screen is the console. A serial line that stands still holds nobody up: lines are lost.
type screen struct{ lines chan string }

func newScreen(w io.Writer) *screen {
	s := &screen{lines: make(chan string, queued)}
	go func() {
		for line := range s.lines {
			_, _ = io.WriteString(w, line+"\r\n") // to whom should it be told
		}
	}()
	return s
}

func (s *screen) say(text string) {
	select {
	case s.lines <- text:
	default:
	}
}

// Write is for a logger: one line at a time.
func (s *screen) Write(b []byte) (int, error) {
	s.say("init: " + strings.TrimRight(string(b), "\n"))
	return len(b), nil
}

func (i *initer) console() io.Writer {
	i.screen = newScreen(os.Stderr)
	return i.screen
}
