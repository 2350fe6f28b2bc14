package tunnel

import (
	"errors"
	"net/netip"
	"os"

	"tailscale.com/types/key"
)

// Left is what a Kernel of an earlier life left behind; zero: nothing.
type Left struct {
	Name   string                            // interface
	Port   uint16                            // on which it listens
	Direct map[key.NodePublic]netip.AddrPort // peers to which it sends by itself
}

// probeName is an interface for a moment.
const probeName = "subnetd-probe"

// Find looks for what an earlier life left under that name, and tells in a
// sentence why this kernel lets us have no such interface. If nothing is left it
// makes one, under another name and for a moment.
func Find(name string) (Left, error) {
	w := newWGKernel()
	defer w.close()
	left, err := find(w, name)
	return left, plain(err)
}

func find(w wireguard, name string) (Left, error) {
	l, err := w.link(name)
	if err != nil {
		return Left{}, err
	}
	if l.kind != wgName {
		return Left{}, try(w)
	}
	left := Left{Name: name, Direct: map[key.NodePublic]netip.AddrPort{}}
	device, err := w.dump(name, func(p *wgPeer) {
		if direct(p.endpoint) && !p.foreign {
			left.Direct[p.key] = p.endpoint
		}
	})
	if err != nil && !errors.Is(err, errInterrupted) {
		return Left{}, err
	}
	left.Port = device.port
	return left, nil
}

// try makes an interface, reads it and removes it.
func try(w wireguard) error {
	if err := w.create(probeName); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	_, err := w.dump(probeName, func(*wgPeer) {})
	return errors.Join(err, deleteLink(w, probeName))
}

// Adopt takes over what was left. Without it the first Set finds it as well, but
// a Set of no interface would not know of one to remove.
func (k *Kernel) Adopt(left Left) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.name = left.Name
}
