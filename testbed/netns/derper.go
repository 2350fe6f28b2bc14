package netns

import (
	"net"
	"net/netip"
	"path/filepath"
	"time"
)

// Derper is a stock relay with TLS, a certificate of its own making, and no bounds on who may use it.
type Derper struct {
	Addr netip.AddrPort
	proc *Process
}

// Derper starts a stock relay on a host and waits until it listens.
func (l *Lab) Derper(h *Host) *Derper {
	l.t.Helper()
	dir := l.mkdir("derper-" + h.Name)
	d := &Derper{Addr: netip.AddrPortFrom(h.Addr4, 8443)}
	d.proc = h.Start(peer(l.t, "derper", tailscaleVersion, "derper"), "-a", d.Addr.String(), "-http-port", "-1", "-stun=false",
		"-certmode", "manual", "-certdir", dir, "-hostname", h.Addr4.String(), "-c", filepath.Join(dir, "derper.json"))
	Eventually(l.t, 15*time.Second, "the relay listens", func() error {
		return h.inside(func() error {
			c, err := net.Dial("tcp", d.Addr.String())
			if err == nil {
				c.Close()
			}
			return err
		})
	})
	return d
}

// Pid is the relay's process id.
func (d *Derper) Pid() int { return d.proc.Pid() }
