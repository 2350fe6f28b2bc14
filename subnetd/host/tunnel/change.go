package tunnel

import (
	"encoding/hex"
	"slices"
	"strings"

	"subnetd/subnetd/host"

	"tailscale.com/types/key"
)

// change is what must be said to make a device that is `now` into one that is
// `want`, in WireGuard's configuration protocol; "" if nothing.
// https://www.wireguard.com/xplatform/#configuration-protocol
func change(now, want host.Tunnel) string {
	var b strings.Builder
	line := func(name, value string) { b.WriteString(name + "=" + value + "\n") }
	if !want.Key.Equal(now.Key) {
		raw := want.Key.Raw32()
		line("private_key", hex.EncodeToString(raw[:]))
	}
	was := make(map[key.NodePublic]host.Peer, len(now.Peers))
	for _, p := range now.Peers {
		was[p.Key] = p
	}
	stays := make(map[key.NodePublic]bool, len(want.Peers))
	for _, p := range want.Peers {
		stays[p.Key] = true
	}
	for _, p := range now.Peers { // first: others may take over its addresses
		if !stays[p.Key] {
			line("public_key", hexKey(p.Key))
			line("remove", "true")
		}
	}
	for _, p := range want.Peers {
		old, known := was[p.Key]
		if known && slices.Equal(old.AllowedIPs, p.AllowedIPs) {
			continue
		}
		line("public_key", hexKey(p.Key))
		if !known {
			line("endpoint", hexKey(p.Key))
		}
		line("replace_allowed_ips", "true")
		for _, a := range p.AllowedIPs {
			line("allowed_ip", a.String())
		}
	}
	return b.String()
}
