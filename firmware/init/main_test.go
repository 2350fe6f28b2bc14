package pid1

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"
)

// The test binary is PID 1 of namespaces of its own, where reboot(2) is real: the kernel
// ends the namespace by SIGHUP for a restart and by SIGINT for the others
// (pid_namespaces(7)). It is also the services that PID 1 runs.
const role = "APPLIANCE_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "":
		if os.Getuid() != 0 {
			if os.Getenv("CI") == "true" {
				fmt.Fprintln(os.Stderr, "these tests need root")
				os.Exit(1)
			}
			fmt.Fprintln(os.Stderr, "skipped: these tests need root")
			return
		}
		os.Exit(m.Run())
	case "init":
		fmt.Fprintln(os.Stderr, asInit(os.Getenv("TRIAL") != ""))
		os.Exit(1)
	}
	os.Exit(asService(os.Args[1]))
}

// asInit enters the root that the test has made, as stage1 does.
func asInit(trial bool) error {
	root := os.Getenv("ROOT")
	if err := errors.Join(
		syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""),
		syscall.Mount(root, root, "", syscall.MS_BIND, ""),
		syscall.Mount("/usr", root+"/usr", "", syscall.MS_BIND|syscall.MS_REC, ""),
		syscall.Mount("/dev", root+"/dev", "", syscall.MS_BIND|syscall.MS_REC, ""),
		syscall.Chroot(root), os.Chdir("/"), os.Setenv(role, "service")); err != nil {
		return err
	}
	service := func(name string) Service { return Service{Name: name, Command: []string{"/self", name}} }
	c := Config{
		Limit:    time.Minute,
		Before:   [][]string{{"/usr/bin/env", "true"}, {"/usr/bin/env", "false"}},
		Defaults: map[string]string{"/data/etc/default": "as made\n", "/self": "not written\n"},
		Services: []Service{service("good"), service("crash"),
			{Name: "asked", After: "good", Tells: "good", Command: []string{"/self", "orphans"}, Up: orphaned}},
		Confirm: func() error { return os.WriteFile("/data/confirmed", nil, 0o600) },
		Note:    "this is the old image",
	}
	if trial {
		c.Trial, c.Limit, c.Services = true, 200*time.Millisecond, []Service{service("mute")}
	}
	return Run(c)
}

// orphaned reports whether the service "asked" has done what it is asked for.
func orphaned(context.Context) error {
	_, err := os.Stat("/run/orphaned")
	return err
}

func asService(name string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	switch name {
	case "crash":
		ready()
		fmt.Println("falls over")
		return 3
	case "orphans": // a grandchild outlives its parent and is PID 1's
		for range 20 {
			c := exec.Command("/usr/bin/env", "sh", "-c", "env sleep 0.01 & exit 0")
			if err := c.Run(); err != nil {
				fmt.Println(err)
			}
		}
		_ = os.WriteFile("/run/orphaned", nil, 0o600)
	case "good":
		fmt.Println("works")
		hup := make(chan os.Signal, 1)
		signal.Notify(hup, syscall.SIGHUP)
		ready()
		go func() {
			for range hup {
				fmt.Println("reads again")
			}
		}()
	}
	<-ctx.Done()
	fmt.Println("was asked to end")
	return 0
}

func ready() {
	c, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	_, _ = c.Write([]byte("STATUS=works\nREADY=1"))
}
