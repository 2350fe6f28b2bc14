// Package systemd is what a service and systemd say to each other. Where there is no
// systemd nobody is told, no socket is given, and the log goes where it went.
//
//	notify.go   how the service stands, and that it lives
//	sockets.go  sockets that were open before it
//	journal.go  lines of the log with their fields
package systemd

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Built is whether a program has any of this. MIPS routers have procd, and no flash for what
// they do not use.
const Built = runtime.GOARCH != "mips" && runtime.GOARCH != "mipsle"

// What Tell says, sd_notify(3).
const (
	Ready     = "READY=1"
	Reloading = "RELOADING=1"
	Stopping  = "STOPPING=1"
	Alive     = "WATCHDOG=1"
	Status    = "STATUS=" // and a line for `systemctl status`
)

// Manager is who started us and wants to know how we stand. The zero Manager is nobody.
type Manager struct {
	at string // address of its socket
	// Watchdog is within what time Alive must come again and again; 0: it need not.
	Watchdog time.Duration
}

// NewManager reads the environment of the process with that ID.
func NewManager(getenv func(string) string, pid int) Manager {
	if !Built {
		return Manager{}
	}
	m := Manager{at: getenv("NOTIFY_SOCKET")}
	usec, err := strconv.ParseUint(getenv("WATCHDOG_USEC"), 10, 50)
	if whom := getenv("WATCHDOG_PID"); err == nil && m.There() && (whom == "" || whom == strconv.Itoa(pid)) {
		m.Watchdog = time.Duration(usec) * time.Microsecond
	}
	return m
}

// There reports whether there is anybody.
func (m Manager) There() bool { return m.at != "" }

// Tell says how we stand, in one message.
func (m Manager) Tell(lines ...string) error {
	if !Built || !m.There() {
		return nil
	}
	if err := datagram(m.at, []byte(strings.Join(lines, "\n"))); err != nil {
		return fmt.Errorf("telling systemd: %w", err)
	}
	return nil
}

// Now is what goes with Reloading: systemd 253 and later tell by it which request for a
// reload is meant.
func Now() (string, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return "", err
	}
	return "MONOTONIC_USEC=" + strconv.FormatInt(t.Nano()/1000, 10), nil
}

// datagram sends one to a socket: a path, or an abstract name after an @.
func datagram(to string, b []byte) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, b, unix.MSG_NOSIGNAL, &unix.SockaddrUnix{Name: to})
}
