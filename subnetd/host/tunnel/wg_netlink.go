package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"subnetd/subnetd/host"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// wireguard is the kernel as far as this hand needs it; tests have another.
type wireguard interface {
	link(name string) (wgLink, error) // index 0: there is none
	links() ([]wgLink, error)
	create(name string) error
	start(wgLink) error // MTU, and up
	remove(wgLink) error
	// dump reads the interface; what each gets is another's after the call.
	dump(name string, each func(*wgPeer)) (wgDevice, error)
	set(name string, s *wgSet) error
	close() error
}

// wgLink is a network interface of any kind.
type wgLink struct {
	index  uint32
	name   string
	kind   string
	up     bool
	mtu    uint32
	rx, tx uint64 // bytes it has carried
}

// errInterrupted says that somebody changed the interface while it was read:
// some peers may be missing.
var errInterrupted = errors.New("the interface changes while it is read")

// patience is how long the kernel may take for an answer: it has one lock for
// all that changes interfaces.
const patience = 20 * time.Second

// conversation is one netlink socket, open while it is of use.
type conversation struct {
	protocol int
	conn     *netlink.Conn // nil: not open
}

// ask sends one message and hands on the answers, acknowledgements apart. After
// a failure the next one goes by another socket: this one may hold more answers.
func (c *conversation) ask(kind uint16, flags netlink.HeaderFlags, body []byte, answer func(netlink.Message) error) (err error) {
	defer func() {
		if err != nil {
			_ = c.close()
		}
	}()
	if err = c.open(); err != nil {
		return err
	}
	m := netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | flags}, Data: body}
	if _, err = c.conn.Send(m); err != nil {
		return err
	}
	for m, err := range c.conn.ReceiveIter() {
		if err == nil && m.Header.Type != netlink.Error {
			err = answer(m)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *conversation) open() error {
	if c.conn == nil {
		conn, err := netlink.Dial(c.protocol, &netlink.Config{MessageBufferSize: 16 << 10})
		if err != nil {
			return err
		}
		c.conn = conn
		// An error need not repeat our message, which may be larger than the buffer
		// (Linux 4.3). The library does not read extended ones then.
		_ = conn.SetOption(netlink.CapAcknowledge, true)
	}
	return c.conn.SetDeadline(time.Now().Add(patience))
}

func (c *conversation) close() error {
	if c.conn == nil {
		return nil
	}
	err := c.conn.Close()
	c.conn = nil
	return err
}

func nothing(netlink.Message) error { return nil }

// wgKernel is the kernel we run on.
type wgKernel struct {
	route, generic conversation
	family         uint16 // of WireGuard, in generic; 0: not known yet
}

func newWGKernel() *wgKernel {
	return &wgKernel{route: conversation{protocol: unix.NETLINK_ROUTE}, generic: conversation{protocol: unix.NETLINK_GENERIC}}
}

func (w *wgKernel) close() error { return errors.Join(w.route.close(), w.generic.close()) }

// ifinfo begins a message about a link.
func ifinfo(index, flags, change uint32) attributes {
	b := attributes{unix.AF_UNSPEC, 0, 0, 0}
	for _, v := range [...]uint32{index, flags, change} {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return b
}

func (w *wgKernel) link(name string) (wgLink, error) {
	var l wgLink
	m := ifinfo(0, 0, 0)
	m.text(unix.IFLA_IFNAME, name)
	err := w.route.ask(unix.RTM_GETLINK, 0, m, func(m netlink.Message) (err error) {
		l, err = parseLink(m.Data)
		return err
	})
	if errors.Is(err, unix.ENODEV) {
		return wgLink{}, nil
	}
	return l, err
}

func (w *wgKernel) links() ([]wgLink, error) {
	for tries := 3; ; tries-- {
		var all []wgLink
		interrupted := false
		err := w.route.ask(unix.RTM_GETLINK, netlink.Dump, ifinfo(0, 0, 0), func(m netlink.Message) error {
			interrupted = interrupted || m.Header.Flags&netlink.DumpInterrupted != 0
			l, err := parseLink(m.Data)
			all = append(all, l)
			return err
		})
		if err != nil || !interrupted || tries == 1 {
			return all, err
		}
	}
}

// parseLink reads an ifinfomsg and the attributes behind it.
func parseLink(b []byte) (wgLink, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return wgLink{}, errShort
	}
	l := wgLink{index: binary.NativeEndian.Uint32(b[4:]), up: binary.NativeEndian.Uint32(b[8:])&unix.IFF_UP != 0}
	for b = b[unix.SizeofIfInfomsg:]; len(b) > 0; {
		kind, value, rest, err := nextAttribute(b)
		if err != nil {
			return wgLink{}, err
		}
		b = rest
		switch kind {
		case unix.IFLA_IFNAME:
			l.name = unix.ByteSliceToString(value)
		case unix.IFLA_MTU:
			var n uint64
			n, err = number(value)
			l.mtu = uint32(n)
		case unix.IFLA_STATS64: // packets received, sent; then bytes
			if len(value) < 32 {
				return wgLink{}, errShort
			}
			l.rx, l.tx = binary.NativeEndian.Uint64(value[16:]), binary.NativeEndian.Uint64(value[24:])
		case unix.IFLA_LINKINFO:
			l.kind, err = parseKind(value)
		}
		if err != nil {
			return wgLink{}, err
		}
	}
	return l, nil
}

func parseKind(b []byte) (string, error) {
	for len(b) > 0 {
		kind, value, rest, err := nextAttribute(b)
		if err != nil {
			return "", err
		}
		if kind == unix.IFLA_INFO_KIND {
			return unix.ByteSliceToString(value), nil
		}
		b = rest
	}
	return "", nil
}

// create makes the link. The kernel loads its module for that, if it can.
func (w *wgKernel) create(name string) error {
	m := ifinfo(0, 0, 0)
	m.text(unix.IFLA_IFNAME, name)
	m.put32(unix.IFLA_MTU, host.MTU)
	m.nest(unix.IFLA_LINKINFO, func() { m.text(unix.IFLA_INFO_KIND, wgName) })
	return w.route.ask(unix.RTM_NEWLINK, netlink.Acknowledge|netlink.Create|netlink.Excl, m, nothing)
}

func (w *wgKernel) start(l wgLink) error {
	m := ifinfo(l.index, unix.IFF_UP, unix.IFF_UP)
	m.put32(unix.IFLA_MTU, host.MTU)
	return w.route.ask(unix.RTM_NEWLINK, netlink.Acknowledge, m, nothing)
}

func (w *wgKernel) remove(l wgLink) error {
	return w.route.ask(unix.RTM_DELLINK, netlink.Acknowledge, ifinfo(l.index, 0, 0), nothing)
}

// resolve finds the number of WireGuard's family. With a new socket it is asked
// for again: the module may have been loaded anew.
func (w *wgKernel) resolve() error {
	if w.generic.conn != nil && w.family != 0 {
		return nil
	}
	m := attributes{unix.CTRL_CMD_GETFAMILY, 1, 0, 0}
	m.text(unix.CTRL_ATTR_FAMILY_NAME, wgName)
	w.family = 0
	err := w.generic.ask(unix.GENL_ID_CTRL, 0, m, func(m netlink.Message) (err error) {
		w.family, err = parseFamily(m.Data)
		return err
	})
	if err == nil && w.family == 0 {
		err = errShort
	}
	return err
}

// parseFamily reads the answer to CTRL_CMD_GETFAMILY.
func parseFamily(b []byte) (uint16, error) {
	if len(b) < 4 {
		return 0, errShort
	}
	for b = b[4:]; len(b) > 0; {
		kind, value, rest, err := nextAttribute(b)
		if err != nil {
			return 0, err
		}
		if kind == unix.CTRL_ATTR_FAMILY_ID {
			n, err := number(value)
			return uint16(n), err
		}
		b = rest
	}
	return 0, errShort
}

func (w *wgKernel) dump(name string, each func(*wgPeer)) (wgDevice, error) {
	if err := w.resolve(); err != nil {
		return wgDevice{}, err
	}
	d := wgDump{each: each}
	interrupted := false
	err := w.generic.ask(w.family, netlink.Dump, wgRequest(unix.WG_CMD_GET_DEVICE, name), func(m netlink.Message) error {
		interrupted = interrupted || m.Header.Flags&netlink.DumpInterrupted != 0
		return d.message(m.Data)
	})
	if err != nil {
		return wgDevice{}, err
	}
	d.end()
	if interrupted {
		err = errInterrupted
	}
	return d.device, err
}

func (w *wgKernel) set(name string, s *wgSet) error {
	if err := w.resolve(); err != nil {
		return err
	}
	return w.generic.ask(w.family, netlink.Acknowledge, s.encode(name), nothing)
}

// deleteLink removes a WireGuard link of that name. None, and one of another kind,
// is left as it is.
func deleteLink(w wireguard, name string) error {
	l, err := w.link(name)
	if err != nil || l.kind != wgName {
		return err
	}
	if err := w.remove(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// plain adds to an error what it means for whoever wants a WireGuard interface.
func plain(err error) error {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT):
		return fmt.Errorf("the kernel has no WireGuard: load the module wireguard (OpenWrt: install kmod-wireguard): %w", err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("a WireGuard interface needs root or CAP_NET_ADMIN: %w", err)
	}
	return err
}

// RemoveKernel removes the WireGuard interface of that name, and those of exits,
// which the kernel engine of an earlier life has left. Interfaces of other kinds stay.
func RemoveKernel(name string) error {
	w := newWGKernel()
	defer w.close()
	names := []string{name}
	exits, err := exitLinks(w)
	for _, l := range exits {
		names = append(names, l.name)
	}
	for _, name := range names {
		if e := deleteLink(w, name); e != nil {
			err = errors.Join(err, fmt.Errorf("removing interface %s of the kernel engine: %w", name, e))
		}
	}
	return err
}
