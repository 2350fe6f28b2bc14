#!/usr/bin/env bash
# Builds stock tailscaled for guests as a router has it: what a subnet router and exit node needs, stripped, with the
# command line in the same program. Prints the program's path for each architecture.
# Each is built once into ${SUBNETD_CACHE:-~/.cache/subnetd}/peers/tailscaled-<version>-<arch>/ and found there afterwards.
# usage: guests.sh [amd64|arm64|armv7|mipsle]...
set -euo pipefail

version=v1.102.5
features=cli,osrouter,advertiseroutes,advertiseexitnode,useroutes,useexitnode,gro,portmapper,dns,health,ipnbus,unixsocketidentity
features+=,c2n,cachenetmap,netstack,peerapiserver,peerapiclient,iptables,tailnetlock,acme,serve,taildrop,debug,bakedroots

cache=${SUBNETD_CACHE:-$HOME/.cache/subnetd}/peers
mkdir -p "$cache"

# One builder at a time: two test runs on one machine share the cache.
exec 9>"$cache/.guests.lock"
flock 9

tmp=$(mktemp -d "$cache/.build.XXXXXX")
trap 'rm -rf "$tmp"' EXIT

settings() {
	case $1 in
	amd64) go=(GOARCH=amd64) ;;
	arm64) go=(GOARCH=arm64) ;;
	armv7) go=(GOARCH=arm GOARM=7) ;;
	mipsle) go=(GOARCH=mipsle GOMIPS=softfloat) ;;
	*)
		echo "no tailscaled is built for $1: amd64, arm64, armv7 or mipsle" >&2
		exit 2
		;;
	esac
}

# build ARCH DIR. A program for another machine is installed below GOPATH only, so it gets one of its own.
build() {
	local tags
	tags=$(env -u GOOS -u GOARCH go run "tailscale.com/cmd/featuretags@$version" --min --add="$features")
	settings "$1"
	env -u GOBIN GOMODCACHE="$(go env GOMODCACHE)" GOPATH="$tmp/go" GOOS=linux CGO_ENABLED=0 "${go[@]}" \
		go install -trimpath -ldflags '-s -w' -tags "$tags" "tailscale.com/cmd/tailscaled@$version"
	mkdir "$2"
	find "$tmp/go/bin" -name tailscaled -exec mv {} "$2/" \;
}

[ $# -gt 0 ] || set -- arm64 mipsle
for arch; do
	want=$cache/tailscaled-$version-$arch
	if [ ! -d "$want" ]; then
		echo "building stock tailscaled $version for $arch into $want" >&2
		build "$arch" "$tmp/$arch"
		mv "$tmp/$arch" "$want"
	fi
	echo "$want/tailscaled"
done
