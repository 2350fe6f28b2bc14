package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/status"

	"github.com/google/go-cmp/cmp"
)

// call runs one command line.
func call(b Build, args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	code = Main(args, &out, &err, b)
	return code, out.String(), err.String()
}

var build = Build{Version: "1.2.3", Run: func(context.Context, RunOptions) error { return errors.New("not in this test") },
	Guard: func(context.Context, string) error { return errors.New("not in this test") }}

func TestArguments(t *testing.T) {
	nowhere := filepath.Join(t.TempDir(), "none")
	for _, tt := range []struct {
		args           string
		code           int
		stdout, stderr string // parts of it; "" of stderr: nothing is said there
	}{
		{"", 2, "", "no command given"},
		{"help", 0, "usage: subnetd COMMAND", ""},
		{"--help", 0, "netcheck", ""},
		{"help up", 0, "-auth-key", ""},
		{"up --help", 0, "-hostname", ""},
		{"help nothing", 2, "", `no command "nothing"`},
		{"version", 0, "1.2.3", ""},
		{"--version", 0, "1.2.3", ""},
		{"version now", 2, "", `takes no arguments, got "now"`},
		{"frobnicate", 2, "", "`subnetd help` lists them"},
		{"--frobnicate", 2, "", "no command"},
		{"status --colour", 2, "", "-colour"},
		{"status now", 2, "", "takes no arguments"},
		{"ping", 2, "", "usage: subnetd ping NAME|ADDRESS"},
		{"ping a b", 2, "", "usage: subnetd ping NAME|ADDRESS"},
		{"ping -c many phone", 2, "", "many"},
		{"ping -c -1 phone --socket " + nowhere, 1, "", "not running"},
		{"debug", 2, "", "plan|netmap|paths"},
		{"run --log-level loud", 2, "", "loud"},
		{"run", 1, "", "not in this test"},
		{"status --socket " + nowhere, 1, "", "subnetd is not running: nothing answers at " + nowhere},
		{"up --timeout soon", 2, "", "soon"},
		{"policy", 2, "", "policy what? There is check, show"},
		{"policy write", 2, "", `policy knows check, show, not "write"`},
		{"policy --json", 2, "", "`subnetd help policy` lists"},
		{"help policy", 0, "policy check FILE", ""},
		{"help nodes", 0, "nodes rename NODE NAME", ""},
		{"help nodes expire", 0, "-in", ""},
		{"nodes expire --help", 0, "example: subnetd nodes expire", ""},
		{"keys revoke 3 --socket " + nowhere, 1, "", "not running"},
		{"keys --socket " + nowhere + " revoke 3", 2, "", "flags stand behind the verb"},
		{"nodes routes a 10.0.0.0", 2, "", `"10.0.0.0" is no prefix`},
		{"nodes routes a 10.0.0.0/99", 2, "", `"10.0.0.0/99" is no prefix`},
		{"exit maybe", 2, "", `exit knows use, off, offer, test, not "maybe"`},
		{"exit use", 2, "", "usage: subnetd exit use NODE[,NODE...] [DEVICE...]"},
		{"exit offer maybe", 2, "", `exit offer takes on or off, not "maybe"`},
		{"exit offer", 2, "", "usage: subnetd exit offer on|off"},
		{"exit test a b", 2, "", "usage: subnetd exit test MAC|ADDRESS|NAME"},
		{"exit off --socket " + nowhere, 1, "", "not running"},
		{"web", 2, "", "web what? There is password"},
		{"web password --socket " + nowhere, 1, "", "not running"},
		{"invite now", 2, "", `invite takes no arguments, got "now"`},
		{"invite --tags printer", 2, "", `"printer" is no tag: write tag:NAME`},
		{"invite --tags tag:a,", 2, "", `"" is no tag`},
		{"invite --tags tag:", 2, "", `"tag:" is no tag`},
		{"invite --expires -1h", 2, "", "more than 0 and at most 10 years"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			code, stdout, stderr := call(build, strings.Fields(tt.args)...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if !strings.Contains(stdout, tt.stdout) || tt.code != 0 && stdout != "" && tt.stdout == "" {
				t.Errorf("stdout %q, want %q", stdout, tt.stdout)
			}
			if !strings.Contains(stderr, tt.stderr) || tt.stderr == "" && stderr != "" {
				t.Errorf("stderr %q, want %q", stderr, tt.stderr)
			}
		})
	}
}

