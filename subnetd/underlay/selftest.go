package underlay

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/disco"

	"golang.org/x/sys/unix"
)

// trialTime is how long a packet over lo is waited for; it takes microseconds.
const trialTime = 500 * time.Millisecond

// trialSize is the bytes of a trial: those of disco's least message.
const trialSize = len(disco.Magic) + keySize + disco.NonceLen + 16

// trial is the self-test under way.
type trial struct {
	mu   sync.Mutex    // held by the test under way, guards wait
	wait time.Duration // for each packet
	want atomic.Pointer[[]byte]
	came chan struct{} // one slot
}

// SelfTest finds out whether nftables brings us the disco messages that come to
// the public port, in every family we have; an error says which it does not. It
// may be called at any time, also before Run.
func (u *Underlay) SelfTest(ctx context.Context) error {
	u.trial.mu.Lock()
	defer u.trial.mu.Unlock()
	u.startRunning() // somebody must read the sockets
	defer u.stopRunning()
	var errs []error
	for _, s := range u.sockets() {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), u.port)
		if s.v6 {
			to = netip.AddrPortFrom(netip.IPv6Loopback(), u.port)
		}
		errs = append(errs, u.try(ctx, to))
	}
	return errors.Join(errs...)
}

// try sends a disco message of nobody's to the address, and waits until it is here.
func (u *Underlay) try(ctx context.Context, to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, u.trial.wait)
	defer cancel()
	b := make([]byte, trialSize)
	_, _ = rand.Read(b[copy(b, disco.Magic):]) // never fails, by its documentation
	select {
	case <-u.trial.came: // too late for the one before
	default:
	}
	u.trial.want.Store(&b)
	defer u.trial.want.Store(nil)
	d := net.Dialer{Control: markControl(u.cfg.Mark, u.cfg.Log)}
	conn, err := d.DialContext(ctx, "udp", to.String())
	if err == nil {
		defer conn.Close()
		_, err = conn.Write(b)
	}
	switch {
	case to.Addr().Is6() && (missingFamily(err) || errors.Is(err, unix.ENETUNREACH)):
		return nil // lo has no IPv6, and so the test says nothing
	case err != nil:
		return fmt.Errorf("self-test: send to %s: %w", to, err)
	}
	select {
	case <-u.trial.came:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("self-test: what is sent to %s does not come to our port %d: the nftables rules that share the port are not in force", to, u.inner)
	}
}

// passes reports whether b is the trial's packet, which is nobody else's.
func (t *trial) passes(b []byte) bool {
	want := t.want.Load()
	if want == nil || !bytes.Equal(*want, b) {
		return false
	}
	signal(t.came)
	return true
}
