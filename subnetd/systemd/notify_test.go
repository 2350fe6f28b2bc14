package systemd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// environment is what a process is told.
type environment map[string]string

func (e environment) get(name string) string { return e[name] }

// ear is a socket at which somebody listens to datagrams.
func ear(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func heard(t *testing.T, c *net.UnixConn) []byte {
	t.Helper()
	b := make([]byte, 256<<10)
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

func TestTell(t *testing.T) {
	for _, at := range []string{filepath.Join(t.TempDir(), "notify"), "@subnetd-test-" + strconv.Itoa(os.Getpid())} {
		c := ear(t, at)
		m := NewManager(environment{"NOTIFY_SOCKET": at}.get, 1)
		if err := m.Tell(Ready, Status+"well"); err != nil {
			t.Fatal(err)
		}
		if got := heard(t, c); string(got) != "READY=1\nSTATUS=well" {
			t.Errorf("%s: %q", at, got)
		}
		c.Close()
		if err := m.Tell(Alive); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: nobody listens: %v", at, err)
		}
	}
	if err := NewManager(environment{}.get, 1).Tell(Ready); err != nil {
		t.Errorf("without systemd: %v", err)
	}
}

func TestWatchdog(t *testing.T) {
	const at = "/run/systemd/notify"
	for _, tc := range []struct {
		env  environment
		want time.Duration
	}{
		{environment{"NOTIFY_SOCKET": at, "WATCHDOG_USEC": "60000000"}, time.Minute},
		{environment{"NOTIFY_SOCKET": at, "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "7"}, time.Minute},
		{environment{"NOTIFY_SOCKET": at, "WATCHDOG_USEC": "86400000000", "WATCHDOG_PID": "7"}, 24 * time.Hour},
		{environment{"NOTIFY_SOCKET": at, "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "8"}, 0},
		{environment{"WATCHDOG_USEC": "60000000"}, 0},
		{environment{"NOTIFY_SOCKET": at}, 0},
		{environment{"NOTIFY_SOCKET": at, "WATCHDOG_USEC": "soon"}, 0},
		{environment{"NOTIFY_SOCKET": at, "WATCHDOG_USEC": "-1"}, 0},
	} {
		if m := NewManager(tc.env.get, 7); m.Watchdog != tc.want || m.There() != (tc.env["NOTIFY_SOCKET"] != "") {
			t.Errorf("%v: %v", tc.env, m)
		}
	}
}

// TestNow: it is the clock of the machine's start, which runs on.
func TestNow(t *testing.T) {
	parse := func() int {
		s, err := Now()
		text, found := strings.CutPrefix(s, "MONOTONIC_USEC=")
		n, err2 := strconv.Atoi(text)
		if err != nil || err2 != nil || !found {
			t.Fatalf("%q, %v", s, err)
		}
		return n
	}
	b, err := os.ReadFile("/proc/uptime")
	if err != nil {
		t.Fatal(err)
	}
	var up float64
	if _, err := fmt.Sscan(string(b), &up); err != nil {
		t.Fatal(err)
	}
	if n := parse(); float64(n)/1e6 < up-1 { // hundredths, rounded
		t.Errorf("%d us, and the machine runs for %v s", n, up)
	}
	if a, b := parse(), parse(); b < a {
		t.Errorf("%d, then %d", a, b)
	}
}
