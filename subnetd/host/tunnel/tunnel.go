// Package tunnel is the hand that holds the WireGuard interface. Kernel is the
// engine of machines whose kernel has WireGuard: no data packet of a direct
// path passes this process, and the interface outlives it. Userspace is for all
// others: wireguard-go on a TUN device, with its packets carried by somebody
// else's sockets and relays.
package tunnel

import "time"

// Stat is what a peer's tunnel has carried.
type Stat struct {
	Rx, Tx    uint64    // bytes, WireGuard's own included
	Handshake time.Time // last; zero: never
}
