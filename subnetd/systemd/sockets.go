package systemd

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Inherited are the sockets that were given to this process, sd_listen_fds(3).
type Inherited struct {
	first int
	names []string // of the descriptors from first on
}

// NewInherited reads the environment of the process with that ID. They are not passed on
// to the programs that it starts.
func NewInherited(getenv func(string) string, pid int) Inherited { return inherited(getenv, pid, 3) }

func inherited(getenv func(string) string, pid, first int) Inherited {
	in := Inherited{first: first}
	if !Built || getenv("LISTEN_PID") != strconv.Itoa(pid) {
		return in
	}
	in.names = strings.Split(getenv("LISTEN_FDNAMES"), ":")
	if n, err := strconv.Atoi(getenv("LISTEN_FDS")); err != nil || n != len(in.names) {
		return Inherited{} // who started us gives each a name
	}
	for i := range in.names {
		unix.CloseOnExec(first + i)
	}
	return in
}

// PassOn leaves them to the program that takes this one's place by exec(2).
func (in Inherited) PassOn() error {
	for i := range in.names {
		if _, err := unix.FcntlInt(uintptr(in.first+i), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("passing a socket on: %w", err)
		}
	}
	return nil
}

// Listeners gives what listens by TCP under a name. They may be closed: what was given
// stays open for PassOn.
func (in Inherited) Listeners(name string) ([]net.Listener, error) {
	if !Built {
		return nil, nil
	}
	var all []net.Listener
	for i, n := range in.names {
		if n != name {
			continue
		}
		l, err := listener(in.first+i, name)
		if err != nil {
			return all, fmt.Errorf("the socket %s of systemd: %w", name, err)
		}
		all = append(all, l)
	}
	return all, nil
}

func listener(fd int, name string) (net.Listener, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(own), name)
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	if _, ok := l.(*net.TCPListener); !ok {
		l.Close()
		return nil, fmt.Errorf("%s is not of TCP", l.Addr())
	}
	return l, nil
}
