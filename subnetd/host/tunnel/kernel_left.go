package tunnel

import (
	"errors"
	"net/netip"
	"os"

	"subnetd/subnetd/host"

	"tailscale.com/types/key"
)

// Left is what a Kernel of an earlier life left behind; zero: nothing.
type Left struct {
	Name   string                            // main interface
	Port   uint16                            // on which it listens
	Direct map[key.NodePublic]netip.AddrPort // peers to which the kernel sends by itself
	Exits  []LeftExit
}

// LeftExit is the interface of an exit.
type LeftExit struct {
	Name string
	Port uint16
	Peer key.NodePublic // zero: it has none
}

// probeName is an interface for a moment.
const probeName = "subnetd-probe"

// Find looks for what an earlier life left under that name and those of exits, and
// tells in a sentence why this kernel lets us have no such interface. If there is
// none of that name it makes one, under another and for a moment.
func Find(name string) (Left, error) {
	w := newWGKernel()
	defer w.close()
	left, err := find(w, name)
	return left, plain(err)
}

func find(w wireguard, name string) (Left, error) {
	left := Left{Direct: map[key.NodePublic]netip.AddrPort{}}
	l, err := w.link(name)
	if err != nil {
		return Left{}, err
	}
	if l.kind == wgName {
		left.Name = name
		left.Port, err = left.read(w, name, func(key.NodePublic) {})
	} else {
		err = try(w)
	}
	if err != nil {
		return Left{}, err
	}
	exits, err := exitLinks(w)
	for _, l := range exits {
		if err == nil {
			e := LeftExit{Name: l.name}
			e.Port, err = left.read(w, l.name, func(k key.NodePublic) { e.Peer = k })
			left.Exits = append(left.Exits, e)
		}
	}
	if err != nil {
		return Left{}, err
	}
	return left, nil
}

// read keeps to which peers an interface sends by itself, and gives its port.
func (l *Left) read(w wireguard, name string, peer func(key.NodePublic)) (uint16, error) {
	device, err := w.dump(name, func(p *wgPeer) {
		peer(p.key)
		if direct(p.endpoint) && !p.foreign {
			l.Direct[p.key] = p.endpoint
		}
	})
	if errors.Is(err, errInterrupted) {
		err = nil
	}
	return device.port, err
}

// exitLinks are the interfaces of exits.
func exitLinks(w wireguard) ([]wgLink, error) {
	all, err := w.links()
	var ours []wgLink
	for _, l := range all {
		if l.kind == wgName && host.IsExitInterface(l.name) {
			ours = append(ours, l)
		}
	}
	return ours, err
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
