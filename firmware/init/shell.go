package pid1

import (
	"context"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// shell keeps a root shell on the console: for the bench, not for the house.
func (i *initer) shell(ctx context.Context) {
	for {
		if err := i.oneShell(ctx); err != nil {
			i.log.Warn("no shell", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(firstWait):
		}
	}
}

func (i *initer) oneShell(ctx context.Context) error {
	tty, err := os.OpenFile("/dev/console", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer tty.Close()
	pid, ended, err := i.children.start([]string{"/bin/sh"}, &os.ProcAttr{Env: append(os.Environ(), "HOME=/run", "PS1=appliance# "),
		Files: []*os.File{tty, tty, tty}, Sys: &syscall.SysProcAttr{Setsid: true, Setctty: true}})
	if err != nil {
		return err
	}
	select {
	case <-ended:
	case <-ctx.Done():
		i.children.signal(pid, unix.SIGKILL)
		<-ended
	}
	return nil
}
