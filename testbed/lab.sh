#!/usr/bin/env bash
# The daemon among strangers, in three groups: first those whose paths and times a busy machine would bend, then two
# side by side, most of which is waiting. What a group printed comes whole when it has ended. bin/subnetd is built before.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
go test -c -o "$tmp/netns.test" ./testbed/netns
cp bin/subnetd "$tmp/subnetd" # one of the tests runs make
export SUBNETD_BIN=$tmp/subnetd

joining='^(TestHome(JoinLine|Invite|Names|Device|Key|Nodes|Old|Reach|Records|Routes)[A-Za-z]*|TestMakeRun)$'
home='^(TestHome|TestMakeRun|TestNoDrift|TestSwarm|TestExit|TestNames|TestDNS)'
guests='^TestGuest' # by routers.sh

# group NAME FLAG...: runs a group; its output goes to a file.
group() {
	local name=$1
	shift
	(cd testbed/netns && "$tmp/netns.test" -test.v -test.timeout 20m "$@") >"$tmp/$name.log" 2>&1 && touch "$tmp/$name.ok"
	cat "$tmp/$name.log"
	echo "group $name: $([ -e "$tmp/$name.ok" ] && echo ok || echo FAILED) after $SECONDS s"
}

group other -test.skip "$home|$guests"
group joining -test.run "$joining" &
group home -test.run "$home" -test.skip "$joining"
wait
go test -count=1 ./testbed/swarm
for name in joining other home; do
	[ -e "$tmp/$name.ok" ] || exit 1
done
