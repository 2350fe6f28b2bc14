#!/usr/bin/env bash
# The daemon among strangers, in groups: first those whose paths and times a busy machine would bend, then two rows of others
# side by side, most of which is waiting. What a group printed comes whole when it has ended. bin/subnetd is built before.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
go test -c -o "$tmp/netns.test" ./testbed/netns
cp bin/subnetd "$tmp/subnetd" # one of the tests runs make
export SUBNETD_BIN=$tmp/subnetd

joining='^(TestHome(JoinLine|Invite|Names|Device|Key|Nodes|Old|Reach|Records|Routes)[A-Za-z]*|TestMakeRun)$'
home='^(TestHome|TestMakeRun|TestNoDrift|TestSwarm)'
exits='^(TestExit|TestNames|TestDNS|TestDevices)'
page='^TestPage'
drop='^Test(Drop|Cert|Front)'
guests='^TestGuest' # by routers.sh

# group NAME FLAG...: runs a group; its output goes to a file.
group() {
	local name=$1 end=FAILED
	shift
	if (cd testbed/netns && "$tmp/netns.test" -test.v -test.timeout 20m "$@") >"$tmp/$name.log" 2>&1; then end=ok; fi
	echo "group $name: $end after $SECONDS s" >>"$tmp/$name.log"
	[ $end = ok ] || touch "$tmp/failed"
	flock testbed cat "$tmp/$name.log"
}

group other -test.skip "$home|$exits|$page|$drop|$guests"
{
	group home -test.run "$home" -test.skip "$joining"
	group exits -test.run "$exits"
} &
group joining -test.run "$joining"
group page -test.run "$page"
group drop -test.run "$drop"
wait
[ ! -e "$tmp/failed" ]
