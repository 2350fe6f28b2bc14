#!/usr/bin/env bash
# Writes OUT/go.mod for `go build -modfile`: the project's own, with golang.zx2c4.com/wireguard taken from a copy in
# OUT/wireguard, in which the files of build/wireguard stand in for those of the same name.
# usage: modules.sh OUT (a folder inside the project)
set -euo pipefail
out=${1%/}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

go mod download golang.zx2c4.com/wireguard
theirs=$(go list -m -f '{{.Dir}}' golang.zx2c4.com/wireguard)
mkdir -p "$out"
rm -rf "$out/wireguard"
cp -r "$theirs" "$out/wireguard"
chmod -R u+w "$out/wireguard"
for file in build/wireguard/*.go; do
	name=$(basename "$file")
	if [ ! -f "$theirs/device/$name" ]; then
		echo "golang.zx2c4.com/wireguard has no device/$name any more, so $file can stand in for nothing" >&2
		exit 1
	fi
	cp "$file" "$out/wireguard/device/$name"
done
cp go.mod go.sum "$out/"
go mod edit -replace "golang.zx2c4.com/wireguard=./$out/wireguard" "$out/go.mod"
