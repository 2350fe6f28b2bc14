#!/usr/bin/env bash
# The daemon in emulated routers, with their kernels' WireGuard, among strangers outside: the long test of an amd64 router
# beside those of small ones, since two guests are what two cores bear. What a group printed comes whole when it has ended.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
go test -c -o "$tmp/netns.test" ./testbed/netns
go build -o "$tmp/guest" ./testbed/qemu/run
CGO_ENABLED=0 go test -c -o "$tmp/tunnel.test" ./subnetd/host/tunnel
export SUBNETD_BIN=$PWD/bin/subnetd SUBNETD_GUESTS=$PWD/bin/guests

# group NAME COMMAND...: runs a group; its output goes to a file.
group() {
	local name=$1 end=FAILED
	shift
	if "$@" >"$tmp/$name.log" 2>&1; then end=ok; fi
	echo "group $name: $end after $SECONDS s" >>"$tmp/$name.log"
	[ $end = ok ] || touch "$tmp/failed"
	flock testbed cat "$tmp/$name.log"
}

lab() (
	cd testbed/netns
	exec "$tmp/netns.test" -test.v -test.timeout 20m "$@"
)

engine() {
	SUBNETD_TEST_KERNEL_WG=1 "$tmp/guest" -- "$tmp/tunnel.test" -test.v -test.run RealKernel
}

small() {
	group engine engine
	group small lab -test.run '^TestGuest' -test.skip '^TestGuestRouter$'
}

group policy lab -test.run '^TestGuestRouter$/^(EnginesAlike|Policy)$' # within a second: alone
small &
group router lab -test.run '^TestGuestRouter$' -test.skip '^TestGuestRouter$/^Policy$'
wait
[ ! -e "$tmp/failed" ]
