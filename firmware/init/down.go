package pid1

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ending is how the machine goes down.
type ending int

const (
	reboot ending = iota
	poweroff
	halt
)

// names are the words of the control socket and of the command line.
var names = map[ending]string{reboot: "reboot", poweroff: "poweroff", halt: "halt"}

// endings are what busybox's init does on these, too. SIGINT is Ctrl-Alt-Del.
var endings = map[os.Signal]ending{
	syscall.SIGTERM: reboot, syscall.SIGINT: reboot, syscall.SIGUSR1: halt, syscall.SIGUSR2: poweroff,
}

var calls = map[ending]uint32{
	reboot: unix.LINUX_REBOOT_CMD_RESTART, poweroff: unix.LINUX_REBOOT_CMD_POWER_OFF, halt: unix.LINUX_REBOOT_CMD_HALT,
}

type signals struct{ child, end chan os.Signal }

func listen() signals {
	s := signals{make(chan os.Signal, 1), make(chan os.Signal, 1)}
	signal.Notify(s.child, syscall.SIGCHLD)
	for sig := range endings {
		signal.Notify(s.end, sig)
	}
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP) // heard by nobody; if it were ignored, the services would inherit that
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF)         // Ctrl-Alt-Del tells us; not everybody may ask that
	return s
}

// end takes the machine down in order. The services are already asked to end.
func (i *initer) end(how ending) error {
	i.log.Info("going down", "how", names[how])
	for _, r := range i.running {
		<-r.ended
	}
	i.try("keep the time", stamp())
	i.everybody()
	unix.Sync()
	i.unmount()
	err := unix.Reboot(int(int32(calls[how])))
	i.try("end the machine", err)
	return err
}

// everybody ends all other processes.
func (i *initer) everybody() {
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.Kill(-1, s); err != nil {
			return // nobody is left
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		for ctx.Err() == nil && unix.Kill(-1, 0) == nil {
			select { // the one who reaps tells nobody of strangers
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
		cancel()
	}
}

// unmount lets go of all disks, the last mounted first.
func (i *initer) unmount() {
	text, err := os.ReadFile("/proc/self/mounts")
	i.try("read the mounts", err)
	at := onDisk(string(text))
	for _, dir := range at {
		err := unix.Unmount(dir, 0)
		if err != nil {
			err = errors.Join(err, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		}
		i.try("unmount "+dir, err)
	}
}

// onDisk gives the mounts of file systems that are written to a disk.
func onDisk(mounts string) []string {
	var out []string
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) > 3 && f[1] != "/" && strings.HasPrefix(f[0], "/dev/") && slices.Contains([]string{"ext4", "vfat", "ext2"}, f[2]) {
			out = append(out, f[1])
		}
	}
	slices.Reverse(out)
	return out
}
