package main

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// target is one of the binaries of testbed/cross.sh, and the architectures whose
// systems run it.
type target struct {
	binary  string
	deb     []string
	openwrt []string
}

// targets are all that are packaged. A Cortex-A9 of OpenWrt may have no FPU (its name
// would say so), and a Raspberry Pi of the first generation runs armhf on ARMv6.
func targets() []target {
	return []target{
		{binary: "mipsle", openwrt: []string{"mipsel_24kc"}},
		{binary: "mips", openwrt: []string{"mips_24kc"}},
		{binary: "armv5", openwrt: []string{"arm_cortex-a9"}},
		{binary: "armv6", deb: []string{"armhf"}},
		{binary: "armv7", openwrt: []string{"arm_cortex-a7_neon-vfpv4"}},
		{binary: "arm64", deb: []string{"arm64"}, openwrt: []string{"aarch64_cortex-a53", "aarch64_generic"}},
		{binary: "amd64", deb: []string{"amd64"}, openwrt: []string{"x86_64"}},
		{binary: "riscv64", deb: []string{"riscv64"}},
	}
}

// packages are those that carry the binary.
func (t target) packages(version string, at time.Time) []pack {
	var all []pack
	for _, arch := range t.openwrt {
		all = append(all, pack{format: ipk{}, arch: arch, version: version, at: at})
	}
	for _, arch := range t.deb {
		all = append(all, pack{format: deb{}, arch: arch, version: version, at: at})
	}
	return all
}

// described is what `git describe` says: a tag, how many commits are behind it, which
// commit it is, and whether the checkout differs from that.
var described = regexp.MustCompile(`^(?:v([0-9][0-9A-Za-z.]*)(?:-([0-9]+)-g([0-9a-f]+))?|([0-9a-f]{7,40}))(-dirty)?$`)

// versionOf is a version that both dpkg and opkg order as time goes: a commit is
// newer than the tag before it, and older than any tag if there is none.
func versionOf(describe string, at time.Time) (string, error) {
	m := described.FindStringSubmatch(describe)
	if m == nil {
		return "", fmt.Errorf("no version can be made of %q", describe)
	}
	tag, ahead, commit, bare := m[1], m[2], m[3], m[4]
	parts := tag
	switch {
	case bare != "":
		parts = "0~" + at.Format("20060102150405") + ".g" + bare
	case ahead != "":
		parts += "+" + ahead + ".g" + commit
	}
	return parts + strings.Replace(m[5], "-", "+", 1), nil
}
