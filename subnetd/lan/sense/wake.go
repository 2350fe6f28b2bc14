package sense

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// etherWake is what the frames of Wake-on-LAN are marked with.
const etherWake = 0x0842

// Wake sends a magic packet to the thing with the MAC, on the interface or, if that is "",
// on all of the LAN's: as a frame of its own, and as UDP to port 9, which some repeaters
// pass on. Whether it woke anybody is not known. The error says that none was sent.
func (s *Sense) Wake(ctx context.Context, mac, iface string) error {
	to, err := net.ParseMAC(mac)
	if err != nil || len(to) != 6 {
		return fmt.Errorf("%q is no MAC address", mac)
	}
	var errs []error
	sent := false
	for index, name := range s.up() {
		if iface != "" && iface != name {
			continue
		}
		frame, udp := wakeFrame(index, to), wakeUDP(ctx, name, to)
		errs, sent = append(errs, frame, udp), sent || frame == nil || udp == nil
	}
	switch {
	case sent:
		return nil
	case len(errs) == 0 && iface != "":
		return fmt.Errorf("%s is no interface of the LAN that is up", iface)
	case len(errs) == 0:
		return errors.New("no interface of the LAN is up")
	}
	return fmt.Errorf("wake %s: %w", mac, errors.Join(errs...))
}

// magic is what a sleeping network card waits for.
func magic(mac net.HardwareAddr) []byte {
	return slices.Concat(bytes.Repeat([]byte{0xff}, 6), bytes.Repeat(mac, 16))
}

func wakeFrame(index int, mac net.HardwareAddr) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	to := &unix.SockaddrLinklayer{Protocol: networkOrder(etherWake), Ifindex: index, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	return errors.Join(unix.Sendto(fd, magic(mac), 0, to), unix.Close(fd))
}

func wakeUDP(ctx context.Context, iface string, mac net.HardwareAddr) error {
	c, err := listenOn(ctx, iface, false)
	if err != nil {
		return err
	}
	everybody := netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), 9)
	_, err = c.WriteToUDPAddrPort(magic(mac), everybody)
	return errors.Join(err, c.Close())
}
