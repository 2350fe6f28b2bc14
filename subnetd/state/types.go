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
	Port    uint16             `json:"port"`    // UDP port, picked once at random; 0: not yet
}

// Wish is what the owner last said by `up` and `down`.
type Wish struct {
	Down bool `json:"down"`
}
