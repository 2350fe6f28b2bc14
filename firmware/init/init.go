// Package pid1 is the first process of the appliance.
//
//	Run      mounts -> modules -> data -> clock -> guard -> services -> good boot -> orderly end
//	mounts   what stage1 has not mounted yet
//	children start processes, reap all that end
//	service  keeps one process running, with back-off, and its last lines in a ring
//	control  answers `appliance log|status|reload|reboot|poweroff|reset` on a unix socket
//	down     the end: services, everybody else, file systems, reboot(2)
//
// It works on without what fails: a router that has no disk still is a router.
package pid1

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Places in the file system.
const (
	Socket    = "/run/appliance.sock"
	RunDir    = "/run/appliance"
	DataDir   = "/data"
	ResetFile = DataDir + "/factory-reset" // data is wiped at the next boot
	stampFile = DataDir + "/clock"
)

// Config is what the appliance is made of. Funcs may be nil: that is not there then.
type Config struct {
	MountData func(context.Context) error // mounts /data, made or repaired; wiped where it holds ResetFile
	Modules   func() error                // loads the kernel's modules, for the hardware that is there and for what runs
	Trial     bool                        // this image is tried: it is left again by a reboot if it does not come up
	Limit     time.Duration               // for all services to come up
	Confirm   func() error                // this image came up
	Note      string                      // what the owner is told of how this image came to run
	Built     time.Time                   // it is not earlier than that
	Before    [][]string                  // commands that are run to their end before the services
	Services  []Service
	Defaults  map[string]string // files that are written where they are missing
	Shell     bool              // a root shell on the console
}

// Run is PID 1: it returns only if the kernel does not end it.
func Run(c Config) error {
	i := &initer{cfg: c, started: time.Now(), children: newChildren()}
	i.log = slog.New(slog.NewTextHandler(i.console(), &slog.HandlerOptions{ReplaceAttr: withoutTime}))
	signals := listen()
	i.boot()
	go i.children.reapAll(signals.child)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	return i.run(ctx, cancel, signals.end)
}

// initer is the one PID 1 of the machine.
type initer struct {
	cfg      Config
	log      *slog.Logger
	started  time.Time
	children *children
	screen   *screen
	running  []*running
	orders   chan ending
}

// boot is what happens before anything runs beside it.
func (i *initer) boot() {
	i.try("mount", mountAll())
	if i.cfg.Modules != nil {
		i.try("load modules", i.cfg.Modules())
	}
	i.try("mount the data", i.data())
	i.try("set the clock", i.clock())
	i.try("set the host name", unix.Sethostname([]byte(hostname())))
	i.try("bring the loopback up", loopback())
	for file, text := range i.cfg.Defaults {
		i.try("write "+file, writeMissing(file, text))
	}
	for _, command := range i.cfg.Before {
		out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, out)
		}
		i.try("run", err)
	}
	if i.cfg.Note != "" {
		i.log.Warn(i.cfg.Note)
	}
}

// try says what failed; init itself goes on.
func (i *initer) try(what string, err error) {
	if err != nil {
		i.log.Error("init could not "+what, "err", err)
	}
}

// data mounts what outlives a boot. Without a disk that is memory.
func (i *initer) data() error {
	err := errors.New("there is no disk")
	if i.cfg.MountData != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		defer cancel()
		err = i.cfg.MountData(ctx)
	}
	if err == nil {
		return nil
	}
	return errors.Join(fmt.Errorf("%w: keys and settings live in memory until the next boot", err),
		mountOne(mount{DataDir, "tmpfs", "data", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755,size=32m"}))
}

// run supervises until the end is ordered.
func (i *initer) run(ctx context.Context, cancel context.CancelFunc, signals <-chan os.Signal) error {
	i.orders = make(chan ending, 1)
	for _, s := range i.cfg.Services {
		r := newRunning(s, i.children, i.screen)
		i.running = append(i.running, r)
	}
	for _, r := range i.running {
		for _, other := range i.running {
			switch other.Name {
			case r.Tells:
				r.tell = other.reload
			case r.After:
				r.after = other.up
			}
		}
		go r.keep(ctx)
	}
	if i.cfg.Shell {
		go i.shell(ctx)
	}
	i.try("answer on "+Socket, i.serve(ctx))
	go i.judge(ctx)
	go i.feed(ctx)
	how := i.await(signals)
	cancel()
	return i.end(how)
}

func (i *initer) await(signals <-chan os.Signal) ending {
	select {
	case how := <-i.orders:
		return how
	case s := <-signals:
		return endings[s]
	}
}

// order asks for the end; who comes second has no say.
func (i *initer) order(how ending) {
	select {
	case i.orders <- how:
	default:
	}
}

// judge confirms the image as soon as all services were up at once. One that is tried
// and does not come up is left by a reboot.
func (i *initer) judge(ctx context.Context) {
	limit := time.NewTimer(i.cfg.Limit)
	defer limit.Stop()
	for _, r := range i.running {
		select {
		case <-r.up:
		case <-ctx.Done():
			return
		case <-limit.C:
			i.late(r)
			return
		}
	}
	if i.cfg.Confirm != nil {
		i.try("confirm this image", i.cfg.Confirm())
	}
	i.log.Info("all is up", "after", time.Since(i.started).Round(10*time.Millisecond))
}

func (i *initer) late(r *running) {
	i.log.Error("did not come up in time", "service", r.Name)
	if i.cfg.Trial {
		i.log.Error("this image is left for the one before")
		i.order(reboot)
	}
}

func writeMissing(file, text string) error {
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

// hostname is the owner's wish, or what the maker wrote on the box.
func hostname() string {
	for _, file := range []string{DataDir + "/etc/hostname", "/etc/hostname"} {
		text, err := os.ReadFile(file)
		if name := strings.TrimSpace(string(text)); err == nil && name != "" && len(name) <= 63 {
			return name
		}
	}
	return "appliance"
}

func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}
