package pid1

import (
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// children are the processes of PID 1, among them orphans of others, which only it can
// reap. Nothing else here may wait for processes once reapAll runs.
type children struct {
	mu    sync.Mutex
	waits map[int]chan<- unix.WaitStatus
}

func newChildren() *children { return &children{waits: map[int]chan<- unix.WaitStatus{}} }

// start runs a program, whose end is told once.
func (c *children) start(argv []string, attr *os.ProcAttr) (pid int, ended <-chan unix.WaitStatus, err error) {
	c.mu.Lock() // it may end before it is in the table
	defer c.mu.Unlock()
	p, err := os.StartProcess(argv[0], argv, attr)
	if err != nil {
		return 0, nil, err
	}
	ch := make(chan unix.WaitStatus, 1)
	pid = p.Pid // Release forgets it
	c.waits[pid] = ch
	return pid, ch, p.Release()
}

// reapAll reaps whenever the kernel says that a child has ended.
func (c *children) reapAll(child <-chan os.Signal) {
	for {
		for c.reap() {
		}
		<-child
	}
}

// reap takes one process that has ended, if there is one.
func (c *children) reap() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	var st unix.WaitStatus
	pid, err := unix.Wait4(-1, &st, unix.WNOHANG, nil)
	if errors.Is(err, unix.EINTR) {
		return true
	}
	if err != nil || pid <= 0 {
		return false
	}
	if ch, ours := c.waits[pid]; ours {
		delete(c.waits, pid)
		ch <- st
	}
	return true
}

// signal sends a signal to the whole group of a process that is still ours.
func (c *children) signal(pid int, s unix.Signal) {
	c.mu.Lock() // so that the number is nobody else's
	defer c.mu.Unlock()
	if _, ours := c.waits[pid]; ours {
		_ = unix.Kill(-pid, s)
	}
}
