package link

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Watch tells, by one element at most that nobody has taken yet, that interfaces or
// addresses of IPv6 may have changed: the latter since an address that is being checked
// cannot be used. It ends with ctx. What the kernel could not tell is a change.
func Watch(ctx context.Context) (<-chan struct{}, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Groups: unix.RTMGRP_LINK | unix.RTMGRP_IPV6_IFADDR})
	if err != nil {
		return nil, fmt.Errorf("watch interfaces: %w", err)
	}
	context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	changed := make(chan struct{}, 1)
	go func() {
		defer c.Close()
		for {
			if _, err := c.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed, nil
}

// RouterOption is an option of a router advertisement that the kernel leaves to programs, as
// RDNSS is one (RFC 8106): its bytes, from the type on.
type RouterOption struct {
	Index uint32 // of the interface that heard it
	Bytes []byte
}

// WatchRouters hands on these options as the kernel hears and verifies them, until ctx ends.
// What nobody takes in time is dropped: it is said again.
func WatchRouters(ctx context.Context) (<-chan RouterOption, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Groups: 1 << (unix.RTNLGRP_ND_USEROPT - 1)})
	if err != nil {
		return nil, fmt.Errorf("watch router advertisements: %w", err)
	}
	context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	heard := make(chan RouterOption, 16)
	go func() {
		defer c.Close()
		for {
			all, err := c.Receive()
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			for _, m := range all {
				if o, ok := routerOption(m.Data); ok && m.Header.Type == unix.RTM_NEWNDUSEROPT {
					select {
					case heard <- o:
					default:
					}
				}
			}
		}
	}()
	return heard, nil
}

// routerOption reads a struct nduseroptmsg (linux/rtnetlink.h): family, a byte, the options'
// length, the interface, the type and code of the ICMP message, 6 bytes; then the options.
func routerOption(b []byte) (RouterOption, bool) {
	const head = 16
	if len(b) < head || b[0] != unix.AF_INET6 || b[8] != routerAdvertisement {
		return RouterOption{}, false
	}
	n := int(binary.NativeEndian.Uint16(b[2:]))
	if n == 0 || head+n > len(b) {
		return RouterOption{}, false
	}
	return RouterOption{Index: binary.NativeEndian.Uint32(b[4:]), Bytes: b[head:][:n]}, true
}

const routerAdvertisement = 134 // RFC 4861, 4.2
