package route

import (
	"context"
	"encoding"
	"errors"
	"fmt"
	"os"

	"subnetd/subnetd/host"

	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	flagExcl    = netlink.Excl
	flagReplace = netlink.Replace
	flagAppend  = netlink.Append
)

// kernel is one netlink conversation; it counts the changes it asked for.
type kernel struct {
	conn    *netlink.Conn
	changes int
}

func dial(ctx context.Context) (*kernel, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, err
	}
	// Both are niceties of newer kernels (4.12, 4.20).
	_ = c.SetOption(netlink.ExtendedAcknowledge, true)
	_ = c.SetOption(netlink.GetStrictCheck, true)
	if d, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(d); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return &kernel{conn: c}, nil
}

func (k *kernel) close() { _ = k.conn.Close() }

// create gives the flags of an addition, or none for a deletion.
func create(add bool) netlink.HeaderFlags {
	if add {
		return netlink.Create | netlink.Excl
	}
	return 0
}

// change sends one message that changes the kernel.
func (k *kernel) change(kind int, flags netlink.HeaderFlags, m encoding.BinaryMarshaler) error {
	data, err := m.MarshalBinary()
	if err != nil {
		return err
	}
	k.changes++
	_, err = k.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | netlink.Acknowledge | flags}, Data: data,
	})
	return err
}

// dump reads a kernel table.
func (k *kernel) dump(kind int, m encoding.BinaryMarshaler) ([]netlink.Message, error) {
	data, err := m.MarshalBinary()
	if err != nil {
		return nil, err
	}
	return k.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | netlink.Dump}, Data: data,
	})
}

// done: the change was made already, by us before or by somebody else.
func done(err error) bool {
	return errors.Is(err, os.ErrExist) || errors.Is(err, unix.ESRCH) ||
		errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENOENT)
}

// routes reads our tables, of both families: the mesh's, and those of so many ways.
func (k *kernel) routes(ways int) ([]rtnetlink.RouteMessage, error) {
	var out []rtnetlink.RouteMessage
	for _, f := range families() {
		for i := range uint32(1 + ways) {
			some, err := k.routesOf(f, host.RouteTable+i)
			if err != nil {
				return nil, fmt.Errorf("read routes: %w", err)
			}
			out = append(out, some...)
		}
	}
	return out, nil
}

func (k *kernel) routesOf(family uint8, table uint32) ([]rtnetlink.RouteMessage, error) {
	msgs, err := k.dump(unix.RTM_GETROUTE, &rtnetlink.RouteMessage{Family: family, Attributes: rtnetlink.RouteAttributes{Table: table}})
	if errors.Is(err, unix.ENOENT) { // strict kernels: the table does not exist yet
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []rtnetlink.RouteMessage
	for _, msg := range msgs {
		var m rtnetlink.RouteMessage
		if err := m.UnmarshalBinary(msg.Data); err != nil {
			return nil, err
		}
		if m.Attributes.Table == table && m.Flags&unix.RTM_F_CLONED == 0 {
			out = append(out, m)
		}
	}
	return out, nil
}

// families is what this kernel speaks.
func families() []uint8 {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return []uint8{unix.AF_INET}
	}
	return []uint8{unix.AF_INET, unix.AF_INET6}
}
