package watch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Counter is the bytes that an interface has received and sent since it was made.
type Counter struct{ Rx, Tx uint64 }

// Counters is what the kernel counts of those interfaces that there are, by their names,
// whichever engine is behind them. It is one question, however many peers they have.
func Counters(names []string) (map[string]Counter, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	links, err := dump(c, unix.RTM_GETLINK, &rtnetlink.LinkMessage{}, parseCounter)
	if err = errors.Join(err, c.Close()); err != nil {
		return nil, fmt.Errorf("links: %w", err)
	}
	all := make(map[string]Counter, len(names))
	for _, l := range links {
		if slices.Contains(names, l.name) {
			all[l.name] = l.Counter
		}
	}
	return all, nil
}

// counted is an interface's Counter.
type counted struct {
	name string
	Counter
}

// parseCounter reads what parseLink does not. struct rtnl_link_stats64 begins with the
// packets received and sent; then come their bytes.
func parseCounter(b []byte) (out counted, err error) {
	if len(b) < unix.SizeofIfInfomsg {
		return out, fmt.Errorf("link message of %d bytes", len(b))
	}
	ad, err := netlink.NewAttributeDecoder(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return out, err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.IFLA_IFNAME:
			out.name = ad.String()
		case unix.IFLA_STATS64:
			s := ad.Bytes()
			if len(s) < 32 {
				return out, fmt.Errorf("statistics of %d bytes", len(s))
			}
			out.Rx, out.Tx = binary.NativeEndian.Uint64(s[16:]), binary.NativeEndian.Uint64(s[24:])
		}
	}
	return out, ad.Err()
}
