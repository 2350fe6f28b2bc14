package lan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"subnetd/firmware/durable"
	"subnetd/firmware/lan/leases"
	"subnetd/firmware/notice"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
)

const (
	serverPort, clientPort = 67, 68
	mostMessage            = 1500
	writeApart             = time.Minute // between two writes of the known devices to flash
)

// dhcp is the server's hand: it owns the pool.
type dhcp struct {
	facts   facts
	pool    *leases.Pool
	keep    string // the file of known devices, on disk
	tell    string // the file of leases that run, in memory
	log     *slog.Logger
	notice  *notice.Log
	now     func() time.Time
	kept    uint64    // the version of the pool that is on disk
	written time.Time // when
}

// open reads the known devices.
func (d *dhcp) open(cfg leases.Config) {
	text, err := os.ReadFile(d.keep)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		d.log.Error("the devices that were known are not", "err", err)
	}
	known, err := leases.ParseKept(string(text))
	if err != nil {
		d.log.Error("some devices that were known are not", "file", d.keep, "err", err)
	}
	d.pool = leases.New(cfg, known, d.now())
	d.kept = d.pool.Version()
}

// run answers until ctx ends, and writes what it has not written yet.
func (d *dhcp) run(ctx context.Context, bridge string) error {
	conn, err := listenUDP(ctx, bridge, fmt.Sprintf("0.0.0.0:%d", serverPort))
	if err != nil {
		return fmt.Errorf("serve DHCP: %w", err)
	}
	defer conn.Close()
	context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	b := make([]byte, mostMessage)
	for {
		if err := conn.SetReadDeadline(d.deadline(ctx)); err != nil {
			return err
		}
		n, _, err := conn.ReadFrom(b)
		switch {
		case ctx.Err() != nil:
			return d.write()
		case errors.Is(err, os.ErrDeadlineExceeded):
		case err != nil:
			return fmt.Errorf("serve DHCP: %w", err)
		default:
			d.heard(conn, b[:n])
		}
		if d.due() {
			if err := d.write(); err != nil {
				d.notice.Warn("the known devices could not be written to disk", "err", err)
			}
		}
	}
}

// deadline is when there is something to do without a message; never, mostly.
func (d *dhcp) deadline(ctx context.Context) time.Time {
	switch {
	case ctx.Err() != nil:
		return time.Unix(1, 0)
	case d.changed():
		return d.written.Add(writeApart)
	}
	return time.Time{}
}

func (d *dhcp) changed() bool { return d.kept != d.pool.Version() }

func (d *dhcp) due() bool { return d.now().Sub(d.written) >= writeApart && d.changed() }

// write puts the known devices on disk.
func (d *dhcp) write() error {
	if !d.changed() {
		return nil
	}
	d.written = d.now()
	if err := durable.Write(d.keep, leases.Kept(d.pool.All()), 0o600); err != nil {
		return err
	}
	d.kept = d.pool.Version()
	return nil
}

// heard takes one message.
func (d *dhcp) heard(conn net.PacketConn, b []byte) {
	reply := d.reply(b)
	if reply == nil {
		return
	}
	to := &net.UDPAddr{IP: net.IPv4bcast, Port: clientPort}
	if addrOf(reply.ClientIPAddr).IsValid() && !reply.IsBroadcast() {
		to.IP = reply.ClientIPAddr
	}
	if _, err := conn.WriteTo(reply.ToBytes(), to); err != nil {
		d.notice.Warn("a device of DHCP got no answer", "err", err)
	}
}

// reply gives the answer to what came in from the network, whatever that is; nil: none.
func (d *dhcp) reply(b []byte) *dhcpv4.DHCPv4 {
	m, err := dhcpv4.FromBytes(b)
	if err != nil {
		d.notice.Warn("a message of DHCP that is none is passed over", "err", err)
		return nil
	}
	a := answer(d.pool, d.facts, m, d.now())
	if a.trouble != "" {
		d.notice.Warn(a.trouble, "device", m.ClientHWAddr.String())
	}
	if a.reply != nil && a.reply.MessageType() == dhcpv4.MessageTypeAck {
		if err := os.WriteFile(d.tell, leases.Running(d.pool.All(), d.now()), 0o644); err != nil {
			d.notice.Warn("the leases could not be told", "err", err)
		}
	}
	return a.reply
}

// listenUDP opens a socket that hears and speaks on one interface only.
func listenUDP(ctx context.Context, device, addr string) (net.PacketConn, error) {
	lc := net.ListenConfig{Control: onDevice(device)}
	return lc.ListenPacket(ctx, "udp", addr)
}

// onDevice binds a socket to an interface, and to its port though others have it elsewhere.
func onDevice(device string) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		control := c.Control(func(fd uintptr) {
			err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.BindToDevice(int(fd), device))
		})
		return errors.Join(control, err)
	}
}
