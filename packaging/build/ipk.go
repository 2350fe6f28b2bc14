package main

import (
	"fmt"
	"strings"
)

// ipk is the package of OpenWrt's opkg: the members of a deb in a tar archive, in the
// order of OpenWrt's own scripts/ipkg-build.
type ipk struct{}

func (ipk) name(p pack) string { return fmt.Sprintf("%s_%s_%s.ipk", packageName, p.version, p.arch) }

func (ipk) versionOf(r revision) string { return r.debian() }

func (ipk) sources() sources {
	return sources{
		trees:   map[string]string{"packaging/openwrt/root": ""},
		scripts: "packaging/openwrt/control",
	}
}

// openwrtDepends: without the kernel's WireGuard the daemon carries packets itself,
// through a TUN device. jsonfilter is what the firewall's script reads the daemon's plan
// with, and rpcd knows root's password.
func openwrtDepends() []string {
	return []string{"ca-bundle", "firewall4", "jsonfilter", "kmod-nft-nat", "kmod-tun", "kmod-wireguard", "rpcd"}
}

func (ipk) encode(p pack) ([]byte, error) {
	data, err := tarball(p.files, p.at)
	if err != nil {
		return nil, err
	}
	about, err := tarball(p.about(p.control("Depends: "+strings.Join(openwrtDepends(), ", "), fmt.Sprintf("Installed-Size: %d", p.size()))), p.at)
	if err != nil {
		return nil, err
	}
	return archive([]file{
		{path: "/debian-binary", mode: 0o644, body: []byte("2.0\n")},
		{path: "/data.tar.gz", mode: 0o644, body: data},
		{path: "/control.tar.gz", mode: 0o644, body: about},
	}, p.at, map[string]bool{"/": true})
}
