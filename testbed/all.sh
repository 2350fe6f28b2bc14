#!/usr/bin/env bash
# All tests that run, as two cores bear them: never two guests at a time.
#   1. the emulated routers, which mostly wait
#   2. the lab, which does, too
# What they leave of the cores has what only computes, lint, the unit tests and those of MIPS: in the kernel's idle class, which
# makes way at once. With `nice` alone a guest's answers came 10 ms late.
# What fails lets its own step end, and is the last. Everything is built before.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

part() { "$@" || touch "$tmp/failed"; }
idly() { part chrt --idle 0 "$@"; }

step() {
	wait
	echo "step $1: ended after $SECONDS s"
	[ ! -e "$tmp/failed" ]
}

part testbed/routers.sh short &
idly testbed/lint.sh
idly testbed/unit.sh
step 1
idly testbed/mips.sh &
part testbed/lab.sh
step 2
