package sense

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"subnetd/subnetd/lan"
)

// The tests change interfaces, so the test binary runs itself again in a network
// namespace of its own, which goes away with it.
const inside = "SUBNETD_TEST_NETNS"

// What else this binary does when it is run: role is what a thing on the LAN plays.
const role = "SUBNETD_TEST_ROLE"

func TestMain(m *testing.M) {
	if r := os.Getenv(role); r != "" {
		os.Exit(play(r))
	}
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			fmt.Fprintln(os.Stderr, "these tests need root")
			os.Exit(1)
		}
		fmt.Fprintln(os.Stderr, "skipped: these tests need root")
		return
	}
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), inside+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := c.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// sh runs a command, which must not fail.
func sh(t testing.TB, line string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", "PATH=$PATH:/usr/sbin:/sbin; "+line).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// tool skips the test where a program is missing.
func tool(t testing.TB, name string) {
	t.Helper()
	if exec.Command("sh", "-c", "PATH=$PATH:/usr/sbin:/sbin; command -v "+name).Run() != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing", name)
		}
		t.Skipf("%s is missing", name)
	}
}

// router makes the interface lan0 with addresses of both families; what is at the other
// end of its cable is dev0, which has the MAC of the thing under test.
func router(t testing.TB) {
	t.Helper()
	sh(t, `ip link set lo up
		ip link add lan0 type veth peer name dev0 address `+deviceMAC+`
		ip addr add 192.168.77.1/24 dev lan0; ip addr add fd77::1/64 dev lan0 nodad
		sysctl -qw net.ipv4.neigh.lan0.retrans_time_ms=200 net.ipv6.neigh.lan0.retrans_time_ms=200
		ip link set lan0 up`)
	t.Cleanup(func() { sh(t, "ip link del lan0 2>/dev/null || true") })
}

const deviceMAC = "00:80:77:00:00:01" // Brother's

// device puts dev0 into a namespace of its own, and returns how to run something there.
func device(t testing.TB) (run string) {
	t.Helper()
	c := exec.Command("sleep", "600")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	run = "nsenter -t " + strconv.Itoa(c.Process.Pid) + " -n "
	sh(t, "ip link set dev0 netns "+strconv.Itoa(c.Process.Pid)+" && "+run+"ip link set dev0 up")
	return run
}

// rig is a Sense that runs, and what it told.
type rig struct {
	*Sense
	t testing.TB

	offset atomic.Int64 // of its clock

	mu     sync.Mutex // guards what follows
	things []lan.Thing
	told   int
	silent []string
	saved  []lan.Memory
	news   chan struct{}
}

// start runs a Sense until the test ends, and sees that nothing of it is left then.
func start(t testing.TB, c Config) *rig {
	t.Helper()
	r := &rig{t: t, news: make(chan struct{}, 1)}
	c.OnChange = func(things []lan.Thing) {
		r.mu.Lock()
		r.things, r.told = things, r.told+1
		r.mu.Unlock()
		signal(r.news)
	}
	c.OnSilent = func(addr netip.Addr, iface string) {
		r.mu.Lock()
		r.silent = append(r.silent, addr.String()+"%"+iface)
		r.mu.Unlock()
		signal(r.news)
	}
	c.Now = func() time.Time { return time.Now().Add(time.Duration(r.offset.Load())) }
	c.Save = func(m lan.Memory) error {
		r.mu.Lock()
		r.saved = append(r.saved, m)
		r.mu.Unlock()
		return nil
	}
	c.Log = slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if c.Interfaces == nil {
		c.Interfaces = []string{"lan0"}
	}
	if c.LeaseFiles == nil {
		c.LeaseFiles = []string{}
	}
	r.Sense = New(c)
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		for n := 0; runtime.NumGoroutine() > before; n++ { // those that are told to end, end soon
			if n == 20000 {
				buf := make([]byte, 1<<20)
				t.Fatalf("goroutines are left:\n%s", buf[:runtime.Stack(buf, true)])
			}
			time.Sleep(time.Millisecond)
		}
	})
	return r
}

// later sets its clock forward.
func (r *rig) later(d time.Duration) { r.offset.Add(int64(d)) }

// wait waits until a thing is as it shall be; how long it took is for the log.
func (r *rig) wait(what string, is func([]lan.Thing) bool) {
	r.t.Helper()
	begun := time.Now()
	limit := time.After(time.Minute)
	for {
		r.mu.Lock()
		things := r.things
		ok := is(things)
		r.mu.Unlock()
		if ok {
			r.t.Logf("%s after %v", what, time.Since(begun).Round(time.Millisecond))
			return
		}
		select {
		case <-r.news:
		case <-limit:
			r.t.Fatalf("never: %s\n%+v", what, things)
		}
	}
}

// thing is the one with the MAC; the zero Thing: it is not there.
func thing(things []lan.Thing, mac string) lan.Thing {
	i := slices.IndexFunc(things, func(t lan.Thing) bool { return t.MAC == mac })
	if i < 0 {
		return lan.Thing{}
	}
	return things[i]
}

// first is the address to reach the thing by.
func first(t lan.Thing) string {
	if len(t.Addresses) == 0 {
		return ""
	}
	return t.Addresses[0].Addr.String()
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}
