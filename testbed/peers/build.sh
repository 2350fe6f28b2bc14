#!/usr/bin/env bash
# Builds the strangers the testbed meets: stock tailscale and tailscaled, new and old, derper, Headscale, the
# certificate authority pebble and lego, who asks authorities for certificates. The port-mapping router miniupnpd is Debian's; it is unpacked, not installed, since its
# package would start it on this machine.
# Each is built once into ${SUBNETD_CACHE:-~/.cache/subnetd}/peers/<name>-<version>/ and found there afterwards.
set -euo pipefail

tailscale_version=v1.102.5
tailscale_old_version=v1.82.0 # more than a year older
headscale_version=v0.29.0
pebble_version=v2.10.1
lego_version=v5.5.2
miniupnpd_version=debian

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SUBNETD_CACHE:-$HOME/.cache/subnetd}/peers
mkdir -p "$cache"

# One builder at a time: two test runs on one machine share the cache.
exec 9>"$cache/.lock"
flock 9

tmp=$(mktemp -d "$cache/.build.XXXXXX")
trap 'rm -rf "$tmp"' EXIT

build_tailscale() {
	env -u GOOS -u GOARCH GOBIN="$1" CGO_ENABLED=0 go install -trimpath \
		"tailscale.com/cmd/tailscale@$2" "tailscale.com/cmd/tailscaled@$2"
}

# The relay is a peer of its own, so that what is there of the others need not be built again.
build_derper() {
	env -u GOOS -u GOARCH GOBIN="$1" CGO_ENABLED=0 go install -trimpath "tailscale.com/cmd/derper@$tailscale_version"
}

# Headscale has replace directives of its own, so it is built from a module that requires it.
build_headscale() {
	(cd "$here/headscale" && [ "$(go list -m -f '{{.Version}}' github.com/juanfont/headscale)" = "$headscale_version" ] &&
		env -u GOOS -u GOARCH CGO_ENABLED=0 go build -trimpath -o "$1/headscale" github.com/juanfont/headscale/cmd/headscale)
}

build_pebble() {
	env -u GOOS -u GOARCH GOBIN="$1" CGO_ENABLED=0 go install -trimpath "github.com/letsencrypt/pebble/v2/cmd/pebble@$2"
}

# lego as it is, but for the parts that write DNS records at two hundred providers and files at Amazon's: they are ten times the rest.
build_lego() (
	source=$(go mod download -json "github.com/go-acme/lego/v5@$2" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
	cp -r --no-preserve=mode "$source" "$1/source"
	cd "$1/source"
	cat >providers/dns/zz_gen_dns_providers.go <<-'GO'
		package dns

		import (
			"errors"

			"github.com/go-acme/lego/v5/challenge"
		)

		func NewDNSChallengeProviderByName(string) (challenge.Provider, error) { return nil, errors.New("left out") }
	GO
	cat >providers/http/s3/s3.go <<-'GO'
		package s3

		import (
			"errors"

			"github.com/go-acme/lego/v5/challenge"
		)

		func NewHTTPProvider(string) (challenge.Provider, error) { return nil, errors.New("left out") }
	GO
	env -u GOOS -u GOARCH CGO_ENABLED=0 go build -trimpath -o ../lego .
	cd .. && rm -r source
)

build_miniupnpd() (
	cd "$1"
	apt-get download -q miniupnpd-nftables >&2 || { apt-get update -q >&2 && apt-get download -q miniupnpd-nftables >&2; }
	dpkg -x miniupnpd-nftables*.deb unpacked
	mv unpacked/usr/sbin/miniupnpd .
	rm -r unpacked ./*.deb
)

# peer NAME VERSION: builds into a temporary folder and renames it, so that what exists is whole.
peer() {
	local name=$1 version=$2 want="$cache/$1-$2"
	if [ ! -d "$want" ]; then
		echo "building stock $name $version into $want" >&2
		mkdir -p "$tmp/$name"
		"build_$name" "$tmp/$name" "$version"
		mv "$tmp/$name" "$want"
	fi
	echo "$want"
}

peer tailscale "$tailscale_version"
peer tailscale "$tailscale_old_version"
peer derper "$tailscale_version"
peer headscale "$headscale_version"
peer pebble "$pebble_version"
peer lego "$lego_version"
peer miniupnpd "$miniupnpd_version"
