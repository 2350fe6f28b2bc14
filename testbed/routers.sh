#!/usr/bin/env bash
# The daemon in emulated routers, with their kernels' WireGuard, among strangers outside: the long test of an amd64 router
# beside those of small ones, since two guests are what two cores bear. What was printed comes whole at the end of each.
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
	local name=$1
	shift
	if "$@" >"$tmp/$name.log" 2>&1; then touch "$tmp/$name.ok"; fi
	cat "$tmp/$name.log"
	echo "group $name: $([ -e "$tmp/$name.ok" ] && echo ok || echo FAILED) after $SECONDS s"
}

lab() (
	cd testbed/netns
	exec "$tmp/netns.test" -test.v -test.timeout 20m "$@"
)

engine() {
	SUBNETD_TEST_KERNEL_WG=1 "$tmp/guest" -- "$tmp/tunnel.test" -test.v -test.run RealKernel
}

small() {
	engine && lab -test.run '^TestGuest' -test.skip '^TestGuestRouter$'
}

group router lab -test.run '^TestGuestRouter$' &
group small small
wait
for name in router small; do
	[ -e "$tmp/$name.ok" ] || exit 1
done
