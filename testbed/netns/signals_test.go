package netns_test

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// TestSignals: whoever sends a signal need not know whether the daemon starts, serves or stops. SIGHUP never ends it,
// SIGTERM always does, in good order; nor does it end because nobody reads its log any more.
func TestSignals(t *testing.T) {
	lab := netns.New(t)
	d := lab.SubnetdIdle(lab.Home(netns.Public).Router, daemonConfig)
	t.Run("hangup-at-start", func(t *testing.T) {
		next := startHeld(t, d, syscall.SIGHUP)
		feed(t, next) // it reads the file again, the new one
		netns.Eventually(t, 15*time.Second, "the configuration is in force", func() error {
			_, err := d.StatusJSON()
			if err == nil && !strings.Contains(strings.Join(d.Log(), "\n"), "configuration read again") {
				err = errors.New(strings.Join(d.Log(), "\n"))
			}
			return err
		})
		wantStop(t, d)
	})
	t.Run("terminated-at-start", func(t *testing.T) {
		startHeld(t, d, syscall.SIGTERM)
		wantStop(t, d)
	})
	d.Host.WriteFile(d.Config+".new", daemonConfig)
	if err := os.Rename(d.Config+".new", d.Config); err != nil {
		t.Fatal(err)
	}
	t.Run("hangup-at-stop", func(t *testing.T) {
		for range 10 {
			d.Start()
			hangupsAtStop(t, d)
		}
	})
	t.Run("log-unread", func(t *testing.T) { logUnread(t, d) })
}

// startHeld starts the daemon, sends it a signal while it reads its configuration, and lets it go on. It gives the pipe
// that is the configuration from then on.
func startHeld(t *testing.T, d *netns.Subnetd, s syscall.Signal) (next string) {
	t.Helper()
	pipe(t, d.Config)
	d.Launch()
	first := reader(t, d.Config)
	pipe(t, d.Config)
	if err := d.Signal(s); err != nil {
		t.Fatal(err)
	}
	write(t, first)
	return d.Config
}

// pipe puts a new pipe in the place of a file: whoever opens that waits for the test.
func pipe(t *testing.T, path string) {
	t.Helper()
	if err := errors.Join(syscall.Mkfifo(path+".pipe", 0o600), os.Rename(path+".pipe", path)); err != nil {
		t.Fatal(err)
	}
}

// reader waits until somebody reads a pipe, and gives the end to write to.
func reader(t *testing.T, path string) (w *os.File) {
	t.Helper()
	netns.Eventually(t, 15*time.Second, "the configuration is read", func() (err error) {
		w, err = os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0) // without a reader that is an error
		return err
	})
	return w
}

func write(t *testing.T, w *os.File) {
	t.Helper()
	if _, err := io.WriteString(w, daemonConfig); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func feed(t *testing.T, path string) {
	t.Helper()
	write(t, reader(t, path))
}

func wantStop(t *testing.T, d *netns.Subnetd) {
	t.Helper()
	if err := d.Stop(); err != nil {
		t.Fatalf("its end: %v", err)
	}
}

// hangupsAtStop asks the daemon to end and hangs up until it has.
func hangupsAtStop(t *testing.T, d *netns.Subnetd) {
	t.Helper()
	if err := errors.Join(d.Signal(syscall.SIGHUP), d.Signal(syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- d.Stop() }()
	for {
		select {
		case err := <-ended:
			if err != nil {
				t.Fatalf("its end: %v", err)
			}
			return
		default:
			_ = d.Signal(syscall.SIGHUP) // unless it has ended
		}
	}
}

// logUnread: who reads the daemon's log goes away, and it has more to say.
func logUnread(t *testing.T, d *netns.Subnetd) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	run := d.Cmd(ctx, "run", "--config", d.Config, "--state", d.State)
	run.Stderr = w
	if err := errors.Join(run.Start(), w.Close()); err != nil {
		t.Fatal(err)
	}
	netns.Eventually(t, 15*time.Second, "the daemon answers", func() error {
		_, err := d.StatusJSON()
		return err
	})
	if err := errors.Join(r.Close(), run.Process.Signal(syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	if err := run.Wait(); err != nil {
		t.Errorf("its end: %v", err)
	}
}
