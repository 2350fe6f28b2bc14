#!/usr/bin/env bash
# Builds our programs for a board, fetches Debian's parts once, and makes its image in bin/image/BOARD.
# usage: build.sh BOARD VERSION EPOCH [GO_LDFLAGS [FLAG...]]
set -euo pipefail

board=$1 version=$2 epoch=$3
ldflags=${4:--s -w}
flags=("${@:5}")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PATH=$PATH:/usr/sbin:/sbin

apart=
case $board in
qemu-malta) debian=mipsel go=(GOARCH=mipsle GOMIPS=softfloat) apart="-R 0x4000" ;;
qemu-armv7) debian=armhf go=(GOARCH=arm GOARM=7) ;;
qemu-arm64 | rpi) debian=arm64 go=(GOARCH=arm64) ;;
x86_64) debian=amd64 go=(GOARCH=amd64) ;;
*)
	echo "make image BOARD=qemu-malta|qemu-armv7|qemu-arm64|x86_64|rpi" >&2
	exit 2
	;;
esac

out=bin/image/$board
mkdir -p "$out"
parts=$(firmware/image/parts.sh "$debian")
standins=$(build/modules.sh bin/image)
read -ra standins <<<"$standins"
build() { env GOOS=linux CGO_ENABLED=0 "${go[@]}" go build -trimpath "$@"; }
build "${standins[@]}" "${flags[@]}" -ldflags "$ldflags $apart" -o "$out/subnetd" ./subnetd
build -ldflags "-s -w" -o "$out/appliance" ./firmware/appliance
build -ldflags "-s -w" -o "$out/stage1" ./firmware/stage1
go run ./firmware/image -board "$board" -parts "$parts" -subnetd "$out/subnetd" -appliance "$out/appliance" -stage1 "$out/stage1" \
	-pack -version "$version" -epoch "$epoch" -out "$out"
