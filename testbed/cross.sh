#!/usr/bin/env bash
# Builds the daemon for every target, static and stripped, and prints its size raw, as xz and in a squashfs.
# Fails over budget: 13,500,000 bytes raw on any target, 3,000,000 bytes xz on mipsle, which is what its flash holds.
# usage: cross.sh OUTPUT_FOLDER [GO_LDFLAGS [FLAG...]]
set -euo pipefail

raw_budget=13500000
xz_budget_mipsle=3000000
out=$1
ldflags=${2:--s -w}
flags=("${@:3}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$out"

# name GOARCH and what goes with it. Segments lie 64 KiB apart in the file, as some ARM machines have pages of that size; the
# kernels of MIPS routers have 4 or 16 KiB.
targets=("mipsle GOARCH=mipsle GOMIPS=softfloat" "mips GOARCH=mips GOMIPS=softfloat"
	"armv5 GOARCH=arm GOARM=5" "armv6 GOARCH=arm GOARM=6" "armv7 GOARCH=arm GOARM=7"
	"arm64 GOARCH=arm64" "amd64 GOARCH=amd64" "riscv64 GOARCH=riscv64")

standins=$(build/modules.sh "$out")
read -ra standins <<<"$standins"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
over=0
printf '%-8s %12s %12s %12s\n' target raw xz squashfs-xz
for target in "${targets[@]}"; do
	read -r name settings <<<"$target"
	read -ra settings <<<"$settings"
	bin="$out/subnetd-$name"
	case $name in mips*) apart="-R 0x4000" ;; *) apart= ;; esac
	env GOOS=linux CGO_ENABLED=0 "${settings[@]}" go build -trimpath "${standins[@]}" "${flags[@]}" \
		-ldflags "$ldflags $apart" -o "$bin" ./subnetd
	raw=$(stat -c %s "$bin")
	xz=$(xz -9e -k -c "$bin" | wc -c)
	mksquashfs "$bin" "$tmp/$name.sqfs" -comp xz -b 256K -noappend -quiet -no-progress >/dev/null
	printf '%-8s %12d %12d %12d\n' "$name" "$raw" "$xz" "$(stat -c %s "$tmp/$name.sqfs")"
	if [ "$raw" -gt "$raw_budget" ]; then
		echo "$name: $raw bytes raw is over the budget of $raw_budget" >&2
		over=1
	fi
	if [ "$name" = mipsle ] && [ "$xz" -gt "$xz_budget_mipsle" ]; then
		echo "$name: $xz bytes xz is over the budget of $xz_budget_mipsle" >&2
		over=1
	fi
done
exit "$over"
