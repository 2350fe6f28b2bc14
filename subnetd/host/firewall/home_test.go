package firewall

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"subnetd/subnetd/host"

	"github.com/google/go-cmp/cmp"
)

// knock begins a TCP connection from ns to dst every millisecond until stop is
// closed, and returns how many; what the server says has to be want.
func knock(ns, dst, want string, stop <-chan struct{}) (int, error) {
	runtime.LockOSThread() // never unlocked: the thread goes with this goroutine
	if err := enter(ns); err != nil {
		return 0, err
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-stop:
			return n, nil
		case <-tick.C:
		}
		c, err := net.DialTimeout("tcp", dst, patience)
		if err != nil {
			return n, fmt.Errorf("connection %d: %w", n, err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		b, err := io.ReadAll(c)
		_ = c.Close()
		if err != nil || string(b) != want {
			return n, fmt.Errorf("connection %d: %q %w", n, b, err)
		}
	}
}

// No change of the mesh keeps a node from the coordinator: not members that come
// and go, and not another policy.
func TestRedirectThroughChanges(t *testing.T) {
	const changes = 25
	neighbourhood(t)
	serve(t, "", ":8410", "home")
	members := func(i int) host.Firewall { return joined(2, 3, 7, byte(10+i)) }
	policies := func(i int) host.Firewall {
		cfg := members(i)
		cfg.SNAT = i%2 == 0
		return cfg
	}
	for name, change := range map[string]func(i int) host.Firewall{"members": members, "policies": policies} {
		t.Run(name, func(t *testing.T) {
			put(t, change(0))
			way := run(t, "nft -a list table inet "+host.NftHomeTable)
			stop := make(chan struct{})
			var callers sync.WaitGroup
			for dst, client := range map[string]string{
				"198.51.100.1:80": "198.51.100.2", "198.51.100.1:443": "198.51.100.2",
				"[2001:db8::1]:80": "2001:db8::2", "[2001:db8::1]:443": "2001:db8::2",
			} {
				callers.Go(func() {
					n, err := knock("world", dst, "home "+client, stop)
					if err != nil || n == 0 {
						t.Errorf("%s: %v after %d connections", dst, err, n)
					}
					t.Logf("%s: %d connections", dst, n)
				})
			}
			edge := hooks(t, host.NftTable)
			for i := range changes {
				put(t, change(i))
			}
			close(stop)
			callers.Wait()
			if d := cmp.Diff(edge, hooks(t, host.NftTable)); d != "" {
				t.Errorf("the table of the edge was loaded anew: %s", d)
			}
			if run(t, "nft -a list table inet "+host.NftHomeTable) != way {
				t.Error("the way home was touched")
			}
		})
	}
}
