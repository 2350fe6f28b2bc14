#!/usr/bin/env bash
# The daemon in emulated routers, with their kernels' WireGuard, among strangers outside: the long test of an amd64 router,
# and those of small ones. What a group printed comes whole when it has ended. bin/guests is built before.
# usage: routers.sh [short]   short: what bears that the cores have other work, too, and is soon over: the amd64 router without
#                              what has to happen within seconds, and a mipsel one that carries packets
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
go test -c -o "$tmp/netns.test" ./testbed/netns
go build -o "$tmp/guest" ./testbed/qemu/run
CGO_ENABLED=0 go test -c -o "$tmp/tunnel.test" ./subnetd/host/tunnel
limit=20m
[ -z "${SUBNETD_LONG:-}" ] || limit=90m
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
	exec "$tmp/netns.test" -test.v -test.timeout "$limit" "$@"
)

engine() {
	SUBNETD_TEST_KERNEL_WG=1 "$tmp/guest" -- "$tmp/tunnel.test" -test.v -test.run RealKernel
}

router='^TestGuestRouter$'
left=
case ${1:-} in
short)
	left="$router/^(Policy|RestartUnnoticed|HomesDirectDies|NATGrid)\$|$router/^OutlivesDaemon\$/^DirectDies\$"
	left+='|^TestGuest(Exits|Guard|ARM)$|^TestGuestMIPS$/^(SteadyMemory|ManyPeers)$'
	;;
"") ;;
*) echo "usage: ${0##*/} [short]" >&2 && exit 2 ;;
esac
group router lab -test.run "$router" -test.skip "$left"
group engine engine
group small lab -test.run '^TestGuest' -test.skip "$router${left:+|$left}"
[ ! -e "$tmp/failed" ]
