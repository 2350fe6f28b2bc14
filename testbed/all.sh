#!/usr/bin/env bash
# All tests that run, as two cores bear them: never two guests, and what counts seconds never beside what computes.
#   1. the emulated routers, which mostly wait; what they leave of the cores has what only computes: lint and the unit tests.
#      These are of the kernel's idle class, which makes way at once: with `nice` alone a guest's answers came 10 ms late
#   2. the lab
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
idly testbed/mips.sh
step 1
part testbed/lab.sh
step 2
