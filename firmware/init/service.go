package pid1

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Service is a program that shall always run. It says that it is up as services of
// systemd do, by READY=1 to $NOTIFY_SOCKET (sd_notify(3)); or Up says so, which is asked again
// and again until it has no error.
type Service struct {
	Name    string
	Command []string
	Up      func(context.Context) error // nil: it says so itself
	After   string                      // the service that has to come up once before this one is started; "": none
	Tells   string                      // the service that is reloaded whenever this one has come up; "": none
}

const (
	firstWait = time.Second // before a service is started again; it doubles
	mostWait  = time.Minute
	calmAfter = time.Minute // a service that ran that long begins with firstWait
	endWait   = 10 * time.Second
	askWait   = 200 * time.Millisecond // between two questions whether it is up
	askLimit  = 10 * time.Second       // for the answer
)

// backoff is how long to wait before the next start.
func backoff(last, ran time.Duration) time.Duration {
	switch {
	case ran >= calmAfter || last == 0:
		return firstWait
	case last >= mostWait/2:
		return mostWait
	}
	return 2 * last
}

// running is one service and its life so far.
type running struct {
	Service
	children *children
	ring     *ring
	screen   *screen
	after    <-chan struct{} // closed when it may be started
	tell     func()          // reloads the one it tells
	up       chan struct{}   // closed when it was up once
	ended    chan struct{}   // closed when it will not run any more

	mu     sync.Mutex
	pid    int // 0: it does not run
	isUp   bool
	since  time.Time // of pid or its end
	starts int
	last   string // how it ended
	upOnce sync.Once
}

func newRunning(s Service, c *children, screen *screen) *running {
	now := make(chan struct{})
	close(now)
	return &running{Service: s, children: c, ring: newRing(), screen: screen, after: now, tell: func() {}, since: time.Now(),
		up: make(chan struct{}), ended: make(chan struct{})}
}

// keep starts the service for ever.
func (r *running) keep(ctx context.Context) {
	defer close(r.ended)
	select {
	case <-r.after:
	case <-ctx.Done():
		return
	}
	var wait time.Duration
	for {
		began := time.Now()
		if err := r.once(ctx); ctx.Err() != nil {
			return
		} else if err != nil {
			r.say(fmt.Sprintf("ended: %v", err))
		}
		wait = backoff(wait, time.Since(began))
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// once runs the service to its end. When ctx ends, it is asked to, and made to.
func (r *running) once(ctx context.Context) error {
	socket, notify, err := r.listen()
	if err != nil {
		return err
	}
	defer notify.Close()
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close()
	pid, ended, err := r.start(socket, in)
	_ = in.Close() // it is the child's
	if err != nil {
		return err
	}
	r.began(pid)
	go r.read(out)
	life, cancel := context.WithCancel(ctx)
	defer cancel()
	go r.notified(notify)
	go r.asked(life)
	status := r.await(ctx, pid, ended)
	_ = unix.Kill(-pid, unix.SIGKILL) // what it left behind in its group
	return r.over(status)
}

func (r *running) start(socket string, out *os.File) (pid int, ended <-chan unix.WaitStatus, err error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, nil, err
	}
	defer null.Close()
	env := append(os.Environ(), "NOTIFY_SOCKET="+socket)
	return r.children.start(r.Command, &os.ProcAttr{Env: env, Files: []*os.File{null, out, out}, Sys: &syscall.SysProcAttr{Setpgid: true}})
}

func (r *running) await(ctx context.Context, pid int, ended <-chan unix.WaitStatus) unix.WaitStatus {
	select {
	case st := <-ended:
		return st
	case <-ctx.Done():
	}
	r.children.signal(pid, unix.SIGTERM)
	select {
	case st := <-ended:
		return st
	case <-time.After(endWait):
	}
	r.children.signal(pid, unix.SIGKILL)
	return <-ended
}

// listen opens the socket where the service says that it is up.
func (r *running) listen() (string, *net.UnixConn, error) {
	file := filepath.Join(RunDir, r.Name+".notify")
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", nil, err
	}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: file, Net: "unixgram"})
	return file, c, err
}

func (r *running) notified(c *net.UnixConn) {
	b := make([]byte, 4096)
	for {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		for line := range strings.Lines(string(b[:n])) {
			if strings.TrimSpace(line) == "READY=1" {
				r.isReady()
			}
		}
	}
}

// asked asks whether the service is up until it is.
func (r *running) asked(ctx context.Context) {
	for r.Up != nil && r.down(time.Now()) > 0 {
		if r.ask(ctx) == nil {
			r.isReady()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(askWait):
		}
	}
}

func (r *running) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	return r.Up(ctx)
}

func (r *running) began(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pid, r.isUp, r.since = pid, false, time.Now()
	r.starts++
}

func (r *running) isReady() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pid == 0 {
		return
	}
	if !r.isUp {
		r.isUp, r.since = true, time.Now()
		r.tell()
	}
	r.upOnce.Do(func() { close(r.up) })
}

func (r *running) over(st unix.WaitStatus) error {
	err := fmt.Errorf("exit status %d", st.ExitStatus())
	if st.Signaled() {
		err = fmt.Errorf("signal %v", st.Signal())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pid, r.isUp, r.since, r.last = 0, false, time.Now(), err.Error()
	return err
}

// down says since when the service has not been up; zero: it is.
func (r *running) down(now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isUp {
		return 0
	}
	return now.Sub(r.since)
}

// reload has the service read its files again. One that does not run will, when it starts.
func (r *running) reload() {
	r.mu.Lock()
	pid := r.pid
	r.mu.Unlock()
	if pid != 0 {
		r.children.signal(pid, unix.SIGHUP)
	}
}

func (r *running) state() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	what := map[bool]string{true: "up", false: "starting"}[r.isUp]
	if r.pid == 0 {
		what = "down"
	}
	line := fmt.Sprintf("%-8s %-8s since %v, started %d times", r.Name, what, time.Since(r.since).Round(time.Second), r.starts)
	if r.last != "" {
		line += ", last end: " + r.last
	}
	return line
}

// read takes what the service writes, line by line, however long.
func (r *running) read(out io.Reader) {
	b := bufio.NewReaderSize(out, longest)
	for {
		line, err := b.ReadSlice('\n')
		if text := strings.TrimRight(string(line), "\r\n"); text != "" {
			r.say(text)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

func (r *running) say(text string) {
	r.ring.add(text)
	r.screen.say(r.Name + ": " + text)
}
