package systemd

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// give puts copies of sockets where a process inherits them, at free descriptors in a row.
func give(t *testing.T, all ...interface{ File() (*os.File, error) }) (first int) {
	t.Helper()
	const far = 400
	for i, s := range all {
		f, err := s.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := unix.Dup3(int(f.Fd()), far+i, 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(far + i) })
	}
	return far
}

func listenTCP(t *testing.T) *net.TCPListener {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func closedOnExec(t *testing.T, fd int) bool {
	t.Helper()
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil {
		t.Fatal(err)
	}
	return flags&unix.FD_CLOEXEC != 0
}

func TestInherited(t *testing.T) {
	web, other, web2 := listenTCP(t), ear(t, filepath.Join(t.TempDir(), "other")), listenTCP(t)
	first := give(t, web, other, web2)
	pid := strconv.Itoa(os.Getpid())
	in := inherited(environment{"LISTEN_PID": pid, "LISTEN_FDS": "3", "LISTEN_FDNAMES": "web:log:web"}.get, os.Getpid(), first)
	all, err := in.Listeners("web")
	if err != nil || len(all) != 2 || all[0].Addr().String() != web.Addr().String() || all[1].Addr().String() != web2.Addr().String() {
		t.Fatalf("%v, %v", all, err)
	}
	if all, err := in.Listeners("log"); err == nil || len(all) != 0 {
		t.Errorf("what takes datagrams was taken for a listener: %v", all)
	}
	if all, err := in.Listeners("none"); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	for i := range 3 {
		if !closedOnExec(t, first+i) {
			t.Errorf("a program that we start gets socket %d", i)
		}
	}

	// The next program finds them although this one has closed what it had.
	for _, l := range all {
		l.Close()
	}
	web.Close()
	if err := in.PassOn(); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if closedOnExec(t, first+i) {
			t.Errorf("socket %d is not passed on", i)
		}
	}
	again, err := in.Listeners("web")
	if err != nil || len(again) != 2 {
		t.Fatalf("%v, %v", again, err)
	}
	defer again[1].Close()
	defer again[0].Close()
	c, err := net.Dial("tcp", web.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := again[0].Accept(); err != nil {
		t.Error(err)
	} else {
		got.Close()
	}
}

func TestNothingInherited(t *testing.T) {
	pid := strconv.Itoa(os.Getpid())
	for _, env := range []environment{
		{},
		{"LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"},
		{"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"},
		{"LISTEN_PID": pid, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "web"},
		{"LISTEN_PID": pid, "LISTEN_FDS": "-1", "LISTEN_FDNAMES": "web"},
		{"LISTEN_PID": pid, "LISTEN_FDS": "x", "LISTEN_FDNAMES": "web"},
		{"LISTEN_PID": pid, "LISTEN_FDS": "1"},
	} {
		in := NewInherited(env.get, os.Getpid())
		if all, err := in.Listeners("web"); err != nil || len(all) != 0 {
			t.Errorf("%v: %v, %v", env, all, err)
		}
	}
	// One that is named and not there is an error, and no reason to go without the others.
	in := inherited(environment{"LISTEN_PID": pid, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "web:web"}.get, os.Getpid(), give(t, listenTCP(t)))
	if all, err := in.Listeners("web"); len(all) != 1 || !errors.Is(err, unix.EBADF) {
		t.Errorf("%v, %v", all, err)
	}
}
