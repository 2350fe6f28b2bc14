package main

import (
	"fmt"
	"regexp"
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

// packages are those that carry the binary. OpenWrt has an ipk up to 24.10, and an apk
// after that.
func (t target) packages(r revision) []pack {
	var all []pack
	add := func(arch string, formats ...format) {
		for _, f := range formats {
			all = append(all, pack{format: f, arch: arch, version: f.versionOf(r), at: r.at})
		}
	}
	for _, arch := range t.openwrt {
		add(arch, ipk{}, apk{})
	}
	for _, arch := range t.deb {
		add(arch, deb{})
	}
	return all
}

// revision is which commit of the checkout a package is of.
type revision struct {
	at     time.Time
	tag    string // the one before it; "": there is none
	ahead  string // how many commits are behind that; "": none
	commit string // "": the tag is of it
	dirty  bool   // the checkout differs from it
}

// described is what `git describe` says. A tag is a version that every package manager
// knows.
var described = regexp.MustCompile(`^(?:v([0-9]+(?:\.[0-9]+)*)(?:-([0-9]+)-g([0-9a-f]+))?|([0-9a-f]{7,40}))(-dirty)?$`)

func revisionOf(describe string, at time.Time) (revision, error) {
	m := described.FindStringSubmatch(describe)
	if m == nil {
		return revision{}, fmt.Errorf("no version can be made of %q", describe)
	}
	return revision{at: at, tag: m[1], ahead: m[2], commit: m[3] + m[4], dirty: m[5] != ""}, nil
}

// debian is a version that both dpkg and opkg order as time goes: a commit is newer
// than the tag before it, and older than any tag if there is none.
func (r revision) debian() string {
	v := r.tag
	switch {
	case r.tag == "":
		v = "0~" + r.at.Format(stamp) + ".g" + r.commit
	case r.ahead != "":
		v += "+" + r.ahead + ".g" + r.commit
	}
	if r.dirty {
		v += "+dirty"
	}
	return v
}

// stamp is a time as a number that grows.
const stamp = "20060102150405"
