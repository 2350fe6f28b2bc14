#!/usr/bin/env bash
# All tests that run, as two cores bear them: never two guests, and what counts seconds has the cores to itself.
#   1. the router of amd64, which mostly waits; what it leaves of the cores has what only computes: the unit tests
#   2. the lab's group whose paths and times a busy machine would bend, alone
#   3. the lab's rows and the small routers
# A part that fails lets its own step end, and is the last. Everything is built before.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

part() { "$@" || touch "$tmp/failed"; }

step() {
	wait
	echo "step $1: ended after $SECONDS s"
	[ ! -e "$tmp/failed" ]
}

part testbed/routers.sh router &
part nice -n 19 testbed/unit.sh
part nice -n 19 testbed/mips.sh
step 1
part testbed/lab.sh other
step 2
part testbed/routers.sh small &
part testbed/lab.sh rows
step 3