func TestRunOptions(t *testing.T) {
	var got RunOptions
	b := Build{Run: func(_ context.Context, o RunOptions) error { got = o; return nil }}
	if code, _, stderr := call(b, "run", "--config", "/c", "--state=/s", "--socket", "/x", "--log-level", "debug", "--system", "/p"); code != 0 {
		t.Fatal(stderr)
	}
	if want := (RunOptions{"/c", "/s", "/x", slog.LevelDebug, "/p"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// daemon answers the command line as it is told to.
type daemon struct {
	snaps []status.Snapshot // what Watch tells, one after the other
	pings func(n int) (api.PingResult, error)
	pinged,
	downs int
	up     atomic.Pointer[api.UpRequest] // that was accepted last
	busy   bool                          // up is not answered
	home   func() (api.Home, error)
	exit   api.Exit
	page   api.Page
	devs   api.Devices
	system api.System

	certs api.Certificates
	drop  api.Drop
}

func (d *daemon) funcs() api.Funcs {
	return api.Funcs{
		Status: func() status.Snapshot { return d.snaps[len(d.snaps)-1] },
		Watch: func(ctx context.Context) <-chan status.Snapshot {
			out := make(chan status.Snapshot)
			go func() {
				defer close(out)
				for _, s := range d.snaps {
					select {
					case out <- s:
					case <-ctx.Done():
						return
					}
				}
				<-ctx.Done()
			}()
			return out
		},
		Up: func(ctx context.Context, r api.UpRequest) error {
			if d.busy {
				<-ctx.Done()
				return ctx.Err()
			}
			d.up.Store(&r)
			return nil
		},
		Down:   func(context.Context) error { d.downs++; return nil },
		Logout: func(context.Context) error { return errors.New("logging out: the coordinator is silent") },
		Ping: func(context.Context, string) (api.PingResult, error) {
			d.pinged++
			return d.pings(d.pinged)
		},
		Netcheck: func(context.Context) (any, error) { return map[string]any{"UDP": "works"}, nil },
		Debug:    func(what string) (any, error) { return []string{what}, nil },
		Home:     d.home,
		Exit:     d.exit,
		Devices:  d.devs,
		Page:     d.page,
		System:   d.system,

		Certificates: d.certs,
		Drop:         d.drop,
	}
}

// key is that of the wish to be up.
func (d *daemon) key() string {
	if r := d.up.Load(); r != nil {
		return r.AuthKey
	}
	return ""
}

// serve runs the daemon's socket until the test ends.
func (d *daemon) serve(t *testing.T) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- api.NewServer(socket, d.funcs(), slog.New(slog.DiscardHandler)).Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	for {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return socket
		}
		runtime.Gosched()
	}
}

func TestUp(t *testing.T) {
	joined := status.Snapshot{Phase: status.PhaseJoined, Name: "home.lab", Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.1")}}
	connecting := status.Snapshot{Phase: status.PhaseConnecting}
	keyFile := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(keyFile, []byte(" secret \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name           string
		snaps          []status.Snapshot
		args           []string
		code           int
		stdout, stderr string
		key            string
	}{
		{"key", []status.Snapshot{connecting, joined}, []string{"--auth-key", "secret"}, 0, "joined as home.lab (100.64.0.1)\n", "", "secret"},
		{"key in a file", []status.Snapshot{joined}, []string{"--auth-key", "file:" + keyFile}, 0, "joined as home.lab (100.64.0.1)\n", "", "secret"},
		{"file that is not there", []status.Snapshot{joined}, []string{"--auth-key", "file:/nonexistent/k"}, 1, "", "subnetd: the auth key cannot be read: open /nonexistent/k: no such file or directory\n", ""},
		{"file without a key", []status.Snapshot{joined}, []string{"--auth-key", "file:" + empty}, 1, "", "subnetd: the file " + empty + " holds no auth key\n", ""},
		{"login", []status.Snapshot{connecting, {Phase: status.PhaseNeedsLogin, LoginURL: "https://c/l"}, {Phase: status.PhaseNeedsLogin, LoginURL: "https://c/l"}, joined}, nil,
			0, "to let this node in, open:\n\n\thttps://c/l\n\njoined as home.lab (100.64.0.1)\n", "", ""},
		{"approval", []status.Snapshot{{Phase: status.PhaseWaiting}, joined}, nil, 0,
			"waiting until an admin of the mesh approves this node\njoined as home.lab (100.64.0.1)\n", "", ""},
		{"refused", []status.Snapshot{connecting, {Phase: status.PhaseNeedsLogin, Error: "The coordinator says no."}}, nil, 1, "", "subnetd: The coordinator says no.\n", ""},
		{"down meanwhile", []status.Snapshot{{Phase: status.PhaseDown}}, nil, 1, "", "subnetd: somebody said `subnetd down` meanwhile\n", ""},
		{"no answer", []status.Snapshot{connecting}, []string{"--timeout", "50ms"}, 1, "",
			"subnetd: not joined after 50ms: the daemon goes on trying, `subnetd status` says how it stands\n", ""},
		{"nonsense", []status.Snapshot{joined}, []string{"--timeout", "-1s"}, 2, "", "subnetd: up: a negative --timeout makes no sense\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &daemon{snaps: tt.snaps}
			code, stdout, stderr := call(build, append([]string{"up", "--socket", d.serve(t), "--control", "https://c"}, tt.args...)...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if diff := cmp.Diff(tt.stdout, stdout); diff != "" {
				t.Errorf("stdout: %s", diff)
			}
			if diff := cmp.Diff(tt.stderr, stderr); diff != "" {
				t.Errorf("stderr: %s", diff)
			}
			if key := d.key(); key != tt.key {
				t.Errorf("key %q, want %q", key, tt.key)
			}
		})
	}
}

func TestKeyFromEnvironment(t *testing.T) {
	t.Setenv(authKeyEnv, "hidden")
	d := &daemon{snaps: []status.Snapshot{{Phase: status.PhaseJoined}}}
	if code, _, stderr := call(build, "up", "--socket", d.serve(t)); code != 0 || d.key() != "hidden" {
		t.Errorf("exit code %d, key %q, %s", code, d.key(), stderr)
	}
}

// TestUpBusy: the time that the owner gives is up before the daemon has taken his wish.
func TestUpBusy(t *testing.T) {
	d := &daemon{busy: true}
	code, stdout, stderr := call(build, "up", "--socket", d.serve(t), "--timeout", "10ms")
	if want := "subnetd: not joined after 10ms: the daemon goes on trying, `subnetd status` says how it stands\n"; code != 1 || stdout != "" || stderr != want {
		t.Errorf("exit code %d, %q, %q, want %q", code, stdout, stderr, want)
	}
}

func TestPing(t *testing.T) {
	relayed := api.PingResult{Name: "phone", Addr: netip.MustParseAddr("100.64.0.2"), Relay: "lab",
		Path: mesh.Path{Kind: mesh.PathRelay, RTT: 20 * time.Millisecond, Reason: "no UDP here"}}
	direct := api.PingResult{Name: "phone", Addr: netip.MustParseAddr("100.64.0.2"),
		Path: mesh.Path{Kind: mesh.PathDirect, RTT: 1500 * time.Microsecond, Addr: netip.MustParseAddrPort("203.0.113.9:41641")}}
	silent := fmt.Errorf("%w from phone: no answer within 5 s", api.ErrSilent)
	for _, tt := range []struct {
		name           string
		args           []string
		pings          func(int) (api.PingResult, error)
		code           int
		stdout, stderr string
		count          int
	}{
		{"until direct", nil, func(n int) (api.PingResult, error) {
			if n == 1 {
				return relayed, nil
			}
			return direct, nil
		}, 0, "pong of phone (100.64.0.2) by relay lab (no UDP here) in 20.0 ms\npong of phone (100.64.0.2) from 203.0.113.9:41641 in 1.5 ms\n", "", 2},
		{"as many as asked", []string{"-c", "2"}, func(int) (api.PingResult, error) { return direct, nil }, 0,
			strings.Repeat("pong of phone (100.64.0.2) from 203.0.113.9:41641 in 1.5 ms\n", 2), "", 2},
		{"silence", []string{"-c", "1"}, func(int) (api.PingResult, error) { return api.PingResult{}, silent }, 1, "",
			silent.Error() + "\nsubnetd: " + silent.Error() + "\n", 1},
		{"no mesh", nil, func(int) (api.PingResult, error) { return api.PingResult{}, errors.New("in no mesh") }, 1, "", "subnetd: in no mesh\n", 1},
		{"nobody", nil, func(int) (api.PingResult, error) {
			return api.PingResult{}, fmt.Errorf("%w: %q", api.ErrUnknownPeer, "phone")
		}, 1, "", "subnetd: no peer has that name or address: \"phone\"\n", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &daemon{pings: tt.pings}
			code, stdout, stderr := call(build, append([]string{"ping", "--socket", d.serve(t), "phone"}, tt.args...)...)
			if code != tt.code || d.pinged != tt.count {
				t.Errorf("exit code %d after %d pings, want %d after %d", code, d.pinged, tt.code, tt.count)
			}
			if diff := cmp.Diff(tt.stdout, stdout); diff != "" {
				t.Errorf("stdout: %s", diff)
			}
			if diff := cmp.Diff(tt.stderr, stderr); diff != "" {
				t.Errorf("stderr: %s", diff)
			}
		})
	}
}

func TestOthers(t *testing.T) {
	d := &daemon{}
	socket := d.serve(t)
	if code, out, err := call(build, "down", "--socket", socket); code != 0 || out != "" || err != "" || d.downs != 1 {
		t.Errorf("down: %d, %q, %q, asked %d times", code, out, err, d.downs)
	}
	if code, _, err := call(build, "logout", "--socket", socket); code != 1 || err != "subnetd: logging out: the coordinator is silent\n" {
		t.Errorf("logout: %d, %q", code, err)
	}
	if code, out, _ := call(build, "netcheck", "--socket", socket); code != 0 || out != "{\n  \"UDP\": \"works\"\n}\n" {
		t.Errorf("netcheck: %d, %q", code, out)
	}
	if code, out, _ := call(build, "debug", "plan", "--socket", socket); code != 0 || out != "[\n  \"plan\"\n]\n" {
		t.Errorf("debug: %d, %q", code, out)
	}
	if code, _, err := call(build, "debug", "secrets", "--socket", socket); code != 2 || !strings.Contains(err, "debug knows plan") {
		t.Errorf("debug of something else: %d, %q", code, err)
	}
}
