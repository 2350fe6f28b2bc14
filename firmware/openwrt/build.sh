#!/usr/bin/env bash
# Bakes subnetd into an image of OpenWrt to flash: OpenWrt's own ImageBuilder does it, which fetches all else from the internet.
# Get it unpacked for your router's target from where OpenWrt's releases are; `make info` in it lists the profiles.
# usage: build.sh IMAGEBUILDER_FOLDER PROFILE [PACKAGE...]
# Further packages go in, too (`luci`), or come out (`-ppp`). The images go into bin/openwrt.
set -euo pipefail

if [ $# -lt 2 ] || [ ! -f "$1/.config" ]; then
	sed -n 's/^# //p' "${BASH_SOURCE[0]}" >&2
	exit 2
fi
builder=$(cd "$1" && pwd)
profile=$2
wanted=(subnetd "${@:3}")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
packages=${SUBNETD_PACKAGES:-bin/packages}
out=${SUBNETD_IMAGES:-$PWD/bin/openwrt}

setting() { sed -n "s/^CONFIG_$1=//p" "$builder/.config" | tr -d '"'; }

arch=$(setting TARGET_ARCH_PACKAGES)
kind=ipk
[ "$(setting USE_APK)" != y ] || kind=apk
shopt -s nullglob
found=("$packages"/subnetd_*_"$arch.$kind")
if [ ${#found[@]} -ne 1 ]; then
	echo "$packages has ${#found[@]} packages subnetd_*_$arch.$kind, and it takes one: make packages" >&2
	exit 1
fi

# An index of apk finds a package by its name, which has no architecture in it.
name=${found[0]##*/}
if [ "$kind" = apk ]; then
	name=${name/_/-}
	name=${name%"_$arch.apk"}.apk
fi
rm -f "$builder"/packages/subnetd[-_]*
cp "${found[0]}" "$builder/packages/$name"
mkdir -p "$out"
make -C "$builder" image PROFILE="$profile" PACKAGES="${wanted[*]}" BIN_DIR="$out"
ls -l "$out"
