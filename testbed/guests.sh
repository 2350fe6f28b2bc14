#!/usr/bin/env bash
# Builds the daemon for the guests of testbed/qemu, static and stripped, as OUTPUT_FOLDER/subnetd-ARCH.
# usage: guests.sh OUTPUT_FOLDER [GO_LDFLAGS [FLAG...]]   (a folder inside the project)
set -euo pipefail

out=$1
ldflags=${2:--s -w}
flags=("${@:3}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$out"
standins=$(build/modules.sh "$out")
read -ra standins <<<"$standins"

# name GOARCH and what goes with it; the names are those of package qemu. For -R see cross.sh.
targets=("mipsle GOARCH=mipsle GOMIPS=softfloat" "armv7 GOARCH=arm GOARM=7" "arm64 GOARCH=arm64" "amd64 GOARCH=amd64")
for target in "${targets[@]}"; do
	read -r name settings <<<"$target"
	read -ra settings <<<"$settings"
	case $name in mips*) apart="-R 0x4000" ;; *) apart= ;; esac
	env GOOS=linux CGO_ENABLED=0 "${settings[@]}" go build -trimpath "${standins[@]}" "${flags[@]}" \
		-ldflags "$ldflags $apart" -o "$out/subnetd-$name" ./subnetd
done
