package state

import "tailscale.com/types/key"

// Names of the files in the state directory.
const (
	IdentityFile = "identity.json"
	WishFile     = "wish.json"
	NetmapFile   = "netmap.json"
)

// Identity is who this node is. It is made once, and losing it means to join
// the mesh as somebody new.
type Identity struct {
	Machine key.MachinePrivate `json:"machine"` // towards coordinators (Noise)
	Node    key.NodePrivate    `json:"node"`    // WireGuard and relays
	Server  key.MachinePublic  `json:"server"`  // the coordinator's key, pinned at first contact
	Control string             `json:"control"` // the coordinator Server belongs to
	// Ports, UDP but for the last two, each picked once at random and kept, so that what
	// stands in the kernel fits the next start; 0: not yet.
	Port    uint16 `json:"port"`              // by which the world knows us
	Inner   uint16 `json:"inner,omitempty"`   // of our own socket where Port is WireGuard's in the kernel
	Conduit uint16 `json:"conduit,omitempty"` // on loopback, of the socket through which the kernel's relayed packets go
	PeerAPI uint16 `json:"peerAPI,omitempty"` // TCP, where members ask this node itself
	Front   uint16 `json:"front,omitempty"`   // TCP, of our mesh addresses, where the web is brought to
}

// Wish is what the owner last said by `up` and `down`.
type Wish struct {
	Down bool `json:"down"`
}
